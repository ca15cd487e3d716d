"""Files that appear under their name only when they are complete.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import errno
import os
from pathlib import Path

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def complete_or_absent(path):
    """Writes a file elsewhere, and moves it when that has succeeded.

    An earlier file of the name stays until then.

    Arguments
    ---------
    path : str or os.PathLike
        The file to write.

    Yields
    ------
    pathlib.Path
        Where to write it: the name with ``.part`` behind, in the same folder.

    Raises
    ------
    OSError
        If it cannot be written; of a full disk too it names the file.

    Example
    -------
    >>> path = getfixture("tmp_path") / "results.json"
    >>> with complete_or_absent(path) as partial:
    ...     _ = partial.write_text("{}")
    ...     path.exists()
    False
    >>> path.read_text()
    '{}'
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.part")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.filename is None and error.errno in NO_SPACE:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)
