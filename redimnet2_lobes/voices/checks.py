"""What may be kept of a voice: its name, a note of consent, its prototypes.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
import unicodedata
from collections.abc import Sequence

import torch

LONGEST_NAME = 200  # characters
LONGEST_NOTE = 1000
UNKNOWN = "unknown"  # what the commands print of nobody
JOINERS = str.maketrans("", "", "\u200c\u200d")  # within words of some scripts


def checked_text(key: str, text: str, longest: int = LONGEST_NAME) -> str:
    """One line of text, in which equal letters are equal characters (NFC).

    Raises
    ------
    ValueError
        If it is empty, too long or no printable line.

    Example
    -------
    >>> checked_text("name", "Zoe\u0308") == "Zoë"
    True
    >>> checked_text("name", "anna ")
    Traceback (most recent call last):
    ValueError: name: expected one line of 1 to 200 printable characters, \
without white space around it, not 'anna '
    """
    if key == "name" and text == UNKNOWN:
        raise ValueError(f"name: {UNKNOWN} stands for nobody; take another")
    if isinstance(text, str):
        plain = unicodedata.normalize("NFC", text)
        shown = plain.translate(JOINERS)
        if shown.isprintable() and shown == shown.strip() != "":
            if len(plain) <= longest:
                return plain
            text = f"{plain[:20]}..."
    raise ValueError(
        f"{key}: expected one line of 1 to {longest} printable characters, "
        f"without white space around it, not {text!r}"
    )


def checked_embeddings(
    key: str, embeddings: torch.Tensor, size: int | None = None
) -> torch.Tensor:
    """Embeddings [utterances, embedding] in float32 on the CPU.

    Raises
    ------
    ValueError
        If they are none, have not ``size`` values, or one is zero or not
        finite.

    Example
    -------
    >>> checked_embeddings("prototypes", torch.zeros(1, 2))
    Traceback (most recent call last):
    ValueError: prototypes: embedding 1 is zero or not finite
    """
    if embeddings.ndim != 2 or not embeddings.numel():
        raise ValueError(
            f"{key}: expected embeddings [utterances, embedding], not "
            f"{[*embeddings.shape]}"
        )
    if size not in (None, embeddings.shape[1]):
        raise ValueError(
            f"{key}: embeddings of {embeddings.shape[1]} values, not of {size}"
        )
    embeddings = embeddings.detach().to("cpu", torch.float32)
    lengths = torch.linalg.vector_norm(embeddings, dim=1)
    wrong = ~((lengths > 1e-12) & lengths.isfinite())
    if wrong.any():
        row = int(wrong.nonzero()[0]) + 1
        raise ValueError(f"{key}: embedding {row} is zero or not finite")
    return embeddings


def check_seconds(seconds: Sequence[float], count: int) -> None:
    """Refuses what is not the seconds of speech of each of the prototypes.

    Example
    -------
    >>> check_seconds([2.5, -1], 2)
    Traceback (most recent call last):
    ValueError: seconds: expected 2 numbers greater than 0, not [2.5, -1]
    """
    if len(seconds) != count or not all(
        0 < each < math.inf for each in seconds
    ):
        raise ValueError(
            f"seconds: expected {count} numbers greater than 0, not {seconds}"
        )
