"""Test the architecture: imports point one way, importing is fast, no global setting changes."""

import json
import subprocess
import sys

import pytest

from hparams_page import page_of, values
from paths import REFERENCE, ROOT
from reading import scalar_steps

TEACHER = REFERENCE / "linear_teacher"


def test_imports_between_folders_point_one_way():
    """The contracts in pyproject.toml hold."""
    lint = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    subprocess.run([sys.executable, "-c", lint], cwd=ROOT, check=True)


# What a process without JAX does, the lightest first; it prints what each step has loaded.
LIGHT = """
import json, sys
from contextlib import redirect_stdout
from io import StringIO

teacher, several, folder = sys.argv[1:]
seen = {"start": list(sys.modules)}
import rankmon
seen["import"] = list(sys.modules)

from rankmon.cli.main import main

with redirect_stdout(StringIO()):
    assert main(["predict", "30", "25", "20", "15", "10"]) == 0
    seen["predict"] = list(sys.modules)
    assert main(["report", teacher, "--html", folder + "/a.html", "--csv", folder + "/a.csv"]) == 0
    assert main(["compare", teacher, several]) == 0
    assert rankmon.theory.rank_loss((8, 6, 3)) == 51
    rankmon.read_jsonl, rankmon.TensorBoardWriter, rankmon.JsonlWriter
seen["read"] = list(sys.modules)

import rankmon.tensorboard.plugin
seen["plugin"] = list(sys.modules)
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def light(tmp_path_factory) -> dict[str, set[str]]:
    """The packages that a fresh process has loaded after each step."""
    arguments = [TEACHER, TEACHER.with_name("gradient_flow"), tmp_path_factory.mktemp("light")]
    command = [sys.executable, "-c", LIGHT, *map(str, arguments)]
    seen = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {step: {name.split(".")[0] for name in names} for step, names in seen.items()}


def test_importing_loads_the_standard_library_only(light):
    assert light["import"] - light["start"] - sys.stdlib_module_names == {"rankmon"}


NUMERICS = {"flax", "jax", "jaxlib", "optax", "scipy", "tensorflow"}


@pytest.mark.parametrize(
    ("step", "absent"),
    [
        ("predict", {*NUMERICS, "jaxtyping", "matplotlib", "tensorboard"}),
        ("read", {*NUMERICS, "matplotlib"}),
        ("plugin", {*NUMERICS, "matplotlib"}),
    ],
)
def test_what_predicts_and_reads_does_without_jax(light, step, absent):
    assert not light[step] & absent


# What a fresh process has loaded. It is one process for all, since it starts in seconds.
FRESH = """
import json, sys
from pathlib import Path

folder, teacher = Path(sys.argv[1]), sys.argv[2]
seen = {}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tensorflow" or name == "tensorboard.compat.notf":
            raise AssertionError(f"{name} was looked for")

sys.meta_path.insert(0, Refuse())
import jax
from jax._src import xla_bridge
import numpy as np

options = dict(jax.config.values)
import rankmon
seen["options"] = [name for name, value in jax.config.values.items() if value != options[name]]
seen["import"] = sorted(sys.modules)

from rankmon.writers.layout import custom_scalars_layout

with rankmon.TensorBoardWriter(folder / "writer", layout=custom_scalars_layout()) as writer:
    writer.start(0)
    writer.write(
        rankmon.Record(0, 1, 0.0, {"a": 1.0}, {"b": np.ones(3)}, {"c": "text"}, {"d": 1})
    )
    writer.end_session("success")
del sys.meta_path[0]  # TensorBoard's readers do look for it

from rankmon.cli.main import main

for arguments in (["report", teacher], ["predict", "8", "6", "3"]):
    assert main(arguments) == 0
seen["devices"] = sorted(xla_bridge._backends)
seen["commands"] = sorted(sys.modules)

problem = rankmon.Problem(
    lambda W, x: x @ W, loss="mse", inputs=np.eye(3), targets=np.ones((3, 2))
)
with rankmon.RankMonitor(problem, logdir=folder / "run", every=1, hparams={"a": 1}) as monitor:
    monitor(0, np.ones((3, 2)))
    monitor.close(1, np.ones((3, 2)))
seen["monitor"] = sorted(sys.modules)
(folder / "seen.json").write_text(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """What a fresh process had loaded and changed after each step, and its folder."""
    folder = tmp_path_factory.mktemp("fresh")
    command = [sys.executable, "-c", FRESH, str(folder), str(TEACHER)]
    subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads((folder / "seen.json").read_text()), folder


def test_importing_changes_no_global_option(fresh):
    seen, _ = fresh
    assert seen["options"] == []


@pytest.mark.parametrize(
    ("step", "absent"),
    [
        ("import", {"tensorflow", "matplotlib"}),
        ("commands", {"matplotlib", "tensorflow", "tensorflow_datasets", "shtab"}),
        ("monitor", {"tensorflow"}),
    ],
)
def test_no_step_needs_more_than_it_uses(fresh, step, absent):
    seen, _ = fresh
    assert absent.isdisjoint(name.split(".")[0] for name in seen[step])


def test_reading_and_predicting_touch_no_device(fresh):
    seen, _ = fresh
    assert seen["devices"] == []


def test_what_is_written_without_tensorflow_can_be_read(fresh):
    _, folder = fresh
    assert scalar_steps(folder / "writer", "a") == [0]
    (group,) = page_of(folder / "run").groups.values()
    assert values(group)["a"] == 1


def test_ci_names_tests_that_exist():
    """The lowest-versions leg would end at once without them."""
    words = (ROOT / ".ci" / "run").read_text().replace("\\\n", " ").split()
    named = [word for word in words if word.startswith("tests/")]
    assert named
    subprocess.run(["bash", "-c", f"ls {' '.join(named)}"], cwd=ROOT, check=True)
