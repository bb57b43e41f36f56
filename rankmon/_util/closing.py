"""A base class for context managers that close monitors and writers."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self


class ClosesOnExit(ABC):
    """A context manager that calls `close` at the end of its block."""

    @abstractmethod
    def close(self) -> Any:
        """Finish and close."""

    def _note_failure(self) -> None:  # noqa: B027  optional
        """Record that an exception has left the block; `close` is called next."""

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; if the block raised, add an error of `close` as a note to its exception."""
        if error is None:
            self.close()
            return
        self._note_failure()
        try:
            self.close()
        except Exception as trouble:  # noqa: BLE001  the block's own exception must be raised
            error.add_note(f"rankmon: and then {type(trouble).__name__}: {trouble}")
