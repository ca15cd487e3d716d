"""Augmentation of training crops: noise, reverberation, band limits, gain.

The functions below do the work, each `Step` draws what they need, and `OneOf`
and `Chain` make the published recipes out of steps (hparams/ has them). MUSAN
and RIRS_NOISES are read from their folders, of a noise only the part needed.
Waveforms are [samples], float32, 16 kHz, full scale at 1.

What the paper leaves open follows its published training application: the
kinds of noise have equal chances, levels are those of the whole crop, and the
reverberated speech keeps the delay of its direct sound.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
import os
from collections.abc import Sequence

import numpy as np
import scipy.fft
import scipy.signal
import soundfile
import torch
from speechbrain.utils.logger import get_logger

from redimnet2_lobes.data.audio import (
    DECODED,
    audio_rank,
    list_audio,
)
from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.models.front_end import SAMPLE_RATE

logger = get_logger(__name__)

# The folder of MUSAN that each kind of noise is read from.
MUSAN_FOLDERS = {
    "noise": "noise",
    "music": "music",
    "speech": "speech",
    "babble": "speech",
}
LEAST_VOICES, MOST_VOICES = 3, 6  # of babble


class Step:
    """Changes one waveform at random; the base of all steps."""

    parts: Sequence = ()  # steps or recordings that it is made of

    def check(self) -> None:
        """Checks and lists the folders that are read, if any.

        Call it once before loader workers start: they inherit the lists.
        """
        for part in self.parts:
            part.check()

    def __call__(
        self, waveform: torch.Tensor, random: np.random.Generator
    ) -> torch.Tensor:
        """Augments one utterance; ``random`` makes all choices."""
        raise NotImplementedError


class Chain(Step):
    """Applies steps in their order, each with its own probability.

    Example
    -------
    >>> augment = Chain([Gain([-18.0, -18.0]), LowPass()], [1.0, 0.25])
    >>> augment.check()
    >>> augment(torch.randn(32000), np.random.default_rng(1)).shape
    torch.Size([32000])
    """

    def __init__(self, steps: Sequence[Step], probabilities: Sequence[float]):
        if len(steps) != len(probabilities) or not all(
            0 <= probability <= 1 for probability in probabilities
        ):
            raise ValueError(
                f"probabilities: {probabilities!r} must be {len(steps)} "
                "numbers from 0 to 1, one for each step"
            )
        self.parts = steps
        self.probabilities = probabilities

    def __call__(self, waveform, random):
        """See `Step`."""
        for step, probability in zip(
            self.parts, self.probabilities, strict=True
        ):
            if random.random() < probability:
                waveform = step(waveform, random)
        return waveform


class OneOf(Step):
    """Applies one of several steps, chosen by shares that sum to 1.

    Example
    -------
    >>> augment = OneOf([LowPass(), Gain()], shares=[0.25, 0.75])
    >>> augment(torch.randn(32000), np.random.default_rng(1)).shape
    torch.Size([32000])
    """

    def __init__(self, steps: Sequence[Step], shares: Sequence[float]):
        sum_is_one = math.isclose(sum(shares), 1, abs_tol=1e-9)
        if len(steps) != len(shares) or min(shares) < 0 or not sum_is_one:
            raise ValueError(
                f"shares: {shares!r} must be {len(steps)} numbers from 0 on "
                "that sum to 1, one for each step"
            )
        self.parts = steps
        self.shares = shares

    def __call__(self, waveform, random):
        """See `Step`."""
        step = self.parts[random.choice(len(self.parts), p=self.shares)]
        return step(waveform, random)


class Noise(Step):
    """Adds one kind of noise of MUSAN, each kind with the same chance.

    Arguments
    ---------
    musan_folder
        The folder that holds ``music/``, ``noise/`` and ``speech/``.
    snr
        The kinds, ``noise``, ``music``, ``speech`` (one other voice) or
        ``babble`` (3 to 6 voices), and for each the lowest and the highest
        signal-to-noise ratio, dB.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "music").mkdir()
    >>> tune = np.random.default_rng(1).uniform(-1, 1, 64000)
    >>> soundfile.write(folder / "music" / "tune.wav", tune, 16000)
    >>> add_music = Noise(folder, snr={"music": [5.0, 15.0]})
    >>> add_music.check()
    >>> add_music(torch.randn(32000), np.random.default_rng(1)).shape
    torch.Size([32000])
    """

    def __init__(
        self,
        musan_folder: str | os.PathLike | None,
        snr: dict[str, Sequence[float]],
    ):
        unknown = sorted(set(snr) - set(MUSAN_FOLDERS))
        if unknown or not snr:
            raise ValueError(
                f"snr: {unknown or snr!r} are no kinds of noise; there are "
                f"{', '.join(MUSAN_FOLDERS)}"
            )
        for kind, limits in snr.items():
            _check_limits(f"snr of {kind}", limits)
        self.snr = snr
        self._recordings = {
            kind: Recordings("musan_folder", musan_folder, MUSAN_FOLDERS[kind])
            for kind in snr
        }
        self.parts = list(self._recordings.values())

    def __call__(self, waveform, random):
        """See `Step`."""
        kind = list(self.snr)[random.integers(len(self.snr))]
        recordings = self._recordings[kind]
        noise = recordings.excerpt(len(waveform), random)
        if kind == "babble":
            # Their sum is as good as their mean: the ratio sets the level.
            voices = random.integers(LEAST_VOICES, MOST_VOICES + 1)
            for _ in range(voices - 1):
                noise += recordings.excerpt(len(waveform), random)
        lowest, highest = self.snr[kind]
        return add_noise(waveform, noise, random.uniform(lowest, highest))


class Reverberation(Step):
    """Lets the speech sound as in one of RIRS_NOISES' ``simulated_rirs/``.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "simulated_rirs").mkdir()
    >>> room = np.geomspace(1.0, 0.001, 8000)
    >>> soundfile.write(folder / "simulated_rirs" / "room.wav", room, 16000)
    >>> reverberation = Reverberation(folder)
    >>> reverberation.check()
    >>> reverberation(torch.randn(32000), np.random.default_rng(1)).shape
    torch.Size([32000])
    """

    def __init__(self, rirs_folder: str | os.PathLike | None):
        self.parts = [Recordings("rirs_folder", rirs_folder, "simulated_rirs")]

    def __call__(self, waveform, random):
        """See `Step`."""
        return reverberate(waveform, self.parts[0].whole(random))


class LowPass(Step):
    """Removes the upper part of the band, see `low_pass`.

    Example
    -------
    >>> LowPass()(torch.randn(32000), np.random.default_rng(1)).shape
    torch.Size([32000])
    """

    def __init__(self, cutoff: float = 0.6, transition: float = 0.08):
        if not 0 < transition / 2 <= cutoff <= 1 - transition / 2:
            raise ValueError(
                f"cutoff: {cutoff!r} with a transition of {transition!r} does "
                "not lie in the band, from 0 to 1"
            )
        self.cutoff = cutoff
        self.transition = transition

    def __call__(self, waveform, random):
        """See `Step`."""
        return low_pass(waveform, self.cutoff, self.transition)


class Gain(Step):
    """Changes the level by ``gain``, from the lowest to the highest, dB.

    What would exceed full scale is scaled down to it.

    Example
    -------
    >>> augment = Gain([-18.0, 6.0])
    >>> augment(torch.full((4,), 0.9), np.random.default_rng(2))
    tensor([0.2334, 0.2334, 0.2334, 0.2334])
    """

    def __init__(self, gain: Sequence[float] = (-18.0, 6.0)):
        _check_limits("gain", gain)
        self.gain = gain

    def __call__(self, waveform, random):
        """See `Step`."""
        lowest, highest = self.gain
        waveform = waveform * 10 ** (random.uniform(lowest, highest) / 20)
        return waveform / waveform.abs().max().clamp(min=1.0)


class Recordings:
    """The audio files, 16 kHz mono, at any depth below ``folder/part/``.

    What it reads is a waveform [samples]; a file that cannot be read or is not
    16 kHz mono is a ValueError that names it. ``key`` is what the user calls
    the folder, for messages.

    Example
    -------
    >>> rooms = Recordings("rirs_folder", "nowhere", "simulated_rirs")
    >>> rooms.check()
    Traceback (most recent call last):
    ValueError: rirs_folder: nowhere has no folder simulated_rirs/; recipes/\
VoxCeleb/noises_prepare.py makes one
    """

    def __init__(self, key: str, folder: str | os.PathLike | None, part: str):
        self.key = key
        self.folder = folder
        self.part = part
        self._files: list[str] = []

    def check(self) -> None:
        """Lists the files, unless that is done; ValueError if none is there."""
        if self._files:
            return
        if self.folder is None:
            raise ValueError(
                f"{self.key}: null, but augment needs it; name the folder that "
                "recipes/VoxCeleb/noises_prepare.py makes"
            )
        top = os.path.join(self.folder, self.part)
        if os.path.isdir(top):
            self._files, left_out = list_audio(top)
            if left_out:
                logger.info("%s: %s", self.key, left_out)
        if not self._files:
            problem = "no audio in" if os.path.isdir(top) else "no folder"
            raise ValueError(
                f"{self.key}: {self.folder} has {problem} {self.part}/; "
                "recipes/VoxCeleb/noises_prepare.py makes one"
            )
        for path in self._files:
            if (audio_rank(path) or 0) >= len(DECODED):
                raise ValueError(
                    f"{self.key}: {path} is in a format that libsndfile does "
                    "not read; convert it to WAV or FLAC, or remove it"
                )

    def state(self) -> list[tuple[str, int, int]]:
        """Name, size and time of each file, to tell whether they changed."""
        self.check()
        return [
            (
                os.path.relpath(path, self.folder),
                state.st_size,
                state.st_mtime_ns,
            )
            for path in self._files
            for state in [os.stat(path)]
        ]

    def whole(self, random: np.random.Generator) -> torch.Tensor:
        """Reads a random file, which must not be silent."""
        path, waveform = self._read(random, None)
        if not waveform.any():
            raise ValueError(
                f"{path}: silent; remove it, or make {self.key} anew with "
                "recipes/VoxCeleb/noises_prepare.py"
            )
        return waveform

    def excerpt(
        self, samples: int, random: np.random.Generator
    ) -> torch.Tensor:
        """Reads a random part of a random file; short ones are repeated."""
        _, waveform = self._read(random, samples)
        return torch.from_numpy(np.resize(waveform.numpy(), samples))

    def _read(
        self, random: np.random.Generator, samples: int | None
    ) -> tuple[str, torch.Tensor]:
        """Reads a file, or a part of at most ``samples`` samples of it."""
        self.check()
        path = self._files[random.integers(len(self._files))]
        try:
            with soundfile.SoundFile(path) as file:
                if (file.samplerate, file.channels) != (SAMPLE_RATE, 1):
                    raise ValueError(
                        f"{path}: {file.channels} channel(s) at "
                        f"{file.samplerate} Hz; convert it to one channel at "
                        f"{SAMPLE_RATE} Hz"
                    )
                if samples is None:
                    samples = file.frames
                start = random.integers(max(1, file.frames - samples + 1))
                file.seek(start)
                waveform = file.read(samples, dtype="float32")
        except soundfile.SoundFileError as error:
            raise ValueError(
                f"{path}: unreadable ({one_line(error)}); remove it, or make "
                f"{self.key} anew with recipes/VoxCeleb/noises_prepare.py"
            ) from None
        return path, torch.from_numpy(waveform)


def add_noise(
    speech: torch.Tensor, noise: torch.Tensor, snr: float
) -> torch.Tensor:
    """Adds as many samples of noise at a signal-to-noise ratio, dB.

    Silence adds nothing.

    Example
    -------
    >>> add_noise(torch.ones(3), torch.tensor([0.5, -0.5, 0.5]), snr=20.0)
    tensor([1.1000, 0.9000, 1.1000])
    """
    # Unlike dot, norm rounds the same with any number of threads and wherever
    # the samples lie in memory.
    noise_level = noise.norm().item()
    if noise_level == 0:
        return speech
    ratio = speech.norm().item() / noise_level
    return speech.add(noise, alpha=ratio * 10 ** (-snr / 20))


def reverberate(
    speech: torch.Tensor, impulse_response: torch.Tensor
) -> torch.Tensor:
    """Filters by an impulse response, scaled to unit energy.

    The response may have any length, but must not be silent. What resounds
    after the end of the speech is cut off.

    Example
    -------
    >>> reverberate(torch.tensor([1.0, 0, 0]), torch.tensor([0, 3.0, 0, 4.0]))
    tensor([0.0000, 0.6000, 0.0000])
    """
    impulse_response = impulse_response / impulse_response.norm()
    # On one core, in a tenth of the time of torchaudio's, which pads to a
    # length that suits no FFT.
    samples = len(speech)
    wet = scipy.signal.fftconvolve(
        speech.numpy(), impulse_response[:samples].numpy()
    )
    return torch.from_numpy(wet[:samples])


def low_pass(
    waveform: torch.Tensor, cutoff: float, transition: float
) -> torch.Tensor:
    """Removes high frequencies.

    The gain falls as half a period of a cosine. The published application
    starts it in the middle, so that its gain jumps at both ends.

    Arguments
    ---------
    waveform
    cutoff
        Where the gain is a half; the band is from 0 to 1.
    transition
        How far the fall from 1 to 0 spreads around it.

    Example
    -------
    >>> hiss = torch.tensor([1.0, -1.0] * 50)
    >>> low_pass(hiss + 1, cutoff=0.6, transition=0.08)[:2]
    tensor([1., 1.])
    """
    spectrum = scipy.fft.rfft(waveform.numpy())
    frequency = scipy.fft.rfftfreq(len(waveform), 0.5)
    fall = np.clip((frequency - cutoff) / transition + 0.5, 0, 1)
    spectrum *= 0.5 + 0.5 * np.cos(np.pi * fall)
    return torch.from_numpy(scipy.fft.irfft(spectrum, len(waveform)))


def _check_limits(key: str, limits: Sequence[float]) -> None:
    if len(limits) != 2 or limits[0] > limits[1]:
        raise ValueError(f"{key}: {limits!r} is not [lowest, highest] in dB")
