"""What the verification scripts share: their checks, and the lists they read.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import os
from collections.abc import Mapping, Set
from typing import NamedTuple

from redimnet2_lobes.data.trial_files import (
    TrialList,
    files_of,
    read_trial_lists,
)
from redimnet2_lobes.data.trials import read_enrolments
from redimnet2_lobes.data.utterances import (
    Utterance,
    limit_per_speaker,
    paths_of,
    read_utterances,
)
from redimnet2_lobes.files.same_space import check_same_space
from redimnet2_lobes.files.settings import (
    check_at_least,
    check_choices,
    check_types,
)
from redimnet2_lobes.pretrained.loading import find_model
from redimnet2_lobes.scoring.adaptation import ADAPTATIONS
from redimnet2_lobes.scoring.calibration import Calibration, load_calibrations
from redimnet2_lobes.scoring.evaluate import QUALITY_MEASURES, SCORE_NORMS


class Trials(NamedTuple):
    """What is tested, and what calibrates the scores, if anything."""

    tested: list[TrialList]
    calibrating: list[TrialList]  # to train calibrations on
    calibrations: dict[str, Calibration]  # of an earlier run


def check_hparams(hparams: dict) -> None:
    """Checks what can be checked before any list is read.

    ``score_norms`` becomes a list: where it is null, of the adaptive s-norm if
    there is a cohort. So does ``adaptation``, of all that there is if there is
    an ``adaptation_list``. A value of the wrong type, or that does not go with
    another, is a ValueError.
    """
    check_types(
        hparams,
        data_folder=str,
        verification_file=str | list[str],
        output_folder=str,
        embeddings_folder=str,
        keep_results_with_model=bool,
        bootstrap_resamples=int,
        utterance_list=str | None,
        enrolment_file=str | None,
        list_folder=str | None,
        utterances_per_speaker=int | None,
        cohort_list=str | None,
        cohort_top=int,
        score_norms=list | None,
        quality_measures=list,
        calibration_trials=str | list[str] | None,
        calibration_folder=str,
        calibration=str | None,
    )
    if "mean_list" in hparams:
        check_types(hparams, mean_list=str | None)
    if "plda_file" in hparams:
        _check_plda(hparams)
    check_at_least(hparams, utterances_per_speaker=1, bootstrap_resamples=0)
    check_choices(
        hparams,
        cohort_entries=("speakers", "utterances"),
        score_norms=(None, *SCORE_NORMS),
        quality_measures=QUALITY_MEASURES,
    )
    for key in ("enrolment_file", "calibration"):
        if hparams[key] is not None and not os.path.isfile(hparams[key]):
            raise ValueError(f"{key}: no file {hparams[key]}")
    norms, measures = hparams["score_norms"], hparams["quality_measures"]
    if norms is None:
        norms = ["adaptive_s"] if hparams["cohort_list"] else []
        hparams["score_norms"] = norms
    if hparams["cohort_list"] is None:
        if norms:
            raise ValueError("score_norms: they need a cohort_list")
        if "cohort_means" in measures:
            raise ValueError(
                "quality_measures: cohort_means needs a cohort_list"
            )
    calibrations = hparams["calibration"], hparams["calibration_trials"]
    if None not in calibrations:
        raise ValueError(
            "calibration: give either a saved one or calibration_trials"
        )
    if measures and calibrations == (None, None):
        raise ValueError(
            "quality_measures: they need calibration_trials or a calibration"
        )
    if hparams["utterance_list"] is None and not os.path.isdir(
        os.path.join(hparams["data_folder"], "wav")
    ):
        raise ValueError(
            f"data_folder: there is no folder wav in {hparams['data_folder']}"
        )
    if hparams["keep_results_with_model"]:
        if not os.path.isdir(hparams["checkpoint"]):
            raise ValueError(
                "keep_results_with_model: the checkpoint "
                f"{hparams['checkpoint']} is no model folder or training "
                "output here; pass one, or False"
            )
        if hparams.get("mean_list") is not None:
            raise ValueError(
                "keep_results_with_model: with mean_list the threshold is not "
                "that of the cosine alone; leave one of them out"
            )


def _check_plda(hparams: dict) -> None:
    check_types(
        hparams,
        train_list=str | None,
        plda_file=str | None,
        plda_iterations=int,
        lda_dimension=int | None,
        plda_rank=int | None,
        adaptation_list=str | None,
        adaptation=list | None,
    )
    check_at_least(hparams, plda_iterations=1)
    check_choices(
        hparams,
        adaptation=(None, *ADAPTATIONS),
        plda_format=("numpy", "kaldi"),
    )
    for each in ADAPTATIONS.values():
        check_types(hparams, **dict.fromkeys(each.weights, float))
        check_at_least(hparams, **dict.fromkeys(each.weights, 0))
    if hparams["adaptation_list"] is None:
        if hparams["adaptation"]:
            raise ValueError("adaptation: it needs an adaptation_list")
        hparams["adaptation"] = []
    elif hparams["adaptation"] is None:
        hparams["adaptation"] = [*ADAPTATIONS]
    if (hparams["train_list"] is None) == (hparams["plda_file"] is None):
        raise ValueError(
            "train_list: give either one to train PLDA on, or plda_file, the "
            "plda.npz of an earlier run or a folder of Kaldi's"
        )


def read_trials(
    *,
    verification_file: str | list[str],
    data_folder: str,
    calibration_trials: str | list[str] | None,
    calibration_folder: str,
    calibration: str | None,
    utterance_list: str | None,
    enrolment_file: str | None,
    output_folder: str,
) -> Trials:
    """Reads all trials, and an earlier calibration.

    The arguments are the hyperparameters of these names. What is wrong in a
    list is a ValueError.
    """
    utterances = enrolments = None
    if utterance_list is not None:
        utterances = paths_of(read_utterances(utterance_list, data_folder))
    if enrolment_file is not None:
        enrolments = read_enrolments(enrolment_file)
    places = output_folder, utterances, enrolments
    files = utterance_list, enrolment_file
    tested = read_trial_lists(
        verification_file, data_folder, *places, files=files
    )
    calibrating = []
    if calibration_trials is not None:
        keys = "calibration_trials", "calibration_folder"
        calibrating = read_trial_lists(
            calibration_trials, calibration_folder, *places, keys, files
        )
    calibrations = load_calibrations(calibration) if calibration else {}
    return Trials(tested, calibrating, calibrations)


def read_list(
    key: str,
    source: str | None,
    list_folder: str | None,
    per_speaker: int | None,
    speakers: bool = False,
) -> list[Utterance]:
    """Reads a list of utterances, which is empty without a source.

    Source and folder are as for `read_utterances`; of each speaker so many
    utterances are taken, if a number is given. With ``speakers`` it is a
    ValueError, which names the key, if an utterance has no speaker.
    """
    if source is None:
        return []
    utterances = read_utterances(source, list_folder)
    for utterance in utterances if speakers else []:
        if utterance.speaker is None:
            raise ValueError(
                f"{key}: {source} does not say whose utterance "
                f"{utterance.name} is; add speakers"
            )
    if per_speaker is None:
        return utterances
    return limit_per_speaker(utterances, per_speaker)


def read_cohort(
    cohort_list: str | None,
    list_folder: str | None,
    per_speaker: int | None,
    cohort_entries: str,
    cohort_top: int,
    score_norms: list[str],
    measures: list[str],
) -> list[Utterance]:
    """Reads the list to normalize scores with, if any.

    The arguments are those of `read_list` and `evaluate`. It is a ValueError if
    it has fewer entries than are to count.
    """
    by_speaker = cohort_entries == "speakers"
    cohort = read_list(
        "cohort_list", cohort_list, list_folder, per_speaker, by_speaker
    )
    entries = {each.speaker if by_speaker else each.name for each in cohort}
    uses_top = "adaptive_s" in score_norms or "cohort_means" in measures
    if uses_top and cohort_top > len(entries):
        raise ValueError(
            f"cohort_top: {cohort_top} is more than the {len(entries)} entries "
            "of the cohort; lower it"
        )
    return cohort


def warn_of_known_speakers(
    trials: Trials,
    trained: frozenset[str],
    lists: Mapping[str, list[Utterance]],
) -> None:
    """Prints how many tested speakers are known from elsewhere.

    Those that the network was trained on are ``trained``; ``lists`` are others,
    by name. The speaker of a trial's utterance is the first folder in its name.
    """

    def speakers_of(lists: list[TrialList]) -> set[str]:
        return {name.split("/")[0] for name in files_of(lists)}

    speakers = speakers_of(trials.tested)
    warn_of_trained_speakers(speakers, trained)
    known = {"the calibration trials": speakers_of(trials.calibrating)}
    for name, utterances in lists.items():
        known[name] = {each.speaker or "" for each in utterances}
    for name, others in known.items():
        _warn(speakers, others, f"are in {name}, which should be of others")


def warn_of_trained_speakers(speakers: set[str], trained: Set) -> None:
    """Prints how many speakers the network was trained on, if any."""
    where = "were in the training: this is no test on unseen speakers"
    _warn(speakers, trained, where)


def _warn(speakers: set[str], known: Set, where: str) -> None:
    if common := len(speakers & known):
        print(f"warning  {common} of the {len(speakers)} speakers {where}")


def check_calibrations(
    calibrations: dict[str, Calibration], path: str | None, space: str
) -> None:
    """Refuses those of a file that are for embeddings of another space."""
    for each in calibrations.values():
        check_same_space(
            f"calibration: {path}",
            each.embedding_space,
            "the checkpoint",
            space,
        )


def kept_in(checkpoint: str, keep: bool) -> str | None:
    """The model folder that is to keep the results, if any."""
    return find_model(checkpoint) if keep else None
