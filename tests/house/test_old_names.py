"""Test that import paths of earlier versions still work, with a warning."""

import importlib
import pickle
import warnings

import pytest

from rankmon import Tolerance

OLD = [
    ("rankmon.curvature", "dense_bytes", "rankmon.hessian.memory"),
    ("rankmon.layout", "HESSIAN_PARTS", "rankmon._util.tags"),
    ("rankmon.layout", "custom_scalars_layout", "rankmon.writers.layout"),
    ("rankmon.layout", "seeds_layout", "rankmon.writers.layout"),
    ("rankmon.parts", "dense_bytes", "rankmon.hessian.memory"),
    ("rankmon.parts", "DEFAULT_MEMORY_LIMIT", "rankmon.hessian.memory"),
    ("rankmon.rank", "Tolerance", "rankmon"),
    ("rankmon.rank", "numerical_rank", "rankmon.linalg.numerical_rank"),
    ("rankmon.rank", "weight_ranks", "rankmon"),
]

# Each way to a name, on a line of its own.
WAYS = {
    "from": "\n\nfrom {module} import {name} as value",
    "attribute": "import {module}\n\nvalue = {module}.{name}",
    "package": "import rankmon\n\nvalue = {module}.{name}",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("module", "name", "home"), OLD)
def test_an_old_name_is_the_new_one_with_a_warning_at_the_users_line(module, name, home, way):
    code = compile(WAYS[way].format(module=module, name=name), "the_user's.py", "exec")
    found = {}
    with pytest.warns(DeprecationWarning, match=f"{module}.{name}") as caught:
        exec(code, found)
    assert found["value"] is getattr(importlib.import_module(home), name)
    (warning,) = caught
    assert (warning.filename, warning.lineno) == ("the_user's.py", 3)
    assert f"{home}.{name}" in str(warning.message)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("rankmon.spectral_theory", "PlateauMatch"),
        ("rankmon.schedule", "at_steps"),
        ("rankmon.theory", "number_of_parameters"),
        ("rankmon.writers", "Record"),
        ("rankmon.writers", "RunLock"),
        ("rankmon.writers", "TensorBoardWriter"),
    ],
)
def test_a_public_name_does_not_warn(module, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(f"from {module} import {name}", {})


@pytest.mark.parametrize("module", sorted({module for module, _, _ in OLD}))
def test_other_names_of_an_old_module(module):
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nothing'"):
        importlib.import_module(module).nothing  # noqa: B018


def test_a_pickle_that_names_an_old_module():
    old = pickle.dumps(Tolerance(relative=1e-3), 0).replace(b"linalg.numerical_rank", b"rank")
    with pytest.warns(DeprecationWarning, match="rankmon.rank.Tolerance"):
        assert pickle.loads(old) == Tolerance(relative=1e-3)
