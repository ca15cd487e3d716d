"""Scores of trials and their normalization, at any number of trials.

A back-end turns embeddings into rows whose dot product is the score of a
trial: length-normalized embeddings for the cosine, and what
``plda`` makes of them for PLDA. So the scores of a list, and of everything
against a cohort, are matrix products, made block by block in bounded memory.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch.nn.functional import normalize

BLOCK = 2**24  # numbers in a block: 64 MiB in float32


class Backend(Protocol):
    """What makes rows of embeddings whose dot product is the score."""

    def enrolment_side(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Rows of enrolments [enrolments, row]."""
        ...

    def test_side(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Rows of test utterances [tests, row]."""
        ...


class CosineBackend:
    """Scores that are cosines of embeddings.

    ``mean`` [embedding], such as that of the training set, is subtracted first.

    Example
    -------
    >>> backend = CosineBackend(mean=torch.tensor([3.0, 0.0]))
    >>> backend.enrolment_side(torch.tensor([[3.0, 4.0]]))
    tensor([[0., 1.]])
    """

    def __init__(self, mean: torch.Tensor | None = None):
        self.mean = mean

    def enrolment_side(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Rows of length 1 [utterances, embedding]; of tests the same."""
        if self.mean is not None:
            embeddings = embeddings - self.mean
        return normalize(embeddings, dim=1)

    test_side = enrolment_side


def average(embeddings: torch.Tensor, groups: list[list[int]]) -> torch.Tensor:
    """Means of groups of embeddings: of an enrolment, or of a speaker.

    From embeddings [utterances, embedding] to [groups, embedding]. Each group
    is the numbers of its rows, at least one.

    Example
    -------
    >>> embeddings = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    >>> average(embeddings, [[0, 1], [2]])
    tensor([[1.0000, 0.5000],
            [3.0000, 0.0000]])
    """
    sizes = torch.tensor([len(group) for group in groups])
    rows = torch.tensor([row for group in groups for row in group])
    group_of = torch.repeat_interleave(sizes)
    sums = embeddings.new_zeros(len(groups), embeddings.shape[1])
    return sums.index_add_(0, group_of, embeddings[rows]) / sizes.unsqueeze(1)


def trial_scores(
    enrolments: torch.Tensor,
    tests: torch.Tensor,
    enrolment_rows: torch.Tensor,
    test_rows: torch.Tensor,
) -> torch.Tensor:
    """Scores of a list of trials [trials].

    ``enrolments`` and ``tests`` are what a back-end makes [utterances, row];
    the numbers of their rows say which of them each trial compares [trials].

    Example
    -------
    >>> embeddings = torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    >>> units = CosineBackend().test_side(embeddings)
    >>> rows = torch.tensor([0, 0]), torch.tensor([0, 1])
    >>> trial_scores(units, units, *rows)
    tensor([1.0000, 0.9899])
    """
    size = max(1, BLOCK // enrolments.shape[1])
    blocks = zip(enrolment_rows.split(size), test_rows.split(size), strict=True)
    return torch.cat(
        [
            torch.linalg.vecdot(enrolments[enrolment], tests[test])
            for enrolment, test in blocks
        ]
    )


def cohort_statistics(
    embeddings: torch.Tensor, cohort: torch.Tensor, top: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of scores against a cohort [utterances] each.

    Arguments
    ---------
    embeddings
        Rows of enrolments or of test utterances [utterances, row].
    cohort
        Rows of the other kind [cohort, row].
    top
        How many of the highest scores of each utterance count (adaptive score
        normalization: Matějka et al., "Analysis of Score Normalization in
        Multilingual Speaker Recognition", Interspeech 2017, equation 5).

    Raises
    ------
    ValueError
        If the cohort has fewer than two entries or than ``top``, or an
        utterance has the same score against all of it.

    Example
    -------
    >>> units = torch.eye(3)
    >>> means, deviations = cohort_statistics(units[:2], units)
    >>> means, deviations
    (tensor([0.3333, 0.3333]), tensor([0.5774, 0.5774]))
    >>> cohort_statistics(units[:2], units, top=2)[0]
    tensor([0.5000, 0.5000])
    """
    if len(cohort) < 2:
        raise ValueError(
            f"the cohort has {len(cohort)} entries, but a standard deviation "
            "needs at least 2"
        )
    top = len(cohort) if top is None else top
    if not 2 <= top <= len(cohort):
        raise ValueError(
            f"cohort_top: {top} is not from 2 to {len(cohort)}, the number of "
            "entries of the cohort"
        )
    blocks = []
    for rows in embeddings.split(max(1, BLOCK // len(cohort))):
        scores = rows @ cohort.T
        if top < len(cohort):
            scores = scores.topk(top, sorted=False).values
        blocks.append(torch.std_mean(scores, dim=1))
    deviations, means = map(torch.cat, zip(*blocks, strict=True))
    if not (deviations > 0).all():
        raise ValueError(
            "the cohort: an utterance has the same score against all of it; "
            "take one of different speakers"
        )
    return means, deviations


def normalize_scores(
    scores: torch.Tensor,
    enrolment_statistics: Sequence[torch.Tensor] | None = None,
    test_statistics: Sequence[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Normalizes scores by statistics of a cohort.

    The statistics are those of `cohort_statistics` for each trial, [trials]
    each. With the enrolments' this is z-norm, with the test utterances' t-norm,
    and with both s-norm, the mean of the two. Statistics of the top of a cohort
    make each of them adaptive.

    Example
    -------
    >>> scores = torch.tensor([3.0])
    >>> enrolment = torch.tensor([1.0]), torch.tensor([2.0])
    >>> test = torch.tensor([0.0]), torch.tensor([1.0])
    >>> normalize_scores(scores, enrolment)
    tensor([1.])
    >>> normalize_scores(scores, enrolment, test)
    tensor([2.])
    """
    statistics = filter(None, (enrolment_statistics, test_statistics))
    normalized = [(scores - mean) / deviation for mean, deviation in statistics]
    return torch.stack(normalized).mean(dim=0)
