"""Confidence intervals of error rates, by bootstrap over speakers.

The trials of a list share speakers, so they are not independent: a voice that
is taken for others is so in many of them. Drawing trials, as
``scipy.stats.bootstrap`` does with samples, would give intervals that are far
too narrow. Speakers are drawn instead, with replacement, each with all that is
theirs: Bolle, Ratha and Pankanti, "Error analysis of pattern recognition
systems: the subsets bootstrap", Computer Vision and Image Understanding, 2004;
for authentication Poh and Bengio, "Estimating the confidence interval of
expected performance curve in biometric authentication using joint bootstrap",
ICASSP 2007.

A speaker that is drawn m times brings its trials of one speaker m times. A
trial of two speakers counts the product of their numbers, as in Snijders and
Borgatti, "Non-parametric standard errors and tests for network statistics",
Connections, 1999, and Owen, "The pigeonhole bootstrap", Annals of Applied
Statistics, 2007: what is due to speakers gets the variance that it has, what is
due to single pairs of them up to three times as much. Two copies of a speaker
make no trial of two speakers. Of few speakers, or for small rates, intervals
are still somewhat too narrow, as those of quantiles are.

Scores are sorted once. Each resample is a set of weights, with cumulative sums
in that order.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from tqdm import tqdm

RESAMPLES = 1000
CONFIDENCE = 0.95
# Of two speakers all resamples that have trials of both kinds are the same: an
# interval would have no width, as if the figure were known exactly.
FEWEST_SPEAKERS = 3


class Curve(NamedTuple):
    """Weighted trials, and their error rates at each of their scores.

    A trial is accepted if its score is above the threshold.
    """

    labels: np.ndarray  # [trials], True for trials of one speaker
    weights: np.ndarray  # [trials], whole numbers
    nats: np.ndarray  # [trials], what each costs as a log-likelihood ratio
    thresholds: np.ndarray  # [thresholds], the distinct scores
    far: np.ndarray  # [thresholds], false acceptance rates
    frr: np.ndarray  # [thresholds], false rejection rates


class Interval(NamedTuple):
    """A figure of all trials, and the limits of its confidence interval."""

    value: Any  # a number, or an array of them, as are the limits
    low: Any  # None if not known, as is the other
    high: Any

    @property
    def limits(self) -> list[float] | None:
        """Those of a number, as JSON has them: null if not known."""
        if self.low is None:
            return None
        return [float(self.low), float(self.high)]


Figure = Callable[[Curve], Any]  # a number or an array of always one shape


def bootstrap(
    scores: torch.Tensor,
    labels: torch.Tensor,
    speakers: np.ndarray | Sequence[Sequence[object]] | None,
    figures: Mapping[str, Figure],
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> dict[str, Interval]:
    """Gives figures of trials, with intervals that hold for other speakers.

    Limits are quantiles of the resamples, further out for few speakers
    (`expanded_level`). Resamples without trials of both kinds are drawn again.

    Arguments
    ---------
    scores, labels
        Of each trial [trials]; labels are True for trials of one speaker.
    speakers
        The two of each trial, names or numbers [trials, 2]; if None, as they
        cannot be told, there are figures without limits.
    figures
        What to compute of a `Curve`, by name, such as ``eer``.
    resamples, confidence, seed
        The same seed gives the same intervals.

    Raises
    ------
    ValueError
        If there are not both kinds of trials, there are not as many scores or a
        score is not finite, or a label does not fit the speakers.

    Example
    -------
    >>> scores = torch.tensor([0.9, 0.4, 0.8, 0.1, 0.5, 0.3])
    >>> pairs = ["aa", "bb", "cc", "ab", "ac", "bc"]
    >>> labels = torch.tensor([True] * 3 + [False] * 3)
    >>> found = bootstrap(scores, labels, pairs, {"FAR": far_at(0.35)})["FAR"]
    >>> print(f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})")
    0.33 (0.00 to 1.00)
    """
    if speakers is None:
        targets = _targets(labels)
        anyone = np.zeros(len(targets), np.int64)
        curve = _curves(scores, targets, anyone, anyone)(np.array([1]))
        return {
            name: Interval(figure(curve), None, None)
            for name, figure in figures.items()
        }
    count, (drawn,) = resample(
        [scores], labels, speakers, figures, resamples, seed
    )
    return {
        name: interval(each, count, confidence) for name, each in drawn.items()
    }


class Drawn(NamedTuple):
    """A figure of all trials, and of each resample of their speakers."""

    value: Any
    of_resamples: np.ndarray  # [resamples, ...]


def resample(
    systems: Sequence[torch.Tensor],
    labels: torch.Tensor,
    speakers: np.ndarray | Sequence[Sequence[object]],
    figures: Mapping[str, Figure],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[int, list[dict[str, Drawn]]]:
    """Draws speakers: what `bootstrap` makes intervals of.

    Returns the number of speakers, and the figures of each of the systems,
    which scored the same trials. A resample has the same speakers for all of
    them, so that figures can be compared draw by draw. Arguments and errors are
    those of `bootstrap`, with the scores [trials] of each system.

    Example
    -------
    >>> scores = torch.tensor([0.9, 0.4, 0.8, 0.1, 0.5, 0.3])
    >>> labels = torch.tensor([True] * 3 + [False] * 3)
    >>> pairs = ["aa", "bb", "cc", "ab", "ac", "bc"]
    >>> count, (one, other) = resample(
    ...     [scores, scores + 1], labels, pairs, {"EER": eer}, resamples=9
    ... )
    >>> count, np.array_equal(one["EER"][1], other["EER"][1])
    (3, True)
    """
    targets = _targets(labels)
    if not isinstance(speakers, np.ndarray):
        speakers = np.array([*map(tuple, speakers)])
    names, numbers = np.unique(speakers, return_inverse=True)
    first, second = numbers.reshape(-1, 2).T
    if not np.array_equal(first == second, targets):
        raise ValueError(
            "labels: they must be True where both speakers are the same, and "
            "only there"
        )
    with_themselves = first[targets]
    with_others = first[~targets], second[~targets]
    # A trial of one speaker has no second: a number that always counts once.
    second = np.where(targets, len(names), second)
    curves = [_curves(scores, targets, first, second) for scores in systems]

    once = np.ones(len(names) + 1, np.int64)
    drawn = [{name: [] for name in figures} for _ in systems]
    random = np.random.default_rng(seed)
    shares = np.full(len(names), 1 / len(names))
    # Shown only if it takes a while.
    for _ in tqdm(range(resamples), "bootstrap", leave=False, delay=3):
        while True:
            times = np.append(random.multinomial(len(names), shares), 1)
            one, other = (times[side] for side in with_others)
            if times[with_themselves].any() and (one * other).any():
                break
        for curve_of, of_system in zip(curves, drawn, strict=True):
            curve = curve_of(times)
            for name, figure in figures.items():
                of_system[name].append(figure(curve))
    return len(names), [
        {
            name: Drawn(figure(curve_of(once)), np.array(of_system[name]))
            for name, figure in figures.items()
        }
        for curve_of, of_system in zip(curves, drawn, strict=True)
    ]


def _targets(labels: torch.Tensor) -> np.ndarray:
    targets = torch.as_tensor(labels).bool().cpu().numpy().ravel()
    if targets.all() or not targets.any():
        raise ValueError("labels: error rates need both kinds of trials")
    return targets


def _curves(
    scores: torch.Tensor,
    targets: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
) -> Callable[[np.ndarray], Curve]:
    """The curve of trials, by how often each speaker is drawn."""
    values = torch.as_tensor(scores).double().cpu().numpy().ravel()
    if len(values) != len(targets):
        raise ValueError(
            f"scores: {len(values):,} of them, but {len(targets):,} labels"
        )
    if not np.isfinite(values).all():
        raise ValueError("scores: not all are finite")
    order = np.argsort(values, kind="stable")
    values, targets = values[order], targets[order]
    first, second = first[order], second[order]
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    nats = np.logaddexp(0, np.where(targets, -values, values))

    def curve_of(times: np.ndarray) -> Curve:
        # Whole numbers: sums are exact, and rates do not waver by rounding.
        weights = times[first] * times[second]
        missed = np.cumsum(weights * targets)[ends]
        rejected = np.cumsum(weights * ~targets)[ends]
        far = (rejected[-1] - rejected) / rejected[-1]
        frr = missed / missed[-1]
        return Curve(targets, weights, nats, values[ends], far, frr)

    return curve_of


def interval(
    drawn: Drawn, speakers: int, confidence: float = CONFIDENCE
) -> Interval:
    """The confidence interval of what was drawn of so many speakers.

    Example
    -------
    >>> drawn = Drawn(0.5, np.linspace(0, 1, 101))
    >>> print("{:.3f} {:.3f} {:.3f}".format(*interval(drawn, 10_000)))
    0.500 0.025 0.975
    """
    outside = expanded_level((1 - confidence) / 2, speakers)
    limits = np.quantile(drawn.of_resamples, [outside, 1 - outside], axis=0)
    return Interval(drawn.value, *limits)


def expanded_level(outside: float, count: int) -> float:
    """How far out a quantile must be for few samples, as Student's t is wider.

    Hesterberg, "What teachers should know about the bootstrap", The American
    Statistician, 2015: the expanded percentile interval. ``outside`` is what is
    left on one side of it for many samples.

    Example
    -------
    >>> [round(expanded_level(0.025, count), 4) for count in (10, 100, 10_000)]
    [0.0086, 0.0231, 0.025]
    """
    if count < 2:
        return 0.0
    reach = stats.t.ppf(outside, count - 1) * expanded_scale(count)
    return float(stats.norm.cdf(reach))


def expanded_scale(count: int) -> float:
    """How much too small a bootstrap's deviation is, for two samples or more.

    Example
    -------
    >>> round(expanded_scale(10), 3)
    1.054
    """
    return math.sqrt(count / (count - 1))


def eer(curve: Curve) -> float:
    """The equal error rate, by the definition of ``metrics.EER``.

    Of two thresholds whose rates are equally close it may take the other one.
    """
    index = _equal_error(curve)
    return (curve.far[index] + curve.frr[index]) / 2


def eer_threshold(curve: Curve) -> float:
    """The score where both error rates are closest."""
    return curve.thresholds[_equal_error(curve)]


def _equal_error(curve: Curve) -> int:
    gap = curve.frr - curve.far  # never falls, and is 1 at the highest score
    after = int(np.searchsorted(gap, 0))
    before = max(after - 1, 0)
    return before if -gap[before] <= gap[after] else after


def far_at(thresholds: float | np.ndarray) -> Figure:
    """The false acceptance rates at thresholds."""
    return lambda curve: _rate(curve, curve.far, 1.0, thresholds)


def frr_at(thresholds: float | np.ndarray) -> Figure:
    """The false rejection rates at thresholds."""
    return lambda curve: _rate(curve, curve.frr, 0.0, thresholds)


def _rate(
    curve: Curve,
    rates: np.ndarray,
    below_all: float,
    thresholds: float | np.ndarray,
) -> np.ndarray:
    above = np.searchsorted(curve.thresholds, thresholds, side="right")
    return np.where(above > 0, rates[above - 1], below_all)[()]


def threshold_at_far(rates: float | np.ndarray) -> Figure:
    """The lowest scores above which no more than these shares are accepted."""
    return lambda curve: curve.thresholds[_at_far(curve, rates)]


def frr_at_far(rates: float | np.ndarray) -> Figure:
    """The false rejection rates at such thresholds: points of a DET curve."""
    return lambda curve: curve.frr[_at_far(curve, rates)]


def det_rates(different_speakers: int) -> np.ndarray:
    """False acceptance rates for the band of a DET curve of so many trials.

    Example
    -------
    >>> det_rates(1000)[[0, -1]]
    array([0.001, 0.9  ])
    """
    return np.geomspace(min(1 / different_speakers, 0.5), 0.9, 100)


def _at_far(curve: Curve, rates: float | np.ndarray) -> np.ndarray:
    return np.searchsorted(-curve.far, -np.asarray(rates))


def min_dcf(
    c_miss: float = 1.0, c_fa: float = 1.0, p_target: float = 0.01
) -> Figure:
    """The least detection cost, by the definition of ``metrics.minDCF``."""

    def figure(curve: Curve) -> float:
        miss, false_alarm = c_miss * p_target, c_fa * (1 - p_target)
        return (miss * curve.frr + false_alarm * curve.far).min()

    return figure


def cllr(curve: Curve) -> float:
    """The cost of log-likelihood ratios in bits, as ``metrics.Cllr``."""
    nats = sum(
        np.average(curve.nats[kind], weights=curve.weights[kind])
        for kind in (curve.labels, ~curve.labels)
    )
    return float(nats / (2 * math.log(2)))


def in_units(figure: Figure, unit: float) -> Figure:
    """A figure in another unit, such as 0.01 for per cent."""
    return lambda curve: figure(curve) / unit


# The figures of results.json that have intervals, by their keys and in their
# units: costs are divided by that of a system that always says no.
PRIORS = (0.01, 0.05)  # of a trial of one speaker
REPORTED: dict[str, Figure] = {
    "eer_percent": in_units(eer, 0.01),
    **{
        f"min_dcf_{prior}": in_units(min_dcf(p_target=prior), prior)
        for prior in PRIORS
    },
    "cllr": cllr,
}
