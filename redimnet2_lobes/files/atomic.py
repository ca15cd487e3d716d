"""Files that appear under their name only when they are complete.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def complete_or_absent(path: str | os.PathLike) -> Iterator[Path]:
    """Writes a file elsewhere, and moves it when that has succeeded.

    An earlier file of the name stays until then. What is yielded is where to
    write: the name with ``.part`` behind, in the same folder. The OSError of a
    full disk names the file too.

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


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a file of text, in UTF-8, that appears when it is complete.

    Example
    -------
    >>> path = getfixture("tmp_path") / "results.txt"
    >>> write_text(path, "EER 1 %")
    >>> path.read_text()
    'EER 1 %'
    """
    with complete_or_absent(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_absent(path: str | os.PathLike, key: str = "output") -> None:
    """Refuses to write over what exists; ``key`` is the option that gave it.

    Example
    -------
    >>> check_absent("/")
    Traceback (most recent call last):
    ValueError: output: / exists already; choose another, or delete it
    """
    # With ``..`` behind a folder that is made first, as ``new/../a.npz``.
    if os.path.exists(os.path.realpath(path)):
        raise ValueError(
            f"{key}: {path} exists already; choose another, or delete it"
        )


def is_folder(path: str | os.PathLike) -> bool:
    """Whether a name is that of a folder, there or not, and of no file.

    Example
    -------
    >>> is_folder("no/such/folder/"), is_folder(".."), is_folder("a.npz")
    (True, True, False)
    """
    name = os.path.basename(os.fspath(path))
    return name in ("", os.curdir, os.pardir) or os.path.isdir(path)


def check_new_file(path: str | os.PathLike, key: str = "output") -> None:
    """Refuses, with a ValueError, what cannot be the name of a new file.

    ``path`` is as the user wrote it: a Path has lost a slash at its end.

    Example
    -------
    >>> check_new_file("embeddings/")
    Traceback (most recent call last):
    ValueError: output: embeddings/ is a folder; name a file in it
    """
    if is_folder(path):
        raise ValueError(f"{key}: {path} is a folder; name a file in it")
    check_absent(path, key)


def replace_when_synced(
    partial: str | os.PathLike, path: str | os.PathLike
) -> None:
    """``os.replace`` of a file or folder, safe against a power failure.

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
        if not content.is_symlink():
            _sync(content)
    _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Has the system write a file, or the names in a folder, to the disk."""
    # Not every file system (or Windows) can do so with a folder.
    suppressed = (OSError,) if path.is_dir() else ()
    with contextlib.suppress(*suppressed):
        descriptor = os.open(path, os.O_RDONLY if suppressed else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
