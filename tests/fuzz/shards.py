"""What make_shards.py finds of an earlier run, and its list."""

import csv
import functools
import json
import tempfile
from pathlib import Path

import make_shards
import numpy as np
import soundfile

from fuzz.inputs import json_of, mutated, text
from fuzz.oracle import Target

LIST = (
    "ID,duration,wav,start,stop,spk_id\n"
    "a/1,0.05,$data_root/a.wav,,,a\n"
    "a/2.x,0.05,$data_root/a.wav,100,500,a\n"
    "b/1,0.05,$data_root/b.flac,,,b\n"
)


def write_corpus(folder):
    for name, frequency in (("a.wav", 0.1), ("b.flac", 0.2)):
        wave = 0.5 * np.sin(frequency * np.arange(800))
        soundfile.write(folder / name, wave, 16000, subtype="PCM_16")
    (folder / "train.csv").write_text(LIST)


def make(folder):
    make_shards.make_shards(
        folder / "train.csv", folder / "shards", folder, workers=1
    )


@functools.cache
def made():
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder))
        make(Path(folder))
        return {
            path.name: path.read_bytes()
            for path in Path(folder, "shards").iterdir()
        }


def write_shards(folder):
    write_corpus(folder)
    (folder / "shards").mkdir()
    for name, content in made().items():
        (folder / "shards" / name).write_bytes(content)


def go_on(path):
    folder = path.parents[path.parent.name == "shards"]
    make(folder)
    shards = folder / "shards"
    assert {each.name for each in shards.iterdir()} == set(made())
    shard = (shards / "shard-000000.tar").read_bytes()
    with open(shards / "train.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        _, offset, size = row["wav"].split(":")
        assert int(size) > 0 and int(offset) + int(size) <= len(shard)
    # The audio itself has no checksum.
    if path.name == "plan.json":
        assert shard == made()["shard-000000.tar"]
    if path.parent == shards:
        assert len(rows) == 3


TARGETS = (
    Target(
        "shard-list",
        "train.csv",
        lambda: text(LIST),
        go_on,
        write_corpus,
        "shards(/(plan.json|train.csv|shard-000000.tar))?",
    ),
    Target(
        "shard-plan.json",
        "shards/plan.json",
        lambda: json_of(json.loads(made()["plan.json"])),
        go_on,
        write_shards,
    ),
    Target(
        "shard",
        "shards/shard-000000.tar",
        lambda: mutated([made()["shard-000000.tar"]]),
        go_on,
        write_shards,
    ),
)
