"""Data preparation: what is used, converted, skipped, kept out and reused."""

import csv
import importlib
import logging
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from speechbrain.dataio.dataset import DynamicItemDataset

from redimnet2_lobes.data import audio_checks
from redimnet2_lobes.data.audio import load_waveform

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPE = REPOSITORY / "recipes" / "VoxCeleb"
sys.path.insert(0, str(RECIPE))
voxceleb_prepare = importlib.import_module("voxceleb_prepare")
prepare_voxceleb = voxceleb_prepare.prepare_voxceleb


def tone(rate=16000, seconds=1.0, frequency=440.0):
    time = np.arange(round(rate * seconds)) / rate
    return 0.5 * np.sin(2 * np.pi * frequency * time)


def write(corpus, name, samples=None, rate=16000, **options):
    path = corpus / "wav" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(
        path, tone() if samples is None else samples, rate, **options
    )
    return path


@pytest.fixture
def corpus(tmp_path):
    """A clean corpus: four speakers, two sessions, two utterances each."""
    for speaker in "abcd":
        for session in "xy":
            for number in "12":
                write(tmp_path / "corpus", f"{speaker}/{session}/{number}.wav")
    return tmp_path / "corpus"


@pytest.fixture
def save(tmp_path):
    return tmp_path / "save"


@pytest.fixture
def checked(monkeypatch, tmp_path):
    """Give a function that tells which files were decoded since its last call.

    The workers are other processes: they leave a note in a file.
    """
    notes = tmp_path / "decoded.txt"
    notes.touch()

    def noting(path, sample_rate):
        with open(notes, "a") as stream:
            stream.write(f"{Path(path).relative_to(Path(path).parents[2])}\n")
        return load_waveform(path, sample_rate)

    def read_notes():
        names = notes.read_text().splitlines()
        notes.write_text("")
        return sorted(names)

    monkeypatch.setattr(audio_checks, "load_waveform", noting)
    return read_notes


def rows(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def trained(save):
    return [row["ID"] for row in rows(save / "train.csv")]


def report(save):
    return {
        row["file"]: (row["action"], row["reason"])
        for row in rows(save / "preparation_report.csv")
    }


def snapshot(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def trial_list(path, *files):
    path.write_text("".join(f"1 {file} {file}\n" for file in files))
    return path


def test_clean_corpus(corpus, save):
    prepare_voxceleb(corpus, save, workers=2)
    table = rows(save / "train.csv")
    assert list(table[0]) == ["ID", "duration", "wav", "spk_id"]
    assert trained(save) == [
        f"{speaker}/{session}/{number}"
        for speaker in "abcd"
        for session in "xy"
        for number in "12"
    ]
    for row in table:
        assert float(row["duration"]) == 1.0
        assert row["wav"] == f"$data_root/wav/{row['ID']}.wav"
        assert row["spk_id"] == row["ID"][0]
    assert report(save) == {}


def test_every_bad_kind(corpus, save, caplog):
    nan = tone().astype(np.float32)
    nan[500] = np.nan
    write(corpus, "bad/x/text.wav").write_bytes(b"no audio " * 100)
    write(corpus, "bad/x/m4a.wav").rename(corpus / "wav/bad/x/m4a.m4a")
    (corpus / "wav/bad/x/m4a.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    write(corpus, "bad/x/zero-bytes.wav").write_bytes(b"")
    write(corpus, "bad/x/header-only.wav", np.zeros(0))
    write(corpus, "bad/x/silent.wav", np.zeros(16000))
    write(
        corpus,
        "bad/x/opposite.wav",
        np.stack([tone(), -tone()], 1),
        subtype="FLOAT",
    )
    write(corpus, "bad/x/nan.wav", nan, subtype="FLOAT")
    write(corpus, "bad/x/short.wav", tone(seconds=0.1))
    write(
        corpus, "bad/x/short-stereo.wav", np.stack([tone(seconds=0.1)] * 2, 1)
    )
    (corpus / "wav/bad/x/link.wav").symlink_to("nowhere.wav")
    write(corpus, "bad/misplaced.wav")
    write(corpus, "bad/x/deep/misplaced.wav")
    write(corpus, "bad/x/price$tag.wav")
    write(corpus, "bad/x/two\nlines.wav")
    latin = os.fsencode(corpus / "wav/bad/x") + b"/caf\xe9.wav"
    os.rename(write(corpus, "bad/x/latin.wav"), latin)
    write(corpus, "bad/x/two.wav")
    write(corpus, "bad/x/two.flac")
    write(corpus, "odd/x/stereo.wav", np.stack([tone(), tone()], 1))
    write(corpus, "odd/x/8k.wav", tone(8000), 8000)
    write(corpus, "odd/x/44k.flac", tone(44100), 44100)
    write(corpus, "odd/x/44k-stereo.WAV", np.stack([tone(44100)] * 2, 1), 44100)
    (corpus / "wav/bad/x/notes.txt").write_text("not audio, not reported")
    write(corpus, "bad/x/.hidden.wav")
    originals = snapshot(corpus)

    with caplog.at_level(logging.INFO):
        prepare_voxceleb(corpus, save, minimum_seconds=0.5, workers=2)

    odd_name = "name with $, control or odd characters"
    skipped = {
        "text.wav": "unreadable",
        "m4a.m4a": "unreadable",
        "zero-bytes.wav": "empty",
        "header-only.wav": "empty",
        "silent.wav": "silent",
        "opposite.wav": "channels cancel each other",
        "nan.wav": "not finite",
        "short.wav": "shorter than 0.5 s",
        "short-stereo.wav": "shorter than 0.5 s",
        "link.wav": "missing",
        "deep/misplaced.wav": "not in wav/<speaker>/<session>/",
        "two.flac": "second file of one utterance",
    }
    assert report(save) == {
        **{f"bad/x/{name}": ("skipped", why) for name, why in skipped.items()},
        "bad/misplaced.wav": ("skipped", "not in wav/<speaker>/<session>/"),
        "bad/x/price$tag.wav": ("skipped", odd_name),
        r"bad/x/two\nlines.wav": ("skipped", odd_name),
        r"bad/x/caf\udce9.wav": ("skipped", odd_name),
        "odd/x/stereo.wav": ("converted", "2 channels"),
        "odd/x/8k.wav": ("converted", "8000 Hz"),
        "odd/x/44k.flac": ("converted", "44100 Hz"),
        "odd/x/44k-stereo.WAV": ("converted", "2 channels, 44100 Hz"),
    }
    odd = ["odd/x/44k", "odd/x/44k-stereo", "odd/x/8k", "odd/x/stereo"]
    assert trained(save)[8] == "bad/x/two"
    assert trained(save)[17:] == odd
    assert snapshot(corpus) == originals
    # No copies of what is not used, and nothing left over.
    assert sorted(
        path.relative_to(save).as_posix() for path in save.rglob("*.*")
    ) == sorted(
        [f"converted/{name}.wav" for name in odd]
        + ["preparation_index.tsv", "preparation_report.csv", "train.csv"]
    )
    for line in (
        "Preparation: 2 skipped: empty",
        "Preparation: 1 skipped: channels cancel each other",
        "Preparation: 1 skipped: silent",
        "Preparation: 2 skipped: shorter than 0.5 s",
        "Preparation: 1 skipped: not finite",
        "Preparation: 1 converted: 8000 Hz",
        "Preparation: 21 utterances of 6 speakers for training, 0.01 hours",
    ):
        assert line in caplog.messages


def test_converted_copies_sound_as_the_originals(corpus, save):
    peak = 3.0  # a fixed-point copy would clip it
    samples = np.stack([2 * peak * tone(44100, frequency=1000)] * 2, 1)
    original = write(corpus, "odd/x/1.wav", samples, 44100, subtype="FLOAT")
    prepare_voxceleb(corpus, save, workers=1)
    copy = save / "converted" / "odd" / "x" / "1.wav"
    signal, rate = soundfile.read(copy, always_2d=True)
    assert rate == 16000
    assert signal.shape == (16000, 1)
    spectrum = np.abs(np.fft.rfft(signal[:, 0]))
    assert spectrum.argmax() == 1000  # one bin per Hz
    assert np.abs(signal).max() == pytest.approx(peak, rel=0.01)
    assert np.array_equal(load_waveform(copy), load_waveform(original))


def test_csv_loads_in_speechbrain(corpus, save):
    write(corpus, "odd/x/8k, outdoors.wav", tone(8000), 8000)
    prepare_voxceleb(corpus, save, workers=1)
    dataset = DynamicItemDataset.from_csv(
        save / "train.csv",
        replacements={"data_root": corpus, "save_root": save},
        output_keys=["id", "wav", "duration", "spk_id"],
    )
    assert len(dataset) == 17
    for item in dataset:
        waveform = load_waveform(item["wav"])
        assert len(waveform) == round(16000 * item["duration"])
        assert item["spk_id"] == item["id"].split("/")[0]


def test_result_does_not_depend_on_the_workers_or_the_place(
    corpus, save, tmp_path
):
    write(corpus, "a-b/x/1.wav", np.zeros(16000))
    write(corpus, "a-b/x/2.wav", tone(8000), 8000)
    prepare_voxceleb(corpus, save / "one", workers=1)
    corpus = corpus.rename(tmp_path / "moved")
    prepare_voxceleb(str(corpus), str(save / "three"), workers=3)
    for name in ("train.csv", "preparation_report.csv"):
        text = (save / "one" / name).read_text()
        assert text == (save / "three" / name).read_text()
        assert str(tmp_path) not in text
    assert str(tmp_path) not in (
        save / "one" / "preparation_index.tsv"
    ).read_text(encoding="utf-8")


def test_test_speakers_and_validation_utterances_stay_out(
    corpus, save, tmp_path, caplog
):
    with caplog.at_level(logging.INFO):
        prepare_voxceleb(
            corpus,
            save,
            # A list may name files of another corpus, or in another format.
            test_trials=trial_list(
                tmp_path / "test.txt", "a/x/1.wav", "elsewhere/x/1.wav"
            ),
            validation_trials=trial_list(
                tmp_path / "valid.txt", "b/x/1.wav", "c/y/2.flac"
            ),
            workers=1,
        )
    expected = [
        f"{speaker}/{session}/{number}"
        for speaker in "bcd"
        for session in "xy"
        for number in "12"
    ]
    expected.remove("b/x/1")
    expected.remove("c/y/2")
    assert trained(save) == expected
    assert report(save) == {}
    assert "Preparation: 4 kept out: test speaker" in caplog.messages
    assert "Preparation: 2 kept out: validation utterance" in caplog.messages
    assert not [
        record for record in caplog.records if record.levelname == "WARNING"
    ]


def test_validating_on_test_speakers_is_not_silent(
    corpus, save, tmp_path, caplog
):
    trials = trial_list(tmp_path / "trials.txt", "a/x/1.wav")
    prepare_voxceleb(corpus, save, trials, trials, workers=1)
    assert [
        record.message
        for record in caplog.records
        if record.levelname == "WARNING" and "share speakers" in record.message
    ]


@pytest.mark.parametrize(
    "name", ["a/1.wav", "wav/a/x/1.wav", "/a/x/1.wav", "./a/1.wav"]
)
def test_trial_names_that_match_nothing_are_errors(
    corpus, save, tmp_path, name
):
    trials = trial_list(tmp_path / "valid.txt", name)
    with pytest.raises(ValueError, match="speaker/session/utterance") as caught:
        prepare_voxceleb(corpus, save, validation_trials=trials)
    assert str(trials) in str(caught.value)
    assert repr(name) in str(caught.value)


def test_second_call_decodes_nothing(corpus, save, checked):
    write(corpus, "odd/x/1.wav", tone(8000), 8000)
    prepare_voxceleb(corpus, save, workers=2)
    assert len(checked()) == 17
    before = snapshot(save)
    prepare_voxceleb(corpus, save, workers=2)
    assert checked() == []
    assert snapshot(save) == before


def test_changed_new_removed_and_skipped_files_are_noticed(
    corpus, save, checked
):
    write(corpus, "bad/x/1.wav", np.zeros(16000))
    odd = write(corpus, "odd/x/1.wav", tone(8000), 8000)
    prepare_voxceleb(corpus, save, workers=1)
    checked()

    changed = write(corpus, "a/x/1.wav", tone(seconds=2.0))
    same_size = write(corpus, "a/x/2.wav", np.zeros(16000))
    os.utime(same_size, ns=(0, 0))
    write(corpus, "a/x/0.wav")
    write(corpus, "zz/x/1.wav")
    (corpus / "wav/b/y/1.wav").unlink()
    (save / "converted/odd/x/1.wav").unlink()
    prepare_voxceleb(corpus, save, workers=1)

    assert checked() == sorted(
        [f"a/x/{number}.wav" for number in "012"]
        + ["zz/x/1.wav", "bad/x/1.wav", "odd/x/1.wav"]
    )
    table = {row["ID"]: row for row in rows(save / "train.csv")}
    assert float(table["a/x/1"]["duration"]) == 2.0
    assert "zz/x/1" in table
    assert "a/x/0" in table
    assert "a/x/2" not in table
    assert "b/y/1" not in table
    assert changed.exists()
    assert report(save) == {
        "a/x/2.wav": ("skipped", "silent"),
        "bad/x/1.wav": ("skipped", "silent"),
        "odd/x/1.wav": ("converted", "8000 Hz"),
    }
    assert np.array_equal(
        load_waveform(save / "converted/odd/x/1.wav"), load_waveform(odd)
    )


def test_settings_are_applied_to_what_is_reused(
    corpus, save, tmp_path, checked
):
    write(corpus, "e/x/1.wav", tone(seconds=0.7))
    write(corpus, "e/x/2.wav", tone(8000, seconds=0.2), 8000)
    prepare_voxceleb(corpus, save, minimum_seconds=0.5, workers=1)
    assert trained(save)[16:] == ["e/x/1"]
    checked()
    prepare_voxceleb(corpus, save, minimum_seconds=0.8, workers=1)
    assert checked() == ["e/x/1.wav", "e/x/2.wav"]
    assert trained(save)[16:] == []
    prepare_voxceleb(corpus, save, minimum_seconds=0.1, workers=1)
    assert trained(save)[16:] == ["e/x/1", "e/x/2"]
    checked()
    trials = trial_list(tmp_path / "test.txt", "a/x/1.wav")
    prepare_voxceleb(corpus, save, trials, minimum_seconds=0.1, workers=1)
    assert checked() == []
    assert trained(save)[0] == "b/x/1"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (RuntimeError("no space left"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_fault_while_converting_leaves_nothing_half_written(
    corpus, save, monkeypatch, fault, expected
):
    for number in range(20):
        write(corpus, f"odd/x/{number:02d}.wav", tone(8000), 8000)
    write_audio = soundfile.write

    def failing_write(path, *arguments):
        write_audio(path, *arguments)
        if "13.wav" in str(path):
            os.truncate(path, 1000)
            raise fault

    monkeypatch.setattr(soundfile, "write", failing_write)
    with pytest.raises(expected) as caught:
        prepare_voxceleb(corpus, save, workers=2)
    if expected is OSError:
        assert "odd/x/13.wav: cannot write" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert {path.name for path in save.iterdir()} <= {
        "converted",
        "preparation_index.tsv.part",
    }
    left = list((save / "converted/odd/x").iterdir())
    assert save / "converted/odd/x/13.wav" not in left
    for path in left:
        assert soundfile.info(path).frames == 16000
        assert not path.name.startswith(".")

    monkeypatch.setattr(soundfile, "write", write_audio)
    prepare_voxceleb(corpus, save, workers=2)
    assert len(trained(save)) == 36


def test_fault_keeps_the_earlier_result(corpus, save, monkeypatch):
    prepare_voxceleb(corpus, save, workers=1)
    before = snapshot(save)
    write(corpus, "zz/x/1.wav")

    def interrupted(path, sample_rate):
        raise KeyboardInterrupt

    monkeypatch.setattr(audio_checks, "load_waveform", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_voxceleb(corpus, save, workers=1)
    after = snapshot(save)
    assert after.pop(Path("preparation_index.tsv.part")) is not None
    assert after == before


def test_killed_worker_is_one_line(corpus, save, monkeypatch):
    monkeypatch.setattr(
        audio_checks, "load_waveform", lambda path, rate: os._exit(9)
    )
    with pytest.raises(OSError, match="^.*workers was killed.*$"):
        prepare_voxceleb(corpus, save, workers=2)
    assert [path.name for path in save.iterdir()] == [
        "preparation_index.tsv.part"
    ]


def test_nothing_left_is_an_error_and_the_report_tells_why(save, tmp_path):
    corpus = tmp_path / "corpus"
    write(corpus, "a/x/1.wav", np.zeros(16000))
    write(corpus, "b/x/1.wav")
    trials = trial_list(tmp_path / "test.txt", "b/x/1.wav")
    with pytest.raises(ValueError, match="no utterance is left") as caught:
        prepare_voxceleb(corpus, save, trials, workers=1)
    message = str(caught.value)
    assert "1 skipped: silent" in message
    assert "1 kept out: test speaker" in message
    assert "\n" not in message
    assert report(save) == {"a/x/1.wav": ("skipped", "silent")}
    assert not (save / "train.csv").exists()


def test_a_speaker_whose_name_speechbrain_cannot_keep(corpus, save, tmp_path):
    write(corpus, "a => b/session/1.wav")
    with pytest.raises(ValueError, match="wav: speaker 'a => b' has .* rename"):
        prepare_voxceleb(corpus, save, workers=1)
    assert not save.exists()
    # Test speakers never become classes.
    trials = tmp_path / "trials.csv"
    name = "a => b/session/1.wav"
    trials.write_text(f"label,enrol,test\n1,{name},{name}\n")
    prepare_voxceleb(corpus, save, test_trials=trials, workers=1)
    assert trained(save)


def test_corpus_without_audio_or_without_wav(save, tmp_path):
    with pytest.raises(ValueError, match="make demo") as caught:
        prepare_voxceleb(tmp_path / "nowhere", save)
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert not save.exists()
    (tmp_path / "corpus" / "wav").mkdir(parents=True)
    with pytest.raises(ValueError, match="data_folder .*it holds no audio"):
        prepare_voxceleb(tmp_path / "corpus", save)


def garble(path):
    """Spoil a file without a trace in its size and time."""
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_headers_alone_give_the_same_list(corpus, save, checked):
    write(corpus, "e/x/plain.wav", tone(seconds=0.7))
    write(corpus, "e/x/plain.flac.flac", tone(seconds=0.7))
    write(corpus, "e/x/float.wav", tone(seconds=0.7), subtype="FLOAT")
    write(corpus, "e/x/vorbis.ogg", tone(seconds=0.7))
    write(corpus, "e/x/8k.flac", tone(8000), 8000)
    write(corpus, "e/x/stereo.wav", np.stack([tone()] * 2, 1))
    write(corpus, "e/x/short.wav", tone(seconds=0.3))
    write(corpus, "e/x/text.wav").write_bytes(b"no audio " * 100)
    write(corpus, "e/x/header-only.wav", np.zeros(0))
    cut = write(corpus, "e/x/cut.wav")
    os.truncate(cut, cut.stat().st_size - 2)
    prepare_voxceleb(
        corpus,
        save / "decoded",
        check_audio=True,
        minimum_seconds=0.5,
        workers=1,
    )
    checked()
    prepare_voxceleb(
        corpus,
        save / "headers",
        check_audio=False,
        minimum_seconds=0.5,
        workers=1,
    )
    assert checked() == ["e/x/8k.flac", "e/x/stereo.wav"]
    for name in ("train.csv", "preparation_report.csv"):
        text = (save / "decoded" / name).read_text()
        assert text == (save / "headers" / name).read_text()
    assert report(save / "headers")["e/x/cut.wav"] == ("skipped", "cut off")
    assert len(trained(save / "headers")) == 22


def test_length_in_the_header_of_a_stream_is_not_believed(corpus, save):
    path = write(corpus, "e/x/stream.wav")
    with open(path, "r+b") as stream:
        stream.seek(40)
        stream.write(b"\xff\xff\xff\xff")
    prepare_voxceleb(corpus, save, check_audio=False, workers=1)
    assert rows(save / "train.csv")[-1]["duration"] == "1.0"


def test_second_call_reads_no_headers(corpus, save):
    prepare_voxceleb(corpus, save, check_audio=False, workers=1)
    garble(corpus / "wav/a/x/1.wav")
    prepare_voxceleb(corpus, save, check_audio=False, workers=1)
    assert trained(save)[0] == "a/x/1"
    os.utime(corpus / "wav/a/x/1.wav")
    prepare_voxceleb(corpus, save, check_audio=False, workers=1)
    assert report(save) == {"a/x/1.wav": ("skipped", "unreadable")}


def test_headers_read_are_no_audio_checked(corpus, save, checked):
    prepare_voxceleb(corpus, save, check_audio=False, workers=1)
    prepare_voxceleb(corpus, save, check_audio=True, workers=1)
    assert len(checked()) == 16
    prepare_voxceleb(corpus, save, check_audio=False, workers=1)
    prepare_voxceleb(corpus, save, check_audio=True, workers=1)
    assert checked() == []


def test_killed_call_is_resumed(corpus, save, checked, monkeypatch):
    noting = audio_checks.load_waveform
    part = save / "preparation_index.tsv.part"

    def dying(path, sample_rate):
        if path.endswith("c/x/2.wav"):
            deadline = time.monotonic() + 60
            while "b/y/2" not in part.read_text():
                assert time.monotonic() < deadline
            os._exit(9)
        return noting(path, sample_rate)

    monkeypatch.setattr(audio_checks, "load_waveform", dying)
    with pytest.raises(OSError, match="killed"):
        prepare_voxceleb(corpus, save, workers=1)
    with open(part, "a") as stream:
        stream.write("c/x/2.wav\t\t\tdamaged\t\n")
        stream.write("c/x/1.wav\t32")  # cut off while being written
    # A second one, killed at once, loses nothing.
    monkeypatch.setattr(
        audio_checks, "load_waveform", lambda path, rate: os._exit(9)
    )
    with pytest.raises(OSError, match="killed"):
        prepare_voxceleb(corpus, save, workers=1)
    monkeypatch.setattr(audio_checks, "load_waveform", noting)
    checked()
    prepare_voxceleb(corpus, save, workers=1)
    assert checked() == [
        f"{speaker}/{session}/{number}.wav"
        for speaker in "cd"
        for session in "xy"
        for number in "12"
    ]
    assert len(trained(save)) == 16
    assert not part.exists()


def test_counts_of_official_corpora(save, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        voxceleb_prepare,
        "CORPORA",
        {
            "voxceleb1-dev": (2, 3),
            "voxceleb1-test": (1, 1),
            "voxceleb2-dev": (1, 2),
            "voxceleb2-test": (1, 1),
        },
    )
    corpus = tmp_path / "corpus"
    for name in (
        *("id10001/x/1", "id10001/x/2", "id11251/x/1", "id10270/x/1"),
        *("id00012/x/1", "id00012/x/2", "id09272/x/1", "someone/x/1"),
    ):
        write(corpus, f"{name}.wav")
    everything = list(voxceleb_prepare.CORPORA)
    # Those that stay out of training count as well.
    trials = trial_list(tmp_path / "test.txt", "id10270/x/1.wav")
    prepare_voxceleb(corpus, save, trials, corpora=everything, workers=1)
    assert len(trained(save)) == 7

    (corpus / "wav/id11251/x/1.wav").unlink()
    prepare_voxceleb(corpus, save, corpora=everything[1:], workers=1)
    before = (save / "train.csv").read_text()
    with pytest.raises(ValueError, match="allow_incomplete=True, or") as caught:
        prepare_voxceleb(corpus, save, corpora=everything, workers=1)
    expected = (
        "voxceleb1-dev should have 2 speakers and 3 utterances, found 1 and 2"
    )
    assert expected in str(caught.value)
    assert (save / "train.csv").read_text() == before
    prepare_voxceleb(
        corpus, save, corpora=everything, allow_incomplete=True, workers=1
    )
    assert any(expected in message for message in caplog.messages)
    with pytest.raises(
        ValueError,
        match="voxceleb2-dev should have 1 speakers and 2 .* found 2 and 3",
    ):
        prepare_voxceleb(corpus, save, corpora=["voxceleb2-dev"], workers=1)


def test_voxceleb1_does_not_train_what_e_and_h_test(save, tmp_path):
    own = trial_list(tmp_path / "own.txt", "id10270/x/1.wav")
    hard = trial_list(tmp_path / "hard.txt", "id10309/x/1.wav")
    hard.write_text(f"{hard.read_text()}0 id10309/x/1.wav id10310/x/1.wav\n")
    corpus = tmp_path / "corpus"
    write(corpus, "id00012/x/1.wav")
    prepare_voxceleb(corpus, save, [own, str(hard)], workers=1)
    write(corpus, "id11251/x/1.wav")
    prepare_voxceleb(corpus, save, [own], workers=1)
    assert trained(save) == ["id00012/x/1", "id11251/x/1"]
    with pytest.raises(ValueError, match="^test_trials: .*hard.txt tests on"):
        prepare_voxceleb(corpus, save, [own, str(hard)], workers=1)


def test_altered_list_is_not_silent(save, tmp_path, caplog):
    trials = trial_list(tmp_path / "veri_test2.txt", "id10270/x/1.wav")
    write(tmp_path / "corpus", "id00012/x/1.wav")
    prepare_voxceleb(tmp_path / "corpus", save, trials, workers=1)
    assert any("not the published list" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("minimum_seconds", -1),
        ("minimum_seconds", "half"),
        ("minimum_seconds", float("nan")),
        ("workers", 0),
        ("workers", 1.5),
        ("check_audio", "yes"),
        ("corpora", "voxceleb2-dev"),
        ("corpora", ["voxceleb2"]),
    ],
)
def test_wrong_settings_are_named(corpus, save, setting, value):
    with pytest.raises(ValueError, match=f"^{setting} must be ") as caught:
        prepare_voxceleb(corpus, save, **{setting: value})
    assert str(caught.value).endswith(repr(value))
    assert not save.exists()


def test_workers_that_inherit_nothing(corpus, save):
    write(corpus, "odd/x/1.wav", tone(8000), 8000)
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        prepare_voxceleb(corpus, save, workers=1)
    finally:
        multiprocessing.set_start_method(usual, force=True)
    assert len(trained(save)) == 17


def test_the_scripts_folder_has_a_link():
    name = "voxceleb_prepare.py"
    assert os.readlink(RECIPE / "SpeakerRec" / name) == f"../{name}"


def test_links_to_what_is_there_are_reported_not_used(corpus, save, tmp_path):
    wav = corpus / "wav"
    for name, target in {
        "loop": ".",
        "a/loop": ".",
        "a/x/loop": "../..",
        "again": "a",  # a speaker under another name
        "a/again": "x",
        "a/x/9.wav": "1.wav",
    }.items():
        (wav / name).symlink_to(target)
    before = [f"{s}/{x}/{n}" for s in "abcd" for x in "xy" for n in "12"]
    prepare_voxceleb(corpus, save, workers=1)
    assert trained(save) == before
    skipped = ("skipped", "link to what is there already")
    assert report(save) == dict.fromkeys(
        ("loop", "a/loop", "a/x/loop", "again", "a/again", "a/x/9.wav"), skipped
    )
    prepare_voxceleb(corpus, save, workers=1)
    assert trained(save) == before


def test_links_to_elsewhere_are_used(corpus, save, tmp_path):
    (corpus / "wav").rename(tmp_path / "pool")
    (corpus / "wav" / "b" / "y").mkdir(parents=True)
    (corpus / "wav" / "a").symlink_to(tmp_path / "pool" / "a")
    (corpus / "wav" / "b" / "x").symlink_to(tmp_path / "pool" / "b" / "x")
    for target in (tmp_path / "pool" / "b" / "y").iterdir():
        (corpus / "wav" / "b" / "y" / target.name).symlink_to(target)
    # A hidden folder and one at another depth are not part of the corpus.
    for place in (".hidden", "c/x/deep"):
        path = write(corpus, f"{place}/1.wav")
        link = corpus / "wav" / "b" / "y" / f"{path.parent.name[-3:]}.wav"
        link.symlink_to(path)
    prepare_voxceleb(corpus, save, workers=1)
    numbers = [f"{s}/{x}/{n}" for s in "ab" for x in "xy" for n in "12"]
    assert trained(save) == [*numbers, "b/y/den", "b/y/eep"]
    assert report(save) == {
        "c/x/deep/1.wav": ("skipped", "not in wav/<speaker>/<session>/")
    }


def test_one_speaker_elsewhere_under_two_names(corpus, save, tmp_path):
    (corpus / "wav" / "a").rename(tmp_path / "a")
    for name in ("a", "a2"):
        (corpus / "wav" / name).symlink_to(tmp_path / "a")
    prepare_voxceleb(corpus, save, workers=1)
    assert {row["spk_id"] for row in rows(save / "train.csv")} == set("abcd")
    assert report(save) == {"a2": ("skipped", "link to what is there already")}


@pytest.mark.parametrize("check_audio", [True, False])
def test_any_ending_of_audio(corpus, save, check_audio):
    write(corpus, "e/x/1.oga", format="OGG")
    write(corpus, "e/x/2.WAVE", format="WAV")
    write(corpus, "e/x/3.raw", format="WAV")
    (corpus / "wav/e/x/4.raw").write_bytes(bytes(99))
    (corpus / "wav/e/x/5.webm").write_bytes(bytes(99))
    prepare_voxceleb(corpus, save, workers=1, check_audio=check_audio)
    assert trained(save)[-3:] == ["e/x/1", "e/x/2", "e/x/3"]
    assert report(save) == {
        "e/x/4.raw": ("skipped", "has no header"),
        "e/x/5.webm": ("skipped", "unreadable"),
    }
