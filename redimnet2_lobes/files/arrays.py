"""Reading NumPy's ``.npz`` archives that may be damaged, or anything else.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import os
import zipfile
import zlib

import numpy as np


def read_arrays(path: str | os.PathLike, *names: str) -> list[np.ndarray]:
    """Reads arrays by name. No code in the file is run.

    Raises
    ------
    ValueError
        If the file is none of NumPy's archives, an array is missing, or it is
        damaged: a few words, without the path.

    Example
    -------
    >>> path = getfixture("tmp_path") / "arrays.npz"
    >>> np.savez(path, names=np.array(["a", "b"]))
    >>> read_arrays(path, "names", "vectors")
    Traceback (most recent call last):
    ValueError: vectors is missing
    """
    # Opened here: what fails from there on is the file's content.
    with open(path, "rb") as file:
        try:
            # NumPy would take other kinds of files too.
            with zipfile.ZipFile(file) as archive:
                for name in names:
                    if f"{name}.npy" not in archive.namelist():
                        raise ValueError(f"{name} is missing")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return [arrays[name] for name in names]
        except (
            *(ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error),
            RuntimeError,  # encrypted, or an unknown compression
        ) as error:
            raise ValueError(str(error).partition("\n")[0]) from error
