"""Recognize a forked process, in which a monitor made before the fork must not be used."""

import os

from rankmon._util.warnings import warn_user

# Cached: the system call would double the time of a call that is not due.
_process = [os.getpid()]


def _note_fork() -> None:
    _process[0] = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


class Home:
    """The process in which a monitor was made."""

    def __init__(self) -> None:
        self._process = _process[0]
        self._warned = False

    def is_elsewhere(self) -> bool:
        """Return whether this is a forked process; warn at the first call in it.

        No lock is used, because a thread that does not exist after the fork may hold it.
        """
        if _process[0] == self._process:
            return False
        if not self._warned:
            self._warned = True
            warn_user(
                f"expected the monitor to be used in process {self._process}, which made it, got a "
                f"call in the forked process {_process[0]}; nothing is measured or written here: "
                "make a monitor with a logdir of its own in the fork, or call this one in its own "
                "process"
            )
        return True
