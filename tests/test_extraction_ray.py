"""Extraction by workers of Ray: what comes out, and what is killed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import extract_speaker_embeddings as extraction
import extract_speaker_embeddings_ray as script
import numpy as np
import pytest
import soundfile
import torch
from pyarrow import parquet
from test_extraction import write_model

from redimnet2_lobes.data.utterances import read_utterances
from redimnet2_lobes.inference.embedding_files import read_embeddings
from redimnet2_lobes.recipe.part_embedder import PartEmbedder

ROOT = Path(__file__).resolve().parent.parent
HPARAMS = ROOT / "hparams" / "extract_ray_redimnet2.yaml"
FILES = 24
PER_PART = 2


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Short files of two speakers, one of which is empty."""
    folder = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    for index in range(FILES):
        path = folder / "wav" / f"speaker{index % 2}" / f"{index:02}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        audio = random.uniform(-0.5, 0.5, 8000 + 100 * index)
        soundfile.write(path, audio, 16000)
    path.write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "small", seed=0)


@pytest.fixture
def arguments(corpus, model, tmp_path):
    def make(hparams=HPARAMS, **keys):
        keys = {
            "utterances": corpus,
            "checkpoint": model,
            "output": tmp_path / "embeddings.parquet",
            "utterances_per_part": PER_PART,
            **keys,
        }
        return [str(hparams), *(f"--{k}={v}" for k, v in keys.items())]

    return make


@pytest.fixture
def by_one(arguments, tmp_path):
    """What one process extracts: names, embeddings, speakers and seconds."""
    extraction.main(
        arguments(
            ROOT / "hparams" / "extract_redimnet2.yaml",
            output=tmp_path / "one.parquet",
            format="parquet",
            device="cpu",
        )
    )
    return parquet.read_table(tmp_path / "one.parquet")


@pytest.fixture
def in_this_process(monkeypatch):
    """In place of Ray; returns the parts that are embedded."""
    made = []

    def embed(parts, embedder, *_):
        worker = PartEmbedder(**embedder)
        for start, utterances in parts:
            row = {"start": [start], "utterances": [json.dumps(utterances)]}
            done = worker(row)
            if done["error"][0]:
                raise ValueError(done["error"][0])
            made.append(start)
            yield done["count"][0]

    monkeypatch.setattr(script, "embed_parts", embed)
    return made


def check(folder, expected):
    """The same, bit for bit, in a folder with nothing but its parts."""
    files = sorted(path.name for path in folder.iterdir())
    assert files == [
        f"part-{start:09}.parquet" for start in range(0, FILES, PER_PART)
    ]
    table = parquet.read_table(folder)
    assert table.equals(expected)
    assert table.schema.metadata == expected.schema.metadata
    found = read_embeddings(folder)
    assert found.names == expected["name"].to_pylist()


def check_left_out(path, corpus):
    with open(path, newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["wav"] == str(corpus / "wav" / "speaker1" / "23.wav")
    assert "empty" in row["reason"]
    assert [each.name for each in read_utterances(path)] == [row["ID"]]


def test_parts_are_as_of_one_process(
    by_one, arguments, in_this_process, corpus, tmp_path
):
    line = script.main(arguments())
    assert line.startswith(f"error: 1 of the {FILES} utterances cannot be used")
    check(tmp_path / "embeddings.parquet", by_one)
    check_left_out(tmp_path / "embeddings.left_out.csv", corpus)
    assert not (tmp_path / "embeddings.embedding_parts").exists()
    with pytest.raises(ValueError, match="output: .* exists already"):
        script.main(arguments())


@pytest.mark.parametrize("damage", ["absent", "cut", "no faults", "other rows"])
def test_only_what_is_missing_is_made(
    damage, by_one, arguments, in_this_process, tmp_path, monkeypatch
):
    with monkeypatch.context() as stopped:
        stopped.setattr(script, "read_faults", raise_disk_full)
        with pytest.raises(OSError, match="disk full"):
            script.main(arguments())
    work = tmp_path / "embeddings.embedding_parts"
    (path,) = work.glob("*/part-000000004.parquet")
    if damage == "absent":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "no faults":
        path.with_suffix(".faults.json").unlink()
    else:
        table = parquet.read_table(path)
        parquet.write_table(table.slice(0, 1), path)
    in_this_process.clear()
    script.main(arguments())
    assert in_this_process == [4]
    check(tmp_path / "embeddings.parquet", by_one)


def raise_disk_full(*_):
    raise OSError("disk full")


def test_a_change_makes_parts_anew(
    arguments, in_this_process, corpus, tmp_path, monkeypatch
):
    with monkeypatch.context() as stopped:
        stopped.setattr(script, "read_faults", raise_disk_full)
        for keys in (
            {},
            {"maximum_seconds": 0.3},
            {"checkpoint": write_model(tmp_path / "other", seed=1)},
        ):
            in_this_process.clear()
            with pytest.raises(OSError, match="disk full"):
                script.main(arguments(**keys))
            assert in_this_process == [*range(0, FILES, PER_PART)]
        lines = ["ID,wav,spk_id"]
        for each in read_utterances(corpus):
            lines.append(f"{each.name},{each.path},someone")
        (tmp_path / "list.csv").write_text("\n".join(lines))
        in_this_process.clear()
        with pytest.raises(OSError, match="disk full"):
            script.main(arguments(utterances=tmp_path / "list.csv"))
        assert in_this_process == [*range(0, FILES, PER_PART)]


def test_no_good_file(arguments, in_this_process, tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / f"{name}.wav").touch()
    (tmp_path / "list.csv").write_text("ID,wav\na,a.wav\nb,b.wav\n")
    monkeypatch.chdir(tmp_path)
    line = script.main(arguments(utterances="list.csv"))
    assert line.startswith("error: 2 of the 2 utterances")
    table = parquet.read_table(tmp_path / "embeddings.parquet")
    assert table.num_rows == 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"workers": 0}, "workers: 0 is less than 1"),
        ({"gpus_per_worker": -1}, "gpus_per_worker: -1 is less than 0"),
        ({"device": "cpu", "gpus_per_worker": 1}, "device: cpu does not go"),
        ({"checkpoint": ROOT / "docs"}, "checkpoint: .*docs"),
        ({"utterances": "no.txt"}, "neither a folder nor"),
    ],
)
def test_wrong_values_are_named(keys, message, arguments):
    with pytest.raises(ValueError, match=message):
        script.main(arguments(**keys))


def test_a_worker_names_what_is_wrong(model, tmp_path):
    settings = {"seconds_per_batch": 1, "maximum_seconds": None, "crops": None}
    worker = PartEmbedder(
        str(tmp_path / "none"), str(model), None, "cpu", "fp32", settings
    )
    soundfile.write(tmp_path / "a.wav", torch.rand(8000), 16000)
    part = json.dumps([["a", str(tmp_path / "a.wav"), None]])
    done = worker({"start": [0], "utterances": [part]})
    assert done["count"] == [1] and "No such file" in done["error"][0]


def test_a_part_that_kills_its_workers(
    by_one, arguments, in_this_process, tmp_path, monkeypatch
):
    """It is given up, and the next run begins to count anew."""
    made, killed = PartEmbedder._make, []

    def kill(self, path, utterances):
        if "000004" in path.name and len(killed) < 6:
            killed.append(path)
            raise SystemExit  # which nothing catches
        made(self, path, utterances)

    def again_and_again(self, batch, call=PartEmbedder.__call__):
        while True:
            try:
                return call(self, batch)
            except SystemExit:
                continue

    monkeypatch.setattr(PartEmbedder, "_make", kill)
    monkeypatch.setattr(PartEmbedder, "__call__", again_and_again)
    with pytest.raises(ValueError, match=r"killed 5 times at .*000004\.parq"):
        script.main(arguments())
    assert len(killed) == 5
    script.main(arguments())
    assert len(killed) == 6
    check(tmp_path / "embeddings.parquet", by_one)


def test_without_ray(arguments, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"ray: missing; pip install 'ray"):
        script.main(arguments())


# Real clusters.


def started(arguments, tmp_path):
    """The script in a process of its own, with two workers."""
    return subprocess.Popen(
        [sys.executable, script.__file__, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TEST_OF_RAY": str(tmp_path),
        },
    )


def processes_of(folder):
    """Those that have this in their environment: the script's and Ray's."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (
                f"TEST_OF_RAY={folder}\0".encode()
                in (path / "environ").read_bytes()
            ):
                found[int(path.name)] = (path / "comm").read_text().strip()
        except OSError:
            continue
    return found


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def parts_in(folder):
    return [*folder.glob("embeddings.embedding_parts/*/part-*.parquet")]


def worker_of(folder):
    """The process of a worker that embeds."""
    names = processes_of(folder)
    return next((pid for pid in names if "MapWorker" in names[pid]), None)


@pytest.mark.slow
def test_a_killed_worker(by_one, arguments, corpus, tmp_path):
    run = started(arguments(workers=2), tmp_path)
    wait_until(lambda: parts_in(tmp_path))
    killed = wait_until(lambda: worker_of(tmp_path))
    assert len(parts_in(tmp_path)) < FILES // PER_PART
    os.kill(killed, signal.SIGKILL)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 1, output
    assert "cannot be used" in output.splitlines()[-1]
    check(tmp_path / "embeddings.parquet", by_one)
    check_left_out(tmp_path / "embeddings.left_out.csv", corpus)
    wait_until(lambda: not processes_of(tmp_path))


@pytest.mark.slow
def test_a_killed_driver(by_one, arguments, tmp_path):
    run = started(arguments(workers=2), tmp_path)
    wait_until(lambda: len(parts_in(tmp_path)) >= 2)
    run.kill()
    run.communicate(timeout=60)
    wait_until(lambda: not processes_of(tmp_path))
    kept = {path: path.stat().st_mtime_ns for path in parts_in(tmp_path)}
    assert 2 <= len(kept) < FILES // PER_PART
    run = started(arguments(workers=2), tmp_path)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 1, output
    check(tmp_path / "embeddings.parquet", by_one)
    for path, time_of_change in kept.items():
        part = tmp_path / "embeddings.parquet" / path.name
        assert part.stat().st_mtime_ns == time_of_change
    wait_until(lambda: not processes_of(tmp_path))
