"""Files of embeddings for other programs: NumPy, Kaldi and Parquet.

Each says of which space its embeddings are (``models.embedding_space``): an
array or a column's metadata ``embedding_space``, or beside Kaldi's ``x.scp``
the file ``x.embedding_space.txt``.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from redimnet2_lobes.data.utterances import Utterance
from redimnet2_lobes.files.arrays import read_arrays
from redimnet2_lobes.files.atomic import (
    check_absent,
    complete_or_absent,
    is_folder,
)
from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.files.json_files import read_json
from redimnet2_lobes.files.same_space import KEY
from redimnet2_lobes.files.settings import check_choices
from redimnet2_lobes.inference.embedding_cache import Embeddings

SPACE_ENDING = f".{KEY}.txt"  # of the file beside Kaldi's
ROWS_PER_GROUP = 65536  # of Parquet, 50 MB for embeddings of 192 values


def output_files(output: str, form: str) -> list[Path]:
    """The files to write, that which is written last being the last.

    ``output`` may have an ending of the format, a key of ``FORMATS``. It is a
    ValueError if it names a folder, the last file exists, or the format's
    package is missing.

    Example
    -------
    >>> [path.name for path in output_files("no/such/xvector.npz", "numpy")]
    ['xvector.npz']
    """
    check_choices({"format": form}, format=FORMATS)
    endings, package, _ = FORMATS[form]
    try:
        importlib.import_module(package)
    except ImportError:
        raise ValueError(
            f"format: {form} needs the package {package}; pip install {package}"
        ) from None
    given = next(filter(output.endswith, endings), "")
    name = output.removesuffix(given)
    if is_folder(output) or not os.path.basename(name).strip("."):
        raise ValueError(f"output: {output} is a folder; name a file in it")
    outputs = [Path(f"{name}{ending}") for ending in endings]
    check_absent(outputs[-1])
    return outputs


def check_names(utterances: list[Utterance], form: str) -> None:
    """Refuses names with white space, if they are for Kaldi's lists."""
    for name, *_ in utterances if form == "kaldi" else []:
        if name.split() != [name]:
            raise ValueError(
                f"format: kaldi allows no white space in names, but there is "
                f"some in {name!r}; choose numpy or parquet, or rename it"
            )


def write_embeddings(
    form: str,
    outputs: list[Path],
    embeddings: Embeddings,
    speakers: list[str | None],
    space: str,
) -> None:
    """Writes embeddings of a space, with the speakers where they are known.

    Each of the files (of `output_files`) appears when it is complete.
    """
    outputs[0].parent.mkdir(parents=True, exist_ok=True)
    try:
        FORMATS[form].write(outputs, embeddings, speakers, space)
    except OSError as error:
        raise OSError(
            f"{outputs[0]}: cannot be written ({error.strerror or error}); "
            "once that is mended, run the same command again, which keeps the "
            "embeddings"
        ) from None


def _write_numpy(
    outputs: list[Path],
    embeddings: Embeddings,
    _: list[str | None],
    space: str,
) -> None:
    with complete_or_absent(outputs[0]) as partial, open(partial, "wb") as file:
        write_npz(file, embeddings.names, embeddings.vectors.numpy(), space)


def write_npz(
    file: BinaryIO, names: Sequence[str], vectors: np.ndarray, space: str
) -> None:
    """Writes the arrays names, embeddings [utterances, embedding] and space."""
    np.savez(
        file,
        names=np.array(names),
        embeddings=vectors,
        embedding_space=np.array(space),
    )


def _write_kaldi(
    outputs: list[Path],
    embeddings: Embeddings,
    _: list[str | None],
    space: str,
) -> None:
    """Writes vectors, the list of where they are, and their space beside it."""
    from kaldiio import save_ark

    ark, space_file, scp = outputs
    with (
        complete_or_absent(scp) as partial_scp,
        open(partial_scp, "w", encoding="utf-8") as lines,
        complete_or_absent(ark) as partial_ark,
        open(partial_ark, "wb") as vectors,
        complete_or_absent(space_file) as partial_space,
    ):
        partial_space.write_text(f"{space}\n")
        for name, vector in zip(
            tqdm(embeddings.names, desc="writing", unit="utterance"),
            embeddings.vectors.numpy(),
            strict=True,
        ):
            offset = vectors.tell() + len(f"{name} ".encode())
            save_ark(vectors, {name: vector})
            lines.write(f"{name} {ark}:{offset}\n")


def _write_parquet(
    outputs: list[Path],
    embeddings: Embeddings,
    speakers: list[str | None],
    space: str,
) -> None:
    """Writes the columns name, speaker, embedding and seconds."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = pyarrow.schema(
        {
            "name": pyarrow.string(),
            "speaker": pyarrow.string(),
            "embedding": pyarrow.list_(pyarrow.float32()),
            "seconds": pyarrow.float32(),
        },
        metadata={KEY: space},
    )
    with (
        complete_or_absent(outputs[0]) as partial,
        ParquetWriter(partial, schema) as file,
    ):
        for start in range(0, len(speakers), ROWS_PER_GROUP):
            rows = slice(start, start + ROWS_PER_GROUP)
            vectors = embeddings.vectors[rows]
            ends = np.arange(len(vectors) + 1) * vectors.shape[1]
            columns = {
                "name": embeddings.names[rows],
                "speaker": speakers[rows],
                "embedding": pyarrow.ListArray.from_arrays(
                    ends.astype(np.int32), vectors.flatten().numpy()
                ),
                "seconds": embeddings.seconds[rows].numpy(),
            }
            file.write_table(pyarrow.table(columns, schema=schema))


class StoredEmbeddings(NamedTuple):
    """What a file of embeddings holds."""

    names: list[str]  # each once
    speakers: list[str]  # the name itself where none is known
    vectors: torch.Tensor  # [utterances, embedding], float32
    space: str


def read_embeddings(path: str | os.PathLike) -> StoredEmbeddings:
    """Reads a file of `write_embeddings`, or of ``redimnet2 embed --output``.

    That is one that ends in .npz, .json or .parquet, or a folder of parts that
    ends in .parquet. A ValueError says that it is another, is damaged, or does
    not say its space. (Kaldi's lists may hold commands, and its archives
    pickles: they are not read.)

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.npz"
    >>> with open(path, "wb") as file:
    ...     write_npz(file, ["a"], np.ones((1, 2), np.float32), "b3-1")
    >>> read_embeddings(path)
    StoredEmbeddings(names=['a'], speakers=['a'], vectors=tensor([[1., 1.]]), \
space='b3-1')
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise ValueError(
            f"{path}: no file of embeddings, which end in {', '.join(READERS)}"
        )
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    try:
        names, speakers, vectors, space = READERS[path.suffix](path)
        vectors = np.asarray(vectors, np.float32)
        if not (names and all(isinstance(name, str) for name in names)):
            raise ValueError("it has no names")
        if len(set(names)) < len(names):
            raise ValueError("a name is there twice")
        if (len(names), 2) != (len(vectors), vectors.ndim) or not vectors.size:
            raise ValueError("its embeddings are not one for each name")
        if not np.isfinite(vectors).all():
            raise ValueError("an embedding is not finite")
        if not vectors.any(axis=1).all():
            raise ValueError("an embedding is zero")
        if not (isinstance(space, str) and space):
            raise ValueError("it does not say its embedding_space")
    except ImportError as error:
        raise ValueError(
            f"{path}: to read it, pip install {error.name}"
        ) from None
    except Exception as error:  # each format has kinds of its own
        raise ValueError(
            f"{path}: not a file of embeddings, or damaged "
            f"({one_line(error)}); embed the recordings again"
        ) from error
    speakers = [
        each or name for each, name in zip(speakers, names, strict=True)
    ]
    return StoredEmbeddings(names, speakers, torch.tensor(vectors), space)


Rows = tuple[list[str], list, Any, Any]  # names, speakers, embeddings, space


def _read_numpy(path: Path) -> Rows:
    names, vectors, space = read_arrays(path, "names", "embeddings", KEY)
    names = names.tolist()
    return names, [None] * len(names), vectors, space.item()


def _read_json(path: Path) -> Rows:
    rows = read_json(path)
    (space,) = {row[KEY] for row in rows}
    return (
        [row["name"] for row in rows],
        [None] * len(rows),
        [row["embedding"] for row in rows],
        space,
    )


def _read_parquet(path: Path) -> Rows:
    import pyarrow.compute
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    space = (table.schema.metadata or {}).get(KEY.encode(), b"").decode()
    names = table["name"].to_pylist()
    vectors = table["embedding"].combine_chunks()
    sizes = pyarrow.compute.list_value_length(vectors)
    if len(sizes.unique()) > 1:  # one that is missing has none
        raise ValueError("its embeddings differ in size")
    speakers = table["speaker"].to_pylist()
    rows = vectors.flatten().to_numpy().reshape(len(names), -1)
    return names, speakers, rows, space


READERS = {
    ".npz": _read_numpy,
    ".json": _read_json,
    ".parquet": _read_parquet,
}


class Format(NamedTuple):
    """A format of the output; the file of the last ending is written last."""

    endings: list[str]
    package: str
    write: Callable[[list[Path], Embeddings, list[str | None], str], None]


FORMATS = {
    "numpy": Format([".npz"], "numpy", _write_numpy),
    "kaldi": Format([".ark", SPACE_ENDING, ".scp"], "kaldiio", _write_kaldi),
    "parquet": Format([".parquet"], "pyarrow", _write_parquet),
}
