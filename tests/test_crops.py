"""Training crops and their augmentation."""

import numpy as np
import pytest
import soundfile
import torch

from redimnet2_lobes.augment import NoiseAndGain, coloured_noise
from redimnet2_lobes.crops import EpochRandom, RandomCrop


def tone(seconds, frequency=1000):
    time = np.arange(round(16000 * seconds)) / 16000
    return np.sin(2 * np.pi * frequency * time).astype(np.float32) / 2


def loudest_frequency(waveform):
    spectrum = torch.fft.rfft(waveform * torch.hann_window(len(waveform)))
    return spectrum.abs().argmax().item() * 16000 / len(waveform)


@pytest.fixture
def ramp(tmp_path):
    """A file whose samples say where they stand."""
    path = tmp_path / "ramp.wav"
    values = np.arange(48000, dtype=np.float32) / 48000
    soundfile.write(path, values, 16000, subtype="FLOAT")
    return str(path)


def test_crop_is_a_piece_of_the_file(ramp):
    crop = RandomCrop(2.0, speeds=[1.0])
    starts = set()
    for seed in range(20):
        waveform, speed = crop(ramp, np.random.default_rng(seed))
        start = round(waveform[0].item() * 48000)
        expected = (start + torch.arange(32000)) / 48000
        assert torch.allclose(waveform, expected)
        assert speed == 0
        starts.add(start)
    assert len(starts) > 15
    assert min(starts) < 4000 and max(starts) > 12000


def test_only_the_crop_is_read(ramp, monkeypatch):
    from speechbrain.dataio import audio_io

    read = []
    load = audio_io.load

    def counting_load(path, **arguments):
        result = load(path, **arguments)
        read.append(result[0].shape[1])
        return result

    monkeypatch.setattr("redimnet2_lobes.crops.audio_io.load", counting_load)
    RandomCrop(0.5, speeds=[1.0])(ramp, np.random.default_rng(1))
    assert read == [8000]


@pytest.mark.parametrize("speed", [0.8, 0.9, 1.1, 1.2])
def test_speed_changes_the_pitch(tmp_path, speed):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(4), 16000)
    crop = RandomCrop(2.0, speeds=[1.0, speed])
    for seed in range(10):
        waveform, index = crop(str(path), np.random.default_rng(seed))
        assert waveform.shape == (32000,)
        expected = 1000 * (speed if index else 1)
        assert loudest_frequency(waveform) == pytest.approx(expected, abs=2)


def test_all_speeds_are_drawn_alike(ramp):
    crop = RandomCrop(0.1, speeds=[1.0, 0.9, 1.1])
    random = np.random.default_rng(1)
    counts = np.bincount([crop(ramp, random)[1] for _ in range(300)])
    assert len(counts) == 3 and counts.min() > 70


def test_short_utterances_are_repeated(tmp_path):
    path = tmp_path / "short.wav"
    soundfile.write(path, tone(0.5, frequency=700), 16000, subtype="FLOAT")
    waveform, _ = RandomCrop(1.2, [1.0])(str(path), np.random.default_rng(1))
    assert torch.equal(waveform[:8000], waveform[8000:16000])
    assert torch.equal(waveform[:3200], waveform[16000:])


def test_speeds_must_begin_with_the_original():
    with pytest.raises(ValueError, match="speeds: .* must begin with 1.0"):
        RandomCrop(1.0, speeds=[0.9, 1.0])


def test_random_numbers_follow_from_seed_epoch_and_utterance():
    def first(seed, epoch, utterance):
        draw = EpochRandom(seed)
        draw.epoch = epoch
        return draw(utterance).random()

    assert first(1, 2, "a") == first(1, 2, "a")
    values = {first(1, 2, "a"), first(2, 2, "a"), first(1, 3, "a")}
    assert len(values | {first(1, 2, "b")}) == 4


def measured_snr(clean, noisy):
    noise = noisy - clean
    return 10 * torch.log10(clean.square().mean() / noise.square().mean())


def test_noise_ratios_and_share():
    augment = NoiseAndGain(0.6, snr=[5.0, 10.0], gain=[0.0, 0.0])
    clean = torch.from_numpy(tone(0.25))
    ratios = []
    for seed in range(400):
        noisy = augment(clean, np.random.default_rng(seed))
        if not torch.equal(noisy, clean):
            # What exceeded full scale was scaled down: scale it back.
            scale = (noisy @ clean) / (clean @ clean)
            if noisy.abs().max() < 1:
                scale = 1
            ratios.append(measured_snr(clean, noisy / scale).item())
    assert 0.5 < len(ratios) / 400 < 0.7
    assert 4.8 < min(ratios) < 5.5 and 9.5 < max(ratios) < 10.2


def test_gain_range_and_full_scale():
    augment = NoiseAndGain(0.0, gain=[-18.0, 6.0])
    clean = torch.from_numpy(tone(0.1))
    levels = [
        augment(clean, np.random.default_rng(seed)).abs().max().item()
        for seed in range(300)
    ]
    assert min(levels) == pytest.approx(0.5 * 10 ** (-18 / 20), rel=0.1)
    assert max(levels) <= 1.0 and max(levels) > 0.95
    loud = augment(4 * clean, np.random.default_rng(1))
    assert loud.abs().max() <= 1


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_noise_colour(slope):
    noise = coloured_noise(160000, slope, np.random.default_rng(1))
    power = torch.fft.rfft(noise).abs().square()
    # Mean power around two frequencies three octaves apart.
    low, high = power[5000:7000].mean(), power[40000:56000].mean()
    fall = 10 * torch.log10(low / high) / 3
    assert fall.item() == pytest.approx(3.01 * slope, abs=0.15)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"noise_probability": 1.5}, "noise_probability: 1.5"),
        ({"snr": [10, 5]}, r"snr: \[10, 5\]"),
        ({"gain": [1]}, r"gain: \[1\]"),
    ],
)
def test_wrong_values_name_the_key(arguments, message):
    with pytest.raises(ValueError, match=message):
        NoiseAndGain(**arguments)
