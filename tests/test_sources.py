"""Sources of audio: files, segments of files, and places in shards."""

import os

import numpy as np
import pytest
import soundfile
import torch

from redimnet2_lobes.data.audio import AudioError, normalize_audio
from redimnet2_lobes.data.sources import (
    open_audio,
    segment_source,
    split_source,
)
from redimnet2_lobes.inference.encode import load_source


@pytest.mark.parametrize(
    "path",
    [
        *("a.wav", "a[1:2].wav", "a.wav[1:2", "a.wav1:2]", "[1:2]", "a.wav[]"),
        *("a.wav[1:]", "a.wav[:2]", "a.wav[-1:2]", "a.wav[1.0:2.0]", "a.tar"),
        *("a.wav[1s:2]", "a.wav[1:2s]", "a.wav[.s:2s]", "a.wav[1:2,0:1]"),
        *("a.wav[1:٢]", f"a.wav[1:{'9' * 5000}]", "a.tar:1", "a.tar:1:-2"),
        *("a.tar:1:", "a.ark:12", f"a.tar:1:{'9' * 5000}"),
    ],
)
def test_paths_that_only_look_like_parts_of_files(path):
    assert split_source(path) == (path, ())


def test_paths_of_any_form_have_segments():
    for path in ("a b.wav", "a[1:2].wav", "a:1.wav", "caf\udce9.wav", "a\nb"):
        for place in ("[0:1]", "[1s:2s]", "[.5s:1e-05s]", "[1.s:]"):
            assert split_source(path + place) == (path, (place,))


def whole_file(path, form):
    """Writes noise of 3 s in a format; gives its samples and their rate."""
    rate, channels, *options = form
    options = dict(zip(("format", "subtype"), options, strict=False))
    random = np.random.default_rng(1)
    noise = random.normal(0, 0.1, (3 * rate, channels))
    # Loud and soft, so that MP3 and Vorbis make packets of many sizes.
    noise *= 0.01 + np.sin(np.arange(len(noise)) / rate * 3)[:, None] ** 8
    soundfile.write(path, noise, rate, **options)
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(samples), rate


@pytest.mark.parametrize(
    "form",
    [
        *((16000, 1, "WAV"), (44100, 2, "WAV", "FLOAT"), (8000, 1, "WAV")),
        *((44100, 2, "FLAC"), (16000, 1, "FLAC", "PCM_24")),
        *((44100, 2, "MP3"), (16000, 1, "MP3"), (24000, 1, "MP3")),
        *((44100, 2, "OGG"), (8000, 1, "OGG"), (48000, 1, "OGG", "OPUS")),
        *((8000, 1, "AU", "ULAW"), (22050, 3, "AIFF"), (8000, 1, "W64")),
        *((8000, 1, "WAV", "GSM610"), (16000, 1, "WAV", "IMA_ADPCM")),
    ],
    ids=str,
)
def test_segments_are_pieces_of_the_whole_file(form, tmp_path):
    """In codecs, too, in which libsndfile seeks to a wrong place, or not."""
    path = str(tmp_path / "recording")
    whole, rate = whole_file(path, form)
    end = len(whole)
    for start, stop in (
        *((0, end), (1, 5000), (end - 9001, end - 1), (end - 4000, end)),
        *((start, start + 4000) for start in range(0, end - 4000, 7919)),
    ):
        expected = normalize_audio(whole[start:stop], rate, path)
        found = load_source(f"{path}[{start}:{stop}]")
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        in_seconds = f"{path}[{start / rate:.9f}s:{stop / rate:.9f}s]"
        assert torch.equal(load_source(in_seconds), found)
    rest = load_source(f"{path}[1.25s:]")
    assert torch.equal(rest, load_source(f"{path}[{rate + rate // 4}:{end}]"))


@pytest.fixture
def recording(tmp_path):
    """Noise of 3 s."""
    path = tmp_path / "recording.wav"
    noise = np.random.default_rng(1).normal(0, 0.1, 48000)
    soundfile.write(path, noise, 16000)
    return str(path)


def test_parts_of_a_segment_are_counted_from_its_start(recording):
    whole, _ = soundfile.read(recording, dtype="float32")
    with open_audio(f"{recording}[1000:3000]") as audio:
        assert audio.length == 2000
        assert np.array_equal(audio.read_part(0, 2000), whole[1000:3000])
        assert np.array_equal(audio.read_part(500, 20), whole[1500:1520])


def test_kaldi_ends_a_segment_with_its_file(recording):
    last = load_source(f"{recording}[2.5s:3.0s]")
    for stop in ("3.1", "3.5"):
        assert torch.equal(load_source(f"{recording}[2.5s:{stop}s]"), last)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("[0:48001]", "a segment beyond the end"),
        ("[48000:48001]", "a segment beyond the end"),
        ("[90000:99000]", "a segment beyond the end"),
        ("[0s:3.51s]", "a segment beyond the end"),
        ("[3.1s:3.4s]", "a segment beyond the end"),
        ("[3.1s:]", "a segment beyond the end"),
        ("[3s:]", "empty"),
        ("[1.00001s:1.00002s]", "empty"),
        ("[0:399]", "shorter than 25 ms"),
    ],
)
def test_segments_without_speech_are_named(recording, place, reason):
    with pytest.raises(AudioError) as caught:
        load_source(recording + place)
    assert str(caught.value).startswith(f"{recording}{place}: {reason}")
    assert "\n" not in str(caught.value)


def test_what_a_segment_does_not_hold_is_no_fault_of_it(tmp_path):
    path = tmp_path / "half.wav"
    noise = np.random.default_rng(1).normal(0, 0.1, 32000)
    noise[:16000], noise[20000] = 0, np.nan
    soundfile.write(path, noise, 16000, subtype="FLOAT")
    assert load_source(f"{path}[24000:32000]").shape == (8000,)
    for place, reason in (("[0:16000]", "silent"), ("[16000:32000]", "not fi")):
        with pytest.raises(AudioError, match=reason):
            load_source(f"{path}{place}")


def cut_short(path):
    soundfile.write(
        path,
        np.random.default_rng(1).normal(0, 0.1, 48000),
        16000,
        format="MP3",
    )
    path.write_bytes(path.read_bytes()[:3000])


def of_unknown_length(path):
    """As encoders write it that cannot go back to the header."""
    noise = np.random.default_rng(1).normal(0, 0.1, 48000)
    soundfile.write(path, noise, 16000, format="FLAC")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: None, "missing"),
        (lambda path: path.mkdir(), "unreadable"),
        (lambda path: path.symlink_to(path), "unreadable"),
        (os.mkfifo, "unreadable"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"no audio" * 99), "unreadable"),
        (cut_short, "cut short"),
        (of_unknown_length, "of unknown length"),
    ],
)
def test_segments_of_bad_files_are_named(damage, reason, tmp_path):
    path = tmp_path / "recording"
    damage(path)
    with pytest.raises(AudioError) as caught:
        load_source(f"{path}[1.0s:]")
    assert str(caught.value).startswith(f"{path}[1.0s:]: {reason}; ")
    assert "\n" not in str(caught.value)


def test_a_segment_within_a_file_of_unknown_length(tmp_path):
    of_unknown_length(tmp_path / "recording")
    assert load_source(f"{tmp_path}/recording[1s:2s]").shape == (16000,)
    with pytest.raises(AudioError, match="unreadable; .* allocate"):
        load_source(f"{tmp_path}/recording[0:{10**17}]")


def test_paths_that_no_file_can_have_are_named(recording):
    for path in (f"{recording}/a.wav", f"{'long' * 99}.wav"):
        with pytest.raises(AudioError, match="unreadable; the system says"):
            load_source(f"{path}[0:9000]")


@pytest.mark.parametrize(
    ("path", "start", "stop", "unit", "message"),
    [
        ("a.wav", "", "5", "", "start '' and stop '5' are not whole numbers"),
        ("a.wav", "0", "", "", "start '0' and stop '' are not whole numbers"),
        ("a.wav", "0.0", "5", "", "not whole numbers of samples"),
        ("a.wav", "0", "5e3", "", "not whole numbers of samples"),
        ("a.wav", "-1", "5", "", "not whole numbers of samples"),
        ("a.wav", "1_0", "50", "", "not whole numbers of samples"),
        ("a.wav", "0", "9" * 5000, "", "not whole numbers of samples"),
        ("a.wav", "0", "nan", "s", "not numbers of seconds"),
        ("a.wav", "0", "inf", "s", "not numbers of seconds"),
        ("a.wav", "-0.5", "1", "s", "not numbers of seconds"),
        ("a.wav", "0:1", "2", "s", "not numbers of seconds"),
        ("a.wav", "5", "5", "", "start 5 is not before stop 5"),
        ("a.wav", "10", "9", "", "start 10 is not before stop 9"),
        ("a.wav", "1.5", "1.50", "s", "start 1.5 is not before stop 1.50"),
        ("a.wav[0:9]", "1", "2", "", "a part of a file already"),
        ("a.tar:512:99", "1", "2", "", "a part of a file already"),
    ],
)
def test_faulty_borders(path, start, stop, unit, message):
    with pytest.raises(ValueError, match=message):
        segment_source(path, start, stop, unit)
