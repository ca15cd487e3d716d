"""A folder that one process at a time may write.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator

from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)
_locked: set[int] = set()  # descriptors of folders


def _close_in_child() -> None:
    # A worker may outlive its killed parent, and would keep the lock.
    while _locked:
        os.close(_locked.pop())


os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def only_writer(folder: str | os.PathLike, writer: str) -> Iterator[None]:
    """Makes and locks a folder, so that no second process writes it.

    The kernel lets go of the lock whatever ends the process. On a file system
    without locks there is a warning. ``writer`` is for messages.

    Raises
    ------
    OSError
        If another process writes it.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> with only_writer(folder, "training"):
    ...     try:
    ...         with only_writer(folder, "training"):
    ...             pass
    ...     except OSError as error:
    ...         print(str(error).removeprefix(str(folder)))
    : another training is writing it; wait until it has ended, or choose \
another folder
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{folder}: cannot be made ({error.strerror}); choose another "
            "folder"
        ) from error
    descriptor = os.open(folder, os.O_RDONLY)
    _locked.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(
                f"{folder}: another {writer} is writing it; wait until it has "
                "ended, or choose another folder"
            ) from None
        except OSError as error:
            logger.warning(
                f"{folder} cannot be locked ({error.strerror}): take care that "
                f"no second {writer} writes it"
            )
        yield
    finally:
        if descriptor in _locked:  # else in a child
            _locked.remove(descriptor)
            os.close(descriptor)
