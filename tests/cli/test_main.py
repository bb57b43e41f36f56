"""Test the command line through `main`, and in a process of its own if only that can show a fault.

tests/house/test_imports.py tests which modules it loads.
"""

import csv
import io
import json
import logging
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paths import REFERENCE, ROOT
from rankmon import JsonlWriter, Record
from rankmon.cli.main import main
from reading import legacy_events
from refusals import assert_explains
from run_records import NAMES, record, write_both

TEACHER = REFERENCE / "linear_teacher"


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
    end = next(at for at, line in enumerate(lines) if line.startswith("eigenvalues at the end"))
    cells, curvature = (
        {line.split()[0]: line.split()[1:] for line in part if line.startswith("  ")}
        for part in (lines[:end], lines[end : lines.index("", end)])
    )
    ranks = legacy_events(TEACHER).Scalars
    ends = [ranks(f"{tag}/H_f_fixed")[-1].value for tag in ("eigenvalue_max", "eigenvalue_min")]
    assert list(map(float, curvature["H_f_fixed"][:2])) == pytest.approx(ends, rel=1e-3)
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
    wrote = [f"wrote {path}" for path in paths.values()]
    assert capsys.readouterr().out.splitlines() == wrote
    assert main(["report", str(logs), *arguments, "--tables"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "a"
    assert out[-3:] == wrote
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


def test_a_run_that_is_the_log_folder_has_its_name_everywhere(logs, tmp_path, capfdbinary):
    files = {kind: tmp_path / f"out.{kind}" for kind in ("html", "svg", "csv", "json")}
    asked = {"html": "--html", "svg": "--png", "csv": "--csv", "json": "--json"}
    outputs = [part for kind, path in files.items() for part in (asked[kind], str(path))]
    assert main(["report", str(logs / "a"), *outputs]) == 0
    assert "<title>Ranks: a</title>" in files["html"].read_text()
    assert "<!-- a -->" in files["svg"].read_text()
    assert files["csv"].read_text().splitlines()[1].startswith("a,")
    assert json.loads(files["json"].read_text())["runs"][0]["summary"]["name"] == "a"


@pytest.mark.parametrize(
    ("name", "start"), [("a.svg", b"<?xml"), ("a.PDF", b"%PDF"), ("a.jpg", b"\x89PNG")]
)
def test_the_suffix_says_the_format(logs, tmp_path, name, start):
    assert main(["report", str(logs), "--png", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes().startswith(start)


def test_report_to_stdout(logs, capfdbinary):
    assert main(["report", str(logs), "--csv", "-"]) == 0
    out = capfdbinary.readouterr().out
    assert len(list(csv.DictReader(io.StringIO(out.decode())))) == 2 * 4 * 2
    assert main(["report", str(logs), "--png", "-"]) == 0
    assert Image.open(io.BytesIO(capfdbinary.readouterr().out)).format == "PNG"


def test_report_of_some_tags(logs, capsysbinary):
    assert main(["report", str(logs), "--tags", "loss", "--tags", "rank_w*", "--json", "-"]) == 0
    runs = json.loads(capsysbinary.readouterr().out)["runs"]
    assert [list(run["scalars"]) for run in runs] == [["loss"], ["loss"]]


def test_tags_that_no_table_shows(logs, capsys):
    assert main(["report", str(logs), "--tags", "loss"]) == 0
    assert "No table shows these tags; --csv -" in capsys.readouterr().out
    assert main(["report", str(logs), "--tags", "rank/*"]) == 0
    assert "No table" not in capsys.readouterr().out


def test_patterns_that_match_nothing(logs, capsys, tmp_path):
    for command in ("report", "compare"):
        assert main([command, str(logs), "--tags", "rank/H_M"]) == 2
        line = one_line(capsys.readouterr())
        assert_explains(line, f"rankmon {command}: ", "'rank/H_M'", "did you mean 'rank/H_L'?")
    assert main(["report", str(logs), "--tags", "ranks/*", "--tags", "rank/*"]) == 0
    captured = capsys.readouterr()
    assert_explains(captured.err, "'ranks/*'", "matches none", "loss", "rank/*", "spectrum/*")
    assert "H_L" in captured.out
    file = tmp_path / "none.csv"
    assert main(["report", str(logs), "--tags", "det*", "--tags", "x", "--csv", str(file)]) == 2
    assert_explains(one_line(capsys.readouterr()), "'det*', 'x'", "match none")
    assert not file.exists()


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
    assert main(["report", str(tmp_path), "--png", str(tmp_path / "x.png"), "--tables"]) == 0
    out = capsys.readouterr().out
    for name in NAMES:
        assert out.splitlines().count(name.replace("\n", "\\n")) == 1
    assert main(["compare", str(tmp_path)]) == 0


def shown(monkeypatch, encoding: str, *arguments: object) -> bytes:
    """What the command writes to a stdout of this encoding."""
    stdout = io.TextIOWrapper(io.BytesIO(), encoding)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        assert main([*map(str, arguments)]) == 0
    return stdout.buffer.getvalue()


def test_report_of_odd_names_where_the_terminal_has_ascii_only(tmp_path, monkeypatch, capsys):
    write_both(tmp_path / "日本語", record(0))
    out = shown(monkeypatch, "ascii", "report", tmp_path)
    assert out.splitlines()[0] == rb"\u65e5\u672c\u8a9e"
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names there are Unicode")
def test_report_of_a_name_that_is_no_text(tmp_path, monkeypatch, capsys):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/logs/\xff"))
    write_both(folder, record(0))
    out = shown(monkeypatch, "utf-8", "report", tmp_path / "logs", "--csv", "-")
    assert out.splitlines()[1].startswith(b"\xff,0,")
    out = shown(monkeypatch, "utf-8", "report", tmp_path / "logs")
    assert out.splitlines()[0] == rb"\udcff"
    assert capsys.readouterr().err == ""


def test_report_of_a_restarted_and_torn_run_is_silent(tmp_path, capsys, caplog):
    write_both(tmp_path, *(record(step) for step in (0, 10, 20)))
    write_both(tmp_path, *(record(step) for step in (10, 15)))
    (tmp_path / "rankmon.jsonl").unlink()
    last = max(tmp_path.glob("*tfevents*"))
    last.write_bytes(last.read_bytes()[:-3])
    caplog.set_level(logging.WARNING, logger="tensorboard")
    legacy_events(tmp_path)
    assert caplog.records  # TensorBoard's reader tells of them
    caplog.clear()
    assert main(["report", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert (captured.err, caplog.records) == ("", [])
    assert "2 probes, steps 0 to 10" in captured.out


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
    write_both(logs / "a", record(4, **{"rank_weights/W": 3.0}))
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


@pytest.mark.parametrize(
    ("arguments", "network", "ranks"),
    [
        ("6 --residual 2,3 --rank-residual 2", "residual blocks 6 (2, 3)", (59, 35, 36)),
        ("6 --residual 2,3 --rank-residual 5", "residual blocks 6 (2, 3)", (None, 35, None)),
        ("6 5 4 --residual", "residual chain 6-5-4", (48, 24, 40)),
        ("6 4 3 --tied 5", "tied chain 6-4-3 (5 repeats)", (49, 18, 40)),
        ("5 --tied 3 --rank-residual 1", "matrix power 5 x 5 (3 repeats)", (25, 25, 16)),
        ("5 3 5 --tied transpose", "tied autoencoder 5-3-5", (15, 12, 15)),
        ("--conv 3x2x2 --kernels 3,2", "valid convolutions 3x2x2, kernels 3,2", (26, 22, 16)),
        (
            "--conv 1x1x1 --kernels 2,2 --length 5 --padding circular",
            "circular convolutions 1x1x1, kernels 2,2",
            (4, 3, 4),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_predict_other_linear_networks(arguments, network, ranks, capsysbinary):
    assert main(["predict", *arguments.split(), "--json", "-"]) == 0
    read = json.loads(capsysbinary.readouterr().out)
    assert read["network"] == network
    assert tuple(map(read["ranks"].get, ("H_L", "H_o", "H_f"))) == ranks
    assert set(read["bases"]) == set(read["ranks"])
    assert main(["predict", *arguments.split()]) == 0
    out = capsysbinary.readouterr().out.decode()
    assert out.startswith(f"{network}, mse, without biases: p = {read['p']} parameters")
    assert ("no formula" in out) == (None in ranks)


def test_predict_the_learning_coefficient(capsysbinary):
    assert main(["predict", "2", "2", "2", "--rank-true", "0"]) == 0
    assert b"learning coefficient 1.5, multiplicity 1" in capsysbinary.readouterr().out
    assert main(["predict", "2", "2", "2", "--rank-true", "1", "--json", "-"]) == 0
    read = json.loads(capsysbinary.readouterr().out)
    assert read["coefficient"] == {"value": 2.0, "multiplicity": 2}
    assert main(["predict", "2", "2", "2", "--json", "-"]) == 0
    assert json.loads(capsysbinary.readouterr().out)["coefficient"] is None


# doctor and completions


@pytest.fixture
def few_parts(monkeypatch):
    """An installation without what the doctor tries in processes: TFDS, TensorBoard's plugin."""
    real = metadata.version

    def version(name: str) -> str:
        if name == "tensorflow-datasets":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "entry_points", lambda **chosen: ())


@pytest.mark.usefixtures("few_parts")
def test_doctor(capsys, tmp_path):
    assert main(["doctor", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path} is writable" in out
    assert {line.split()[0] for line in out.splitlines() if line[0] != " "} <= {"ok", "missing"}


@pytest.mark.usefixtures("few_parts")
def test_doctor_of_something_broken(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["doctor", str(tmp_path / "file")]) == 1
    assert "broken   logdir" in capsys.readouterr().out


def test_completions_in_a_real_shell(tmp_path, capsys):
    script = tmp_path / "rankmon"
    assert main(["completions", "bash"]) == 0
    script.write_text(capsys.readouterr().out)
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
    monkeypatch.setitem(sys.modules, module, None)
    assert main(arguments) == 2
    line = one_line(capsys.readouterr())
    assert line.startswith(f"rankmon {arguments[0]}: ")
    assert_explains(line, module, f"rankmon[{extra}]")
    assert not Path("x.png").exists()


# input that does not fit


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["report", "missing"], ["log folder", "'missing'", "does not exist"]),
        (["report", "file"], ["log folder", "the file 'file'"]),
        (["report", "empty"], ["'empty'", "no logs"]),
        (["report", "other"], ["record", "other/rankmon.jsonl", "line 1"]),
        (["report", "run", "--csv", "-", "--json", "-"], ["'-'"]),
        (["report", "run", "--csv", "missing/x.csv"], ["written", "missing/x.csv"]),
        (["report", "run", "--csv", "empty"], ["written", "empty"]),
        (["compare", "run"], ["2 runs", "got 1"]),
        (["compare", "run", "empty"], ["'empty'"]),
        (["predict", "8"], ["dims"]),
        (["predict", "8", "0"], ["widths"]),
        (["predict", "8", "6", "3", "--rank-input", "9"], ["d = 8", "got 9"]),
        (["predict", "8", "6", "3", "--rank-residual", "4"], ["min(K, r)", "got 4"]),
        (["predict", "8", "6", "1", "--loss", "cross_entropy"], ["2 outputs"]),
        (["predict", "6", "6", "--residual", "2,3"], ["one width d", "6 6", "alone"]),
        (["predict", "6", "--residual", "2,0"], ["inner width", "at least 1", "got 0"]),
        (["predict", "6", "--residual", "2", "--bias"], ["--bias", "--residual"]),
        (["predict", "6", "--tied", "2", "--examples", "9"], ["--examples", "--tied"]),
        (["predict", "6", "4", "--tied", "2"], ["d M K", "6 4"]),
        (["predict", "6", "4", "5", "--tied", "transpose"], ["6 and 5", "6 4 6"]),
        (["predict"], ["widths", "none"]),
        (["predict", "6", "--conv", "3x2", "--kernels", "3"], ["no widths", "got 6"]),
        (["predict", "--conv", "3x2x2"], ["--kernels", "none"]),
        (["predict", "--conv", "3x2x2", "--kernels", "3"], ["channels", "(3, 2, 2)", "(3,)"]),
        (["predict", "--conv", "3x2", "--kernels", "3", "--length", "2"], ["at least 3", "got 2"]),
        (["predict", "--conv", "3x2", "--kernels", "3", "--bias"], ["--bias", "--conv"]),
        (["predict", "8", "6", "--length", "9"], ["--conv", "--length alone"]),
        (["predict", "6", "--tied", "0"], ["repeats", "at least 1", "got 0"]),
        (["predict", "8", "6", "3", "--rank-true", "4"], ["smallest width = 3", "got 4"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_one_line_says_what_does_not_fit(tmp_path, monkeypatch, capsys, arguments, keys):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")
    write_both(tmp_path / "run", record(0))
    (tmp_path / "other" / "rankmon.jsonl").write_text('{"a": 1}\n')
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 2
    line = one_line(capsys.readouterr())
    assert line.startswith(f"rankmon {arguments[0]}: ")
    assert_explains(line, *keys)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "program", "keys"),
    [
        (["nope"], "rankmon", ["COMMAND", "report, open", "'nope'", "--help"]),
        (["report"], "rankmon report", ["LOGDIR", "--help"]),
        (["report", "a", "b\nc"], "rankmon", ["b\\nc"]),
        (["predict", "8", "six"], "rankmon predict", ["WIDTH", "whole number", "'six'"]),
        (["predict", "8", "3", "--loss", "l1"], "rankmon predict", ["--loss", "'l1'"]),
        (["predict", "6", "--residual", "2,x"], "rankmon predict", ["--residual", "'x'"]),
        (["predict", "--conv", "3,2"], "rankmon predict", ["--conv", "'3,2'"]),
        (["predict", "6", "--tied", "W"], "rankmon predict", ["--tied", "'W'"]),
        (
            ["predict", "6", "--tied", "2", "--residual"],
            "rankmon predict",
            ["--tied or --resid"],
        ),
        (["predict", "6", "--json"], "rankmon predict", ["a value after --json", "none"]),
        (["completions", "ksh"], "rankmon completions", ["shell", "bash, fish", "'ksh'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_one_line_says_which_argument_does_not_fit(capsys, arguments, program, keys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    line = one_line(capsys.readouterr())
    assert line.startswith(f"{program}: ")
    assert_explains(line, *keys)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["report", "missing"], ["predict", "8", "0"], ["nope"]])
def test_in_a_process_of_its_own_it_is_one_line_too(arguments):
    done = call(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert len(done.stderr.splitlines()) == 1
    assert b"Traceback" not in done.stderr


# How a command behaves


@pytest.mark.parametrize("command", [[], ["report"], ["open"], ["compare"], ["predict"], ["doctor"],
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


def test_the_bare_command_prints_its_help(capsys):
    assert main([]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("usage: rankmon")
    assert "examples:" in captured.out
    assert captured.err == ""


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("rankmon ")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break otherwise there")
def test_a_closed_pipe_is_no_error(tmp_path):
    # More than the pipe holds.
    scalars = {f"rank_weights/{'x' * 200}{i}": 1.0 for i in range(20)}
    with JsonlWriter(tmp_path / "rankmon.jsonl") as writer:
        for step in range(20):
            writer.write(Record(step, 1, 1.7e9, scalars, {}))
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -n 1; echo "${PIPESTATUS[0]}"', "_",
         sys.executable, "-m", "rankmon", "report", str(tmp_path), "--csv", "-"],
        capture_output=True,
        timeout=120,
        cwd=ROOT,
    )  # fmt: skip
    assert done.stdout == b"run,step,tag,value\n0\n"
    assert done.stderr == b""


def test_colors_go_to_terminals_only(logs, monkeypatch, capfdbinary):
    monkeypatch.setenv("TERM", "xterm-256color")
    assert main(["report", str(logs)]) == 0
    assert b"\x1b" not in capfdbinary.readouterr().out


def test_numbers_that_are_exact_stay_so(tmp_path, capsys):
    write_both(tmp_path, record(0, rank=1 / 3))
    assert main(["report", str(tmp_path), "--json", str(tmp_path / "x.json")]) == 0
    (run,) = json.loads((tmp_path / "x.json").read_text())["runs"]
    assert run["scalars"]["rank/H_L"]["values"] == [1 / 3]
    assert np.allclose(run["arrays"]["spectrum/H_L"]["values"], [np.linspace(1, -8, 5)], rtol=0)
