"""Shards: written whole, read in part, the same as plain files."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import make_shards
import numpy as np
import pytest
import soundfile
import torch
import webdataset
from conftest import exit_code
from speechbrain.dataio.dataio import load_data_csv

from redimnet2_lobes.data.audio import AudioError
from redimnet2_lobes.data.crops import RandomCrop
from redimnet2_lobes.data.sources import open_audio

UTTERANCES = 23
PER_SHARD = 6


class Corpus:
    """Utterances in a folder and what makes shards of them."""

    def __init__(self, folder):
        self.data = folder / "corpus"
        self.save = folder / "save"
        self.csv = self.save / "train.csv"
        self.shards = folder / "shards"

    def write(self):
        random = np.random.default_rng(1)
        rows = []
        for number in range(UTTERANCES):
            speaker = f"id{number % 4:05}"
            name = f"{speaker}/-a_{number % 2}/{number:05}"
            extension = "flac" if number % 3 == 0 else "wav"
            root = "save_root" if number % 5 == 0 else "data_root"
            path = f"${root}/wav/{name}.{extension}"
            rows.append([name, 0.5 + number / 10, path, speaker])
            file = Path(self.expand(path))
            file.parent.mkdir(parents=True, exist_ok=True)
            samples = random.uniform(-0.5, 0.5, round(16000 * rows[-1][1]))
            soundfile.write(file, samples, 16000)
        with self.csv.open("w", newline="") as stream:
            csv.writer(stream).writerows([make_shards.COLUMNS, *sorted(rows)])

    def expand(self, path):
        roots = {"$data_root": self.data, "$save_root": self.save}
        return re.sub(r"^\$\w+", lambda match: str(roots[match[0]]), path)

    def arguments(self, **options):
        options = {"utterances_per_shard": PER_SHARD, "workers": 1, **options}
        return [
            *(str(self.csv), str(self.shards), f"--data_folder={self.data}"),
            *(f"--{key}={value}" for key, value in options.items()),
        ]

    def make(self, **options):
        return exit_code(make_shards.main, self.arguments(**options))

    def files(self):
        """Utterances as training finds them in the plain files."""
        return load_data_csv(
            self.csv, {"data_root": self.data, "save_root": self.save}
        )

    def indexed(self):
        """Utterances as training finds them in the shards."""
        return load_data_csv(
            self.shards / "train.csv", {"data_root": self.shards}
        )

    def streamed(self):
        """Samples of each shard, by WebDataset."""
        return [
            list(webdataset.WebDataset(str(shard), shardshuffle=False))
            for shard in sorted(self.shards.glob("*.tar"))
        ]

    def contents(self):
        return {path.name: path.read_bytes() for path in self.shards.iterdir()}


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A corpus with shards, not to be changed."""
    corpus = Corpus(tmp_path_factory.mktemp("complete"))
    corpus.write()
    assert corpus.make() == 0
    return corpus


@pytest.fixture
def corpus(complete, tmp_path):
    """The same, in a place of its own."""
    shutil.copytree(complete.data.parent, tmp_path, dirs_exist_ok=True)
    return Corpus(tmp_path)


def bytes_read():
    """What the process has read so far: from files, and from the disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    counts = dict(line.split(": ") for line in lines)
    return np.array([int(counts["rchar"]), int(counts["read_bytes"])])


def test_webdataset_reads_them(complete):
    utterances = complete.files()
    streamed = [sample for samples in complete.streamed() for sample in samples]
    assert len(streamed) == len(utterances)
    for sample in streamed:
        row = utterances.pop(sample["__key__"])
        assert json.loads(sample["json"]) == {
            "spk_id": row["spk_id"],
            "duration": row["duration"],
        }
        path = Path(row["wav"])
        assert sample[path.suffix[1:]] == path.read_bytes()


def test_shards_are_balanced_and_shuffled(complete, corpus):
    streamed = complete.streamed()
    assert sorted(map(len, streamed)) == [5, 6, 6, 6]
    order = [sample["__key__"] for samples in streamed for sample in samples]
    assert order != sorted(order)
    shutil.rmtree(corpus.shards)
    assert corpus.make(seed=1) == 0
    assert [
        sample["__key__"] for samples in corpus.streamed() for sample in samples
    ] != order


def test_same_crops_from_files_and_shards(complete):
    files, indexed = complete.files(), complete.indexed()
    assert list(files) == list(indexed)
    crop = RandomCrop(100, speeds=[1.0, 0.9, 1.1])
    for seed, (name, row) in enumerate(files.items()):
        in_shard = indexed[name]
        assert in_shard["duration"] == row["duration"]
        assert in_shard["spk_id"] == row["spk_id"]
        expected = crop(row["wav"], np.random.default_rng(seed))
        waveform, speed = crop(in_shard["wav"], np.random.default_rng(seed))
        assert torch.equal(waveform, expected[0]) and speed == expected[1]


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="needs Linux")
@pytest.mark.parametrize("extension, factor", [("wav", 1.2), ("flac", 2.0)])
def test_only_the_crop_is_read(tmp_path, extension, factor):
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, 120 * 16000)
    path = tmp_path / f"long.{extension}"
    soundfile.write(path, samples, 16000)
    audio = path.read_bytes()
    shard = tmp_path / "shard.tar"
    shard.write_bytes(bytes(512) + audio + bytes(512))
    crop = RandomCrop(200, speeds=[1.0])
    for source in (
        str(path),
        f"{path}[160000:1600000]",
        f"{shard}:512:{len(audio)}",
    ):
        crop(source, np.random.default_rng(1))  # imports what it needs
        for file in (path, shard):
            with file.open() as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = bytes_read()
        crop(source, np.random.default_rng(2))
        from_files, from_disk = bytes_read() - before
        # The crop has 64,480 bytes; noise in FLAC has nearly as many.
        assert 60000 < from_files < factor * 64000
        # None where the file system is in memory.
        assert from_disk < factor * 64000


@pytest.mark.slow
def test_killed_run_goes_on(complete, corpus):
    shutil.rmtree(corpus.shards)
    first = complete.streamed()[1][-1]["__key__"]
    blocking = Path(corpus.files()[first]["wav"])
    audio = blocking.read_bytes()
    blocking.unlink()
    os.mkfifo(blocking)
    run = subprocess.Popen(
        [sys.executable, make_shards.__file__, *corpus.arguments()],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    with blocking.open("wb"):  # waits until the run has come to this file
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert {path.name for path in corpus.shards.iterdir()} == {
        *("plan.json", "shard-000000.tar", "shard-000001.tar.part")
    }
    blocking.unlink()
    blocking.write_bytes(audio)
    kept = (corpus.shards / "shard-000000.tar").stat()
    assert corpus.make(workers=2) == 0
    assert (corpus.shards / "shard-000000.tar").stat() == kept
    assert corpus.contents() == complete.contents()


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.5, 0.95])
def test_damaged_shard_is_written_again(complete, corpus, share):
    shard = corpus.shards / "shard-000002.tar"
    os.truncate(shard, int(share * shard.stat().st_size))
    assert corpus.make() == 0
    assert corpus.contents() == complete.contents()


def test_full_disk(complete, corpus, capsys):
    shard = corpus.shards / "shard-000002.tar"
    (corpus.shards / "train.csv").unlink()
    shard.unlink()
    partial = shard.with_name(f"{shard.name}.part")
    partial.symlink_to("/dev/full")
    assert corpus.make() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {shard}: No space left on device; ")
    missing = complete.contents().keys() - corpus.contents().keys()
    assert missing == {"train.csv", shard.name}
    assert not partial.is_symlink()
    assert corpus.make() == 0
    assert corpus.contents() == complete.contents()


def other_list(corpus):
    corpus.csv.write_text(corpus.csv.read_text().replace("0.5", "0.6"))
    return "made with another train_csv_sha256"


def other_form(corpus):
    corpus.csv.write_text("ID,wav\na,a.wav\n")
    return "not a list of utterances"


def unknown_root(corpus):
    corpus.csv.write_text(corpus.csv.read_text().replace("$data", "$else"))
    return "not a list of utterances"


def no_utterances(corpus):
    corpus.csv.write_text("ID,duration,wav,spk_id\n")
    return "no utterances"


def twice(corpus):
    lines = corpus.csv.read_text().splitlines()
    corpus.csv.write_text("\n".join([*lines, lines[1]]))
    return f"utterance {lines[1].split(',')[0]} is there twice"


def strange_folder(corpus):
    (corpus.shards / "plan.json").unlink()
    return "holds other files"


def lost_file(corpus):
    shutil.rmtree(corpus.data)
    (corpus.shards / "shard-000000.tar").unlink()
    return ".*corpus/wav.*: no such file; pass the train.csv"


@pytest.mark.parametrize(
    "change",
    [
        *(other_list, other_form, unknown_root, no_utterances),
        *(twice, strange_folder, lost_file),
    ],
)
def test_errors_are_one_line(corpus, capsys, change):
    message = change(corpus)
    assert corpus.make() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(f"error: .*{message}", error)


def write_segments(corpus, rows):
    header = "ID,duration,wav,start,stop,spk_id"
    corpus.csv.write_text("\n".join([header, *rows, ""]))


def test_names_with_dots(corpus):
    """Such as SpeechBrain gives to segments; WebDataset takes none."""
    shutil.rmtree(corpus.shards)
    names = ["a.b/x_0.0_3.0", "a.b/x_0.0_3%2E0", "a.b/x_3.0_6.0", "a.b/x"]
    file = next(corpus.data.rglob("*.wav"))
    write_segments(
        corpus,
        [f"{name},9,{file},0,{100 + i},a" for i, name in enumerate(names)],
    )
    assert corpus.make() == 0
    indexed = corpus.indexed()
    assert list(indexed) == names
    for i, row in enumerate(indexed.values()):
        with open_audio(row["wav"]) as audio:
            assert audio.length == 100 + i
    streamed = [sample for samples in corpus.streamed() for sample in samples]
    assert {sample["__key__"] for sample in streamed} == {
        *("a.b/x_0%2E0_3%2E0", "a.b/x_0%2E0_3%252E0", "a.b/x_3%2E0_6%2E0"),
        "a.b/x",
    }


# What a segment of each format becomes in a shard.
SEGMENTS = {
    ("WAV", "PCM_16"): "PCM_16",
    ("WAV", "PCM_24"): "PCM_24",
    ("WAV", "PCM_32"): "PCM_32",
    ("WAV", "PCM_U8"): "PCM_U8",
    ("WAV", "FLOAT"): "FLOAT",
    ("WAV", "DOUBLE"): "FLOAT",
    ("WAV", "ULAW"): "FLOAT",
    ("WAV", "GSM610"): "FLOAT",
    ("FLAC", "PCM_16"): "PCM_16",
    ("FLAC", "PCM_24"): "PCM_24",
    ("AIFF", "PCM_S8"): "FLOAT",
    ("MP3", "MPEG_LAYER_III"): "FLOAT",
    ("OGG", "VORBIS"): "FLOAT",
}


def test_same_crops_of_segments_from_files_and_shards(corpus):
    """Bit by bit, in every format, beside whole files."""
    shutil.rmtree(corpus.shards)
    random = np.random.default_rng(1)
    rows, sources, kept = [], [], []
    for (form, subtype), as_subtype in SEGMENTS.items():
        file = corpus.data / f"{form}-{subtype}.{form.lower()}"
        noise = random.uniform(-0.5, 0.5, 40000)
        if subtype in ("FLOAT", "DOUBLE"):
            noise *= 3  # as only these can be
        soundfile.write(file, noise, 16000, subtype, format=form)
        for start, stop in ((0, 20000), (20000, 40000), (1, 9000), ("", "")):
            name = f"a/{file.stem}/{stop or 'whole'}"
            wav = f"$data_root/{file.name}"
            rows.append(f"{name},2.5,{wav},{start},{stop},a")
            sources.append(f"{file}[{start}:{stop}]" if stop else str(file))
            kept.append(as_subtype if stop else subtype)
    write_segments(corpus, rows)
    assert corpus.make() == 0
    indexed = corpus.indexed()
    assert list(indexed) == [row.split(",")[0] for row in rows]
    crop = RandomCrop(30, speeds=[1.0, 0.9])
    for source, subtype, row in zip(
        sources, kept, indexed.values(), strict=True
    ):
        with open_audio(source) as audio, open_audio(row["wav"]) as in_shard:
            assert in_shard.subtype == subtype
            assert in_shard.length == audio.length
            whole = not source.endswith("]")
            assert row["duration"] == (2.5 if whole else audio.length / 16000)
            assert np.array_equal(
                in_shard.read_part(0, audio.length),
                audio.read_part(0, audio.length),
            )
        for seed in range(3):
            expected, _ = crop(source, np.random.default_rng(seed))
            waveform, _ = crop(row["wav"], np.random.default_rng(seed))
            assert torch.equal(waveform, expected)
    # The same again. With peaks libsndfile would write the time of day.
    made = corpus.contents()
    for sample in (sample for shard in corpus.streamed() for sample in shard):
        assert "whole" in sample["__key__"] or b"PEAK" not in sample["wav"]
    (corpus.shards / "shard-000001.tar").unlink()
    assert corpus.make() == 0
    assert corpus.contents() == made


@pytest.mark.parametrize(
    ("borders", "message"),
    [
        ("0,999999", r"\[0:999999\]: a segment beyond the end of its file"),
        ("5,5", "line 2: start 5 is not before stop 5"),
        ("0,", "line 2: start '0' and stop ''"),
    ],
)
def test_faulty_segments_stop_with_one_line(borders, message, corpus, capsys):
    shutil.rmtree(corpus.shards)
    file = next(corpus.data.rglob("*.wav"))
    write_segments(corpus, [f"a,9,{file},{borders},a"])
    assert corpus.make() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(f"error: .*{message}", error)
    assert not list(corpus.shards.glob("*.tar*"))


def test_numbers_below_one(corpus, capsys):
    assert corpus.make(workers=0) == 1
    assert capsys.readouterr().err == "error: workers: 0 is less than 1\n"


def test_shard_cut_short_or_missing(corpus):
    crop = RandomCrop(10, speeds=[1.0])
    samples = corpus.streamed()[1]
    shard = corpus.shards / "shard-000001.tar"
    indexed = corpus.indexed()
    first, last = (indexed[samples[i]["__key__"]]["wav"] for i in (0, -1))
    os.truncate(shard, int(last.split(":")[1]) + 1000)
    waveform, _ = crop(first, np.random.default_rng(1))
    assert waveform.shape == (1840,)
    with pytest.raises(AudioError, match=r"shard-000001.tar:\d+:\d+: cut sh"):
        crop(last, np.random.default_rng(1))
    shard.unlink()
    with pytest.raises(AudioError, match=r"shard-000001.tar:\d+:\d+: missing"):
        crop(first, np.random.default_rng(1))
