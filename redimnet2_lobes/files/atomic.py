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
        replace_when_synced(partial, path)
    except OSError as error:
        if error.filename is None and error.errno in NO_SPACE:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def replace_when_synced(partial, path):
    """``os.replace``, but a power failure leaves no incomplete file either.

    Arguments
    ---------
    partial : str or os.PathLike
        A complete file, or a folder of such.
    path : str or os.PathLike
        Its final name, on the same file system.

    Raises
    ------
    OSError
        If it cannot be written to the disk, or not be moved.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "partial").mkdir()
    >>> _ = (folder / "partial" / "file").write_text("all")
    >>> replace_when_synced(folder / "partial", folder / "whole")
    >>> (folder / "whole" / "file").read_text()
    'all'
    """
    partial, path = Path(partial), Path(path)
    for content in partial.rglob("*"):
        _sync(content)
    _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)


def _sync(path):
    """Has the system write a file, or the names in a folder, to the disk."""
    # Not every file system (or Windows) can do so with a folder.
    suppressed = (OSError,) if path.is_dir() else ()
    with contextlib.suppress(*suppressed):
        descriptor = os.open(path, os.O_RDONLY if suppressed else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
