r"""PLDA back-ends in Kaldi's files.

Kaldi keeps the chain of a ``PldaBackend`` in a folder, as its recipes have it:

- ``mean.vec``, the vector that ``ivector-subtract-global-mean`` subtracts;
- ``transform.mat``, LDA [lda_dimension, embedding], to which
  ``ivector-compute-lda`` adds a column, an offset;
- ``plda``, of ``ivector-compute-plda``: ``mean``, ``transform`` and ``psi``.
  Behind the transform the covariance within speakers is the identity, and that
  between them has the diagonal ``psi``.

Where `PldaBackend` gives vectors the length 1, ``ivector-normalize-length``
gives them the square root of their dimension. That is a change of units, and is
made here in both directions. So scores are those of

    ivector-plda-scoring --normalize-length=false

for enrolments of one utterance. By default that program normalizes lengths a
second time, inside PLDA, which `PldaBackend` does not.

The files are Kaldi's objects, in binary or as text: no archives, whose lists
may name commands.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
import os
import re
import struct
from pathlib import Path

import numpy as np
from scipy import linalg

from redimnet2_lobes.files.atomic import complete_or_absent
from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.files.same_space import FILE, check_same_space
from redimnet2_lobes.scoring.plda import PldaBackend

MEAN, LDA, PLDA = "mean.vec", "transform.mat", "plda"

# What stands before numbers in a binary file: their type and dimensions.
KINDS = {b"FV": ("<f4", 1), b"DV": ("<f8", 1)}
KINDS |= {b"FM": ("<f4", 2), b"DM": ("<f8", 2)}

# In a text: numbers in brackets, or a word.
PARTS = re.compile(r"\[([^][]*)\]|([^][\s]+)")

Parts = list[str | np.ndarray]


def write_kaldi_plda(
    folder: str | os.PathLike, backend: PldaBackend, space: str
) -> None:
    """Writes a back-end as a folder of Kaldi's binary files, in float64.

    ``space``, that of the embeddings, goes into a file beside them.

    Example
    -------
    >>> one = np.eye(2)
    >>> backend = PldaBackend([1.0, 2.0], one, [0.0, 0.0], one, one)
    >>> folder = getfixture("tmp_path") / "plda"
    >>> write_kaldi_plda(folder, backend, "redimnet2-b3-1")
    >>> sorted(path.name for path in folder.iterdir())
    ['embedding_space.txt', 'mean.vec', 'plda', 'transform.mat']
    >>> read_kaldi_plda(folder, "redimnet2-b3-1").mean
    array([1., 2.])
    """
    scale = math.sqrt(len(backend.plda_mean))
    psi, directions = linalg.eigh(backend.F @ backend.F.T, backend.Sigma)
    plda: Parts = [
        "<Plda>",
        scale * backend.plda_mean,
        directions.T[::-1] / scale,
        psi[::-1].clip(min=0),  # Kaldi has them in falling order
        "</Plda>",
    ]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        (FILE, f"{space}\n".encode()),
        (MEAN, _packed([backend.mean])),
        (LDA, _packed([backend.lda.T])),
        (PLDA, _packed(plda)),
    ):
        with complete_or_absent(folder / name) as partial:
            partial.write_bytes(content)


def read_kaldi_plda(folder: str | os.PathLike, space: str) -> PldaBackend:
    """Reads a back-end from a folder of Kaldi's files, for a space.

    What Kaldi has trained does not say its space, and passes. It is a
    ValueError if a file is missing or damaged, is of another space, or the
    files do not fit each other.
    """
    folder = Path(folder)
    for name in (MEAN, LDA, PLDA):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder}: no PLDA of Kaldi's, for it has no file {name}; "
                f"give a folder with {MEAN}, {LDA} and {PLDA}"
            )
    (mean,) = _read(folder / MEAN, 1)
    (transform,) = _read(folder / LDA, 2)
    plda_mean, to_identity, psi = _read(
        folder / PLDA, "<Plda>", 1, 2, 1, "</Plda>"
    )
    scale = math.sqrt(len(plda_mean))
    try:
        if transform.shape[1] == len(mean) + 1:  # an affine map
            transform, offset = transform[:, :-1], transform[:, -1]
            mean = mean - linalg.lstsq(transform, offset)[0]
        if not (psi >= 0).all() or not psi.any():
            raise ValueError("psi: no variances between speakers")
        back = linalg.inv(to_identity) / scale
        backend = PldaBackend(
            mean,
            transform.T,
            plda_mean / scale,
            (back * np.sqrt(psi))[:, psi > 0],
            back @ back.T,
        )
    except ValueError as error:  # linalg.LinAlgError is one
        raise ValueError(
            f"{folder}: its files {MEAN}, {LDA} and {PLDA} make no PLDA "
            f"back-end ({one_line(error)}); take those of one training"
        ) from error
    if (folder / FILE).exists():
        found = (folder / FILE).read_text("utf-8", "replace").strip()
        found = " ".join(found.split())  # in one line, whatever it is
        if not found:
            raise ValueError(
                f"{folder / FILE}: empty; write the space of the embeddings "
                "into it, or delete it if Kaldi has trained the files"
            )
        check_same_space(folder, found, "the checkpoint", space)
    return backend


def _read(path: Path, *expected: str | int) -> list[np.ndarray]:
    """Arrays of a file, which must hold these words and dimensions."""
    content = path.read_bytes()
    try:
        if content.startswith(b"\0B"):
            parts = _unpacked(content)
        else:
            parts = _parsed(content.decode("ascii"))
        if len(parts) != len(expected):
            raise ValueError(f"{len(parts)} parts in place of {len(expected)}")
        arrays = []
        for part, what in zip(parts, expected, strict=True):
            if isinstance(part, str) or isinstance(what, str):
                if not isinstance(part, str) or part != what:
                    raise ValueError(f"something else in place of {what}")
                continue
            # A text does not tell a vector from a matrix of one row.
            if what == 1 and part.ndim == 2 and len(part) == 1:
                part = part[0]
            if part.ndim != what or not part.size:
                raise ValueError("a vector in place of a matrix, or none")
            if not np.isfinite(part).all():
                raise ValueError("some values are NaN or infinite")
            arrays.append(part)
        return arrays
    except ValueError as error:  # UnicodeDecodeError is one
        raise ValueError(
            f"{path}: not such a file of Kaldi's, or a damaged one "
            f"({one_line(error)}); write it again"
        ) from error


def _packed(parts: Parts) -> bytes:
    r"""The binary form: words, and arrays behind their sizes.

    Example
    -------
    >>> _packed(["<Plda>"])
    b'\x00B<Plda> '
    """
    content = b"\0B"
    for part in parts:
        if isinstance(part, str):
            content += f"{part} ".encode()
        else:
            content += b"DV " if part.ndim == 1 else b"DM "
            for size in part.shape:
                content += struct.pack("<bi", 4, size)
            content += part.astype("<f8").tobytes()
    return content


def _unpacked(content: bytes) -> Parts:
    """What `_packed` has packed, or Kaldi, in float32 or float64."""
    parts: Parts = []
    place = 2
    while place < len(content):
        end = content.find(b" ", place)
        word = content[place : end if end > 0 else len(content)]
        place += len(word) + 1
        if word not in KINDS:
            parts.append(word[:20].decode("ascii"))
            continue
        kind, dimensions = KINDS[word]
        header, place = content[place:], place + 5 * dimensions
        if len(content) < place:
            raise ValueError("it ends too early")
        numbers = struct.unpack_from("<" + dimensions * "bi", header)
        sizes = numbers[1::2]
        if {*numbers[::2]} != {4} or min(sizes) < 0:
            raise ValueError("an array without its size")
        count = math.prod(sizes)
        if len(content) < place + count * int(kind[-1]):
            raise ValueError("it ends too early")
        array = np.frombuffer(content, kind, count, place).reshape(sizes)
        parts.append(array.astype(np.float64))
        place += array.nbytes
    return parts


def _parsed(text: str) -> Parts:
    r"""The parts of a text, all arrays as matrices.

    Example
    -------
    >>> _parsed("<Plda>  [ 1 2 ]\n")
    ['<Plda>', array([[1., 2.]])]
    """
    rest = PARTS.sub("", text).strip()
    if rest:
        raise ValueError("brackets do not match")
    parts: Parts = []
    for found in PARTS.finditer(text):
        if found[1] is None:
            parts.append(found[2])
            continue
        rows = [line.split() for line in found[1].splitlines() if line.strip()]
        if len({len(row) for row in rows}) > 1:
            raise ValueError("rows of a matrix differ in length")
        parts.append(np.array(rows, np.float64))
    return parts
