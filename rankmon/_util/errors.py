"""The error policy of a monitor: count errors, warn once of each kind, raise if the user asks.

Errors and warnings of a worker thread are kept until the user's thread asks for them. No locks are
used, because an interrupt could leave one locked. Each change is a single operation on a list, dict
or deque instead.
"""

import traceback
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from rankmon._util.warnings import keep_warnings, log_unseen, warn_user


class ErrorPolicy:
    """The error policy of one monitor; any thread may use it.

    Args:
      on_error: the reaction to an error: "warn" (once of its kind) or "raise".

    Attributes:
      kept: warnings and exceptions of the worker that the user has not seen yet. They are logged if
        the policy is garbage-collected before that.
    """

    def __init__(self, on_error: Literal["warn", "raise"]) -> None:
        self.kept: deque[str | BaseException] = deque()
        self._on_error = on_error
        self._counted: list[None] = []
        self._warned: dict[str, object] = {}
        weakref.finalize(self, log_unseen, self.kept)

    @property
    def errors(self) -> int:
        """The number of errors so far."""
        return len(self._counted)

    def guard(self, what: str, action: Any, *arguments: Any) -> Any:
        """Return the result of the action; if it fails, warn once and return None, or raise."""
        try:
            return action(*arguments)
        except Exception as error:
            self._counted.append(None)
            if self._on_error == "raise":
                raise
            kind = what.split(" at step")[0]  # the same failure at every step is one kind
            self.warn(f"{what} failed ({type(error).__name__}: {error})", key=kind)
            return None

    def warn(self, message: str, *, key: str | None = None) -> None:
        """Warn at the user's line of code, unless there was a warning with this key before."""
        mine = object()  # `setdefault` is atomic: only one of several threads stores its object
        if self._warned.setdefault(key or message.split(":")[0], mine) is not mine:
            return
        warn_user(message)

    def attempt(self, action: Callable[[], Any]) -> Any:
        """Run the action on a worker and return its result; keep warnings and error for `tell`."""
        result, error = self.outcome(action)
        if error is not None:
            # Keep the traceback as text: its frames would keep the monitor and the snapshot alive.
            error.add_note("on rankmon's worker: " + "".join(traceback.format_exception(error)))
            error.__traceback__ = error.__cause__ = error.__context__ = None
            self.kept.append(error)
        return result

    def outcome(self, action: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        """Run the action on a worker; return its result and error; keep warnings for `tell`."""
        outer = keep_warnings(self.kept.append)
        try:
            return action(), None
        except BaseException as error:  # noqa: BLE001  the user's thread raises it
            return None, error
        finally:
            keep_warnings(outer)

    def tell_warnings(self) -> None:
        """Issue the kept warnings at the user's line of code."""
        for kept in list(self.kept):
            if isinstance(kept, str):
                self.kept.remove(kept)
                warn_user(kept)

    def tell(self) -> None:
        """Issue the kept warnings at the user's line of code, then raise the first exception."""
        self.tell_warnings()
        errors = [kept for kept in list(self.kept) if isinstance(kept, BaseException)]
        for error in errors:
            self.kept.remove(error)
        if not errors:
            return
        first, *others = errors
        for other in others:
            first.add_note(f"rankmon: and then {type(other).__name__}: {other}")
        try:
            raise first
        finally:
            del errors, error, first, others  # its traceback refers to this frame
