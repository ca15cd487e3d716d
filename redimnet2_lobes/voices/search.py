"""Finding the nearest of many voices, by cosine.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
from collections.abc import Callable

import torch

from redimnet2_lobes.scoring.backends import BLOCK

# From tests [tests, embedding] and a number to the cosines of so many nearest
# rows and which they are, both [tests, number], the nearest first.
Search = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
PROBED = 64  # cells of faiss's index


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
    """The same by faiss, approximate beyond some thousand rows.

    They are put into cells, the square root of their number, of which the 64
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


INDEXES = {"exact": exact_search, "faiss": faiss_search}
