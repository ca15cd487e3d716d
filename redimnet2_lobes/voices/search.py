"""Finding the nearest of many voices, by cosine.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn.functional import normalize

from redimnet2_lobes.scoring.backends import BLOCK

# From tests [tests, embedding] and a number to the cosines of so many nearest
# rows and which they are, both [tests, number], the nearest first.
Search = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
PROBED = 256  # cells of faiss's index


def mean_voice(prototypes: torch.Tensor) -> torch.Tensor:
    """What a voice is compared by [embedding], of [prototypes, embedding].

    It is the mean of the prototypes, each of length 1 before, so that none
    counts more than another.

    Example
    -------
    >>> mean_voice(torch.tensor([[9.0, 0.0], [0.0, 1.0]]))
    tensor([0.5000, 0.5000])
    """
    return normalize(prototypes, dim=1).mean(0)


class Identification(NamedTuple):
    """Whose voice one is."""

    name: str | None  # None is nobody in the store
    score: float  # the cosine of the best name, known or not
    margin: float | None  # to that of the second name; None without one
    candidates: list[tuple[str, float]]  # names and scores, the best first


def exact_search(rows: torch.Tensor) -> Search:
    """Compares with all rows [voices, embedding], of length 1.

    Example
    -------
    >>> search = exact_search(torch.eye(3))
    >>> search(torch.tensor([[0.0, 0.6, 0.8]]), 2)
    (tensor([[0.8000, 0.6000]]), tensor([[2, 1]]))
    """

    def search(
        tests: torch.Tensor, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = tests.split(max(1, BLOCK // len(rows)))
        found = [(block @ rows.T).topk(count) for block in blocks]
        scores, nearest = zip(*found, strict=True)
        return torch.cat(scores), torch.cat(nearest)

    return search


def faiss_search(rows: torch.Tensor) -> Search:
    """The same by faiss, exact up to 65,536 rows.

    They are put into cells, the square root of their number, of which the 256
    nearest to a test are searched: cosines are exact, a row may be missed.
    Where fewer than ``count`` are found, rows of -1 stand in their place.

    Raises
    ------
    ValueError
        If faiss is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ValueError(
            "index: faiss needs the package faiss-cpu; pip install faiss-cpu"
        ) from None
    size = rows.shape[1]
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(size),
        size,
        math.isqrt(len(rows)),
        faiss.METRIC_INNER_PRODUCT,
    )
    index.cp.min_points_per_centroid = 1  # silent where rows are few
    index.nprobe = PROBED
    index.train(rows.numpy())
    index.add(rows.numpy())

    def search(
        tests: torch.Tensor, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores, nearest = index.search(tests.numpy(), count)
        return torch.from_numpy(scores), torch.from_numpy(nearest)

    return search


def identify_by(
    search: Search,
    names: list[str],
    tests: torch.Tensor,
    threshold: float | None,
    top: int,
) -> list[Identification]:
    """Says whose voices tests [tests, embedding], of length 1, are.

    ``names`` are those of the rows that ``search`` is among. Nobody is named
    without a score above the threshold; None names the best, however far.

    Example
    -------
    >>> search = exact_search(torch.eye(2))
    >>> test = torch.tensor([[0.6, 0.8]])
    >>> (found,) = identify_by(search, ["anna", "bert"], test, 0.5, top=1)
    >>> found.name, round(found.margin, 2), len(found.candidates)
    ('bert', 0.2, 1)
    """
    scores, nearest = search(tests, min(max(top, 2), len(names)))
    found = []
    for row, voices in zip(scores.tolist(), nearest.tolist(), strict=True):
        candidates = [
            (names[voice], score)
            for voice, score in zip(voices, row, strict=True)
            if voice >= 0  # where faiss finds fewer
        ]
        (best, score), *others = candidates
        margin = score - others[0][1] if others else None
        is_known = threshold is None or score > threshold
        found.append(
            Identification(
                best if is_known else None, score, margin, candidates[:top]
            )
        )
    return found


INDEXES = {"exact": exact_search, "faiss": faiss_search}
