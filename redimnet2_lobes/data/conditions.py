"""Conditions that a system is evaluated under: changes of whole utterances.

Each is a `Step` as in augmentation, so that a `Chain` makes one of several, and
`Noise` and `Reverberation` of real recordings are conditions, too. What is here
needs no corpus: parts of utterances, codecs, band limits, noise and rooms by
formula. Codecs are those of libsndfile, in memory: what a file of that kind
would hold is what comes out. Waveforms are [samples], float32, 16 kHz, full
scale at 1; all but an `Excerpt` keep their length, and none delays.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import functools
import hashlib
import io
import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.fft
import soundfile
import torch
import torchaudio

from redimnet2_lobes.data.audio import thread_safe_open
from redimnet2_lobes.data.augment import (
    Recordings,
    Step,
    add_noise,
    low_pass,
    reverberate,
)
from redimnet2_lobes.data.crops import EpochRandom, resampling_of
from redimnet2_lobes.files.settings import require_number, require_positive
from redimnet2_lobes.models.front_end import SAMPLE_RATE

LOWEST_NOISE = 20.0  # Hz; below it nothing is heard, but pink noise is strong


@dataclass(frozen=True)
class Condition:
    """A step whose random choices follow from a seed and an utterance's name.

    So they depend on no order, batch or worker, and steps of one kind choose
    alike: noise at several ratios is the same noise.

    Example
    -------
    >>> condition = Condition(Excerpt(seconds=1.0), seed=1)
    >>> utterance = torch.randn(32000)
    >>> torch.equal(condition("a", utterance), condition("a", utterance))
    True
    """

    step: Step
    seed: int

    def __call__(self, name: str, waveform: torch.Tensor) -> torch.Tensor:
        """Changes an utterance of a name."""
        return self.step(waveform, EpochRandom(self.seed)(name))

    def settings(self) -> dict:
        """All that the changes depend on, as JSON has it.

        Recordings are a hash of their names, sizes and times. It is a
        ValueError if a step keeps what is no number, text, list, mapping or
        step.

        Example
        -------
        >>> Condition(Excerpt(seconds=1.0), seed=1).settings()
        {'seed': 1, 'redimnet2_lobes.data.conditions.Excerpt': {'seconds': 1.0}}
        """
        try:
            steps = json.loads(json.dumps(self.step, default=_settings))
        except (TypeError, RecursionError) as error:
            raise ValueError(
                f"{type(self.step).__name__}: its settings cannot be told, "
                f"{error}; keep numbers, texts, lists, mappings and steps only"
            ) from None
        return {"seed": self.seed, **steps}


def _settings(value: object) -> dict:
    """What JSON cannot hold, as something that it can."""
    if isinstance(value, Recordings):
        state = json.dumps(value.state())
        digest = hashlib.sha256(state.encode()).hexdigest()[:32]
        return {value.part: digest}
    if isinstance(value, Step):
        kind = type(value)
        return {f"{kind.__module__}.{kind.__qualname__}": vars(value)}
    raise TypeError(f"it keeps a {type(value).__name__}")


class Excerpt(Step):
    """Keeps so many seconds from a random place; shorter utterances whole.

    Example
    -------
    >>> excerpt = Excerpt(seconds=1.0)
    >>> excerpt(torch.randn(32000), np.random.default_rng(1)).shape
    torch.Size([16000])
    """

    def __init__(self, seconds: float):
        require_number("seconds", seconds, lowest=0.025)
        self.seconds = seconds

    def __call__(self, waveform, random):
        """See `Step`."""
        samples = round(self.seconds * SAMPLE_RATE)
        start = random.integers(max(1, len(waveform) - samples + 1))
        return waveform[start : start + samples].clone()


class Speed(Step):
    """Makes speech faster or slower, as speed perturbation in training does.

    Example
    -------
    >>> Speed(1.25)(torch.randn(16000), np.random.default_rng(1)).shape
    torch.Size([12800])
    """

    def __init__(self, speed: float):
        require_number("speed", speed, lowest=0.5, highest=2)
        self.speed = speed

    def __call__(self, waveform, random):
        """See `Step`."""
        return resampling_of(self.speed)(waveform)


class _Form(NamedTuple):
    """How libsndfile is told of a codec."""

    format: str
    subtype: str
    rate: int  # Hz
    kilobits: tuple[int, int] | None = None  # per second, least and most


# The limits are those that libsndfile spreads its compression levels over.
CODECS = {
    "alaw": _Form("WAV", "ALAW", 8000),
    "mulaw": _Form("WAV", "ULAW", 8000),
    "gsm": _Form("WAV", "GSM610", 8000),
    "opus": _Form("OGG", "OPUS", SAMPLE_RATE, (6, 256)),
    "mp3": _Form("MP3", "MPEG_LAYER_III", SAMPLE_RATE, (8, 160)),
}


class Codec(Step):
    """Encodes and decodes.

    What exceeds full scale is clipped, as it would be in a file.

    Arguments
    ---------
    name
        ``alaw`` or ``mulaw``, ITU-T G.711 (64 kbit/s), or ``gsm``, GSM 06.10
        (full rate, 13 kbit/s), all at 8 kHz; ``opus`` or ``mp3`` at 16 kHz.
    kilobits
        Of Opus and MP3 the bits per second that are aimed at, in thousands; the
        encoders need more or less of them as the speech does.

    Example
    -------
    >>> codec = Codec("opus", kilobits=12)
    >>> codec(torch.randn(32000) / 10, np.random.default_rng(1)).shape
    torch.Size([32000])
    """

    def __init__(self, name: str, kilobits: float | None = None):
        if name not in CODECS:
            raise ValueError(
                f"name: {name!r} is no codec; there are {', '.join(CODECS)}"
            )
        form = CODECS[name]
        if form.subtype not in soundfile.available_subtypes(form.format):
            raise ValueError(
                f"name: this libsndfile has no {name}; install soundfile from "
                "PyPI, which brings one that has"
            )
        if form.kilobits is not None:
            require_number("kilobits", kilobits, *form.kilobits)
        elif kilobits is not None:
            raise ValueError(
                f"kilobits: {name} has one rate only; leave them out"
            )
        self.name = name
        self.kilobits = kilobits
        # Another version may encode otherwise, which is another condition.
        self.libsndfile = soundfile.__libsndfile_version__

    def __call__(self, waveform, random):
        """See `Step`."""
        form = CODECS[self.name]
        # A steep filter, so that half of the band is gone at 8 kHz.
        resample = functools.partial(
            torchaudio.functional.resample, lowpass_filter_width=64
        )
        coded = resample(waveform, SAMPLE_RATE, form.rate).clamp(-1, 1)
        decoded = torch.from_numpy(self._decode(self.encode(coded)))
        decoded = resample(decoded, form.rate, SAMPLE_RATE)
        missing = max(0, len(waveform) - len(decoded))
        decoded = torch.nn.functional.pad(decoded, (0, missing))
        return decoded[: len(waveform)].clone()

    def encode(self, waveform: torch.Tensor) -> bytes:
        """A file of a waveform [samples] at the rate of the codec."""
        form = CODECS[self.name]
        options = {}
        if form.kilobits is not None and self.kilobits is not None:
            least, most = form.kilobits
            level = (most - self.kilobits) / (most - least)
            # MP3's encoder refuses 1.
            options["compression_level"] = min(level, 0.999)
        if self.name == "mp3":
            # A constant rate leaves no room to write down the delay if it is
            # low, and a variable one is not a rate.
            options["bitrate_mode"] = "AVERAGE"
        content = io.BytesIO()
        with thread_safe_open(
            lambda: soundfile.SoundFile(
                content,
                "w",
                form.rate,
                1,
                form.subtype,
                format=form.format,
                **options,
            )
        ) as file:
            file.write(waveform.numpy())
        return content.getvalue()

    def _decode(self, content: bytes) -> np.ndarray:
        with thread_safe_open(
            lambda: soundfile.SoundFile(io.BytesIO(content))
        ) as file:
            # GSM cannot seek, and then it must be told how many.
            return file.read(file.frames, "float32")


class BandLimit(Step):
    """Keeps what lies between two frequencies, Hz.

    The gain falls from 1 to 0 within 100 Hz around each. 300 and 3400 Hz are
    the limits of telephony, which AMR keeps, too.

    Example
    -------
    >>> telephone = BandLimit(lowest=300, highest=3400)
    >>> telephone(torch.randn(32000), np.random.default_rng(1)).shape
    torch.Size([32000])
    """

    TRANSITION = 100.0

    def __init__(self, lowest: float, highest: float):
        edge = self.TRANSITION / 2
        require_number("lowest", lowest, edge, SAMPLE_RATE / 2)
        require_number("highest", highest, lowest, SAMPLE_RATE / 2 - edge)
        self.lowest = lowest
        self.highest = highest

    def __call__(self, waveform, random):
        """See `Step`."""
        band = SAMPLE_RATE / 2
        width = self.TRANSITION / band
        waveform = low_pass(waveform, self.highest / band, width)
        return waveform - low_pass(waveform, self.lowest / band, width)


class ColouredNoise(Step):
    """Adds random noise at a signal-to-noise ratio, dB.

    The ratio is that of the whole utterance, pauses included. The noise is
    ``white``, of equal power in equal bands, or ``pink``, of equal power in
    each octave from 20 Hz on, as in many rooms and streets.

    Example
    -------
    >>> noise = ColouredNoise(snr=10)
    >>> noise(torch.randn(32000), np.random.default_rng(1)).shape
    torch.Size([32000])
    """

    def __init__(self, snr: float, colour: str = "pink"):
        require_number("snr", snr, -100, 100)
        if colour not in ("pink", "white"):
            raise ValueError(f"colour: {colour!r} is neither pink nor white")
        self.snr = snr
        self.colour = colour

    def __call__(self, waveform, random):
        """See `Step`."""
        samples = len(waveform)
        spectrum = scipy.fft.rfft(random.standard_normal(samples))
        if self.colour == "pink":
            frequency = scipy.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
            heard = frequency >= LOWEST_NOISE
            spectrum[heard] /= np.sqrt(frequency[heard])
            spectrum[~heard] = 0
        noise = scipy.fft.irfft(spectrum, samples).astype(np.float32)
        return add_noise(waveform, torch.from_numpy(noise), self.snr)


class SyntheticRoom(Step):
    """Lets the speech resound in a room by formula, another for each utterance.

    After the direct sound comes Gaussian noise whose level falls exponentially:
    Polack, "La transmission de l'énergie sonore dans les salles", Université du
    Maine, 1988. Direct and reverberated sound are equally strong, as they are
    at the critical distance from the speaker. A real room has single early
    reflections, and another reverberation time for each frequency.

    Arguments
    ---------
    rt60
        Seconds until the sound has fallen by 60 dB.

    Example
    -------
    >>> room = SyntheticRoom(rt60=0.3)
    >>> room(torch.randn(32000), np.random.default_rng(1)).shape
    torch.Size([32000])
    """

    def __init__(self, rt60: float):
        require_positive("rt60", rt60)
        require_number("rt60", rt60, 0, 10)
        self.rt60 = rt60

    def __call__(self, waveform, random):
        """See `Step`."""
        return reverberate(waveform, self.impulse_response(random))

    def impulse_response(self, random: np.random.Generator) -> torch.Tensor:
        """Draws the response of a room [samples]."""
        samples = max(2, round(self.rt60 * SAMPLE_RATE))
        decay = 10 ** (-3 * np.arange(samples) / samples)
        response = random.standard_normal(samples) * decay
        response[0] = np.linalg.norm(response[1:])
        return torch.from_numpy(response.astype(np.float32))
