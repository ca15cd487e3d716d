"""Augmentation of training crops: noise, reverberation, band limits, codecs.

The functions below do the work, each `Step` draws what they need, and `OneOf`
and `Chain` make the published recipes out of steps (hparams/ has them). MUSAN
and RIRS_NOISES are read from their folders, of a noise only the part needed.

What the paper leaves open follows its published training application: the
kinds of noise have equal chances, levels are those of the whole crop, and the
reverberated speech keeps the delay of its direct sound.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import io
import os

import numpy as np
import scipy.fft
import scipy.signal
import soundfile
import torch

from redimnet2_lobes.models.front_end import SAMPLE_RATE

# The folder of MUSAN that each kind of noise is read from.
MUSAN_FOLDERS = {
    "noise": "noise",
    "music": "music",
    "speech": "speech",
    "babble": "speech",
}
LEAST_VOICES, MOST_VOICES = 3, 6  # of babble

# Format and subtype in libsndfile, which also undoes the delay of each.
CODECS = {
    "opus": ("OGG", "OPUS"),  # 30 kbit/s
    "vorbis": ("OGG", "VORBIS"),  # 50 kbit/s
    "mp3": ("MP3", "MPEG_LAYER_III"),  # 35 kbit/s
    "gsm": ("WAV", "GSM610"),  # 26 kbit/s
    "mu-law": ("WAV", "ULAW"),  # 128 kbit/s
}


class Step:
    """Changes one waveform at random; the base of all steps."""

    def check(self):
        """Checks and lists the folders that are read, if any.

        Call it once before loader workers start: they inherit the lists.

        Raises
        ------
        ValueError
            If a folder is not what it should be. The message is one line.
        """

    def __call__(self, waveform, random):
        """Augments one utterance.

        Arguments
        ---------
        waveform : torch.Tensor
            Waveform [samples], float32, 16 kHz, full scale at 1.
        random : numpy.random.Generator
            Makes all choices.

        Returns
        -------
        torch.Tensor
            Waveform [samples].
        """
        raise NotImplementedError


class _Steps(Step):
    """Holds other steps."""

    def __init__(self, steps):
        self.steps = steps

    def check(self):
        """Checks all steps."""
        for step in self.steps:
            step.check()


class Chain(_Steps):
    """Applies steps in their order, each with its own probability.

    Arguments
    ---------
    steps : list of Step
        Steps or chains of them.
    probabilities : list of float
        One for each step.

    Example
    -------
    >>> augment = Chain([Gain([-18.0, -18.0]), LowPass()], [1.0, 0.25])
    >>> augment.check()
    >>> augment(torch.randn(32000), np.random.default_rng(1)).shape
    torch.Size([32000])
    """

    def __init__(self, steps, probabilities):
        if len(steps) != len(probabilities) or not all(
            0 <= probability <= 1 for probability in probabilities
        ):
            raise ValueError(
                f"probabilities: {probabilities!r} must be {len(steps)} "
                "numbers from 0 to 1, one for each step"
            )
        super().__init__(steps)
        self.probabilities = probabilities

    def __call__(self, waveform, random):
        """Applies the steps, see `Step`."""
        for step, probability in zip(
            self.steps, self.probabilities, strict=True
        ):
            if random.random() < probability:
                waveform = step(waveform, random)
        return waveform


class OneOf(_Steps):
    """Applies one of several steps.

    Arguments
    ---------
    steps : list of Step
        Steps or chains of them.
    shares : list of float
        How often each is chosen; they sum to 1.

    Example
    -------
    >>> augment = OneOf([LowPass(), Gain()], shares=[0.25, 0.75])
    >>> augment(torch.randn(32000), np.random.default_rng(1)).shape
    torch.Size([32000])
    """

    def __init__(self, steps, shares):
        if (
            len(steps) != len(shares)
            or min(shares) < 0
            or abs(sum(shares) - 1) > 1e-9
        ):
            raise ValueError(
                f"shares: {shares!r} must be {len(steps)} numbers from 0 on "
                "that sum to 1, one for each step"
            )
        super().__init__(steps)
        self.shares = shares

    def __call__(self, waveform, random):
        """Applies one step, see `Step`."""
        step = self.steps[random.choice(len(self.steps), p=self.shares)]
        return step(waveform, random)


class Noise(Step):
    """Adds one kind of noise of MUSAN, each kind with the same chance.

    Arguments
    ---------
    musan_folder : str
        The folder that holds ``music/``, ``noise/`` and ``speech/``.
    snr : dict
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

    def __init__(self, musan_folder, snr):
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

    def check(self):
        """Lists the files, see `Step`."""
        for recordings in self._recordings.values():
            recordings.check()

    def __call__(self, waveform, random):
        """Adds noise, see `Step`."""
        kinds = list(self.snr)
        kind = kinds[random.integers(len(kinds))]
        recordings = self._recordings[kind]
        noise = recordings.excerpt(len(waveform), random)
        if kind == "babble":
            # Their sum is as good as their mean: the ratio sets the level.
            voices = random.integers(LEAST_VOICES, MOST_VOICES + 1)
            for _ in range(voices - 1):
                noise += recordings.excerpt(len(waveform), random)
        return add_noise(waveform, noise, random.uniform(*self.snr[kind]))


class Reverberation(Step):
    """Lets the speech sound as in a room of RIRS_NOISES' simulated rooms.

    Arguments
    ---------
    rirs_folder : str
        The folder that holds ``simulated_rirs/``.

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

    def __init__(self, rirs_folder):
        self._recordings = Recordings(
            "rirs_folder", rirs_folder, "simulated_rirs"
        )

    def check(self):
        """Lists the files, see `Step`."""
        self._recordings.check()

    def __call__(self, waveform, random):
        """Reverberates, see `Step`."""
        return reverberate(waveform, self._recordings.whole(random))


class LowPass(Step):
    """Removes the upper part of the band, see `low_pass`.

    Arguments
    ---------
    cutoff : float
        Middle of the transition, relative to the band.
    transition : float
        Its width, relative to the band.

    Example
    -------
    >>> LowPass()(torch.randn(32000), np.random.default_rng(1)).shape
    torch.Size([32000])
    """

    def __init__(self, cutoff=0.6, transition=0.08):
        if not 0 < transition / 2 <= cutoff <= 1 - transition / 2:
            raise ValueError(
                f"cutoff: {cutoff!r} with a transition of {transition!r} does "
                "not lie in the band, from 0 to 1"
            )
        self.cutoff = cutoff
        self.transition = transition

    def __call__(self, waveform, random):
        """Filters, see `Step`."""
        return low_pass(waveform, self.cutoff, self.transition)


class Codec(Step):
    """Encodes and decodes by a random codec of `CODECS`.

    The published recipes do without.

    Example
    -------
    >>> codec = Codec()
    >>> codec(torch.rand(32000), np.random.default_rng(1)).shape
    torch.Size([32000])
    """

    def __call__(self, waveform, random):
        """Encodes and decodes, see `Step`."""
        names = list(CODECS)
        return encode_and_decode(waveform, names[random.integers(len(names))])


class Gain(Step):
    """Changes the level; what would exceed full scale is scaled down to it.

    Arguments
    ---------
    gain : list of float
        Lowest and highest gain, dB.

    Example
    -------
    >>> augment = Gain([-18.0, 6.0])
    >>> augment(torch.full((4,), 0.9), np.random.default_rng(2))
    tensor([0.2334, 0.2334, 0.2334, 0.2334])
    """

    def __init__(self, gain=(-18.0, 6.0)):
        _check_limits("gain", gain)
        self.gain = gain

    def __call__(self, waveform, random):
        """Changes the level, see `Step`."""
        waveform = waveform * 10 ** (random.uniform(*self.gain) / 20)
        return waveform / waveform.abs().max().clamp(min=1.0)


class Recordings:
    """The .wav files below a folder, 16 kHz mono, to draw from.

    Arguments
    ---------
    key : str
        What the user calls ``folder``, for the messages.
    folder : str
        A corpus.
    part : str
        The folder in it that holds the files, at any depth.

    Example
    -------
    >>> rooms = Recordings("rirs_folder", "nowhere", "simulated_rirs")
    >>> rooms.check()
    Traceback (most recent call last):
    ValueError: rirs_folder: nowhere has no folder simulated_rirs/; recipes/\
VoxCeleb/noises_prepare.py makes one
    """

    def __init__(self, key, folder, part):
        self.key = key
        self.folder = folder
        self.part = part
        self._files = None

    def check(self):
        """Lists the files, unless that is done.

        Raises
        ------
        ValueError
            If the folder or files in it are missing.
        """
        if self._files is not None:
            return
        top = os.path.join(self.folder, self.part)
        problem = "has no folder"
        files = []
        if os.path.isdir(top):
            problem = "has no .wav file in"
            files = [
                os.path.join(folder, name)
                for folder, _, names in os.walk(top)
                for name in names
                if name.endswith(".wav")
            ]
        if not files:
            raise ValueError(
                f"{self.key}: {self.folder} {problem} {self.part}/; "
                "recipes/VoxCeleb/noises_prepare.py makes one"
            )
        self._files = sorted(files)  # the same choices on every machine

    def whole(self, random):
        """Reads a random file.

        Arguments
        ---------
        random : numpy.random.Generator
            Draws the file.

        Returns
        -------
        torch.Tensor
            Waveform [samples].

        Raises
        ------
        ValueError
            If it is unreadable, empty or silent, or not 16 kHz mono.
        """
        path, waveform = self._read(random, None)
        if not waveform.any():
            raise ValueError(
                f"{path}: silent; remove it, or make {self.key} anew with "
                "recipes/VoxCeleb/noises_prepare.py"
            )
        return waveform

    def excerpt(self, samples, random):
        """Reads a random part of a random file; short ones are repeated.

        Arguments
        ---------
        samples : int
            Length of the part.
        random : numpy.random.Generator
            Draws the file and the place.

        Returns
        -------
        torch.Tensor
            Waveform [samples].

        Raises
        ------
        ValueError
            If it is unreadable or not 16 kHz mono.
        """
        _, waveform = self._read(random, samples)
        if len(waveform) == samples:
            return waveform
        return torch.from_numpy(np.resize(waveform.numpy(), samples))

    def _read(self, random, samples):
        """Read a file, or a part of at most ``samples`` samples of it."""
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
            detail = " ".join(str(error).split())
            raise ValueError(
                f"{path}: unreadable ({detail}); remove it, or make "
                f"{self.key} anew with recipes/VoxCeleb/noises_prepare.py"
            ) from None
        return path, torch.from_numpy(waveform)


def add_noise(speech, noise, snr):
    """Adds noise at a signal-to-noise ratio.

    Arguments
    ---------
    speech : torch.Tensor
        Waveform [samples].
    noise : torch.Tensor
        Waveform [samples]. Silence adds nothing.
    snr : float
        The ratio of their powers, dB.

    Returns
    -------
    torch.Tensor
        Waveform [samples].

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


def reverberate(speech, impulse_response):
    """Filters by an impulse response, scaled to unit energy.

    Arguments
    ---------
    speech : torch.Tensor
        Waveform [samples].
    impulse_response : torch.Tensor
        Impulse response of a room, of any length; not silent.

    Returns
    -------
    torch.Tensor
        Waveform [samples], without what resounds after its end.

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


def low_pass(waveform, cutoff, transition):
    """Removes high frequencies.

    The gain falls as half a period of a cosine. The published application
    starts it in the middle, so that its gain jumps at both ends.

    Arguments
    ---------
    waveform : torch.Tensor
        Waveform [samples].
    cutoff : float
        Where the gain is a half; the band is from 0 to 1.
    transition : float
        How far the fall from 1 to 0 spreads around it.

    Returns
    -------
    torch.Tensor
        Waveform [samples].

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


def encode_and_decode(waveform, codec):
    """Sends a waveform through a codec, in memory.

    Arguments
    ---------
    waveform : torch.Tensor
        Waveform [samples] at 16 kHz.
    codec : str
        A key of `CODECS`.

    Returns
    -------
    torch.Tensor
        Waveform [samples], in time with the original.

    Example
    -------
    >>> encode_and_decode(torch.tensor([0.1, 0.2]), "mu-law")
    tensor([0.0995, 0.2030])
    """
    file_format, subtype = CODECS[codec]
    encoded = io.BytesIO()
    soundfile.write(
        encoded, waveform.numpy(), SAMPLE_RATE, subtype, format=file_format
    )
    encoded.seek(0)
    # GSM makes the last block full.
    decoded, _ = soundfile.read(encoded, len(waveform), dtype="float32")
    return torch.from_numpy(decoded)


def _check_limits(key, limits):
    if len(limits) != 2 or limits[0] > limits[1]:
        raise ValueError(f"{key}: {limits!r} is not [lowest, highest] in dB")
