"""Writes that fail as on a full disk."""

import resource
from contextlib import contextmanager


@contextmanager
def files_limited_to(size: int):
    """The next writes past `size` bytes fail in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
