"""Work in pieces that stay in the processor's cache.

The maps of one stage have up to 16 MiB for an utterance of 3 s, and as many
times that as there are utterances in a batch. Operations one after the other
over such maps wait for memory, and memory fresh from the system costs more
than the arithmetic. On a CPU, where no gradient is needed, a batch is therefore
taken in groups of a few utterances of like length, and residual blocks run over
some frames at a time. No embedding changes by it.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# 2 to 8 MiB do about as well; smaller tiles make more calls, larger ones
# leave the cache.
TILE_BYTES = 4 * 2**20


def groups_of_like_length(
    lengths: Sequence[int], budget: int
) -> list[list[int]]:
    """Splits a batch into groups that hold little padding.

    Arguments
    ---------
    lengths
        Length of each utterance.
    budget
        Length of a group, padding included. An utterance that is longer is a
        group of its own.

    Returns
    -------
    list of list of int
        Positions in the batch; in each group the longest first.

    Example
    -------
    >>> groups_of_like_length([30, 100, 40, 20], budget=100)
    [[1], [2, 0], [3]]
    """
    groups = []
    # Sorting keeps the order of equals, so that equal batches are equal work.
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups:
            longest = lengths[groups[-1][0]]
            if longest * (len(groups[-1]) + 1) <= budget:
                groups[-1].append(position)
                continue
        groups.append([position])
    return groups


def utterances(x: Tensor) -> list[slice]:
    """Splits a batch [batch, ...] into rows that stay in the cache together.

    Example
    -------
    >>> utterances(torch.zeros(5, 300, 1728))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    batch = len(x)
    fit = max(1, TILE_BYTES // (x[0].numel() * x.element_size()))
    # All about equal, and not a small rest at the end.
    rows = -(-batch // -(-batch // fit))
    return [slice(row, row + rows) for row in range(0, batch, rows)]


def in_tiles(block: Any, x: Tensor, padding: Tensor | None) -> Tensor:
    """Applies a block to overlapping pieces of a map.

    Pieces are taken on a CPU only, with the block in evaluation mode, without
    gradient and not in a graph that is being compiled, which would be one for
    each number of pieces. The map is then overwritten.

    Arguments
    ---------
    block
        Maps a 2-D view and its padding to a 2-D view of the same shape, where
        an output frame depends on ``block.context`` frames on either side.
    x
        2-D view [batch, channels, time, bins]; do not use it afterwards.
    padding
        True where padded [batch, time]; None where nothing is.

    Example
    -------
    >>> class Smoother(torch.nn.AvgPool2d):
    ...     context = 1
    ...
    ...     def forward(self, x, padding):
    ...         return super().forward(x)
    >>> smoother = Smoother((3, 1), stride=1, padding=(1, 0)).eval()
    >>> x = torch.randn(1, 64, 900, 72)
    >>> expected = smoother(x, None)
    >>> with torch.no_grad():
    ...     torch.equal(in_tiles(smoother, x, None), expected)
    True
    """
    # Before any look at the size, which would hold the graph to it.
    if torch.compiler.is_compiling():
        return block(x, padding)
    batch, channels, time, bins = x.shape
    frames = max(1, TILE_BYTES // (channels * bins * x.element_size()))
    if (
        batch * time <= frames
        or block.training
        or torch.is_grad_enabled()
        or x.device.type != "cpu"
    ):
        return block(x, padding)

    # Whole utterances if they fit, or else parts of one, all about equal.
    tile = -(-time // -(-time // frames))
    by_time = x.transpose(1, 2)
    for rows in utterances(x):
        place = rows, slice(0)
        done = by_time[place]  # nothing yet
        for start in range(0, time, tile):
            first = max(0, start - block.context)
            piece = rows, slice(first, start + tile + block.context)
            y = block(
                by_time[piece].transpose(1, 2),
                None if padding is None else padding[piece],
            )
            # One piece late, as this one still needed the frames before it.
            by_time[place] = done
            place = rows, slice(start, start + tile)
            done = y.transpose(1, 2)[:, start - first :][:, :tile]
        by_time[place] = done
    return x


def keep_freed_memory() -> None:
    """Lets the process keep up to 64 MiB of freed memory for its next call.

    Pages fresh from the system cost more than the arithmetic done on them.
    glibc gives freed memory back as soon as it exceeds twice the largest block
    below 32 MiB that was ever freed (mallopt(3), M_MMAP_THRESHOLD); any
    program that frees such a block moves that limit. Where another allocator
    is in place, nothing happens.

    Example
    -------
    >>> keep_freed_memory()
    """
    # Never touched, so it costs no memory itself.
    torch.empty(2**25 - 2**16, dtype=torch.uint8)
