"""Two systems on the same trials: when they are said to differ."""

import numpy as np
import torch
from test_bootstrap import own_trials

from redimnet2_lobes.scoring.bootstrap import eer
from redimnet2_lobes.scoring.comparison import (
    compare,
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
    share, sign = found_different(better=0.8, lists=30, seed=2)
    assert share >= 0.8
    assert sign == -1
