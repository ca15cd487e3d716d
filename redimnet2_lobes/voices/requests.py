"""Requests with recordings: how large, how long, and how many at a time.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

from redimnet2_lobes.models.threads import single_threads

Result = TypeVar("Result")

RETRY = {"Retry-After": "1"}


class Limits(NamedTuple):
    """What a request may take."""

    megabytes: float = 10.0  # of its body
    seconds: float = 60.0  # of its recording
    timeout: float = 30.0  # seconds from its head to its answer
    requests: int = 64  # with a recording at a time; each may hold its body
    threads: int = 1  # that compute


DEFAULT_LIMITS = Limits()


def refusal(
    status: HTTPStatus, line: str, headers: dict[str, str] | None = None
) -> HTTPException:
    """What is raised in place of an answer.

    Example
    -------
    >>> refusal(HTTPStatus.NOT_FOUND, "no voice of that name").detail
    'no voice of that name'
    """
    return HTTPException(status, line, headers)


class Computation:
    """Threads that compute, and places for the requests that need them.

    A request keeps its place from its head until its computation has ended,
    even if nobody waits for that any more. So the bodies in memory are as many
    as the places. It is used within one event loop.

    Example
    -------
    >>> with Computation(Limits(requests=2)) as computation:
    ...     computation.free
    2
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.free = limits.requests
        self._pool = single_threads(limits.threads)

    async def run(
        self, request: Request, work: Callable[[bytes], Result]
    ) -> Result:
        """Receives the body of a request, and computes with it in a thread.

        What ``work`` raises passes through.
        """
        deadline = time.monotonic() + self.limits.timeout

        def unless_late(body: bytes) -> Result:
            if time.monotonic() > deadline:
                raise self._late()  # nobody waits any more
            return work(body)

        if not self.free:
            raise refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "busy with other requests; try again",
                RETRY,
            )
        self.free -= 1
        try:
            body = await receive_body(request, self.limits, deadline)
            loop = asyncio.get_running_loop()
            future = loop.run_in_executor(self._pool, unless_late, body)
        except BaseException:
            self.free += 1
            raise
        del body
        future.add_done_callback(self._give_back)
        await asyncio.wait([future], timeout=deadline - time.monotonic())
        if not future.done():
            raise self._late()
        return future.result()

    def _late(self) -> HTTPException:
        return refusal(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"not computed within {self.limits.timeout:g} s; try again, or "
            "send a shorter recording",
            RETRY,
        )

    def _give_back(self, future: asyncio.Future) -> None:
        self.free += 1
        if not future.cancelled():
            future.exception()  # or else asyncio logs one that nobody awaits

    def __enter__(self) -> "Computation":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()  # when all is computed


async def receive_body(
    request: Request, limits: Limits, deadline: float
) -> bytes:
    """The body of a request, whose headers may lie about its length."""
    most = limits.megabytes * 1e6

    async def receive() -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                body.clear()  # the traceback would keep it
                raise refusal(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"more than {limits.megabytes:g} MB; send a shorter "
                    "recording, or a compressed one",
                )
        return bytes(body)

    try:
        left = deadline - time.monotonic()
        return await asyncio.wait_for(receive(), left)
    except asyncio.TimeoutError:
        raise refusal(
            HTTPStatus.REQUEST_TIMEOUT,
            f"not received within {limits.timeout:g} s; send it faster",
        ) from None
