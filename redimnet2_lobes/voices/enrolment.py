"""Enrolment: from audio as it arrives to the prototypes of a voice.

Audio is judged piece by piece, each of a few seconds of speech. The embedding
of a piece that passes is a prototype, and the audio is forgotten.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from redimnet2_lobes.data.audio import checked_chunk
from redimnet2_lobes.data.quality import (
    LIMIT_DB,
    Quality,
    measure_quality,
)
from redimnet2_lobes.data.speech import FRAME, Speech, SpeechDetector
from redimnet2_lobes.files.settings import require_number, require_positive
from redimnet2_lobes.inference.encode import EncodeBatch, check_finite
from redimnet2_lobes.models.front_end import SAMPLE_RATE
from redimnet2_lobes.voices.search import mean_voice

if TYPE_CHECKING:
    from redimnet2_lobes.scoring.operating_points import OperatingPoints

# What the figures are from: docs/enrolment.md.
ENOUGH_SECONDS = 12.0  # of speech in an enrolment
PIECE_SECONDS = 3.0  # of speech in a piece
LEAST_SECONDS = 2.0  # of speech in the last piece of an utterance
LONGEST_SECONDS = 10.0  # of audio in a piece, however little speech it holds
SILENT_SECONDS = 2.0  # of audio without speech that are worth saying
MOST_CLIPPED = 0.02  # of the samples of speech
LEAST_SNR_DB = 5.0
VOICE_LIMIT = 0.25  # SpeechBrain's threshold, for models without one

# Audio is taken in blocks of so many samples, whatever the chunks: the same
# audio gives the same prototypes, to the last bit.
BLOCK = 16 * FRAME

NO_SPEECH = "no speech"
TOO_LITTLE = "too little speech"
CLIPPED = "clipped"
TOO_NOISY = "too noisy"
ANOTHER_VOICE = "another voice than before"

# What to tell whoever speaks.
REMEDIES = {
    NO_SPEECH: "speak up, and check that the microphone is on",
    TOO_LITTLE: "speak for a few seconds without long pauses",
    CLIPPED: "turn the microphone down, or move away from it",
    TOO_NOISY: "move to a quiet place, or closer to the microphone",
    ANOTHER_VOICE: "let one person speak alone",
}


def at_eer(own: "OperatingPoints") -> "OperatingPoints":
    """Operating points that decide by the EER, for the limit of an enrolment.

    Pieces are single utterances of a few seconds, of which a threshold for few
    false accepts would refuse most. Without an EER they stay as they are.
    """
    points = [point for point in own.points if point.name == "EER"]
    return own._replace(points=points or own.points)


class Piece(NamedTuple):
    """Figures of a piece of audio that was judged."""

    seconds: float  # of all of it
    quality: Quality
    problem: str | None  # why it is no prototype, one of REMEDIES


class Progress(NamedTuple):
    """How far an enrolment is.

    Example
    -------
    >>> Progress(0, None)
    Progress(percent=0, problem=None)
    """

    percent: int  # 100 when there is enough
    problem: str | None  # what holds it up, one of REMEDIES


class Enrolment:
    """Enrols a voice from audio that arrives in chunks.

    Chunks are mono, 16 kHz, float, of any length, which makes no difference.
    They must be about as loud as speech usually is, -20 dB of full scale: the
    voice activity overlooks what is recorded quietly. The commands bring each
    recording to that by ``data.speech.at_usual_level``, a stream can be
    multiplied by one number that fits its microphone.

    A piece of audio ends with 3 s of speech, after 10 s at most, or with the
    utterance (``finish``). It is refused if it has less than 2 s of speech, is
    clipped or noisy, or if the cosine of its embedding with the mean direction
    of the prototypes so far is not above ``limit``. Otherwise its embedding is
    a prototype.

    The first piece may be the one of another voice. So while there is one
    prototype only, it gives way to the next two pieces that do not match it, if
    these match each other. Prototypes that agree never give way.

    Of the audio nothing is kept but the piece that is not yet complete.

    Arguments
    ---------
    encode_batch
        Such as ``EncoderClassifier.encode_batch``.
    seconds
        Seconds of speech that make 100 per cent.
    limit
        The cosine above which two voices are one: the threshold of the model's
        EER. The default, SpeechBrain's, is for models without one.
    known
        Prototypes of the same voice from earlier [prototypes, embedding], which
        new ones must match.
    known_seconds
        Seconds of speech that these stand for.
    speech_only
        False takes all audio for speech.

    Raises
    ------
    ValueError
        If ``seconds`` is not above 0 or ``limit`` is no cosine.

    Example
    -------
    >>> def encode_batch(wavs, wav_lens):  # in place of a network
    ...     return torch.stack([wavs.mean(1), wavs.std(1)], dim=1).unsqueeze(1)
    >>> enrolment = Enrolment(encode_batch, seconds=6, speech_only=False)
    >>> chunk = torch.randn(16000) * (torch.arange(16000) < 12000)
    >>> [enrolment.feed(chunk).percent for _ in range(7)]
    [0, 0, 0, 51, 51, 51, 100]
    >>> enrolment.prototypes.shape, enrolment.seconds
    (torch.Size([2, 2]), [3.072, 3.072])
    """

    def __init__(
        self,
        encode_batch: EncodeBatch,
        seconds: float = ENOUGH_SECONDS,
        limit: float = VOICE_LIMIT,
        known: torch.Tensor | None = None,
        known_seconds: float = 0.0,
        speech_only: bool = True,
    ) -> None:
        require_positive("seconds", seconds)
        require_number("limit", limit, -1, 1)
        self.encode_batch = encode_batch
        self.enough = seconds
        self.limit = limit
        self.known = [] if known is None else [*known]
        self.known_seconds = known_seconds
        self.speech_only = speech_only
        self.pieces: list[Piece] = []
        self._embeddings: dict[int, torch.Tensor] = {}  # by number of piece
        self._doubted: tuple[int, torch.Tensor] | None = None
        self._held = torch.empty(0)  # less than a block
        self._start_piece()
        self._start_utterance()

    @property
    def prototypes(self) -> torch.Tensor:
        """The prototypes, without those known before [prototypes, embedding].

        A ValueError without any.
        """
        if not self._embeddings:
            raise ValueError("nothing is enrolled yet; feed more speech")
        return torch.stack([*self._embeddings.values()])

    @property
    def seconds(self) -> list[float]:
        """Seconds of speech of each prototype."""
        return [
            self.pieces[number].quality.speech_seconds
            for number in self._embeddings
        ]

    @property
    def seconds_of_others(self) -> float:
        """Seconds of speech that were refused as of another voice."""
        return sum(
            piece.quality.speech_seconds
            for piece in self.pieces
            if piece.problem == ANOTHER_VOICE
        )

    @property
    def is_mostly_others(self) -> bool:
        """Whether more speech is of another voice than was taken.

        Then nobody knows whose voice it would be: do not keep it.
        """
        return self.seconds_of_others > sum(self.seconds)

    @property
    def progress(self) -> Progress:
        """What ``feed`` and ``finish`` return.

        The problem is that of the last piece, until there is speech of the
        next, or that nobody has spoken for 2 s.
        """
        seconds = self.known_seconds + sum(self.seconds)
        percent = min(100, int(100 * seconds / self.enough))
        if not self._speech.spans:
            if self._speech.samples >= SILENT_SECONDS * SAMPLE_RATE:
                return Progress(percent, NO_SPEECH)
        elif self._speech.seconds >= LEAST_SECONDS:
            return Progress(percent, None)
        return Progress(
            percent, self.pieces[-1].problem if self.pieces else None
        )

    def feed(self, chunk: torch.Tensor | np.ndarray) -> Progress:
        """Takes the next chunk [samples].

        A ValueError if it is no mono audio in floats; an AudioError if it holds
        NaN, infinite or absurdly large samples, or an embedding is zero or not
        finite.
        """
        audio = torch.cat([self._held, checked_chunk(torch.as_tensor(chunk))])
        whole = len(audio) // BLOCK * BLOCK
        # Copies, since a view keeps all of a long chunk.
        self._held = audio[whole:].clone()
        for block in audio[:whole].split(BLOCK)[: whole // BLOCK]:
            self._extend(block.clone())
            if (
                self._speech.seconds >= PIECE_SECONDS
                or self._speech.samples >= LONGEST_SECONDS * SAMPLE_RATE
            ):
                self._judge()
        return self.progress

    def finish(self) -> Progress:
        """Ends an utterance, of which no audio is left then.

        What follows, if anything does, is another one.
        """
        self._extend(self._held)
        self._held = torch.empty(0)
        # The rest of an utterance that was judged already is no problem.
        if self._speech.seconds >= LEAST_SECONDS or (
            self._speech.samples and len(self.pieces) == self._judged_before
        ):
            self._judge()
        self._start_piece()
        self._start_utterance()
        return self.progress

    def add(self, waveform: torch.Tensor | np.ndarray) -> Progress:
        """Feeds a whole utterance [samples], and finishes."""
        self.feed(waveform)
        return self.finish()

    def _start_utterance(self) -> None:
        self._judged_before = len(self.pieces)

    def _start_piece(self) -> None:
        self._pending: list[torch.Tensor] = []
        self._detector = SpeechDetector() if self.speech_only else None
        self._speech = Speech([], 0)  # in what is pending

    def _extend(self, block: torch.Tensor) -> None:
        self._pending.append(block)
        if self._detector:
            self._detector.feed(block)
            # So far: more may follow whole frames.
            self._speech = self._detector.finish()
        else:
            samples = self._speech.samples + len(block)
            self._speech = Speech([(0, samples)] if samples else [], samples)

    def _judge(self) -> None:
        """Makes what is pending a prototype, or says why not."""
        waveform, speech = torch.cat(self._pending), self._speech
        self._start_piece()
        quality = measure_quality(waveform, speech)
        problem = _problem(quality)
        if problem is None:
            with torch.no_grad():
                embedding = self.encode_batch(
                    speech.of(waveform).unsqueeze(0), torch.ones(1)
                )
            embedding = embedding.flatten().float().cpu()
            check_finite("enrolment", embedding)
            problem = self._compare(embedding)
        seconds = len(waveform) / SAMPLE_RATE
        self.pieces.append(Piece(seconds, quality, problem))

    def _compare(self, embedding: torch.Tensor) -> str | None:
        """Keeps the embedding of the next piece, or says why not."""
        number = len(self.pieces)
        before = [*self.known, *self._embeddings.values()]
        if not before or self._matches(embedding, before):
            self._embeddings[number] = embedding
            return None
        if self.known or len(self._embeddings) > 1:
            return ANOTHER_VOICE
        doubted, self._doubted = self._doubted, (number, embedding)
        if doubted is None or not self._matches(embedding, [doubted[1]]):
            return ANOTHER_VOICE
        (first,) = self._embeddings
        for each, problem in ((first, ANOTHER_VOICE), (doubted[0], None)):
            self.pieces[each] = self.pieces[each]._replace(problem=problem)
        self._embeddings = dict([doubted, (number, embedding)])
        return None

    def _matches(
        self, embedding: torch.Tensor, prototypes: list[torch.Tensor]
    ) -> bool:
        mean = mean_voice(torch.stack(prototypes))
        return cosine_similarity(embedding, mean, dim=0).item() > self.limit


def _problem(quality: Quality) -> str | None:
    """What is wrong with a piece, whoever speaks."""
    if not quality.speech_seconds or quality.level_db <= -LIMIT_DB:
        return NO_SPEECH
    if quality.speech_seconds < LEAST_SECONDS:
        return TOO_LITTLE
    if quality.clipped > MOST_CLIPPED:
        return CLIPPED
    if quality.snr_db < LEAST_SNR_DB:
        return TOO_NOISY
    return None
