"""Folders and files on disk: created, locked, and written whole or not at all.

Errors of the operating system keep their class and number, and say what to do.
"""

import errno
import os
import re
import socket
import stat
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

LOCK_NAME = ".rankmon.lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk, a quota, a file's size

PathLike = str | os.PathLike[str]


def absolute_folder(folder: PathLike) -> Path:
    """Return the folder as an absolute path, which a later `os.chdir` does not change.

    Raises:
      ValueError: for a URL: the files are appended to, which object stores cannot do.
      OSError: if it is relative and the working directory was removed.
    """
    # One slash is what pathlib leaves of two; a drive has one letter.
    if re.match(r"\w{2,}:/", os.fspath(folder)):
        raise ValueError(
            f"expected a folder of a mounted file system, got {os.fspath(folder)!r}; write to a "
            "local folder and copy it afterwards"
        )
    path = Path(folder).expanduser()
    with _explained("a working directory that exists", path):
        return path.absolute()


def made_folder(folder: PathLike) -> Path:
    """Return the folder as an absolute path, created with its parents if it is missing.

    Raises:
      ValueError: for a URL.
      OSError: if it cannot be created.
    """
    path = absolute_folder(folder)
    with _explained("a log folder that can be created", path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def check_no_pipe(path: Path) -> None:
    """Refuse a path that blocks when it is opened or written to.

    Raises:
      OSError: for a named pipe, a socket or a block device.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # opening it says what is wrong
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
        raise OSError(
            errno.EINVAL,
            f"expected a regular file, got {stat.filemode(mode)}, a pipe, socket or device; "
            "remove it, or choose another logdir",
            str(path),
        )


class WholeFile:
    """A file that is appended to, unbuffered: a write that fails leaves nothing behind.

    A torn record in the middle of an event file would hide all that follows from TensorBoard, and
    a full disk tears records. A forked process has it closed: two would write into each other.
    """

    def __init__(self, path: Path, *, mode: str) -> None:
        """Open the file.

        Args:
          path: the file; its folder exists.
          mode: "ab" to append to a file that may exist, "xb" to insist on a new one.

        Raises:
          FileExistsError: with "xb", if the file exists.
          OSError: if it cannot be written.
        """
        self.path = path
        check_no_pipe(path)
        with _explained("a log file that can be written", path):
            self._file = FileIO(path, f"{mode.removesuffix('b')}+")
            self._size = self._file.seek(0, os.SEEK_END)
        self._lock = _locks.get(path.parent)
        _held.add(self._file)

    def write(self, data: bytes) -> None:
        """Append all of the data, handed to the operating system on return.

        Raises:
          OSError: if that fails; the file is then as long as it was.
          ValueError: for a file that is closed.
        """
        self._check_open()
        start = self._file.seek(0, os.SEEK_END)
        rest = memoryview(data)
        try:
            with _explained("a log file that can be written", self.path):
                while rest:
                    rest = rest[self._file.write(rest) :]
        except BaseException:
            with suppress(OSError):
                self._file.truncate(start)
            raise
        self._size = start + len(data)

    def keep_lock(self) -> None:
        """Keep the lock under which the file was opened, if there is one.

        Raises:
          OSError: as `RunLock.keep` does.
        """
        if self._lock is not None:
            self._lock.keep()

    def is_lost(self) -> bool:
        """Return whether the file was removed, moved, replaced or cut since the last write.

        Raises:
          ValueError: for a file that is closed.
        """
        self._check_open()
        return not (_is_at(self._file, self.path) and self.is_whole())

    def append_all_of(self, lost: "WholeFile") -> None:
        """Append the contents of a lost file: a removed file can be read as long as it is open.

        Raises:
          OSError: if this file cannot be written; it is then as long as it was.
        """
        start = self._size
        try:
            lost._file.seek(0)
            while chunk := lost._file.read(1 << 20):
                self.write(chunk)
        except BaseException:
            with suppress(OSError):
                self._file.truncate(start)
            self._size = start
            raise

    def put_back(self) -> None:
        """Write the file's contents back to its path, from which it was removed.

        Raises:
          OSError: if that fails; there is no file at the path then.
        """
        file = WholeFile(self.path, mode="xb")
        try:
            file.append_all_of(self)
        except BaseException:
            file.discard()
            raise
        file.close()

    def is_whole(self) -> bool:
        """Return whether the file still holds all that was written to it, wherever it is."""
        try:
            status = os.fstat(self._file.fileno())
        except OSError:  # a network's file system has forgotten it
            return False
        return status.st_size >= self._size or not stat.S_ISREG(status.st_mode)

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(
                f"expected {self.path} to be open, got one that is closed, by close() or in a "
                "forked process; open a writer with a logdir of its own there"
            )

    def close(self) -> None:
        """Close the file; closing it again is allowed."""
        self._file.close()

    def discard(self) -> None:
        """Close the file and remove it, as far as that is possible."""
        self.close()
        with suppress(OSError):
            self.path.unlink()

    def flush(self) -> None:
        """Return at once: every write has reached the operating system."""

    @property
    def size(self) -> int:
        """The length after the last write."""
        return self._size

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._file.closed


def replace_file(path: PathLike, data: bytes) -> None:
    """Replace the contents of the file; if that fails, its old contents stay.

    Raises:
      OSError: if it cannot be written.
    """
    target = Path(os.path.realpath(Path(path).expanduser()))
    with _explained("a file that can be written", target, choose="another file"):
        if target.exists() and not target.is_file():  # a device or a pipe: nothing to keep whole
            target.write_bytes(data)
            return
        # Not named after the target: a kill may leave it, and TensorBoard reads every file with
        # "tfevents" in its name.
        beside = target.with_name(f".rankmon-{os.getpid()}-{threading.get_ident()}.tmp")
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
        """Take the lock, and create the folder if it is missing.

        Raises:
          BlockingIOError: if another writer has the lock.
          OSError: if the folder cannot be created or written.
        """
        self._path = made_folder(logdir) / LOCK_NAME
        self._file = _locked(self._path)
        self._successor: BlockingIOError | None = None
        _locks[self._path.parent] = self

    def keep(self) -> None:
        """Take the lock again if its file was removed, since others could take it now.

        Raises:
          BlockingIOError: if another writer has taken it; the folder stays that writer's.
          OSError: if the folder cannot be created or written.
        """
        if self._successor is not None:
            raise BlockingIOError(*self._successor.args, self._successor.filename)
        if self._file.closed or _is_at(self._file, self._path):
            return
        made_folder(self._path.parent)
        try:
            file = _locked(self._path)
        except BlockingIOError as error:
            self._successor = error.with_traceback(None)
            raise
        self._file.close()
        self._file = file

    def release(self) -> None:
        """Give the lock back; giving it back again is allowed."""
        if not self._file.closed:
            with suppress(OSError):  # the owner's name is only for others' error messages
                self._file.truncate(0)
            self._file.close()

    def __enter__(self) -> Self:
        """Return the lock itself, which is already held."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the lock back."""
        self.release()


# The latest lock of each folder: files that are opened there belong to it.
_locks: "weakref.WeakValueDictionary[Path, RunLock]" = weakref.WeakValueDictionary()


def _locked(path: Path) -> FileIO:
    """Return the lock's file, open and locked."""
    check_no_pipe(path)
    with _explained("a log folder that can be written", path):
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
    try:
        _take(file, path.parent)
    except BaseException:
        file.close()
        raise
    with suppress(OSError):  # a full disk; the owner's name is only for others' error messages
        file.truncate(0)
        file.write(f"{_me()}\n".encode())
    _held.add(file)
    return file


def _take(file: FileIO, folder: Path) -> None:
    try:
        _lock(file.fileno())
    except BlockingIOError as error:
        owner = file.read(200).decode(errors="replace").strip() or "another process"
        here = " (it is open in this process: call its close())" if owner == _me() else ""
        raise BlockingIOError(
            error.errno,
            f"expected a run folder that nobody writes to, got one that {owner} writes to; "
            f"close that monitor or writer first{here}, or use another logdir",
            str(folder),
        ) from None
    except OSError as error:
        warnings.warn(
            f"the file system of {folder} has no locks ({error.strerror}); make sure "
            "that only one run writes to this folder",
            stacklevel=4,
        )


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _is_at(file: FileIO, path: Path) -> bool:
    """Return whether the path still names the open file; so too if nobody can tell."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


# A forked child (a data loader's worker) shares the parent's lock and would keep it alive after the
# parent's death; closing the child's copies gives up nothing of the parent's.
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
    """Add to an OSError what was expected and what to do; its class and errno stay."""
    try:
        yield
    except OSError as error:
        free = "free some space there, or " if error.errno in _FULL else ""
        raise OSError(
            error.errno,
            f"expected {expected}, got '{error.strerror}'; {free}choose {choose}",
            str(path),
        ) from error
