"""Sum of maps, each channel of each map with its own weight.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import torch
from torch.autograd.function import once_differentiable

from redimnet2_lobes.models.tiles import utterances


def weighted_sum(maps, weights):
    """Sums maps that have the same shape.

    Training on a CPU takes a few utterances at a time, so that products and
    sums stay in the cache: autograd's own would write and read whole maps for
    each term.

    Arguments
    ---------
    maps : list of torch.Tensor
        1-D views [batch, time, channels].
    weights : torch.Tensor
        Weights [maps, channels].

    Returns
    -------
    torch.Tensor
        The sum [batch, time, channels].

    Example
    -------
    >>> maps = [torch.ones(2, 3, 4), 2 * torch.ones(2, 3, 4)]
    >>> weighted_sum(maps, torch.full((2, 4), 0.5)).unique()
    tensor([1.5000])
    """
    if (
        torch.is_grad_enabled()
        and weights.device.type == "cpu"
        and not torch.compiler.is_compiling()
    ):
        return _WeightedSum.apply(weights, *maps)
    total = maps[0] * weights[0]
    for x, weight in zip(maps[1:], weights[1:], strict=True):
        total.addcmul_(x, weight)
    return total


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights, *maps):
        ctx.save_for_backward(weights, *maps)
        dtype = torch.promote_types(maps[0].dtype, weights.dtype)
        total = torch.empty_like(maps[0], dtype=dtype)
        for rows in utterances(maps[0]):
            torch.mul(maps[0][rows], weights[0], out=total[rows])
            for x, weight in zip(maps[1:], weights[1:], strict=True):
                total[rows].addcmul_(x[rows], weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        weights, *maps = ctx.saved_tensors
        of_weights = torch.zeros_like(weights)
        of_maps = [torch.empty_like(x) for x in maps]
        for rows in utterances(maps[0]):
            part = gradient[rows]
            for index, x in enumerate(maps):
                torch.mul(part, weights[index], out=of_maps[index][rows])
                of_weights[index] += (part * x[rows]).sum((0, 1))
        return of_weights, *of_maps
