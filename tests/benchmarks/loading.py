"""How many training crops a core reads in a second, from files and shards.

Generates a corpus in VoxCeleb's layout (noise, 3 s each: 96 kB) and its shards
in FOLDER, which keeps them for the next call, and prints a table. The rows are
what a loader's worker does:

- read: crops of 200 frames (2 s) at their own speed;
- read, not cached: the same, from the disk instead of the memory (of a virtual
  machine: its host may still have it in memory);
- and speeds: at a speed of 1.0, 0.9 or 1.1;
- and augmentation: then as published for VoxCeleb2, with generated noises and
  rooms.

One process, one thread; medians of rounds in which all take turns. What comes
from the disk is timed by the clock, the rest by the processor's time, which
other work on the machine changes less.

Example
-------
python tests/benchmarks/loading.py /tmp/loading --utterances=50000

Authors
-------
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from speechbrain.dataio.dataio import load_data_csv
from tqdm import tqdm

from redimnet2_lobes.data.augment import (
    Chain,
    Gain,
    Noise,
    OneOf,
    Reverberation,
)
from redimnet2_lobes.data.crops import RandomCrop
from redimnet2_lobes.models.front_end import SAMPLE_RATE

MAKE_SHARDS = Path(__file__).parents[2] / "recipes/VoxCeleb/make_shards.py"
UTTERANCE_SECONDS = 3.0
CROP_FRAMES = 200
BATCH_SIZE = 64
NOT_CACHED = "read, not cached"


def generate(folder, utterances):
    """Writes a corpus, its list and what its augmentation needs."""
    random = np.random.default_rng(0)
    samples = round(UTTERANCE_SECONDS * SAMPLE_RATE)
    signal = random.normal(0, 3000, 60 * SAMPLE_RATE).astype(np.int16)
    with (folder / "train.csv").open("w", newline="") as stream:
        index = csv.writer(stream)
        index.writerow(["ID", "duration", "wav", "spk_id"])
        for number in tqdm(range(utterances), desc="Writing files"):
            # 10 utterances in a session, 10 sessions of a speaker
            speaker = f"id{number // 100:05}"
            session = f"session{number // 10 % 10:04}"
            name = f"{speaker}/{session}/{number % 10:05}"
            path = folder / "wav" / f"{name}.wav"
            if number % 10 == 0:
                path.parent.mkdir(parents=True)
            start = random.integers(len(signal) - samples)
            soundfile.write(path, signal[start : start + samples], SAMPLE_RATE)
            index.writerow(
                [name, UTTERANCE_SECONDS, f"$data_root/wav/{name}.wav", speaker]
            )
    decay = np.geomspace(1, 0.001, SAMPLE_RATE // 2)
    for part in ("noise", "music", "speech", "simulated_rirs"):
        (folder / part).mkdir()
        for number in range(20):
            excerpt = np.roll(signal, number * SAMPLE_RATE)
            if part == "simulated_rirs":
                excerpt = (excerpt[: len(decay)] * decay).astype(np.int16)
            soundfile.write(folder / part / f"{number}.wav", excerpt, 16000)


def make_shards(folder):
    start = time.perf_counter()
    subprocess.run(
        [
            *(sys.executable, MAKE_SHARDS, folder / "train.csv"),
            *(folder / "shards", f"--data_folder={folder}"),
        ],
        check=True,
    )
    print(f"shards: made in {time.perf_counter() - start:.0f} s")


def forget(sources):
    """Drops the sources' files from the memory."""
    for path in {source.partition(".tar:")[0] for source in sources}:
        path = path if path.endswith(".wav") else f"{path}.tar"
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def crops_per_second(sources, crop, augment, clock):
    """Reads a crop of each source, in batches."""
    random = np.random.default_rng(1)
    start = clock()
    for first in range(0, len(sources), BATCH_SIZE):
        torch.stack(
            [
                augment(crop(source, random)[0], random)
                for source in sources[first : first + BATCH_SIZE]
            ]
        )
    return len(sources) / (clock() - start)


def measure(folder, crops, rounds):
    """Prints the table."""
    corpora = {
        name: [
            row["wav"]
            for row in load_data_csv(
                path / "train.csv", {"data_root": path}
            ).values()
        ]
        for name, path in (("files", folder), ("shards", folder / "shards"))
    }
    reading = RandomCrop(CROP_FRAMES, speeds=[1.0])
    speeds = RandomCrop(CROP_FRAMES, speeds=[1.0, 0.9, 1.1])
    augment = augmentation(folder)
    augment.check()

    def keep(waveform, _):
        return waveform

    cases = {
        "read": (reading, keep, time.process_time),
        NOT_CACHED: (reading, keep, time.perf_counter),
        "and speeds": (speeds, keep, time.process_time),
        "and augmentation": (speeds, augment, time.process_time),
    }
    results = {(case, name): [] for case in cases for name in corpora}
    random = np.random.default_rng(2)
    for turn in tqdm(range(rounds + 1), desc="Measuring"):
        drawn = random.choice(len(corpora["files"]), crops, replace=False)
        for case, arguments in cases.items():
            for name, sources in corpora.items():
                chosen = [sources[i] for i in drawn]
                if case == NOT_CACHED:
                    forget(chosen)
                else:  # have them in memory
                    crops_per_second(chosen, *cases["read"])
                figure = crops_per_second(chosen, *arguments)
                if turn:  # the first is to warm up
                    results[case, name].append(figure)
    print(f"{'crops per second and core':28}{'files':>8}{'shards':>8}")
    for case in cases:
        medians = [statistics.median(results[case, name]) for name in corpora]
        print(f"{case:28}" + "".join(f"{value:8.0f}" for value in medians))


def augmentation(folder):
    """The published augmentation for VoxCeleb2."""
    reverberation = Reverberation(folder)
    noise = Noise(
        folder,
        snr={
            "noise": [0.0, 15.0],
            "music": [5.0, 15.0],
            "speech": [13.0, 20.0],
            "babble": [13.0, 20.0],
        },
    )
    both = Chain([reverberation, noise], probabilities=[1.0, 1.0])
    return Chain(
        [OneOf([both, reverberation, noise], [0.25, 0.10, 0.65]), Gain()],
        probabilities=[0.6, 1.0],
    )


def main():
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="new, or of an earlier call")
    parser.add_argument("--utterances", type=int, default=50000)
    parser.add_argument("--crops", type=int, default=512, help="of a turn")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    complete = options.folder / "complete"
    if not complete.exists():
        options.folder.mkdir(parents=True)
        generate(options.folder, options.utterances)
        make_shards(options.folder)
        os.sync()  # only what is on the disk can be forgotten
        complete.touch()
    measure(options.folder, options.crops, options.rounds)


if __name__ == "__main__":
    main()
