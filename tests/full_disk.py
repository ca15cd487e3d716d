"""A disk on which no file can grow beyond a limit."""

import contextlib
import resource


@contextlib.contextmanager
def full_disk(limit):
    """Within it, writing beyond so many bytes of a file is an OSError."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
