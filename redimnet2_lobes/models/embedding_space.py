"""The space of a network's embeddings: which may be compared with which.

An embedding means something only beside others of the same network and
front-end.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import hashlib
import json
from typing import Any

import torch
from torch import nn

from redimnet2_lobes.models.pass_through import PassThrough
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.models.variants import variant_of

# Enters every name. Raise it when the same weights give other embeddings.
VERSION = 1


def embedding_space(network: nn.Module) -> str:
    """Names the space of a network's embeddings, ``redimnet2-b3-<16 digits>``.

    The digits are the start of a SHA-256, in hexadecimal, of the architecture,
    the front-end and all weights. They are the same on every machine and device
    and do not depend on the precision of computing, which moves embeddings by a
    rounding. Take it before `fold`.

    The network may be another one: then the classes of its modules and their
    settings, plain values, take the place of the architecture. In a
    ``ModuleDict`` of what makes an embedding, such as
    ``EncoderClassifier.mods``, the classifier does not count.

    Example
    -------
    >>> network = ReDimNet2.from_variant("b0")
    >>> before = embedding_space(network)
    >>> before[:13], len(before)
    ('redimnet2-b0-', 29)
    >>> _ = network.projection.bias.data.add_(1e-3)
    >>> embedding_space(network) == before
    False
    """
    kind = network
    if isinstance(network, nn.ModuleDict):
        parts = {
            name: _unwrapped(module)
            for name, module in network.items()
            if name != "classifier" and not isinstance(module, PassThrough)
        }
        kind = parts.get("embedding_model", network)
        network = kind if len(parts) == 1 else nn.ModuleDict(parts)
    if isinstance(network, ReDimNet2):
        front_end = type(network.front_end).__name__
        described = [front_end, network.arguments()]
        name = f"redimnet2-{variant_of(network) or 'custom'}"
    else:
        described = [
            [name, type(module).__qualname__, _settings(module)]
            for name, module in network.named_modules()
        ]
        name = type(kind).__name__.lower()
    digest = hashlib.sha256(_json([VERSION, described]))
    for key, tensor in sorted(network.state_dict().items()):
        if tensor.is_floating_point():  # others count batches
            # With the sizes, no two state dicts make the same bytes.
            digest.update(_json([key, list(tensor.shape)]))
            tensor = tensor.detach().cpu().float().contiguous().flatten()
            digest.update(tensor.view(torch.uint8).numpy().data)
    return f"{name}-{digest.hexdigest()[:16]}"


def _unwrapped(module: nn.Module) -> nn.Module:
    """What SpeechBrain may have wrapped for several devices."""
    inner = getattr(module, "module", module)
    return inner if isinstance(inner, nn.Module) else module


def _settings(module: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str)
        and not name.startswith("_")
        and name != "training"
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
