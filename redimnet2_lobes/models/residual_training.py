"""Training of residual blocks in pieces that stay in the processor's cache.

As separate operations, a residual block writes some twenty maps of a batch to
memory, each into fresh pages, which costs about as much as its arithmetic,
and keeps seven of them for the backward pass. Here each step runs over a few
utterances at a time, all operations of a step while their maps are in the
cache. A step ends where BatchNorm needs sums over the whole batch. Four maps
are kept (two of them the input and the output); the others are computed again.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import functools

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from redimnet2_lobes.models.tiles import utterances

# Sums over rows of a few dozen channels are up to six times slower than over
# rows of some hundred values, so several bins make up a row.
ROW_VALUES = 512


def pays_in_tiles(x):
    """Whether ``residual_block`` is made for a map, and gains by it.

    Arguments
    ---------
    x : torch.Tensor
        2-D view [batch, channels, time, bins].

    Returns
    -------
    bool
        True for a map in full precision on a CPU that has several tiles. For
        smaller ones the calls cost more than memory does.

    Example
    -------
    >>> x = torch.zeros(8, 24, 200, 72)
    >>> pays_in_tiles(x), pays_in_tiles(x[:, :, :10])
    (True, False)
    """
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and len(utterances(x)) > 1
    )


def residual_block(x, block):
    """Applies a residual block in training mode: batch statistics, gradients.

    The result, the gradients and the running statistics are those of
    the modules one after the other, up to rounding. It is for full precision
    (float32 or float64) on a CPU, without padding and outside autocast.
    Second derivatives are not available.

    Arguments
    ---------
    x : torch.Tensor
        2-D view [batch, channels, time, bins], best in channels_last memory.
    block : torch.nn.Module
        Has ``depthwise_1``, ``pointwise_1``, ``norm_1``, ``depthwise_2``,
        ``pointwise_2`` and ``norm_2``. Their parameters are used, their
        ``forward`` is not. The ReLU before ``norm_1`` is applied here too.

    Returns
    -------
    torch.Tensor
        2-D view [batch, channels, time, bins].

    Example
    -------
    >>> from redimnet2_lobes.models.redimnet2 import ResidualBlock
    >>> x = torch.randn(2, 4, 8, 72, requires_grad=True)
    >>> block = ResidualBlock(4)
    >>> y = residual_block(x, block)
    >>> y.shape
    torch.Size([2, 4, 8, 72])
    >>> torch.allclose(y, ResidualBlock.forward(block, x, None), atol=1e-5)
    True
    """
    return _ResidualBlock.apply(
        x,
        block.depthwise_1.weight,
        block.pointwise_1.weight,
        block.pointwise_1.bias,
        block.norm_1.weight,
        block.norm_1.bias,
        block.depthwise_2.weight,
        block.pointwise_2.weight,
        block.pointwise_2.bias,
        block.norm_2.weight,
        block.norm_2.bias,
        block.norm_1,
        block.norm_2,
    )


class _ResidualBlock(torch.autograd.Function):
    """Forward and backward pass, each in three steps."""

    @staticmethod
    def forward(
        ctx,
        x,
        depthwise_1,
        pointwise_1,
        pointwise_bias_1,
        weight_1,
        bias_1,
        depthwise_2,
        pointwise_2,
        pointwise_bias_2,
        weight_2,
        bias_2,
        norm_1,
        norm_2,
    ):
        """Keeps the input, the rectified and convolved maps, the output."""
        x = x.contiguous(memory_format=torch.channels_last)
        tiles = utterances(x)
        rectified, convolved, y = (torch.empty_like(x) for _ in range(3))

        statistics = _Statistics(norm_1)
        for tile in tiles:
            z = _depthwise(x[tile], depthwise_1)
            z = nn.functional.conv2d(z, pointwise_1, pointwise_bias_1)
            rows = _rows(rectified[tile])
            torch.clamp(_rows(z), min=0, out=rows)
            statistics.add(rows)
        mean_1, inverse_1 = statistics.finish()
        scale_1, shift_1 = _scale_and_shift(mean_1, inverse_1, weight_1, bias_1)

        statistics = _Statistics(norm_2)
        normalize = _PerChannel(x, scale_1, shift_1)
        for tile in tiles:
            z = normalize(rectified[tile])
            z = _depthwise(z, depthwise_2)
            z = nn.functional.conv2d(z, pointwise_2, pointwise_bias_2)
            rows = _rows(convolved[tile])
            rows.copy_(_rows(z))
            statistics.add(rows)
        mean_2, inverse_2 = statistics.finish()

        normalize = _PerChannel(
            x, *_scale_and_shift(mean_2, inverse_2, weight_2, bias_2)
        )
        for tile in tiles:
            z = _rows(normalize(convolved[tile])).add_(_rows(x[tile]))
            torch.clamp(z, min=0, out=_rows(y[tile]))

        ctx.save_for_backward(
            x,
            rectified,
            convolved,
            y,
            depthwise_1,
            pointwise_1,
            weight_1,
            mean_1,
            inverse_1,
            scale_1,
            shift_1,
            depthwise_2,
            pointwise_2,
            weight_2,
            mean_2,
            inverse_2,
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        """Allocates one map, for the gradient of the input."""
        (
            x,
            rectified,
            convolved,
            y,
            depthwise_1,
            pointwise_1,
            weight_1,
            mean_1,
            inverse_1,
            scale_1,
            shift_1,
            depthwise_2,
            pointwise_2,
            weight_2,
            mean_2,
            inverse_2,
        ) = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        tiles = utterances(x)
        input_gradient = torch.empty_like(x)

        norm_2 = _NormGradient(x, mean_2, inverse_2, weight_2)
        for tile in tiles:
            norm_2.add(_masked(gradient[tile], y[tile]), convolved[tile])
        norm_2.finish()

        # Until the last step, ``input_gradient`` is that of the normalized map.
        norm_1 = _NormGradient(x, mean_1, inverse_1, weight_1)
        normalize = _PerChannel(x, scale_1, shift_1)
        separable_2 = _SeparableGradient(depthwise_2, pointwise_2)
        for tile in tiles:
            z = norm_2.apply(_masked(gradient[tile], y[tile]), convolved[tile])
            z = separable_2.apply(z, normalize(rectified[tile]))
            input_gradient[tile].copy_(z)
            norm_1.add(input_gradient[tile], rectified[tile])
        norm_1.finish()

        separable_1 = _SeparableGradient(depthwise_1, pointwise_1)
        for tile in tiles:
            z = norm_1.apply(input_gradient[tile], rectified[tile])
            z = separable_1.apply(_masked(z, rectified[tile]), x[tile])
            torch.add(
                _rows(z),
                _rows(_masked(gradient[tile], y[tile])),
                out=_rows(input_gradient[tile]),
            )

        return (
            input_gradient,
            *separable_1.parameters(),
            *norm_1.parameters(),
            *separable_2.parameters(),
            *norm_2.parameters(),
            None,
            None,
        )


class _Statistics:
    """Mean and variance of each channel over the tiles of a batch.

    Arguments
    ---------
    norm : torch.nn.BatchNorm2d
        Module whose running statistics are updated.
    """

    def __init__(self, norm):
        self.norm = norm
        self.counts = []
        self.means = []
        self.variances = []

    def add(self, rows):
        """Takes the statistics of a tile, while it is in the cache."""
        mean, variance = torch.batch_norm_update_stats(rows, None, None, 0.0)
        self.means.append(mean.view(-1, self.norm.num_features))
        self.variances.append(variance.view(-1, self.norm.num_features))
        self.counts.extend([rows.shape[0]] * self.means[-1].shape[0])

    def finish(self):
        """Updates the running statistics.

        Returns
        -------
        torch.Tensor
            Mean of each channel.
        torch.Tensor
            Inverse of its standard deviation.
        """
        total = sum(self.counts)
        if total == 1:
            raise ValueError("Training needs more than one value per channel")
        # Each part has its variance around its own mean. No squares of large
        # means are subtracted from each other (Chan et al., 1979).
        means = torch.cat(self.means).double()
        shares = means.new_tensor(self.counts).unsqueeze(1) / total
        mean = (shares * means).sum(0)
        between = (means - mean).square()
        variance = (shares * (torch.cat(self.variances) + between)).sum(0)
        inverse = (variance + self.norm.eps).rsqrt()
        self._track(mean, variance * (total / (total - 1)))
        dtype = self.means[0].dtype
        return mean.to(dtype), inverse.to(dtype)

    def _track(self, mean, variance):
        norm = self.norm
        if norm.running_mean is None:
            return
        norm.num_batches_tracked.add_(1)
        momentum = norm.momentum
        if momentum is None:
            momentum = 1 / norm.num_batches_tracked.item()
        for running, new in (
            (norm.running_mean, mean),
            (norm.running_var, variance),
        ):
            running.mul_(1 - momentum).add_(new.to(running), alpha=momentum)


class _NormGradient:
    """Gradients of BatchNorm: sums over all tiles first, then each tile.

    Arguments
    ---------
    x : torch.Tensor
        2-D view [batch, channels, time, bins], only for its shape.
    mean : torch.Tensor
        Mean of each channel.
    inverse : torch.Tensor
        Inverse of its standard deviation.
    weight : torch.Tensor
        Weight of the norm.
    """

    def __init__(self, x, mean, inverse, weight):
        self.x = x
        self.mean = mean
        self.inverse = inverse
        self.weight = weight
        self.wide = _widen(mean, x), _widen(inverse, x)
        self.sums = []

    def add(self, gradient, x):
        """Adds a tile to the gradients of weight and bias."""
        # With this mask it only sums, in one pass over both maps.
        _, *sums = torch.ops.aten.native_batch_norm_backward(
            _rows(gradient),
            _rows(x),
            None,
            None,
            None,
            *self.wide,
            True,
            0.0,
            [False, True, True],
        )
        self.sums.append(torch.stack(sums))

    def finish(self):
        """Makes of the sums what ``apply`` needs.

        The gradient is linear in that of the output and in the input.
        """
        channels = self.weight.shape[0]
        sums = torch.cat(self.sums, 1).view(2, -1, channels).sum(1)
        self.weight_gradient, self.bias_gradient = sums
        slope = self.weight * self.inverse
        means = sums * (slope * (-channels / self.x.numel()))
        input_slope = means[0] * self.inverse
        offset = torch.addcmul(means[1], input_slope, self.mean, value=-1)
        self.slope = _widen(slope, self.x)
        self.linear = _PerChannel(self.x, input_slope, offset)

    def apply(self, gradient, x):
        """Computes the gradient of a tile of the input."""
        z = self.linear(x)
        _rows(z).addcmul_(_rows(gradient), self.slope)
        return z

    def parameters(self):
        """Gradients of weight and bias."""
        return self.weight_gradient, self.bias_gradient


class _SeparableGradient:
    """Gradients of a depthwise, then pointwise convolution.

    Arguments
    ---------
    depthwise : torch.Tensor
        Weight [channels, 1, 3, 3].
    pointwise : torch.Tensor
        Weight [channels, channels, 1, 1].
    """

    def __init__(self, depthwise, pointwise):
        self.depthwise = depthwise
        self.flipped = depthwise.flip(2, 3)
        self.pointwise = pointwise
        self.depthwise_gradient = torch.zeros_like(depthwise)
        self.pointwise_gradient = torch.zeros_like(pointwise)
        self.bias_gradient = pointwise.new_zeros(pointwise.shape[0])

    def apply(self, gradient, x):
        """Adds a tile to the gradients of the weights.

        Returns
        -------
        torch.Tensor
            Gradient of the input of the tile.
        """
        channels = self.pointwise.shape[0]
        self.bias_gradient += _rows(gradient).sum(0).view(-1, channels).sum(0)
        gradient, pointwise_gradient, _ = torch.ops.aten.convolution_backward(
            gradient,
            _depthwise(x, self.depthwise),
            self.pointwise,
            None,
            [1, 1],
            [0, 0],
            [1, 1],
            False,
            [0, 0],
            1,
            [True, True, False],
        )
        self.pointwise_gradient += pointwise_gradient
        _, depthwise_gradient, _ = torch.ops.aten.convolution_backward(
            gradient,
            x,
            self.depthwise,
            None,
            [1, 1],
            [1, 1],
            [1, 1],
            False,
            [0, 0],
            channels,
            [False, True, False],
        )
        self.depthwise_gradient += depthwise_gradient
        # Faster than to ask for it in the call above.
        return _depthwise(gradient, self.flipped)

    def parameters(self):
        """Gradients of both weights and the bias."""
        return (
            self.depthwise_gradient,
            self.pointwise_gradient,
            self.bias_gradient,
        )


@functools.cache
def _bins_per_row(channels, bins):
    """As many bins as fit a row and divide all of them."""
    fit = max(1, min(bins, ROW_VALUES // channels))
    return next(count for count in range(fit, 0, -1) if bins % count == 0)


def _rows(x):
    """Views a 2-D view as rows of the channels of one or more bins."""
    channels, bins = x.shape[1], x.shape[3]
    # Convolutions in float64 may leave channels_last.
    x = x.contiguous(memory_format=torch.channels_last)
    columns = _bins_per_row(channels, bins) * channels
    return x.permute(0, 2, 3, 1).view(-1, columns)


def _widen(values, x):
    """Repeats a value of each channel for each bin of a row of ``x``."""
    # Five times as fast as ``repeat``.
    count = _bins_per_row(x.shape[1], x.shape[3])
    return values.expand(count, -1).reshape(-1)


def _scale_and_shift(mean, inverse, weight, bias):
    """BatchNorm with given statistics as a linear function."""
    scale = weight * inverse
    return scale, torch.addcmul(bias, mean, scale, value=-1)


class _PerChannel:
    """Linear function of each channel.

    Arguments
    ---------
    x : torch.Tensor
        2-D view [batch, channels, time, bins], only for its shape.
    scale : torch.Tensor
        Factor of each channel.
    shift : torch.Tensor
        What is added after it.
    """

    def __init__(self, x, scale, shift):
        self.scale = _widen(scale, x)
        self.shift = _widen(shift, x)

    def __call__(self, x):
        """Applies it to a tile, into new memory."""
        batch, channels, time, bins = x.shape
        z = torch.addcmul(self.shift, _rows(x), self.scale)
        return z.view(batch, time, bins, channels).permute(0, 3, 1, 2)


def _masked(gradient, rectified):
    """Gradient of a tile before its ReLU."""
    return torch.ops.aten.threshold_backward(gradient, rectified, 0)


def _depthwise(x, weight):
    return nn.functional.conv2d(x, weight, padding=1, groups=weight.shape[0])
