"""What the stages of ReDimNet2 are made of.

Maps come as 1-D views [batch, time, channels] or 2-D views [batch, channels,
time, bins]. ``padding`` is True where padded [batch, time], ``frames`` are the
valid frames of each utterance [batch]; None where nothing is padded.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from redimnet2_lobes.models.lengths import valid_mask
from redimnet2_lobes.models.precision import at_least_float32

TIME_KERNELS = (7, 19, 31, 59)
ATTENTION_HEADS = 4


class ResidualBlock(nn.Module):
    """Two depthwise-separable 3x3 convolutions and a shortcut.

    Example
    -------
    >>> ResidualBlock(4)(torch.randn(2, 4, 8, 72), padding=None).shape
    torch.Size([2, 4, 8, 72])
    """

    # Frames on either side that an output frame depends on.
    context = 2

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise_1 = nn.Conv2d(
            channels, channels, 3, padding=1, groups=channels, bias=False
        )
        self.pointwise_1 = nn.Conv2d(channels, channels, 1)
        # Folding replaces what is a Module here.
        self.rectify: nn.Module = nn.ReLU(inplace=True)
        self.norm_1: nn.Module = nn.BatchNorm2d(channels)
        self.depthwise_2 = nn.Conv2d(
            channels, channels, 3, padding=1, groups=channels, bias=False
        )
        self.pointwise_2 = nn.Conv2d(channels, channels, 1)
        self.norm_2: nn.Module = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """A 2-D view to one of the same shape."""
        if padding is not None:
            padding = padding[:, None, :, None]
        y = self._separable(x, padding, self.depthwise_1, self.pointwise_1)
        y = self.norm_1(self.rectify(y))
        y = self._separable(y, padding, self.depthwise_2, self.pointwise_2)
        return self.norm_2(y).add_(x).relu_()

    def _separable(
        self,
        x: Tensor,
        padding: Tensor | None,
        depthwise: nn.Module,
        pointwise: nn.Module,
    ) -> Tensor:
        def convolve(x: Tensor) -> Tensor:
            return pointwise(depthwise(mask(x, padding)))

        on_cpu = x.device.type == "cpu"
        if not (self.training and on_cpu) or torch.compiler.is_compiling():
            return convolve(x)
        # The map between is computed again for the backward pass. On a CPU that
        # saves a quarter of training's memory for a few per cent of its time.
        y = checkpoint(
            convolve, x, use_reentrant=False, preserve_rng_state=False
        )
        return cast(Tensor, y)


class TimeContextBlock(nn.Module):
    """Convolutions over time, then self-attention, on a narrow 1-D view.

    Arguments
    ---------
    size
        Channels of the 1-D view.
    width
        Channels inside the block.

    Example
    -------
    >>> TimeContextBlock(64, 8)(torch.randn(2, 10, 64), padding=None).shape
    torch.Size([2, 10, 64])
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.contract = nn.Linear(size, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.convolutions = nn.ModuleList(
            TimeConvolution(width, kernel) for kernel in TIME_KERNELS
        )
        self.attention = SelfAttention(width)
        self.expand = nn.Linear(width, size)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Adds the context of each frame of a 1-D view."""
        y = self.norm(self.contract(x))
        for convolution in self.convolutions:
            y = convolution(y, padding)
        return self.expand(self.attention(y, padding)).add_(x)


class TimeConvolution(nn.Module):
    """Depthwise convolution over ``kernel`` frames, BatchNorm, GELU, pointwise.

    Example
    -------
    >>> TimeConvolution(8, 7)(torch.randn(2, 10, 8), padding=None).shape
    torch.Size([2, 10, 8])
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            width, width, (kernel, 1), padding=(kernel // 2, 0), groups=width
        )
        self.norm: nn.Module = nn.BatchNorm2d(width)
        self.pointwise = nn.Linear(width, width)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """A 1-D view to one of the same shape."""
        y = x if padding is None else mask(x, padding.unsqueeze(2))
        # As a 2-D view with one bin, which is channels_last without a copy. As
        # one with one frame it would take half the time, but torch 2.11 never
        # returns from some convolutions with 59 taps in bfloat16 then.
        y = y.transpose(1, 2).unsqueeze(3)
        y = self.norm(self.depthwise(y)).squeeze(3).transpose(1, 2)
        return self.pointwise(functional.gelu(y)).add_(x)


class SelfAttention(nn.Module):
    """Self-attention and feed-forward, each normalized after its shortcut.

    Example
    -------
    >>> SelfAttention(8)(torch.randn(2, 10, 8), padding=None).shape
    torch.Size([2, 10, 8])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, width),
            nn.GELU(approximate="tanh"),
            nn.Linear(width, width),
        )
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """A 1-D view to one of the same shape."""
        heads = self.query_key_value(x).unflatten(2, (3, ATTENTION_HEADS, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if padding is None else ~padding[:, None, None],
        )
        attended = attended.transpose(1, 2).flatten(2)
        x = self.attention_norm(x + self.output(attended))
        return self.feed_forward_norm(x + self.feed_forward(x))


class MapNorm(nn.Module):
    """GroupNorm of a 1-D view over channels of a group and time.

    torch's GroupNorm wants channels before time and knows no lengths.

    Arguments
    ---------
    groups
        Groups of neighbouring channels.
    size
        Channels of the 1-D view.

    Example
    -------
    >>> MapNorm(2, 8)(torch.randn(3, 5, 8), None).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, groups: int, size: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor, frames: Tensor | None) -> Tensor:
        """Normalizes a 1-D view whose rate is that of ``frames``."""
        grouped = at_least_float32(x).unflatten(2, (self.groups, -1))
        if frames is None:
            variance, mean = torch.var_mean(grouped, (1, 3), correction=0)
        else:
            padding = ~valid_mask(frames, x.shape[1])[:, :, None, None]
            count = (frames * grouped.shape[3]).unsqueeze(1)
            mean = mask(grouped, padding).sum((1, 3)) / count
            centred = mask(grouped - mean[:, None, :, None], padding)
            variance = centred.square().sum((1, 3)) / count
        scale = (variance + 1e-5).rsqrt()
        # One multiply-add of the map: scale and shift for each channel.
        weight = self.weight.unflatten(0, (self.groups, -1))
        weight = weight * scale.unsqueeze(2)
        bias = self.bias.unflatten(0, (self.groups, -1))
        bias = bias - weight * mean.unsqueeze(2)
        x = x * weight.flatten(1)[:, None] + bias.flatten(1)[:, None]
        return x.to(self.weight.dtype)


def mask(x: Tensor, padding: Tensor | None) -> Tensor:
    """Sets to zero what is padded; ``padding`` is broadcast to ``x``.

    Example
    -------
    >>> mask(torch.tensor([[1.0, 2.0]]), torch.tensor([[False, True]]))
    tensor([[1., 0.]])
    """
    return x if padding is None else x.masked_fill(padding, 0)
