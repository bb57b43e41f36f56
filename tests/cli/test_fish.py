"""Test the completions for fish: their structure everywhere, and in fish itself if it is here."""

import argparse
import shutil
import subprocess
import sys

import pytest

from rankmon.cli import fish
from rankmon.cli.main import main
from rankmon.cli.parser import parser

FISH = shutil.which("fish")


def lines(capsys) -> list[str]:
    assert main(["completions", "fish"]) == 0
    return capsys.readouterr().out.splitlines()


def test_each_command_and_option_has_a_line(capsys):
    found = lines(capsys)
    commands = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        assert any(f"-n __fish_use_subcommand -a {name} -d '" in line for line in found)
        here = [line for line in found if f"'__fish_seen_subcommand_from {name}'" in line]
        for action in command._actions:
            for option in action.option_strings:
                flag = f" -l {option[2:]} " if option.startswith("--") else f" -s {option[1:]} "
                assert any(flag in line for line in here), (name, option)
    assert all(line.startswith(("complete -c rankmon ", "#")) for line in found)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("report", "-l csv -r -F"),
        ("report", "-l watch -d"),
        ("report", "-l interval -x"),
        ("report", "-a '(__fish_complete_directories)'"),
        ("predict", "-l loss -x -a 'mse cosh cross_entropy'"),
        ("completions", "-a 'bash fish zsh tcsh'"),
    ],
)
def test_files_folders_and_choices(capsys, command, words):
    here = f"complete -c rankmon -n '__fish_seen_subcommand_from {command}' {words}"
    assert any(line.startswith(here) for line in lines(capsys))


def test_quotes_in_help_are_escaped():
    top = argparse.ArgumentParser(prog="it")
    top.add_argument("--a", help="it's a \\ of 100%% (%(default)s)", default=3)
    assert r"-l a -x -d 'it\'s a \\ of 100% (3)'" in fish.script(top)


def test_shtab_is_not_needed(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert lines(capsys)


@pytest.mark.skipif(FISH is None, reason="fish is not installed")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("rankmon re", {"report"}),
        ("rankmon report --j", {"--json"}),
        ("rankmon predict 3 2 --loss c", {"cosh", "cross_entropy"}),
        ("rankmon report f", {"folder/"}),
        ("rankmon report folder --csv f", {"folder/", "file.txt"}),
        ("rankmon completions f", {"fish"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_in_fish(tmp_path, capsys, typed, expected):
    script = tmp_path / "rankmon.fish"
    script.write_text("\n".join(lines(capsys)) + "\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").write_text("")
    subprocess.run([FISH, "-n", script], check=True)
    done = subprocess.run(
        [FISH, "--no-config", "-c", f"source {script}; complete -C '{typed}'"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert {line.partition("\t")[0] for line in done.stdout.splitlines()} == expected
