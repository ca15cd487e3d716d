"""The folded copy that a network embeds with, until its weights change.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import operator

from torch import Tensor, nn

from redimnet2_lobes.models.folding import fold
from redimnet2_lobes.models.redimnet2 import ReDimNet2


class FoldedCopy:
    """A folded copy, and whether it still is one of its network.

    It is not if a weight was written or replaced, a part of the network was
    replaced or put into training mode, or a hook waits for its forward pass.
    What is written through ``Tensor.data`` goes unseen, as for autograd.

    Example
    -------
    >>> network = ReDimNet2.from_variant("b0").eval()
    >>> copy = FoldedCopy(network)
    >>> copy.is_current()
    True
    >>> _ = nn.init.zeros_(network.projection.bias)
    >>> copy.is_current()
    False
    """

    def __init__(self, network: ReDimNet2) -> None:
        self.network = fold(network)
        self._modules = list(network.modules())
        self._parts = [
            (parts, list(parts.values()))
            for module in self._modules
            for parts in (module._parameters, module._buffers, module._modules)
        ]
        self._tensors = [
            (tensor, tensor.data_ptr(), _version(tensor))
            for tensor in (*network.parameters(), *network.buffers())
        ]

    def is_current(self) -> bool:
        """Whether the network has not changed since; takes 0.2 ms."""
        return (
            not any(map(runs_itself, self._modules))
            and all(
                len(parts) == len(before)
                and all(map(operator.is_, parts.values(), before))
                for parts, before in self._parts
            )
            and all(
                tensor.data_ptr() == place and _version(tensor) == version
                for tensor, place, version in self._tensors
            )
        )


def runs_itself(module: nn.Module) -> bool:
    """Whether no copy can run in its place: it is in training or has a hook.

    Example
    -------
    >>> runs_itself(nn.Linear(2, 2)), runs_itself(nn.Linear(2, 2).eval())
    (True, False)
    """
    hooks = module._forward_hooks or module._forward_pre_hooks
    return module.training or bool(hooks)


def _version(tensor: Tensor) -> int:
    # Of a tensor made in inference mode torch counts none.
    return 0 if tensor.is_inference() else tensor._version
