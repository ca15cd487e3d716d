"""Reading NumPy's ``.npz`` archives that may be damaged, or anything else.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import os
import zipfile

import numpy as np

from redimnet2_lobes.files.error_lines import one_line


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
            # NumPy would take other kinds of files too, and believes what a
            # damaged header says of its size before it compares checksums.
            with zipfile.ZipFile(file) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"{damaged}: its CRC is wrong")
                for name in names:
                    if f"{name}.npy" not in archive.namelist():
                        raise ValueError(f"{name} is missing")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                arrays = [archive[name] for name in names]
            for name, array in zip(names, arrays, strict=True):
                if not isinstance(array, np.ndarray):  # but bytes
                    raise ValueError(f"{name} is no array")
            return arrays
        except Exception as error:  # each compression has kinds of its own
            raise ValueError(one_line(error)) from error
