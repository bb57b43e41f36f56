"""The checks of `rankmon doctor`: findings about this installation, each with a remedy.

Imports of other packages and TensorBoard's plugin may fail in unforeseen ways, and are tried in a
separate process. TensorFlow Datasets is checked because the examples use it.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rankmon import theory
from rankmon._util.facts import Finding
from rankmon._util.files import PathLike
from rankmon.cli.server import running_tensorboard
from rankmon.measure.hessian import hessian_ranks
from rankmon.problem.precision import DOUBLE
from rankmon.problem.problem import Problem

LIBRARIES = ("rankmon", "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "tensorboard")
DATA_SETS = ("mnist", "fashion_mnist", "cifar10")


def findings(logdir: PathLike) -> Iterator[Finding]:
    """Run the checks one by one, and yield their findings.

    Args:
      logdir: a folder for future runs; it is not created.
    """
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")
    for library in LIBRARIES:
        yield _library(library)
    yield from map(_tried, (_devices, _double, _measurement))
    yield _extra("matplotlib", "plots", "rankmon report --png")
    yield _extra("shtab", "completions", "rankmon completions")
    yield from _plugins()
    yield from _data_sets()
    yield _writable(Path(logdir).expanduser().absolute())
    yield _server()


def _tried(check: Callable[[], Finding]) -> Finding:
    """Return the finding of a check; if the check fails, return its error as a finding."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001  any error is a finding
        name = check.__name__.strip("_")
        return Finding(
            name,
            "broken",
            _one_line(error),
            "reinstall jax and jaxlib in one step: pip install jax",
        )


def _library(name: str) -> Finding:
    """Return the installed version of a library."""
    try:
        return Finding(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        status: Literal["missing", "broken"] = "missing" if name == "rankmon" else "broken"
        return Finding(name, status, "not installed", f"pip install {name}")


def _devices() -> Finding:
    kinds = Counter(f"{device.platform} ({device.device_kind})" for device in jax.devices())
    return Finding("devices", "ok", ", ".join(f"{n} x {kind}" for kind, n in kinds.items()))


def _double() -> Finding:
    """Check that float64 works inside JAX's scope, and that the scope restores JAX's settings."""
    before = dict(jax.config.values)
    with DOUBLE.scope():
        one = jnp.ones(())
        keeps_digits = one.dtype == np.float64 and float(one + 2.0**-40) != 1.0
    outside = "on" if jax.config.read("jax_enable_x64") else "off"
    if not keeps_digits:
        return Finding("float64", "broken", "lost in JAX's float64 scope", "pip install -U jax")
    if dict(jax.config.values) != before:
        return Finding("float64", "broken", "the scope changes JAX's configuration", "report this")
    return Finding("float64", "ok", f"works in a scope; jax_enable_x64 stays {outside} outside it")


def _measurement() -> Finding:
    """Compare a measured rank with theory's prediction, on a small deep linear network."""
    rng, dims = np.random.default_rng(0), (8, 6, 3)
    weights = [rng.normal(size=shape) for shape in zip(dims[:-1], dims[1:], strict=True)]
    problem = Problem(
        lambda params, x: x @ params[0] @ params[1],
        loss="mse",
        inputs=rng.normal(size=(40, 8)),
        targets=rng.normal(size=(40, 3)),
    )
    rank, predicted = hessian_ranks(problem, weights)["H_L"].rank, theory.rank_loss(dims)
    if rank != predicted:
        detail = f"the rank of H_L for 8-6-3 is {rank}, not {predicted} as predicted"
        return Finding("measurement", "broken", detail, "report this with the versions above")
    return Finding("measurement", "ok", f"the rank of H_L for 8-6-3 is {rank}, as predicted")


def _extra(name: str, extra: str, use: str) -> Finding:
    """Return the version of an optional dependency, or how to install it."""
    try:
        return Finding(name, "ok", f"{metadata.version(name)}, for {use}")
    except metadata.PackageNotFoundError:
        remedy = f'for {use}: pip install "rankmon[{extra}]"'
        return Finding(name, "missing", "not installed", remedy)


def _plugins() -> Iterator[Finding]:
    """Check that rankmon's TensorBoard plugins load, as TensorBoard does when it starts."""
    points = {
        (point.name, point.value)
        for point in metadata.entry_points(group="tensorboard_plugins")
        if point.dist is not None and point.dist.name == "rankmon"
    }
    if not points:
        remedy = "to get the Ranks tab: pip install --force-reinstall --no-deps rankmon"
        yield Finding("TensorBoard plugin", "missing", "not registered", remedy)
    for name, value in sorted(points):
        code = f"from importlib.metadata import EntryPoint as E; E({name!r}, {value!r}, '').load()"
        error = _error_of(code)
        if error is None:
            yield Finding("TensorBoard plugin", "ok", f"{name} ({value}) loads")
        else:
            remedy = "TensorBoard may not start; reinstall rankmon"
            yield Finding("TensorBoard plugin", "broken", f"{name}: {error}", remedy)


def _server() -> Finding:
    """Start TensorBoard as the user would, on an empty folder, and request the Ranks tab's data."""
    with tempfile.TemporaryDirectory() as logdir:
        try:
            with running_tensorboard(logdir, "--port", "0") as server:
                return _tab_of(server.address)
        except ChildProcessError as error:
            return _no_server(str(error))
        except OSError as error:
            return _no_server(_one_line(error))


def _tab_of(address: str) -> Finding:
    """Request the Ranks tab's list of runs from a running TensorBoard."""
    route = f"{address}data/plugin/ranks/runs"
    # Without a proxy, because the user's one may not forward requests to this machine.
    local = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with local.open(route, timeout=30) as answer:
            json.load(answer)
    except (OSError, ValueError) as error:
        remedy = "TensorBoard starts without the Ranks tab; reinstall rankmon in its environment"
        return Finding("tensorboard command", "broken", _one_line(error), remedy)
    return Finding("tensorboard command", "ok", "starts, and serves the Ranks tab")


def _no_server(detail: str) -> Finding:
    # TensorBoard 2.19 and 2.20 import pkg_resources, which setuptools 82 has removed.
    remedy = 'pip install -U "tensorboard>=2.21"'
    return Finding("tensorboard command", "broken", detail, remedy)


def _data_sets() -> Iterator[Finding]:
    """Check that the examples' data sets are prepared in files that do not need TensorFlow."""
    try:
        version = metadata.version("tensorflow-datasets")
    except metadata.PackageNotFoundError:
        remedy = 'for the examples: pip install "rankmon[examples]"'
        yield Finding("TensorFlow Datasets", "missing", "not installed", remedy)
        return
    yield Finding("TensorFlow Datasets", "ok", f"{version}, for the examples")
    for name in DATA_SETS:
        error = _error_of(
            "import tensorflow_datasets as tfds\n"
            f"builder = tfds.builder({name!r})\n"
            "assert builder.is_prepared(), f'not prepared in {builder.data_path}'\n"
            "found = builder.info.file_format.value\n"
            "assert found == 'array_record', f'{found} files, which only TensorFlow reads'"
        )
        remedy = f"for the examples: python examples/datasets.py prepare {name}"
        if error is None:
            yield Finding(name, "ok", "prepared")
        else:
            yield Finding(name, "missing", error.removeprefix("AssertionError: "), remedy)


def _error_of(code: str) -> str | None:
    """Run code in a new Python process; return its last line on stderr, or None on success."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return _one_line(error)
    lines = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else (lines or [f"exit code {done.returncode}"])[-1]


def _writable(logdir: Path) -> Finding:
    """Check that the folder can be created and written to: write to its nearest existing parent."""
    nearest = next(folder for folder in (logdir, *logdir.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        detail = f"{logdir}: {os.strerror(error.errno) if error.errno else error}"
        return Finding("logdir", "broken", detail, "choose a writable logdir")
    return Finding("logdir", "ok", f"{logdir} is writable")


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
