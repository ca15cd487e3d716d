#!/usr/bin/env python3
"""Recipe for the embeddings of any list of utterances.

To run it:

> python extract_speaker_embeddings.py hparams/extract_redimnet2.yaml \
    --utterances=/path/to/wav.scp --checkpoint=/path/to/model \
    --output=embeddings --format=kaldi

and on several GPUs with ``torchrun --nproc_per_node=8`` in place of ``python``.
The same command goes on with an interrupted extraction. The output appears
under its name when it is complete.

Files that cannot be used are left out: they are named at the end with the
reasons, and in OUTPUT.left_out.csv, and the exit status is 1. That list is one
for --utterances, once they are mended. --strict=True stops at the first.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import os
import shutil
import sys

from speechbrain.utils.distributed import run_on_main

from redimnet2_lobes.data.conditions import Condition, Speed
from redimnet2_lobes.data.utterances import (
    paths_of,
    read_utterances,
    write_left_out,
)
from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.files.settings import check_at_least, check_types
from redimnet2_lobes.inference.embedding_cache import extract_embeddings
from redimnet2_lobes.inference.embedding_files import (
    check_names,
    output_files,
    write_embeddings,
)
from redimnet2_lobes.recipe.command_line import main_with_one_line_errors
from redimnet2_lobes.recipe.encoder import load_encoder, parse_arguments

SHOWN = 20  # of the files that are left out


def main(arguments: list[str]) -> str | None:
    """Embeds and writes, as the command line says.

    Returns an error line if utterances are left out.
    """
    hparams, run_opts = parse_arguments(arguments, "distributed_backend")
    check_types(
        hparams,
        utterances=str,
        data_folder=str | None,
        output_folder=str,
        output=str,
        utterances_per_part=int,
        speed=float,
        strict=bool,
    )
    check_at_least(hparams, utterances_per_part=1)
    output = os.path.join(hparams["output_folder"], hparams["output"])
    outputs = output_files(output, hparams["format"])
    report = outputs[-1].with_suffix(".left_out.csv")
    if os.path.realpath(report) == os.path.realpath(hparams["utterances"]):
        raise ValueError(
            f"output: {report} is the list of utterances, and would name those "
            "that are left out now; choose another output"
        )
    speed = Speed(hparams["speed"])
    strict = hparams["strict"]
    utterances = read_utterances(
        hparams["utterances"], hparams["data_folder"], strict
    )
    check_names(utterances, hparams["format"])

    encoder = load_encoder(hparams["checkpoint"], hparams["variant"], run_opts)
    parts = outputs[-1].with_suffix(".embedding_parts")
    faults = None if strict else {}
    embeddings = extract_embeddings(
        encoder.encode_batch,
        paths_of(utterances),
        parts,
        encoder.fingerprint,
        seconds_per_batch=hparams["seconds_per_batch"],
        maximum_seconds=hparams["maximum_seconds"],
        crops=hparams["crops"],
        utterances_per_part=hparams["utterances_per_part"],
        faults=faults,
        condition=None if speed.speed == 1 else Condition(speed, seed=0),
    )
    faults = faults or {}
    # Before the output, with which all is done.
    outputs[0].parent.mkdir(parents=True, exist_ok=True)
    run_on_main(write_left_out, args=[report, utterances, faults])
    if embeddings.names:
        speakers = [
            each.speaker for each in utterances if each.name not in faults
        ]
        run_on_main(
            write_embeddings,
            args=[
                *(hparams["format"], outputs, embeddings, speakers),
                encoder.space,
            ],
        )
        files = ", ".join(map(str, outputs))
        line = f"written  {len(speakers)} embeddings: {files}"
        run_on_main(print, args=[line])
    run_on_main(shutil.rmtree, args=[parts])
    if not faults:
        return None
    lines = [f"left out  {one_line(error)}" for error in faults.values()]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"and {len(lines) - SHOWN} more, see {report}"]
    run_on_main(print, args=["\n".join(lines)], kwargs={"file": sys.stderr})
    return (
        f"error: {len(faults)} of the {len(utterances)} utterances cannot be "
        f"used, {report} names them"
    )


if __name__ == "__main__":
    main_with_one_line_errors(main)
