"""The architecture: imports point one way, importing is light, and nothing global changes."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import rankmon
import rankmon_tensorboard
from test_hparams import page_of, values
from test_writers import scalar_steps

TEACHER = Path(__file__).parents[1] / "logs" / "reference" / "linear_teacher"
PACKAGE, TAB = Path(rankmon.__file__).parent, Path(rankmon_tensorboard.__file__).parent

# The table of the README's "how it is built": each module imports only from those above it.
ORDER = [
    "_warnings",
    "_jaxprs",
    "_pace",
    "_readers",
    "_precision",
    "_containers",
    "_tree",
    "losses",
    "output_hessians",
    "adapters",
    "_checks",
    "_one_example",
    "_hparams",
    "_lifting",
    "_network",
    "_processes",
    "flat",
    "_diagnosis",
    "problem",
    "_dataflow",
    "stack",
    "activations",
    "spectrum",
    "gram",
    "certificates",
    "parts",
    "_views",
    "_kernels",
    "_programs",
    "jacobian",
    "dense_kernels",
    "_units",
    "weighted_jacobian",
    "products",
    "curvature",
    "contraction",
    "deep_linear",
    "rank",
    "counts",
    "compiled_weights",
    "ntk",
    "outer",
    "sketch",
    "reach",
    "quadrature",
    "_symbols",
    "theory",
    "spectral_theory",
    "lemma8",
    "measurement",
    "_once",
    "engines",
    "large",
    "stochastic",
    "choice",
    "expectation",
    "predictions",
    "hessian",
    "features",
    "probes",
    "_markdown",
    "legend",
    "card",
    "alerts",
    "schedule",
    "_files",
    "_events",
    "_event_files",
    "_forks",
    "_writer",
    "_tensorboard_writer",
    "_jsonl",
    "writers",
    "layout",
    "_trouble",
    "outbox",
    "_state",
    "_options",
    "_copies",
    "_closing",
    "_scalars",
    "budget",
    "worker",
    "recorder",
    "compiled_loop",
    "monitor",
    "seeds",
    "hooks",
    "runs",
    "summary",
    "comparison",
    "closed_forms",
    "exports",
    "doctor",
    "tables",
    "pictures",
    "_arguments",
    "cli",
    "__main__",
]

# A package of its own, which reads what the other one wrote.
TAB_ORDER = ["series", "payload", "stored", "assets", "plugin", "page"]

BOTH = pytest.mark.parametrize(
    ("package", "order"), [(PACKAGE, ORDER), (TAB, TAB_ORDER)], ids=["rankmon", "the tab"]
)


@cache
def import_nodes(path: Path) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """The import statements of a file."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return tuple(node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))


def imported(path: Path, package: str) -> set[str]:
    """The modules of a package that a file imports."""
    found = set()
    for node in import_nodes(path):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {name[1] for name in names if name[0] == package and len(name) > 1}
    return found


@BOTH
def test_every_module_has_its_place(package, order):
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    assert modules == set(order)


@BOTH
def test_imports_point_upward(package, order):
    for place, module in enumerate(order):
        assert imported(package / f"{module}.py", package.name) <= set(order[:place]), module


def test_the_tab_imports_none_of_the_numerics():
    for path in TAB.rglob("*.py"):
        roots = set()
        for node in import_nodes(path):
            if isinstance(node, ast.ImportFrom):
                roots.add((node.module or "").split(".")[0])
            elif isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
        own = {"rankmon_tensorboard", "numpy", "tensorboard", "werkzeug"}
        assert roots <= own | sys.stdlib_module_names, path


def test_what_reads_runs_needs_their_series_only():
    """The command writes the tab's page as well; nothing else has to do with the tab."""
    for module in set(ORDER) - {"cli"}:
        assert imported(PACKAGE / f"{module}.py", TAB.name) <= {"series"}, module


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

from rankmon.layout import custom_scalars_layout

with rankmon.TensorBoardWriter(folder / "writer", layout=custom_scalars_layout()) as writer:
    writer.start(0)
    writer.write(
        rankmon.Record(0, 1, 0.0, {"a": 1.0}, {"b": np.ones(3)}, {"c": "text"}, {"d": 1})
    )
    writer.end_session("success")
del sys.meta_path[0]  # TensorBoard's readers do look for it

from rankmon.cli import main

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
