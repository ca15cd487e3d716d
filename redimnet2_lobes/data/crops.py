"""Random crops of utterances, with speed perturbation as extra speakers.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
import torchaudio

from redimnet2_lobes.data.audio import AudioError, CheckedAudioNormalizer
from redimnet2_lobes.data.sources import open_audio
from redimnet2_lobes.models.front_end import HOP, SAMPLE_RATE, WINDOW


class EpochRandom:
    """Random numbers that follow from the seed, the epoch and the utterance.

    What is drawn for an utterance depends neither on the order of the
    utterances nor on the worker that reads it. Set ``epoch`` before each epoch.

    Example
    -------
    >>> draw = EpochRandom(seed=1)
    >>> bool(draw("a").random() == draw("a").random() != draw("b").random())
    True
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.epoch = 0

    def __call__(self, utterance: str) -> np.random.Generator:
        """Starts the random numbers of one utterance, by its name."""
        return np.random.default_rng(
            [self.seed, self.epoch, zlib.crc32(utterance.encode())]
        )


class RandomCrop:
    """Reads a random crop of an utterance at a random speed.

    Speech played faster or slower has another pitch and other formants, so
    each speed makes a new speaker out of every speaker. Only the crop is read
    from the file.

    Arguments
    ---------
    frames
        Length of a crop in windows of the features: (frames - 1) * 160 + 400
        samples. The network pads and trims these to as many frames where
        they are a multiple of its time stride. Shorter utterances are
        repeated.
    speeds
        Speeds, the first being 1.0.

    Example
    -------
    >>> import soundfile
    >>> path = getfixture("tmp_path") / "utterance.wav"
    >>> soundfile.write(path, np.sin(np.arange(48000)), SAMPLE_RATE)
    >>> crop = RandomCrop(200, speeds=[1.0, 0.9, 1.1])
    >>> waveform, speed = crop(str(path), np.random.default_rng(1))
    >>> waveform.shape, speed in (0, 1, 2)
    (torch.Size([32240]), True)
    """

    def __init__(self, frames: int, speeds: Sequence[float]):
        if not speeds or speeds[0] != 1.0:
            raise ValueError(f"speeds: {speeds!r} must begin with 1.0")
        if not isinstance(frames, int) or frames < 1:
            raise ValueError(f"frames: {frames!r} is not a positive integer")
        self.speeds = list(speeds)
        self.samples = (frames - 1) * HOP + WINDOW
        self._check = CheckedAudioNormalizer(SAMPLE_RATE)
        self._resample = {speed: resampling_of(speed) for speed in speeds[1:]}

    def __call__(
        self, source: str, random: np.random.Generator
    ) -> tuple[torch.Tensor, int]:
        """Reads a crop [samples] of what ``open_audio`` opens, 16 kHz mono.

        It comes with the index of its speed in ``speeds``.

        Raises
        ------
        AudioError
            If the utterance is missing, unreadable, not 16 kHz mono or empty,
            or the crop is incomplete, silent (all samples equal) or holds NaN
            or infinite samples. What lies outside the crop is not looked at.
        """
        index = int(random.integers(len(self.speeds)))
        speed = self.speeds[index]
        needed = math.ceil(self.samples * speed)
        with open_audio(source) as audio:
            if (audio.samplerate, audio.channels) != (SAMPLE_RATE, 1):
                raise AudioError(
                    "not 16 kHz mono",
                    f"it has {audio.samplerate} Hz and {audio.channels} "
                    "channels, so prepare the corpus again",
                    source,
                )
            start = int(random.integers(max(1, audio.length - needed + 1)))
            frames = min(needed, audio.length)
            waveform = torch.from_numpy(audio.read_part(start, frames))
        try:
            waveform = self._check(waveform, SAMPLE_RATE)
        except AudioError as error:
            raise AudioError(error.reason, error.remedy, source) from None
        if index:
            waveform = self._resample[speed](waveform)
        if len(waveform) < self.samples:
            waveform = waveform.repeat(math.ceil(self.samples / len(waveform)))
        return waveform[: self.samples], index


def resampling_of(speed: float) -> torchaudio.transforms.Resample:
    """What makes speech faster, and its pitch higher.

    A speed of 1.1 is a resampling from 17,600 to 16,000 Hz.

    Example
    -------
    >>> resampling_of(1.25)(torch.randn(16000)).shape
    torch.Size([12800])
    """
    rate = round(SAMPLE_RATE * speed)
    return torchaudio.transforms.Resample(rate, SAMPLE_RATE)
