"""Error rates: equal to SpeechBrain's on every kind of set, and to a count.

Costs of log-likelihood ratios: equal to their formulas.
"""

import math

import pytest
import torch
from speechbrain.utils import metric_stats

from redimnet2_lobes.scoring.metrics import (
    EER,
    Cllr,
    actDCF,
    det_curve,
    minCllr,
    minDCF,
)


def random_scores(generator, case):
    """Scores that are continuous, tied, tiny, skewed, separated or inverted."""
    positives, negatives = torch.randint(
        1, (3, 12, 150)[case % 3], (2,), generator=generator
    ).tolist()
    positive = torch.randn(positives, generator=generator) + 1
    negative = torch.randn(negatives, generator=generator)
    shape = case // 3 % 6
    if shape == 1:  # many ties, within and across the two kinds
        positive, negative = positive.round(), negative.round()
    elif shape == 2:  # separated
        positive, negative = positive + 10, negative - 10
    elif shape == 3:  # inverted
        positive, negative = positive - 10, negative + 10
    elif shape == 4:  # neighbours in float32, whose midpoint is one of them
        positive = 1 + (positive * 3).round() * 2**-23
        negative = 1 + (negative * 3).round() * 2**-23
    elif shape == 5:
        positive, negative = positive.double(), negative.double()
    return positive, negative


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_speechbrain_on_random_sets(seed):
    generator = torch.Generator().manual_seed(seed)
    for case in range(180):
        scores = random_scores(generator, case)
        assert EER(*scores) == metric_stats.EER(*scores)
        assert minDCF(*scores) == metric_stats.minDCF(*scores)
        costs = torch.rand(3, generator=generator).tolist()
        assert minDCF(*scores, *costs) == metric_stats.minDCF(*scores, *costs)


@pytest.mark.parametrize(
    ("positive", "negative"),
    [
        ([0.5], [0.5]),
        ([0.5], [0.4]),
        ([0.4], [0.5]),
        ([0.5] * 7, [0.5] * 3),
        ([0.0, 0.0, 1.0], [0.0, 1.0, 1.0]),
        ([-0.0, 0.0], [0.0]),
        ([1e-45, 3e-45], [0.0, 1e-45]),
    ],
)
def test_equal_to_speechbrain_on_degenerate_sets(positive, negative):
    scores = torch.tensor(positive), torch.tensor(negative)
    assert EER(*scores) == metric_stats.EER(*scores)
    assert minDCF(*scores) == metric_stats.minDCF(*scores)


def test_equal_to_speechbrain_where_rounding_decides_between_ties():
    # A gap between the rates that float32 rounds down counts as smaller than
    # itself, so SpeechBrain moves on to a later threshold with the same rates.
    generator = torch.Generator().manual_seed(0)
    later_than_first = 0
    for _ in range(300):
        sizes = torch.randint(1, 40, (2,), generator=generator).tolist()
        positive, negative = (
            torch.randint(3, (size,), generator=generator).float()
            for size in sizes
        )
        ours = EER(positive, negative)
        assert ours == metric_stats.EER(positive, negative)
        far, frr, thresholds = det_curve(positive, negative)
        first = thresholds[(far - frr).abs().argmin()].item()
        later_than_first += ours[1] != first
    assert later_than_first > 0, "no case exercised the rule"


def test_rates_count_scores_on_either_side_of_the_threshold():
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(40, generator=generator).round(decimals=1)
    negative = torch.randn(60, generator=generator).round(decimals=1)
    far, frr, thresholds = det_curve(positive, negative)
    assert (thresholds.diff() > 0).all()
    assert (far.diff() <= 0).all() and (frr.diff() >= 0).all()
    for index, threshold in enumerate(thresholds):
        assert far[index] == (negative > threshold).sum() / 60
        assert frr[index] == (positive <= threshold).sum() / 40


def test_memory_is_linear():
    # One comparison of each score with each threshold would take 80 GB.
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(100_000, generator=generator) + 2
    negative = torch.randn(100_000, generator=generator)
    rate, threshold = EER(positive, negative)
    assert rate == pytest.approx(0.1587, abs=2e-3)  # the normal tail beyond 1
    assert threshold == pytest.approx(1, abs=2e-2)


def test_takes_sequences_integers_and_columns():
    positive, negative = [3, 4, 2], [1, 2]
    expected = metric_stats.EER(torch.tensor(positive), torch.tensor(negative))
    assert EER(positive, negative) == expected
    column = torch.tensor(positive).unsqueeze(1)
    assert EER(column, torch.tensor(negative)) == expected
    for metric in (actDCF, Cllr, minCllr):
        floats = torch.tensor(positive).float(), torch.tensor(negative).float()
        assert metric(positive, negative) == metric(*floats)
        assert metric(column, negative) == metric(*floats)


def test_cllr_by_its_formula():
    # Likelihood ratios 4 and 1 / 2, and 1 / 3 and 1.
    positive = torch.tensor([4.0, 0.5]).log()
    negative = torch.tensor([1 / 3, 1.0]).log()
    bits = math.log2(1 + 1 / 4), math.log2(1 + 2), math.log2(4 / 3), 1
    assert Cllr(positive, negative) == pytest.approx(sum(bits) / 4, rel=1e-6)


def test_cllr_of_large_ratios():
    # exp(1000) is infinite, but not the cost: a wrong ratio costs its size.
    positive, negative = torch.tensor([1000.0]), torch.tensor([-1000.0])
    assert Cllr(positive, negative) == 0
    wrong = 1000 / math.log(2)
    assert Cllr(negative, positive) == pytest.approx(wrong, rel=1e-6)
    # What is left beside 1 is not lost.
    tiny = Cllr(torch.tensor([50.0]), torch.tensor([-50.0]))
    assert tiny == pytest.approx(math.exp(-50) / math.log(2), rel=1e-6)


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [
        ([1.0, 2.0], [-1.0, 0.5], 0),  # separable
        ([5.0], [4.0], 0),
        ([4.0], [5.0], 1),  # inverted: one pool, which says nothing
        ([1.0, 1.0, 1.0], [1.0], 1),  # tied
        # Pools {0: -}, {1: + -}, {2: +}: half of either kind in the middle,
        # at ratio 1, and the rest for nothing.
        ([1.0, 2.0], [0.0, 1.0], 0.5),
        ([-0.0, 2.0], [-1.0, 0.0], 0.5),
        # 0 has one of two negatives; 1 to 3 violate the order and are pooled:
        # 2 of 2 positives against 1 of 2 negatives, ratio 2.
        ([1.0, 2.0], [0.0, 3.0], (math.log2(1.5) + math.log2(3) / 2) / 2),
        # The same pool of unequal sizes: ratio (3 / 3) / (1 / 4) = 4.
        (
            [1.0, 2.0, 2.5],
            [0.0, 3.0, -1.0, -2.0],
            (math.log2(1.25) + math.log2(5) / 4) / 2,
        ),
    ],
)
def test_minimum_cllr_by_hand(positive, negative, expected):
    cost = minCllr(torch.tensor(positive), torch.tensor(negative))
    assert cost == pytest.approx(expected, abs=1e-12)
    if expected == 0:
        assert cost == 0


def smallest_cllr(positive, negative):
    """By trying every rising calibration with optimal ratios in its pools."""
    distinct = sorted({*positive.tolist(), *negative.tolist()})
    best = math.inf
    for cuts in range(2 ** (len(distinct) - 1)):
        pools, pool = [], []
        for index, score in enumerate(distinct):
            pool.append(score)
            if cuts >> index & 1 or index == len(distinct) - 1:
                pools.append(torch.tensor(pool))
                pool = []
        shares = [
            [torch.isin(scores, pool).double().mean().item() for pool in pools]
            for scores in (positive, negative)
        ]
        ratios = [
            p / q if q else math.inf for p, q in zip(*shares, strict=True)
        ]
        if ratios != sorted(ratios):
            continue
        bits = sum(
            (p and p * math.log2(1 + q / p)) + (q and q * math.log2(1 + p / q))
            for p, q in zip(*shares, strict=True)
        )
        best = min(best, bits / 2)
    return best


@pytest.mark.parametrize("seed", range(20))
def test_minimum_cllr_is_the_smallest_of_all_rising_calibrations(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 9, (2,), generator=generator).tolist()
    positive, negative = (
        torch.randint(6, (size,), generator=generator).float() + shift
        for size, shift in zip(sizes, (1, 0), strict=True)
    )
    expected = smallest_cllr(positive, negative)
    assert minCllr(positive, negative) == pytest.approx(expected, abs=1e-12)


def test_minimum_cllr_depends_on_the_order_alone():
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(300, generator=generator).double() + 1
    negative = torch.randn(200, generator=generator).double()
    smallest = minCllr(positive, negative)
    assert 0 < smallest < Cllr(positive, negative)
    assert minCllr(positive.exp(), negative.exp()) == smallest
    assert minCllr(5 * positive - 3, 5 * negative - 3) == smallest


def test_calibrated_scores_cost_little_more_than_the_minimum():
    # The log-likelihood ratio of two normal densities 2 apart.
    generator = torch.Generator().manual_seed(0)
    positive = 2 * torch.randn(50_000, generator=generator) + 2
    negative = 2 * torch.randn(50_000, generator=generator) - 2
    smallest = minCllr(positive, negative)
    assert smallest <= Cllr(positive, negative) < smallest + 5e-3
    actual = actDCF(positive, negative, p_target=0.1)
    assert actual < minDCF(positive, negative, p_target=0.1)[0] + 2e-3
    # Shifted scores keep their minima and lose the calibration.
    assert Cllr(positive - 3, negative - 3) > smallest + 0.1
    assert actDCF(positive - 3, negative - 3, p_target=0.1) > 1.2 * actual


def test_actual_cost_by_hand():
    # The threshold is log(99) = 4.595: one of two missed, one of four passes.
    positive = torch.tensor([4.59, 4.6])
    negative = torch.tensor([4.6, 4.59, 0.0, -9.0])
    expected = 0.01 * 0.5 + 0.99 * 0.25
    assert actDCF(positive, negative) == pytest.approx(expected, abs=1e-12)
    # With equal chances and costs of 2 to 1 it is log(0.5) = -0.693.
    expected = 2 * 0.5 * 0 + 0.5 * 0.75
    assert actDCF(positive, negative, 2.0, 1.0, 0.5) == pytest.approx(expected)
    # A score at the threshold is rejected, as everywhere here.
    zero = torch.tensor([0.0])
    assert actDCF(zero, zero, p_target=0.5) == 0.5


def test_actual_cost_is_at_least_the_minimum():
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(50, generator=generator) + 1
    negative = torch.randn(50, generator=generator) - 1
    for scale in (0.1, 1, 10):
        scores = scale * positive, scale * negative
        smallest, _ = minDCF(*scores)
        assert actDCF(*scores) >= smallest - 1e-7  # which is in float32


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({"p_target": 0.0}, "p_target: 0.0 is not between 0 and 1"),
        ({"p_target": 1}, "p_target: 1 is not"),
        ({"p_target": float("nan")}, "p_target: nan"),
        ({"c_miss": 0.0}, "c_miss: 0.0 is not a positive"),
        ({"c_fa": -1.0}, "c_fa: -1.0"),
        ({"c_fa": float("inf")}, "c_fa: inf"),
    ],
)
def test_unusable_costs_are_one_line_errors(costs, message):
    scores = torch.tensor([1.0]), torch.tensor([0.0])
    with pytest.raises(ValueError, match=message) as caught:
        actDCF(*scores, **costs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "metric", [EER, minDCF, det_curve, actDCF, Cllr, minCllr]
)
@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        ([], [0.1], "no positive scores"),
        ([0.1], [], "no negative scores"),
        ([], [], "no positive scores"),
        ([0.1, float("nan")], [0.1], "positive scores: 1 of 2 .* NaN"),
        ([0.1], [float("inf"), 0.0, float("-inf")], "negative scores: 2 of 3"),
    ],
)
def test_unusable_scores_are_one_line_errors(
    metric, positive, negative, message
):
    with pytest.raises(ValueError, match=message) as caught:
        metric(torch.tensor(positive), torch.tensor(negative))
    assert "\n" not in str(caught.value)
