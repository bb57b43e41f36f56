"""What the monitor does about trouble: counts errors, warns once of each kind; measures nothing.

Trouble of a worker thread is kept until the user's thread asks for it.
"""

import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from rankmon._warnings import log_unseen, warn_user


class Trouble:
    """The error policy of one monitor; any thread may use it.

    Args:
      on_error: what an error does: "warn" (once of its kind) or "raise".

    Attributes:
      errors: how many there were.
      kept: warnings and exceptions of the worker that nobody was told yet; they are logged where
        that never happens.
    """

    def __init__(self, on_error: Literal["warn", "raise"]) -> None:
        self.errors = 0
        self.kept: deque[str | BaseException] = deque()
        self._on_error = on_error
        self._warned: set[str] = set()
        self._lock = threading.Lock()
        self._thread = threading.local()
        weakref.finalize(self, log_unseen, self.kept)

    def guard(self, what: str, action: Any, *arguments: Any) -> Any:
        """The action's result; None and one warning where it fails, unless errors are to raise."""
        try:
            return action(*arguments)
        except Exception as error:
            with self._lock:
                self.errors += 1
            if self._on_error == "raise":
                raise
            kind = what.split(" at step")[0]
            self.warn(f"{what} failed ({type(error).__name__}: {error})", key=kind)
            return None

    def warn(self, message: str, *, key: str | None = None) -> None:
        """Warns, at the user's line, unless there was a warning of this key."""
        key = key or message.split(":")[0]
        with self._lock:
            if key in self._warned:
                return
            self._warned.add(key)
        if getattr(self._thread, "keeps", False):
            self.kept.append(message)
        else:
            warn_user(message)

    def attempt(self, action: Callable[[], Any]) -> Any:
        """The action's result, on a worker: its warnings, and what it raises, wait for `tell`."""
        outer, self._thread.keeps = getattr(self._thread, "keeps", False), True
        try:
            return action()
        except BaseException as error:  # noqa: BLE001  the user's thread raises it
            # As text: its frames would keep the monitor alive, and the snapshot.
            error.add_note("on rankmon's worker: " + "".join(traceback.format_exception(error)))
            error.__traceback__ = error.__cause__ = error.__context__ = None
            self.kept.append(error)
            return None
        finally:
            self._thread.keeps = outer

    def tell(self) -> None:
        """Gives the warnings that were kept at the user's line, then raises the first exception."""
        errors = []
        while self.kept:
            trouble = self.kept.popleft()
            if isinstance(trouble, str):
                warn_user(trouble)
            else:
                errors.append(trouble)
        if not errors:
            return
        first, *others = errors
        for other in others:
            first.add_note(f"rankmon: and then {type(other).__name__}: {other}")
        try:
            raise first
        finally:
            del errors, first, others  # its traceback holds this frame
