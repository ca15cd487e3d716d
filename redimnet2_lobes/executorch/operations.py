"""Operations of the network in terms of those that XNNPACK has.

What it lacks would run in ExecuTorch's own kernels, which are slow, and cut the
graph into a hundred pieces. Sums, and what is made of them, become products
with a constant; that and what depends on weights alone are computed at the
export. All shapes are known, and nothing is padded.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

aten = torch.ops.aten


def substitutes() -> dict[torch._ops.OperatorBase, Callable]:
    """A table for ``ExportedProgram.run_decompositions``.

    Example
    -------
    >>> network = torch.nn.LayerNorm(8)
    >>> program = torch.export.export(network, (torch.randn(1, 5, 8),))
    >>> program = program.run_decompositions(substitutes())
    >>> "layer_norm" in str(program.graph)
    False
    """
    return {
        aten.sum.dim_IntList: _sum,
        aten.mean.dim: _mean,
        aten.var_mean.correction: _var_mean,
        aten.layer_norm.default: _layer_norm,
        aten.softmax.int: _softmax,
        aten.scaled_dot_product_attention.default: _attention,
        aten.clamp_min.Tensor: torch.maximum,
        aten.addcmul.default: _addcmul,
        aten.unsqueeze.default: _unsqueeze,
        aten.squeeze.dim: _squeeze,
        aten.select.int: _select,
        aten.unbind.int: _unbind,
        aten.stack.default: _stack,
        aten.matmul.default: _matmul,
        aten.pad.default: _pad,
        aten.gelu.default: _gelu,
    }


def _weighted_sum(x: Tensor, dim: int, weight: float) -> Tensor:
    """The sum over a dimension, which stays, times a weight."""
    dim %= x.dim()
    before, size = math.prod(x.shape[:dim]), x.shape[dim]
    after = math.prod(x.shape[dim + 1 :])
    if before == after == 1:  # many samples; no constant of as many
        samples = x.reshape(1, 1, 1, size)
        total = samples.mean((-2, -1), keepdim=True) * (size * weight)
    elif after == 1:
        weights = torch.full((1, size), weight, dtype=x.dtype)
        total = functional.linear(x.reshape(before, size), weights)
    else:
        weights = torch.full((before, 1, size), weight, dtype=x.dtype)
        total = torch.bmm(weights, x.reshape(before, size, after))
    return total.reshape(*x.shape[:dim], 1, *x.shape[dim + 1 :])


def _sum(x: Tensor, dims: Sequence[int], keepdim: bool = False) -> Tensor:
    for dim in dims:
        x = _weighted_sum(x, dim, 1)
    return x if keepdim else _without(x, dims)


def _mean(x: Tensor, dims: Sequence[int], keepdim: bool = False) -> Tensor:
    if keepdim and list(dims) == [-2, -1]:  # XNNPACK has this one
        return NotImplemented
    for dim in dims:
        x = _weighted_sum(x, dim, 1 / x.shape[dim])
    return x if keepdim else _without(x, dims)


def _without(x: Tensor, dims: Sequence[int]) -> Tensor:
    removed = {dim % x.dim() for dim in dims}
    return x.reshape([n for i, n in enumerate(x.shape) if i not in removed])


def _var_mean(
    x: Tensor, dims: Sequence[int], *, correction: int, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    assert correction == 0
    mean = _mean(x, dims, keepdim=True)
    centred = x - mean
    variance = _mean(centred * centred, dims, keepdim)
    return variance, mean if keepdim else _without(mean, dims)


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    *_: bool,
) -> Tensor:
    variance, mean = _var_mean(x, [-1], correction=0, keepdim=True)
    return (x - mean) * (variance + epsilon).rsqrt() * weight + bias


def _softmax(x: Tensor, dim: int) -> Tensor:
    # The one below, which is no entry of the table.
    if dim in (-1, x.dim() - 1):
        return aten._softmax(x, -1, False)
    return aten._softmax(x.transpose(dim, -1), -1, False).transpose(dim, -1)


def _matmul(x: Tensor, y: Tensor) -> Tensor:
    rows = torch.mm(x.reshape(-1, x.shape[-1]), y)
    return rows.reshape(*x.shape[:-1], -1)


def _pad(
    x: Tensor,
    sizes: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Tensor:
    if mode == "constant":
        return torch.constant_pad_nd(x, sizes, value or 0)
    left, right = sizes
    start = _backwards(x.narrow(-1, 1, left))
    end = _backwards(x.narrow(-1, x.shape[-1] - 1 - right, right))
    return torch.cat([start, x, end], -1)


def _backwards(x: Tensor) -> Tensor:
    return x.flip(-1) if x.shape[-1] > 1 else x


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "none":
        return NotImplemented
    # XNNPACK would compute the exact one, which differs by 5e-4.
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    return 0.5 * x * (1 + inner.tanh())


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    batch, heads, frames, size = query.shape
    query, key, value = (
        x.reshape(batch * heads, frames, size) for x in (query, key, value)
    )
    logits = torch.bmm(query * size**-0.5, key.transpose(1, 2))
    attended = torch.bmm(_softmax(logits, -1), value)
    return attended.reshape(batch, heads, frames, size)


def _addcmul(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return x + first * second


def _unsqueeze(x: Tensor, dim: int) -> Tensor:
    dim %= x.dim() + 1
    return x.reshape(*x.shape[:dim], 1, *x.shape[dim:])


def _squeeze(x: Tensor, dim: int) -> Tensor:
    return _without(x, [dim])


def _select(x: Tensor, dim: int, index: int) -> Tensor:
    return _without(x.narrow(dim, index, 1), [dim])


def _unbind(x: Tensor, dim: int = 0) -> list[Tensor]:
    return [_select(x, dim, index) for index in range(x.shape[dim])]


def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return torch.cat([_unsqueeze(x, dim) for x in tensors], dim)
