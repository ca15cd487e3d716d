"""Checks of settings, so that a wrong one is named before it does harm.

Those of a YAML are checked together by key, arguments of a class one by one.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
import typing
from collections.abc import Mapping

import torch

from redimnet2_lobes.files.error_lines import one_line

TYPES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    list: "a list such as []",
}


def check_types(hparams: Mapping, **types: typing.Any) -> None:
    """Checks values that are used as they are, so that none fails later.

    The type of each key is one of ``TYPES``, or such a type or None, as
    ``int | None``. float takes an int as well.

    Raises
    ------
    ValueError
        If a value has another type, or a text is empty.

    Example
    -------
    >>> hparams = {"lr": 1, "name": "b0", "crops": None}
    >>> check_types(hparams, lr=float, name=str, crops=int | None)
    >>> check_types({"lr": "high"}, lr=float)
    Traceback (most recent call last):
    ValueError: lr: expected a number, not 'high'
    """
    for key, annotated in types.items():
        value = hparams[key]
        expected, *or_none = typing.get_args(annotated) or (annotated,)
        if value is None and or_none:
            continue
        fits = type(value) is expected
        if expected is float:
            fits = type(value) in (int, float)
        if not fits or value == "":
            raise ValueError(
                f"{key}: expected {TYPES[expected]}, not {value!r}"
            )


def check_at_least(hparams: Mapping, **lowest: float) -> None:
    """Checks numbers, unless they are None, against their lowest value.

    Example
    -------
    >>> check_at_least({"batch_size": 0}, batch_size=1)
    Traceback (most recent call last):
    ValueError: batch_size: 0 is less than 1
    """
    for key, limit in lowest.items():
        if hparams[key] is not None and not hparams[key] >= limit:
            raise ValueError(f"{key}: {hparams[key]} is less than {limit}")


def check_choices(hparams: Mapping, **choices: typing.Iterable) -> None:
    """Checks values, or each value of a list, against those that there are.

    Example
    -------
    >>> check_choices({"variant": "b7"}, variant=("b0", "b1"))
    Traceback (most recent call last):
    ValueError: variant: unknown value 'b7', expected one of b0, b1
    """
    for key, known in choices.items():
        values = hparams[key]
        for value in values if isinstance(values, list) else [values]:
            if value not in tuple(known):
                raise ValueError(
                    f"{key}: unknown value {value!r}, expected one of "
                    f"{', '.join(filter(None, known))}"
                )


def check_device(key: str, device: str | None) -> None:
    """Refuses, with a ValueError, a device that torch cannot use here.

    Example
    -------
    >>> check_device("device", "cpu")
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{key}: {device!r} cannot be used here ({one_line(error)})"
        ) from error


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
    if not isinstance(value, int | float) or not lowest <= value <= highest:
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
    if not isinstance(value, int | float) or not value > 0:
        raise ValueError(
            f"{key} must be a number greater than 0, got {value!r}"
        )
