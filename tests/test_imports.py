"""The architecture: imports point one way, importing is light, and nothing global changes."""

import ast
import subprocess
import sys
from pathlib import Path

import rankmon

PACKAGE = Path(rankmon.__file__).parent

# The table of the README's "how it is built": each module imports only from those above it.
ORDER = [
    "_warnings",
    "_precision",
    "_tree",
    "losses",
    "adapters",
    "_checks",
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
    "curvature",
    "contraction",
    "deep_linear",
    "rank",
    "counts",
    "compiled_weights",
    "ntk",
    "outer",
    "_symbols",
    "theory",
    "spectral_theory",
    "lemma8",
    "measurement",
    "engines",
    "expectation",
    "hessian",
    "features",
    "probes",
    "alerts",
    "schedule",
    "_files",
    "_events",
    "_jsonl",
    "writers",
    "layout",
    "_trouble",
    "outbox",
    "_state",
    "_options",
    "_copies",
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


def imported(module: str) -> set[str]:
    """The modules of rankmon that a module imports."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "rankmon":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rankmon."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("rankmon.")}
    return found


def test_every_module_has_its_place():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert modules == set(ORDER)


def test_imports_point_upward():
    for place, module in enumerate(ORDER):
        assert imported(module) <= set(ORDER[:place]), module


def test_importing_changes_no_global_option_and_needs_no_tensorflow():
    code = """
import jax
before = dict(jax.config.values)
import rankmon, sys
assert dict(jax.config.values) == before
assert not any(name.split(".")[0] in ("tensorflow", "matplotlib") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
