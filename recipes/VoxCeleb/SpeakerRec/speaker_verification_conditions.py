#!/usr/bin/env python3
"""Recipe for speaker verification under conditions, by cosine similarity.

To run it:

> python speaker_verification_conditions.py hparams/conditions_redimnet2.yaml \
    --data_folder /path/to/VoxCeleb1 --checkpoint /path/to/model

Each condition of the YAML changes the utterances of the trials, which are then
embedded and scored. <output_folder> holds conditions.json, .md and .txt, and
for each list of trials a folder with the EER by duration, and of the other
conditions beside clean speech, as plots.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import functools
import os

from redimnet2_lobes.data.augment import Step
from redimnet2_lobes.data.conditions import Condition
from redimnet2_lobes.data.trial_files import files_of
from redimnet2_lobes.files.settings import (
    check_at_least,
    check_choices,
    check_types,
)
from redimnet2_lobes.inference.embedding_cache import extract_embeddings
from redimnet2_lobes.recipe import verification
from redimnet2_lobes.recipe.command_line import main_with_one_line_errors
from redimnet2_lobes.recipe.encoder import load_encoder, parse_arguments
from redimnet2_lobes.scoring.conditions import (
    CLEAN,
    report_conditions,
    score_arm,
)


def main(arguments: list[str]) -> None:
    """Embeds, scores and reports, as the command line says."""
    hparams, run_opts = parse_arguments(arguments)
    check_types(
        hparams,
        data_folder=str,
        verification_file=str | list[str],
        utterance_list=str | None,
        enrolment_file=str | None,
        output_folder=str,
        embeddings_folder=str,
        musan_folder=str | None,
        rirs_folder=str | None,
        seed=int,
        conditions=dict,
        musan_conditions=dict,
        rirs_conditions=dict,
    )
    check_choices(hparams, apply_to=("test", "both"))
    check_at_least(hparams, seed=0)
    steps = dict(hparams["conditions"])
    if hparams["musan_folder"] is not None:
        steps |= hparams["musan_conditions"]
    if hparams["rirs_folder"] is not None:
        steps |= hparams["rirs_conditions"]
    conditions = prepare(steps, hparams["seed"])
    trials = verification.read_trials(
        verification_file=hparams["verification_file"],
        data_folder=hparams["data_folder"],
        calibration_trials=None,
        calibration_folder=hparams["data_folder"],
        calibration=None,
        utterance_list=hparams["utterance_list"],
        enrolment_file=hparams["enrolment_file"],
        output_folder=hparams["output_folder"],
    )
    lists = trials.tested
    encoder = load_encoder(hparams["checkpoint"], hparams["variant"], run_opts)
    # Before anything is computed that could then not be written.
    os.makedirs(hparams["output_folder"], exist_ok=True)
    verification.warn_of_known_speakers(trials, encoder.speakers, {})
    embed = functools.partial(
        extract_embeddings,
        encoder.encode_batch,
        folder=hparams["embeddings_folder"],
        fingerprint=encoder.fingerprint,
        seconds_per_batch=hparams["seconds_per_batch"],
        maximum_seconds=hparams["maximum_seconds"],
        crops=hparams["crops"],
    )
    files = files_of(lists)
    clean = embed(files)
    changed = files
    if hparams["apply_to"] == "test":
        tests = {test for each in lists for _, _, test in each.trials}
        changed = {name: files[name] for name in files if name in tests}
    sides = {CLEAN: (clean, clean)}
    for name, condition in conditions.items():
        print(f"condition: {name}")
        tested = embed(changed, condition=condition)
        enrolled = tested if hparams["apply_to"] == "both" else clean
        sides[name] = enrolled, tested
    report_conditions(
        [
            score_arm(trial_list, name, conditions.get(name), *of_sides)
            for trial_list in lists
            for name, of_sides in sides.items()
        ],
        hparams["output_folder"],
        checkpoint=hparams["checkpoint"],
        space=encoder.space,
        eval_precision=encoder.precision,
        maximum_seconds=hparams["maximum_seconds"],
        crops=hparams["crops"],
        apply_to=hparams["apply_to"],
        seed=hparams["seed"],
    )


def prepare(steps: dict, seed: int) -> dict[str, Condition]:
    """Makes conditions of the steps of a YAML, by their names.

    It is a ValueError if there is none, or one is no step, is called as clean
    speech is, has no settings that can be told, or lacks what it reads.
    """
    if not steps:
        raise ValueError("conditions: there are none; name at least one")
    conditions = {}
    for name, step in steps.items():
        if name == CLEAN:
            raise ValueError(
                f"conditions: {CLEAN} is what speech without a condition is "
                "called; rename it"
            )
        if "|" in str(name) or not str(name).strip().isprintable():
            raise ValueError(
                f"conditions: {name!r} would break the table; leave out | and "
                "control characters"
            )
        if not isinstance(step, Step):
            raise ValueError(
                f"conditions: {name} is {step!r}, no step; write such as "
                "!new:redimnet2_lobes.Excerpt with its settings below"
            )
        step.check()
        conditions[str(name)] = Condition(step, seed)
        conditions[str(name)].settings()
    return conditions


if __name__ == "__main__":
    main_with_one_line_errors(main)
