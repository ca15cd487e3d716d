#!/usr/bin/env python3
"""Recipe for the embeddings of any list of utterances.

To run it:

> python extract_speaker_embeddings.py hparams/extract_redimnet2.yaml \
    --utterances=/path/to/wav.scp --checkpoint=/path/to/model \
    --output=embeddings --format=kaldi

and on several GPUs with ``torchrun --nproc_per_node=8`` in place of ``python``.
The same command goes on with an interrupted extraction. The output appears
under its name when it is complete.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import os
import shutil

from speechbrain.utils.distributed import run_on_main

from redimnet2_lobes.data.utterances import paths_of, read_utterances
from redimnet2_lobes.files.settings import check_at_least, check_types
from redimnet2_lobes.inference.embedding_cache import extract_embeddings
from redimnet2_lobes.inference.embedding_files import (
    check_names,
    output_files,
    write_embeddings,
)
from redimnet2_lobes.recipe.command_line import main_with_one_line_errors
from redimnet2_lobes.recipe.encoder import load_folded_encoder, parse_arguments


def main(arguments: list[str]) -> None:
    """Embeds and writes, as the command line says."""
    hparams, run_opts = parse_arguments(arguments, "distributed_backend")
    check_types(
        hparams,
        utterances=str,
        data_folder=str | None,
        output_folder=str,
        output=str,
        utterances_per_part=int,
    )
    check_at_least(hparams, utterances_per_part=1)
    output = os.path.join(hparams["output_folder"], hparams["output"])
    outputs = output_files(output, hparams["format"])
    utterances = read_utterances(hparams["utterances"], hparams["data_folder"])
    check_names(utterances, hparams["format"])

    encoder = load_folded_encoder(
        hparams["checkpoint"], hparams["variant"], run_opts
    )
    parts = outputs[-1].with_suffix(".embedding_parts")
    embeddings = extract_embeddings(
        encoder.encode_batch,
        paths_of(utterances),
        parts,
        encoder.fingerprint,
        seconds_per_batch=hparams["seconds_per_batch"],
        maximum_seconds=hparams["maximum_seconds"],
        crops=hparams["crops"],
        utterances_per_part=hparams["utterances_per_part"],
    )
    speakers = [utterance.speaker for utterance in utterances]
    run_on_main(
        write_embeddings,
        args=[hparams["format"], outputs, embeddings, speakers],
    )
    run_on_main(shutil.rmtree, args=[parts])
    files = ", ".join(map(str, outputs))
    run_on_main(print, args=[f"written  {len(speakers)} embeddings: {files}"])


if __name__ == "__main__":
    main_with_one_line_errors(main)
