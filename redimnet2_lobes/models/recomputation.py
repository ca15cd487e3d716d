"""Activation checkpointing: memory of a training for arithmetic.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import itertools
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


def recomputed(module: nn.Module, *inputs: Any) -> Any:
    """Calls a module that the backward pass computes again.

    Only the inputs are kept until then; do not change them. Running statistics
    move once, gradients are those of a plain call. What is random in the module
    would be drawn anew.

    Example
    -------
    >>> norm = nn.BatchNorm1d(2)
    >>> recomputed(norm, torch.randn(4, 2)).sum().backward()
    >>> norm.num_batches_tracked
    tensor(1)
    """
    calls = itertools.count()

    def call(*inputs: Any) -> Any:
        # From the second call on, statistics move in copies.
        copies = {}
        if next(calls) > 0:
            copies = {
                name: buffer.clone() for name, buffer in module.named_buffers()
            }
        return functional_call(module, copies, inputs)

    # A graph moves statistics once, whatever of it is computed again.
    return checkpoint(
        module if torch.compiler.is_compiling() else call,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
    )
