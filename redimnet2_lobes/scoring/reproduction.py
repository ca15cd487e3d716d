"""Measured error rates beside published ones of the same trials.

Same weights and same trials give the same error rate, so a confidence interval,
which says what other speakers would give, is no measure of whether a figure was
reproduced. What may differ is the rounding of the published figure, the last
digits of the scores, and by a trial what is called the equal error rate where
no threshold makes both rates equal: the `tolerance`.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from typing import NamedTuple

import torch

from redimnet2_lobes.scoring.bootstrap import Interval
from redimnet2_lobes.scoring.metrics import EER
from redimnet2_lobes.scoring.report import Result
from redimnet2_lobes.scoring.results import INTERVAL
from redimnet2_lobes.scoring.tables import with_interval

NOT_PUBLISHED = "-"
# How far float32 may move a cosine. Of the published code's embeddings ours
# differ by less than 1e-5 of the largest number (tests/test_parity.py).
SCORE_ERROR = 1e-5


class Reproduced(NamedTuple):
    """An equal error rate in percent, and the published one of the list."""

    name: str  # of the list
    trials: int
    measured: Interval  # with the limits for other speakers
    published: str  # as the authors write it, - where they do not
    tolerance: float | None  # None where nothing is published

    @property
    def is_within(self) -> bool | None:
        """Whether the published figure is reproduced, None if there is none."""
        if self.tolerance is None:
            return None
        difference = abs(self.measured.value - float(self.published))
        return difference <= self.tolerance

    def as_json(self) -> dict:
        """What programs read."""
        published = None if self.tolerance is None else float(self.published)
        return {
            "list": self.name,
            "trials": self.trials,
            "eer_percent": self.measured.value,
            "eer_percent_interval": self.measured.limits,
            "published_eer_percent": published,
            "tolerance_percent": self.tolerance,
            "within_tolerance": self.is_within,
        }


def compare_with_published(
    name: str, result: Result, entry: dict, published: str
) -> Reproduced:
    """Sets the equal error rate of a list beside a published one.

    Arguments
    ---------
    name
        The list, such as ``O``.
    result, entry
        Its scores, and what results.json says of them.
    published
        In percent, with the digits that are published, or -.
    """
    limits = entry["eer_percent" + INTERVAL] or (None, None)
    allowed = None
    if published != NOT_PUBLISHED:
        allowed = tolerance(*result.split(), published)
    return Reproduced(
        name,
        len(result.scores),
        Interval(entry["eer_percent"], *limits),
        published,
        allowed,
    )


def tolerance(
    positive_scores: torch.Tensor,
    negative_scores: torch.Tensor,
    published: str,
    score_error: float = SCORE_ERROR,
) -> float:
    """How far from a published equal error rate one may be, in percent.

    It is the sum of half of the last published digit; of the most that the rate
    changes if each score is off by up to ``score_error``; and of one trial of
    the rarer kind.

    Example
    -------
    >>> positive = torch.linspace(0.3, 0.9, 1001)
    >>> negative = torch.linspace(-0.3, 0.4, 2000)
    >>> round(tolerance(positive, negative, "7.7"), 2)  # half a digit, a trial
    0.15
    """
    measured = EER(positive_scores, negative_scores)[0]
    # Lower scores of one speaker and higher ones of two only make it worse.
    moved = [
        EER(positive_scores + error, negative_scores - error)[0]
        for error in (score_error, -score_error)
    ]
    by_scores = max(abs(rate - measured) for rate in moved)
    one_trial = 1 / min(len(positive_scores), len(negative_scores))
    digits = len(published.partition(".")[2])
    return 0.5 * 10**-digits + 100 * (by_scores + one_trial)


def reproduction_table(reproduced: list[Reproduced]) -> list[list[str]]:
    """Cells of a table, the headings first."""
    words = {True: "yes", False: "NO", None: "-"}
    table = [
        ["list", "EER (%)", "published", "tolerance", "within it", "trials"]
    ]
    for each in reproduced:
        allowed = "-" if each.tolerance is None else f"{each.tolerance:.4f}"
        table.append(
            [
                f"VoxCeleb1-{each.name}",
                with_interval(
                    each.measured.value, each.measured.limits, "{:.3f}"
                ),
                each.published,
                allowed,
                words[each.is_within],
                f"{each.trials:,}",
            ]
        )
    return table
