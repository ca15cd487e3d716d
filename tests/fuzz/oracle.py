"""What a reader may do with an input, and a check that it does no more."""

import contextlib
import dataclasses
import io
import logging
import os
import re
import resource
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st
from speechbrain.utils.importutils import LazyModule

from redimnet2_lobes.files.error_lines import one_line

# Where hypothesis asks all modules for their files, SpeechBrain would import
# those that it has put off, and fail where their packages are missing.
LazyModule.__file__ = None

SECONDS = 60  # of one input, a thousand times what most need
MORE_MEMORY = 2 * 2**30  # bytes, of addresses, not of memory that is used
STATUS = Path("/proc/self/statm")


class Hang(BaseException):
    """An input that is read without end; no ``except Exception`` stops it."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader.

    ``read`` is called with the path of an input, and asserts that what comes of
    it is right. ValueError and OSError are refusals: one line that names the
    file or its folder.
    """

    name: str
    file: str  # the name of an input
    inputs: Callable[[], st.SearchStrategy[bytes]]
    read: Callable[[Path], None]
    # Writes what has to lie beside the input.
    prepare: Callable[[Path], object] = lambda folder: None
    writes: str = "(?!)"  # pattern of paths that the reader may leave

    def check(self, data: bytes) -> bool:
        """Whether the reader accepts an input; anything wrong is an error."""
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            self.prepare(folder)
            path = folder / self.file
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            before = _listed(folder)
            accepted = True
            try:
                with _limits():
                    self.read(path)
            except (ValueError, OSError) as error:
                accepted = False
                _check_message(error, path, folder)
            left = {
                name
                for name in _listed(folder) - before
                if not re.fullmatch(self.writes, name)
            }
            assert not left, f"left behind: {left}"
            return accepted


def _listed(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _check_message(error: Exception, path: Path, folder: Path) -> None:
    if isinstance(error, UnicodeError):
        raise AssertionError("a bare UnicodeError") from error
    message = one_line(error)
    if "\n" in str(error) or not message:
        raise AssertionError(f"not one line: {error}") from error
    named = getattr(error, "path", None) or getattr(error, "filename", None)
    if not named and path.name not in message and str(folder) not in message:
        raise AssertionError(f"names no file: {message}") from error


@contextlib.contextmanager
def _limits():
    """Ends what takes too long or asks for too much memory, and is silent."""

    def end(*_):
        raise Hang(f"not read within {SECONDS} seconds")

    logging.disable(logging.WARNING)
    before = signal.signal(signal.SIGALRM, end)
    addresses = resource.getrlimit(resource.RLIMIT_AS)
    if STATUS.exists():  # Linux
        pages = int(STATUS.read_text().split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + MORE_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, addresses[1]))
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            yield
    finally:
        logging.disable(logging.NOTSET)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, addresses)
