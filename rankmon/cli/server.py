"""Run the `tensorboard` command of this installation, and find out the address of its server."""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SECONDS_TO_START = 60
_SECONDS_TO_END = 5


@dataclass(frozen=True)
class Server:
    """A running TensorBoard.

    Attributes:
      address: its address, which ends in "/".
      process: its process.
      output: the file with its output.
    """

    address: str
    process: "subprocess.Popen[bytes]"
    output: Path

    @property
    def last_line(self) -> str:
        """The last line of its output, or its exit code."""
        return _last_line(self.process, self.output)


@contextmanager
def running_tensorboard(logdir: str, *flags: str) -> Iterator[Server]:
    """Run TensorBoard on a log folder during this block; enter the block once it serves.

    Raises:
      OSError: if it cannot be started, ends at once, or gives no address.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        with output.open("wb") as sink:
            process = subprocess.Popen(
                [*_command(), "--logdir", logdir, *flags], stdout=sink, stderr=subprocess.STDOUT
            )
        try:
            yield Server(_address(process, output), process, output)
        finally:
            process.terminate()
            try:
                process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _command() -> list[str]:
    """Return the `tensorboard` command of this installation."""
    beside = shutil.which("tensorboard", path=str(Path(sys.executable).parent))
    return [beside] if beside else [sys.executable, "-m", "tensorboard.main"]


def _address(process: "subprocess.Popen[bytes]", output: Path) -> str:
    """Wait until the server has written its address, and return it."""
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline:
        text = output.read_text(errors="replace")
        address = re.search(r"http://\S+", text)
        if address is not None and "Press CTRL" in text:
            return f"{address[0].rstrip('/')}/"
        if process.poll() is not None:
            raise ChildProcessError(_last_line(process, output))
        time.sleep(0.05)
    raise ChildProcessError(f"no address within {_SECONDS_TO_START} s")


def _last_line(process: "subprocess.Popen[bytes]", output: Path) -> str:
    text = output.read_text(errors="replace").strip()
    return (text.splitlines() or [f"exit code {process.returncode}"])[-1]
