#!/usr/bin/env python3
"""Recipe for the embeddings of any list of utterances.

To run it:

> python extract_speaker_embeddings.py hparams/extract_redimnet2.yaml \
    --utterances /path/to/wav.scp --checkpoint /path/to/model \
    --output embeddings --format kaldi

and on several GPUs with ``torchrun --nproc_per_node=8`` in place of ``python``.
The same command goes on with an interrupted extraction. The output appears
under its name when it is complete.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import importlib
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from speechbrain.utils.distributed import ddp_init_group, run_on_main
from tqdm import tqdm

from redimnet2_lobes.data.utterances import read_utterances
from redimnet2_lobes.files.atomic import complete_or_absent
from redimnet2_lobes.inference.embedding_cache import extract_embeddings
from redimnet2_lobes.recipe.command_line import (
    main_with_one_line_errors,
    parse_command_line,
)
from redimnet2_lobes.recipe.encoder import (
    check_embedding_hparams,
    check_embedding_options,
    load_folded_encoder,
)
from redimnet2_lobes.recipe.hparams import load_hparams
from redimnet2_lobes.recipe.settings import check_at_least, check_types

ROWS_PER_GROUP = 65536  # of Parquet, 50 MB for embeddings of 192 values


def main(arguments):
    """Extracts and writes.

    Arguments
    ---------
    arguments : list of str
        The command line without the script's name.
    """
    hparams_file, run_opts, overrides = parse_command_line(arguments)
    check_embedding_options(run_opts, "distributed_backend")
    ddp_init_group(run_opts)
    hparams = load_hparams(hparams_file, overrides)
    check_hparams(hparams)
    outputs = output_files(hparams["output"], hparams["format"])
    utterances = read_utterances(hparams["utterances"], hparams["data_folder"])
    if hparams["format"] == "kaldi":
        check_names(utterances)
    _, encode_batch, fingerprint = load_folded_encoder(
        hparams, hparams_file, run_opts
    )
    parts = outputs[-1].with_suffix(".embedding_parts")
    embeddings = extract_embeddings(
        encode_batch,
        {utterance.name: utterance.path for utterance in utterances},
        parts,
        fingerprint,
        seconds_per_batch=hparams["seconds_per_batch"],
        maximum_seconds=hparams["maximum_seconds"],
        crops=hparams["crops"],
        utterances_per_part=hparams["utterances_per_part"],
    )
    speakers = [utterance.speaker for utterance in utterances]
    run_on_main(write, args=[hparams["format"], outputs, embeddings, speakers])
    run_on_main(shutil.rmtree, args=[parts])
    files = ", ".join(map(str, outputs))
    run_on_main(print, args=[f"written  {len(speakers)} embeddings: {files}"])


def check_hparams(hparams):
    """Checks what can be checked before any work is done.

    Arguments
    ---------
    hparams : dict
        The hyperparameters.

    Raises
    ------
    ValueError
        If a value is wrong, or a package is not installed.
    """
    if hparams["format"] not in FORMATS:
        raise ValueError(
            f"format: unknown value {hparams['format']!r}, expected one of "
            f"{', '.join(FORMATS)}"
        )
    check_types(hparams, utterances=str, output=str, utterances_per_part=int)
    check_at_least(hparams, utterances_per_part=1)
    if hparams["data_folder"] is not None:
        check_types(hparams, data_folder=str)
    check_embedding_hparams(hparams)
    package = FORMATS[hparams["format"]].package
    try:
        importlib.import_module(package)
    except ImportError:
        raise ValueError(
            f"format: {hparams['format']} needs the package {package}; "
            f"pip install {package}"
        ) from None


def output_files(output, form):
    """The files to write.

    Arguments
    ---------
    output : str
        As the user gave it, with or without an ending of the format.
    form : str
        A key of ``FORMATS``.

    Returns
    -------
    list of Path
        The file that is written last is the last.

    Raises
    ------
    ValueError
        If there is one already.

    Example
    -------
    >>> [path.name for path in output_files("no/such/xvector.scp", "kaldi")]
    ['xvector.ark', 'xvector.scp']
    """
    endings = FORMATS[form].endings
    stem = output
    for ending in endings:
        stem = stem.removesuffix(ending)
    outputs = [Path(f"{stem}{ending}") for ending in endings]
    if outputs[-1].exists():
        raise ValueError(
            f"output: {outputs[-1]} exists; choose another, or delete it"
        )
    return outputs


def check_names(utterances):
    """Checks that names can be written into Kaldi's lists.

    Arguments
    ---------
    utterances : list of Utterance
        The utterances.

    Raises
    ------
    ValueError
        If there is white space in a name.
    """
    for name, *_ in utterances:
        if name.split() != [name]:
            raise ValueError(
                f"format: kaldi allows no white space in names, but there is "
                f"some in {name!r}; choose numpy or parquet, or rename it"
            )


def write(form, outputs, embeddings, speakers):
    """Writes the output.

    Arguments
    ---------
    form : str
        A key of ``FORMATS``.
    outputs : list of Path
        Its files; each appears under its name when it is complete.
    embeddings : Embeddings
        The embeddings.
    speakers : list of str or None
        The speaker of each, None where not known.

    Raises
    ------
    OSError
        If a file cannot be written.
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


def _write_numpy(outputs, embeddings, _):
    """Writes the arrays names and embeddings [utterances, embedding]."""
    with (
        complete_or_absent(outputs[0]) as partial,
        open(partial, "wb") as file,
    ):
        np.savez(
            file,
            names=np.array(embeddings.names),
            embeddings=embeddings.vectors.numpy(),
        )


def _write_kaldi(outputs, embeddings, _):
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


def _write_parquet(outputs, embeddings, speakers):
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
    """A form of the output; the file with the last ending is written last."""

    endings: list
    package: str
    write: callable


FORMATS = {
    "numpy": Format([".npz"], "numpy", _write_numpy),
    "kaldi": Format([".ark", ".scp"], "kaldiio", _write_kaldi),
    "parquet": Format([".parquet"], "pyarrow", _write_parquet),
}


if __name__ == "__main__":
    main_with_one_line_errors(main)
