"""What a verification shows: a table, scores, plots, and the worst trials.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import json
import os
import re
from dataclasses import dataclass

import torch

from redimnet2_lobes.files.atomic import complete_or_absent
from redimnet2_lobes.scoring.metrics import (
    EER,
    Cllr,
    actDCF,
    det_curve,
    minCllr,
    minDCF,
)
from redimnet2_lobes.scoring.plots import plot_det, plot_score_histogram
from redimnet2_lobes.scoring.results import in_precision

P_TARGETS = (0.01, 0.05)  # priors of a trial of one speaker in the minDCF
LISTED_TRIALS = 20  # worst trials of each kind
SCORES, WORST_TRIALS = "_scores.txt", "_worst_trials.txt"
HISTOGRAM = "_histogram.png"
COLUMNS = (
    "list",
    "back-end",
    "EER (%)",
    "minDCF 0.01",
    "minDCF 0.05",
    "Cllr",
    "minCllr",
    "trials",
    "threshold",
)


@dataclass
class Result:
    """Scores of a trial list by one back-end."""

    trial_list: object
    backend: str
    scores: torch.Tensor  # [trials]
    own_curve: bool = True  # not that of the back-end before it

    def figures(self):
        """Error rates and thresholds.

        Returns
        -------
        dict
            Entries of results.json. Detection costs are divided by that of a
            system that always says no, as in papers.
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
        for prior in P_TARGETS:
            cost, threshold = minDCF(positive, negative, p_target=prior)
            figures[f"min_dcf_{prior}"] = cost / prior
            figures[f"min_dcf_{prior}_threshold"] = threshold
            # At the threshold of log-likelihood ratios: calibrated scores'.
            cost = actDCF(positive, negative, p_target=prior)
            figures[f"act_dcf_{prior}"] = cost / prior
        figures["cllr"] = Cllr(positive, negative)
        figures["min_cllr"] = minCllr(positive, negative)
        return figures

    def split(self):
        """Scores of trials of one speaker, and of two."""
        labels = self.trial_list.labels
        return self.scores[labels], self.scores[~labels]


def report(results, hparams, output_folder):
    """Writes scores, results and plots, and prints a table.

    Arguments
    ---------
    results : list of Result
        Lists one after the other, each with all its back-ends.
    hparams : dict
        The hyperparameters, named in the results.
    output_folder : pathlib.Path
        Where to write.
    """
    rows = []
    curves = {}
    for name in {result.trial_list.name for result in results}:
        folder = output_folder / name
        folder.mkdir(exist_ok=True)
        for kind in (SCORES, WORST_TRIALS, HISTOGRAM):
            for earlier in folder.glob(f"*{kind}"):  # of other back-ends
                earlier.unlink()
    for result in results:
        folder = output_folder / result.trial_list.name
        figures = result.figures()
        rows.append(figures)
        positive, negative = result.split()
        if result.own_curve:
            of_list = curves.setdefault(result.trial_list.name, {})
            of_list[result.backend] = det_curve(positive, negative)[:2]
        name = re.sub(r"[^a-z0-9]+", "_", result.backend.lower()).strip("_")
        write_scores(result, folder / f"{name}{SCORES}")
        write_worst_trials(result, folder / f"{name}{WORST_TRIALS}")
        plot_score_histogram(
            positive,
            negative,
            figures["eer_threshold"],
            folder / f"{name}{HISTOGRAM}",
            title=f"Scores of {result.trial_list.name}, {result.backend}",
        )
    for name, of_backends in curves.items():
        plot_det(of_backends, output_folder / name / "det.png")
    checkpoint = os.path.normpath(hparams["checkpoint"])
    if os.path.isabs(checkpoint):  # where it lies is the user's business
        checkpoint = os.path.basename(checkpoint)
    summary = {
        "checkpoint": checkpoint,
        "seconds_used": hparams["maximum_seconds"],
        "crops": hparams["crops"],
        "eval_precision": hparams["eval_precision"],
        "results": rows,
    }
    text = text_table(rows) + embedded(hparams)
    for name, content in (
        ("results.json", json.dumps(summary, indent=2) + "\n"),
        ("results.md", markdown_table(rows)),
        ("results.txt", text),
    ):
        with complete_or_absent(output_folder / name) as partial:
            partial.write_text(content, encoding="utf-8")
    print(text, end="")
    print(
        "minDCF is normalized, the threshold that of the EER. Scores, worst "
        f"trials, histograms and DET curves are in {output_folder}/<list>/, "
        "the table in results.json and results.md"
    )


def embedded(hparams):
    r"""A line on what of each utterance was embedded, and how.

    Arguments
    ---------
    hparams : dict
        The hyperparameters.

    Returns
    -------
    str

    Example
    -------
    >>> hparams = {"maximum_seconds": 4, "crops": 10}
    >>> embedded({**hparams, "eval_precision": "fp32"})
    'Embedded of each utterance: 10 crops of 4 s, averaged.\n'
    >>> embedded({**hparams, "eval_precision": "bf16"})
    'Embedded of each utterance: 10 crops of 4 s, averaged, in bf16.\n'
    """
    seconds, crops = hparams["maximum_seconds"], hparams["crops"]
    what = "all of it" if seconds is None else f"its first {seconds:g} s"
    if crops is not None:
        what = f"{crops} crops of {seconds:g} s, averaged"
    return f"Embedded of each utterance: {what}{in_precision(hparams)}.\n"


def write_scores(result, path):
    """Writes a line ``enrol test label score`` for each trial.

    Arguments
    ---------
    result : Result
        The scores.
    path : pathlib.Path
        The file to write.
    """
    with (
        complete_or_absent(path) as partial,
        open(partial, "w", encoding="utf-8") as file,
    ):
        for (label, enrolment, test), score in zip(
            result.trial_list.trials, result.scores.tolist(), strict=True
        ):
            file.write(f"{enrolment} {test} {label} {score:.9g}\n")


def write_worst_trials(result, path):
    """Lists the trials of each kind with the most wrong scores, to listen to.

    Arguments
    ---------
    result : Result
        The scores.
    path : pathlib.Path
        The file to write.
    """
    trial_list = result.trial_list
    lines = []
    for heading, kind, sign in (
        ("Same speaker, lowest scores", trial_list.labels, -1),
        ("Different speakers, highest scores", ~trial_list.labels, 1),
    ):
        lines.append(f"# {heading}: score, enrolment, test")
        of_kind = torch.nonzero(kind).flatten()
        order = (sign * result.scores[of_kind]).argsort(
            descending=True, stable=True
        )
        for index in of_kind[order[:LISTED_TRIALS]].tolist():
            _, enrolment, test = trial_list.trials[index]
            files = " ".join(trial_list.enrolments[enrolment])
            lines.append(f"{result.scores[index]:.4f} {files} {test}")
    with complete_or_absent(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cells(figures):
    return [
        f"{figures['list']}",
        f"{figures['back_end']}",
        f"{figures['eer_percent']:.3f}",
        f"{figures['min_dcf_0.01']:.4f}",
        f"{figures['min_dcf_0.05']:.4f}",
        f"{figures['cllr']:.4f}",
        f"{figures['min_cllr']:.4f}",
        f"{figures['trials']:,}",
        f"{figures['eer_threshold']:.4f}",
    ]


def text_table(rows):
    """The results in aligned columns.

    Arguments
    ---------
    rows : list of dict
        ``Result.figures`` of each.

    Returns
    -------
    str
    """
    table = [list(COLUMNS), *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(
                zip(cells, widths, strict=True)
            )
        ).rstrip()
        for cells in table
    ]
    return "\n".join(lines) + "\n"


def markdown_table(rows):
    """The results as a table for a model card.

    Arguments
    ---------
    rows : list of dict
        ``Result.figures`` of each.

    Returns
    -------
    str
    """
    align = ["---", "---", *["---:"] * (len(COLUMNS) - 2)]
    table = [list(COLUMNS), align, *map(_cells, rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in table)
