"""Speaker verification: what the scripts of all back-ends have in common.

Lists, embeddings, score normalization and calibration; a script brings its
back-ends, and ``scoring.report`` shows what comes out.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from redimnet2_lobes.data.audio import match_utterances
from redimnet2_lobes.data.trial_files import check_labels, find_files
from redimnet2_lobes.data.trials import read_enrolments, read_trials
from redimnet2_lobes.data.utterances import limit_per_speaker, read_utterances
from redimnet2_lobes.files.atomic import complete_or_absent
from redimnet2_lobes.inference.embedding_cache import extract_embeddings
from redimnet2_lobes.pretrained.loading import find_model
from redimnet2_lobes.recipe.command_line import parse_command_line
from redimnet2_lobes.recipe.encoder import (
    check_embedding_hparams,
    check_embedding_options,
    load_folded_encoder,
)
from redimnet2_lobes.recipe.hparams import load_hparams
from redimnet2_lobes.recipe.settings import check_at_least, check_types
from redimnet2_lobes.scoring.backends import (
    average,
    cohort_statistics,
    normalize_scores,
    trial_scores,
)
from redimnet2_lobes.scoring.calibration import (
    load_calibrations,
    quality_measures,
    save_calibrations,
    train_calibration,
)
from redimnet2_lobes.scoring.report import Result, report
from redimnet2_lobes.scoring.results import (
    PLAIN_COSINE,
    RESULTS_FILE,
    read_results,
)

# Score normalizations: which sides' statistics, and of how much of the cohort.
SCORE_NORMS = {
    "z": "z-norm",
    "t": "t-norm",
    "s": "s-norm",
    "adaptive_s": "adaptive s-norm",
}
QUALITY_MEASURES = ("durations", "magnitudes", "cohort_means")


@dataclass
class TrialList:
    """Trials, and the utterances of each enrolment."""

    name: str
    trials: list  # (label, enrolment, test)
    enrolments: dict  # name of each enrolment to its utterances
    paths: dict  # name of each utterance to its file

    @property
    def labels(self):
        """True for trials of one speaker [trials]."""
        return torch.tensor([label for label, _, _ in self.trials]) == 1


class Verification:
    """A run of a verification script.

    Arguments
    ---------
    arguments : list of str
        The command line without the script's name.

    Raises
    ------
    ValueError
        If a value, a list or the checkpoint is wrong. Nothing has been
        computed then.
    """

    def __init__(self, arguments):
        hparams_file, run_opts, overrides = parse_command_line(arguments)
        check_embedding_options(run_opts)
        self.hparams = hparams = load_hparams(hparams_file, overrides)
        check_hparams(hparams)
        self.lists = self._read_lists("verification_file", "data_folder")
        self.calibration_lists = []
        if hparams["calibration_trials"] is not None:
            self.calibration_lists = self._read_lists(
                "calibration_trials", "calibration_folder"
            )
        self.calibrations = {}
        if hparams["calibration"] is not None:
            self.calibrations = load_calibrations(hparams["calibration"])
        self.cohort_utterances = self.read_utterances(
            "cohort_list", with_speakers=hparams["cohort_entries"] == "speakers"
        )
        if self.cohort_utterances:
            self._check_cohort()
        self.encoder, self.encode_batch, self.fingerprint = load_folded_encoder(
            hparams, hparams_file, run_opts
        )
        self.output_folder = Path(hparams["output_folder"])
        self.output_folder.mkdir(parents=True, exist_ok=True)

    def _read_lists(self, key, folder_key):
        paths = self.hparams[key]
        lists = {}
        for path in [paths] if isinstance(paths, str) else paths:
            if not os.path.isfile(path):
                raise ValueError(f"{key}: no file {path}")
            name = Path(path).stem
            if name in lists:
                raise ValueError(
                    f"{key}: two lists are called {name}, and so would their "
                    "results be; rename one"
                )
            trials = read_trials(path)
            check_labels(trials, key, path)
            enrolments = {enrolment: [enrolment] for _, enrolment, _ in trials}
            if self.hparams["enrolment_file"] is not None:
                enrolments = self._models(enrolments, path)
            names = [
                utterance
                for _, enrolment, test in trials
                for utterance in (*enrolments[enrolment], test)
            ]
            lists[name] = TrialList(
                name, trials, enrolments, self._find(names, folder_key)
            )
        return list(lists.values())

    def _models(self, enrolments, trial_list):
        path = self.hparams["enrolment_file"]
        models = read_enrolments(path)
        for model in enrolments:
            if model not in models:
                raise ValueError(
                    f"enrolment_file: {path} has no model {model}, which "
                    f"{trial_list} names"
                )
        return {model: models[model] for model in enrolments}

    def _find(self, names, folder_key):
        source = self.hparams["utterance_list"]
        if source is None:
            return find_files(
                names,
                self.hparams[folder_key],
                self.hparams["output_folder"],
                folder_key,
            )
        known = {
            utterance.name: utterance.path
            for utterance in read_utterances(
                source, self.hparams["data_folder"]
            )
        }
        matches = match_utterances(names, known)
        for name in names:
            if name not in matches:
                raise ValueError(
                    f"utterance_list: {source} does not say where {name} is, "
                    "which the trials name"
                )
        return {name: known[matches[name]] for name in names}

    def _check_cohort(self):
        """Checks its size before it is embedded."""
        entries = len(self.cohort_utterances)
        if self.hparams["cohort_entries"] == "speakers":
            entries = len(rows_of_speakers(self.cohort_utterances))
        if self._uses_top() and self.hparams["cohort_top"] > entries:
            raise ValueError(
                f"cohort_top: {self.hparams['cohort_top']} is more than the "
                f"{entries} entries of the cohort; lower it"
            )

    def read_utterances(self, key, with_speakers=False):
        """The utterances of a list of the hyperparameters.

        Arguments
        ---------
        key : str
            A key such as ``cohort_list``.
        with_speakers : bool
            Whether each must have a speaker.

        Returns
        -------
        list of Utterance
            Empty if the key is null; at most ``utterances_per_speaker`` of each
            speaker.
        """
        if self.hparams[key] is None:
            return []
        utterances = read_utterances(
            self.hparams[key], self.hparams["list_folder"]
        )
        for utterance in utterances if with_speakers else []:
            if utterance.speaker is None:
                raise ValueError(
                    f"{key}: {self.hparams[key]} does not say whose utterance "
                    f"{utterance.name} is; add speakers"
                )
        limit = self.hparams["utterances_per_speaker"]
        if limit is None:
            return utterances
        return limit_per_speaker(utterances, limit)

    def embed(self, paths):
        """Embeddings of files, from the cache where it has them.

        Arguments
        ---------
        paths : dict
            Name of each utterance to its file.

        Returns
        -------
        Embeddings
        """
        return extract_embeddings(
            self.encode_batch,
            paths,
            self.hparams["embeddings_folder"],
            self.fingerprint,
            seconds_per_batch=self.hparams["seconds_per_batch"],
            maximum_seconds=self.hparams["maximum_seconds"],
            crops=self.hparams["crops"],
        )

    def embed_utterances(self, utterances):
        """The same of a list that ``read_utterances`` gave."""
        return self.embed({each.name: each.path for each in utterances})

    def evaluate(self, backends):
        """Scores all lists by all back-ends, and reports.

        Arguments
        ---------
        backends : dict
            Name of each back-end to it: an object whose ``enrolment_side`` and
            ``test_side`` make rows of embeddings whose dot product is the
            score, such as ``CosineBackend``. The score must not depend on
            which of two embeddings enrols.

        Raises
        ------
        ValueError
            If results are to be kept with the model, and the cosine is not
            among the back-ends, which the threshold is taken from.
        """
        keep = self.hparams["keep_results_with_model"]
        if keep and PLAIN_COSINE not in backends:
            raise ValueError(
                f"keep_results_with_model: there is no {PLAIN_COSINE} among "
                f"the back-ends, only {', '.join(backends)}; pass False"
            )
        self._cohort = self._embed_cohort()
        calibrations = self.calibrations
        if self.calibration_lists:
            calibrations = self._train_calibrations(backends)
        paths = {}
        for trial_list in self.lists:
            paths.update(trial_list.paths)
        embeddings = self.embed(paths)
        self._warn_of_known_speakers()
        results = []
        for trial_list in self.lists:
            scored = self._score(trial_list, embeddings, backends)
            for name, (scores, features) in scored.items():
                results.append(Result(trial_list, name, scores))
                if not calibrations:
                    continue
                if name not in calibrations:
                    raise ValueError(
                        f"calibration: {self.hparams['calibration']} has none "
                        f"for {name}, only for {'; '.join(calibrations)}"
                    )
                results.append(
                    Result(
                        trial_list,
                        f"{name}, calibrated",
                        calibrations[name](features),
                        # The score alone: the order of the trials is the same.
                        own_curve=len(features) > 1,
                    )
                )
        report(results, self.hparams, self.output_folder)
        if keep:
            keep_results(
                self.output_folder / RESULTS_FILE, self.hparams["checkpoint"]
            )

    def _embed_cohort(self):
        """Embeddings of the cohort's entries, or None."""
        if not self.cohort_utterances:
            return None
        vectors = self.embed_utterances(self.cohort_utterances).vectors
        if self.hparams["cohort_entries"] == "utterances":
            return vectors
        return average(vectors, rows_of_speakers(self.cohort_utterances))

    def _train_calibrations(self, backends):
        paths = {}
        for trial_list in self.calibration_lists:
            paths.update(trial_list.paths)
        embeddings = self.embed(paths)
        parts = [
            self._score(trial_list, embeddings, backends)
            for trial_list in self.calibration_lists
        ]
        labels = torch.cat([each.labels for each in self.calibration_lists])
        calibrations = {}
        for name in parts[0]:
            features = [part[name][1] for part in parts]
            calibrations[name] = train_calibration(
                {
                    key: torch.cat([each[key] for each in features])
                    for key in features[0]
                },
                labels,
            )
        save_calibrations(calibrations, self.output_folder / "calibration.json")
        return calibrations

    def _score(self, trial_list, embeddings, backends):
        """Of each back-end and normalization scores and features of trials."""
        # Each distinct enrolment or test, by its utterances, is a voice.
        row = {}
        pairs = torch.tensor(
            [
                [
                    row.setdefault(tuple(utterances), len(row))
                    for utterances in (trial_list.enrolments[enrolment], [test])
                ]
                for _, enrolment, test in trial_list.trials
            ]
        )
        sizes = [len(utterances) for utterances in row]
        rows = embeddings.rows(name for names in row for name in names)
        groups = [group.tolist() for group in rows.split(sizes)]
        voices = average(embeddings.vectors, groups)
        measures = {}
        if "durations" in self.hparams["quality_measures"]:
            seconds = average(embeddings.seconds.unsqueeze(1), groups).flatten()
            measures["duration"] = (seconds * torch.tensor(sizes)).log()
        if "magnitudes" in self.hparams["quality_measures"]:
            measures["magnitude"] = voices.norm(dim=1).log()
        scored = {}
        for name, backend in backends.items():
            sides = backend.enrolment_side(voices), backend.test_side(voices)
            scores = trial_scores(*sides, *pairs.T)
            variants = {name: scores}
            if self._cohort is not None:
                whole, top = self._statistics(backend, sides[0])
                for norm in self.hparams["score_norms"]:
                    statistics = top if norm == "adaptive_s" else whole
                    enrolment, test = (
                        [values[side] for values in statistics]
                        for side in pairs.T
                    )
                    variants[f"{name}, {self._norm_name(norm)}"] = (
                        normalize_scores(
                            scores,
                            None if norm == "t" else enrolment,
                            None if norm == "z" else test,
                        )
                    )
                if "cohort_means" in self.hparams["quality_measures"]:
                    measures["cohort mean"] = top[0]
            features = quality_measures(
                **{
                    measure: values[pairs].unbind(1)
                    for measure, values in measures.items()
                }
            )
            for variant, values in variants.items():
                scored[variant] = values, {"score": values, **features}
        return scored

    def _statistics(self, backend, enrolment_side):
        """Statistics of voices, of all of the cohort and of its top.

        The scores being symmetric, those of an enrolment are those of a test.
        """
        cohort = backend.test_side(self._cohort)
        whole = top = None
        if {"z", "t", "s"} & set(self.hparams["score_norms"]):
            whole = cohort_statistics(enrolment_side, cohort)
        if self._uses_top():
            top = cohort_statistics(
                enrolment_side, cohort, self.hparams["cohort_top"]
            )
        return whole, top

    def _uses_top(self):
        return (
            "adaptive_s" in self.hparams["score_norms"]
            or "cohort_means" in self.hparams["quality_measures"]
        )

    def _norm_name(self, norm):
        if norm == "adaptive_s":
            return f"{SCORE_NORMS[norm]} (top {self.hparams['cohort_top']})"
        return SCORE_NORMS[norm]

    def _warn_of_known_speakers(self):
        """Warns of tested speakers that something was trained on."""
        speakers = {
            name.split("/")[0]
            for trial_list in self.lists
            for name in trial_list.paths
        }
        classes = getattr(self.encoder.hparams, "label_encoder", None)
        trained = speakers & set(classes.lab2ind if classes else ())
        if trained:
            print(
                f"warning  {len(trained)} of the {len(speakers)} speakers were "
                "in the training: this is no test on unseen speakers"
            )
        calibrated = speakers & {
            name.split("/")[0]
            for trial_list in self.calibration_lists
            for name in trial_list.paths
        }
        if calibrated:
            print(
                f"warning  {len(calibrated)} of the {len(speakers)} speakers "
                "are in the calibration trials, which should be of others"
            )
        cohort = speakers & {each.speaker for each in self.cohort_utterances}
        if cohort:
            print(
                f"warning  {len(cohort)} of the {len(speakers)} speakers are "
                "in the cohort, which should be of others"
            )


def rows_of_speakers(utterances):
    """Rows of each speaker's utterances, speakers in order of first mention.

    Arguments
    ---------
    utterances : list of Utterance
        Utterances, all with a speaker.

    Returns
    -------
    list of list of int
    """
    rows = {}
    for row, utterance in enumerate(utterances):
        rows.setdefault(utterance.speaker, []).append(row)
    return list(rows.values())


def keep_results(path, checkpoint):
    """Copies results into the model folder that they are of.

    Arguments
    ---------
    path : pathlib.Path
        results.json of a verification.
    checkpoint : str
        The model folder, or the output folder of a training.

    Raises
    ------
    OSError
        If the model folder cannot be written.
    """
    results = read_results(path)
    results["checkpoint"] = os.path.basename(os.path.abspath(checkpoint))
    kept = Path(find_model(checkpoint)) / RESULTS_FILE
    with complete_or_absent(kept) as partial:
        partial.write_text(json.dumps(results, indent=2) + "\n")
    print(f"kept with the model: {kept}")


def check_hparams(hparams):
    """Checks what can be checked before any work is done.

    Arguments
    ---------
    hparams : dict
        The hyperparameters.

    Raises
    ------
    ValueError
        If a value is of the wrong type, or does not go with another.
    """
    optional = {
        "utterances_per_speaker": int,
        "utterance_list": str,
        "enrolment_file": str,
        "cohort_list": str,
        "list_folder": str,
        "calibration": str,
    }
    check_types(
        hparams,
        data_folder=str,
        output_folder=str,
        embeddings_folder=str,
        cohort_top=int,
        keep_results_with_model=bool,
        **{
            key: expected
            for key, expected in optional.items()
            if hparams[key] is not None
        },
    )
    check_embedding_hparams(hparams)
    _check_results_can_be_kept(hparams)
    if hparams["utterances_per_speaker"] is not None:
        check_at_least(hparams, utterances_per_speaker=1)
    for key, known in (
        ("cohort_entries", ("speakers", "utterances")),
        ("score_norms", (None, *SCORE_NORMS)),
        ("quality_measures", QUALITY_MEASURES),
    ):
        values = hparams[key]
        for value in values if isinstance(values, list) else [values]:
            if value not in known:
                raise ValueError(
                    f"{key}: unknown value {value!r}, expected one of "
                    f"{', '.join(filter(None, known))}"
                )
    if hparams["score_norms"] is None:
        hparams["score_norms"] = (
            ["adaptive_s"] if hparams["cohort_list"] else []
        )
    for key in ("score_norms", "quality_measures"):
        if not isinstance(hparams[key], list):
            raise ValueError(f"{key}: expected a list such as [], not a value")
    for key in ("verification_file", "calibration_trials"):
        value = hparams[key]
        if not isinstance(value, str | list) and (
            value is not None or key == "verification_file"
        ):
            raise ValueError(
                f"{key}: expected a trial list or several, not {value!r}"
            )
    for key in ("enrolment_file", "calibration"):
        if hparams[key] is not None and not os.path.isfile(hparams[key]):
            raise ValueError(f"{key}: no file {hparams[key]}")
    calibrated = [
        key
        for key in ("calibration", "calibration_trials")
        if hparams[key] is not None
    ]
    if len(calibrated) == 2:
        raise ValueError(
            "calibration: give either a saved one or calibration_trials"
        )
    if hparams["quality_measures"] and not calibrated:
        raise ValueError(
            "quality_measures: they need calibration_trials or a calibration"
        )
    if (
        "cohort_means" in hparams["quality_measures"]
        and hparams["cohort_list"] is None
    ):
        raise ValueError("quality_measures: cohort_means needs a cohort_list")
    if hparams["score_norms"] and hparams["cohort_list"] is None:
        raise ValueError("score_norms: they need a cohort_list")
    if hparams["utterance_list"] is None and not os.path.isdir(
        os.path.join(hparams["data_folder"], "wav")
    ):
        raise ValueError(
            f"data_folder: there is no folder wav in {hparams['data_folder']}"
        )


def _check_results_can_be_kept(hparams):
    if not hparams["keep_results_with_model"]:
        return
    if not os.path.isdir(hparams["checkpoint"]):
        raise ValueError(
            f"keep_results_with_model: the checkpoint {hparams['checkpoint']} "
            "is no model folder or training output here; pass one, or False"
        )
    if hparams.get("mean_list") is not None:
        raise ValueError(
            "keep_results_with_model: with mean_list the threshold is not "
            "that of the cosine alone; leave one of them out"
        )
