"""`rankmon open`: start TensorBoard on a log folder, and open the Ranks tab in a browser."""

import os
import signal
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rankmon._util.text import printable
from rankmon.cli.server import running_tensorboard


def open_tab(logdir: str, *, port: int | None, browser: bool) -> int:
    """Serve the Ranks tab until Ctrl-C, and print its address.

    Args:
      logdir: the log folder; it may have no runs yet.
      port: the server's port; None for the first free port from 6006 on.
      browser: whether to open the address in a browser.

    Returns:
      The exit code.

    Raises:
      FileNotFoundError: if the folder does not exist.
      NotADirectoryError: if it is a file.
      ModuleNotFoundError: if TensorBoard is not installed.
      ChildProcessError: if TensorBoard does not start, or ends by itself.
    """
    top = _folder(logdir)
    if find_spec("tensorboard") is None:
        raise ModuleNotFoundError(
            'expected tensorboard, got an installation without it; pip install "tensorboard>=2.21"'
        )
    flags = [] if port is None else ["--port", str(port)]
    with _ended_by_sigterm():
        try:
            with running_tensorboard(str(top), *flags) as server:
                address = f"{server.address}#ranks"
                print(f"{printable(str(top))}: {address} (Ctrl-C ends it)", flush=True)
                _say_how_to_reach_it(address)
                if browser and _has_display():
                    webbrowser.open(address)
                server.process.wait()
                raise ChildProcessError(_ended(server.last_line))
        except ChildProcessError as error:
            text = str(error)
            raise ChildProcessError(text if text.startswith("expected") else _ended(text)) from None
        except KeyboardInterrupt:
            print()
            return 0


def _folder(logdir: str) -> Path:
    """Return the log folder; raise if there is none."""
    top = Path(logdir).expanduser()
    if not top.exists():
        raise FileNotFoundError(
            f"expected a log folder, got {str(top)!r}, which does not exist; pass the logdir of a "
            "RankMonitor, or a folder above it"
        )
    if not top.is_dir():
        raise NotADirectoryError(
            f"expected a log folder, got the file {str(top)!r}; pass the folder that contains it"
        )
    return top.absolute()


def _ended(line: str) -> str:
    return (
        f"expected TensorBoard to keep running, got its end ({line}); pass a free --port, or see "
        "rankmon doctor"
    )


def _say_how_to_reach_it(address: str) -> None:
    """Print the command for a browser on another computer if this is a session over ssh."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    if len(connection) == 4:  # the addresses and ports of client and server
        port = address.rpartition(":")[2].partition("/")[0]
        print(
            f"on your own computer: ssh -N -L {port}:localhost:{port} {connection[2]}", flush=True
        )


def _has_display() -> bool:
    """Return whether a browser can have a window; a text browser would take the terminal."""
    if sys.platform in ("win32", "darwin"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit in this block, so that the server ends with this process."""

    def end(signum: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
