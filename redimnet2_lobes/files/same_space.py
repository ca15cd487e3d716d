"""What keeps embeddings, or figures made of them, says of which space they are.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import os

KEY = "embedding_space"  # of arrays, metadata and JSON
FILE = f"{KEY}.txt"  # in model folders


def check_same_space(
    source: str | os.PathLike,
    space: str | None,
    other: str | os.PathLike,
    expected: str,
) -> None:
    """Refuses, with a ValueError, what is of another space.

    Nothing is said of what is of before spaces had names, None.

    Example
    -------
    >>> check_same_space("a.npz", "redimnet2-b0-1", "b3", "redimnet2-b3-2")
    Traceback (most recent call last):
    ValueError: a.npz: of the embedding space redimnet2-b0-1, but b3 gives \
embeddings of redimnet2-b3-2, which cannot be compared; make it anew with that \
model
    """
    if space not in (None, expected):
        raise ValueError(
            f"{source}: of the embedding space {space}, but {other} gives "
            f"embeddings of {expected}, which cannot be compared; make it anew "
            "with that model"
        )
