"""Objects in a forked process, where what they hold belongs to the process that made them."""

import os

from rankmon._warnings import warn_user


class Home:
    """The process in which a monitor was made."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._warned = False

    def is_elsewhere(self) -> bool:
        """Return whether this is a forked process; the first time there it warns.

        No lock is taken: a thread that the fork left behind may hold it.
        """
        if os.getpid() == self._process:
            return False
        if not self._warned:
            self._warned = True
            warn_user(
                f"expected the monitor to be used in process {self._process}, which made it, got a "
                f"call in the forked process {os.getpid()}; nothing is measured or written here: "
                "make a monitor with a logdir of its own in the fork, or call this one in its own "
                "process"
            )
        return True
