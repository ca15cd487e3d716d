"""Speed of the data preparation, beside upstream SpeechBrain's.

    python preparation.py [--files 50000] [--seconds 3] [--upstream RECIPE]

A tree of short files in VoxCeleb's layout is made in a temporary folder (hard
links, one file for each speaker). Ours prepares it twice, without decoding:
into an empty save folder, and again with the index of the first time. RECIPE is
recipes/VoxCeleb/voxceleb_prepare.py of a SpeechBrain checkout, called with the
settings of its own ECAPA-TDNN training. Rounds take turns, the page cache is
warm, and the table has the medians.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2] / "recipes/VoxCeleb")
)
from voxceleb_prepare import prepare_voxceleb

FILES_PER_SESSION, SESSIONS_PER_SPEAKER = 8, 20  # as VoxCeleb2, about
TRIAL = "1 id10270/x/00001.wav id10270/y/00001.wav\n"


def write_tree(folder, files, seconds):
    """Write a corpus of equal noises."""
    noise = np.random.default_rng(1).normal(0, 0.1, round(16000 * seconds))
    for number in range(files):
        session, utterance = divmod(number, FILES_PER_SESSION)
        speaker, session = divmod(session, SESSIONS_PER_SPEAKER)
        path = folder / "wav" / f"id{speaker + 12:05d}" / f"session{session}"
        if utterance == 0:
            path.mkdir(parents=True)
            if session == 0:
                original = path / "00000.wav"
                soundfile.write(original, noise, 16000)
                continue
        os.link(original, path / f"{utterance:05d}.wav")


def import_upstream(path):
    """Import it under another name than that of ours."""
    specification = importlib.util.spec_from_file_location("upstream", path)
    module = importlib.util.module_from_spec(specification)
    # Unless it is known, SpeechBrain's lazy imports search for it all the time.
    sys.modules["upstream"] = module
    specification.loader.exec_module(module)
    return module.prepare_voxceleb


def timed(function, *arguments, **options):
    start = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        function(*arguments, **options)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--upstream", type=Path)
    options = parser.parse_args()
    times = {"ours": [], "ours, second run": []}
    if options.upstream:
        times["upstream"] = []
        upstream = import_upstream(options.upstream)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_tree(folder / "corpus", options.files, options.seconds)
        trials = folder / "trials.txt"
        trials.write_text(TRIAL)
        for number in range(options.rounds):
            for name in ("ours", "ours, second run"):
                seconds = timed(
                    prepare_voxceleb,
                    str(folder / "corpus"),
                    str(folder / f"ours{number}"),
                    test_trials=str(trials),
                    check_audio=False,
                )
                times[name].append(seconds)
            if options.upstream:
                seconds = timed(
                    upstream,
                    str(folder / "corpus"),
                    str(folder / f"upstream{number}"),
                    str(trials),
                    splits=["train", "dev"],
                    split_ratio=[90, 10],
                    seg_dur=3.0,
                )
                times["upstream"].append(seconds)
    medians = {name: statistics.median(row) for name, row in times.items()}
    slowest = medians.get("upstream")
    print(
        f"{options.files:,} files of {options.seconds:g} s, "
        f"{len(os.sched_getaffinity(0))} CPUs, median of {options.rounds}"
    )
    print(f"{'':18}{'seconds':>9}{'files/s':>10}{'times upstream':>16}")
    for name, seconds in medians.items():
        ratio = f"{slowest / seconds:.1f}" if slowest else ""
        print(
            f"{name:18}{seconds:9.2f}{options.files / seconds:10,.0f}"
            f"{ratio:>16}"
        )


if __name__ == "__main__":
    main()
