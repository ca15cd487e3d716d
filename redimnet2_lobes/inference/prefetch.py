"""Files that are read before they are needed, by threads.

Threads and no processes: reading, decoding and resampling leave Python's lock
alone for nearly all of their time, and waveforms need not be copied.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from redimnet2_lobes.models.threads import single_threads, usable_threads

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextlib.contextmanager
def loading_threads() -> Iterator[ThreadPoolExecutor]:
    """Threads to read files with, as many as torch may use.

    At the end, or at an exception, calls that have begun are waited for, and
    those that are queued never begin.

    Example
    -------
    >>> with loading_threads() as pool:
    ...     pool.submit(len, "abc").result()
    3
    """
    pool = single_threads(usable_threads())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def prefetch(
    pool: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    budget: float = 100,
    cost: Callable[[Item], float] = lambda _: 1,
) -> Iterator[tuple[Item, "Future[Result]"]]:
    """Yields items in their order, each with the future of its result.

    While the caller is busy with one, threads go on with those after it, as
    many as cost no more than the budget together, or with a single one.

    Example
    -------
    >>> with loading_threads() as pool:
    ...     for word, length in prefetch(pool, len, ["one", "three"]):
    ...         print(word, length.result())
    one 3
    three 5
    """
    waiting, ahead = collections.deque(items), collections.deque()
    spent = 0.0
    while waiting or ahead:
        current = [ahead.popleft()] if ahead else []
        spent -= sum(cost(item) for item, _ in current)
        while waiting and (not ahead or spent + cost(waiting[0]) <= budget):
            item = waiting.popleft()
            ahead.append((item, pool.submit(function, item)))
            spent += cost(item)
        yield from current


def prefetch_next(
    pool: ThreadPoolExecutor, items: Iterator[Item]
) -> Iterator[Item]:
    """Yields items, none of them None, while a thread has the next one made.

    Example
    -------
    >>> with loading_threads() as pool:
    ...     print(*prefetch_next(pool, map(len, ["one", "three"])))
    3 5
    """
    following = pool.submit(next, items, None)
    while (item := following.result()) is not None:
        following = pool.submit(next, items, None)
        yield item
