"""Folding: what is constant after training is worked into the weights.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from redimnet2_lobes.models.blocks import ResidualBlock, TimeConvolution
from redimnet2_lobes.models.redimnet2 import ReDimNet2, Stage


@torch.no_grad()
def fold(network: ReDimNet2) -> ReDimNet2:
    """Makes a faster copy of a network, for inference only.

    Every BatchNorm is folded into the layers beside it. The embeddings stay
    the same up to rounding; the copy is in evaluation mode without gradients,
    holds no statistics, cannot be trained, and its weights fit no other
    network. Programs that embed on a CPU should also call
    ``keep_freed_memory`` once.

    Example
    -------
    >>> from redimnet2_lobes.models.front_end import LogMel
    >>> from redimnet2_lobes.models.redimnet2 import ReDimNet2
    >>> stage = {"frequency_stride": 2, "time_stride": 2, "blocks": 1}
    >>> stage = {**stage, "expansion": 2, "reduction": 8}
    >>> network = ReDimNet2(LogMel(), 4, [stage]).eval()
    >>> folded = fold(network)
    >>> wavs = torch.randn(1, 16000)
    >>> bool((folded(wavs) - network(wavs)).abs().max() < 1e-5)
    True
    >>> any(isinstance(x, torch.nn.BatchNorm2d) for x in folded.modules())
    False
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    with torch.autocast(network.projection.weight.device.type, enabled=False):
        _fold_in_place(network)
    return network


def _fold_in_place(network: ReDimNet2) -> None:
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            _fold_rectified_norm(module)
            _fold_after(module.pointwise_2, module.norm_2)
            module.norm_2 = nn.Identity()
        elif isinstance(module, TimeConvolution):
            _fold_after(module.depthwise, module.norm)
            module.norm = nn.Identity()
        elif isinstance(module, Stage) and module.contract is not None:
            convolution, norm = module.contract.children()
            _fold_after(convolution, norm)
            module.contract = convolution
    scale, shift = _scale_and_shift(network.norm)
    projection = network.projection
    projection.bias.add_(projection.weight @ shift)
    projection.weight.mul_(scale)
    network.norm = nn.Identity()


class Floor(nn.Module):
    """Raises each channel to a lower bound, in place.

    Arguments
    ---------
    floor
        The bounds [channels].

    Example
    -------
    >>> floor = Floor(torch.tensor([0.0, -1.0]))
    >>> floor(torch.full((1, 2, 1, 1), -3.0)).flatten()
    tensor([ 0., -1.])
    """

    floor: Tensor

    def __init__(self, floor: Tensor) -> None:
        super().__init__()
        self.register_buffer("floor", floor[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """The maximum of a 2-D view and the bounds, in the same memory."""
        return x.clamp_min_(self.floor.to(x.dtype))


# To torch, what is in a module may be a tensor or a module; hence Any.


def _fold_rectified_norm(block: Any) -> None:
    """Replaces ReLU and BatchNorm between two convolutions.

    The BatchNorm cannot move into the second convolution as a whole: beyond
    the edges of the map that convolution sees zeros, not shifts. But
    scale * relu(y) + shift = scale * max(y + floor, floor) with
    floor = shift / scale: the bias of the first convolution takes the sum,
    the weights of the second the scale, and zeros at the edges stay zeros.
    """
    scale, shift = _scale_and_shift(block.norm_1)
    # A channel with no scale at all is constant; this keeps its shift.
    scale = torch.where(scale == 0, 1e-12, scale)
    floor = shift / scale
    block.pointwise_1.bias += floor
    block.rectify = Floor(floor)
    block.norm_1 = nn.Identity()
    block.depthwise_2.weight *= scale[:, None, None, None]


def _fold_after(convolution: Any, norm: Any) -> None:
    """Folds a BatchNorm into the convolution before it."""
    scale, shift = _scale_and_shift(norm)
    convolution.weight *= scale[:, None, None, None]
    convolution.bias.mul_(scale).add_(shift)


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """What a BatchNorm in evaluation mode multiplies by and adds."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale
