"""The command line: through processes of its own for what only those show, else through `main`."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rankmon import JsonlWriter, cli
from rankmon.cli import main
from test_runs import NAMES, record, write_both

ROOT = Path(__file__).parents[1]
TEACHER = ROOT / "logs" / "reference" / "linear_teacher"


def call(*arguments: object, **options) -> subprocess.CompletedProcess:
    """`python -m rankmon` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "rankmon", *map(str, arguments)],
        capture_output=True,
        timeout=120,
        cwd=ROOT,
        **options,
    )


@pytest.fixture
def logs(tmp_path) -> Path:
    """Two runs that differ from step 2 on."""
    write_both(tmp_path / "logs" / "a", *(record(step) for step in range(4)))
    write_both(tmp_path / "logs" / "b", *(record(step, rank=12.0 - step // 2) for step in range(4)))
    return tmp_path / "logs"


def one_line(captured) -> str:
    """The one line on stderr; nothing is on stdout."""
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


# report


def test_report_of_a_reference_run(capsys):
    assert main(["report", str(TEACHER)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[0] == "linear_teacher"
    cells = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("  ")}
    ranks = EventAccumulator(str(TEACHER), size_guidance={"scalars": 0}).Reload().Scalars
    values = [event.value for event in ranks("rank/H_L")]
    changed = next(event.step for event in ranks("rank/H_L") if event.value != values[0])
    agreed = sum(
        a.value == b.value for a, b in zip(ranks("rank/H_L"), ranks("rank_theory/H_L"), strict=True)
    )
    expected = [values[0], values[-1], min(values), ranks("rank_theory/H_L")[-1].value]
    assert list(map(float, cells["H_L"][:4])) == expected
    assert cells["H_L"][4:] == [f"{agreed}/41", "300..300", "at", str(changed)]
    assert not [line for line in lines if line != line.rstrip()]


def test_report_writes_its_files(logs, tmp_path, capsys):
    paths = {kind: tmp_path / f"out.{kind}" for kind in ("png", "csv", "json")}
    arguments = [part for kind, path in paths.items() for part in (f"--{kind}", str(path))]
    assert main(["report", str(logs), *arguments]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-3:] == [f"wrote {path}" for path in paths.values()]
    assert out[0] == "a"
    assert Image.open(io.BytesIO(paths["png"].read_bytes())).format == "PNG"
    rows = list(csv.DictReader(io.StringIO(paths["csv"].read_text())))
    b = [float(r["value"]) for r in rows if (r["run"], r["tag"]) == ("b", "rank/H_L")]
    assert b == [12, 12, 11, 11]
    runs = json.loads(paths["json"].read_text())["runs"]
    assert [run["summary"]["name"] for run in runs] == ["a", "b"]
    assert runs[1]["summary"]["ranks"][0]["changed"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"logs", *(p.name for p in paths.values())}


def test_report_writes_a_page_that_holds_the_runs(logs, tmp_path):
    assert main(["report", str(logs), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text("utf-8")
    held = page.partition('id="runs">')[2].partition("</script>")[0]
    assert [run["overview"]["name"] for run in json.loads(held)] == ["a", "b"]


def test_report_to_stdout(logs):
    done = call("report", logs, "--csv", "-")
    assert done.returncode == 0
    assert len(list(csv.DictReader(io.StringIO(done.stdout.decode())))) == 2 * 4 * 2
    png = call("report", logs, "--png", "-").stdout
    assert Image.open(io.BytesIO(png)).format == "PNG"


def test_report_of_some_tags(logs, capsysbinary):
    assert main(["report", str(logs), "--tags", "loss", "--tags", "rank_w*", "--json", "-"]) == 0
    runs = json.loads(capsysbinary.readouterr().out)["runs"]
    assert [list(run["scalars"]) for run in runs] == [["loss"], ["loss"]]
    assert main(["report", str(logs), "--tags", "nothing"]) == 0
    assert b"H_L" not in capsysbinary.readouterr().out


def test_report_replaces_files(logs, tmp_path, capsys):
    target = tmp_path / "link.csv"
    (tmp_path / "old.csv").write_text("old")
    target.symlink_to(tmp_path / "old.csv")
    assert main(["report", str(logs), "--csv", str(target)]) == 0
    assert target.is_symlink()
    assert (tmp_path / "old.csv").read_text().startswith("run,step,tag,value\n")
    assert main(["report", str(logs), "--csv", os.devnull]) == 0
    assert not Path(os.devnull).is_file()


def test_report_of_odd_names(tmp_path, capsys):
    for name in NAMES:
        write_both(tmp_path / name, record(0, **{f"rank_weights/{name}": 3.0}))
    assert main(["report", str(tmp_path), "--png", str(tmp_path / "x.png")]) == 0
    out = capsys.readouterr().out
    for name in NAMES:
        assert out.splitlines().count(name.replace("\n", "\\n")) == 1
    assert main(["compare", str(tmp_path)]) == 0


def test_report_of_odd_names_where_the_terminal_has_ascii_only(tmp_path):
    write_both(tmp_path / "日本語", record(0))
    done = call("report", tmp_path, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[0] == rb"\u65e5\u672c\u8a9e"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names there are Unicode")
def test_report_of_a_name_that_is_no_text(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/logs/\xff"))
    write_both(folder, record(0))
    done = call("report", tmp_path / "logs", "--csv", "-")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[1].startswith(b"\xff,0,")
    done = call("report", tmp_path / "logs")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[0] == rb"\udcff"


def test_report_of_a_restarted_and_torn_run_is_silent(tmp_path):
    """TensorBoard's reader would tell of both."""
    write_both(tmp_path, *(record(step) for step in (0, 10, 20)))
    write_both(tmp_path, *(record(step) for step in (10, 15)))
    (tmp_path / "rankmon.jsonl").unlink()
    last = max(tmp_path.glob("*tfevents*"))
    last.write_bytes(last.read_bytes()[:-3])
    done = call("report", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"2 probes, steps 0 to 10" in done.stdout


def test_report_of_a_live_run(tmp_path, capsys):
    with JsonlWriter(tmp_path / "rankmon.jsonl") as writer:
        writer.write(record(0))
        assert main(["report", str(tmp_path)]) == 0
        assert "1 probe, step 0" in capsys.readouterr().out


# compare and predict


def test_compare(logs, capsysbinary):
    assert main(["compare", str(logs / "a"), str(logs / "b")]) == 0
    assert b"The ranks differ first at step 2: rank/H_L." in capsysbinary.readouterr().out
    assert main(["compare", str(logs), "--json", "-"]) == 0
    read = json.loads(capsysbinary.readouterr().out)
    assert [run["name"] for run in read["runs"]] == ["a", "b"]
    assert read["ranks"][0]["last"] == [12, 11]
    assert main(["compare", str(logs), "--tags", "rank_w*"]) == 0
    assert b"rank/H_L" not in capsysbinary.readouterr().out


def test_predict(capsysbinary):
    assert main(["predict", "30", "25", "20", "15", "10"]) == 0
    lines = capsysbinary.readouterr().out.decode().splitlines()
    assert lines[0] == "30-25-20-15-10, mse, without biases: p = 1700 parameters"
    assert [line.split()[:2] for line in lines[4:7]] == [
        ["H_L", "1200"],
        ["H_o", "300"],
        ["H_f", "1000"],
    ]


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ([], {"H_L": 1200, "H_o": 300, "H_f": 1000}),
        (["--rank-residual", "7"], {"H_L": 993, "H_o": 300, "H_f": 742}),
        (["--rank-residual", "0"], {"H_L": 300, "H_o": 300, "H_f": 0}),
        (["--rank-input", "0"], {"H_L": 0, "H_o": 0, "H_f": 0}),
        (["--bias", "--rank-residual", "0"], {"H_L": 310, "H_o": 310, "H_f": 0}),
        (["--loss", "cross_entropy", "--rank-residual", "0"], {"H_L": 270, "H_o": 270, "H_f": 0}),
        (["--loss", "cosh"], {"H_L": 1200, "H_o": 300, "H_f": 1000}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_predict_with_options(options, ranks, tmp_path):
    path = tmp_path / "prediction.json"
    widths = ["30", "25", "20", "15", "10"]
    assert main(["predict", *widths, *options, "--json", str(path)]) == 0
    assert json.loads(path.read_text())["ranks"] == ranks


# doctor and completions


def test_doctor(capsys, tmp_path):
    assert main(["doctor", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path} can be written" in out
    assert {line.split()[0] for line in out.splitlines() if line[0] != " "} <= {"ok", "missing"}


def test_doctor_of_something_broken(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["doctor", str(tmp_path / "file")]) == 1
    assert "broken   logdir" in capsys.readouterr().out


def test_completions_in_a_real_shell(tmp_path):
    script = tmp_path / "rankmon"
    script.write_bytes(call("completions", "bash").stdout)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").write_text("")
    asked = f"""
source {script}
complete_with() {{
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  "$(complete -p rankmon | sed 's/.*-F \\([^ ]*\\).*/\\1/')" rankmon "${{@: -1}}" "${{@: -2:1}}"
  echo "${{COMPREPLY[@]}}"
}}
complete_with rankmon re
complete_with rankmon report --j
complete_with rankmon predict 3 2 --loss ''
complete_with rankmon report f
complete_with rankmon report logs --csv f
"""
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, cwd=tmp_path)
    answers = done.stdout.splitlines()
    assert answers[0] == "report"
    assert answers[1] == "--json"
    assert set(answers[2].split()) == {"mse", "cosh", "cross_entropy"}
    assert answers[3] == "folder"
    assert set(answers[4].split()) == {"folder", "file.txt"}


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_completions_of_other_shells(shell, capsys):
    assert main(["completions", shell]) == 0
    assert "predict" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("shtab", ["completions", "bash"], "completions"),
        ("matplotlib", ["report", str(TEACHER), "--png", "x.png"], "plots"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, capsys, module, arguments, extra):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert main(arguments) == 2
    line = one_line(capsys.readouterr())
    assert line == (
        f"rankmon {arguments[0]}: expected {module}, got an installation without it; "
        f'pip install "rankmon[{extra}]"'
    )
    assert not Path("x.png").exists()


# input that does not fit


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["report", "missing"], "expected a log folder, got 'missing', which does not exist"),
        (["report", "file"], "expected a log folder, got the file 'file'; give the folder"),
        (["report", "empty"], "expected runs of rankmon in 'empty', got no logs at all; train"),
        (["report", "torn"], "expected a record of rankmon in each line of torn/rankmon.jsonl"),
        (["report", "words"], "expected numbers in each record of words/rankmon.jsonl"),
        (["report", "run", "--csv", "-", "--json", "-"], "expected '-' for one output at most"),
        (["report", "run", "--csv", "missing/x.csv"], "expected a file that can be written"),
        (["report", "run", "--csv", "empty"], "expected a file that can be written"),
        (["compare", "run"], "expected at least 2 runs to compare, got 1"),
        (["compare", "run", "empty"], "expected runs of rankmon in 'empty'"),
        (["predict", "8"], "expected dims (d, M_1, ..., K) with at least d and K"),
        (["predict", "8", "0"], "expected widths of at least 1"),
        (["predict", "8", "6", "3", "--rank-input", "9"], "expected r within 0 and d = 8, got 9"),
        (["predict", "8", "6", "3", "--rank-residual", "4"], "expected s within 0 and min(K, r)"),
        (["predict", "8", "6", "1", "--loss", "cross_entropy"], "expected at least 2 outputs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_one_line_says_what_does_not_fit(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "torn", "words"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")
    write_both(tmp_path / "run", record(0))
    lines = (tmp_path / "run" / "rankmon.jsonl").read_text()
    (tmp_path / "torn" / "rankmon.jsonl").write_text('{"a": 1}\n' + lines)
    (tmp_path / "words" / "rankmon.jsonl").write_text(lines.replace("12.0", '"twelve"'))
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 2
    line = one_line(capsys.readouterr())
    assert line.startswith(f"rankmon {arguments[0]}: {says}")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "rankmon: the following arguments are required: COMMAND; see rankmon --help"),
        (["nope"], "rankmon: argument COMMAND: invalid choice: 'nope'"),
        (["report"], "rankmon report: the following arguments are required: LOGDIR"),
        (["report", "a", "b\nc"], "rankmon: unrecognized arguments: b\\nc"),
        (
            ["predict", "8", "six"],
            "rankmon predict: argument WIDTH: expected a whole number, got 'six'",
        ),
        (["predict", "8", "3", "--loss", "l1"], "rankmon predict: argument --loss: invalid choice"),
        (["completions", "fish"], "rankmon completions: argument shell: invalid choice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_one_line_says_which_argument_does_not_fit(capsys, arguments, says):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert one_line(capsys.readouterr()).startswith(says)


def test_in_a_process_of_its_own_it_is_one_line_too(tmp_path):
    for arguments in (["report", tmp_path], ["predict", "8", "0"], ["nope"]):
        done = call(*arguments)
        assert (done.returncode, done.stdout) == (2, b"")
        assert len(done.stderr.splitlines()) == 1
        assert b"Traceback" not in done.stderr


# How a command behaves


@pytest.mark.parametrize("command", [[], ["report"], ["compare"], ["predict"], ["doctor"],
                                     ["completions"]], ids=" ".join)  # fmt: skip
def test_help_has_examples(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert "examples:" in lines
    assert any(line.startswith("  rankmon") for line in lines)
    assert max(map(len, lines)) <= 82


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("rankmon ")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break otherwise there")
def test_a_closed_pipe_is_no_error(tmp_path):
    write_both(tmp_path, *(record(step) for step in range(3000)))
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -n 1; echo "${PIPESTATUS[0]}"', "_",
         sys.executable, "-m", "rankmon", "report", str(tmp_path), "--csv", "-"],
        capture_output=True,
        timeout=120,
        cwd=ROOT,
    )  # fmt: skip
    assert done.stdout == b"run,step,tag,value\n0\n"
    assert done.stderr == b""


def test_colors_go_to_terminals_only():
    assert (
        b"\x1b" not in call("report", TEACHER, env=os.environ | {"TERM": "xterm-256color"}).stdout
    )


def test_reading_loads_no_plotting_and_touches_no_device(tmp_path):
    code = """
import sys
from rankmon.cli import main
main(sys.argv[1:])
from jax._src import xla_bridge
assert not xla_bridge._backends
assert not {"matplotlib", "tensorflow", "tensorflow_datasets", "shtab"} & sys.modules.keys()
"""
    for arguments in (["report", str(TEACHER)], ["predict", "8", "6", "3"]):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.PIPE)


def test_numbers_that_are_exact_stay_so(tmp_path, capsys):
    write_both(tmp_path, record(0, rank=1 / 3))
    assert main(["report", str(tmp_path), "--json", str(tmp_path / "x.json")]) == 0
    (run,) = json.loads((tmp_path / "x.json").read_text())["runs"]
    assert run["scalars"]["rank/H_L"]["values"] == [1 / 3]
    assert np.allclose(run["arrays"]["spectrum/H_L"]["values"], [np.linspace(1, -8, 5)], rtol=0)
