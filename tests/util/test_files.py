"""Test folders that cannot be written, and the lock on a run folder, also between processes."""

import errno
import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rankmon._util import files
from rankmon._util.files import RunLock
from rankmon.writers.jsonl import JsonlWriter
from rankmon.writers.tensorboard import TensorBoardWriter
from refusals import refused

OPENINGS = {
    "tensorboard": TensorBoardWriter,
    "jsonl": lambda folder: JsonlWriter(Path(folder) / "rankmon.jsonl"),
    "lock": RunLock,
}


@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
@pytest.mark.parametrize(
    ("folder", "error"),
    [("file/below", NotADirectoryError), ("file", FileExistsError), ("/proc/rankmon", OSError)],
    ids=["below a file", "a file", "read-only"],
)
def test_a_folder_that_cannot_be_made(tmp_path, opening, folder, error):
    (tmp_path / "file").touch()
    with refused(error, "log folder", "logdir"):
        opening(str(tmp_path / folder))


@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
def test_a_folder_that_cannot_be_written(opening):
    with refused(OSError, "written", "logdir"):
        opening("/proc")


@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
def test_a_url_is_refused(opening):
    for url in ("gs://bucket/run", Path("s3://bucket/run")):
        with refused(ValueError, "file system", f"'{str(url)[:2]}:/", "local folder"):
            opening(url)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.replace_file(path, b"first")
    files.replace_file(str(path), b"second")
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()

    def full(self: Path, data: bytes) -> None:
        with self.open("wb") as file:
            file.write(data[:2])
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with refused(OSError, "'no space left'", "another file"):
        files.replace_file(path, b"third")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes there")
def test_a_pipe_is_written_into(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    files.replace_file(tmp_path / "pipe", b"data")
    assert reader.communicate(timeout=30)[0] == b"data"
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_that_cannot_be_replaced(tmp_path):
    for path in (tmp_path, tmp_path / "missing" / "file"):
        with refused(OSError, "written", str(path), "another file"):
            files.replace_file(path, b"")


def test_a_second_writer_in_this_process_is_refused(tmp_path):
    with RunLock(tmp_path / "run") as lock:
        with refused(BlockingIOError, f"process {os.getpid()} on", "logdir"):
            RunLock(tmp_path / "run")
        RunLock(tmp_path / "other").release()
    lock.release()
    RunLock(tmp_path / "run").release()


# The lock's own module alone: importing all of rankmon takes seconds.
HOLD_AND_FORK = """
import os, runpy, sys, time

lock = runpy.run_path(sys.argv[1])["RunLock"](sys.argv[2])
ready, done = os.pipe()
child = os.fork()
if child == 0:
    os.write(done, b"x")
    time.sleep(60)
    os._exit(0)
os.read(ready, 1)
print(child, flush=True)
time.sleep(60)
"""


def test_another_process_keeps_the_lock_until_it_is_dead_and_its_forks_do_not(tmp_path):
    command = [sys.executable, "-c", HOLD_AND_FORK, inspect.getfile(RunLock), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            with refused(BlockingIOError, f"process {process.pid} on"):
                RunLock(tmp_path)
            process.kill()
            process.wait(timeout=30)
            os.kill(child, 0)  # is still there
            RunLock(tmp_path).release()
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)


def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.warns(UserWarning, match="no locks"):
        RunLock(tmp_path).release()
