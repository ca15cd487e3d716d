"""Error rates of trial lists under conditions, beside those without.

A threshold is found once, on recordings without a condition, and kept: so what
a system with that threshold does in each condition is told as well, its false
acceptances and false rejections.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from redimnet2_lobes.data.conditions import Condition, Excerpt
from redimnet2_lobes.data.trial_files import TrialList, trial_speakers
from redimnet2_lobes.files.atomic import write_text
from redimnet2_lobes.files.same_space import KEY
from redimnet2_lobes.inference.embedding_cache import Embeddings
from redimnet2_lobes.models.front_end import SAMPLE_RATE
from redimnet2_lobes.scoring.backends import (
    CosineBackend,
    average,
    trial_scores,
)
from redimnet2_lobes.scoring.bootstrap import (
    FEWEST_SPEAKERS,
    REPORTED,
    RESAMPLES,
    Interval,
    bootstrap,
    far_at,
    frr_at,
    in_units,
)
from redimnet2_lobes.scoring.interval_plots import (
    plot_eer_by_duration,
    plot_eer_of_conditions,
)
from redimnet2_lobes.scoring.metrics import EER
from redimnet2_lobes.scoring.results import (
    INTERVAL,
    PRINTED_INTERVALS,
    about_intervals,
    figures_table,
    shown_checkpoint,
)
from redimnet2_lobes.scoring.tables import markdown_table, text_table

CLEAN = "clean"  # what is called so has no condition

# Of a table headings, keys and how figures are written.
COLUMNS = (
    ("list", "list", "{}"),
    ("condition", "condition", "{}"),
    ("seconds", "mean_test_seconds", "{:.1f}"),
    ("EER (%)", "eer_percent", "{:.2f}"),
    ("minDCF 0.01", "min_dcf_0.01", "{:.3f}"),
    ("FAR (%)", "far_percent_at_clean_threshold", "{:.2f}"),
    ("FRR (%)", "frr_percent_at_clean_threshold", "{:.2f}"),
)


@dataclass
class Arm:
    """Scores of a trial list under a condition, or with none."""

    trial_list: TrialList
    name: str
    condition: Condition | None
    scores: torch.Tensor  # [trials]
    seconds: torch.Tensor  # of each test utterance [utterances]

    @property
    def too_short(self) -> int:
        """Test utterances with less than was wanted, which were used whole."""
        step = self.condition and self.condition.step
        if not isinstance(step, Excerpt):
            return 0
        samples = (self.seconds * SAMPLE_RATE).round()
        return int((samples < round(step.seconds * SAMPLE_RATE)).sum())


def score_arm(
    trial_list: TrialList,
    name: str,
    condition: Condition | None,
    enrolled: Embeddings,
    tested: Embeddings,
) -> Arm:
    """Scores a trial list by the cosine, with embeddings of each side.

    ``enrolled`` has the utterances of all enrolments, which are averaged,
    ``tested`` all test utterances.

    Example
    -------
    >>> trials = [(1, "a", "b"), (0, "a", "c")]
    >>> trial_list = TrialList("O", trials, {"a": ["a"]}, {})
    >>> embeddings = Embeddings(["a", "b", "c"], torch.eye(3), torch.ones(3))
    >>> score_arm(trial_list, CLEAN, None, embeddings, embeddings).scores
    tensor([0., 0.])
    """
    enrolments, tests = {}, {}
    rows = [
        (
            enrolments.setdefault(enrolment, len(enrolments)),
            tests.setdefault(test, len(tests)),
        )
        for _, enrolment, test in trial_list.trials
    ]
    groups = [
        enrolled.rows(trial_list.enrolments[enrolment]).tolist()
        for enrolment in enrolments
    ]
    test_rows = tested.rows(tests)
    backend = CosineBackend()
    scores = trial_scores(
        backend.enrolment_side(average(enrolled.vectors, groups)),
        backend.test_side(tested.vectors[test_rows]),
        *torch.tensor(rows).T,
    )
    return Arm(trial_list, name, condition, scores, tested.seconds[test_rows])


def figures_of(arms: list[Arm]) -> list[dict]:
    """Error rates of the arms of one list, of which the first is clean.

    They are the entries of conditions.json, with intervals as of results.json.
    False acceptances and rejections are those at the threshold of the first
    arm's equal error rate.
    """
    trial_list = arms[0].trial_list
    labels = trial_list.labels
    speakers = trial_speakers(trial_list)
    count = None if speakers is None else len(np.unique(speakers))
    if count is not None and count < FEWEST_SPEAKERS:
        speakers = None  # there are no intervals, either
    clean = arms[0].scores
    _, threshold = EER(clean[labels], clean[~labels])
    figures = {
        **REPORTED,
        "far_percent_at_clean_threshold": in_units(far_at(threshold), 0.01),
        "frr_percent_at_clean_threshold": in_units(frr_at(threshold), 0.01),
    }
    entries = []
    for arm in arms:
        entry = {
            "list": trial_list.name,
            "condition": arm.name,
            "settings": arm.condition and arm.condition.settings(),
            "trials": len(labels),
            "speakers": count,
            "test_utterances": len(arm.seconds),
            "mean_test_seconds": arm.seconds.mean().item(),
            "shorter_than_wanted": arm.too_short,
            "clean_threshold": threshold,
        }
        found = bootstrap(arm.scores, labels, speakers, figures)
        for key, each in found.items():
            entry[key] = float(each.value)
            entry[key + INTERVAL] = each.limits
        entries.append(entry)
    return entries


def report_conditions(
    arms: list[Arm],
    output_folder: str | os.PathLike,
    *,
    checkpoint: str,
    space: str,
    eval_precision: str,
    maximum_seconds: float | None,
    crops: int | None,
    apply_to: str,
    seed: int,
) -> None:
    """Writes conditions.json, .md and .txt, and plots, and prints the table.

    Arguments
    ---------
    arms
        List after list, each beginning with the clean one.
    checkpoint, space, eval_precision, maximum_seconds, crops, apply_to, seed
        What conditions.json says of how the scores came about.
    """
    output_folder = Path(output_folder)
    rows = []
    by_list: dict[str, list[Arm]] = {}
    for arm in arms:
        by_list.setdefault(arm.trial_list.name, []).append(arm)
    for name, of_list in by_list.items():
        entries = figures_of(of_list)
        rows += entries
        (output_folder / name).mkdir(parents=True, exist_ok=True)
        _plot(of_list, entries, output_folder / name)
    summary = {
        "checkpoint": shown_checkpoint(checkpoint),
        "seconds_used": maximum_seconds,
        "crops": crops,
        "eval_precision": eval_precision,
        KEY: space,
        "apply_to": apply_to,
        "seed": seed,
        "bootstrap_resamples": RESAMPLES,
        "results": rows,
    }
    notes = [*_notes(rows), about_intervals(summary)]
    text = text_table(figures_table(rows, COLUMNS, PRINTED_INTERVALS))
    text += "".join(f"{line}\n" for line in notes)
    table = figures_table(rows, COLUMNS, rows[0])
    for file, content in (
        ("conditions.json", json.dumps(summary, indent=2) + "\n"),
        ("conditions.md", markdown_table(table)),
        ("conditions.txt", text),
    ):
        write_text(output_folder / file, content)
    print(text, end="")
    print(
        "FAR and FRR are those at the threshold of the clean EER. Plots are in "
        f"{output_folder}/<list>/, the table in conditions.json and .md"
    )


def _notes(rows: list[dict]) -> list[str]:
    return [
        f"{row['list']}, {row['condition']}: {row['shorter_than_wanted']} of "
        f"the {row['test_utterances']} test utterances have less, and were "
        "used whole"
        for row in rows
        if row["shorter_than_wanted"]
    ]


def _plot(arms: list[Arm], entries: list[dict], folder: Path) -> None:
    """Plots durations as a curve, everything else as points beside clean."""
    name = arms[0].trial_list.name
    durations, others = [], {}
    for arm, entry in zip(arms, entries, strict=True):
        limits = entry["eer_percent" + INTERVAL] or (None, None)
        rate = Interval(entry["eer_percent"], *limits)
        is_excerpt = arm.condition and isinstance(arm.condition.step, Excerpt)
        if is_excerpt or arm.condition is None:
            durations.append((entry["mean_test_seconds"], rate))
        if not is_excerpt:
            others[arm.name] = rate
    if len(durations) > 1:
        seconds, rates = zip(*sorted(durations), strict=True)
        plot_eer_by_duration(
            seconds,
            rates,
            folder / "duration.png",
            f"EER of {name} by duration",
        )
    if len(others) > 1:
        plot_eer_of_conditions(
            others, folder / "conditions.png", f"EER of {name} under conditions"
        )
