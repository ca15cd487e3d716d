"""Embeddings that are computed once and cached.

The cache of a list of utterances is a folder whose name is a hash of all that
its embeddings depend on: the network's weights and architecture, the settings
of the test, and the names, sizes and times of the files. So a changed
checkpoint or a changed file never meets old embeddings. The work is cut into
parts, and each is a file of its own, so that an interrupted extraction goes on
and several processes share one. Nothing is pickled.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    is_distributed_initialized,
)
from tqdm import tqdm

from redimnet2_lobes.data.audio import AudioError
from redimnet2_lobes.data.conditions import Condition
from redimnet2_lobes.data.sources import split_source
from redimnet2_lobes.files.arrays import read_arrays
from redimnet2_lobes.files.atomic import replace_when_synced
from redimnet2_lobes.files.settings import check_at_least
from redimnet2_lobes.inference.encode import (
    AveragedCrops,
    EncodeBatch,
    encode_utterances,
    load_source,
)
from redimnet2_lobes.models.front_end import SAMPLE_RATE

# Enters every key: a new number makes all caches anew. Raise it when audio
# is read in another way, or when the parts change their form.
VERSION = 2

Part = tuple[Path, list[str]]  # its file and its utterances
Faults = dict[str, AudioError]  # of utterances without an embedding, by name
Load = Callable[[str], torch.Tensor]  # a source to its waveform [samples]


@dataclass
class Embeddings:
    """Embeddings of named utterances, as the network gives them.

    Example
    -------
    >>> embeddings = Embeddings(["a", "b"], torch.eye(2), torch.ones(2))
    >>> embeddings.vectors[embeddings.rows(["b", "b"])]
    tensor([[0., 1.],
            [0., 1.]])
    """

    names: list[str]
    vectors: torch.Tensor  # [utterances, embedding], float32
    seconds: torch.Tensor  # of audio that was used [utterances], float32

    def __post_init__(self):
        self._row = {name: row for row, name in enumerate(self.names)}

    def rows(self, names: Iterable[str]) -> torch.Tensor:
        """Rows of ``vectors`` of utterances, int64 [names].

        It is a ValueError if there is no embedding of a name.
        """
        try:
            rows = [self._row[name] for name in names]
            return torch.tensor(rows, dtype=torch.int64)
        except KeyError as error:
            raise ValueError(
                f"{error.args[0]}: not among the {len(self.names)} utterances "
                "with an embedding; add it to their list"
            ) from None


def extract_embeddings(
    encode_batch: EncodeBatch,
    utterances: Mapping[str, str | os.PathLike],
    folder: str | os.PathLike,
    fingerprint: str,
    *,
    seconds_per_batch: float = 240.0,
    maximum_seconds: float | None = None,
    crops: int | None = None,
    utterances_per_part: int = 512,
    faults: Faults | None = None,
    condition: Condition | None = None,
) -> Embeddings:
    """Embeddings of utterances, in their order, from the cache or computed.

    With ``torch.distributed`` initialized, all processes call this with the
    same arguments, share the work and return the same; the folder must be one
    that all of them see. The embeddings do not depend on their number.

    It is an AudioError if a file cannot be used or its embedding is not finite,
    unless ``faults`` are kept, an OSError if the cache cannot be used, and a
    ValueError if a setting is wrong.

    Arguments
    ---------
    encode_batch, seconds_per_batch, maximum_seconds
        As for `encode_utterances`. A complete cache needs no ``encode_batch``.
    utterances
        The name of each utterance to its audio file, a segment of one,
        ``<path>[<start>:<stop>]``, or its place in a shard,
        ``<shard>.tar:<offset>:<size>``.
    folder
        Holds the caches, each in a folder of its own.
    fingerprint
        Stands for the network: its `embedding_space`, and what else its
        embeddings depend on.
    crops
        If given, so many crops of ``maximum_seconds`` each are averaged:
        `AveragedCrops`.
    utterances_per_part
        An interrupted extraction loses so many embeddings of each process at
        most. A change makes a new cache.
    faults
        Receives what is wrong with each utterance that cannot be used, by name;
        only the others are returned, none if there is none. The cache keeps
        that, too. None stops at the first.
    condition
        Changes each utterance, by its name, before it is embedded. A file of
        several names is changed as the first of them in the alphabet.

    Example
    -------
    >>> import soundfile
    >>> folder = getfixture("tmp_path")
    >>> soundfile.write(folder / "a.wav", [0.0, 0.5] * 400, 16000)
    >>> def encode_batch(wavs, wav_lens):  # in place of a network
    ...     return wavs[:, None, :2]
    >>> utterances = {"a": str(folder / "a.wav")}
    >>> extract_embeddings(encode_batch, utterances, folder / "cache", "1")
    Embeddings(names=['a'], vectors=tensor([[0.0000, 0.5000]]), \
seconds=tensor([0.0500]))
    >>> extract_embeddings(None, utterances, folder / "cache", "1").names
    ['a']
    """
    if not utterances:
        raise ValueError("utterances: there are none; name at least one")
    if crops is not None:
        if maximum_seconds is None:
            raise ValueError(
                "maximum_seconds: missing; crops needs it, the seconds of each"
            )
        encode_batch = AveragedCrops(encode_batch, maximum_seconds, crops)
    check_at_least(
        {"utterances_per_part": utterances_per_part}, utterances_per_part=1
    )
    sources = {name: os.fspath(path) for name, path in utterances.items()}
    # One order for all, so that the order of a list is not part of its key.
    names = sorted(sources)
    settings = [fingerprint, utterances_per_part]
    settings += [maximum_seconds and float(maximum_seconds), crops]
    load = load_source
    if condition is not None:
        settings.append(condition.settings())
        load = _changed_by(
            condition, {sources[name]: name for name in names[::-1]}
        )
    folder = Path(folder) / extraction_key(sources, settings, faults is None)
    size = utterances_per_part
    parts = [
        (folder / f"part-{start:09}.npz", names[start : start + size])
        for start in range(0, len(names), size)
    ]

    encode = functools.partial(
        encode_utterances,
        encode_batch,
        seconds_per_batch=seconds_per_batch,
        maximum_seconds=None if crops else maximum_seconds,
    )
    most_samples = math.inf
    if maximum_seconds is not None:
        most_samples = round(maximum_seconds * SAMPLE_RATE) * (crops or 1)
    _make_parts(parts, sources, load, encode, most_samples, faults is None)
    ddp_barrier()
    embeddings, found = _read_parts(parts, list(utterances))
    if faults is not None:
        faults.update(found)
    # The caller of one process may now remove what all have read.
    ddp_barrier()
    return embeddings


def _changed_by(condition: Condition, names: dict[str, str]) -> Load:
    """Reads what a condition makes of a source, by the name of each."""
    return lambda source: condition(names[source], load_source(source))


def extraction_key(
    sources: Mapping[str, str], settings: list, strict: bool = False
) -> str:
    """A hash of settings and of the list with the state of its files.

    It does not depend on the order of the list. With ``strict`` a file that is
    missing is an AudioError.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.wav"
    >>> key = extraction_key({"a": str(path)}, ["b0-1"])
    >>> _ = path.write_bytes(b"audio")
    >>> key == extraction_key({"a": str(path)}, ["b0-1"])
    False
    """
    settings = [VERSION, *settings]
    digest = hashlib.sha256(json.dumps(settings).encode())
    stat = functools.lru_cache(4096)(os.stat)  # files may hold many utterances
    for name in sorted(sources):
        source = sources[name]
        path, place = split_source(source)
        try:
            status = stat(path)
            state = [name, status.st_size, status.st_mtime_ns, *place]
        except OSError as error:
            if strict and isinstance(error, FileNotFoundError):
                raise AudioError("missing", "check the path", source) from None
            if strict:
                raise
            state = [name, None, *place]
        digest.update(json.dumps(state).encode())
    return digest.hexdigest()[:32]


def _make_parts(
    parts: list[Part],
    sources: dict[str, str],
    load: Load,
    encode: Callable,
    most_samples: float,
    strict: bool,
) -> None:
    """Makes the parts of this process that are missing or damaged.

    With ``strict`` those with faults are made again, which finds the fault.
    """
    rank, processes = 0, 1
    if is_distributed_initialized():
        rank = torch.distributed.get_rank()
        processes = torch.distributed.get_world_size()
    own = parts[rank::processes]
    parts[0][0].parent.mkdir(parents=True, exist_ok=True)
    missing = []
    for path, names in own:
        part = _read_part(path, names)
        if part is None or (strict and part.faults):
            missing.append((path, names))
    total = sum(len(names) for _, names in own)
    left = sum(len(names) for _, names in missing)
    with tqdm(
        total=total,
        initial=total - left,
        desc="embeddings",
        unit="file",
        disable=not (left and if_main_process()),
    ) as progress:
        for path, names in missing:
            paths = {name: sources[name] for name in names}
            part = _compute(paths, load, encode, most_samples, progress, strict)
            _write_part(path, names, part)


class _Content(NamedTuple):
    """What a part holds, of the utterances without faults in their order."""

    vectors: torch.Tensor  # [utterances, embedding]
    seconds: torch.Tensor  # [utterances]
    faults: Faults


def _compute(
    paths: dict[str, str],
    load: Load,
    encode: Callable,
    most_samples: float,
    progress: tqdm,
    strict: bool,
) -> _Content:
    """Embeds the utterances of a part."""
    samples = {}
    faults = None if strict else {}

    def load_and_count(path: str) -> torch.Tensor:
        waveform = load(path)
        # By several threads at once, but each path by one.
        samples[path] = min(len(waveform), most_samples)
        return waveform

    vectors = encode(
        paths.values(), load=load_and_count, progress=progress, faults=faults
    )
    # Two names may stand for one file, which was read once.
    progress.update(len(paths) - len(set(paths.values())))
    good = [path for path in paths.values() if path in vectors]
    return _Content(
        torch.stack([vectors[path] for path in good])
        if good
        else torch.empty(0, 0),
        torch.tensor([samples[path] for path in good]).float() / SAMPLE_RATE,
        {
            name: faults[path]
            for name, path in paths.items()
            if faults and path in faults
        },
    )


def _write_part(path: Path, names: list[str], part: _Content) -> None:
    described = [
        [name, error.reason, error.remedy, error.path or ""]
        for name, error in part.faults.items()
    ]
    arrays = {
        "names": np.array(names),
        "vectors": part.vectors.numpy(),
        "seconds": part.seconds.numpy(),
        "faults": np.array(described, np.str_).reshape(-1, 4),
    }
    # The process in the name: another extraction may be at work here as well.
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as file:
            np.savez(file, **arrays)
        replace_when_synced(partial, path)
    except OSError as error:
        raise OSError(
            f"{path}: cannot be written ({error.strerror or error}); once "
            "that is mended, run the same command again, which keeps what is "
            "complete"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _read_part(path: Path, names: list[str]) -> _Content | None:
    """What a part holds; None if it is not there or damaged."""
    try:
        found, vectors, seconds, described = read_arrays(
            path, "names", "vectors", "seconds", "faults"
        )
        found = found.tolist()
        described_texts = described.tolist()
    except (ValueError, OSError, SystemError):  # the last: no Unicode
        return None
    if (
        found != names
        or described.dtype.kind != "U"
        or described.shape[1:] != (4,)
    ):
        return None
    faults = {name: AudioError(*rest) for name, *rest in described_texts}
    count = len(names) - len(faults)
    if (
        not faults.keys() <= set(names)
        or vectors.ndim != 2
        or (len(vectors), *seconds.shape) != (count, count)
        or not vectors.dtype == seconds.dtype == np.float32
        or not (np.isfinite(vectors).all() and np.isfinite(seconds).all())
    ):
        return None
    vectors, seconds = torch.from_numpy(vectors), torch.from_numpy(seconds)
    return _Content(vectors, seconds, faults)


def _read_parts(
    parts: list[Part], order: list[str]
) -> tuple[Embeddings, Faults]:
    """The embeddings of all parts in an order of names, and their faults."""
    row = {name: index for index, name in enumerate(order)}
    vectors, seconds = torch.empty(len(order), 0), torch.empty(len(order))
    faults: Faults = {}
    for path, names in parts:
        part = _read_part(path, names)
        if part is None:
            raise OSError(
                f"{path}: missing or damaged since it was written; run the "
                "same command again, with a folder that all processes see"
            )
        faults.update(part.faults)
        rows = [row[name] for name in names if name not in part.faults]
        if rows and not vectors.shape[1]:
            vectors = torch.empty(len(order), part.vectors.shape[1])
        if rows:
            vectors[rows], seconds[rows] = part.vectors, part.seconds
    if faults:
        good = [row[name] for name in order if name not in faults]
        order = [order[index] for index in good]
        vectors, seconds = vectors[good], seconds[good]
        faults = {name: faults[name] for name in row if name in faults}
    return Embeddings(order, vectors, seconds), faults
