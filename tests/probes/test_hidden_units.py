"""The Hessian probe on stacks with activations: the bound on H_o, and the exact rank of H_f."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import mlp
from rankmon import HessianProbe, Problem, RankMonitor, Tolerance, theory
from small_probes import measured_by

PARTS = ("H_L", "H_o", "H_f", "H_f_fixed")


def leaky(z):
    return jax.nn.leaky_relu(z, 0.1)


def stated(dims, activation, *, bias=False, n=40, loss="mse", seed=0, **options):
    apply, params = mlp(dims, activation, bias=bias, seed=seed)
    rng = np.random.default_rng(seed + 1)
    y = rng.standard_normal((n, dims[-1])) if loss == "mse" else rng.integers(0, dims[-1], n)
    x = rng.standard_normal((n, dims[0]))
    return Problem(apply, loss=loss, inputs=x, targets=y, **options), params


def measured(problem, params, **options):
    probe = HessianProbe(**options).prepare(problem.flat(params))
    return measured_by(probe, problem, params)[0].scalars, probe.describe()


def is_clear(scalars, part):
    return scalars[f"rank_low/{part}"] == scalars[f"rank/{part}"] == scalars[f"rank_high/{part}"]


@pytest.mark.parametrize(
    ("dims", "activation", "given"),
    [
        ((5, 6, 3), jax.nn.relu, {}),
        ((5, 6, 3), jax.nn.relu, {"bias": True, "n": 6}),
        ((5, 4, 3), leaky, {"bias": True, "loss": "cross_entropy"}),
        ((1, 5, 2), jax.nn.relu, {}),
        ((4, 3, 2), jnp.abs, {"weights": np.r_[np.ones(4), np.zeros(36)]}),
    ],
    ids=["relu", "few examples", "cross entropy", "kinks coincide", "weights"],
)
def test_one_hidden_layer_of_piecewise_linear_units(dims, activation, given):
    problem, params = stated(dims, activation, **given)
    s, description = measured(problem, params, blocks=True)
    assert is_clear(s, "H_f")
    assert is_clear(s, "H_o")
    assert s["rank_theory/H_f"] == s["rank/H_f"] == s["rank_theory/H_f_fixed"]
    assert s["rank_bound/H_o"] == s["rank/H_o"]
    assert {"rank_theory/H_o", "rank_theory/H_L"}.isdisjoint(s)
    columns = [tag for tag in s if tag.startswith("rank_columns/")]
    for tag in columns:
        assert s[tag] == s[tag.replace("columns", "columns_theory")] == s["rank/H_f"] / 2
    assert len(columns) == 2
    assert {"rank_bound/H_o", "rank_theory/H_f"} <= {one.rank for one in description.predictions}


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_theorem_9_bounds_h_o_by_the_active_units(loss):
    dims, rng = (6, 8, 4), np.random.default_rng(0)
    problem, params = stated(dims, jax.nn.relu, loss=loss)
    x = np.abs(rng.standard_normal((40, 3))) @ np.abs(rng.standard_normal((3, 6)))
    problem.inputs[:] = x
    params[0]["w"][:, :3] = -np.abs(params[0]["w"][:, :3])  # dead on positive inputs
    active = 8 - int((x @ params[0]["w"] <= 0).all(0).sum())
    assert active <= 5
    s, _ = measured(problem, params)
    bound = theory.rank_outer_bound(dims, r=3, active=active, loss=loss)
    assert s["rank/H_o"] <= s["rank_bound/H_o"] <= bound


@pytest.mark.parametrize(("dims", "n"), [((4, 3, 2), 40), ((3, 2, 5), 4)], ids=str)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_one_hidden_layer_of_tanh(dims, n, loss):
    problem, params = stated(dims, jnp.tanh, bias=True, n=n, loss=loss)
    s, description = measured(problem, params)
    assert is_clear(s, "H_o")
    assert s["rank_theory/H_o"] == s["rank_bound/H_o"] == s["rank/H_o"]
    assert "rank_theory/H_f" not in s
    assert any("checked, not proved" in one.source for one in description.predictions)


def test_the_formula_for_tanh_is_left_out_if_a_condition_does_not_hold():
    problem, params = stated((4, 3, 2), jnp.tanh)
    params[0]["w"][:, 1] = params[0]["w"][:, 0]  # two equal units
    s, _ = measured(problem, params)
    assert "rank_theory/H_o" not in s
    assert s["rank/H_o"] < s["rank_bound/H_o"]
    problem, params = stated((4, 3, 2), jnp.tanh, loss="cross_entropy")
    params[1]["w"] *= 1e3  # probabilities of zero and one
    assert "rank_theory/H_o" not in measured(problem, params)[0]


@pytest.mark.parametrize("activation", [jax.nn.softplus, jax.nn.elu, lambda z: jnp.tanh(z) + z / 9])
def test_other_activations_have_a_bound_alone(activation):
    problem, params = stated((4, 3, 2), activation)
    s, _ = measured(problem, params)
    assert not [tag for tag in s if tag.startswith("rank_theory")]
    assert s["rank/H_o"] <= s["rank_bound/H_o"]


def test_a_function_that_is_nearly_a_relu_is_not_taken_for_one():
    problem, params = stated((4, 3, 2), lambda z: jax.nn.softplus(1e6 * z) / 1e6)
    s, _ = measured(problem, params)
    assert "rank_theory/H_f" not in s or s["rank_theory/H_f"] == s["rank/H_f"]
    assert s["rank/H_o"] <= s["rank_bound/H_o"]


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize(("activation", "scaled"), [(leaky, 8), (jax.nn.relu, 8), (jnp.tanh, 0)])
def test_deeper_stacks_have_the_bound_of_their_rescalings(activation, scaled, loss):
    problem, params = stated((3, 4, 4, 2), activation, bias=True, n=100, loss=loss)
    s, description = measured(problem, params)
    p = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert s["rank_bound/H_o"] == p - scaled - 5 * (loss == "cross_entropy")
    assert s["rank/H_o"] <= s["rank_bound/H_o"]
    assert not [tag for tag in s if tag.startswith("rank_theory")]
    assert {"rank_landmark/H_o", "rank_bound/H_o"} <= {one.rank for one in description.predictions}


def test_units_and_inputs_that_are_zero_lower_the_bound_of_deeper_stacks():
    problem, params = stated((3, 4, 4, 2), leaky, n=100)
    params[1]["w"][:, 0] = 0  # a unit without incoming weights has no rescaling of its own
    problem.inputs[:, 0] = 0
    s, _ = measured(problem, params)
    p = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert s["rank_bound/H_o"] == p - 4 - 7
    assert s["rank/H_o"] <= s["rank_bound/H_o"]


def test_the_linear_counterpart_is_a_landmark():
    problem, params = stated((5, 6, 3), jax.nn.relu)
    s, description = measured(problem, params)
    assert {f"rank_landmark/{part}" for part in PARTS} <= s.keys()
    assert s["rank_landmark/H_o"] == theory.rank_outer((5, 6, 3))
    assert "landmark" in description.reservation
    problem, params = stated((5, 6, 3), None)
    s, _ = measured(problem, params)
    assert not [tag for tag in s if tag.startswith(("rank_landmark", "rank_bound"))]


def test_parts_that_are_not_asked_for_have_no_theory():
    problem, params = stated((4, 3, 2), jax.nn.relu)
    s, _ = measured(problem, params, parts=["H_L"])
    assert not [tag for tag in s if tag.startswith(("rank_theory", "rank_bound"))]
    s, _ = measured(problem, params, parts=["H_o"])
    assert "rank_bound/H_o" in s


def test_h_f_is_counted_at_the_cut_of_its_measured_rank():
    problem, params = stated((4, 5, 3), jax.nn.relu)
    for absolute in (1e-3, 1e-2, 1e-1):
        s, _ = measured(problem, params, tolerance=Tolerance(absolute=absolute))
        assert s["rank_theory/H_f"] == s["rank/H_f"]
    assert 0 < s["rank/H_f"] < 24


def test_theory_follows_training_until_h_f_has_vanished():
    """Gradient descent fits 6 examples; the eigenvalues of H_f fall below the cut one by one."""
    problem, params = stated((6, 12, 2), jax.nn.relu, n=6)
    x, y = problem.inputs, problem.targets
    with jax.enable_x64(True):

        @jax.jit
        def descend(params):
            def loss(params):
                return 0.5 * jnp.mean(jnp.sum((problem.apply(params, x) - y) ** 2, axis=1))

            def step(_, params):
                return jax.tree.map(lambda w, g: w - 0.3 * g, params, jax.grad(loss)(params))

            return jax.lax.fori_loop(0, 200, step, params)

        params = jax.tree.map(jnp.asarray, params)
        with RankMonitor(problem, every=1, probes=["hessian"]) as monitor:
            records = []
            for step in range(25):
                records.append(monitor(step, params).scalars)
                params = descend(params)
    for s in records:
        assert s["rank/H_o"] <= s["rank_bound/H_o"]
        for part in ("H_f", "H_f_fixed"):
            assert not is_clear(s, part) or s[f"rank/{part}"] == s[f"rank_theory/{part}"]
    ranks = [s["rank/H_f"] for s in records]
    assert ranks[0] > 20
    assert ranks[-1] == 0


def test_parameters_that_are_not_finite_or_huge_have_no_theory():
    problem, params = stated((4, 3, 2), jax.nn.relu)
    probe = HessianProbe().prepare(problem.flat(params))
    for factor in (np.nan, 1e200):
        broken = [{"w": params[0]["w"] * factor}, params[1]]
        s = measured_by(probe, problem, broken)[0].scalars
        assert not [tag for tag in s if tag.startswith("rank_theory")]
