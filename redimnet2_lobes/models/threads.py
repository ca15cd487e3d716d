"""Utterances side by side, each on one thread.

A network makes hundreds of small operations of an utterance. Where each is
spread over threads, each waits for the slowest, and beside another busy process
that may take a hundred times as long as the arithmetic. Utterances on threads
of their own wait for each other once, at the end.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import joblib
import torch
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import forward_ad

from redimnet2_lobes.files.settings import check_at_least, check_types

Item = TypeVar("Item")
Result = TypeVar("Result")


def check_threads(threads: int | None) -> None:
    """Refuses, with a ValueError, what is neither None nor 1 or more.

    Example
    -------
    >>> check_threads(0)
    Traceback (most recent call last):
    ValueError: threads: 0 is less than 1
    """
    check_types({"threads": threads}, threads=int | None)
    check_at_least({"threads": threads}, threads=1)


def usable_threads(wanted: int | None = None) -> int:
    """So many threads, but not more than there are cores for them.

    None wants as many as torch may use. Of the cores those count that the
    affinity of the process and the quota of its container allow.

    Example
    -------
    >>> usable_threads() <= torch.get_num_threads()
    True
    >>> usable_threads(1)
    1
    """
    return min(wanted or torch.get_num_threads(), joblib.cpu_count())


def single_threads(threads: int) -> ThreadPoolExecutor:
    """Threads in each of which torch has one thread, started already.

    Example
    -------
    >>> with single_threads(2) as pool:
    ...     pool.submit(torch.get_num_threads).result()
    1
    """
    before = torch.get_num_threads()
    started = threading.Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # or torch would begin with a default later
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, "single thread", start)
    for _ in range(threads):  # each starts one, for none is idle
        pool.submit(int)
    started.wait()
    # What a thread sets is also what threads of the future begin with.
    torch.set_num_threads(before)
    return pool


@functools.cache
def _shared_threads(threads: int) -> ThreadPoolExecutor:
    return single_threads(threads)


if hasattr(os, "register_at_fork"):  # a child has none of these threads
    os.register_at_fork(after_in_child=_shared_threads.cache_clear)


def side_by_side(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    threads: int,
) -> list[Result]:
    """Calls a function with each item, so many at a time, each on one thread.

    The results are in the order of the items, and the first exception is
    raised. Whether there are gradients and autocast is a matter of each thread:
    the function has to see to them.

    Example
    -------
    >>> side_by_side(torch.square, list(torch.arange(3)), threads=2)
    [tensor(0), tensor(1), tensor(4)]
    """
    threads = min(threads, len(items))
    if threads == torch.get_num_threads() == 1:
        return [function(item) for item in items]
    return list(_shared_threads(threads).map(function, items))


def is_watched() -> bool:
    """Whether somebody looks at each operation of torch in this thread.

    As `FlopCounterMode` does, and torch.func. Work elsewhere escapes them.

    Example
    -------
    >>> from torch.utils.flop_counter import FlopCounterMode
    >>> with FlopCounterMode(display=False):
    ...     is_watched()
    True
    """
    # Not public, but there is no other way.
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or _functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )
