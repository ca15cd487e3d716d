"""Reading audio: what is refused, and that the rest arrives as it should."""

import pickle

import numpy as np
import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.inference.interfaces import Pretrained

from redimnet2_lobes.data.audio import (
    AudioError,
    CheckedAudioNormalizer,
    load_waveform,
)


def tone(rate, seconds=1.0, frequency=440.0):
    time = np.arange(round(rate * seconds)) / rate
    return 0.5 * np.sin(2 * np.pi * frequency * time)


def noise(samples=16000):
    return 0.1 * np.random.default_rng(0).standard_normal(samples)


def with_value(value):
    samples = noise().astype(np.float32)
    samples[7000] = value
    return samples


def write_cut_flac(path):
    soundfile.write(path, noise(), 16000)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


BAD_FILES = {
    "unreadable": [
        ("text.wav", lambda path: path.write_text("no audio " * 100)),
        ("bytes.flac", lambda path: path.write_bytes(bytes(range(256)) * 9)),
        ("movie.m4a", lambda path: path.write_bytes(b"\0\0\0\x20ftypM4A ")),
        ("cut.flac", write_cut_flac),
    ],
    "empty": [
        ("zero-bytes.wav", lambda path: path.touch()),
        (
            "header-only.wav",
            lambda path: soundfile.write(path, np.zeros(0), 16000),
        ),
    ],
    "silent": [
        ("zeros.wav", lambda path: soundfile.write(path, np.zeros(9999), 8000)),
        (
            "offset.wav",
            lambda path: soundfile.write(path, np.full(9999, 0.25), 44100),
        ),
        (
            "opposite-phase.wav",
            lambda path: soundfile.write(
                path, np.stack([noise(), -noise()], 1), 16000, subtype="FLOAT"
            ),
        ),
    ],
    "not finite": [
        (
            f"{value}.wav",
            lambda path, value=value: soundfile.write(
                path, with_value(value), 16000, subtype="FLOAT"
            ),
        )
        for value in (np.nan, np.inf, -np.inf, 1e30)
    ],
    "absurd sampling rate": [
        ("slow.wav", lambda path: soundfile.write(path, noise(100), 8)),
        ("fast.wav", lambda path: soundfile.write(path, noise(100), 10**9)),
    ],
    "a folder": [("folder.wav", lambda path: path.mkdir())],
    "missing": [("missing.wav", lambda path: None)],
}


@pytest.mark.parametrize(
    ("reason", "name", "make"),
    [
        (reason, name, make)
        for reason, files in BAD_FILES.items()
        for name, make in files
    ],
)
def test_bad_file_gives_one_line_with_its_name(tmp_path, reason, name, make):
    path = tmp_path / name
    make(path)
    with pytest.raises(AudioError) as caught:
        load_waveform(path)
    assert caught.value.reason == reason
    message = str(caught.value)
    assert message.startswith(f"{path}: {reason}; ")
    assert "\n" not in message
    # Workers send errors to their parent.
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3", "aiff"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_format_gives_the_same_tone(tmp_path, extension, rate, channels):
    path = tmp_path / f"tone.{extension}"
    samples = np.stack([tone(rate)] * channels, axis=1)
    soundfile.write(path, samples, rate)
    waveform = load_waveform(path)
    assert waveform.dtype == torch.float32
    assert waveform.ndim == 1
    assert abs(len(waveform) - 16000) <= 1
    middle = slice(2000, 14000)  # resampling and lossy codecs differ at ends
    expected = torch.from_numpy(tone(16000)).float()
    tolerance = 0.1 if extension in ("ogg", "mp3") else 1e-3
    assert (waveform[middle] - expected[middle]).abs().max() < tolerance


def test_plain_file_is_not_altered(tmp_path):
    samples = noise().astype(np.float32)
    soundfile.write(tmp_path / "plain.wav", samples, 16000, subtype="FLOAT")
    assert np.array_equal(load_waveform(tmp_path / "plain.wav"), samples)


def test_mixing_is_the_mean_of_the_channels(tmp_path):
    left, right = noise(), tone(16000)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([left, right], 1), 16000, subtype="DOUBLE")
    expected = torch.from_numpy((left + right) / 2).float()
    torch.testing.assert_close(load_waveform(path), expected)


def test_other_target_rate(tmp_path):
    soundfile.write(tmp_path / "tone.wav", tone(16000), 16000)
    assert load_waveform(str(tmp_path / "tone.wav"), 8000).shape == (8000,)


def test_short_file_is_read(tmp_path):
    soundfile.write(tmp_path / "short.wav", noise(1600), 16000)
    assert load_waveform(tmp_path / "short.wav").shape == (1600,)


def test_float32_whatever_the_default_type(tmp_path):
    soundfile.write(tmp_path / "tone.wav", tone(44100), 44100)
    torch.set_default_dtype(torch.float64)
    try:
        waveform = load_waveform(tmp_path / "tone.wav")
    finally:
        torch.set_default_dtype(torch.float32)
    assert waveform.dtype == torch.float32


def test_odd_rate_needs_no_giant_filter():
    # The exact filter for 44099 Hz has 16000 x 88000 taps.
    normalizer = CheckedAudioNormalizer()
    audio = torch.from_numpy(tone(44099)).float()
    waveform = normalizer(audio, 44099)
    expected = torch.from_numpy(tone(16000)).float()
    assert (waveform - expected)[2000:14000].abs().max() < 0.005
    (resampler,) = normalizer._cached_resamplers.values()
    taps = sum(buffer.numel() for buffer in resampler.buffers())
    assert 0 < taps < 10_000_000


def test_kept_channels():
    audio = torch.from_numpy(np.stack([noise(), -noise()], 1)).float()
    normalizer = CheckedAudioNormalizer(sample_rate=8000, mix="keep")
    assert normalizer(audio, 16000).shape == (8000, 2)
    with pytest.raises(AudioError, match="silent"):
        normalizer(torch.zeros(100, 2), 16000)


def test_speechbrain_model_reads_through_it(tmp_path):
    class Model(Pretrained):
        """An interface without modules: here, only reading counts."""

        HPARAMS_NEEDED = []

    hparams = load_hyperpyyaml(
        "audio_normalizer: "
        "!new:redimnet2_lobes.CheckedAudioNormalizer\n"
        "  sample_rate: 16000\n"
    )
    model = Model(modules={}, hparams=hparams)

    good = tmp_path / "stereo.wav"
    soundfile.write(good, np.stack([tone(44100)] * 2, 1), 44100)
    assert torch.equal(model.load_audio(str(good)), load_waveform(good))

    bad = tmp_path / "silent.wav"
    soundfile.write(bad, np.zeros((800, 2)), 16000)
    with pytest.raises(AudioError, match="^audio: silent; .*$"):
        model.load_audio(str(bad))
