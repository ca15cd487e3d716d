"""PLDA for another domain, from utterances of it that nobody has labelled.

A PLDA back-end knows how voices vary in its training. In another language or
through telephones they vary otherwise, and unlabelled embeddings of that domain
tell by how much altogether, though not what of it is due to speakers. Each
function here makes a back-end for the target domain of one that there is:

- `centre` subtracts the target's mean;
- `adapt_plda` also shares out what the target varies more, as Kaldi's
  ``ivector-adapt-plda`` does;
- `coral_plus` also moves both covariances, by the CORAL+ algorithm.

LDA stays as it is. In the last two no covariance becomes smaller in any
direction.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import linalg

from redimnet2_lobes.scoring.plda import PldaBackend


def centre(backend: PldaBackend, target: torch.Tensor) -> PldaBackend:
    """Replaces both means of a back-end by those of another domain.

    ``target`` [utterances, embedding] are at least two embeddings of it; the
    ValueErrors are those of ``PldaBackend.project``.

    Example
    -------
    >>> one = np.eye(2)
    >>> backend = PldaBackend([0.0, 0.0], one, [0.0, 0.0], one, one)
    >>> centre(backend, torch.tensor([[1.0, 3.0], [3.0, 3.0]])).mean
    array([2., 3.])
    """
    return _moved(backend, target)[0]


def adapt_plda(
    backend: PldaBackend,
    target: torch.Tensor,
    mean_diff_scale: float = 1.0,
    within_covar_scale: float = 0.3,
    between_covar_scale: float = 0.7,
) -> PldaBackend:
    """Adapts PLDA as ``ivector-adapt-plda`` of Kaldi does.

    What the covariance of the target exceeds that of the model by, in the
    directions that make both diagonal, is shared out among the covariances
    within and between speakers. Names and defaults are Kaldi's, and the mean
    that is subtracted first is the target's, as in its SRE16 recipe.

    Arguments
    ---------
    target
        Embeddings of the target domain [utterances, embedding], as for
        `centre`.
    mean_diff_scale
        How much of the outer product of what the means differ by, after length
        normalization, counts as covariance of the target.
    within_covar_scale, between_covar_scale
        The shares of both, at least 0.

    Example
    -------
    >>> generator = torch.Generator().manual_seed(0)
    >>> target = torch.randn(500, 2, generator=generator)
    >>> one = np.eye(2)
    >>> backend = PldaBackend([0.0, 0.0], one, [0.0, 0.0], one / 4, one / 8)
    >>> adapt_plda(backend, target).Sigma.diagonal().round(1)
    array([0.2, 0.2])
    """
    moved, vectors = _moved(backend, target)
    shift = moved.plda_mean - backend.plda_mean
    covariance = _covariance(vectors)
    covariance += mean_diff_scale * np.outer(shift, shift)
    within, between = _covariances(backend)
    total = within + between
    excess = _excess(covariance, total, total)
    within += within_covar_scale * excess
    between += between_covar_scale * excess
    return _with_covariances(moved, within, between)


def coral_plus(
    backend: PldaBackend,
    target: torch.Tensor,
    within_weight: float = 0.8,
    between_weight: float = 0.8,
) -> PldaBackend:
    """Adapts PLDA by CORAL+.

    Lee, Wang and Koshinaka, "The CORAL+ algorithm for unsupervised domain
    adaptation of PLDA", ICASSP 2019. A linear map that gives the model the
    total covariance of the target makes pseudo-in-domain covariances of those
    within and between speakers. Each is added, with a weight, where it exceeds
    the covariance that there is: in the directions that diagonalize both.

    These directions need a covariance of full rank, and that between speakers
    may have less. Then they are those in which the difference of the two and
    the total covariance are diagonal.

    Arguments
    ---------
    target
        Embeddings of the target domain [utterances, embedding], as for
        `centre`.
    within_weight, between_weight
        From 0, for none of it, to 1.

    Example
    -------
    >>> generator = torch.Generator().manual_seed(0)
    >>> target = torch.randn(500, 2, generator=generator)
    >>> one = np.eye(2)
    >>> backend = PldaBackend([0.0, 0.0], one, [0.0, 0.0], one / 4, one / 8)
    >>> coral_plus(backend, target).Sigma.diagonal().round(1)
    array([0.3, 0.3])
    """
    moved, vectors = _moved(backend, target)
    covariance = _covariance(vectors)
    within, between = _covariances(backend)
    total = within + between
    align = _power(covariance, 0.5) @ _power(total, -0.5)
    metric = between
    if np.linalg.matrix_rank(backend.F) < len(between):
        metric = total
    return _with_covariances(
        moved,
        within
        + within_weight * _excess(align @ within @ align.T, within, within),
        between
        + between_weight * _excess(align @ between @ align.T, between, metric),
    )


class Adaptation(NamedTuple):
    """A way to adapt, what reports call it, and its weights."""

    title: str
    adapt: Callable[..., PldaBackend]
    weights: tuple[str, ...] = ()


ADAPTATIONS = {
    "mean": Adaptation("in-domain mean", centre),
    "kaldi": Adaptation(
        "Kaldi adaptation",
        adapt_plda,
        ("mean_diff_scale", "within_covar_scale", "between_covar_scale"),
    ),
    "coral_plus": Adaptation(
        "CORAL+", coral_plus, ("within_weight", "between_weight")
    ),
}


def _moved(
    backend: PldaBackend, target: torch.Tensor
) -> tuple[PldaBackend, np.ndarray]:
    """A back-end with the means of the target, and what it projects it to."""
    if len(target) < 2:
        raise ValueError(
            f"adaptation needs at least 2 embeddings, not {len(target)}"
        )
    backend.project(target)  # refuses what is no set of its embeddings
    mean = torch.as_tensor(target).detach().double().mean(dim=0).cpu().numpy()
    rest = backend.lda, backend.plda_mean, backend.F, backend.Sigma
    vectors = PldaBackend(mean, *rest).project(target)
    moved = PldaBackend(
        mean, backend.lda, vectors.mean(axis=0), backend.F, backend.Sigma
    )
    return moved, vectors


def _covariance(vectors: np.ndarray) -> np.ndarray:
    return np.atleast_2d(np.cov(vectors, rowvar=False, bias=True))


def _covariances(backend: PldaBackend) -> tuple[np.ndarray, np.ndarray]:
    """Those within and between speakers, as arrays that may be changed."""
    return backend.Sigma.copy(), backend.F @ backend.F.T


def _with_covariances(
    backend: PldaBackend, within: np.ndarray, between: np.ndarray
) -> PldaBackend:
    variances, directions = linalg.eigh(between)
    kept = variances > 1e-12 * variances[-1]
    F = directions[:, kept] * np.sqrt(variances[kept])
    return PldaBackend(backend.mean, backend.lda, backend.plda_mean, F, within)


def _excess(
    covariance: np.ndarray, other: np.ndarray, metric: np.ndarray
) -> np.ndarray:
    """What of a covariance exceeds another; all are [dimension, dimension].

    The difference is diagonal, and the metric the identity, in the same
    directions; of these only those with a positive difference count.
    """
    difference, directions = linalg.eigh(covariance - other, metric)
    back = metric @ directions  # the transposed inverse of the directions
    return (back * difference.clip(min=0)) @ back.T


def _power(covariance: np.ndarray, exponent: float) -> np.ndarray:
    variances, directions = linalg.eigh(covariance)
    return (directions * variances.clip(min=0) ** exponent) @ directions.T
