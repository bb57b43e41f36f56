"""Test the Hessian probe: its curves, the predictions, and networks of every kind."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from oracles import gaussian_variables, mlp
from rankmon import (
    HessianProbe,
    Problem,
    RankMonitor,
    RankmonWarning,
    hessian_ranks,
    theory,
)
from refusals import refused
from small_probes import measured_by


@pytest.mark.parametrize(
    ("dims", "n", "ranks"),
    [
        ((6, 5, 4, 3), 20, (12, 32)),
        pytest.param((20, 15, 12, 8), 60, (140, 329), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_cross_entropy_trained_to_1e_5_keeps_the_fixed_ranks(dims, n, ranks):
    apply, params = mlp(dims)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, dims[0]))
    labels = np.argmax(x @ rng.standard_normal((dims[0], dims[-1])), axis=1)
    problem = Problem(apply, loss="cross_entropy", inputs=x, targets=labels)
    records = []
    with jax.enable_x64(True):
        optimizer = optax.adam(3e-3)
        params = jax.tree.map(jnp.asarray, params)
        state = optimizer.init(params)

        def loss(params):
            logits = apply(params, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        @jax.jit
        def steps(params, state):
            def one(_, carry):
                params, state = carry
                updates, state = optimizer.update(jax.grad(loss)(params), state)
                return optax.apply_updates(params, updates), state

            return jax.lax.fori_loop(0, 100, one, (params, state))

        monitor = RankMonitor(problem, every=1, probes=["hessian"])
        for step in range(60):
            records.append(monitor(step, params))
            if records[-1].scalars["loss"] < 1e-5:
                break
            params, state = steps(params, state)
    assert records[0].scalars["loss"] > 1
    assert records[-1].scalars["loss"] < 1e-5
    outer = theory.rank_outer(dims, loss="cross_entropy")
    functional = theory.rank_functional(dims, loss="cross_entropy")
    assert (outer, functional) == ranks
    for record in records:
        s = record.scalars
        assert s["rank/H_o"] == s["rank_theory/H_o"] == outer
        assert s["rank/H_f_fixed"] == s["rank_high/H_f_fixed"] == functional


def test_theory_follows_the_residual_to_zero():
    """Parameters at which the residual is a fraction of the same noise, under one problem."""
    apply, params = mlp((5, 4, 3))
    x = np.random.default_rng(0).standard_normal((20, 5))
    hidden = x @ params[0]["w"]
    direction = np.random.default_rng(1).standard_normal((4, 3))
    noise = hidden @ direction
    problem = Problem(apply, loss="mse", inputs=x, targets=hidden @ params[1]["w"])
    probe = HessianProbe().prepare(problem.flat(params))
    state = {"reference": noise, "started": np.ones(())}
    measured = {}
    for scale in (1.0, 1e-6, 1e-20):
        moved = [params[0], {"w": params[1]["w"] + scale * direction}]
        measured[scale] = measured_by(probe, problem, moved, state)[0].scalars
    for scalars in measured.values():
        for part in ("H_L", "H_o", "H_f", "H_f_fixed"):
            assert scalars[f"rank/{part}"] == scalars[f"rank_theory/{part}"], part
    assert measured[1e-6]["rank/H_f"] == measured[1e-6]["rank_self/H_f"] == 24
    assert measured[1e-20]["rank/H_f"] == 0
    assert measured[1e-20]["rank/H_f_fixed"] == 24


def test_theory_is_silent_where_it_does_not_apply():
    x, y = np.eye(4), np.ones((4, 2))
    deficient = [{"w": np.ones((4, 3))}, {"w": np.ones((3, 2))}]
    linear, _ = mlp((4, 3, 2))
    cases = {
        "rank-deficient weights": (linear, deficient, "mse"),
        "a skip": (lambda p, x: x[:, :2] + linear(p, x), mlp((4, 3, 2))[1], "mse"),
        "a custom loss": (linear, mlp((4, 3, 2))[1], lambda z, y: jnp.sum((z - y) ** 4)),
    }
    for name, (apply, params, loss) in cases.items():
        problem = Problem(apply, loss=loss, inputs=x, targets=y)
        measurement, _ = measured_by(HessianProbe().prepare(problem.flat(params)), problem, params)
        assert not [t for t in measurement.scalars if t.startswith("rank_theory")], name
        assert measurement.scalars["rank/Omega"] >= 1


def test_other_stacks_show_their_linear_counterpart_and_say_so():
    apply, params = mlp((4, 3, 2), jax.nn.relu)
    problem = Problem(apply, loss="mse", inputs=np.eye(4), targets=np.ones((4, 2)))
    probe = HessianProbe().prepare(problem.flat(params))
    measurement, _ = measured_by(probe, problem, params)
    assert measurement.scalars["rank_landmark/H_o"] == theory.rank_outer((4, 3, 2))
    assert "linear counterpart" in probe.describe().reservation


def test_spectra_are_logged_without_their_zeros():
    apply, params = mlp((5, 4, 3))
    params[0]["w"][0] = 0.0
    x = np.random.default_rng(0).standard_normal((20, 5))
    x[:, 0] = 0.0
    problem = Problem(apply, loss="mse", inputs=x, targets=np.ones((20, 3)))
    measurement, _ = measured_by(HessianProbe().prepare(problem.flat(params)), problem, params)
    for part in ("H_L", "H_o", "H_f", "H_f_fixed"):
        logs = measurement.arrays[f"spectrum/{part}"]
        assert np.all(np.isfinite(logs))
        assert np.all(np.diff(logs) <= 0)
        assert len(logs) + measurement.scalars[f"spectrum_zeros/{part}"] == 32
    assert measurement.scalars["spectrum_zeros/H_L"] >= 4
    cut_free = np.sum(10 ** measurement.arrays["spectrum/H_o"] > 1e-12)
    assert cut_free == measurement.scalars["rank/H_o"]


def test_a_weight_named_like_a_part_of_the_hessian_overwrites_nothing():
    problem = Problem(
        lambda p, x: x @ p["H_L"], loss="mse", inputs=np.eye(4), targets=np.ones((4, 2))
    )
    record = RankMonitor(problem, every=1)(0, {"H_L": jnp.ones((4, 2))})
    s = record.scalars
    assert s["rank_low/H_L"] == s["rank/H_L"] == s["rank_high/H_L"] == 8
    assert s["rank_weights/params/H_L"] == s["rank_low/params/H_L"] == 1


def test_outputs_that_overflow_are_said_once():
    problem = Problem(
        lambda p, x: jnp.exp(x @ p), loss="mse", inputs=np.eye(2), targets=np.ones((2, 2))
    )
    monitor = RankMonitor(problem, every=1)
    monitor(0, jnp.eye(2))
    with pytest.warns(RankmonWarning, match="not finite") as caught:
        for step in (1, 2):
            record = monitor(step, 1e3 * jnp.eye(2))
    assert len(caught) == 1
    assert np.isnan(record.scalars["rank/H_L"])
    assert record.scalars["monitor/nonfinite"] == 0


class _Narrow(nn.Module):
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, dtype=self.dtype)(nn.Dense(4, dtype=self.dtype)(x))


class _Recurrent(nn.Module):
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        return nn.RNN(nn.SimpleCell(2, param_dtype=self.dtype))(x)[:, -1]


class _Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(2, qkv_features=4, use_bias=False)(x)[:, 0]


class _Embedded(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Dense(3)(nn.Embed(6, 3)(tokens).mean(1))
        x = nn.BatchNorm(use_running_average=True)(x)
        return nn.Dense(2)(nn.relu(x))


SEQUENCES = np.random.default_rng(0).standard_normal((5, 3, 2)).astype(np.float32)
VECTORS = np.random.default_rng(1).standard_normal((12, 5)).astype(np.float32)
TOKENS = np.random.default_rng(2).integers(0, 6, (8, 3))


@pytest.mark.parametrize(
    ("module", "inputs", "warning"),
    [
        (_Narrow(), VECTORS, "computes in float32 inside"),
        (_Recurrent(), SEQUENCES, None),
        (_Attention(), SEQUENCES[:, :2], None),
        (_Embedded(), TOKENS, None),
    ],
    ids=["float32 Dense", "RNN", "attention", "Embed and BatchNorm"],
)
def test_flax_modules_in_float32(module, inputs, warning, recwarn):
    variables = gaussian_variables(module, inputs)
    rest = {name: value for name, value in variables.items() if name != "params"}
    k = jax.eval_shape(module.apply, variables, inputs).shape[-1]
    problem = Problem(
        lambda params, x: module.apply({"params": params, **rest}, x),
        loss="mse",
        inputs=inputs,
        targets=np.random.default_rng(3).standard_normal((len(inputs), k)),
    )
    record = RankMonitor(problem, every=1)(0, variables["params"])
    messages = [str(w.message) for w in recwarn if issubclass(w.category, RankmonWarning)]
    assert len(recwarn) == (warning is not None)
    assert warning is None or (warning in messages[0] and "1.2e-07" in messages[0])
    s = record.scalars
    assert s["monitor/errors"] == 0
    eps = np.finfo(np.float32).eps if warning else np.finfo(np.float64).eps
    counts = _double_counts(module, variables, inputs, problem.targets, eps)
    for part, (fewest, most) in counts.items():
        assert fewest <= s[f"rank/{part}"] <= most, part
    if isinstance(module, _Narrow):  # a linear network with biases, on inputs not centered
        dims = (5, 4, 3)
        assert s["rank/H_o"] == theory.rank_outer(dims, bias=True)
        assert s["rank/H_f"] == theory.rank_functional(dims, bias=True)
        assert s["rank/H_L"] == theory.rank_loss(dims, bias=True)


def _double_counts(module, variables, inputs, targets, eps):
    """Counts at ten times and a tenth of the cut, of the module in float64 by dense autodiff."""
    twin = _in_float64(module)

    @jax.jit
    def parts(variables, inputs):
        theta, unravel = ravel_pytree(variables["params"])

        def outputs(theta):
            return twin.apply(variables | {"params": unravel(theta)}, inputs)

        def loss(theta):
            return jnp.sum((outputs(theta) - targets) ** 2) / (2 * len(targets))

        jacobian = jax.jacfwd(outputs)(theta).reshape(targets.size, -1)
        return jax.hessian(loss)(theta), jacobian.T @ jacobian / len(targets)

    with jax.enable_x64(True):
        loss, outer = map(np.asarray, parts(*jax.tree.map(_as_double, (variables, inputs))))
    spectra = {"H_L": loss, "H_o": outer, "H_f": loss - outer}
    spectra = {part: np.abs(np.linalg.eigvalsh(matrix)) for part, matrix in spectra.items()}
    p = len(loss)
    counts = {}
    for part, s in spectra.items():
        cut = p * eps * max(s.max(), spectra["H_L"].max())
        counts[part] = (s > 10 * cut).sum(), (s > cut / 10).sum()
    return counts


def _as_double(a):
    return a.astype(np.float64) if np.issubdtype(a.dtype, np.floating) else a


def _in_float64(module):
    return module.clone(dtype=jnp.float64) if hasattr(module, "dtype") else module


def test_the_hessian_of_some_layers_beside_the_weights_of_all():
    rng = np.random.default_rng(0)
    params = {"W1": rng.standard_normal((5, 4)), "W2": rng.standard_normal((4, 3))}
    problem = Problem(
        lambda p, x: jnp.tanh(x @ p["W1"]) @ p["W2"],
        loss="cosh",
        inputs=rng.standard_normal((9, 5)),
        targets=rng.standard_normal((9, 3)),
    )
    head = Problem(
        problem.apply,
        loss="cosh",
        inputs=problem.inputs,
        targets=problem.targets,
        include="W2",
    )
    want = {part: rank.rank for part, rank in hessian_ranks(head, params).items()}
    assert want == {"H_L": 12, "H_o": 12, "H_f": 0}
    for probe in (HessianProbe(include="W2"), HessianProbe(exclude=["W1"])):
        with RankMonitor(problem, every=1, probes=[probe, "weights"]) as monitor:
            scalars = monitor(0, params).scalars
            moved = monitor(1, params | {"W1": 2 * params["W1"]}).scalars
        assert {part: scalars[f"rank/{part}"] for part in want} == want
        assert {tag for tag in scalars if tag.startswith("rank_weights/")} == {
            "rank_weights/W1",
            "rank_weights/W2",
        }
        assert moved["loss"] != scalars["loss"]  # what is held fixed still moves
    with refused(ValueError, "'W3'"):
        RankMonitor(problem, every=1, probes=[HessianProbe(include="W3")])(0, params)


def test_a_probe_is_limited_to_seconds_and_a_measurement_to_minutes():
    assert HessianProbe().time_limit == 10.0
    assert inspect.signature(hessian_ranks).parameters["time_limit"].default == 120.0
