"""What the monitor does about trouble: counts errors, warns once of each kind; measures nothing."""

from typing import Any, Literal

from rankmon._warnings import warn_user


class Trouble:
    """The error policy of one monitor.

    Args:
      on_error: what an error does: "warn" (once of its kind) or "raise".

    Attributes:
      errors: how many there were.
    """

    def __init__(self, on_error: Literal["warn", "raise"]) -> None:
        self.errors = 0
        self._on_error = on_error
        self._warned: set[str] = set()

    def guard(self, what: str, action: Any, *arguments: Any) -> Any:
        """The action's result; None and one warning where it fails, unless errors are to raise."""
        try:
            return action(*arguments)
        except Exception as error:
            self.errors += 1
            if self._on_error == "raise":
                raise
            kind = what.split(" at step")[0]
            self.warn(f"{what} failed ({type(error).__name__}: {error})", key=kind)
            return None

    def warn(self, message: str, *, key: str | None = None) -> None:
        """Warns, at the user's line, unless there was a warning of this key."""
        key = key or message.split(":")[0]
        if key in self._warned:
            return
        self._warned.add(key)
        warn_user(message)
