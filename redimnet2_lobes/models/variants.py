"""The variants B0 to B6: their architectures, and which of them a network has.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from typing import Any

from torch import nn

from redimnet2_lobes.models.architecture import STAGE
from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2


def _architecture(
    base_channels: int, out_channels: int | None, *stages: tuple
) -> dict[str, Any]:
    return {
        "base_channels": base_channels,
        "out_channels": out_channels,
        "stages": [dict(zip(STAGE, stage, strict=True)) for stage in stages],
    }


# Arguments of `ReDimNet2`, by name.
VARIANTS = {
    "b0": _architecture(
        12,
        64,
        (1, 1, 2, 2, 36),
        (2, 1, 3, 1, 36),
        (1, 2, 4, 1, 36),
        (2, 1, 5, 1, 36),
        (1, 2, 4, 1, 18),
        (2, 1, 3, 1, 18),
    ),
    "b1": _architecture(
        16,
        None,
        (1, 1, 2, 2, 32),
        (2, 1, 3, 1, 32),
        (1, 2, 4, 1, 32),
        (2, 1, 5, 1, 32),
        (1, 2, 4, 1, 16),
        (2, 1, 3, 1, 16),
    ),
    "b2": _architecture(
        20,
        None,
        (1, 1, 2, 2, 40),
        (2, 1, 3, 1, 30),
        (1, 2, 4, 1, 30),
        (3, 1, 5, 1, 20),
        (1, 2, 4, 1, 20),
        (2, 1, 3, 1, 10),
    ),
    "b3": _architecture(
        24,
        None,
        (1, 1, 2, 4, 24),
        (2, 1, 3, 3, 24),
        (1, 2, 4, 2, 24),
        (2, 1, 5, 1, 24),
        (1, 2, 4, 1, 24),
        (2, 1, 3, 1, 24),
    ),
    "b4": _architecture(
        32,
        None,
        (1, 1, 2, 4, 24),
        (2, 1, 3, 3, 24),
        (1, 2, 4, 2, 24),
        (2, 1, 5, 1, 24),
        (1, 2, 4, 1, 24),
        (2, 1, 3, 1, 24),
    ),
    "b5": _architecture(
        48,
        256,
        (1, 1, 2, 4, 48),
        (2, 1, 3, 3, 48),
        (1, 2, 4, 2, 48),
        (2, 1, 5, 1, 48),
        (1, 2, 4, 1, 32),
        (2, 1, 3, 1, 32),
    ),
    "b6": _architecture(
        64,
        224,
        (1, 1, 3, 3, 64),
        (2, 1, 4, 2, 64),
        (1, 2, 5, 2, 48),
        (2, 1, 5, 1, 48),
        (1, 2, 4, 0.75, 32),
        (2, 1, 3, 0.5, 24),
    ),
}
# The same in all of them.
SHARED = {
    "front_end": LogMel,
    "mel_bins": 72,
    "dual_aggregation": False,
    "embedding_size": 192,
}
# In what those released for more data than VoxCeleb2 differ.
OF_MIXTURES = {"b3": {"out_channels": 224}, "b6": {"dual_aggregation": True}}


def difference(network: nn.Module, variant: str) -> str | None:
    """The first argument in which a network is not of a variant.

    Normalization before aggregation is not compared, since some of each
    variant have it, nor what short utterances are repeated to, since the
    architecture is the same.

    Returns
    -------
    str or None
        Name of an argument of ``ReDimNet2``, mel_bins of its front-end, or
        embedding_model for another class; None where all are the variant's.

    Example
    -------
    >>> network = ReDimNet2(LogMel(), **VARIANTS["b0"], embedding_size=256)
    >>> difference(network, "b0")
    'embedding_size'
    """
    if not isinstance(network, ReDimNet2):
        return "embedding_model"
    arguments = {
        **network.arguments(),
        "front_end": type(network.front_end),
        "mel_bins": network.front_end.mel_bins,
    }
    expected = {**VARIANTS[variant], **SHARED}
    other = {**expected, **OF_MIXTURES.get(variant, {})}
    differing = [
        [name for name in expected if arguments[name] != form[name]]
        for form in (expected, other)
    ]
    return None if [] in differing else differing[0][0]


def variant_of(network: nn.Module) -> str | None:
    """The variant b0 to b6 that a network is one of, or None.

    Example
    -------
    >>> variant_of(ReDimNet2(LogMel(), **VARIANTS["b0"]))
    'b0'
    >>> stages = VARIANTS["b0"]["stages"][1:]
    >>> variant_of(ReDimNet2(LogMel(), base_channels=12, stages=stages))
    """
    matching = (name for name in VARIANTS if difference(network, name) is None)
    return next(matching, None)


def check_variant(variant: str | None, network: nn.Module) -> None:
    """Refuses, with a ValueError, a variant that a network is not one of.

    None is for networks of other architectures.

    Example
    -------
    >>> check_variant("b3", ReDimNet2(LogMel(), **VARIANTS["b0"]))
    Traceback (most recent call last):
    ValueError: variant: 'b3' does not go with base_channels; the variants are \
b0, b1, b2, b3, b4, b5, b6, and null is for other networks
    """
    if variant is None:
        return
    differing = "this network"
    if variant in VARIANTS:
        differing = difference(network, variant)
    if differing is not None:
        raise ValueError(
            f"variant: {variant!r} does not go with {differing}; the variants "
            f"are {', '.join(VARIANTS)}, and null is for other networks"
        )
