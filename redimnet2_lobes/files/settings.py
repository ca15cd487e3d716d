"""Checks of settings, so that a wrong one is named before it does harm.

Those of a YAML are checked together by key, arguments of a class one by one.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
import typing
from collections.abc import Mapping
from types import NoneType, UnionType

import torch

from redimnet2_lobes.files.error_lines import one_line

TYPES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    list: "a list such as []",
    dict: "a mapping such as {}",
}


def check_types(hparams: Mapping, **types: typing.Any) -> None:
    """Checks values that are used as they are, so that none fails later.

    The type of each key is one of ``TYPES``, such as ``str``, of which a list
    or mapping may say what it holds, ``list[str]``, or several of them, as
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
    >>> check_types({"folder": 2024}, folder=str)
    Traceback (most recent call last):
    ValueError: folder: expected text, not 2024; for a file or folder of that \
name write ./ before it
    """
    for key, annotated in types.items():
        value = hparams[key]
        kinds = [annotated]
        if typing.get_origin(annotated) is UnionType:
            kinds = [*typing.get_args(annotated)]
        if any(_fits(value, kind) for kind in kinds):
            continue
        expected = [
            TYPES[typing.get_origin(kind) or kind]
            for kind in kinds
            if kind is not NoneType
        ]
        remedy = ""
        if str in kinds and not isinstance(value, str):
            remedy = "; for a file or folder of that name write ./ before it"
        raise ValueError(
            f"{key}: expected {' or '.join(expected)}, not {_shown(value)}"
            f"{remedy}"
        )


def _shown(value: object) -> str:
    """A value as a YAML has it."""
    return "null" if value is None else repr(value)


def _fits(value: object, kind: typing.Any) -> bool:
    """Whether a value, with all that it holds, is of a type."""
    if kind is float:
        return type(value) in (int, float)
    if type(value) is not (typing.get_origin(kind) or kind):
        return False
    content = typing.get_args(kind)
    if isinstance(value, list) and content:
        return all(_fits(each, *content) for each in value)
    if isinstance(value, dict) and content:
        of_keys, of_values = content
        return all(
            type(key) is of_keys and _fits(each, of_values)
            for key, each in value.items()
        )
    return value != ""


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
                    f"{key}: unknown value {_shown(value)}, expected one of "
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
