"""Where somebody speaks: voice activity, by silero-vad.

Its network and its rules are those of the package (extra ``vad``, weights
included): https://github.com/snakers4/silero-vad. Here are the frames of audio
that arrives in chunks, and what is spoken of a recording.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import functools
import threading
from typing import NamedTuple

import numpy as np
import torch

from redimnet2_lobes.data.audio import AudioError
from redimnet2_lobes.models.front_end import SAMPLE_RATE, WINDOW

FRAME = 512  # samples that a probability stands for, 32 ms
CONTEXT = 64  # samples before a frame, which the network sees as well
FRAMES_AT_ONCE = 512

# Seconds. By the package's own, 0.1 and 0.03, the EER of the demo's trials is
# 1.4 times as high (tests/benchmarks/measured/speech_only.md).
PAUSE, PADDING = 0.5, 0.2
USUAL_LEVEL = 0.1  # the standard deviation of samples, -20 dB of full scale
# Seconds of speech. Scores of less are uncertain: the shorter it is, the more
# what was said counts (tests/benchmarks/measured/speech_only.md).
LITTLE_SPEECH = 1.0

_loading = threading.Lock()


class Speech(NamedTuple):
    """Where somebody speaks in a recording.

    Example
    -------
    >>> str(Speech([(16000, 49600)], 156800))
    '2.1 s of speech in 9.8 s'
    """

    spans: list[tuple[int, int]]  # the first sample, and that after the last
    samples: int  # of the recording, at 16 kHz

    @property
    def seconds(self) -> float:
        """Seconds of speech."""
        return sum(stop - start for start, stop in self.spans) / SAMPLE_RATE

    def __str__(self) -> str:
        total = self.samples / SAMPLE_RATE
        return f"{self.seconds:.1f} s of speech in {total:.1f} s"

    def check(self, path: str | None = None) -> None:
        """Refuses, with an AudioError, less than a network can embed (25 ms).

        ``path`` is of the recording, for the message.

        Example
        -------
        >>> Speech([], 156800).check("a.wav")
        Traceback (most recent call last):
        ...
        redimnet2_lobes.data.audio.AudioError: a.wav: no speech; nobody speaks \
in its 9.8 s, so record it again, or take all of it (--no_vad)
        """
        if self.seconds < WINDOW / SAMPLE_RATE:
            raise AudioError(
                "no speech",
                f"nobody speaks in its {self.samples / SAMPLE_RATE:.1f} s, so "
                "record it again, or take all of it (--no_vad)",
                path,
            )

    def of(
        self, waveform: torch.Tensor, path: str | None = None
    ) -> torch.Tensor:
        """The speech of a waveform [samples], without what is between.

        It is an AudioError as by ``check``.

        Example
        -------
        >>> Speech([(0, 400), (500, 600)], 800).of(torch.arange(800)).shape
        torch.Size([500])
        """
        self.check(path)
        return torch.cat([waveform[start:stop] for start, stop in self.spans])


class SpeechDetector:
    """Finds speech in audio that arrives in chunks.

    Example
    -------
    >>> detector = SpeechDetector()
    >>> [len(detector.feed(torch.zeros(size))) for size in (1000, 30)]
    [1, 1]
    >>> detector.finish()
    Speech(spans=[], samples=1030)
    """

    def __init__(self) -> None:
        self._session = load_detector()
        self._state = [np.zeros((1, 1, 128), np.float32)] * 2
        self._held = np.zeros(CONTEXT, np.float32)
        self._samples = 0
        self.probabilities = np.zeros(0, np.float32)  # of all frames so far

    def feed(self, chunk: torch.Tensor) -> np.ndarray:
        """The probabilities of speech in the frames that a chunk completes.

        The chunk is [samples], mono, 16 kHz, of any length.
        """
        self._samples += len(chunk)
        self._held = np.concatenate([self._held, chunk.float().cpu().numpy()])
        found = []
        while len(self._held) >= CONTEXT + FRAME:
            frames = (len(self._held) - CONTEXT) // FRAME
            end = min(frames, FRAMES_AT_ONCE) * FRAME
            windows = np.lib.stride_tricks.sliding_window_view(
                self._held[: CONTEXT + end], CONTEXT + FRAME
            )[::FRAME]
            values, *self._state = self._session.run(
                ["speech_probs", "hn", "cn"],
                {
                    "input": np.ascontiguousarray(windows),
                    "h": self._state[0],
                    "c": self._state[1],
                },
            )
            found.append(values.flatten())
            self._held = self._held[end:]
        new = np.concatenate([np.zeros(0, np.float32), *found])
        self.probabilities = np.concatenate([self.probabilities, new])
        return new

    def finish(self, pause: float = PAUSE, padding: float = PADDING) -> Speech:
        """Where somebody spoke in all of it, the rest of a frame included.

        The arguments are those of `find_speech`.
        """
        from silero_vad import get_speech_timestamps_from_probs

        samples = self._samples
        if missing := -samples % FRAME:
            self.feed(torch.zeros(missing))
        spans = get_speech_timestamps_from_probs(
            self.probabilities.tolist(),
            SAMPLE_RATE,
            min_silence_duration_ms=round(1000 * pause),
            speech_pad_ms=round(1000 * padding),
            audio_length_samples=samples,
        )
        return Speech([(span["start"], span["end"]) for span in spans], samples)


def find_speech(
    waveform: torch.Tensor, pause: float = PAUSE, padding: float = PADDING
) -> Speech:
    """Where somebody speaks in a waveform [samples], mono, 16 kHz.

    Shorter pauses (in seconds) are of the speech, and so is the ``padding``
    before and after it. It is searched `at_usual_level`.

    Example
    -------
    >>> find_speech(torch.zeros(16000))
    Speech(spans=[], samples=16000)
    """
    detector = SpeechDetector()
    detector.feed(at_usual_level(waveform))
    return detector.finish(pause, padding)


def at_usual_level(waveform: torch.Tensor) -> torch.Tensor:
    """A waveform [samples] whose overall level is the usual one.

    As it is, silero-vad overlooks speech that is recorded quietly, or with
    samples far beyond -1 and 1. The level is that of all samples: speech in
    mostly silent audio is louder than usual then, and may pass -1 and 1, which
    silero-vad takes.

    Example
    -------
    >>> at_usual_level(torch.tensor([3e4, -3e4]))
    tensor([ 0.1000, -0.1000])
    """
    level = waveform.std(correction=0)
    return waveform * (USUAL_LEVEL / level) if level > 0 else waveform


def load_detector():
    """silero-vad's network (an ONNX Runtime session), one for all threads.

    It is a ValueError if the packages are not there. What is loaded by the
    first call leaves the number of torch's threads alone in the thread that
    calls, and in those that begin later.

    Example
    -------
    >>> [output.name for output in load_detector().get_outputs()]
    ['speech_probs', 'hn', 'cn']
    """
    with _loading:
        return _session()


@functools.cache
def _session():
    threads = torch.get_num_threads()
    try:
        from silero_vad import load_silero_vad

        return load_silero_vad(sequence=True).session
    except ImportError as error:
        raise ValueError(
            f"voice activity needs silero-vad ({error}); pip install "
            "silero-vad onnxruntime, or take all audio (--no_vad)"
        ) from None
    finally:
        torch.set_num_threads(threads)  # its import sets them to 1
