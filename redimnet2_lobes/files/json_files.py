"""Reading JSON that may be damaged, or anything else.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import json
import os
import typing
from pathlib import Path


def read_json(path: str | os.PathLike) -> typing.Any:
    """Reads a file of JSON.

    Raises
    ------
    ValueError
        If it holds anything else, or a whole number of more than 64 bits: a few
        words, without the path.

    Example
    -------
    >>> path = getfixture("tmp_path") / "results.json"
    >>> _ = path.write_text("[" * 100_000)
    >>> read_json(path)
    Traceback (most recent call last):
    ValueError: no JSON
    """
    try:
        return json.loads(Path(path).read_bytes(), parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise ValueError("no JSON") from error


def _integer(text: str) -> int:
    # What Python reads beyond that no float and no array could hold.
    if abs(value := int(text)) >= 2**63:
        raise ValueError(f"{text} is too large")
    return value
