"""The convolution by which a stage reshapes what was aggregated.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class StridedConvolution(nn.Conv2d):
    """Convolution whose kernel equals its stride, over maps of several rates.

    Over a map whose frames stand for r repeated ones, a kernel of s frames is
    a kernel of s / r frames, each tap the sum of r taps.

    Arguments
    ---------
    in_channels, out_channels
        Channels.
    kernel_size
        Kernel and stride in full-rate frames and in bins.
    groups
        Groups.

    Example
    -------
    >>> convolution = StridedConvolution(4, 8, kernel_size=(2, 3), groups=4)
    >>> convolution({1: torch.randn(1, 10, 24), 2: torch.randn(1, 5, 24)}).shape
    torch.Size([1, 8, 5, 2])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        groups: int,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=kernel_size,
            groups=groups,
        )

    def forward(self, sums: dict[int, Tensor]) -> Tensor:
        """The sum of each time stride, a 1-D view, to one 2-D view [batch,
        channels, time / kernel, bins / kernel].
        """
        frames, bins = self.kernel_size
        bias = self.bias
        total = None
        for stride, x in sums.items():
            x = x.unflatten(2, (-1, self.in_channels)).permute(0, 3, 1, 2)
            weight = self.weight
            if stride > 1:
                weight = weight.unflatten(2, (-1, stride)).sum(3)
            y = convolve(x, weight, bias, (frames // stride, bins), self.groups)
            total = y if total is None else total.add_(y)
            bias = None
        assert total is not None  # there is a map at least
        return total


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    groups: int,
) -> Tensor:
    """``torch.nn.functional.conv2d``, by depthwise ones where those are faster.

    torch has fast kernels where each group has one channel in and one out. For
    two or three out, as many depthwise convolutions take half the time of one
    grouped convolution, forward and backward.

    Example
    -------
    >>> x, weight = torch.randn(2, 3, 8, 6), torch.randn(6, 1, 2, 3)
    >>> y = convolve(x, weight, None, (2, 3), groups=3)
    >>> expected = functional.conv2d(x, weight, stride=(2, 3), groups=3)
    >>> torch.allclose(y, expected, atol=1e-6)
    True
    """
    out, size, *kernel = weight.shape
    count = out // groups
    if size > 1 or count not in (2, 3) or tuple(kernel) == (1, 1):
        return functional.conv2d(x, weight, bias, stride, groups=groups)
    maps = []
    for i in range(count):
        y = functional.conv2d(
            x,
            weight[i::count],
            None if bias is None else bias[i::count],
            stride,
            groups=groups,
        )
        maps.append(y.permute(0, 2, 3, 1))
    # Back to the order of a grouped convolution: outputs of a group together.
    return torch.stack(maps, 4).flatten(3).permute(0, 3, 1, 2)
