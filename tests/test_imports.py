"""The architecture: imports point one way, importing is light, and nothing global changes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rankmon
import rankmon_tensorboard

PACKAGE, TAB = Path(rankmon.__file__).parent, Path(rankmon_tensorboard.__file__).parent

# The table of the README's "how it is built": each module imports only from those above it.
ORDER = [
    "_warnings",
    "_precision",
    "_tree",
    "losses",
    "adapters",
    "_checks",
    "_hparams",
    "_jaxprs",
    "_lifting",
    "_processes",
    "flat",
    "problem",
    "_stacked",
    "_dataflow",
    "stack",
    "activations",
    "spectrum",
    "gram",
    "certificates",
    "parts",
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
    "recorder",
    "worker",
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


def imported(path: Path, package: str) -> set[str]:
    """The modules of a package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
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
        for node in ast.walk(ast.parse(path.read_text())):
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


def test_importing_changes_no_global_option_and_needs_no_tensorflow():
    code = """
import jax
before = dict(jax.config.values)
import rankmon, sys
assert dict(jax.config.values) == before
assert not any(name.split(".")[0] in ("tensorflow", "matplotlib") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
