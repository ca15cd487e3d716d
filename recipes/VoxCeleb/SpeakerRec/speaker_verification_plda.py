#!/usr/bin/env python3
"""Recipe for speaker verification by PLDA.

To run it:

> python speaker_verification_plda.py hparams/verification_plda_redimnet2.yaml \
    --data_folder /path/to/VoxCeleb1 --checkpoint /path/to/model \
    --train_list /path/to/train.csv --list_folder /path/to/VoxCeleb2

LDA and PLDA are SpeechBrain's, trained on the embeddings of train_list and kept
in <output_folder>/plda.npz, which a later run may take as plda_file. Results as
of speaker_verification_cosine.py, with the cosine's beside them, and those of
PLDA adapted to the domain of adaptation_list, if there is one.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import functools
import os

from redimnet2_lobes.data.utterances import paths_of
from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.inference.embedding_cache import extract_embeddings
from redimnet2_lobes.recipe import verification
from redimnet2_lobes.recipe.command_line import main_with_one_line_errors
from redimnet2_lobes.recipe.encoder import load_encoder, parse_arguments
from redimnet2_lobes.scoring.adaptation import ADAPTATIONS
from redimnet2_lobes.scoring.backends import CosineBackend
from redimnet2_lobes.scoring.evaluate import evaluate
from redimnet2_lobes.scoring.kaldi_plda import (
    read_kaldi_plda,
    write_kaldi_plda,
)
from redimnet2_lobes.scoring.plda import PldaBackend, train_plda
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
    training = verification.read_list(
        "train_list", hparams["train_list"], *corpus, speakers=True
    )
    normalization = {
        "cohort_entries": hparams["cohort_entries"],
        "cohort_top": hparams["cohort_top"],
        "score_norms": hparams["score_norms"],
        "measures": hparams["quality_measures"],
    }
    cohort = verification.read_cohort(
        hparams["cohort_list"], *corpus, **normalization
    )
    adapting = verification.read_list(
        "adaptation_list",
        hparams["adaptation_list"],
        hparams["list_folder"],
        per_speaker=None,
    )

    encoder = load_encoder(hparams["checkpoint"], hparams["variant"], run_opts)
    verification.check_calibrations(
        trials.calibrations, hparams["calibration"], encoder.space
    )
    # Before anything is computed that could then not be written.
    os.makedirs(hparams["output_folder"], exist_ok=True)
    verification.warn_of_known_speakers(
        trials,
        encoder.speakers,
        {
            "the cohort": cohort,
            "train_list": training,
            "adaptation_list": adapting,
        },
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

    def save(name: str, backend: PldaBackend) -> None:
        path = f"{hparams['output_folder']}/{name}"
        if hparams["plda_format"] == "kaldi":
            write_kaldi_plda(path, backend, encoder.space)
        else:
            backend.save(f"{path}.npz", encoder.space)

    if training:
        plda = train_plda(
            embed(paths_of(training)).vectors,
            [utterance.speaker for utterance in training],
            hparams["lda_dimension"],
            hparams["plda_rank"],
            hparams["plda_iterations"],
        )
        save("plda", plda)
    else:
        plda = read_plda(hparams["plda_file"], encoder.space)
    backends = {"cosine": CosineBackend(), "PLDA": plda}
    target = embed(paths_of(adapting)).vectors if adapting else None
    values = {
        "mean_diff_scale": hparams["mean_diff_scale"],
        "within_covar_scale": hparams["within_covar_scale"],
        "between_covar_scale": hparams["between_covar_scale"],
        "within_weight": hparams["within_weight"],
        "between_weight": hparams["between_weight"],
    }
    for name in hparams["adaptation"]:
        title, adapt, weights = ADAPTATIONS[name]
        adapted = adapt(plda, target, **{key: values[key] for key in weights})
        save(f"plda_{name}", adapted)
        backends[f"PLDA, {title}"] = adapted

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


def read_plda(plda_file: str, space: str) -> PldaBackend:
    """Reads plda.npz of an earlier run, or a folder of Kaldi's."""
    read = read_kaldi_plda if os.path.isdir(plda_file) else PldaBackend.load
    try:
        return read(plda_file, space)
    except (ValueError, OSError) as error:
        raise ValueError(f"plda_file: {one_line(error)}") from error


if __name__ == "__main__":
    main_with_one_line_errors(main)
