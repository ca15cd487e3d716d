"""Functions in several processes, joined by gloo, as torchrun makes them."""

import contextlib
import multiprocessing
import os
import socket
import sys
import traceback

import torch


def in_processes(count, function, *arguments):
    """Calls a function in each process; their exit codes, 1 for an error.

    They are forks, which start at once. The recipe joins them by itself; a
    function that is not the recipe may use ``joined``.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(
            target=_call, args=(rank, count, port, function, arguments)
        )
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


@contextlib.contextmanager
def joined():
    """Within it torch.distributed works."""
    torch.distributed.init_process_group("gloo")
    yield int(os.environ["RANK"])
    torch.distributed.barrier()


def _call(rank, count, port, function, arguments):
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
