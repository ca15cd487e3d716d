"""Error rates: equal to SpeechBrain's on every kind of set, and to a count."""

import pytest
import torch
from speechbrain.utils import metric_stats

from redimnet2_lobes.metrics import EER, det_curve, minDCF


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


@pytest.mark.parametrize("metric", [EER, minDCF, det_curve])
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
