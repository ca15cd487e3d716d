"""Checks of what a YAML file gives to the losses and schedules.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
from numbers import Real


def require_number(
    key: str, value: object, lowest: float = 0, highest: float = math.inf
) -> None:
    """Refuses, with a ValueError, what is no number within the limits.

    Example
    -------
    >>> require_number("margin", -1)
    Traceback (most recent call last):
    ValueError: margin must be a number from 0 to inf, got -1
    """
    if not isinstance(value, Real) or not lowest <= value <= highest:
        raise ValueError(
            f"{key} must be a number from {lowest} to {highest}, got {value!r}"
        )


def require_positive(key: str, value: object) -> None:
    """Refuses, with a ValueError, what is no number greater than 0.

    Example
    -------
    >>> require_positive("epochs", None)
    Traceback (most recent call last):
    ValueError: epochs must be a number greater than 0, got None
    """
    if not isinstance(value, Real) or not value > 0:
        raise ValueError(
            f"{key} must be a number greater than 0, got {value!r}"
        )
