"""Error rates and costs of speaker verification.

``EER`` and ``minDCF`` take and return what SpeechBrain's functions of the same
names do (``speechbrain.utils.metric_stats``), to the last bit, but sort the
scores once instead of comparing every threshold with every score: O(n log n)
time and linear memory, where a million trials take a fraction of a second.

They judge the order of the scores. ``actDCF`` and ``Cllr`` judge calibrated
scores as well, which are natural logarithms of likelihood ratios; ``minCllr``
is what is left of ``Cllr`` with the best calibration there is.

All take the scores of trials of one speaker (positive, or target) and of two
speakers (negative, or non-target), [trials] each. It is a ValueError if either
set is empty or holds NaN or infinite scores.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from scipy.special import rel_entr
from torch.nn.functional import softplus


def det_curve(
    positive_scores: torch.Tensor, negative_scores: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Error rates at every threshold that can matter (the DET curve).

    Thresholds are the distinct scores and the midpoints between neighbours,
    ascending. A trial is accepted if its score is above the threshold. Returns
    false acceptance rates, false rejection rates (float32) and thresholds, all
    [thresholds].

    Example
    -------
    >>> far, frr, thresholds = det_curve(
    ...     torch.tensor([0.5, 1.0]), torch.tensor([0.0, 0.5])
    ... )
    >>> thresholds
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000])
    >>> far
    tensor([0.5000, 0.5000, 0.0000, 0.0000, 0.0000])
    >>> frr
    tensor([0.0000, 0.0000, 0.5000, 0.5000, 1.0000])
    """
    positive = _checked_scores(positive_scores, "positive")
    negative = _checked_scores(negative_scores, "negative")
    dtype = torch.promote_types(positive.dtype, negative.dtype)
    positive = positive.to(dtype).sort().values
    negative = negative.to(dtype).sort().values

    distinct = torch.unique(torch.cat([positive, negative]))
    thresholds = distinct.new_empty(2 * len(distinct) - 1)
    thresholds[0::2] = distinct
    thresholds[1::2] = (distinct[:-1] + distinct[1:]) / 2

    # right=True counts the scores at or below each threshold.
    missed = torch.searchsorted(positive, thresholds, right=True)
    rejected = torch.searchsorted(negative, thresholds, right=True)
    far = (len(negative) - rejected).float() / len(negative)
    return far, missed.float() / len(positive), thresholds


def EER(
    positive_scores: torch.Tensor, negative_scores: torch.Tensor
) -> tuple[float, float]:
    """Computes the equal error rate, from 0 to 1, and its threshold.

    Where no threshold makes the two error rates equal, their mean at the
    threshold where they are closest is returned.

    Example
    -------
    >>> positive_scores = torch.tensor([0.6, 0.7, 0.8, 0.5])
    >>> negative_scores = torch.tensor([0.4, 0.3, 0.2, 0.1])
    >>> EER(positive_scores, negative_scores)[0]
    0.0
    """
    far, frr, thresholds = det_curve(positive_scores, negative_scores)
    best = equal_error_index(far, frr)
    return (far[best].item() + frr[best].item()) / 2, thresholds[best].item()


def equal_error_index(
    false_acceptance_rates: torch.Tensor, false_rejection_rates: torch.Tensor
) -> int:
    """Index of the threshold of a DET curve where the rates are closest.

    It is the threshold that SpeechBrain's ``EER`` returns.

    Example
    -------
    >>> equal_error_index(torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.25]))
    1
    """
    far, frr = false_acceptance_rates, false_rejection_rates
    # SpeechBrain keeps a threshold if its gap, rounded to float32, is below
    # the unrounded gap of the best one so far. Among thresholds of the same
    # smallest rounded gap this picks the first whose own gap was not rounded
    # down, or else the last one.
    gap = (far - frr).abs()
    ties = torch.nonzero(gap == gap.min()).flatten()
    exact_gap = (far[ties].double() - frr[ties].double()).abs()
    final = torch.nonzero(exact_gap <= gap[ties].double()).flatten()
    return int(ties[final[0]] if len(final) else ties[-1])


def minDCF(
    positive_scores: torch.Tensor,
    negative_scores: torch.Tensor,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
    p_target: float = 0.01,
) -> tuple[float, float]:
    """Computes the minimum of the detection cost function and its threshold.

    The cost is the one of the NIST speaker recognition evaluations,
    ``c_miss * p_miss * p_target + c_fa * p_fa * (1 - p_target)``, not divided
    by the cost of a system that ignores the speech; ``p_target`` is the prior
    of a trial of one speaker. The threshold is the lowest where it is reached.

    Example
    -------
    >>> positive_scores = torch.tensor([0.6, 0.7, 0.8, 0.5])
    >>> negative_scores = torch.tensor([0.4, 0.3, 0.2, 0.1])
    >>> minDCF(positive_scores, negative_scores)[0]
    0.0
    """
    p_fa, p_miss, thresholds = det_curve(positive_scores, negative_scores)
    cost = c_miss * p_miss * p_target + c_fa * p_fa * (1 - p_target)
    smallest, best = torch.min(cost, dim=0)
    return smallest.item(), thresholds[best].item()


def actDCF(
    positive_scores: torch.Tensor,
    negative_scores: torch.Tensor,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
    p_target: float = 0.01,
) -> float:
    """Computes the detection cost function at the threshold of Bayes decisions.

    The cost is that of ``minDCF``, not divided by the cost of a system that
    ignores the speech. The threshold is the one that is best for log-likelihood
    ratios, ``log(c_fa * (1 - p_target) / (c_miss * p_target))``; it is a
    ValueError if a cost is not positive, or the prior not between 0 and 1.

    Example
    -------
    >>> positive_scores = torch.tensor([6.0, 7.0, 8.0, 4.0])
    >>> negative_scores = torch.tensor([4.0, -3.0, -2.0, -1.0])
    >>> round(actDCF(positive_scores, negative_scores), 6)  # above 4.595
    0.0025
    """
    positive = _checked_scores(positive_scores, "positive").double()
    negative = _checked_scores(negative_scores, "negative").double()
    for name, cost in (("c_miss", c_miss), ("c_fa", c_fa)):
        if not 0 < cost < math.inf:
            raise ValueError(f"{name}: {cost} is not a positive number")
    if not 0 < p_target < 1:
        raise ValueError(f"p_target: {p_target} is not between 0 and 1")
    threshold = math.log(c_fa * (1 - p_target) / (c_miss * p_target))
    p_miss = (positive <= threshold).double().mean().item()
    p_fa = (negative > threshold).double().mean().item()
    return c_miss * p_miss * p_target + c_fa * p_fa * (1 - p_target)


def Cllr(positive_scores: torch.Tensor, negative_scores: torch.Tensor) -> float:
    """Computes the cost of log-likelihood ratios, in bits.

    Brümmer and du Preez, "Application-independent evaluation of speaker
    detection", Computer Speech & Language, 2006: what decisions by these scores
    cost on average over all costs and priors. Scores of zero, which say
    nothing, cost 1 bit; wrong calibration can cost more.

    Example
    -------
    >>> Cllr(torch.tensor([0.0]), torch.tensor([0.0, 0.0]))
    1.0
    >>> round(Cllr(torch.tensor([2.0, 5.0]), torch.tensor([-3.0, -4.0])), 4)
    0.0723
    """
    positive = _checked_scores(positive_scores, "positive").double()
    negative = _checked_scores(negative_scores, "negative").double()
    nats = softplus(-positive).mean() + softplus(negative).mean()
    return nats.item() / (2 * math.log(2))


def minCllr(
    positive_scores: torch.Tensor, negative_scores: torch.Tensor
) -> float:
    """Computes ``Cllr`` after the best rising calibration of the scores.

    The calibration, by isotonic regression (pool adjacent violators), is found
    on these same trials, so only the order of the scores counts. The cost is
    from 0 bits (a threshold separates the two kinds) to 1.

    Example
    -------
    >>> minCllr(torch.tensor([0.6, 0.7]), torch.tensor([0.1, 0.5]))
    0.0
    >>> minCllr(torch.tensor([0.1, 0.5]), torch.tensor([0.6, 0.7]))
    1.0
    """
    positive = _checked_scores(positive_scores, "positive")
    negative = _checked_scores(negative_scores, "negative")
    # No calibration can tell equal scores apart: each counts once, with the
    # number of its trials for a weight.
    scores = torch.cat([positive.double(), negative.double()]).numpy()
    distinct, place = np.unique(scores, return_inverse=True)
    positives = np.bincount(place[: len(positive)], minlength=len(distinct))
    trials = np.bincount(place, minlength=len(distinct))
    share = isotonic_regression(positives / trials, weights=trials).x
    # The likelihood ratio of a score is p / q, with the shares of all positive
    # and of all negative trials that fall to it. p * log(1 + q / p) is 0 where
    # p is 0 and the ratio's logarithm infinite.
    p = share * trials / len(positive)
    q = (1 - share) * trials / len(negative)
    nats = abs(rel_entr(p, p + q).sum() + rel_entr(q, p + q).sum())
    return float(nats / (2 * math.log(2)))


def _checked_scores(scores: torch.Tensor, kind: str) -> torch.Tensor:
    """Scores as a flat floating-point tensor on the CPU, all finite."""
    scores = torch.as_tensor(scores).detach().cpu().flatten()
    if len(scores) == 0:
        raise ValueError(f"no {kind} scores: error rates need both kinds")
    if not scores.is_floating_point():
        scores = scores.float()
    # Half of the largest number, so that midpoints are finite as well.
    usable = scores.abs() <= torch.finfo(scores.dtype).max / 2
    if not usable.all():
        raise ValueError(
            f"{kind} scores: {int((~usable).sum())} of {len(scores)} "
            "are NaN or infinite"
        )
    return scores
