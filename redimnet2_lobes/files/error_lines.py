"""Programs that end with one line in place of a traceback.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import logging
import sys
from collections.abc import Iterator

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with one line if what it was given is wrong.

    A ValueError or OSError becomes exit code 1, Ctrl-C becomes 130. Anything
    else is a bug and keeps its traceback.

    Example
    -------
    >>> with one_line_errors():
    ...     open("no.wav")
    Traceback (most recent call last):
    SystemExit: error: no.wav: No such file or directory
    """
    try:
        yield
    except (ValueError, OSError) as error:
        logger.debug("Where the error arose:", exc_info=True)
        sys.exit(f"error: {one_line(error)}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def one_line(error: Exception) -> str:
    r"""The message of an exception, in one line.

    Example
    -------
    >>> one_line(ValueError("two\n  lines"))
    'two lines'
    >>> one_line(FileNotFoundError(2, "No such file or directory", "a.wav"))
    'a.wav: No such file or directory'
    """
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = str(error)
    if text.startswith("Caught "):  # in a worker of a DataLoader
        text = text.splitlines()[-1].split(": ", maxsplit=1)[-1]
    if isinstance(error, TypeError):  # hyperpyyaml adds the class in front
        text = ": ".join(str(argument) for argument in error.args)
    elif isinstance(error, KeyError):
        text = f"{error} is missing"
    return " ".join(text.split()) or type(error).__name__
