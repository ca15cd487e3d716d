"""What a verification shows: a table, scores, plots, and the worst trials.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from redimnet2_lobes.data.trial_files import TrialList, trial_speakers
from redimnet2_lobes.files.atomic import write_text
from redimnet2_lobes.files.same_space import KEY
from redimnet2_lobes.scoring.bootstrap import (
    FEWEST_SPEAKERS,
    PRIORS,
    REPORTED,
    RESAMPLES,
    Interval,
    bootstrap,
    det_rates,
    frr_at_far,
)
from redimnet2_lobes.scoring.calibration import Calibration, save_calibrations
from redimnet2_lobes.scoring.metrics import (
    EER,
    Cllr,
    actDCF,
    det_curve,
    minCllr,
    minDCF,
)
from redimnet2_lobes.scoring.plots import plot_det, plot_score_histogram
from redimnet2_lobes.scoring.results import (
    INTERVAL,
    PLAIN_COSINE,
    PRINTED_INTERVALS,
    RESULTS_FILE,
    about_intervals,
    embedded_part,
    in_precision,
    results_table,
    shown_checkpoint,
)
from redimnet2_lobes.scoring.score_files import SCORES, write_scores
from redimnet2_lobes.scoring.tables import markdown_table, text_table

LISTED_TRIALS = 20  # worst trials of each kind
WORST_TRIALS, HISTOGRAM = "_worst_trials.txt", "_histogram.png"


@dataclass
class Result:
    """Scores of a trial list by one back-end."""

    trial_list: TrialList
    backend: str
    scores: torch.Tensor  # [trials]
    own_curve: bool = True  # not that of the back-end before it

    def split(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of trials of one speaker, and of two."""
        labels = self.trial_list.labels
        return self.scores[labels], self.scores[~labels]

    def figures(self) -> dict:
        """Error rates and thresholds: the entry of results.json.

        Detection costs are divided by that of a system that always says no, as
        in papers.
        """
        positive, negative = self.split()
        eer, eer_threshold = EER(positive, negative)
        figures = {
            "list": self.trial_list.name,
            "back_end": self.backend,
            "trials": len(self.scores),
            "same_speaker_trials": len(positive),
            "different_speakers_trials": len(negative),
            "files": len(self.trial_list.paths),
            "eer_percent": 100 * eer,
            "eer_threshold": eer_threshold,
        }
        for prior in PRIORS:
            cost, threshold = minDCF(positive, negative, p_target=prior)
            figures[f"min_dcf_{prior}"] = cost / prior
            figures[f"min_dcf_{prior}_threshold"] = threshold
            # At the threshold of log-likelihood ratios: calibrated scores'.
            cost = actDCF(positive, negative, p_target=prior)
            figures[f"act_dcf_{prior}"] = cost / prior
        figures["cllr"] = Cllr(positive, negative)
        figures["min_cllr"] = minCllr(positive, negative)
        return figures

    def intervals(
        self, speakers: np.ndarray | None, resamples: int = RESAMPLES
    ) -> dict[str, Interval]:
        """Figures with intervals, by `bootstrap` over the speakers [trials, 2].

        Those of ``REPORTED``, and ``det``, false rejection rates at the false
        acceptance rates of `det_rates`.
        """
        labels = self.trial_list.labels
        figures = {
            **REPORTED,
            "det": frr_at_far(det_rates(int((~labels).sum()))),
        }
        return bootstrap(self.scores, labels, speakers, figures, resamples)


def report(
    results: list[Result],
    trained: dict[str, Calibration],
    output_folder: str | os.PathLike,
    checkpoint: str,
    space: str,
    maximum_seconds: float | None = None,
    crops: int | None = None,
    eval_precision: str = "fp32",
    keep_in: str | os.PathLike | None = None,
    resamples: int = RESAMPLES,
) -> list[dict]:
    """Writes scores, results, plots and calibrations, and prints a table.

    Returns the entries of results.json.

    Arguments
    ---------
    results
        List after list, each with all its back-ends.
    checkpoint
        The network, as the user named it. The results name it, too, and say
        what of each utterance was embedded: ``maximum_seconds``, ``crops`` and
        ``eval_precision``.
    space
        That of its embeddings, for the results and calibrations.
    keep_in
        The model folder that gets results.json as well, for its operating
        point. It is a ValueError if the cosine is not among the back-ends.
    resamples
        Of the speakers, for intervals; 0 for none.
    """
    backends = dict.fromkeys(result.backend for result in results)
    if keep_in is not None and PLAIN_COSINE not in backends:
        raise ValueError(
            f"keep_results_with_model: there is no {PLAIN_COSINE} among the "
            f"back-ends, only {', '.join(backends)}; pass False"
        )
    output_folder = Path(output_folder)
    rows = _write_lists(results, output_folder, resamples)
    if trained:
        trained = {
            name: each._replace(embedding_space=space)
            for name, each in trained.items()
        }
        save_calibrations(trained, output_folder / "calibration.json")
    summary = {
        "checkpoint": shown_checkpoint(checkpoint),
        "seconds_used": maximum_seconds,
        "crops": crops,
        "eval_precision": eval_precision,
        KEY: space,
        "bootstrap_resamples": resamples,
        "results": rows,
    }
    text = text_table(results_table(rows, rows[0], PRINTED_INTERVALS)) + (
        f"Embedded of each utterance: {embedded_part(summary)}"
        f"{in_precision(summary)}.\n"
    )
    if intervals := about_intervals(summary):
        text += f"{intervals}\n"
    write_text(
        output_folder / RESULTS_FILE, json.dumps(summary, indent=2) + "\n"
    )
    write_text(
        output_folder / "results.md",
        markdown_table(results_table(rows, rows[0])),
    )
    write_text(output_folder / "results.txt", text)
    print(text, end="")
    print(
        "minDCF is normalized, the threshold that of the EER. Scores, worst "
        f"trials, histograms and DET curves are in {output_folder}/<list>/, "
        "the table in results.json and results.md"
    )
    if keep_in is not None:
        summary["checkpoint"] = os.path.basename(os.path.abspath(checkpoint))
        kept = Path(keep_in) / RESULTS_FILE
        write_text(kept, json.dumps(summary, indent=2) + "\n")
        print(f"kept with the model: {kept}")
    return rows


def _write_lists(
    results: list[Result], output_folder: Path, resamples: int
) -> list[dict]:
    """Writes the folder of each list; returns the figures of each result."""
    lists = {result.trial_list.name: result.trial_list for result in results}
    speakers = {name: trial_speakers(each) for name, each in lists.items()}
    for name in lists:
        (output_folder / name).mkdir(parents=True, exist_ok=True)
        for kind in (SCORES, WORST_TRIALS, HISTOGRAM):
            # Those of other back-ends, from an earlier run.
            for earlier in (output_folder / name).glob(f"*{kind}"):
                earlier.unlink()
    rows, curves = [], defaultdict(list)
    for result in results:
        trial_list = result.trial_list
        row, of_list = result.figures(), speakers[trial_list.name]
        row["speakers"] = None if of_list is None else len(np.unique(of_list))
        enough = (row["speakers"] or 0) >= FEWEST_SPEAKERS and resamples
        found = result.intervals(of_list if enough else None, resamples)
        for key in REPORTED:
            row[key + INTERVAL] = found[key].limits
        rows.append(row)
        if result.own_curve:
            curves[trial_list.name].append((result, found))
        name = re.sub(r"[^a-z0-9]+", "_", result.backend.lower()).strip("_")
        file = output_folder / trial_list.name / name
        write_scores(f"{file}{SCORES}", trial_list.trials, result.scores)
        write_text(Path(f"{file}{WORST_TRIALS}"), _worst_trials(result))
        plot_score_histogram(
            *result.split(),
            row["eer_threshold"],
            f"{file}{HISTOGRAM}",
            title=f"Scores of {trial_list.name}, {result.backend}",
        )
    for name, of_backends in curves.items():
        _plot_det(of_backends, output_folder / name / "det.png")
    return rows


def _plot_det(
    of_backends: list[tuple[Result, dict[str, Interval]]], path: Path
) -> None:
    """Plots the curves of results of a list, with their intervals if any."""
    known = {
        result.backend: (det_rates(len(result.split()[1])), found)
        for result, found in of_backends
        if found["det"].low is not None
    }
    plot_det(
        {
            result.backend: det_curve(*result.split())[:2]
            for result, _ in of_backends
        },
        path,
        {name: (rates, found["det"]) for name, (rates, found) in known.items()},
        {
            name: found["eer_percent"].limits
            for name, (_, found) in known.items()
        },
    )


def _worst_trials(result: Result) -> str:
    """The trials of each kind with the most wrong scores, to listen to."""
    trial_list = result.trial_list
    lines = []
    for heading, kind, sign in (
        ("Same speaker, lowest scores", trial_list.labels, -1),
        ("Different speakers, highest scores", ~trial_list.labels, 1),
    ):
        lines.append(f"# {heading}: score, enrolment, test")
        of_kind = torch.nonzero(kind).flatten()
        wrong = sign * result.scores[of_kind]
        order = wrong.argsort(descending=True, stable=True)
        for index in of_kind[order[:LISTED_TRIALS]].tolist():
            _, enrolment, test = trial_list.trials[index]
            files = " ".join(trial_list.enrolments[enrolment])
            lines.append(f"{result.scores[index]:.4f} {files} {test}")
    return "\n".join(lines) + "\n"
