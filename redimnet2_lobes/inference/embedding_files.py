"""Files of embeddings for other programs: NumPy, Kaldi and Parquet.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from redimnet2_lobes.data.utterances import Utterance
from redimnet2_lobes.files.atomic import (
    check_absent,
    complete_or_absent,
    is_folder,
)
from redimnet2_lobes.files.settings import check_choices
from redimnet2_lobes.inference.embedding_cache import Embeddings

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
) -> None:
    """Writes embeddings, with the speaker of each where it is known.

    Each of the files (of `output_files`) appears when it is complete.
    """
    outputs[0].parent.mkdir(parents=True, exist_ok=True)
    try:
        FORMATS[form].write(outputs, embeddings, speakers)
    except OSError as error:
        raise OSError(
            f"{outputs[0]}: cannot be written ({error.strerror or error}); "
            "once that is mended, run the same command again, which keeps the "
            "embeddings"
        ) from None


def _write_numpy(
    outputs: list[Path], embeddings: Embeddings, _: list[str | None]
) -> None:
    """Writes the arrays names and embeddings [utterances, embedding]."""
    with complete_or_absent(outputs[0]) as partial, open(partial, "wb") as file:
        names, vectors = np.array(embeddings.names), embeddings.vectors.numpy()
        np.savez(file, names=names, embeddings=vectors)


def _write_kaldi(
    outputs: list[Path], embeddings: Embeddings, _: list[str | None]
) -> None:
    """Writes vectors, and the list of where they are."""
    from kaldiio import save_ark

    ark, scp = outputs
    with (
        complete_or_absent(scp) as partial_scp,
        open(partial_scp, "w", encoding="utf-8") as lines,
        complete_or_absent(ark) as partial_ark,
        open(partial_ark, "wb") as vectors,
    ):
        for name, vector in zip(
            tqdm(embeddings.names, desc="writing", unit="utterance"),
            embeddings.vectors.numpy(),
            strict=True,
        ):
            offset = vectors.tell() + len(f"{name} ".encode())
            save_ark(vectors, {name: vector})
            lines.write(f"{name} {ark}:{offset}\n")


def _write_parquet(
    outputs: list[Path], embeddings: Embeddings, speakers: list[str | None]
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
        }
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


class Format(NamedTuple):
    """A format of the output; the file of the last ending is written last."""

    endings: list[str]
    package: str
    write: Callable[[list[Path], Embeddings, list[str | None]], None]


FORMATS = {
    "numpy": Format([".npz"], "numpy", _write_numpy),
    "kaldi": Format([".ark", ".scp"], "kaldiio", _write_kaldi),
    "parquet": Format([".parquet"], "pyarrow", _write_parquet),
}
