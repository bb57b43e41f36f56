"""Folders and files on disk: made, locked, written whole or not at all; no record's format.

Errors of the operating system keep their class and number, and say what to do.
"""

import errno
import os
import re
import socket
import sys
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

LOCK_NAME = ".rankmon.lock"

PathLike = str | os.PathLike[str]


def made_folder(folder: PathLike) -> Path:
    """The folder as a path, created with its parents where it was missing.

    Raises:
      ValueError: for a URL: the files are appended to, which object stores cannot do.
      OSError: where it cannot be created.
    """
    # One slash is what pathlib leaves of two; a drive has one letter.
    if re.match(r"\w{2,}:/", os.fspath(folder)):
        raise ValueError(
            f"expected a folder of a mounted file system, got {os.fspath(folder)!r}; write to a "
            "local folder and copy it afterwards"
        )
    path = Path(folder).expanduser()
    with _explained("a log folder that can be created", path):
        path.mkdir(parents=True, exist_ok=True)
    return path


class WholeFile:
    """A file that is appended to, unbuffered: a write that fails leaves nothing behind.

    A torn record in the middle of an event file would hide all that follows from TensorBoard, and
    a full disk tears records.
    """

    def __init__(self, path: Path, *, mode: str) -> None:
        """Opens the file.

        Args:
          path: of the file; its folder exists.
          mode: "ab" to go on with an existing file, "xb" to insist on a new one.

        Raises:
          FileExistsError: with "xb", where the file exists.
          OSError: where it cannot be written.
        """
        with _explained("a log file that can be written", path):
            self._file = FileIO(path, mode.removesuffix("b"))

    def write(self, data: bytes) -> None:
        """Appends all of the data, handed to the operating system on return.

        Raises:
          OSError: where that fails; the file is then as long as it was.
        """
        start = self._file.seek(0, os.SEEK_END)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException:
            with suppress(OSError):
                self._file.truncate(start)
            raise

    def flush(self) -> None:
        """Nothing: every write has reached the operating system."""

    def close(self) -> None:
        """Closes the file; a second time does nothing."""
        self._file.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._file.closed


def replace_file(path: PathLike, data: bytes) -> None:
    """Makes the file hold just this data; where that fails, what was there before stays.

    Raises:
      OSError: where it cannot be written.
    """
    target = Path(os.path.realpath(Path(path).expanduser()))
    with _explained("a file that can be written", target, choose="another file"):
        if target.exists() and not target.is_file():  # a device or a pipe: nothing to keep whole
            target.write_bytes(data)
            return
        beside = target.with_name(f".{target.name[:80]}.{os.getpid()}")
        try:
            beside.write_bytes(data)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)


class RunLock:
    """The right to write to a run folder: held by one at a time, in this process or any other.

    The operating system takes it back when the process ends, however it ends. The file
    `.rankmon.lock` stays behind and means nothing by itself.
    """

    def __init__(self, logdir: PathLike) -> None:
        """Takes the lock, and creates the folder where it is missing.

        Raises:
          BlockingIOError: where another writer has it.
          OSError: where the folder cannot be created or written.
        """
        path = made_folder(logdir) / LOCK_NAME
        with _explained("a log folder that can be written", path):
            self._file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
        try:
            _lock(self._file.fileno())
        except BlockingIOError as error:
            owner = self._file.read(200).decode(errors="replace").strip() or "another process"
            self._file.close()
            here = " (it is open in this process: call its close())" if owner == _me() else ""
            raise BlockingIOError(
                error.errno,
                f"expected a run folder that nobody writes to, got one that {owner} writes to; "
                f"close that monitor or writer first{here}, or use another logdir",
                str(path.parent),
            ) from None
        except OSError as error:
            warnings.warn(
                f"the file system of {path.parent} has no locks ({error.strerror}); make sure "
                "that only one run writes to this folder",
                stacklevel=2,
            )
        self._file.truncate(0)
        self._file.write(f"{_me()}\n".encode())
        _held.add(self._file)

    def release(self) -> None:
        """Gives the lock back; a second time does nothing."""
        if not self._file.closed:
            with suppress(OSError):  # the owner's name is only for others' error messages
                self._file.truncate(0)
            self._file.close()

    def __enter__(self) -> Self:
        """The lock itself, which is already held."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Gives the lock back."""
        self.release()


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


# A forked child (a data loader's worker) shares the parent's lock and would keep it alive after the
# parent's death; closing the child's copy gives up nothing of the parent's.
_held: "weakref.WeakSet[FileIO]" = weakref.WeakSet()


def _close_held() -> None:
    for file in list(_held):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_held)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        # Windows forbids others to read what is locked: lock one byte far beyond the owner's name.
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(errno.EAGAIN, "the folder is locked") from error
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def _explained(
    expected: str, path: Path, *, choose: str = "a logdir where you may write"
) -> Iterator[None]:
    """Adds to an OSError what was expected and what to do; its class and errno stay."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"expected {expected}, got '{error.strerror}'; choose {choose}",
            str(path),
        ) from error
