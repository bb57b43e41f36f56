"""Test `rankmon report --watch`: its page, and the command in a terminal of its own."""

import io
import os
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from rich.text import Text

from paths import ROOT
from rankmon import JsonlWriter
from rankmon._util.warnings import warn_user
from rankmon.cli import watch
from rankmon.cli.main import main
from refusals import assert_explains
from run_records import record, write_both


def drawn(page: watch._Page, *, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=80, height=height, force_terminal=True)
    console.print(page)
    return re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue()).splitlines()


def test_the_report_is_drawn_again_only_if_a_file_has_changed(tmp_path):
    page, calls = watch._Page(every=5), []

    def draw():
        calls.append(None)
        return [Text(f"report {len(calls)}")]

    for text, expected in (("a", 1), ("a", 1), ("ab", 2)):
        if not calls or text == "ab":
            (tmp_path / "rankmon.jsonl").write_text(text)
        page.update(watch._files(str(tmp_path)), draw)
        heading, *lines = [line.rstrip() for line in drawn(page)]
        assert "every 5 s; Ctrl-C ends" in heading
        assert lines == ["", f"report {expected}"]
    assert len(calls) == 2


def test_errors_and_warnings_are_lines_above_the_last_report():
    page = watch._Page(every=5)
    page.update((("x", 0, 0),), lambda: [Text("report")])

    def fail():
        raise KeyError("half of a record")

    page.update((), fail)
    assert [line.rstrip() for line in drawn(page)[1:]] == [
        "waiting: 'half of a record'",
        "",
        "report",
    ]

    def warn():
        warn_user("a pipe is left out")
        return [Text("new report")]

    page.update((("x", 0, 1),), warn)
    assert [line.rstrip() for line in drawn(page)[2:]] == ["", "new report"]
    assert "a pipe is left out" in drawn(page)[1]


def test_a_missing_package_ends_it():
    def fail():
        raise ImportError("matplotlib")

    with pytest.raises(ImportError):
        watch._Page(every=5).update((), fail)


def test_a_long_report_is_cut_to_the_terminal():
    page = watch._Page(every=5)
    page.update((), lambda: [Text("\n".join(map(str, range(50))))])
    lines = drawn(page, height=10)
    assert [line.rstrip() for line in lines[2:]] == [
        *map(str, range(7)),
        "43 more lines in rankmon report",
    ]


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        (["--watch"], ["terminal", "leave out --watch"]),
        (["--interval", "2"], ["--interval alone", "add --watch"]),
        (["--watch", "--csv", "-"], ["'-'", "name files"]),
    ],
    ids=" ".join,
)
def test_what_does_not_fit(tmp_path, capsys, options, keys):
    write_both(tmp_path, record(0))
    assert main(["report", str(tmp_path), *options]) == 2
    assert_explains(capsys.readouterr().err, *keys)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_intervals_that_do_not_fit(capsys, seconds):
    with pytest.raises(SystemExit):
        main(["report", "logs", "--watch", f"--interval={seconds}"])
    assert "positive number of seconds" in capsys.readouterr().err


# A job in the background ignores SIGINT, and so would the processes that it starts.
DEFAULT_SIGINT = ("env", "--default-signal=INT")


class Terminal:
    """A process in a pseudo-terminal."""

    def __init__(self, *command: str) -> None:
        self.end, other = os.openpty()
        self.text = ""
        self.process = subprocess.Popen(
            DEFAULT_SIGINT + command,
            stdin=other,
            stdout=other,
            stderr=other,
            cwd=ROOT,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"},
        )
        os.close(other)

    @property
    def words(self) -> str:
        """The text without colors and line breaks, which depend on the length of the path."""
        return " ".join(re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", self.text).split())

    def wait_for(self, expected: str) -> None:
        deadline = time.monotonic() + 60
        while expected not in self.words:
            assert time.monotonic() < deadline, self.text
            assert self.read() or self.process.poll() is None, self.text

    def read(self) -> bool:
        """Read what is there within a second; return whether there was something."""
        if not select.select([self.end], [], [], 1)[0]:
            return False
        try:
            self.text += os.read(self.end, 1 << 16).decode(errors="replace")
        except OSError:  # the process has ended
            return False
        return True


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are Unix's")
def test_in_a_terminal_while_a_run_is_written(tmp_path):
    logs = tmp_path / "logs"
    terminal = Terminal(
        sys.executable, "-m", "rankmon", "report", str(logs), "--watch", "--interval", "0.1",
        "--csv", str(tmp_path / "out.csv"),
    )  # fmt: skip
    try:
        terminal.wait_for("does not exist")
        with JsonlWriter(logs / "run" / "rankmon.jsonl") as writer:
            for step in range(5):
                writer.write(record(step))
                terminal.wait_for("1 probe, step 0" if step == 0 else f"steps 0 to {step}")
            with (logs / "run" / "rankmon.jsonl").open("a") as file:
                file.write('{"step": 5, "sca')  # as a reader finds a record that is being written
                file.flush()
                seen = len(terminal.text)
                terminal.read()
        assert "waiting" not in terminal.text[seen:]
        assert (tmp_path / "out.csv").read_text().count("rank/H_L") == 5
        os.killpg(terminal.process.pid, signal.SIGINT)
        while terminal.read():
            pass
        assert terminal.process.wait(timeout=30) == 0
        assert "Traceback" not in terminal.text
        # Without flicker: the screen is never cleared, but drawn over from its first cell.
        assert terminal.text.count("\x1b[2J") <= 1
        screen, _, left = terminal.text.rpartition("\x1b[?1049l")  # back from the second screen
        assert "\x1b[H" in screen
        assert "5 probes, steps 0 to 4" in left
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.end)
