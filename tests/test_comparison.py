"""Two systems on the same trials: when they are said to differ."""

import numpy as np
import pytest
import torch
from test_bootstrap import own_trials

from redimnet2_lobes.scoring.bootstrap import REPORTED, bootstrap, eer, frr_at
from redimnet2_lobes.scoring.comparison import (
    compare,
    same_trials,
    speakers_of,
)

EER = {"eer": eer}


def two_systems(random, better=0.0, speakers=20):
    """Scores of two systems, that see the same and are wrong each by itself.

    As voices are easy or hard for a system, so are errors of its own: they
    depend on the speakers. The second has its means further apart.
    """
    scores, labels, pairs = own_trials(random, speakers)
    of_each = []
    for gain in (0.0, better):
        as_self, as_other = random.normal(0, 0.4, (2, speakers))
        own = np.where(
            labels, as_self[pairs[:, 0]] + gain, as_other[pairs].sum(axis=1)
        )
        of_each.append(scores + torch.from_numpy(own))
    return *of_each, labels, pairs


def found_different(better, lists, seed):
    """The share of lists where p is below 0.05, and the other way round."""
    random = np.random.default_rng(seed)
    p_values, signs = [], []
    for _ in range(lists):
        systems = two_systems(random, better)
        found = compare(*systems, EER, resamples=149)["eer"]
        p_values.append(found.p_value)
        signs.append(np.sign(found.difference.value))
        held = found.difference.low <= 0 <= found.difference.high
        assert held == (found.p_value >= 0.05) or 0.03 < found.p_value < 0.08
    return np.mean(np.array(p_values) < 0.05), np.mean(signs)


def test_equal_systems_seldom_differ():
    share, sign = found_different(better=0.0, lists=150, seed=1)
    assert share <= 0.10
    assert abs(sign) < 0.3


def test_a_better_system_is_found():
    share, sign = found_different(better=1.6, lists=40, seed=2)
    assert share >= 0.7
    assert sign == -1


def test_both_meet_the_same_speakers():
    """The difference is that of each resample, and of no others."""
    first, second, labels, pairs = two_systems(np.random.default_rng(3), 0.3)
    found = compare(first, second, labels, pairs, EER, resamples=99)["eer"]
    for side, scores in zip(found, (first, second), strict=False):
        alone = bootstrap(scores, labels, pairs, EER, resamples=99)["eer"]
        assert side == pytest.approx(alone)
    assert found.difference.value == found.second.value - found.first.value
    width = found.difference.high - found.difference.low
    widths = [side.high - side.low for side in found[:2]]
    assert width < np.hypot(*widths)  # what independent lists would give


def test_the_other_way_round():
    first, second, *known = two_systems(np.random.default_rng(4), 0.3)
    found = compare(first, second, *known, resamples=60)
    turned = compare(second, first, *known, resamples=60)
    assert set(found) == set(REPORTED)
    for name, each in found.items():
        assert turned[name].first == each.second
        value, low, high = turned[name].difference
        assert (-value, -high, -low) == pytest.approx(each.difference)
        assert turned[name].p_value == pytest.approx(each.p_value)


def test_a_system_and_itself_on_another_scale():
    scores, _, *known = two_systems(np.random.default_rng(5))
    found = compare(scores, 3 * scores - 1, *known, EER, resamples=60)["eer"]
    assert found.difference == (0, 0, 0)
    assert found.p_value == 1


def test_few_resamples_and_few_speakers_cannot_say_much():
    random = np.random.default_rng(6)
    first, _, labels, pairs = two_systems(random, speakers=12)
    best = first + 99 * labels  # without an error
    p_value = {
        resamples: compare(first, best, labels, pairs, EER, resamples)["eer"][3]
        for resamples in (9, 99, 999)
    }
    assert p_value[9] > 0.2 > p_value[99] > p_value[999] > 0.01
    few = compare(*two_systems(random, 99, 3), EER, resamples=999)["eer"]
    assert few.p_value > p_value[999]


def test_figures_at_many_places_have_many_p_values():
    systems = two_systems(np.random.default_rng(7), 0.5)
    figures = {"frr": frr_at(np.array([0.0, 1.0, 99.0]))}
    found = compare(*systems, figures, resamples=30)["frr"]
    assert found.p_value.shape == (3,)
    assert found.p_value[2] == 1  # both reject everything


TRIALS = [(1, "a/1", "a/2"), (0, "a/1", "b/1"), (0, "b/1", "a/2")]
SCORES = torch.tensor([0.9, 0.1, 0.2])


def test_order_does_not_matter():
    order = torch.tensor([2, 0, 1])
    turned = [TRIALS[row] for row in order]
    found = same_trials((TRIALS, SCORES), (turned, SCORES[order] + 1))
    assert sorted(TRIALS) == found[0]
    assert torch.equal(found[1] + 1, found[2])


@pytest.mark.parametrize(
    ("others", "problem"),
    [
        (TRIALS[:2], "3 trials against 2"),
        ([(0, "a/1", "a/2"), *TRIALS[1:]], "a/1 a/2 has another label"),
        ([*TRIALS[:2], (0, "b/2", "a/2")], "b/1 a/2 is not there"),
        ([*TRIALS[:2], TRIALS[1]], "b/1 a/2 is not there"),
    ],
)
def test_other_trials_are_refused(others, problem):
    with pytest.raises(ValueError, match=problem):
        same_trials((TRIALS, SCORES), (others, SCORES[: len(others)]))


def test_repeated_trials_count_as_often():
    twice = [*TRIALS, TRIALS[0]]
    again = [*TRIALS, TRIALS[1]]
    scores = torch.arange(4.0)
    assert len(same_trials((twice, scores), (twice[::-1], scores))[0]) == 4
    with pytest.raises(ValueError, match="a/1 a/2 is not there as often"):
        same_trials((twice, scores), (again, scores))


def test_speakers_of_models_and_of_nobody():
    models = [(1, "anna", "x/1"), (0, "anna", "y/1"), (1, "bert", "y/1")]
    assert speakers_of(models).tolist() == [[0, 0], [0, 1], [1, 1]]
    with pytest.raises(ValueError, match="do not tell the speakers"):
        speakers_of([(1, "u", "v"), (1, "v", "w"), (0, "u", "w")])
