"""Comparison of two systems on the trials of one list.

Both meet the same voices, so most of what makes their error rates uncertain is
common to both: their difference is known far better than either of them, and
intervals that overlap do not say that it is none. So it is the difference that
is resampled, with the same speakers drawn for both systems.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats

from redimnet2_lobes.data.trial_files import TrialList, trial_speakers
from redimnet2_lobes.scoring.bootstrap import (
    FEWEST_SPEAKERS,
    REPORTED,
    RESAMPLES,
    Drawn,
    Figure,
    Interval,
    expanded_scale,
    interval,
    resample,
)
from redimnet2_lobes.scoring.score_files import Trial


class Comparison(NamedTuple):
    """A figure of two systems, and whether they differ in it."""

    first: Interval
    second: Interval
    difference: Interval  # of the second less the first
    p_value: Any  # a number, or an array of them, as is the figure


def compare(
    first: torch.Tensor,
    second: torch.Tensor,
    labels: torch.Tensor,
    speakers: np.ndarray | Sequence[Sequence[object]],
    figures: Mapping[str, Figure] = REPORTED,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Compares two systems by figures of the same trials.

    The p-value is the smallest level at which the interval of the difference,
    of the same resamples, does not hold zero: twice the share of resamples
    whose difference has the other sign or is none, where the one more that
    counts is that of all trials; Efron and Tibshirani, "An introduction to the
    bootstrap", 1993, chapters 12 and 15; Davison and Hinkley, "Bootstrap
    methods and their application", 1997, equation 4.11, for the one more. For
    few speakers it is raised, as the interval is widened (`expanded_level`).

    It is too optimistic

    - with fewer than about 20 speakers, or some ten errors of a kind, which
      is soon so for the minDCF;
    - where a system was chosen or tuned on these trials, or many are compared:
      of 20 that are equal one differs with p < 0.05;
    - for a method in place of a model: another training by the same
      configuration differs as well, which no trials show.

    Arguments
    ---------
    first, second
        The scores of both [trials], each on a scale of its own.
    labels, speakers, figures, resamples, seed
        As for `bootstrap`.

    Raises
    ------
    ValueError
        As `bootstrap`, or if there are fewer than three speakers.

    Example
    -------
    >>> random = np.random.default_rng(0)
    >>> pairs = np.stack(np.triu_indices(20), axis=1).repeat(3, axis=0)
    >>> labels = torch.from_numpy(pairs[:, 0] == pairs[:, 1])
    >>> worse, better = torch.from_numpy(random.normal(size=(2, len(pairs))))
    >>> found = compare(worse, better + 3 * labels, labels, pairs)
    >>> bool(found["eer_percent"].difference.high < 0)
    True
    >>> bool(found["eer_percent"].p_value < 0.01)
    True
    """
    if not isinstance(speakers, np.ndarray):
        speakers = np.array([*map(tuple, speakers)])
    count = len(np.unique(speakers))
    if count < FEWEST_SPEAKERS:
        raise ValueError(
            f"{count} speakers are too few to compare systems by; take trials "
            f"of {FEWEST_SPEAKERS} at least"
        )
    _, (one, other) = resample(
        [first, second], labels, speakers, figures, resamples, seed
    )
    found = {}
    for name in figures:
        difference = Drawn(
            other[name].value - one[name].value,
            other[name].of_resamples - one[name].of_resamples,
        )
        found[name] = Comparison(
            interval(one[name], count),
            interval(other[name], count),
            interval(difference, count),
            _p_value(difference.of_resamples, count),
        )
    return found


def _p_value(differences: np.ndarray, speakers: int) -> Any:
    """How probable zero is, by differences [resamples, ...] around others."""
    tails = [
        (1 + np.count_nonzero(side, axis=0)) / (1 + len(differences))
        for side in (differences <= 0, differences >= 0)
    ]
    tail = np.minimum(np.minimum(*tails), 0.5)
    # The inverse of `expanded_level`: the level whose quantile zero is.
    reach = stats.norm.ppf(tail) / expanded_scale(speakers)
    return 2 * stats.t.cdf(reach, speakers - 1)


def same_trials(
    first: tuple[list[Trial], torch.Tensor],
    second: tuple[list[Trial], torch.Tensor],
) -> tuple[list[Trial], torch.Tensor, torch.Tensor]:
    """Sorts the scores of two systems by their trials, which must be the same.

    Takes what `read_scores` gives, and returns the trials and the scores of
    both [trials].

    Raises
    ------
    ValueError
        If a trial of one is not there in the other, or has another label.

    Example
    -------
    >>> trials = [(1, "a1", "a2"), (0, "a1", "b1")]
    >>> scores = torch.tensor([0.5, 0.1])
    >>> same_trials((trials, scores), (trials[::-1], scores.flip(0)))[2]
    tensor([0.1000, 0.5000])
    """
    (trials, scores), (of_second, others) = (
        _by_trial(*each) for each in (first, second)
    )
    if trials != of_second:
        raise ValueError(_what_differs(trials, of_second))
    return trials, scores, others


def _by_trial(
    trials: list[Trial], scores: torch.Tensor
) -> tuple[list[Trial], torch.Tensor]:
    order = sorted(range(len(trials)), key=trials.__getitem__)
    return [trials[row] for row in order], scores[order]


def _what_differs(trials: list[Trial], others: list[Trial]) -> str:
    labels = {(one, other): label for label, one, other in trials}
    for label, one, other in others:
        if labels.get((one, other), label) != label:
            return f"the trial {one} {other} has another label"
    if len(trials) != len(others):
        return f"{len(trials):,} trials against {len(others):,}"
    _, one, other = min(Counter(trials) - Counter(others))
    return f"the trial {one} {other} is not there as often in the other"


def speakers_of(trials: list[Trial]) -> np.ndarray:
    """The two speakers of trials [trials, 2], as `trial_speakers` finds them.

    A model of several utterances, whose name is all that trials say, is taken
    for one of them. It is a ValueError if speakers cannot be told.

    Example
    -------
    >>> speakers_of([(1, "a/1", "a/2"), (0, "a/1", "b/1")]).tolist()
    [[0, 0], [0, 1]]
    """
    enrolments = {enrolment: [enrolment] for _, enrolment, _ in trials}
    found = trial_speakers(TrialList("", trials, enrolments, {}))
    if found is None:
        raise ValueError(
            "names and labels do not tell the speakers of trials; name "
            "utterances by folders of their speakers"
        )
    return found
