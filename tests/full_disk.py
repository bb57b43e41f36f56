"""Make writes fail as on a full disk."""

import resource
from contextlib import contextmanager


@contextmanager
def files_limited_to(size: int):
    """Make writes in this block fail beyond `size` bytes, in the middle of the data."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
