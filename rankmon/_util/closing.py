"""What monitors and writers have in common as context managers."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self


class ClosesOnExit(ABC):
    """A context manager that closes on the way out of its block."""

    @abstractmethod
    def close(self) -> Any:
        """Finish and close."""

    def _note_failure(self) -> None:  # noqa: B027  few have anything to note
        """Note that an exception leaves the block; `close` comes next."""

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; an exception in the block is not replaced by one from closing."""
        if error is None:
            self.close()
            return
        self._note_failure()
        try:
            self.close()
        except Exception as trouble:  # noqa: BLE001  the block's own exception is what counts
            error.add_note(f"rankmon: and then {type(trouble).__name__}: {trouble}")
