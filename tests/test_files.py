"""Folders that cannot be written, and the lock on a run folder, across processes too."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rankmon import _files
from rankmon.writers import JsonlWriter, RunLock, TensorBoardWriter

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
    with pytest.raises(error, match=r"expected a log folder .* got .*; choose a logdir"):
        opening(str(tmp_path / folder))


@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
def test_a_folder_that_cannot_be_written(opening):
    with pytest.raises(OSError, match=r"expected a log .* written, got .*; choose a logdir"):
        opening("/proc")


@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
def test_a_url_is_refused(opening):
    for url in ("gs://bucket/run", Path("s3://bucket/run")):
        with pytest.raises(ValueError, match=r"expected a folder .* got '[gs][s3]:/.*; write to"):
            opening(url)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    _files.replace_file(path, b"first")
    _files.replace_file(str(path), b"second")
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()

    def full(self: Path, data: bytes) -> None:
        with self.open("wb") as file:
            file.write(data[:2])
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"expected a file that .* got 'no space left'; choose anot"):
        _files.replace_file(path, b"third")
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
    _files.replace_file(tmp_path / "pipe", b"data")
    assert reader.communicate(timeout=30)[0] == b"data"
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_that_cannot_be_replaced(tmp_path):
    for path in (tmp_path, tmp_path / "missing" / "file"):
        with pytest.raises(OSError, match="expected a file that can be written, got .*; choose an"):
            _files.replace_file(path, b"")


def test_a_second_writer_in_this_process_is_refused(tmp_path):
    with RunLock(tmp_path / "run") as lock:
        with pytest.raises(BlockingIOError, match=rf"process {os.getpid()} on .*; close that"):
            RunLock(tmp_path / "run")
        RunLock(tmp_path / "other").release()
    lock.release()
    RunLock(tmp_path / "run").release()


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


HOLD = """
    import sys, time
    from rankmon.writers import RunLock
    lock = RunLock(sys.argv[1])
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_writer_in_another_process_is_refused_until_that_one_is_dead(tmp_path):
    with python(HOLD, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=f"process {process.pid} on"):
            RunLock(tmp_path)
        process.kill()
    RunLock(tmp_path).release()


def test_a_forked_worker_does_not_keep_the_lock(tmp_path):
    script = """
        import os, sys, time
        from rankmon.writers import RunLock
        lock = RunLock(sys.argv[1])
        ready, done = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(done, b"x")
            time.sleep(60)
            os._exit(0)
        os.read(ready, 1)
        try:
            RunLock(sys.argv[1])
        except BlockingIOError:
            print(child, flush=True)
        os._exit(1)
    """
    with python(script, tmp_path) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.wait(timeout=30)
        try:
            RunLock(tmp_path).release()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch):
    def no_locks(descriptor):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(_files, "_lock", no_locks)
    with pytest.warns(UserWarning, match="has no locks .* only one run"):
        RunLock(tmp_path).release()
