"""Random crops of utterances, with speed perturbation as extra speakers.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
import zlib

import numpy as np
import torchaudio
from speechbrain.dataio import audio_io

from redimnet2_lobes.front_end import SAMPLE_RATE


class EpochRandom:
    """Random numbers that follow from the seed, the epoch and the utterance.

    What is drawn for an utterance depends neither on the order of the
    utterances nor on the worker that reads it.

    Arguments
    ---------
    seed : int
        Seed. Set ``epoch`` before each epoch.

    Example
    -------
    >>> draw = EpochRandom(seed=1)
    >>> bool(draw("a").random() == draw("a").random() != draw("b").random())
    True
    """

    def __init__(self, seed):
        self.seed = seed
        self.epoch = 0

    def __call__(self, utterance):
        """Starts the random numbers of one utterance.

        Arguments
        ---------
        utterance : str
            Its name.

        Returns
        -------
        numpy.random.Generator
        """
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
    seconds : float
        Length of a crop. Shorter utterances are repeated.
    speeds : list of float
        Speeds, the first being 1.0.

    Example
    -------
    >>> import torch
    >>> path = getfixture("tmp_path") / "utterance.wav"
    >>> audio_io.save(path, torch.randn(1, 48000), SAMPLE_RATE)
    >>> crop = RandomCrop(2.0, speeds=[1.0, 0.9, 1.1])
    >>> waveform, speed = crop(str(path), np.random.default_rng(1))
    >>> waveform.shape, speed in (0, 1, 2)
    (torch.Size([32000]), True)
    """

    def __init__(self, seconds, speeds):
        if not speeds or speeds[0] != 1.0:
            raise ValueError(f"speeds: {speeds!r} must begin with 1.0")
        self.speeds = list(speeds)
        self.samples = round(seconds * SAMPLE_RATE)
        # A speed of 1.1 is a resampling from 17,600 to 16,000 Hz.
        self._resample = {
            speed: torchaudio.transforms.Resample(
                round(SAMPLE_RATE * speed), SAMPLE_RATE
            )
            for speed in speeds[1:]
        }

    def __call__(self, path, random):
        """Reads a crop.

        Arguments
        ---------
        path : str
            A 16 kHz mono file.
        random : numpy.random.Generator
            Draws the speed and the place.

        Returns
        -------
        waveform : torch.Tensor
            The crop [samples].
        speed : int
            Index of its speed in ``speeds``.
        """
        index = int(random.integers(len(self.speeds)))
        speed = self.speeds[index]
        needed = math.ceil(self.samples * speed)
        available = audio_io.info(path).frames
        start = int(random.integers(max(1, available - needed + 1)))
        waveform, _ = audio_io.load(
            path, frame_offset=start, num_frames=min(needed, available)
        )
        waveform = waveform[0]
        if index:
            waveform = self._resample[speed](waveform)
        repeats = math.ceil(self.samples / len(waveform))
        return waveform.repeat(repeats)[: self.samples], index
