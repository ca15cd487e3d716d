"""Scores of trials and their normalization, against direct computations."""

import pytest
import torch

from redimnet2_lobes.scoring import backends
from redimnet2_lobes.scoring.backends import (
    CosineBackend,
    average,
    cohort_statistics,
    normalize_scores,
    trial_scores,
)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[None, 100])
def block(request, monkeypatch):
    """Everything in one block, or in many with a rest."""
    if request.param:
        monkeypatch.setattr(backends, "BLOCK", request.param)


def test_scores_are_cosines_of_centred_embeddings(block):
    embeddings, mean = random(9, 5), random(5, seed=1)
    rows = torch.arange(9).repeat(9), torch.arange(9).repeat_interleave(9)
    backend = CosineBackend(mean)
    sides = backend.enrolment_side(embeddings), backend.test_side(embeddings)
    centred = embeddings - mean
    torch.testing.assert_close(
        trial_scores(*sides, *rows),
        torch.cosine_similarity(centred[rows[0]], centred[rows[1]]),
    )


@pytest.mark.parametrize(
    ("size", "entries", "top", "dtype"),
    [
        (6, 30, None, torch.float64),
        (6, 30, 2, torch.float64),
        (6, 2, None, torch.float64),
        (6, 30, 30, torch.float64),
        (192, 600, None, torch.float32),
        (192, 600, 300, torch.float32),
    ],
)
def test_normalization_equals_a_direct_one_per_trial(
    size, entries, top, dtype, block
):
    unit = CosineBackend().test_side
    enrolments = unit(random(11, size).to(dtype))
    tests = unit(random(8, size, seed=1).to(dtype))
    cohort = unit(random(entries, size, seed=2).to(dtype))
    rows = torch.tensor([[0, 3], [10, 7], [4, 0], [4, 7]]).T
    scores = trial_scores(enrolments, tests, *rows)
    sides = [
        [values[row] for values in cohort_statistics(side, cohort, top)]
        for side, row in zip((enrolments, tests), rows, strict=True)
    ]
    z = normalize_scores(scores, enrolment_statistics=sides[0])
    t = normalize_scores(scores, test_statistics=sides[1])
    s = normalize_scores(scores, *sides)
    for trial, (enrolment, test) in enumerate(rows.T.tolist()):
        score = torch.dot(enrolments[enrolment], tests[test])
        expected = []
        for row in (enrolments[enrolment], tests[test]):
            against = (cohort * row).sum(dim=1).sort(descending=True).values
            against = against[:top]
            expected.append((score - against.mean()) / against.std())
        for ours, direct in zip(
            (z, t, s), (*expected, sum(expected) / 2), strict=True
        ):
            assert ours[trial].item() == pytest.approx(direct.item(), abs=1e-5)


def test_order_of_the_cohort_and_of_the_utterances_changes_nothing(block):
    embeddings, cohort = random(20, 6), random(30, 6, seed=1)
    expected = cohort_statistics(embeddings, cohort, top=5)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    found = cohort_statistics(embeddings[order], cohort.flip(0), top=5)
    for values, reordered in zip(expected, found, strict=True):
        torch.testing.assert_close(values[order], reordered)


@pytest.mark.parametrize(
    ("entries", "top", "message"),
    [
        (0, None, "cohort has 0 entries"),
        (1, None, "cohort has 1 entries"),
        (5, 6, "cohort_top: 6 is not from 2 to 5"),
        (5, 1, "cohort_top: 1 is not from 2 to 5"),
    ],
)
def test_cohorts_too_small(entries, top, message):
    with pytest.raises(ValueError, match=message):
        cohort_statistics(random(3, 4), random(entries, 4), top)


def test_a_cohort_of_equal_entries_is_refused():
    with pytest.raises(ValueError, match="same score against all"):
        cohort_statistics(torch.eye(3), torch.ones(4, 3))


def test_averages_are_means_of_groups():
    embeddings = random(6, 3)
    found = average(embeddings, [[5, 0], [1], [2, 3, 4]])
    expected = [embeddings[[5, 0]].mean(0), embeddings[1]]
    expected.append(embeddings[2:5].mean(0))
    torch.testing.assert_close(found, torch.stack(expected))
