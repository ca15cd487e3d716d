"""Adapting PLDA: by the steps of the sources, and on domains made up here."""

import numpy as np
import pytest
import torch
from scipy import linalg
from test_plda import SIZE, dot_products, draw

from redimnet2_lobes.scoring.adaptation import (
    ADAPTATIONS,
    adapt_plda,
    centre,
    coral_plus,
)
from redimnet2_lobes.scoring.backends import cohort_statistics, normalize_scores
from redimnet2_lobes.scoring.metrics import EER
from redimnet2_lobes.scoring.plda import PldaBackend, train_plda

WAYS = {name: each.adapt for name, each in ADAPTATIONS.items()}


def other_domain(embeddings, seed=5):
    """Turned a little, moved, and with noise in directions of its own."""
    random = np.random.default_rng(seed)
    turn = random.normal(size=(SIZE, SIZE)) / 20
    turn = torch.matrix_exp(torch.from_numpy(turn - turn.T))
    noise = random.normal(size=(len(embeddings), 3))
    noise = noise @ random.normal(size=(3, SIZE)) / 2
    return embeddings @ turn + torch.from_numpy(
        noise + 3 * random.normal(size=SIZE)
    )


@pytest.fixture(scope="module", params=[SIZE, 8])
def backend(request):
    """Speakers that differ in all directions, or in half of them."""
    return train_plda(*draw(200, 8), lda_dimension=SIZE, rank=request.param)


@pytest.fixture(scope="module")
def target():
    return other_domain(draw(60, 5, seed=1)[0])


def steps_of_kaldi(
    mean, transform, psi, vectors, mean_scale, within_scale, between_scale
):
    """``ivector-adapt-plda`` as it goes, on what it stores of PLDA.

    Returns the new mean and the covariances within and between.
    """
    new_mean = vectors.mean(axis=0)
    variance = vectors.T @ vectors / len(vectors)
    variance -= np.outer(new_mean, new_mean)
    shift = new_mean - mean
    variance += mean_scale * np.outer(shift, shift)
    # Where the total covariance of the model is the identity.
    transform = transform / np.sqrt(1 + psi)[:, np.newaxis]
    within, between = np.diag(1 / (1 + psi)), np.diag(psi / (1 + psi))
    values, turn = np.linalg.eigh(transform @ variance @ transform.T)
    within, between = turn.T @ within @ turn, turn.T @ between @ turn
    for row, value in enumerate(values):
        if value > 1:
            within[row, row] += (value - 1) * within_scale
            between[row, row] += (value - 1) * between_scale
    back = np.linalg.inv(turn.T @ transform)
    return new_mean, back @ within @ back.T, back @ between @ back.T


@pytest.mark.parametrize("scales", [(), (0.5, 0.2, 0.9)])
def test_adaptation_takes_the_steps_of_kaldi(backend, target, scales):
    psi, directions = linalg.eigh(backend.F @ backend.F.T, backend.Sigma)
    vectors = (target.numpy() - target.numpy().mean(axis=0)) @ backend.lda
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    mean, within, between = steps_of_kaldi(
        backend.plda_mean,
        directions.T,
        psi,
        vectors,
        *(scales or (1.0, 0.3, 0.7)),
    )
    adapted = adapt_plda(backend, target, *scales)
    np.testing.assert_allclose(adapted.mean, target.numpy().mean(axis=0))
    assert np.array_equal(adapted.lda, backend.lda)
    for found, expected in (
        (adapted.plda_mean, mean),
        (adapted.Sigma, within),
        (adapted.F @ adapted.F.T, between),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-8, rtol=1e-6)
    assert np.trace(adapted.Sigma) > 1.04 * np.trace(backend.Sigma)


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(np.sqrt(values)) @ vectors.T


def regularized(covariance, pseudo, weight):
    """Equations of CORAL+, by a matrix B that makes the covariance one."""
    first = np.linalg.inv(np.linalg.cholesky(covariance)).T
    values, turn = np.linalg.eigh(first.T @ pseudo @ first)
    B = first @ turn
    np.testing.assert_allclose(B.T @ covariance @ B, np.eye(SIZE), atol=1e-8)
    np.testing.assert_allclose(B.T @ pseudo @ B, np.diag(values), atol=1e-6)
    added = np.diag(np.maximum(0, values - 1))
    back = np.linalg.inv(B)
    return covariance + weight * back.T @ added @ back


@pytest.mark.parametrize("weights", [(), (0.3, 1.0)])
def test_coral_plus_takes_the_steps_of_its_paper(target, weights):
    backend = train_plda(*draw(200, 8), lda_dimension=SIZE, rank=SIZE)
    within, between = backend.Sigma, backend.F @ backend.F.T
    vectors = centre(backend, target).project(target)
    covariance = np.cov(vectors.T, bias=True)
    align = root(covariance) @ np.linalg.inv(root(within + between))
    within_weight, between_weight = weights or (0.8, 0.8)
    adapted = coral_plus(backend, target, *weights)
    np.testing.assert_allclose(
        adapted.Sigma,
        regularized(within, align @ within @ align.T, within_weight),
        atol=1e-10,
    )
    np.testing.assert_allclose(
        adapted.F @ adapted.F.T,
        regularized(between, align @ between @ align.T, between_weight),
        atol=1e-10,
    )


@pytest.mark.parametrize("adapt", [adapt_plda, coral_plus])
def test_no_covariance_becomes_smaller(backend, target, adapt):
    adapted = adapt(backend, target)
    for found, before in (
        (adapted.Sigma, backend.Sigma),
        (adapted.F @ adapted.F.T, backend.F @ backend.F.T),
    ):
        added = np.linalg.eigvalsh(found - before)
        assert added.min() > -1e-10 and added.max() > 1e-3
    assert np.linalg.matrix_rank(adapted.F) >= np.linalg.matrix_rank(backend.F)


@pytest.mark.parametrize("adapt", [adapt_plda, coral_plus])
def test_without_weights_only_the_means_move(backend, target, adapt):
    scales = (1.0, 0, 0) if adapt is adapt_plda else (0, 0)
    only_means = centre(backend, target)
    sides = target[:9], target[9:20]
    torch.testing.assert_close(
        dot_products(adapt(backend, target, *scales), *sides),
        dot_products(only_means, *sides),
    )
    np.testing.assert_allclose(only_means.mean, target.mean(dim=0))
    # So what is projected has the mean that PLDA subtracts.
    vectors = only_means.project(target)
    np.testing.assert_allclose(vectors.mean(axis=0), only_means.plda_mean)


@pytest.mark.parametrize("adapt", WAYS.values(), ids=WAYS)
def test_its_own_domain_changes_next_to_nothing(backend, adapt):
    adapted = adapt(backend, draw(200, 8)[0])
    sides = draw(20, 3, seed=3)[0], draw(20, 3, seed=4)[0]
    before = dot_products(backend, *sides)
    after = dot_products(adapted, *sides)
    assert (after - before).abs().max() < 0.01 * before.std()


def error_rate(backend, cohort=None):
    """The EER of the other domain, over speakers that are in nothing else."""
    embeddings, speakers = draw(60, 5, seed=11)
    embeddings = other_domain(embeddings)
    first, second = torch.triu_indices(300, 300, offset=1)
    speakers = np.array(speakers)
    same = torch.from_numpy(speakers[first] == speakers[second])
    scores = dot_products(backend, embeddings, embeddings)[first, second]
    if cohort is not None:
        means, deviations = cohort_statistics(
            backend.enrolment_side(embeddings), backend.test_side(cohort)
        )
        scores = normalize_scores(
            scores,
            (means[first], deviations[first]),
            (means[second], deviations[second]),
        )
    return EER(scores[same], scores[~same])[0]


def test_adapted_scores_separate_better_in_the_other_domain(backend, target):
    before = error_rate(backend)
    mean_only = error_rate(centre(backend, target))
    assert mean_only < 0.96 * before
    for adapt in (adapt_plda, coral_plus):
        assert error_rate(adapt(backend, target)) < 0.9 * mean_only


def test_a_cohort_of_the_other_domain_helps_too(backend, target):
    assert error_rate(backend, cohort=target) < 0.95 * error_rate(backend)


@pytest.mark.parametrize("adapt", WAYS.values(), ids=WAYS)
def test_order_and_kind_of_the_target_change_nothing(backend, target, adapt):
    before = target.clone()
    expected = adapt(backend, target)
    assert torch.equal(target, before)
    for same in (
        target.flip(0),
        target.clone().requires_grad_(),
        target.float(),
    ):
        found = adapt(backend, same)
        for name in ("mean", "plda_mean", "Sigma"):
            np.testing.assert_allclose(
                getattr(found, name), getattr(expected, name), atol=1e-5
            )


@pytest.mark.parametrize("adapt", WAYS.values(), ids=WAYS)
def test_one_dimension(adapt):
    one = np.eye(1)
    backend = PldaBackend([0.0, 1.0], np.ones((2, 1)), [0.0], one / 2, one / 4)
    adapted = adapt(backend, torch.tensor([[1.0, 2.0], [3.0, 1.0]]))
    assert adapted.Sigma.shape == (1, 1)
    assert np.array_equal(adapted.mean, [2.0, 1.5])


@pytest.mark.parametrize("adapt", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e[:1], "at least 2 embeddings, not 1"),
        (lambda e: e[:, 1:], r"their shape is \(300, 15\)"),
        (lambda e: e.where(e < e.max(), torch.nan), "1 of 300 have NaN"),
    ],
)
def test_unusable_targets_are_one_line_errors(
    backend, target, adapt, change, message
):
    with pytest.raises(ValueError, match=message) as caught:
        adapt(backend, change(target))
    assert "\n" not in str(caught.value)
