"""Test `rankmon open`: its errors, and the command with a real TensorBoard."""

import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from paths import REFERENCE, ROOT
from rankmon.cli import open_tab, server
from rankmon.cli.main import main
from refusals import assert_explains
from tensorboard_process import fetch_until


def error(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("rankmon open: ")
    return line


def test_folders_that_do_not_exist(tmp_path, capsys):
    assert main(["open", str(tmp_path / "none")]) == 2
    assert_explains(error(capsys), "none", "does not exist")
    (tmp_path / "file").write_text("")
    assert main(["open", str(tmp_path / "file")]) == 2
    assert_explains(error(capsys), "the file", "folder that contains it")


def test_without_tensorboard(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert main(["open", str(tmp_path)]) == 2
    assert_explains(error(capsys), "pip install", "tensorboard>=2.21")


def test_a_tensorboard_that_ends_at_once(tmp_path, capsys, monkeypatch):
    code = "print('first'); raise SystemExit('no module named x')"
    monkeypatch.setattr(server, "_command", lambda: [sys.executable, "-c", code])
    assert main(["open", str(tmp_path), "--no-browser"]) == 2
    assert_explains(error(capsys), "no module named x", "--port", "rankmon doctor")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, False), ({"DISPLAY": ":0"}, True), ({"BROWSER": "firefox"}, True)],
    ids=["none", "display", "browser"],
)
@pytest.mark.skipif(sys.platform != "linux", reason="other systems always have windows")
def test_a_browser_needs_a_window(monkeypatch, variables, expected):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert open_tab._has_display() == expected


def test_how_to_reach_it_from_another_computer(monkeypatch, capsys):
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.2 50000 10.0.0.1 22")
    open_tab._say_how_to_reach_it("http://localhost:6007/#ranks")
    assert "ssh -N -L 6007:localhost:6007 10.0.0.1" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "terminated"])
def test_it_serves_the_tab_on_a_free_port_until_it_is_ended(sent):
    with ExitStack() as stack:
        try:  # another program may have taken it already
            stack.enter_context(socket.create_server(("localhost", 6006)))
        except OSError:
            pass
        # A job in the background ignores SIGINT, and so would the processes that it starts.
        command = ["env", "--default-signal=INT", sys.executable, "-m", "rankmon", "open"]
        command += [str(REFERENCE), "--no-browser"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            line = process.stdout.readline()
            address = re.search(r"(http://\S+/)#ranks", line)[1]
            assert ":6006/" not in address
            names = fetch_until(address, "ranks/runs", lambda answer: answer["runs"])["runs"]
            assert "linear_teacher" in [run["name"] for run in names]
            process.send_signal(sent)
            assert process.wait(timeout=30) == (0 if sent == signal.SIGINT else 143)
            with pytest.raises(OSError, match="refused"):
                fetch_until(address, "ranks/runs", bool)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
