"""The speech of audio that arrives in chunks, as soon as it is certain.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import torch

from redimnet2_lobes.data.speech import (
    FRAME,
    PADDING,
    PAUSE,
    SpeechDetector,
)
from redimnet2_lobes.models.front_end import SAMPLE_RATE

# The rules of silero-vad's get_speech_timestamps_from_probs, which needs all
# probabilities at once.
SPEECH, NO_SPEECH = 0.5, 0.35  # probabilities; between, all stays as it was
SHORTEST_SPEECH = 4000  # samples; less is none
SHORTEST_PAUSE = round(PAUSE * SAMPLE_RATE)
MARGIN = round(PADDING * SAMPLE_RATE)  # before and after speech


class SpeechStream:
    """Gives the speech of audio that arrives in chunks, and keeps none of it.

    All that it gives, put together, is what a `SpeechDetector` finds in the
    whole. Speech is given 0.25 s after it has begun, then without delay. What
    follows it is held until it is a pause or speech again.

    Unlike a file, which `find_speech` brings to the usual level, a stream is
    taken at its own, which is known at its end only: in audio whose level is
    below about -40 dB of full scale a part of the speech is overlooked
    (docs/streaming.md).

    Example
    -------
    >>> stream = SpeechStream()
    >>> len(stream.feed(torch.zeros(16000))), len(stream.finish())
    (0, 0)
    """

    def __init__(self) -> None:
        self._detector = SpeechDetector()
        self._held = torch.zeros(0)  # audio that may turn out to be speech
        # In samples from the start of the stream:
        self._held_from = 0
        self._judged = 0  # the end of the last frame that has a probability
        self._start: int | None = None  # of the speech that is going on
        self._pause: int | None = None  # where it has ended, if that lasts

    def feed(self, chunk: torch.Tensor) -> torch.Tensor:
        """The speech [samples] that a chunk makes certain.

        The chunk is [samples], mono, 16 kHz, of any length.
        """
        self._held = torch.cat([self._held, chunk.float().cpu()])
        return self._judge(chunk)

    def finish(self) -> torch.Tensor:
        """The speech [samples] that the end makes certain."""
        end = self._held_from + len(self._held)
        found = self._judge(torch.zeros(-end % FRAME))
        if self._start is not None and end - self._start > SHORTEST_SPEECH:
            found = torch.cat([found, self._take(end)])
        return found

    def _judge(self, chunk: torch.Tensor) -> torch.Tensor:
        """The speech that the frames make certain that a chunk completes."""
        probabilities = self._detector.feed(chunk)
        self._detector.probabilities = probabilities[:0]  # it would keep all
        found = [self._judge_frame(value) for value in probabilities.tolist()]
        return torch.cat([torch.zeros(0), *found])

    def _judge_frame(self, probability: float) -> torch.Tensor:
        begin = self._judged
        end = min(begin + FRAME, self._held_from + len(self._held))
        self._judged = end
        if probability >= SPEECH:
            self._pause = None
            if self._start is None:
                self._start = begin
        elif probability < NO_SPEECH and self._start is not None:
            if self._pause is None:
                self._pause = begin
            if begin - self._pause >= SHORTEST_PAUSE:
                speech = self._take(self._pause + MARGIN)
                is_long = self._pause - self._start > SHORTEST_SPEECH
                self._start = self._pause = None
                self._take(end - MARGIN)
                return speech if is_long else speech[:0]
        if self._start is None:
            return self._take(end - MARGIN)[:0]
        if self._pause is None and end - self._start > SHORTEST_SPEECH:
            return self._take(end)
        return self._held[:0]

    def _take(self, until: int) -> torch.Tensor:
        """What is held up to a sample, and no longer held then."""
        size = max(0, until - self._held_from)
        taken, self._held = self._held[:size], self._held[size:].clone()
        self._held_from += size
        return taken
