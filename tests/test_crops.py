"""Training crops."""

import math

import numpy as np
import pytest
import soundfile
import torch

from redimnet2_lobes.data.audio import AudioError
from redimnet2_lobes.data.crops import EpochRandom, RandomCrop
from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2


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
    crop = RandomCrop(200, speeds=[1.0])
    starts = set()
    for seed in range(20):
        waveform, speed = crop(ramp, np.random.default_rng(seed))
        start = round(waveform[0].item() * 48000)
        expected = (start + torch.arange(32240)) / 48000
        assert torch.allclose(waveform, expected)
        assert speed == 0
        starts.add(start)
    assert len(starts) > 15
    assert min(starts) < 4000 and max(starts) > 12000


def test_crops_begin_anywhere(tmp_path):
    path = tmp_path / "short ramp.wav"
    values = np.arange(404, dtype=np.float32) / 404
    soundfile.write(path, values, 16000, subtype="FLOAT")
    crop, random = RandomCrop(1, speeds=[1.0]), np.random.default_rng(1)
    starts = [crop(str(path), random)[0][0].item() * 404 for _ in range(100)]
    assert set(map(round, starts)) == {0, 1, 2, 3, 4}


def test_speed_is_drawn_before_the_place(ramp):
    crop = RandomCrop(50, speeds=[1.0, 0.9, 1.1])
    for seed in range(10):
        waveform, speed = crop(ramp, np.random.default_rng(seed))
        random = np.random.default_rng(seed)
        assert speed == random.integers(3)
        samples = [8240, 7416, 9065][speed]  # 8240 * 1.1, rounded up
        start = random.integers(48000 - samples + 1)
        # In the middle, where the resampling has no borders.
        middle = (start + samples / 2) / 48000
        assert waveform[4120].item() == pytest.approx(middle, rel=1e-3)


@pytest.mark.parametrize("speed", [0.8, 0.9, 1.1, 1.2])
@pytest.mark.parametrize("frames", [30, 101])
@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_crops_have_exactly_the_samples(tmp_path, speed, frames, excess):
    crop = RandomCrop(frames, speeds=[1.0, speed])
    samples = (frames - 1) * 160 + 400
    needed = math.ceil(samples * speed)
    path = tmp_path / "exact.wav"
    soundfile.write(path, tone(2)[: needed + excess], 16000)
    random = np.random.default_rng(1)
    crops = [crop(str(path), random) for _ in range(6)]
    assert {index for _, index in crops} == {0, 1}
    for waveform, _ in crops:
        assert waveform.shape == (samples,)
        assert waveform.dtype == torch.float32


def faulty(path, fault):
    """Writes a file with a fault."""
    samples, rate, options = tone(4), 16000, {"subtype": "FLOAT"}
    if fault == "not finite":
        samples[::1000] = np.nan
    elif fault == "silent":
        samples[:] = 0.25
    elif fault == "empty":
        samples = samples[:0]
    elif fault == "not 16 kHz mono":
        rate = 8000
    elif fault == "stereo":
        samples = np.stack([samples, samples], axis=1)
    elif fault in ("MP3", "FLAC"):
        options = {"format": fault}
    soundfile.write(path, samples, rate, **options)
    if fault in ("MP3", "FLAC"):
        path.write_bytes(path.read_bytes()[:3000])
    elif fault == "no bytes":
        path.write_bytes(b"")
    elif fault == "unreadable":
        path.write_bytes(b"no audio" * 100)
    elif fault == "missing":
        path.unlink()


@pytest.mark.parametrize(
    "fault, reason",
    [
        *((reason, reason) for reason in ("not finite", "silent", "empty")),
        *((reason, reason) for reason in ("unreadable", "missing")),
        ("MP3", "cut short"),
        ("FLAC", "unreadable"),
        ("not 16 kHz mono", "not 16 kHz mono"),
        ("stereo", "not 16 kHz mono"),
        ("no bytes", "empty"),
    ],
)
def test_faulty_audio_is_refused(tmp_path, fault, reason):
    path = tmp_path / "faulty.wav"
    faulty(path, fault)
    with pytest.raises(AudioError) as raised:
        RandomCrop(390, speeds=[1.0])(str(path), np.random.default_rng(1))
    assert raised.value.reason == reason
    assert str(raised.value).startswith(f"{path}: {reason}; ")
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("speed", [0.8, 0.9, 1.1, 1.2])
def test_speed_changes_the_pitch(tmp_path, speed):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(4), 16000)
    crop = RandomCrop(200, speeds=[1.0, speed])
    for seed in range(10):
        waveform, index = crop(str(path), np.random.default_rng(seed))
        assert waveform.shape == (32240,)
        expected = 1000 * (speed if index else 1)
        assert loudest_frequency(waveform) == pytest.approx(expected, abs=2)


def test_all_speeds_are_drawn_alike(ramp):
    crop = RandomCrop(10, speeds=[1.0, 0.9, 1.1])
    random = np.random.default_rng(1)
    counts = np.bincount([crop(ramp, random)[1] for _ in range(300)])
    assert len(counts) == 3 and counts.min() > 70


def test_short_utterances_are_repeated(tmp_path):
    path = tmp_path / "short.wav"
    soundfile.write(path, tone(0.5, frequency=700), 16000, subtype="FLOAT")
    waveform, _ = RandomCrop(120, [1.0])(str(path), np.random.default_rng(1))
    assert torch.equal(waveform[:8000], waveform[8000:16000])
    assert torch.equal(waveform[:3440], waveform[16000:])


@pytest.mark.parametrize("length", [8240, 9000, 20000, 5000])
def test_crops_of_a_segment_are_those_of_a_file_of_it(ramp, tmp_path, length):
    """At every speed, so they lie within; short ones are repeated."""
    values, _ = soundfile.read(ramp, dtype="float32")
    cut = tmp_path / "cut.wav"
    soundfile.write(cut, values[3000 : 3000 + length], 16000, subtype="FLOAT")
    crop = RandomCrop(50, speeds=[1.0, 0.9, 1.1])
    for seed in range(20):
        waveform, speed = crop(
            f"{ramp}[3000:{3000 + length}]", np.random.default_rng(seed)
        )
        expected = crop(str(cut), np.random.default_rng(seed))
        assert torch.equal(waveform, expected[0]) and speed == expected[1]
        if speed == 0:
            places = (waveform * 48000).round()
            assert places.min() >= 3000 and places.max() < 3000 + length


def test_crops_of_a_segment_beyond_the_file_are_refused(ramp):
    crop = RandomCrop(50, speeds=[1.0])
    source = f"{ramp}[47000:48001]"
    with pytest.raises(AudioError, match="a segment beyond the end") as caught:
        crop(source, np.random.default_rng(1))
    assert str(caught.value).startswith(source)


def test_speeds_must_begin_with_the_original():
    with pytest.raises(ValueError, match="speeds: .* must begin with 1.0"):
        RandomCrop(100, speeds=[0.9, 1.0])


@pytest.mark.parametrize("frames", [0, 2.0, "long", None])
def test_frames_must_be_a_positive_integer(frames):
    with pytest.raises(ValueError, match="frames: .* is not a positive int"):
        RandomCrop(frames, speeds=[1.0])


@pytest.mark.parametrize("frames", [100, 200, 500, 600])
def test_as_many_frames_remain_in_the_network(tmp_path, frames):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(7), 16000)
    waveform, _ = RandomCrop(frames, [1.0])(str(path), np.random.default_rng(1))
    stage = {"frequency_stride": 2, "time_stride": 4, "blocks": 1}
    network = ReDimNet2(
        LogMel(), 4, [{**stage, "expansion": 1, "reduction": 8}]
    )
    features, _ = network.front_end(waveform.unsqueeze(0))
    maps, _ = network.feature_maps(features)
    assert maps[0].shape[1] == frames


def test_random_numbers_follow_from_seed_epoch_and_utterance():
    def first(seed, epoch, utterance):
        draw = EpochRandom(seed)
        draw.epoch = epoch
        return draw(utterance).random()

    assert first(1, 2, "a") == first(1, 2, "a")
    values = {first(1, 2, "a"), first(2, 2, "a"), first(1, 3, "a")}
    assert len(values | {first(1, 2, "b")}) == 4
