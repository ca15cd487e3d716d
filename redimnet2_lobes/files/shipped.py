"""Folders of this project that are no Python, wherever they are installed.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from pathlib import Path

import redimnet2_lobes


def shipped_folder(name: str) -> Path:
    """A folder that a wheel has in the package, and a checkout beside it.

    Example
    -------
    >>> (shipped_folder("hparams") / "redimnet2_b0.yaml").is_file()
    True
    """
    package = Path(redimnet2_lobes.__file__).parent
    folder = package / name
    return folder if folder.is_dir() else package.parent / name
