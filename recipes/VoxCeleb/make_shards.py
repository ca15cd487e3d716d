"""Writes the training utterances of a corpus into shards.

A shard is a tar file of some thousands of utterances, for file systems that are
slow with millions of small files. Anything that reads WebDataset reads it: each
utterance has the members ``<ID>.wav`` (or another extension, the file as it is)
and ``<ID>.json`` with its speaker. Of a segment of a file (columns start and
stop) the first holds that alone, decoded without loss. WebDataset allows no
dots in names: there they are ``%2E``. Utterances are dealt to shards at random
and evenly, so that other programs can stream them::

    OUTPUT/shard-000000.tar ...
    OUTPUT/train.csv    where each utterance lies in them, written last
    OUTPUT/plan.json    what the shards are made of

The order is that of TRAIN_CSV, and what training draws from them is the same.
An interrupted run goes on where it was; the result is the same, byte for byte.

Example
-------
python make_shards.py results/b3/save/train.csv /corpora/shards \
    --data_folder=/corpora/VoxCeleb2

Authors
-------
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import math
import signal
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import webdataset
from scipy.io import wavfile
from speechbrain.utils.parallel import get_available_cpu_count
from tqdm import tqdm

from redimnet2_lobes.data.lists import read_rows
from redimnet2_lobes.data.sources import open_audio, split_source
from redimnet2_lobes.data.training_set import COLUMNS
from redimnet2_lobes.files.atomic import complete_or_absent
from redimnet2_lobes.files.error_lines import one_line_errors
from redimnet2_lobes.files.json_files import read_json
from redimnet2_lobes.files.settings import check_at_least

Row = tuple[str, float, str, str]  # as COLUMNS
Task = tuple[Path, list[Row]]  # a shard and its utterances
Place = tuple[int, int]  # offset and size in a shard, in bytes

# Of these a WAV file holds every sample as it is.
PCM = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32")


def make_shards(
    train_csv: str | Path,
    output: str | Path,
    data_folder: str,
    save_folder: str | None = None,
    utterances_per_shard: int = 4000,
    workers: int | None = None,
    seed: int = 0,
) -> None:
    r"""Writes shards and their index.

    Arguments
    ---------
    train_csv
        The utterances, as ``prepare_voxceleb`` lists them.
    output
        A new folder, or that of an interrupted run with the same arguments.
    data_folder, save_folder
        Stand for ``$data_root`` and ``$save_root``; the latter is by default
        the folder that holds ``train_csv``.
    utterances_per_shard
        At most. The default makes shards of 1 GB of VoxCeleb2.
    workers
        Number of processes; by default one for each available CPU.
    seed
        Of the random order.

    Raises
    ------
    ValueError
        If ``train_csv`` is of another form, a name cannot be written, or
        ``output`` holds something else.

    Example
    -------
    >>> import soundfile
    >>> folder = getfixture("tmp_path")
    >>> soundfile.write(folder / "a.wav", [0.0, 0.5, 0.25], 16000)
    >>> _ = (folder / "train.csv").write_text(
    ...     "ID,duration,wav,spk_id\nalice/home/a,1.5,$data_root/a.wav,alice"
    ... )
    >>> make_shards(folder / "train.csv", folder / "shards", folder, workers=1)
    >>> print((folder / "shards" / "train.csv").read_text().rstrip())
    ID,duration,wav,spk_id
    alice/home/a,1.5,$data_root/shard-000000.tar:1536:50,alice
    """
    counts = {"utterances_per_shard": utterances_per_shard, "workers": workers}
    check_at_least(counts, utterances_per_shard=1, workers=1)
    train_csv, output = Path(train_csv), Path(output)
    utterances = _read_utterances(
        train_csv, data_folder, save_folder or train_csv.parent
    )
    plan = {
        "train_csv_sha256": hashlib.sha256(train_csv.read_bytes()).hexdigest(),
        "utterances_per_shard": utterances_per_shard,
        "seed": seed,
    }
    claim(output, plan)
    order = np.random.default_rng(seed).permutation(len(utterances))
    shards = np.array_split(order, math.ceil(len(order) / utterances_per_shard))
    tasks = [
        (output / f"shard-{number:06}.tar", [utterances[i] for i in members])
        for number, members in enumerate(shards)
    ]
    rows = [None] * len(utterances)
    places = make_all(_make_shard, tasks, workers)
    for (path, _), members, ranges in zip(tasks, shards, places, strict=True):
        for i, (offset, size) in zip(members, ranges, strict=True):
            name, duration, _, speaker = utterances[i]
            source = f"$data_root/{path.name}:{offset}:{size}"
            rows[i] = [name, duration, source, speaker]
    with (
        atomic_file(output / "train.csv") as partial,
        open(partial, "w", newline="", encoding="utf-8") as stream,
    ):
        csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *rows])


def _read_utterances(
    train_csv: Path, data_folder: str, save_folder: str | Path
) -> list[Row]:
    replacements = {"data_root": data_folder, "save_root": save_folder}
    try:
        utterances = [
            (row["ID"], float(row["duration"]), row["wav"], row["spk_id"])
            for _, row in read_rows(train_csv, COLUMNS, replacements)
        ]
    except ValueError as error:
        raise ValueError(
            f"{train_csv}: not a list of utterances as the preparation writes "
            f"it ({error}); name its train.csv"
        ) from None
    if not utterances:
        raise ValueError(f"{train_csv}: no utterances; prepare a corpus first")
    seen = set()
    for name, *_ in utterances:
        if name in seen:
            raise ValueError(
                f"{train_csv}: utterance {name} is there twice; remove one"
            )
        seen.add(name)
    return utterances


def claim(output: Path, plan: dict[str, object]) -> None:
    """Notes the plan in a new folder, or compares it with that of the last."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / "plan.json"
    if path.exists():
        try:
            noted = read_json(path)
            if not isinstance(noted, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            raise ValueError(
                f"{path}: damaged ({error}), so what its shards are made of is "
                "unknown; name a new folder"
            ) from error
        for key, value in plan.items():
            if noted.get(key) != value:
                raise ValueError(
                    f"{output}: its shards were made with another {key} "
                    f"({noted.get(key)!r}, now {value!r}); name a new folder"
                )
    elif any(output.iterdir()):
        raise ValueError(
            f"{output}: holds other files, but no shards; name a new folder"
        )
    else:
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(plan), encoding="utf-8")


def make_all(
    make: Callable[[Any], Any], tasks: list, workers: int | None
) -> list:
    """What a function gives for each shard, called in several processes."""
    workers = min(workers or get_available_cpu_count(), len(tasks))
    try:
        with ProcessPoolExecutor(workers, initializer=_start_worker) as pool:
            results = pool.map(make, tasks)
            bar = {"desc": "Writing shards", "unit": "shard"}
            return list(tqdm(results, total=len(tasks), **bar))
    except BrokenProcessPool:
        raise OSError(
            f"one of the {workers} workers was killed, perhaps for want of "
            "memory; run the same command again with fewer --workers"
        ) from None


def _start_worker() -> None:
    # Ctrl-C reaches the whole group; the parent then stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _make_shard(task: Task) -> list[Place]:
    """Writes a shard unless it is there; gives the places of its utterances."""
    path, utterances = task
    audio = [
        member_name(name) + _extension(wav) for name, _, wav, _ in utterances
    ]
    ranges = read_shard(path)
    if set(audio) - set(ranges):  # it is not there, or was damaged
        _write_shard(path, utterances)
        ranges = read_shard(path)
    return [ranges[name] for name in audio]


def read_shard(path: Path) -> dict[str, Place]:
    """The place of each member of a shard; of none if it cannot be read."""
    try:
        with tarfile.open(path) as shard:
            return {each.name: (each.offset_data, each.size) for each in shard}
    except (FileNotFoundError, tarfile.ReadError):
        return {}


def _write_shard(path: Path, utterances: list[Row]) -> None:
    with (
        atomic_file(path) as partial,
        open(partial, "wb") as stream,
        # Without times, the same utterances make the same bytes.
        webdataset.TarWriter(stream, mtime=0) as shard,
    ):
        for name, duration, wav, speaker in utterances:
            shard.write(
                {
                    "__key__": member_name(name),
                    "json": {"spk_id": speaker, "duration": duration},
                    _extension(wav)[1:]: _read_audio(wav),
                }
            )


def member_name(name: str) -> str:
    """The name without dots, after which WebDataset looks for an extension."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.replace("%", "%25").replace(".", "%2E")


def _extension(wav: str) -> str:
    path, place = split_source(wav)
    return ".wav" if place else Path(path).suffix.lower()


def _read_audio(wav: str) -> bytes:
    """The bytes of a file as it is, or of a WAV file of a segment."""
    if not split_source(wav)[1]:
        return Path(wav).read_bytes()
    member = io.BytesIO()
    with open_audio(wav) as audio:
        rate, length = audio.samplerate, audio.length
        if audio.subtype in PCM:
            samples = audio.read_part(0, length, "int32")
            soundfile.write(member, samples, rate, audio.subtype, format="WAV")
        else:  # as float32, in which soundfile would note the time as well
            wavfile.write(member, rate, audio.read_part(0, length))
    return member.getvalue()


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary name, and says how to go on if that fails."""
    try:
        with complete_or_absent(path) as partial:
            yield partial
    except OSError as error:
        if error.filename not in (None, str(path)):
            raise
        raise OSError(
            f"{path}: {error.strerror}; once that is mended, run the same "
            "command again, which keeps the shards that are complete"
        ) from None


def add_options_of_shards(parser: argparse.ArgumentParser) -> None:
    """Adds what every script that writes shards takes.

    Example
    -------
    >>> parser = argparse.ArgumentParser()
    >>> add_options_of_shards(parser)
    >>> parser.parse_args([])
    Namespace(utterances_per_shard=4000, workers=None, seed=0)
    """
    parser.add_argument(
        "--utterances_per_shard",
        type=int,
        default=4000,
        help="default: %(default)s, 1 GB of VoxCeleb2",
    )
    parser.add_argument(
        "--workers", type=int, help="processes (default: one for each CPU)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the order (default: 0)"
    )


def main(arguments: list[str] | None = None) -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(
        description="Write training utterances into WebDataset shards."
    )
    parser.add_argument("train_csv", help="the list that preparation wrote")
    parser.add_argument("output", help="a new folder for the shards")
    parser.add_argument(
        "--data_folder", required=True, help="the folder of the corpus"
    )
    parser.add_argument(
        "--save_folder",
        help="the folder of converted files (default: that of TRAIN_CSV)",
    )
    add_options_of_shards(parser)
    options = parser.parse_args(arguments)
    with one_line_errors():
        try:
            make_shards(**vars(options))
        except FileNotFoundError as error:
            raise ValueError(
                f"{error.filename}: no such file; pass the train.csv and the "
                "--data_folder of one training"
            ) from error


if __name__ == "__main__":
    main()
