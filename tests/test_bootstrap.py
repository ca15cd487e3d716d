"""Intervals by bootstrap over speakers: what they are, and how often right."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import norm

from redimnet2_lobes.scoring.bootstrap import (
    REPORTED,
    bootstrap,
    cllr,
    eer,
    eer_threshold,
    far_at,
    frr_at,
    frr_at_far,
    min_dcf,
    resample,
    threshold_at_far,
)
from redimnet2_lobes.scoring.metrics import EER, Cllr, det_curve, minDCF
from redimnet2_lobes.scoring.results import WITH_INTERVAL

FIGURES = {
    "eer": eer,
    "eer threshold": eer_threshold,
    "min_dcf": min_dcf(p_target=0.05),
    "cllr": cllr,
    "far": far_at(1.0),
    "frr": frr_at(1.0),
    "threshold at 10 %": threshold_at_far(0.1),
}
GAP = 2.5  # between the means of the two kinds
OF_SPEAKERS = 0.5  # deviation that trials of a speaker share
OF_TRIALS = 0.8


def own_trials(random, speakers=25, recordings=3, digits=None):
    """Trials of all pairs, with scores that depend on who is in them.

    Scores of two speakers have the mean 0, those of one the mean GAP.
    """
    people = np.repeat(np.arange(speakers), recordings)
    first, second = np.triu_indices(len(people), 1)
    pairs = np.stack([people[first], people[second]], axis=1)
    labels = pairs[:, 0] == pairs[:, 1]
    as_other, as_self = random.normal(0, OF_SPEAKERS, (2, speakers))
    scores = random.normal(0, OF_TRIALS, len(labels))
    scores += np.where(
        labels, GAP + as_self[pairs[:, 0]], as_other[pairs].sum(axis=1)
    )
    if digits is not None:
        scores = scores.round(digits)
    return torch.from_numpy(scores), torch.from_numpy(labels), pairs


def population_eer():
    """The EER of all people that there could be."""
    same = np.hypot(OF_TRIALS, OF_SPEAKERS)
    different = np.hypot(OF_TRIALS, np.sqrt(2) * OF_SPEAKERS)
    return norm.cdf(-GAP / (same + different))


@pytest.mark.parametrize("digits", [None, 1])
def test_figures_of_all_trials_are_those_of_the_metrics(digits):
    scores, labels, pairs = own_trials(np.random.default_rng(1), digits=digits)
    positive, negative = scores[labels], scores[~labels]
    found = bootstrap(scores, labels, pairs, FIGURES, resamples=2)
    rate, threshold = EER(positive, negative)
    assert found["eer"].value == pytest.approx(rate, abs=1e-6)
    at = found["eer threshold"].value
    assert (scores <= at).sum() == (scores <= threshold).sum()
    cost = minDCF(positive, negative, p_target=0.05)[0]
    assert found["min_dcf"].value == pytest.approx(cost, abs=1e-6)
    assert found["cllr"].value == pytest.approx(Cllr(positive, negative))
    assert found["far"].value == (negative > 1).sum().item() / len(negative)
    assert found["frr"].value == (positive <= 1).sum().item() / len(positive)
    lowest = found["threshold at 10 %"].value
    assert (negative > lowest).double().mean() <= 0.1
    below = scores[scores < lowest].max()
    assert (negative > below).double().mean() > 0.1


def test_a_resample_is_the_trials_of_the_drawn_speakers():
    """Trials, repeated as often as their speakers are drawn, give the same."""
    random = np.random.default_rng(2)
    scores, labels, pairs = own_trials(random, speakers=6, digits=1)
    times = np.random.default_rng(7).multinomial(6, np.full(6, 1 / 6))
    assert times.max() > 1 and (times > 0).sum() > 1
    repeats = times[pairs[:, 0]] * np.where(labels, 1, times[pairs[:, 1]])
    repeats = torch.from_numpy(repeats)
    positive = scores[labels].repeat_interleave(repeats[labels])
    negative = scores[~labels].repeat_interleave(repeats[~labels])
    # Of one resample both limits are its figures.
    found = bootstrap(scores, labels, pairs, FIGURES, resamples=1, seed=7)
    assert found["eer"].low == found["eer"].high
    assert found["eer"].low == pytest.approx(EER(positive, negative)[0])
    assert found["cllr"].low == pytest.approx(Cllr(positive, negative))
    assert found["far"].low == pytest.approx((negative > 1).double().mean())
    assert found["frr"].low == pytest.approx((positive <= 1).double().mean())
    cost = minDCF(positive, negative, p_target=0.05)[0]
    assert found["min_dcf"].low == pytest.approx(cost, abs=1e-6)


def test_what_is_reported_has_the_units_of_results():
    scores, labels, pairs = own_trials(np.random.default_rng(8))
    found = bootstrap(scores, labels, pairs, REPORTED, resamples=2)
    positive, negative = scores[labels], scores[~labels]
    expected = {
        "eer_percent": 100 * EER(positive, negative)[0],
        "min_dcf_0.01": minDCF(positive, negative, p_target=0.01)[0] / 0.01,
        "min_dcf_0.05": minDCF(positive, negative, p_target=0.05)[0] / 0.05,
        "cllr": Cllr(positive, negative),
    }
    values = {key: each.value for key, each in found.items()}
    assert values == pytest.approx(expected, abs=1e-4)
    assert set(REPORTED) == set(WITH_INTERVAL)


def test_systems_meet_the_same_resamples():
    """One system alone has the draws that it has among others."""
    scores, labels, pairs = own_trials(np.random.default_rng(9), speakers=9)
    others = scores.flip(0)
    options = labels, pairs, FIGURES, 20
    count, both = resample([scores, others], *options)
    assert count == 9
    for system, of_both in zip((scores, others), both, strict=True):
        _, (alone,) = resample([system], *options)
        for name in FIGURES:
            assert alone[name].value == of_both[name].value
            assert np.array_equal(alone[name][1], of_both[name][1])


def test_order_and_names_do_not_matter_and_seeds_decide():
    random = np.random.default_rng(3)
    scores, labels, pairs = own_trials(random, speakers=9)
    found = bootstrap(scores, labels, pairs, FIGURES, resamples=50)
    order = random.permutation(len(scores))
    names = [(f"s{a}", f"s{b}") for a, b in pairs[order][:, ::-1]]
    again = bootstrap(
        scores[order], labels[order], names, FIGURES, resamples=50
    )
    for name in FIGURES:
        assert again[name] == pytest.approx(found[name], abs=1e-12)
    other = bootstrap(scores, labels, pairs, FIGURES, resamples=50, seed=1)
    assert other["eer"] != found["eer"]


def test_figures_at_many_places_have_many_intervals():
    scores, labels, pairs = own_trials(np.random.default_rng(4), speakers=9)
    places = np.linspace(-9, 9, 30)
    rates = np.array([0.0, 0.1, 0.5, 1.0])
    found = bootstrap(
        *(scores, labels, pairs),
        {"far": far_at(places), "det": frr_at_far(rates)},
        resamples=50,
    )
    for limit in found["far"]:
        assert limit.shape == (30,) and (np.diff(limit) <= 0).all()
    assert (found["far"].low <= found["far"].high).all()
    assert found["far"].value[0] == 1 and found["far"].value[-1] == 0
    far, frr, _ = det_curve(scores[labels], scores[~labels])
    expected = [frr[far <= rate + 1e-6].min().item() for rate in rates]
    assert found["det"].value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("speakers", "least"), [(15, 0.88), (25, 0.92)])
def test_intervals_cover_the_truth(speakers, least):
    """About 95 of 100 lists give an interval that holds the population's EER.

    Of few speakers some fewer do, and by independent trials far fewer.
    """
    random = np.random.default_rng(5)
    truth, lists, covered, naive = population_eer(), 200, 0, 0
    for _ in range(lists):
        scores, labels, pairs = own_trials(random, speakers)
        found = bootstrap(scores, labels, pairs, {"eer": eer}, resamples=100)
        covered += found["eer"].low <= truth <= found["eer"].high
        # The mean of the two rates, as if trials were independent.
        positive = labels.sum().item()
        parts = 1 / positive + 1 / (len(labels) - positive)
        deviation = np.sqrt(truth * (1 - truth) * parts) / 2
        naive += abs(found["eer"].value - truth) < 1.96 * deviation
    assert least <= covered / lists <= 0.99
    assert naive / lists < 0.85


def test_people_differ_more_than_trials():
    """More recordings of the same people do not make an interval narrow."""

    def width(speakers, recordings):
        trials = own_trials(np.random.default_rng(6), speakers, recordings)
        found = bootstrap(*trials, {"eer": eer}, resamples=200)["eer"]
        return found.high - found.low

    few = width(15, 2)
    assert width(15, 12) > 0.5 * few
    assert width(150, 2) < 0.5 * few


def test_two_speakers_are_drawn_until_there_are_both():
    scores = torch.tensor([0.9, 0.8, 0.2])
    labels = torch.tensor([True, True, False])
    pairs = ["aa", "bb", "ab"]
    found = bootstrap(scores, labels, pairs, {"eer": eer}, resamples=20)
    assert found["eer"] == (0, 0, 0)


@pytest.mark.parametrize(
    ("scores", "labels", "pairs", "problem"),
    [
        ([1.0, torch.nan], [True, False], ["aa", "ab"], "not all are finite"),
        ([1.0], [True, False], ["aa", "ab"], "scores: 1 of them, but 2 label"),
        ([1.0, 2.0, 3.0], [True, False], ["aa", "ab"], "3 of them"),
        ([1.0, 2.0], [True, True], ["aa", "bb"], "both kinds"),
        ([1.0, 2.0], [False, False], ["ab", "bc"], "both kinds"),
        ([1.0, 2.0], [True, False], ["aa", "bb"], "both speakers are the same"),
    ],
)
def test_what_has_no_error_rates_is_refused(scores, labels, pairs, problem):
    with pytest.raises(ValueError, match=problem):
        bootstrap(
            torch.tensor(scores), torch.tensor(labels), pairs, {"eer": eer}
        )


def test_all_pairs_of_these_tests_are_there():
    pairs = own_trials(np.random.default_rng(0), 4, 2)[2]
    expected = itertools.combinations(np.repeat(range(4), 2), 2)
    assert sorted(map(tuple, pairs)) == sorted(expected)


def test_without_speakers_there_are_values_alone():
    scores, labels, pairs = own_trials(np.random.default_rng(8))
    known = bootstrap(scores, labels, pairs, REPORTED, resamples=2)
    found = bootstrap(scores, labels, None, REPORTED)
    assert found.keys() == known.keys()
    for name, each in found.items():
        assert each.value == known[name].value
        assert each.limits is None
        assert each.low is None and each.high is None
    with pytest.raises(ValueError, match="both kinds of trials"):
        bootstrap(scores, torch.ones(len(scores)), None, REPORTED)
