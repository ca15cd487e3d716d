"""Writes the utterances of a Hugging Face dataset into shards.

The dataset has a column of audio (``Audio``) and one of speakers. It is a
folder that ``Dataset.save_to_disk`` wrote, a folder of Parquet files, or a name
on the hub. What comes of it are shards as those of ``make_shards.py``, with the
audio as it is. Where it is not of 16 kHz and one channel, which training needs,
that is a 32-bit WAV file made of it::

    OUTPUT/shard-000000.tar ...
    OUTPUT/train.csv      where each utterance lies in them, written last
    OUTPUT/left_out.csv   what cannot be used, with the reasons, if anything
    OUTPUT/plan.json      what the shards are made of

``train.csv`` is a list for training, extraction and cohorts. An interrupted run
goes on where it was; the result is the same, byte for byte.

Example
-------
python import_dataset.py /corpora/dataset /corpora/shards --split=train \
    --speaker_column=client_id

Authors
-------
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
import csv
import functools
import io
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import webdataset
from make_shards import (
    add_options_of_shards,
    atomic_file,
    claim,
    make_all,
    member_name,
    read_shard,
)
from scipy.io import wavfile

from redimnet2_lobes.data.audio import AudioError, load_waveform
from redimnet2_lobes.data.training_set import COLUMNS
from redimnet2_lobes.files.error_lines import one_line, one_line_errors
from redimnet2_lobes.files.json_files import read_json
from redimnet2_lobes.files.settings import check_at_least
from redimnet2_lobes.models.front_end import SAMPLE_RATE

Task = tuple[Path, list[int]]  # a shard and the rows of the dataset in it


def import_dataset(
    dataset: str,
    output: str | Path,
    split: str | None = None,
    config: str | None = None,
    audio_column: str = "audio",
    speaker_column: str = "speaker",
    name_column: str | None = None,
    utterances_per_shard: int = 4000,
    workers: int | None = None,
    seed: int = 0,
) -> None:
    """Writes shards and their index.

    Arguments
    ---------
    dataset
        A folder, or a name on the hub.
    output
        A new folder, or that of an interrupted run with the same arguments.
    split, config
        Of the dataset, where it has several.
    audio_column, speaker_column, name_column
        What utterances are called is by default ``<speaker>/<row>``.
    utterances_per_shard
        At most.
    workers
        Number of processes; by default one for each available CPU.
    seed
        Of the random order in which utterances are dealt to shards.

    Raises
    ------
    ValueError
        If the dataset cannot be loaded, has no such column, or two utterances
        of one name, or ``output`` holds something else.

    Example
    -------
    >>> import datasets
    >>> folder = getfixture("tmp_path")
    >>> wave = np.linspace(-0.5, 0.5, 8000)
    >>> soundfile.write(folder / "a.wav", wave, 16000)
    >>> audio = {"bytes": (folder / "a.wav").read_bytes(), "path": "a.wav"}
    >>> rows = datasets.Dataset.from_dict({"audio": [audio], "who": ["anna"]})
    >>> rows.save_to_disk(folder / "dataset")
    >>> import_dataset(
    ...     str(folder / "dataset"), folder / "shards", speaker_column="who",
    ...     workers=1
    ... )
    >>> print((folder / "shards" / "train.csv").read_text().rstrip())
    ID,duration,wav,spk_id
    anna/0,0.5,$data_root/shard-000000.tar:1536:16044,anna
    """
    counts = {"utterances_per_shard": utterances_per_shard, "workers": workers}
    check_at_least(counts, utterances_per_shard=1, workers=1)
    output = Path(output)
    rows = _load(dataset, split, config)
    columns = [audio_column, speaker_column, name_column]
    rows = _take_columns(rows, dataset, *columns)
    claim(
        output,
        {
            "dataset": os.path.abspath(dataset)
            if os.path.isdir(dataset)
            else dataset,
            "rows": len(rows),
            "split": split,
            "config": config,
            "columns": columns,
            "utterances_per_shard": utterances_per_shard,
            "seed": seed,
        },
    )
    index = output / "train.csv"
    if index.exists():
        print(f"complete already: {index}")
        return
    order = np.random.default_rng(seed).permutation(len(rows))
    shards = np.array_split(order, math.ceil(len(order) / utterances_per_shard))
    tasks = [
        (output / f"shard-{number:06}.tar", members.tolist())
        for number, members in enumerate(shards)
    ]
    made = make_all(functools.partial(_make_shard, rows), tasks, workers)
    used = sorted(row for shard in made for row in shard["used"])
    left_out = sorted(row for shard in made for row in shard["left_out"])
    if not used:
        _, name, reason = left_out[0]
        raise ValueError(
            f"{dataset}: no utterance can be used; the first, {name}, is "
            f"{reason}"
        )
    report = output / "left_out.csv"
    if left_out:
        _write_csv(report, ["ID", "reason"], left_out)
        print(
            f"left out  {len(left_out)} of the {len(rows)} utterances, "
            f"{report} names them"
        )
    _write_csv(index, COLUMNS, used)
    for path, _ in tasks:
        _notes(path).unlink(missing_ok=True)


def _load(dataset: str, split: str | None, config: str | None) -> Any:
    """The rows of a dataset, whose audio is not decoded."""
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{dataset}: to read it, pip install datasets"
        ) from None
    saved = ("state.json", "dataset_dict.json")
    try:
        if any(os.path.exists(os.path.join(dataset, name)) for name in saved):
            rows = datasets.load_from_disk(dataset)
            if config is not None:
                raise ValueError("it has no configurations; omit --config")
            if split is not None and isinstance(rows, datasets.DatasetDict):
                rows = rows[split]
            elif split is not None and split != rows.split:
                raise ValueError("it has no splits; omit --split")
        else:
            rows = datasets.load_dataset(dataset, config, split=split)
    except Exception as error:  # datasets and pyarrow have kinds of their own
        raise ValueError(
            f"{dataset}: cannot be loaded as a dataset ({one_line(error)}); "
            "give a folder that save_to_disk wrote, one of Parquet files, or a "
            "name on the hub"
        ) from error
    if isinstance(rows, datasets.DatasetDict):
        raise ValueError(
            f"{dataset}: has the splits {', '.join(rows)}; pass --split"
        )
    return rows


def _take_columns(
    rows: Any, dataset: str, audio: str, speaker: str, name: str | None
) -> Any:
    """The columns audio, of undecoded audio, speaker, and name if given."""
    import datasets

    wanted = {"audio": audio, "speaker": speaker}
    if name is not None:
        wanted["name"] = name
    for key, column in wanted.items():
        if column not in rows.column_names:
            raise ValueError(
                f"{key}_column: {dataset} has no column {column}, but "
                f"{', '.join(rows.column_names)}"
            )
    if len(set(wanted.values())) < len(wanted):
        raise ValueError(
            f"{dataset}: audio, speaker and name need a column each"
        )
    rows = rows.select_columns(list(wanted.values()))
    rows = rows.rename_columns(
        {column: key for key, column in wanted.items() if column != key}
    )
    try:
        rows = rows.cast_column("audio", datasets.Audio(decode=False))
    except Exception as error:  # of pyarrow
        raise ValueError(
            f"audio_column: {audio} of {dataset} holds no audio "
            f"({one_line(error)})"
        ) from error
    if not isinstance(
        rows.features["speaker"], datasets.Value | datasets.ClassLabel
    ):
        raise ValueError(
            f"speaker_column: {speaker} of {dataset} holds no names, but "
            f"{rows.features['speaker']}"
        )
    if name is not None:
        seen = set()
        for each in rows["name"]:
            if each in seen:
                raise ValueError(
                    f"name_column: {dataset} has two utterances {each}; leave "
                    "it out to number them"
                )
            seen.add(each)
    return rows


def _make_shard(rows: Any, task: Task) -> dict[str, list]:
    """Writes a shard unless it is there; gives what it holds and lacks.

    That is ``used``, as [row, ID, duration, wav, speaker], and ``left_out``, as
    [row, ID, reason]; it is noted beside the shard, once that is there.
    """
    path, numbers = task
    try:
        if path.exists():
            return read_json(_notes(path))
    except (OSError, ValueError):
        pass  # it was interrupted
    written, left_out = [], []
    with (
        atomic_file(path) as partial,
        open(partial, "wb") as stream,
        # Without times, the same utterances make the same bytes.
        webdataset.TarWriter(stream, mtime=0) as shard,
    ):
        for number in numbers:
            name, speaker = str(number), ""
            try:
                row = rows[number]
                speaker = _speaker(rows, row["speaker"])
                name = _checked(f"{row.get('name', f'{speaker}/{number}')}")
                audio, extension, duration = _for_training(_audio(row["audio"]))
            except AudioError as error:
                reason = f"{error.reason}; {error.remedy}"
                left_out.append([number, name, reason])
                continue
            shard.write(
                {
                    "__key__": member_name(name),
                    "json": {"spk_id": speaker, "duration": duration},
                    extension: audio,
                }
            )
            member = f"{member_name(name)}.{extension}"
            written.append([number, name, duration, member, speaker])
    places = read_shard(path)
    used = []
    for number, name, duration, member, speaker in written:
        offset, size = places[member]
        wav = f"$data_root/{path.name}:{offset}:{size}"
        used.append([number, name, duration, wav, speaker])
    found = {"used": used, "left_out": left_out}
    with atomic_file(_notes(path)) as partial:
        partial.write_text(json.dumps(found), encoding="utf-8")
    return found


def _notes(shard: Path) -> Path:
    return shard.with_suffix(".json")


def _speaker(rows: Any, value: Any) -> str:
    """The name of a speaker, of whatever type the column is."""
    feature = rows.features["speaker"]
    if value is None or value != value:  # NaN
        raise AudioError("without a speaker", "name one in the dataset")
    if hasattr(feature, "int2str"):
        value = feature.int2str(value)
    return _checked(str(value).strip())


def _checked(name: str) -> str:
    """A name that any list can hold."""
    if name.splitlines() != [name] or name != name.strip() or "\0" in name:
        raise AudioError(
            f"called {name!r}, or its speaker is, which lists cannot hold",
            "rename it in the dataset",
        )
    return name


def _audio(value: dict[str, Any] | None) -> bytes:
    """The bytes of the audio file that a row holds or names."""
    if not value or not (value["bytes"] or value["path"]):
        raise AudioError("empty", "leave it out")
    if value["bytes"]:
        return value["bytes"]
    try:
        return Path(value["path"]).read_bytes()
    except OSError as error:
        raise AudioError(
            f"only named, as {value['path']} ({error.strerror})",
            "save the dataset with its audio embedded",
        ) from None


def _for_training(audio: bytes) -> tuple[bytes, str, float]:
    """Audio as training reads it, the ending of such a file, and its seconds.

    Of other rates or channels it is a WAV file of what inference makes of it.
    """
    with tempfile.NamedTemporaryFile() as file:
        file.write(audio)
        file.flush()
        waveform = load_waveform(file.name)
    seconds = len(waveform) / SAMPLE_RATE
    with soundfile.SoundFile(io.BytesIO(audio)) as file:
        if (file.samplerate, file.channels) == (SAMPLE_RATE, 1):
            return audio, file.format.lower(), seconds
    converted = io.BytesIO()
    # In a file of float32 soundfile would note the time.
    wavfile.write(converted, SAMPLE_RATE, waveform.numpy())
    return converted.getvalue(), "wav", seconds


def _write_csv(path: Path, columns: Any, rows: list[list]) -> None:
    """Writes rows, without the numbers by which they were sorted."""
    with (
        atomic_file(path) as partial,
        open(partial, "w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(row[1:] for row in rows)


def main(arguments: list[str] | None = None) -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(
        description="Write a Hugging Face dataset into WebDataset shards."
    )
    parser.add_argument("dataset", help="a folder, or a name on the hub")
    parser.add_argument("output", help="a new folder for the shards")
    parser.add_argument("--split", help="such as train")
    parser.add_argument("--config", help="such as a language")
    parser.add_argument("--audio_column", default="audio")
    parser.add_argument("--speaker_column", default="speaker")
    parser.add_argument("--name_column", help="default: names are SPEAKER/ROW")
    add_options_of_shards(parser)
    options = parser.parse_args(arguments)
    with one_line_errors():
        import_dataset(**vars(options))


if __name__ == "__main__":
    main()
