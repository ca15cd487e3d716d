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

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_threads() -> int:
    """Threads that torch may use, but not more than there are cores for them.

    Of the cores those count that the affinity of the process and the quota of
    its container allow.

    Example
    -------
    >>> usable_threads() <= torch.get_num_threads()
    True
    """
    return min(torch.get_num_threads(), joblib.cpu_count())


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
    function: Callable[[Item], Result], items: Sequence[Item]
) -> list[Result]:
    """Calls a function with each item, on `usable_threads` at most.

    The results are in the order of the items, and the first exception is
    raised. Gradients and autocast are on or off for each thread by itself: the
    function has to see to them.

    Example
    -------
    >>> side_by_side(torch.square, list(torch.arange(3)))
    [tensor(0), tensor(1), tensor(4)]
    """
    threads = min(usable_threads(), len(items))
    if threads < 2:
        return [function(item) for item in items]
    return list(_shared_threads(threads).map(function, items))
