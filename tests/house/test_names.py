"""Test the public names: lazy imports, type checkers, and one object for all import paths."""

import ast
import importlib
import os
import pickle
import re
import subprocess
import sys
from inspect import isclass, isfunction
from pathlib import Path

import numpy as np
import pytest

import rankmon
from paths import ROOT

ALIASES = ["alerts", "hooks", "lemma8", "measurement", "schedule", "spectral_theory"]


def declared() -> list[tuple[str, str]]:
    """Module and name of each import that type checkers see in `rankmon/__init__.py`."""
    tree = ast.parse(Path(rankmon.__file__).read_text())
    (block, *_) = [n for n in tree.body if isinstance(n, ast.If) and "CHECKING" in ast.dump(n.test)]
    return [(node.module, alias.name) for node in block.body for alias in node.names]


def in_a_process(code: str, **environment: str) -> None:
    """Run the code in a fresh process."""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | environment)


def test_all_is_what_type_checkers_see():
    assert sorted(name for _, name in declared()) == rankmon.__all__ == dir(rankmon)


@pytest.mark.parametrize(("module", "name"), declared())
def test_a_name_is_imported_from_where_type_checkers_look(module, name):
    if module == "rankmon":
        assert getattr(rankmon, name) is importlib.import_module(f"rankmon.{name}")
    else:
        assert rankmon._HOMES[name] == module
        assert getattr(rankmon, name) is getattr(importlib.import_module(module), name)


@pytest.mark.slow
def test_mypy_knows_every_name(tmp_path):
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\n[mypy-jax.*,flax.*,optax.*,scipy.*,tensorboard.*,matfree.*]\n"
        "follow_imports = skip\nignore_missing_imports = true\n"
    )
    lines = ["import rankmon", f"from rankmon import {', '.join(rankmon.__all__)}"]
    for name in rankmon.__all__:
        lines += [f"reveal_type(rankmon.{name})", f"reveal_type({name})"]
    lines += ["reveal_type(rankmon.alerts.RankBelow)", "rankmon.RankMonitr"]
    (tmp_path / "snippet.py").write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", tmp_path / "cache", "snippet.py"],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    revealed = re.findall(r'snippet.py:\d+: note: Revealed type is "(.*)"', done.stdout)
    assert len(revealed) == len(lines) - 3, done.stdout + done.stderr
    assert "Any" not in revealed
    (error,) = re.findall(r"snippet.py:(\d+): error: (.*)", done.stdout)
    assert error[0] == str(len(lines))
    assert 'has no attribute "RankMonitr"' in error[1]


def test_a_name_that_there_is_not():
    with pytest.raises(AttributeError) as raised:
        rankmon.RankMonitr  # noqa: B018
    assert str(raised.value) == "module 'rankmon' has no attribute 'RankMonitr'"
    assert (raised.value.name, raised.value.obj) == ("RankMonitr", rankmon)  # "Did you mean ...?"
    with pytest.raises(ImportError, match="cannot import name 'RankMonitr' from 'rankmon'"):
        from rankmon import RankMonitr  # noqa: F401


def test_star_imports_all():
    names = {}
    exec("from rankmon import *", names)
    assert {name: names[name] for name in rankmon.__all__} == {
        name: getattr(rankmon, name) for name in rankmon.__all__
    }


def test_reloading_keeps_the_names():
    before = {name: getattr(rankmon, name) for name in rankmon.__all__}
    assert importlib.reload(rankmon) is rankmon
    assert {name: getattr(rankmon, name) for name in rankmon.__all__} == before


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_file_gives_the_names_of_its_folders(alias):
    module = importlib.import_module(f"rankmon.{alias}")
    assert getattr(rankmon, alias) is module
    values = [getattr(module, name) for name in module.__all__]
    for value in filter(lambda value: isclass(value) or isfunction(value), values):
        home = importlib.import_module(value.__module__)
        assert getattr(home, value.__name__) is value
        assert home is not module


@pytest.mark.parametrize(
    "value",
    [
        rankmon.Tolerance(relative=1e-3),
        rankmon.HessianProbe(include="head/*"),
        rankmon.schedule.every(10),
        rankmon.alerts.RankBelow(0.5),
        *(kind for name in rankmon.__all__ if isinstance(kind := getattr(rankmon, name), type)),
    ],
    ids=str,
)
def test_values_and_classes_can_be_pickled(value):
    assert pickle.loads(pickle.dumps(value)) == value


def test_records_can_be_pickled():
    record = rankmon.Record(3, 1, 0.5, {"a": 1.0}, {"b": np.arange(3.0)}, {"c": "d"}, {"lr": 0.1})
    read = pickle.loads(pickle.dumps(record))
    assert type(read) is rankmon.Record
    assert (read.step, read.scalars, read.texts, read.hparams) == (
        (record.step, record.scalars, record.texts, record.hparams)
    )
    np.testing.assert_array_equal(read.arrays["b"], record.arrays["b"])


def test_names_come_at_first_use_in_any_thread():
    in_a_process("""
import sys, threading
import rankmon
assert "rankmon.monitor" not in sys.modules
assert rankmon.alerts.RankBelow is sys.modules["rankmon.monitor.alerts"].RankBelow
names, found, start = rankmon.__all__, [], threading.Barrier(4)

def read(first):
    start.wait()
    for name in names[first:] + names[:first]:
        found.append((name, getattr(rankmon, name)))

threads = [threading.Thread(target=read, args=[len(names) * i // 4]) for i in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(found) == 4 * len(names)
assert all(value is vars(rankmon)[name] for name, value in found)
""")


@pytest.mark.slow
def test_eager_import_imports_all():
    code = "import rankmon; assert set(rankmon.__all__) <= set(vars(rankmon))"
    in_a_process(code, EAGER_IMPORT="1")
    with pytest.raises(subprocess.CalledProcessError):
        in_a_process(code, EAGER_IMPORT="")
