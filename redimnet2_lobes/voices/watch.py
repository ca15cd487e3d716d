"""What stands before an HTTP service: who may come in, and who is counted.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import asyncio
import secrets
import time
import traceback
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from speechbrain.utils.logger import get_logger
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = get_logger(__name__)

# Names that this machine has for itself.
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


def error_answer(
    status: int, line: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """The answer to a request that was refused.

    Example
    -------
    >>> error_answer(404, "no voice of that name").body
    b'{"error":"no voice of that name"}'
    """
    return JSONResponse({"error": line}, status, headers)


class Access:
    """Lets in the requests that bear a token, and those to open paths.

    Without a token it lets in those that name this machine as their host: a
    page of somebody else in a browser here may have another name for it, and
    could use the service by that.
    """

    def __init__(
        self, app: ASGIApp, token: str | None, open_paths: tuple[str, ...]
    ) -> None:
        self.app = app
        self.token = token
        self.open_paths = open_paths

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Passes a request on, or refuses it."""
        app = self.app
        if scope["type"] == "http" and scope["path"] not in self.open_paths:
            app = self._refuse(Request(scope)) or app
        await app(scope, receive, send)

    def _refuse(self, request: Request) -> JSONResponse | None:
        if self.token is None:
            if request.url.hostname in LOCAL_HOSTS:
                return None
            return error_answer(
                HTTPStatus.MISDIRECTED_REQUEST,
                "without a token this service is for localhost alone",
            )
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and secrets.compare_digest(
            given.strip().encode(), self.token.encode()
        ):
            return None
        return error_answer(
            HTTPStatus.UNAUTHORIZED,
            "no token, or not the right one; send 'Authorization: Bearer "
            "TOKEN'",
            {"WWW-Authenticate": "Bearer"},
        )


class Watch:
    """Counts requests, and logs the route and the status of each.

    The name of a voice is personal data, so that neither a path is logged, nor
    the message of an error that should not be. ``routes`` names the route of
    each endpoint.

    An answer waits until all of its request is there: clients that still send
    may not read it. After ``timeout`` seconds the connection is closed in place
    of that.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: dict[Any, str],
        registry: CollectorRegistry,
        timeout: float,
    ) -> None:
        self.app = app
        self.routes = routes
        self.timeout = timeout
        self.in_flight = Gauge(
            "redimnet2_requests_in_flight",
            "Requests that are not answered yet",
            registry=registry,
        )
        self.requests = Counter(
            "redimnet2_requests",
            "Requests by route and status; status 0 if the client went away",
            ["route", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "redimnet2_request_seconds",
            "Seconds from the head of a request to its answer",
            ["route"],
            registry=registry,
        )

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        received = _Received(receive)
        status = 0

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                left = began + self.timeout - time.monotonic()
                if not await received.rest_within(left):
                    close = (b"connection", b"close")
                    message["headers"] = [*message["headers"], close]
            await send(message)

        with self.in_flight.track_inprogress():
            try:
                await self.app(scope, received, watched_send)
            except ClientDisconnect:
                pass
            except Exception as error:
                frames = "".join(traceback.format_tb(error.__traceback__))
                logger.error(f"{type(error).__name__} in\n{frames}")
                if not status:
                    answer = error_answer(
                        HTTPStatus.INTERNAL_SERVER_ERROR,
                        "a fault of the service; its log says where",
                    )
                    await answer(scope, received, watched_send)
        route = self.routes.get(scope.get("endpoint"), "none")
        seconds = time.monotonic() - began
        self.requests.labels(route, status).inc()
        self.seconds.labels(route).observe(seconds)
        logger.info(f"{route} {status} {seconds:.3f} s")


class _Received:
    """Receives a request, and knows whether that was all of it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._complete = False

    async def __call__(self) -> Message:
        message = await self._receive()
        # The client may also have gone.
        self._complete = not message.get("more_body", False)
        return message

    async def rest_within(self, seconds: float) -> bool:
        """Receives the rest, and forgets it; whether that was in time."""
        if self._complete:
            return True

        async def receive() -> None:
            while not self._complete:
                await self()

        try:
            await asyncio.wait_for(receive(), seconds)
        except asyncio.TimeoutError:
            return False
        return True
