#!/usr/bin/env python3
"""Recipe for speaker verification by the cosine similarity of embeddings.

To run it:

> python speaker_verification_cosine.py hparams/verification_redimnet2.yaml \
    --data_folder /path/to/VoxCeleb1 --checkpoint /path/to/model

With a cohort_list the scores are normalized as well, with calibration_trials
they become log-likelihood ratios. <output_folder> holds results.json,
results.md and results.txt, and for each list of trials a folder with DET
curves, and of each back-end the scores, their histogram and the worst trials.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import functools
import os

from redimnet2_lobes.data.utterances import paths_of
from redimnet2_lobes.inference.embedding_cache import extract_embeddings
from redimnet2_lobes.recipe import verification
from redimnet2_lobes.recipe.command_line import main_with_one_line_errors
from redimnet2_lobes.recipe.encoder import load_encoder, parse_arguments
from redimnet2_lobes.scoring.backends import CosineBackend
from redimnet2_lobes.scoring.evaluate import evaluate
from redimnet2_lobes.scoring.report import report


def main(arguments: list[str]) -> None:
    """Embeds, scores and reports, as the command line says."""
    hparams, run_opts = parse_arguments(arguments)
    verification.check_hparams(hparams)
    trials = verification.read_trials(
        verification_file=hparams["verification_file"],
        data_folder=hparams["data_folder"],
        calibration_trials=hparams["calibration_trials"],
        calibration_folder=hparams["calibration_folder"],
        calibration=hparams["calibration"],
        utterance_list=hparams["utterance_list"],
        enrolment_file=hparams["enrolment_file"],
        output_folder=hparams["output_folder"],
    )
    corpus = hparams["list_folder"], hparams["utterances_per_speaker"]
    of_mean = verification.read_list("mean_list", hparams["mean_list"], *corpus)
    normalization = {
        "cohort_entries": hparams["cohort_entries"],
        "cohort_top": hparams["cohort_top"],
        "score_norms": hparams["score_norms"],
        "measures": hparams["quality_measures"],
    }
    cohort = verification.read_cohort(
        hparams["cohort_list"], *corpus, **normalization
    )

    encoder = load_encoder(hparams["checkpoint"], hparams["variant"], run_opts)
    verification.check_calibrations(
        trials.calibrations, hparams["calibration"], encoder.space
    )
    # Before anything is computed that could then not be written.
    os.makedirs(hparams["output_folder"], exist_ok=True)
    verification.warn_of_known_speakers(
        trials, encoder.speakers, {"the cohort": cohort}
    )
    embed = functools.partial(
        extract_embeddings,
        encoder.encode_batch,
        folder=hparams["embeddings_folder"],
        fingerprint=encoder.fingerprint,
        seconds_per_batch=hparams["seconds_per_batch"],
        maximum_seconds=hparams["maximum_seconds"],
        crops=hparams["crops"],
    )
    mean = embed(paths_of(of_mean)).vectors.mean(dim=0) if of_mean else None
    backends = {"cosine": CosineBackend(mean)}

    report(
        *evaluate(backends, *trials, embed, cohort, **normalization),
        hparams["output_folder"],
        hparams["checkpoint"],
        encoder.space,
        hparams["maximum_seconds"],
        hparams["crops"],
        encoder.precision,
        verification.kept_in(
            hparams["checkpoint"], hparams["keep_results_with_model"]
        ),
        hparams["bootstrap_resamples"],
    )


if __name__ == "__main__":
    main_with_one_line_errors(main)
