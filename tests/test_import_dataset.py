"""Datasets of Hugging Face, written into shards."""

import csv
import io
import os
import shutil
import signal
import subprocess
import sys

import datasets
import import_dataset as script
import make_shards
import numpy as np
import pytest
import soundfile
import torch
import webdataset
from conftest import exit_code

from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.data.crops import RandomCrop
from redimnet2_lobes.data.training_set import read_training_lists
from redimnet2_lobes.data.utterances import read_utterances
from redimnet2_lobes.inference.encode import load_source

ROWS = 17
BAD = {3: b"", 5: b"no audio", 11: None}
FORMATS = ("wav", "flac", "ogg")


def encoded(number):
    """Audio of a row, and what is heard of it."""
    random = np.random.default_rng(number)
    samples = random.uniform(-0.5, 0.5, 8000 + 100 * number)
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format=FORMATS[number % 3])
    return file.getvalue()


AUDIO = [BAD.get(number, encoded(number)) for number in range(ROWS)]


@pytest.fixture(scope="module")
def rows():
    return datasets.Dataset.from_dict(
        {
            "audio": [
                None if audio is None else {"bytes": audio, "path": "x"}
                for audio in AUDIO
            ],
            "speaker": [f"id{n % 4}" for n in range(ROWS)],
            "number": [n % 4 for n in range(ROWS)],
            "clip": [f"clip.{n}" for n in range(ROWS)],
            "who": [None if n == 2 else "x" for n in range(ROWS)],
        }
    ).cast_column("audio", datasets.Audio(decode=False))


@pytest.fixture
def saved(rows, tmp_path):
    rows.cast_column("audio", datasets.Audio()).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Nothing is fetched, and no Arrow copy outlives a test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def run(dataset, output, **options):
    options = {"utterances_per_shard": 5, "workers": 1, **options}
    script.import_dataset(str(dataset), output, **options)
    return read_utterances(output / "train.csv")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check(utterances, names):
    """The audio as it is, of all rows that have some, in their order."""
    good = [number for number in range(ROWS) if number not in BAD]
    assert [each.name for each in utterances] == [names(n) for n in good]
    for utterance, number in zip(utterances, good, strict=True):
        path, offset, size = utterance.path.rsplit(":", 2)
        with open(path, "rb") as shard:
            shard.seek(int(offset))
            assert shard.read(int(size)) == AUDIO[number]
        samples = len(load_source(utterance.path))
        assert samples == 8000 + 100 * number


def test_a_saved_dataset(saved, tmp_path, capsys):
    utterances = run(saved, tmp_path / "shards")
    check(utterances, lambda n: f"id{n % 4}/{n}")
    assert [each.speaker for each in utterances] == [
        each.name.split("/")[0] for each in utterances
    ]
    names = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert names == [
        *("left_out.csv", "plan.json"),
        *(f"shard-{number:06}.tar" for number in range(4)),
        "train.csv",
    ]
    assert "left out  3 of the 17" in capsys.readouterr().out
    with open(tmp_path / "shards" / "left_out.csv", newline="") as file:
        left_out = {row["ID"]: row["reason"] for row in csv.DictReader(file)}
    assert list(left_out) == [f"id{n % 4}/{n}" for n in sorted(BAD)]
    assert all(left_out.values())
    found, speakers = read_training_lists(
        {"": tmp_path / "shards" / "train.csv"}, {}, 0.1, [], []
    )
    assert len(found) == ROWS - len(BAD) and len(speakers) == 4
    assert len(set(found.shards.tolist())) == 4


def test_other_programs_read_the_shards(saved, tmp_path):
    run(saved, tmp_path / "shards")
    shards = sorted(map(str, (tmp_path / "shards").glob("*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert len(samples) == ROWS - len(BAD)
    for sample in samples:
        number = int(sample["__key__"].split("/")[1])
        assert sample[FORMATS[number % 3]] == AUDIO[number]


def test_columns(saved, tmp_path):
    utterances = run(
        saved,
        tmp_path / "shards",
        speaker_column="number",
        name_column="clip",
    )
    check(utterances, lambda n: f"clip.{n}")
    assert utterances[1].speaker == "1"


def test_class_labels(rows, tmp_path):
    labels = datasets.ClassLabel(names=[f"id{n}" for n in range(4)])
    rows.cast_column("speaker", labels).save_to_disk(tmp_path / "saved")
    utterances = run(tmp_path / "saved", tmp_path / "shards")
    check(utterances, lambda n: f"id{n % 4}/{n}")


def test_rows_without_a_speaker(saved, tmp_path):
    utterances = run(saved, tmp_path / "shards", speaker_column="who")
    assert len(utterances) == ROWS - len(BAD) - 1
    text = (tmp_path / "shards" / "left_out.csv").read_text()
    assert "2,without a speaker" in text


def audio_of(samples, rate, form):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form)
    return {"bytes": file.getvalue(), "path": "x"}


@pytest.mark.parametrize(
    ("rate", "channels", "form"),
    [(48000, 1, "mp3"), (16000, 2, "flac"), (8000, 1, "wav")],
)
def test_training_takes_audio_of_any_kind(rate, channels, form, tmp_path):
    random = np.random.default_rng(1)
    samples = random.uniform(-0.5, 0.5, (2 * rate, channels))
    audio = audio_of(samples, rate, form)
    made = datasets.Dataset.from_dict({"audio": [audio], "speaker": ["a"]})
    made.save_to_disk(tmp_path / "saved")
    (found,) = run(tmp_path / "saved", tmp_path / "shards")
    (tmp_path / "before").write_bytes(audio["bytes"])
    expected = load_waveform(tmp_path / "before")
    assert torch.equal(load_source(found.path), expected)
    crop, _ = RandomCrop(100, [1.0])(found.path, np.random.default_rng(1))
    assert len(crop) == 99 * 160 + 400
    run(tmp_path / "saved", tmp_path / "again")
    assert content(tmp_path / "shards") == content(tmp_path / "again")


def test_names_that_no_list_holds(tmp_path):
    audio = {"bytes": AUDIO[0], "path": "x"}
    speakers = ["a\r\n", "b\nc", "\r", "d"]
    made = {"audio": [audio] * 4, "speaker": speakers, "number": [1, 2, 3, 4]}
    made["clip"] = ["x\r", "y", "", "z"]
    made["score"] = [float("nan"), 1.5, 2.5, 2.5]
    made["several"] = [["a"], ["b"], ["c"], ["d", "e"]]
    datasets.Dataset.from_dict(made).save_to_disk(tmp_path / "saved")
    found = run(tmp_path / "saved", tmp_path / "a")
    assert [each.name for each in found] == ["a/0", "d/3"]
    assert [each.speaker for each in found] == ["a", "d"]
    with open(tmp_path / "a" / "left_out.csv", newline="") as file:
        assert [row["ID"] for row in csv.DictReader(file)] == ["1", "2"]
    options = {"speaker_column": "number", "name_column": "clip"}
    found = run(tmp_path / "saved", tmp_path / "b", **options)
    assert [each.name for each in found] == ["y", "z"]
    found = run(tmp_path / "saved", tmp_path / "c", speaker_column="score")
    assert [each.name for each in found] == ["1.5/1", "2.5/2", "2.5/3"]
    with pytest.raises(ValueError, match="several of .* holds no names"):
        run(tmp_path / "saved", tmp_path / "d", speaker_column="several")


def test_parquet_files(rows, saved, tmp_path):
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    for part in range(2):
        rows.shard(2, part, contiguous=True).to_parquet(
            tmp_path / "parquet" / "data" / f"train-0000{part}-of-00002.parquet"
        )
    utterances = run(tmp_path / "parquet", tmp_path / "a", split="train")
    check(utterances, lambda n: f"id{n % 4}/{n}")
    run(saved, tmp_path / "b")
    first, second = content(tmp_path / "a"), content(tmp_path / "b")
    del first["plan.json"], second["plan.json"]
    assert first == second


def test_audio_that_is_only_named(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(AUDIO[0])
    datasets.Dataset.from_dict(
        {
            "audio": [str(path), str(tmp_path / "lost.wav")],
            "speaker": ["a", "b"],
        }
    ).save_to_disk(tmp_path / "saved")
    (found,) = run(tmp_path / "saved", tmp_path / "shards")
    assert found.name == "a/0" and len(load_source(found.path)) == 8000
    text = (tmp_path / "shards" / "left_out.csv").read_text()
    assert "only named" in text and "lost.wav" in text


def test_splits(rows, tmp_path):
    datasets.DatasetDict(
        {"train": rows, "test": rows.select([0])}
    ).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="has the splits train, test; pass"):
        run(tmp_path / "saved", tmp_path / "shards")
    (found,) = run(tmp_path / "saved", tmp_path / "shards", split="test")
    assert found.name == "id0/0"
    with pytest.raises(ValueError, match="cannot be loaded .*dev"):
        run(tmp_path / "saved", tmp_path / "other", split="dev")


def test_a_saved_split(rows, saved, tmp_path):
    with pytest.raises(ValueError, match="it has no splits; omit --split"):
        run(saved, tmp_path / "shards", split="test")
    with pytest.raises(ValueError, match="no configurations; omit --config"):
        run(saved, tmp_path / "shards", config="ga")
    assert not (tmp_path / "shards").exists()
    rows.select([0]).to_parquet(tmp_path / "a.parquet")
    datasets.Dataset.from_parquet(
        str(tmp_path / "a.parquet"), split="test"
    ).save_to_disk(tmp_path / "one")
    (found,) = run(tmp_path / "one", tmp_path / "shards", split="test")
    assert found.name == "id0/0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speaker_column": "client"}, "speaker_column: .* no column client"),
        ({"audio_column": "number"}, "audio_column: number of .* no audio"),
        ({"audio_column": "speaker"}, "need a column each"),
        ({"name_column": "speaker"}, "need a column each"),
        ({"name_column": "number"}, "two utterances 0; leave it out"),
        ({"utterances_per_shard": 0}, "utterances_per_shard: 0 is less than 1"),
    ],
)
def test_wrong_options_are_named(options, message, saved, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        run(saved, tmp_path / "shards", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "shards").exists()


def test_no_utterance_can_be_used(rows, tmp_path):
    rows.select([3, 5]).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="no utterance can be used; .* id3/0"):
        run(tmp_path / "saved", tmp_path / "shards")


@pytest.mark.parametrize("damage", ["cut", "state", "info", "parquet"])
def test_damaged_datasets(damage, saved, tmp_path):
    if damage == "cut":
        (path,) = saved.glob("*.arrow")
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "parquet":
        saved = tmp_path / "parquet"
        saved.mkdir()
        (saved / "train.parquet").write_bytes(b"PAR1 no more")
    else:
        name = {"state": "state.json", "info": "dataset_info.json"}[damage]
        (saved / name).write_text("{")
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        run(saved, tmp_path / "shards")
    assert str(caught.value).startswith(str(saved))
    assert "\n" not in str(caught.value)


def test_another_plan_is_refused(saved, tmp_path, capsys):
    run(saved, tmp_path / "shards")
    with pytest.raises(ValueError, match="another seed .0, now 1.; name a new"):
        run(saved, tmp_path / "shards", seed=1)
    before = content(tmp_path / "shards")
    run(saved, tmp_path / "shards")
    assert "complete already" in capsys.readouterr().out
    assert content(tmp_path / "shards") == before


# Kills the process in the middle of the second shard, or between a shard and
# its notes.
PROGRAM = """\
import os, signal, sys
import import_dataset, webdataset
place, *arguments = sys.argv[1:]
write, notes = webdataset.TarWriter.write, import_dataset._notes
count = 0

def killed(*arguments):
    global count
    count += 1
    if count == 7 and place == "shard":
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return write(*arguments)

def killed_before(path):
    if place == "notes" and path.exists() and "000001" in path.name:
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return notes(path)

webdataset.TarWriter.write, import_dataset._notes = killed, killed_before
import_dataset.main(arguments)
"""


@pytest.mark.parametrize("place", ["shard", "notes"])
def test_a_killed_run_goes_on(place, saved, tmp_path):
    output = tmp_path / "shards"
    arguments = [str(saved), str(output), "--utterances_per_shard=5"]
    arguments.append("--workers=1")
    folder = os.path.dirname(script.__file__)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, place, *arguments],
        env={**os.environ, "PYTHONPATH": f"{folder}:{os.environ['PYTHONPATH']}"}
        if "PYTHONPATH" in os.environ
        else {**os.environ, "PYTHONPATH": f"{folder}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (output / "shard-000000.tar").exists()
    assert not (output / "train.csv").exists()
    kept = (output / "shard-000000.tar").stat().st_mtime_ns
    script.main(arguments)
    assert (output / "shard-000000.tar").stat().st_mtime_ns == kept
    check(read_utterances(output / "train.csv"), lambda n: f"id{n % 4}/{n}")
    run(saved, tmp_path / "whole")
    for path in tmp_path.glob("shards/*.part"):  # of the killed process
        path.unlink()
    assert content(output) == content(tmp_path / "whole")


def test_the_result_does_not_depend_on_the_workers(saved, tmp_path):
    run(saved, tmp_path / "one", workers=1)
    run(saved, tmp_path / "three", workers=3)
    assert content(tmp_path / "one") == content(tmp_path / "three")


def test_shards_of_shards(saved, tmp_path):
    """What was imported can be dealt to shards of another size."""
    run(saved, tmp_path / "shards")
    make_shards.make_shards(
        tmp_path / "shards" / "train.csv",
        tmp_path / "again",
        str(tmp_path / "shards"),
        utterances_per_shard=100,
        workers=1,
    )
    shutil.rmtree(tmp_path / "shards")
    assert len(read_utterances(tmp_path / "again" / "train.csv")) == 14


def test_without_datasets(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert exit_code(script.main, [str(saved), str(tmp_path / "shards")]) == 1
    assert "pip install datasets" in capsys.readouterr().err
