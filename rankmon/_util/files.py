"""Create and lock folders, and write files completely or not at all.

Errors of the operating system keep their class and errno; a remedy is added to the message.
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
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota or the largest file size

PathLike = str | os.PathLike[str]


def absolute_folder(folder: PathLike) -> Path:
    """Return the folder as an absolute path, which a later `os.chdir` does not change.

    Raises:
      ValueError: for a URL, because object stores do not support appending to files.
      OSError: if the path is relative and the working directory was removed.
    """
    # pathlib reduces two slashes to one; a single letter would be a drive.
    if re.match(r"\w{2,}:/", os.fspath(folder)):
        raise ValueError(
            f"expected a folder of a mounted file system, got {os.fspath(folder)!r}; write to a "
            "local folder and copy it as it grows: "
            f"writers=[rankmon.writers.MirrorWriter(logdir, {os.fspath(folder)!r})]"
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
    """Refuse a file that can block when it is opened or written.

    Raises:
      OSError: for a named pipe, a socket or a block device.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # opening it will raise a better error
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
        raise OSError(
            errno.EINVAL,
            f"expected a regular file, got {stat.filemode(mode)}, a pipe, socket or device; "
            "remove it, or choose another logdir",
            str(path),
        )


class WholeFile:
    """An unbuffered file that is only appended to; a write that fails leaves the file unchanged.

    With a full disk, a write may be incomplete. TensorBoard would not read anything after an
    incomplete record in the middle of an event file. In a forked process the file is closed, so
    that two processes never write to it.
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
        """Append the data; when this returns, the operating system has all of it.

        Raises:
          OSError: if that fails; the file then keeps its former length.
          ValueError: if the file is closed.
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
        """Keep the lock under which the file was opened, if any.

        Raises:
          OSError: as `RunLock.keep` does.
        """
        if self._lock is not None:
            self._lock.keep()

    def is_lost(self) -> bool:
        """Return whether the file was removed, moved, replaced or truncated since the last write.

        Raises:
          ValueError: if the file is closed.
        """
        self._check_open()
        return not (_is_at(self._file, self.path) and self.is_whole())

    def append_all_of(self, lost: "WholeFile") -> None:
        """Append the contents of a lost file, which can be read while it is open.

        Raises:
          OSError: if this file cannot be written; it then keeps its former length.
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
        """Write the contents of a removed file to its path again.

        Raises:
          OSError: if that fails; then no file is left at the path.
        """
        file = WholeFile(self.path, mode="xb")
        try:
            file.append_all_of(self)
        except BaseException:
            file.discard()
            raise
        file.close()

    def is_whole(self) -> bool:
        """Return whether the file, even if moved or removed, still has all written data."""
        try:
            status = os.fstat(self._file.fileno())
        except OSError:  # a network file system no longer has it
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
        """Close the file and try to remove it."""
        self.close()
        with suppress(OSError):
            self.path.unlink()

    def flush(self) -> None:
        """Return at once, because every write goes directly to the operating system."""

    @property
    def size(self) -> int:
        """The length of the file after the last write."""
        return self._size

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return self._file.closed


def replace_file(path: PathLike, data: bytes) -> None:
    """Replace the contents of the file; if that fails, keep the old contents.

    Raises:
      OSError: if it cannot be written.
    """
    target = Path(os.path.realpath(Path(path).expanduser()))
    with _explained("a file that can be written", target, choose="another file"):
        if target.exists() and not target.is_file():  # no old contents to keep
            target.write_bytes(data)
            return
        # Not named after the target: if the process is killed, the temporary file stays behind, and
        # TensorBoard reads every file with "tfevents" in its name.
        beside = target.with_name(f".rankmon-{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            beside.write_bytes(data)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)


class RunLock:
    """A lock on a run folder: only one writer, in this or any other process, can hold it.

    The operating system releases the lock when the process ends, even if it is killed. The file
    `.rankmon.lock` stays behind, but does not lock the folder by itself.
    """

    def __init__(self, logdir: PathLike) -> None:
        """Take the lock, and create the folder if it is missing.

        Raises:
          BlockingIOError: if another writer holds the lock.
          OSError: if the folder cannot be created or written.
        """
        self._path = made_folder(logdir) / LOCK_NAME
        self._file = _locked(self._path)
        self._successor: BlockingIOError | None = None
        _locks[self._path.parent] = self

    def keep(self) -> None:
        """Take the lock again if its file was removed, because others could take it then.

        Raises:
          BlockingIOError: if another writer has taken the lock, and keeps it.
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
        """Release the lock; releasing it again is allowed."""
        if not self._file.closed:
            with suppress(OSError):  # the owner's name is only used in error messages
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
        """Release the lock."""
        self.release()


# The latest lock of each folder; files that are opened in the folder belong to it.
_locks: "weakref.WeakValueDictionary[Path, RunLock]" = weakref.WeakValueDictionary()


def _locked(path: Path) -> FileIO:
    """Open the lock's file, lock it, and return it."""
    check_no_pipe(path)
    with _explained("a log folder that can be written", path):
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
    try:
        _take(file, path.parent)
    except BaseException:
        file.close()
        raise
    with suppress(OSError):  # a full disk; the owner's name is only used in error messages
        file.truncate(0)
        file.write(f"{_me()}\n".encode())
    _held.add(file)
    return file


def _take(file: FileIO, folder: Path) -> None:
    """Lock the file, or raise an error that names its owner; warn if locks are not supported."""
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
    """Return whether the path still refers to the open file; True if that is unknown."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


# A forked child (a data loader's worker) shares the parent's lock and would hold it after the
# parent's death. Closing the child's copies does not release the parent's lock.
_held: "weakref.WeakSet[FileIO]" = weakref.WeakSet()


def _close_held() -> None:
    for file in list(_held):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_held)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        # On Windows others cannot read locked bytes: lock one byte far beyond the owner's name.
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
    """Add the expectation and the remedy to an OSError; keep its class and errno."""
    try:
        yield
    except OSError as error:
        free = "free some space there, or " if error.errno in _FULL else ""
        raise OSError(
            error.errno,
            f"expected {expected}, got '{error.strerror}'; {free}choose {choose}",
            str(path),
        ) from error
