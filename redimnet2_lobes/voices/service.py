"""An HTTP service that enrols, verifies and identifies voices.

A recording is the body of a request, in any format that libsndfile knows. It is
neither kept nor written anywhere: what stays are the prototypes in the store.
Answers are JSON, those to faulty requests too: ``{"error": "one line"}``.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    generate_latest,
)
from speechbrain.utils.logger import get_logger
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from redimnet2_lobes.data.audio import AudioError
from redimnet2_lobes.data.speech import (
    LITTLE_SPEECH,
    at_usual_level,
    find_speech,
)
from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.files.same_space import KEY
from redimnet2_lobes.inference.encode import EncodeBatch, check_finite
from redimnet2_lobes.models.front_end import SAMPLE_RATE
from redimnet2_lobes.scoring.operating_point import OperatingPoint
from redimnet2_lobes.voices.checks import (
    LONGEST_NAME,
    LONGEST_NOTE,
    checked_text,
)
from redimnet2_lobes.voices.enrolment import (
    ANOTHER_VOICE,
    REMEDIES,
    VOICE_LIMIT,
    Enrolment,
    at_eer,
)
from redimnet2_lobes.voices.requests import (
    DEFAULT_LIMITS,
    RETRY,
    Computation,
    Limits,
    refusal,
)
from redimnet2_lobes.voices.store import (
    Identification,
    NoVoiceError,
    VoiceChangedError,
    VoiceStore,
)
from redimnet2_lobes.voices.uploads import (
    NAME,
    TOO_LONG,
    TOO_MANY_SAMPLES,
    decode_upload,
)
from redimnet2_lobes.voices.watch import Access, Watch, error_answer

if TYPE_CHECKING:
    from redimnet2_lobes.scoring.operating_points import OperatingPoints

logger = get_logger(__name__)

Result = TypeVar("Result")

NO_DECISION = OperatingPoint()
UNTYPED = "application/octet-stream"


def make_app(
    encode_batch: EncodeBatch,
    store: str | os.PathLike,
    space: str,
    token: str | None = None,
    operating_point: OperatingPoint = NO_DECISION,
    own: "OperatingPoints | None" = None,
    speech_only: bool = True,
    limits: Limits = DEFAULT_LIMITS,
) -> Starlette:
    """Makes the service, an ASGI application.

    Arguments
    ---------
    encode_batch
        Such as ``EncoderClassifier.encode_batch``, for waveforms of any length;
        several threads call it at once.
    store
        The file of a `VoiceStore`, which is made if it is not there. Other
        processes may use it at the same time.
    space
        Of the embeddings. A store of another is a ValueError when the
        application starts.
    token
        What requests must bear. None is for requests from this machine alone.
    operating_point
        The threshold that decisions go by; without a value there are none.
    own
        Of recordings such as come here, for the false-accept rates of scores.
        Where the operating point is theirs, voices are enrolled by that of the
        EER.
    speech_only
        False takes all audio for speech.
    limits
        What a request may take.

    Example
    -------
    >>> def encode_batch(wavs, wav_lens):  # in place of a network
    ...     return wavs[:, None, :2]
    >>> app = make_app(encode_batch, "voices.sqlite", "redimnet2-b0-1")
    >>> [route.path for route in app.routes][:3]
    ['/health', '/metrics', '/voices']
    """
    registry = CollectorRegistry()
    service = _Service(
        *(encode_batch, store, space, operating_point, own),
        *(speech_only, limits, registry),
    )
    endpoints = {
        "GET /health": service.health,
        "GET /metrics": service.metrics,
        "GET /voices": service.list_voices,
        "POST /voices/{name:path}": service.enrol,
        "DELETE /voices/{name:path}": service.remove,
        "POST /verify/{name:path}": service.verify,
        "POST /identify": service.identify,
    }
    routes = []
    for route, endpoint in endpoints.items():
        method, path = route.split()
        routes.append(Route(path, endpoint, methods=[method]))
    names = {
        endpoint: route.replace(":path", "")
        for route, endpoint in endpoints.items()
    }
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(Watch, names, registry, limits.timeout),
            Middleware(Access, token, ("/health",)),
        ],
        exception_handlers={HTTPException: _answer_refusal},
        lifespan=service.lifespan,
    )


def _answer_refusal(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = {**(error.headers or {})}
    return error_answer(error.status_code, error.detail, headers)


@contextlib.contextmanager
def _refused_audio() -> Iterator[None]:
    """What is wrong with a recording refuses the request."""
    try:
        yield
    except AudioError as error:
        status = HTTPStatus.BAD_REQUEST
        if error.reason in (TOO_LONG, TOO_MANY_SAMPLES):
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        raise refusal(status, one_line(error)) from None


class _Test(NamedTuple):
    """A recording that is compared with voices."""

    embedding: torch.Tensor  # [embedding]
    seconds: float
    speech_seconds: float | None  # None where all of it was taken


class _Service:
    """The endpoints, and what they share."""

    computation: Computation  # these while it runs
    store: VoiceStore
    store_thread: ThreadPoolExecutor

    def __init__(
        self,
        encode_batch: EncodeBatch,
        store_path: str | os.PathLike,
        space: str,
        operating_point: OperatingPoint,
        own: "OperatingPoints | None",
        speech_only: bool,
        limits: Limits,
        registry: CollectorRegistry,
    ) -> None:
        self.encode_batch = encode_batch
        self.store_path = store_path
        self.space = space
        self.operating_point = operating_point
        self.own = own
        limit = operating_point.value
        # Unless another threshold was asked for.
        if own is not None and limit == own.operating_point.value:
            limit = at_eer(own).operating_point.value
        self.limit = VOICE_LIMIT if limit is None else limit
        self.speech_only = speech_only
        self.limits = limits
        self.registry = registry

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Has the store and the threads as long as the application runs."""
        with (
            VoiceStore(self.store_path, self.space) as self.store,
            ThreadPoolExecutor(1, "store") as self.store_thread,
            Computation(self.limits) as self.computation,
        ):
            yield

    async def in_store(self, function: Callable[..., Result], *args) -> Result:
        """Calls a function in a thread, one at a time.

        A voice that is not there, or no longer, and one that has changed refuse
        the request.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self.store_thread, function, *args
            )
        except NoVoiceError:
            raise refusal(
                HTTPStatus.NOT_FOUND, "no voice of that name"
            ) from None
        except VoiceChangedError:
            raise refusal(
                HTTPStatus.CONFLICT,
                "the voice was changed meanwhile by another request; send it "
                "again",
            ) from None
        except OSError as error:
            logger.error(one_line(error))
            raise refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the store cannot be written now; try again, or see the log "
                "of the service",
                RETRY,
            ) from None

    async def health(self, request: Request) -> Response:
        """Says that the service runs."""
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """Figures for Prometheus."""
        return Response(
            generate_latest(self.registry),
            headers={"Content-Type": CONTENT_TYPE_LATEST},
        )

    async def list_voices(self, request: Request) -> Response:
        """All voices."""
        voices = await self.in_store(self.store.voices)
        return JSONResponse(
            {
                "voices": [voice._asdict() for voice in voices],
                KEY: self.space,
            }
        )

    async def enrol(self, request: Request) -> Response:
        """Adds the recording of a request to a voice, new or not."""
        name = _voice_name(request)
        _check_type(request)
        consent = _consent(request)
        known = await self.in_store(self._known, name)
        enrolment, seconds = await self.computation.run(
            request, functools.partial(self._enrol, *known)
        )
        await self.in_store(
            self.store.add,
            *(name, enrolment.prototypes, enrolment.seconds, consent, known[0]),
        )
        return JSONResponse(
            {
                "name": name,
                "percent": enrolment.progress.percent,
                "prototypes": len(enrolment.prototypes),
                "seconds": seconds,
                "speech_seconds": sum(enrolment.seconds),
                "problems": [
                    piece.problem for piece in enrolment.pieces if piece.problem
                ],
                KEY: self.space,
            }
        )

    async def remove(self, request: Request) -> Response:
        """Removes a voice."""
        await self.in_store(self.store.remove, _voice_name(request))
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def verify(self, request: Request) -> Response:
        """Compares the recording of a request with a voice."""
        name = _voice_name(request)
        _check_type(request)
        await self.in_store(self.store.read, name)
        test = await self.computation.run(request, self._test)
        score = await self.in_store(
            self.store.score, name, test.embedding[None]
        )
        score = score.item()
        threshold, origin = self.operating_point
        decision = None if threshold is None else score > threshold
        return JSONResponse(
            {
                "name": name,
                "seconds": test.seconds,
                "speech_seconds": test.speech_seconds,
                "score": score,
                "threshold": threshold,
                "threshold_origin": origin,
                "same_speaker": decision,
                "false_accepts": self._false_accepts(score),
                KEY: self.space,
            }
        )

    async def identify(self, request: Request) -> Response:
        """Finds the voice of the recording of a request."""
        _check_type(request)
        test = await self.computation.run(request, self._test)
        threshold, origin = self.operating_point
        found = await self.in_store(self._identify, test.embedding, threshold)
        return JSONResponse(
            {
                "name": found.name,
                "seconds": test.seconds,
                "speech_seconds": test.speech_seconds,
                "score": found.score,
                "margin": found.margin,
                "threshold": threshold,
                "threshold_origin": origin,
                "candidates": [
                    {"name": name, "score": score}
                    for name, score in found.candidates
                ],
                KEY: self.space,
            }
        )

    def _false_accepts(self, score: float) -> dict | None:
        """The share of other speakers that scores higher, if it is known."""
        found = self.own and self.own.false_accepts(score)
        return found.as_json() if found else None

    # In the thread of the store.

    def _known(self, name: str) -> tuple[torch.Tensor | None, float]:
        """The prototypes of a voice, and its seconds of speech."""
        try:
            voice, prototypes = self.store.read(name)
        except NoVoiceError:
            return None, 0.0
        return prototypes, voice.seconds

    def _identify(
        self, embedding: torch.Tensor, threshold: float | None
    ) -> Identification:
        try:
            return self.store.identify(embedding[None], threshold)[0]
        except NoVoiceError:
            raise refusal(
                HTTPStatus.NOT_FOUND, "no voice is enrolled yet"
            ) from None

    # In a thread of the computation.

    @_refused_audio()
    def _enrol(
        self,
        known: torch.Tensor | None,
        known_seconds: float,
        content: bytes,
    ) -> tuple[Enrolment, float]:
        """An enrolment with a prototype at least, and the seconds of audio."""
        waveform = decode_upload(content, self.limits.seconds)
        enrolment = Enrolment(
            self.encode_batch,
            limit=self.limit,
            known=known,
            known_seconds=known_seconds,
            speech_only=self.speech_only,
        )
        enrolment.add(at_usual_level(waveform))
        problem = None
        if enrolment.is_mostly_others:
            problem = ANOTHER_VOICE
        elif not enrolment.seconds:
            problem = enrolment.pieces[-1].problem
        if problem is not None:
            raise refusal(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"{problem}; {REMEDIES[problem]}",
            )
        return enrolment, len(waveform) / SAMPLE_RATE

    @_refused_audio()
    def _test(self, content: bytes) -> _Test:
        waveform = decode_upload(content, self.limits.seconds)
        seconds = len(waveform) / SAMPLE_RATE
        speech_seconds = None
        if self.speech_only:
            speech = find_speech(waveform)
            speech_seconds = speech.seconds
            if speech_seconds < LITTLE_SPEECH:
                raise refusal(
                    HTTPStatus.UNPROCESSABLE_ENTITY,
                    f"too little speech: {speech}, and it takes "
                    f"{LITTLE_SPEECH:g} s; record it again",
                )
            waveform = speech.of(waveform)
        with torch.no_grad():
            embedding = self.encode_batch(waveform[None], torch.ones(1))
        embedding = embedding.flatten().float().cpu()
        check_finite(NAME, embedding)
        return _Test(embedding, seconds, speech_seconds)


def _voice_name(request: Request) -> str:
    """The name of a voice in a path, in which it may have slashes."""
    name = request.path_params["name"]
    if "\N{REPLACEMENT CHARACTER}" in name:
        raise refusal(
            HTTPStatus.BAD_REQUEST, "name: not in UTF-8; encode it so"
        )
    return _checked_text("name", name, LONGEST_NAME)


def _consent(request: Request) -> str | None:
    """The only parameter that a request may have, if it has that."""
    for key in request.query_params:
        if key != "consent":
            raise refusal(
                HTTPStatus.BAD_REQUEST, "there is no parameter but consent"
            )
    consent = request.query_params.get("consent")
    if consent is None:
        return None
    return _checked_text("consent", consent, LONGEST_NOTE)


def _checked_text(key: str, text: str, longest: int) -> str:
    try:
        return checked_text(key, text, longest)
    except ValueError as error:
        raise refusal(HTTPStatus.BAD_REQUEST, one_line(error)) from None


def _check_type(request: Request) -> None:
    """Refuses what is no audio by its header.

    So a page of somebody else cannot make a browser send it here, since that
    sends only forms and plain text without asking.
    """
    kind, _, _ = request.headers.get("content-type", "").partition(";")
    kind = kind.strip().lower()
    if not kind.startswith("audio/") and kind != UNTYPED:
        raise refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "send a recording as the body, with 'Content-Type: audio/wav' (or "
            f"another kind of audio/, or {UNTYPED})",
        )
