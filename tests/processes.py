"""Functions in several processes, joined by gloo, as torchrun makes them."""

import contextlib
import multiprocessing
import os
import socket
import sys
import traceback

import torch

# Forks of a process that has imported and done nothing else: fast, and without
# the threads of a process that has computed.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["redimnet2_lobes.recipe.training", "redimnet2_lobes.training.brain"]
)


def in_processes(count, function, *arguments):
    """Calls a function in each process; their exit codes, 1 for an error.

    The recipe joins them by itself, other functions use ``joined``. After two
    minutes they are killed.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        SERVER.Process(
            target=_call, args=(rank, count, port, function, arguments)
        )
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        process.kill()  # where they wait for each other for ever
        process.join()
    return [process.exitcode for process in processes]


@contextlib.contextmanager
def joined():
    """Within it torch.distributed works."""
    torch.distributed.init_process_group("gloo")
    yield int(os.environ["RANK"])
    torch.distributed.barrier()


def _call(rank, count, port, function, arguments):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        MASTER_ADDR="localhost",
        MASTER_PORT=str(port),
    )
    code = 1
    try:
        function(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    # Without tidying up, in which threads of gloo may wait for each other.
    os._exit(code)
