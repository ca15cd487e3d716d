"""Voices in a file of NumPy's arrays (.npz), from one store to another.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import datetime
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from redimnet2_lobes.files.arrays import read_arrays
from redimnet2_lobes.files.atomic import check_new_file, complete_or_absent
from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.files.same_space import KEY
from redimnet2_lobes.voices.checks import (
    LONGEST_NOTE,
    check_seconds,
    checked_embeddings,
    checked_text,
)


class Voices(NamedTuple):
    """Voices, with all that a store keeps of them; arrays of these names."""

    embedding_space: str
    names: list[str]
    consents: list[str]  # "" where there is none
    added: list[str]
    changed: list[str]
    owners: list[int]  # the number of the voice of each prototype
    embeddings: torch.Tensor  # [prototypes, embedding]
    seconds: list[float]
    prototypes_added: list[str]


def write_voices(path: str | os.PathLike, voices: Voices) -> None:
    """Writes a new file, which only its owner may read.

    Example
    -------
    >>> path = getfixture("tmp_path") / "voices.npz"
    >>> date = "2026-11-27T12:00:00+00:00"
    >>> voices = Voices(
    ...     *("b0-1", ["anna"], [""], [date], [date]),
    ...     *([0], torch.ones(1, 2), [2.5], [date]),
    ... )
    >>> write_voices(path, voices)
    >>> read_voices(path).names
    ['anna']
    """
    check_new_file(path)
    arrays: dict[str, Any] = {
        key: np.array(value) for key, value in voices._asdict().items()
    }
    with (
        complete_or_absent(path) as partial,
        open(partial, "wb", opener=_private) as file,
    ):
        np.savez(file, **arrays)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def read_voices(path: str | os.PathLike) -> Voices:
    """Reads a file of `write_voices`. No code in it is run.

    Raises
    ------
    ValueError
        If it is another file, or what it holds could not be of a store: one
        line that names it.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    try:
        arrays = dict(
            zip(Voices._fields, read_arrays(path, *Voices._fields), strict=True)
        )
        embeddings = arrays.pop("embeddings")
        if embeddings.dtype != np.float32:
            raise ValueError("its embeddings are not float32")
        voices = Voices(
            **{key: array.tolist() for key, array in arrays.items()},
            embeddings=torch.tensor(embeddings),
        )
        _check(voices)
    except Exception as error:  # whatever lists of other things lead to
        raise ValueError(
            f"{path}: no export of voices, or damaged ({one_line(error)}); "
            "export them again"
        ) from error
    return voices


def _check(voices: Voices) -> None:
    """Refuses what no store could hold."""
    checked_text(KEY, voices.embedding_space)
    names, prototypes = len(voices.names), len(voices.embeddings)
    for name, consent, *dates in zip(*voices[1:5], strict=True):
        if checked_text("name", name) != name:
            raise ValueError(f"the name {name!r} is not in the form NFC")
        if consent != "":
            checked_text("consent", consent, LONGEST_NOTE)
        _check_dates(dates)
    if len({*voices.names}) < names:
        raise ValueError("a name is there twice")
    checked_embeddings("embeddings", voices.embeddings)
    check_seconds(voices.seconds, prototypes)
    _check_dates(voices.prototypes_added)
    for each in (voices.owners, voices.prototypes_added):
        if len(each) != prototypes:
            raise ValueError("its prototypes are not one in each array")
    if {*voices.owners} != {*range(names)}:
        raise ValueError("a voice has no prototypes, or a prototype no voice")


def _check_dates(dates: Iterable[str]) -> None:
    for date in dates:
        offset = datetime.datetime.fromisoformat(date).utcoffset()
        if offset != datetime.timedelta():
            raise ValueError(f"{date!r} is no date in UTC")
