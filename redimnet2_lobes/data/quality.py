"""How good a recording is: clipping, noise, level and seconds of speech.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
from typing import NamedTuple

import torch

from redimnet2_lobes.data.speech import FRAME, Speech

# Of the largest sample: what lies so near to it counts as equal to it, since
# rounding and resampling move what was clipped.
TOLERANCE = 0.002
# Samples in a row at the largest value. A wave that is not clipped has one.
FLAT = 3
# With fewer frames of 32 ms between the speech, its quietest are the noise.
ENOUGH_FRAMES = 4
QUIETEST = 0.1  # of the frames of speech
LIMIT_DB = 100.0  # more than 16 bits can hold


class Quality(NamedTuple):
    """What a recording's quality is judged by."""

    clipped: float  # of the samples of speech, the share that is clipped
    snr_db: float  # speech over what is between, from -100 to 100
    speech_seconds: float
    level_db: float  # of the speech (RMS, 1 being 0 dB), -100 at least


def measure_quality(waveform: torch.Tensor, speech: Speech) -> Quality:
    """Measures the quality of a waveform [samples], mono, 16 kHz.

    The level is relative to the full scale of the waveform as it is given: of
    one brought to the usual level (`at_usual_level`), as the commands do before
    an enrolment, it does not say how loud the recording was.

    ``speech`` is what `find_speech` finds in it. Samples of speech are clipped
    where several in a row have the largest or the lowest value of all, which
    need not be full scale: recordings are scaled afterwards. Resampling and
    lossy formats break such runs, so that earlier clipping is not seen.

    Noise is the median level of what lies between the speech; where that is
    next to nothing, the level of the quietest tenth of the speech, which gives
    a lower SNR than a pause would. The SNR is 100 dB at most, as of digital
    silence, and -100 without speech.

    Example
    -------
    >>> tone = 0.8 * torch.sin(2 * math.pi * 300 / 16000 * torch.arange(16000))
    >>> noise = 0.01 * torch.cos(2 * math.pi * 900 / 16000 * torch.arange(8000))
    >>> waveform = torch.cat([tone.clamp(-0.4, 0.4), noise])
    >>> quality = measure_quality(waveform, Speech([(0, 16000)], 24000))
    >>> round(quality.clipped, 1), quality.speech_seconds
    (0.7, 1.0)
    >>> round(quality.snr_db), round(quality.level_db)
    (34, -9)
    """
    waveform = waveform.double()
    spoken = torch.zeros(len(waveform), dtype=torch.bool)
    for start, stop in speech.spans:
        spoken[start:stop] = True
    if not spoken.any():
        return Quality(0.0, -LIMIT_DB, 0.0, -LIMIT_DB)
    power = waveform[spoken].var(correction=0).item()
    noise = _noise(waveform, spoken)
    snr = _decibels(max(power - noise, 0) / noise if noise else math.inf)
    return Quality(
        _clipped(waveform, spoken), snr, speech.seconds, _decibels(power)
    )


def _decibels(ratio: float) -> float:
    """A ratio of powers in dB, within the limits."""
    if ratio == 0:
        return -LIMIT_DB
    return max(-LIMIT_DB, min(10 * math.log10(ratio), LIMIT_DB))


def _noise(waveform: torch.Tensor, spoken: torch.Tensor) -> float:
    """The power of what is not spoken."""
    pauses = _frame_powers(waveform[~spoken])
    if len(pauses) >= ENOUGH_FRAMES:
        return pauses.median().item()
    return _frame_powers(waveform[spoken]).quantile(QUIETEST).item()


def _frame_powers(samples: torch.Tensor) -> torch.Tensor:
    """The power of each frame, an offset left out; few samples are one."""
    if not len(samples):
        return samples
    size = min(FRAME, len(samples))
    return samples.unfold(0, size, size).var(1, correction=0)


def _clipped(waveform: torch.Tensor, spoken: torch.Tensor) -> float:
    """The share of the spoken samples in flat runs at an extreme value."""
    if len(waveform) < FLAT:
        return 0.0
    lowest, highest = waveform[spoken].aminmax()
    margin = TOLERANCE * (highest - lowest) / 2
    flat = torch.zeros_like(spoken)
    for at_limit in (waveform >= highest - margin, waveform <= lowest + margin):
        runs = at_limit.unfold(0, FLAT, 1).all(1)  # where a run begins
        for shift in range(FLAT):
            flat[shift : shift + len(runs)] |= runs
    return flat[spoken].double().mean().item()
