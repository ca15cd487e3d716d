"""Figures of a recording's quality, of signals whose quality is known."""

import math

import pytest
import torch

from redimnet2_lobes.data.quality import measure_quality
from redimnet2_lobes.data.speech import Speech

SECOND = 16000


def voice(seconds):
    """Harmonics of 120 Hz whose loudness changes, as syllables do."""
    time = torch.arange(seconds * SECOND) / SECOND
    waves = sum(
        torch.sin(2 * math.pi * 120 * harmonic * time + harmonic**2) / harmonic
        for harmonic in range(1, 20)
    )
    return 0.1 * waves * (1.2 + torch.sin(2 * math.pi * 3.3 * time))


def white_noise(samples, level):
    random = torch.Generator().manual_seed(1)
    return level * torch.randn(samples, generator=random)


@pytest.fixture
def recording():
    """A second of speech between two without."""
    silence = torch.zeros(SECOND)
    waveform = torch.cat([silence, voice(1), silence])
    return waveform, Speech([(SECOND, 2 * SECOND)], 3 * SECOND)


@pytest.mark.parametrize("snr", [0, 10, 20, 40])
@pytest.mark.parametrize("gain", [1, 0.01])
def test_snr_is_that_of_the_noise_added(recording, snr, gain):
    waveform, speech = recording
    level = speech.of(waveform).square().mean().sqrt() / 10 ** (snr / 20)
    noisy = gain * (waveform + white_noise(len(waveform), level))
    assert measure_quality(noisy, speech).snr_db == pytest.approx(snr, abs=1)


def test_one_click_in_a_pause_is_no_noise(recording):
    waveform, speech = recording
    noisy = waveform + white_noise(len(waveform), 0.001)
    without = measure_quality(noisy, speech).snr_db
    noisy[100] = 0.9
    assert measure_quality(noisy, speech).snr_db == pytest.approx(
        without, abs=0.5
    )


def test_digital_silence_is_no_noise(recording):
    assert measure_quality(*recording).snr_db == 100


def test_without_pause_the_quietest_frames_are_the_noise():
    waveform = voice(2) + white_noise(2 * SECOND, 0.001)
    waveform[SECOND : SECOND + SECOND // 2] = white_noise(SECOND // 2, 0.001)
    quality = measure_quality(waveform, Speech([(0, len(waveform))], 32000))
    level = 20 * math.log10(voice(2).square().mean().sqrt() / 0.001)
    assert quality.snr_db == pytest.approx(level, abs=3)


def test_whole_speech_is_not_clipped(recording):
    waveform, speech = recording
    assert measure_quality(waveform, speech).clipped < 0.0005
    in_16_bits = (waveform * 32767).round() / 32768
    assert measure_quality(in_16_bits, speech).clipped < 0.0005


@pytest.mark.parametrize("limit", [0.3, 0.6])
@pytest.mark.parametrize("gain", [1, 0.05])
@pytest.mark.parametrize("bits", [16, 32])
def test_clipped_speech_is_counted_at_any_level(recording, limit, gain, bits):
    waveform, speech = recording
    limit = limit * waveform.abs().max()
    share = (speech.of(waveform).abs() >= limit).double().mean().item()
    clipped = gain * waveform.clamp(-limit, limit)
    if bits == 16:
        clipped = (clipped * 32767).round() / 32768
    assert measure_quality(clipped, speech).clipped == pytest.approx(
        share, rel=0.25
    )


def test_clipping_on_one_side_counts(recording):
    waveform, speech = recording
    limit = 0.4 * waveform.max()
    share = (speech.of(waveform) >= limit).double().mean().item()
    assert measure_quality(waveform.clamp(max=limit), speech).clipped == (
        pytest.approx(share, rel=0.25)
    )


def test_what_nobody_speaks_is_not_judged_by_clipping(recording):
    waveform, speech = recording
    waveform[: SECOND // 2] = 1.0
    assert measure_quality(waveform, speech).clipped < 0.0005


def test_level_and_seconds_are_those_of_the_speech(recording):
    waveform, speech = recording
    quality = measure_quality(waveform, speech)
    level = 20 * math.log10(voice(1).square().mean().sqrt())
    assert quality.level_db == pytest.approx(level, abs=0.1)
    assert quality.speech_seconds == 1
    assert measure_quality(waveform + 0.2, speech) == pytest.approx(
        quality, abs=0.01
    )
    half = measure_quality(0.5 * waveform, speech)
    assert quality.level_db - half.level_db == pytest.approx(6.02, abs=0.01)


@pytest.mark.parametrize("samples", [0, 1, 100, SECOND])
def test_without_speech_the_figures_are_the_lowest(samples):
    quality = measure_quality(torch.zeros(samples), Speech([], samples))
    assert quality == (0, -100, 0, -100)


@pytest.mark.parametrize("samples", [1, 2, 3, 511, 512, 513])
def test_short_speech_has_figures(samples):
    for waveform in (torch.zeros(samples), voice(1)[:samples]):
        quality = measure_quality(waveform, Speech([(0, samples)], samples))
        assert all(math.isfinite(value) for value in quality)
