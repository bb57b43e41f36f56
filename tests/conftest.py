"""Settings of all tests: JAX's defaults (x64 off) on the CPU, one BLAS thread; the browser."""

import gc
import os
import re
import shutil
from importlib.metadata import version

import pytest
from jaxtyping import install_import_hook

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["KERAS_BACKEND"] = "jax"
# xdist keeps the cores busy already; threads that wait for one another take minutes instead.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
# Most programs run once, and compiling them takes longer. CI sets this to 0: there, all is compiled
# as users have it.
QUICK = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"

# Private and mathematical modules: shapes and types of every call are checked as annotated. Modules
# whose functions users call are left out, since our own errors must come first; so are `flat` and
# `point`, which warn: a frame of the checker would be taken for the user's line that they name.
CHECKED = [
    "engines.assembled",
    "engines.base",
    "engines.deep_linear",
    "engines.dense",
    "engines.dense_parts",
    "engines.dense_stack",
    "engines.exact",
    "engines.sketch",
    "hessian.batching",
    "hessian.deep_linear",
    "hessian.gauss_newton",
    "hessian.jacobian",
    "hessian.jacobian_rows",
    "hessian.memory",
    "hessian.operators",
    "hessian.stack_jacobian",
    "linalg.certified_rank",
    "linalg.feature_ranks",
    "linalg.gram",
    "linalg.nested_basis",
    "linalg.rank_bound",
    "linalg.sketch",
    "measure.units",
    "monitor.state",
    "network.dense_kernels",
    "network.activations",
    "network.known_activations",
    "network.taps",
    "probes.base",
    "probes.features",
    "problem.gradient",
    "weights.factors",
    "weights.gradients",
    "weights.marchenko_pastur",
    "weights.rounding",
    "weights.traced",
]
install_import_hook([f"rankmon.{name}" for name in CHECKED], "shapes.checked")

# Programs of their own, which read their arguments, patch `os` or set JAX's options on import.
collect_ignore_glob = ["*_child.py"]


def pytest_configure(config):
    """Keep compiled programs between runs, for the tests' subprocesses too.

    `pytest --cache-clear` empties the cache; `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.
    """
    cache = getattr(config, "cache", None)  # pytest -p no:cacheprovider
    if cache is None:
        return
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.mkdir("jax")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    if QUICK and not hasattr(config, "workerinput"):  # workers inherit it
        key = f"xla/{version('jaxlib')}"
        flags = cache.get(key, None)
        if flags is None:
            cache.set(key, flags := _quick_flags())
        os.environ.setdefault("XLA_FLAGS", flags)


def _quick_flags() -> str:
    """Return XLA flags that halve the time of compilation, if this XLA has them.

    They select an older way to emit fused loops. An unknown flag in XLA_FLAGS ends the process, but
    an unknown compiler option only raises an error: the name is tested as an option.
    """
    import jax

    name = "xla_cpu_use_fusion_emitters"
    try:
        jax.jit(lambda: 0, compiler_options={name: False})()
    except jax.errors.JaxRuntimeError:
        return ""
    return f"--{name}=false"


def pytest_unconfigure():
    """Exclude JAX's caches from pytest's last garbage collections, which would take seconds."""
    gc.collect()
    gc.freeze()


# Messages of TensorBoard's own page, of a browser without a GPU, and of a server that ends while a
# page asks it for news. An answer that is an error, such as 404, has other words.
_ENDED = "CONNECTION_[A-Z]+|SOCKET_NOT_CONNECTED|EMPTY_RESPONSE|INVALID_HTTP_RESPONSE"
_ENDED += "|CONTENT_LENGTH_MISMATCH|INCOMPLETE_CHUNKED_ENCODING"
_NOISE = re.compile(rf"Three\.js|WebGL|Failed to load resource: net::ERR_({_ENDED})\b")


@pytest.fixture(scope="module")
def chromium():
    """Start a browser for the tests of a module."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        if os.environ.get("CI"):
            pytest.fail("expected Chromium, got none; apt-get install chromium chromium-driver")
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    from tab_browser import browser  # Selenium, which the core's tests do without

    with browser(1500, 1100) as started:
        started.set_script_timeout(60)
        yield started


@pytest.fixture
def driver(chromium):
    """Return the browser; fail a test that leaves an error on its console."""
    yield chromium
    chromium.get("about:blank")  # no page asks on, whatever server ends now
    said = [one["message"] for one in chromium.get_log("browser") if one["level"] == "SEVERE"]
    assert not [message for message in said if not _NOISE.search(message)]
