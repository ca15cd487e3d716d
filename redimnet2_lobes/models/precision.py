"""What float32 is the least for, whatever the precision of the rest.

Sums over an utterance, logarithms of small energies and losses lose too much in
half precision. A network in float64 computes in float64 throughout.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Widens what is narrower than float32.

    Example
    -------
    >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    >>> at_least_float32(torch.ones(1, dtype=torch.float64)).dtype
    torch.float64
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
