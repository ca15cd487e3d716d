"""Which architectures can be built.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from collections.abc import Sequence
from typing import Any

from redimnet2_lobes.models.blocks import ATTENTION_HEADS

STAGE = ("frequency_stride", "time_stride", "blocks", "expansion", "reduction")


def check_architecture(
    bins: int,
    base_channels: int,
    stages: Sequence[dict[str, Any]],
    out_channels: int | None = None,
    minimum_seconds: float = 0.5,
) -> None:
    """Refuses what ``ReDimNet2`` cannot be built of, naming the argument.

    Example
    -------
    >>> check_architecture(72, 4, [])
    Traceback (most recent call last):
    ValueError: stages: expected a list with an entry for each stage
    """
    _check_positive("base_channels", base_channels, int)
    if out_channels is not None:
        _check_positive("out_channels", out_channels, int)
    _check_positive("minimum_seconds", minimum_seconds, (int, float))
    if not isinstance(stages, (list, tuple)) or not stages:
        raise ValueError("stages: expected a list with an entry for each stage")
    size = bins * base_channels
    for index, stage in enumerate(stages):
        where = f"stages[{index}]"
        if not isinstance(stage, dict) or set(stage) != set(STAGE):
            raise ValueError(f"{where}: expected the keys {sorted(STAGE)}")
        for key in STAGE:
            kind = (int, float) if key == "expansion" else int
            _check_positive(f"{where}.{key}", stage[key], kind)
        if bins % stage["frequency_stride"]:
            raise ValueError(
                f"{where}.frequency_stride: {bins} bins cannot be divided by "
                f"{stage['frequency_stride']}"
            )
        bins //= stage["frequency_stride"]
        width = size // stage["reduction"]
        if width == 0 or width % ATTENTION_HEADS:
            raise ValueError(
                f"{where}.reduction: {size} channels / {stage['reduction']} "
                f"are not a multiple of {ATTENTION_HEADS} attention heads"
            )


def check_frozen_stages(frozen_stages: int, stages: int) -> None:
    """Refuses a number of frozen stages that a network does not have.

    Example
    -------
    >>> check_frozen_stages(7, stages=6)
    Traceback (most recent call last):
    ValueError: frozen_stages: 7 is not one of 0 to 6, the network's stages
    """
    if type(frozen_stages) is not int or not 0 <= frozen_stages <= stages:
        raise ValueError(
            f"frozen_stages: {frozen_stages!r} is not one of 0 to {stages}, "
            "the network's stages"
        )


def _check_positive(name: str, value: Any, kind: Any) -> None:
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits or value <= 0:
        expected = "integer" if kind is int else "number"
        raise ValueError(f"{name}: {value!r} is not a positive {expected}")
