"""Programs are compiled once in a process, and none is used for another function."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankmon import Problem, RankMonitor
from rankmon._util import expected_time
from rankmon._util.expected_time import compiled
from rankmon.engines.dense import Curvature

COMPILED = "/jax/core/compile/backend_compile_duration"
events: list[str] = []


@jax.monitoring.register_event_duration_secs_listener
def note(event, seconds, **_):
    events.append(event)


def compilations(action):
    """Count what the compiler is asked for during a call."""
    before = events.count(COMPILED)
    action()
    return events.count(COMPILED) - before


def linear(params, x):
    return x @ params["W1"] @ params["W2"]


def relu(params, x):
    return jax.nn.relu(x @ params["W1"]) @ params["W2"]


def residual(params, x):
    """No stack of layers: the engine of any network."""
    return relu(params, x) + jnp.tanh(x @ params["W1"]) @ params["W2"]


def first_probe(network, loss, seed, width):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((11, 5)), rng.integers(0, 3, 11)
    problem = Problem(
        lambda params, x: network(params, x),
        loss=loss,
        inputs=x,
        targets=np.eye(3)[y] if loss == "mse" else y,
    )
    params = {
        "W1": rng.standard_normal((5, width)).astype(np.float32),
        "W2": rng.standard_normal((width, 3)).astype(np.float32),
    }
    with RankMonitor(problem, every=1, probes=["hessian", "weights", "features"]) as monitor:
        return monitor(0, params).scalars


@pytest.mark.parametrize("network", [linear, relu, residual])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_the_next_monitor_of_a_structure_compiles_nothing(network, loss):
    assert compilations(lambda: first_probe(network, loss, seed=0, width=4)) > 0
    assert compilations(lambda: first_probe(network, loss, seed=1, width=4)) == 0
    assert compilations(lambda: first_probe(network, loss, seed=1, width=6)) > 0


@pytest.mark.parametrize("network", [linear, relu, residual])
def test_a_kept_program_gives_the_same_record(network):
    first = first_probe(network, "mse", seed=2, width=7)
    again = first_probe(network, "mse", seed=2, width=7)
    times = {"monitor/seconds", "monitor/overhead"}
    assert {k: v for k, v in first.items() if k not in times} == {
        k: v for k, v in again.items() if k not in times
    }


@jax.custom_jvp
def doubled(x):
    return 2 * x


@jax.custom_jvp
def tripled(x):
    return 3 * x


doubled.defjvp(lambda x, v: (2 * x[0], 2 * v[0]))
tripled.defjvp(lambda x, v: (3 * x[0], 3 * v[0]))
ZEROS, ONES = np.zeros(3, np.float32), np.ones(3, np.float32)


def returning(value):
    """A callback of the same shape, but of another value."""
    like = jax.ShapeDtypeStruct((3,), np.float32)
    return lambda a, b: jax.pure_callback(lambda a: np.full(3, value, np.float32), like, a)


def adding(array):
    return lambda a, b: a + array


PAIRS = {
    "unused arguments": (lambda a, b: a + 1, lambda a, b: b + 1),
    "structures": (lambda a, b: {"x": a, "y": b}, lambda a, b: {"x": a, "z": b}),
    "order": (lambda a, b: (a, b), lambda a, b: (b, a)),
    "NumPy constants": (adding(ZEROS), adding(ONES)),
    "JAX constants": (adding(jnp.zeros(3, "float32")), adding(jnp.ones(3, "float32"))),
    "nested constants": (jax.jit(adding(jnp.zeros(3))), jax.jit(adding(jnp.ones(3)))),
    "scalars": (lambda a, b: a * 2, lambda a, b: a * 3),
    "custom rules": (lambda a, b: doubled(a), lambda a, b: tripled(a)),
    "callbacks": (returning(1), returning(2)),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("hoisted", [False, True], ids=["constants inside", "constants hoisted"])
def test_no_program_is_used_for_another_function(name, hoisted):
    option = "jax_use_simplified_jaxpr_constants"
    if hoisted and not hasattr(jax.config, option):
        pytest.skip("this JAX keeps constants in the program")
    a, b = np.arange(3, dtype=np.float32), np.arange(3, dtype=np.float32) + 5
    before = getattr(jax.config, option, None)
    if hoisted:
        jax.config.update(option, True)
    try:
        for _ in range(2):
            for function in PAIRS[name]:
                program = compiled("a test", jax.jit(function).trace(a, b))
                jax.tree.map(np.testing.assert_array_equal, program(a, b), function(a, b))
    finally:
        if hoisted:
            jax.config.update(option, before)


def trace(donate=(), dtype=np.float32):
    array = jax.ShapeDtypeStruct((5,), dtype)
    return jax.jit(lambda a, b: a - b, donate_argnums=donate).trace(array, array)


def test_whatever_the_compiler_sees_is_compiled_anew():
    device = jax.devices()[0]
    compiled("a test", jax.jit(lambda a: a + 3).trace(1.0))  # finds the options that are unknown
    trials = [
        lambda: compiled("a test", trace()),
        lambda: compiled("a test", trace(donate=(0,))),
        lambda: compiled("a test", trace(dtype=np.int32)),
        lambda: compiled("a test", trace(), {"xla_embed_ir_in_executable": True}),
        lambda: compiled("a test", trace(), placed=jax.sharding.SingleDeviceSharding(device)),
    ]
    assert [compilations(trial) for trial in trials] == [1] * len(trials)
    assert [compilations(trial) for trial in trials] == [0] * len(trials)
    with jax.default_device(device):
        assert compilations(trials[0]) == 1


def test_programs_of_a_mesh_are_not_kept():
    def sharded():
        return compiled("a test", jax.jit(lambda a: a - 1).trace(np.ones(4, np.float32)))

    compiled("a test", jax.jit(lambda a: a + 3).trace(1.0))  # finds the options that are unknown
    with jax.set_mesh(jax.make_mesh((1,), ("x",))):
        assert [compilations(sharded) for _ in range(2)] == [1, 1]


def test_one_residual_takes_the_program_of_two():
    rng = np.random.default_rng(0)
    params = {"W1": rng.standard_normal((5, 4)), "W2": rng.standard_normal((4, 3))}
    problem = Problem(
        residual, loss="mse", inputs=rng.standard_normal((9, 5)), targets=np.ones((9, 3))
    )
    flat, delta = problem.flat(params), rng.standard_normal((9, 3))
    at = flat.split(flat.leaves(params))
    both, one = Curvature(flat), Curvature(flat)
    both.compile(cotangents=2)
    found = []
    assert compilations(lambda: found.extend(both.functional(*at, [delta]))) == 0
    (want,) = one.functional(*at, [delta])
    assert len(found) == 1
    np.testing.assert_allclose(found[0], want, atol=1e-12)


def test_options_that_this_compiler_does_not_know_are_left_out():
    traced = jax.jit(lambda a: a - 2).trace(np.ones(4, np.float32))
    program = compiled("a test", traced, {"xla_no_such_option": True})
    np.testing.assert_array_equal(program(np.ones(4, np.float32)), -np.ones(4, np.float32))


def test_an_option_that_is_unknown_does_not_cost_the_others():
    class Lowered:
        """A compiler that knows all options but one, and counts its calls."""

        calls: typing.ClassVar[list] = []

        def compile(self, compiler_options=None):
            self.calls.append(dict(compiler_options or {}))
            if "xla_gone" in self.calls[-1]:
                raise ValueError("INVALID_ARGUMENT: No such compile option: 'xla_gone'")
            return "program"

    for _ in range(2):
        own = {"xla_gone": 1, "xla_kept": 2}
        assert expected_time._compiled_soon(Lowered(), own, {"xla_too": 3}) == "program"
    first, *others = Lowered.calls
    assert first == {"xla_gone": 1, "xla_kept": 2, "xla_too": 3}
    assert others == [{"xla_kept": 2, "xla_too": 3}] * 2
