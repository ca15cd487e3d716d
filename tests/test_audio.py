"""Reading audio: what is refused, and that the rest arrives as it should."""

import contextlib
import io
import os
import pickle

import numpy as np
import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.inference.interfaces import Pretrained

from redimnet2_lobes.data.audio import (
    HEADERLESS,
    AudioError,
    CheckedAudioNormalizer,
    find_audio,
    list_audio,
    load_waveform,
)
from redimnet2_lobes.data.sources import open_audio
from redimnet2_lobes.inference.encode import encode_utterances
from redimnet2_lobes.inference.long_files import encode_files, read_pieces


def tone(rate, seconds=1.0, frequency=440.0):
    time = np.arange(round(rate * seconds)) / rate
    return 0.5 * np.sin(2 * np.pi * frequency * time)


def noise(samples=16000):
    return 0.1 * np.random.default_rng(0).standard_normal(samples)


def with_value(value):
    samples = noise().astype(np.float32)
    samples[7000] = value
    return samples


def opposed(samples, share=1):
    """Stereo whose right channel is the left one upside down."""
    return np.stack([samples, -share * samples], axis=1)


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
    "has no header": [
        (f"samples{extension}", lambda path: path.write_bytes(bytes(9999)))
        for extension in (*HEADERLESS, ".RAW", ".Pcm")
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
    ],
    "channels cancel each other": [
        *(
            (
                f"opposite{extension}",
                lambda path: soundfile.write(path, opposed(noise()), 44100),
            )
            for extension in (".wav", ".flac", ".mp3")
        ),
        (
            "opposite.opus",
            lambda path: soundfile.write(
                path, opposed(noise()), 16000, format="OGG", subtype="OPUS"
            ),
        ),
        (
            "nearly.wav",
            lambda path: soundfile.write(path, opposed(noise(), 0.985), 16000),
        ),
        (
            "offset.wav",
            lambda path: soundfile.write(path, opposed(noise()) + 0.2, 16000),
        ),
        (
            "four.wav",
            lambda path: soundfile.write(
                path, np.hstack([opposed(noise()), opposed(tone(16000))]), 16000
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


@pytest.mark.parametrize(
    "channels",
    [
        opposed(noise(), 0.9),
        opposed(noise(), 0),
        opposed(noise(), -1),
        np.stack([noise(), np.random.default_rng(1).normal(0, 0.1, 16000)], 1),
        np.stack([noise(), np.roll(noise(), 7)], 1),
        1e-4 * np.stack([noise(), np.roll(noise(), 7)], 1),
    ],
)
def test_stereo_that_leaves_something_is_mixed(tmp_path, channels):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, channels, 16000, subtype="FLOAT")
    expected = torch.from_numpy(channels.mean(1)).float()
    assert torch.allclose(load_waveform(path), expected, atol=1e-6)


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


def embedding(encode, path):
    def encode_batch(wavs, wav_lens):
        return wavs[:, None, :9]

    return encode(encode_batch, [path])[path]


READERS = {
    "load_waveform": lambda path: load_waveform(path)[:9],
    "read_pieces": lambda path: next(read_pieces(path, 60))[:9],
    "open_audio": lambda path: read_start(path),
    "encode_utterances": lambda path: embedding(encode_utterances, path),
    "encode_files": lambda path: embedding(
        lambda *arguments: encode_files(*arguments)[0], path
    ),
}


def read_start(path):
    with open_audio(path) as audio:
        return torch.from_numpy(audio.read_part(0, 9))


@pytest.mark.parametrize("reader", READERS)
def test_without_header_every_reader_says_the_same(tmp_path, reader):
    path = tmp_path / "samples.raw"
    path.write_bytes(np.arange(9999, dtype=np.int16).tobytes())
    with pytest.raises(AudioError) as caught:
        READERS[reader](str(path))
    assert str(caught.value) == (
        f"{path}: has no header; convert it, for example with sox -r RATE -e "
        "signed -b 16 -c 1"
    )


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("extension", "form"),
    [
        (".mp3", "WAV"),
        (".wav", "MP3"),
        (".raw", "WAV"),
        (".PCM", "FLAC"),
        (".m4a", "OGG"),
        ("", "WAV"),
    ],
)
def test_an_ending_that_lies_does_no_harm(tmp_path, reader, extension, form):
    path = tmp_path / f"a{extension}"
    with open(path, "wb") as file:
        soundfile.write(file, noise(), 16000, format=form)
    expected, _ = soundfile.read(io.BytesIO(path.read_bytes()))
    found = READERS[reader](str(path))
    np.testing.assert_allclose(found, expected[:9], atol=1e-6)


def test_audio_that_may_not_be_read(tmp_path, monkeypatch):
    def denied(path, *_):
        raise PermissionError(13, "Permission denied", path)

    path = tmp_path / "secret.wav"
    soundfile.write(path, noise(), 16000)
    monkeypatch.setattr(os, "open", denied)
    for reader in (load_waveform, lambda path: next(read_pieces(path, 60))):
        with pytest.raises(AudioError) as caught:
            reader(str(path))
        assert str(caught.value).startswith(
            f"{path}: unreadable; the system says 'Permission denied', "
        )


@contextlib.contextmanager
def without_privileges():
    """For root there is no lack of permission."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def folder(tmp_path):
    """Two audio files, and where to put links to others."""
    for name in ("recordings/a.wav", "recordings/x/b.FLAC", "pool/c.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"audio")
    return tmp_path / "recordings"


def names_in(folder, **options):
    found = list_audio(folder, **options)
    names = [os.path.relpath(path, folder) for path in found.paths]
    assert names == sorted(names)
    return names, found.left_out.removeprefix(f"{folder}: ")


OWN = ["a.wav", "x/b.FLAC"]
ONE_LINK = "1 left out: 1 link to what is there already"
TWO_LINKS = "2 left out: 2 links to what is there already"


@pytest.mark.parametrize(
    ("links", "left_out"),
    [
        ({"loop": "."}, ONE_LINK),
        ({"x/up": ".."}, ONE_LINK),
        ({"x/far/up": "../../.."}, ONE_LINK),  # above the folder itself
        ({"one": ".", "two": "."}, TWO_LINKS),
        ({"x/one": "../y", "y/two": "../x"}, TWO_LINKS),
        ({"again": "x"}, ONE_LINK),
        ({"a2.wav": "a.wav"}, ONE_LINK),
        ({"0.wav": "x/b.FLAC"}, ONE_LINK),
        ({"0.wav": "1.wav", "1.wav": "a.wav"}, TWO_LINKS),
    ],
)
def test_links_to_what_is_there_add_nothing(folder, links, left_out):
    for name, target in links.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(target)
    assert names_in(folder) == (OWN, left_out)
    assert find_audio(folder) == list_audio(folder)


@pytest.mark.parametrize(
    ("links", "names"),
    [
        ({"c.wav": "../pool/c.wav"}, ["c.wav"]),
        ({"speaker": "../pool"}, ["speaker/c.wav"]),
        ({"c.wav": "../chain", "../chain": "pool/c.wav"}, ["c.wav"]),
        ({"c.wav": "c.dat", "c.dat": "../pool/c.wav"}, ["c.wav"]),
        ({"c.wav": ".pool/c.wav", ".pool": "../pool"}, ["c.wav"]),
        ({"c.wav": "../recordings/.d.wav"}, ["c.wav"]),
        ({"lost.wav": "nowhere.wav"}, ["lost.wav"]),
        ({"loop.wav": "loop.wav"}, ["loop.wav"]),
    ],
)
def test_links_to_elsewhere_stay_as_they_are(folder, links, names):
    (folder / ".d.wav").touch()
    for name, target in links.items():
        (folder / name).symlink_to(target)
    found, _ = names_in(folder)
    assert found == sorted(OWN + names)


def test_two_links_to_one_place_elsewhere_are_one(folder):
    (folder / "one").symlink_to("../pool")
    (folder / "two").symlink_to("../pool")
    (folder / "0.wav").symlink_to("../pool/c.wav")
    names, left_out = names_in(folder)
    # The files of a folder before links to them.
    assert names == ["a.wav", "one/c.wav", "x/b.FLAC"]
    assert left_out == TWO_LINKS


def test_a_farm_of_links(folder, tmp_path):
    farm = tmp_path / "farm"
    farm.mkdir()
    (farm / "anna").symlink_to(folder / "x")
    (farm / "bea").mkdir()
    (farm / "bea" / "1.wav").symlink_to(folder / "a.wav")
    (farm / "bea" / "2.wav").symlink_to(tmp_path / "pool" / "c.wav")
    expected = ["anna/b.FLAC", "bea/1.wav", "bea/2.wav"], ""
    assert names_in(farm) == expected
    # The folder itself may be a link.
    (tmp_path / "wav").symlink_to(farm)
    assert names_in(tmp_path / "wav") == expected
    assert names_in(f"{tmp_path}/wav/../wav") == expected


def test_what_is_left_out_is_counted(folder):
    for name in ("1.txt", "2.TXT", "3.json", "README", "b.pdf", "c.md"):
        (folder / name).touch()
    for name in (".DS_Store", "._a.wav", ".cache/d.wav"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "lost").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.wav")
    names, left_out = names_in(folder)
    assert names == OWN
    assert left_out == (
        "8 left out: 6 files without an ending of audio (.txt, .json, .md, "
        "...), 1 link to nowhere, 1 pipe or the like"
    )
    assert names_in(folder, without=[str(folder / "x")])[0] == ["a.wav"]
    (folder / "a.wav").unlink()
    (folder / "x" / "b.FLAC").unlink()
    with pytest.raises(AudioError) as caught:
        find_audio(folder)
    assert str(caught.value).startswith(
        f"{folder}: there is no audio file in it (8 left out: 6 files "
    )


@pytest.mark.parametrize(
    "name",
    [
        *("a.oga", "a.OPUS", "a.wave", "a.nist", "a.wv1", "a.WV2", "a.raw"),
        *("a.webm", "a.mp4", "a.mka", "a.mkv", "a.MOV", "a.3gp", "a.amr"),
        *("a.ac3", "a.ape", "a.wv", "a.mp2", "a.pcm", "a.M4A"),
    ],
)
def test_audio_by_its_ending(tmp_path, name):
    (tmp_path / name).touch()
    assert names_in(tmp_path) == ([name], "")


def test_what_libsndfile_writes_is_found(tmp_path):
    for form in sorted(soundfile.available_formats()):
        if form in ("RAW", "MAT4", "MAT5", "MPC2K", "XI", "SD2", "WAVEX"):
            continue  # no speech is kept in these, or they have other endings
        ending = {"SVX": "8svx", "NIST": "sph", "IRCAM": "sf"}.get(form, form)
        path = tmp_path / f"a.{ending.lower()}"
        subtype = soundfile.default_subtype(form)
        rate = 8000 if form == "WVE" else 16000
        soundfile.write(path, noise(), rate, subtype, format=form)
        assert str(path) in find_audio(tmp_path).paths
        assert len(load_waveform(path)) > 15000


def test_a_folder_that_may_not_be_read(folder):
    (folder / "x").chmod(0)
    try:
        with without_privileges(), pytest.raises(PermissionError) as caught:
            find_audio(folder)
    finally:
        (folder / "x").chmod(0o700)
    assert caught.value.filename in str(folder / "x")


def test_codecs_that_cannot_seek(tmp_path):
    path = tmp_path / "gsm.wav"
    wave = np.sin(np.arange(16000) / 9)
    soundfile.write(path, wave, 8000, subtype="GSM610")
    assert len(load_waveform(path)) == 2 * soundfile.info(path).frames
