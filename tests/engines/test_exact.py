"""Exact engines: all give the spectra of autodiff, and nothing is measured twice."""

import functools
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import CASES, Case, cross_entropy, data, dense_parts, mlp, mse, student_t
from rankmon import HessianProbe, Problem, RankMonitor, Tolerance, hessian_ranks
from rankmon.engines.dense import Curvature
from rankmon.engines.exact import digest
from rankmon.engines.select import exact_engine
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT, dense_bytes
from rankmon.problem.point import Point
from refusals import refused
from shared_problems import flat_of, problem_of

CHOSEN = {
    "linear-mse": "deep_linear",
    "linear_bias-mse": "deep_linear",
    "relu-mse": "stack",
    "relu_bias-mse": "stack",
    "tanh-mse": "stack",
    "tanh_bias-mse": "stack",
    "tanh-cross_entropy": "stack",
    "tanh-one_hot": "stack",
    "tanh-cosh": "stack",
    "tanh-custom": "stack",
    "linear-cross_entropy": "deep_linear",
    "linear-weights": "deep_linear",
    "conv-mse": "dense",
    "tokens-cross_entropy": "dense",
    "batch_statistics-mse": "dense",
}


def stated(case, **options):
    return Problem(case.apply, **case.statement, **options)


def engine_for(problem, params, name="auto", memory_limit=DEFAULT_MEMORY_LIMIT):
    return exact_engine(problem.flat(params), name=name, memory_limit=memory_limit)


def spectra_of(problem, params, name, reference=None):
    return engine_for(problem, params, name).spectra(Point.of(problem, params, reference))


@pytest.mark.parametrize("name", CASES)
def test_the_engine_chosen_gives_the_spectra_of_autodiff(name):
    case, problem, flat = CASES[name], problem_of(name), flat_of(name)
    assert engine_for(problem, case.params).name == CHOSEN[name]
    reference = np.random.default_rng(6).standard_normal((flat.positions, flat.k))
    want = dense_parts(case, reference)
    got = spectra_of(problem, case.params, "auto", reference)
    scale = np.max(np.abs(np.linalg.eigvalsh(want["H_L"])))
    for part, spectrum in got.items():
        assert np.all(np.diff(np.abs(spectrum)) <= 0)
        eigenvalues = np.linalg.eigvalsh((want[part] + want[part].T) / 2)
        np.testing.assert_allclose(
            np.sort(spectrum), eigenvalues, rtol=0, atol=1e-12 * max(scale, 1)
        )


@pytest.mark.parametrize("name", ["linear_bias-mse", "tanh-custom", "conv-mse"])
def test_signed_curvature_is_that_of_autodiff(name):
    case, problem, flat = CASES[name], problem_of(name), flat_of(name)
    reference = np.random.default_rng(6).standard_normal((flat.positions, flat.k))
    point = Point.of(problem, case.params, reference)
    found = engine_for(problem, case.params).ranks(point, Tolerance())
    matrices = dense_parts(case, reference)
    norm = np.linalg.norm(matrices["H_L"], 2)
    assert list(found.curvature) == ["H_L", "H_o", "H_f", "H_f_fixed"]
    for part, summary in found.curvature.items():
        matrix = (matrices[part] + matrices[part].T) / 2
        values, own = np.linalg.eigvalsh(matrix), np.linalg.norm(matrix, 2)
        want = {
            "largest": values[-1],
            "smallest": values[0],
            "trace": np.trace(matrix),
            "frobenius": np.linalg.norm(matrix),
        }
        for key, value in want.items():
            got = getattr(summary, key).value
            assert got == pytest.approx(value, rel=1e-11, abs=1e-11 * max(own, norm)), (part, key)
        squares = (np.linalg.norm(matrix) / own) ** 2
        assert summary.stable_rank.value == pytest.approx(squares, rel=1e-9)
        for share, count in summary.above.items():
            assert count.value == np.sum(np.abs(values) > share * norm), (part, share)
        assert summary.clearly_negative.value == np.sum(values < -0.01 * norm)
        assert summary.negative.value == np.sum(values < -found.parts[part].tolerance)


@pytest.mark.parametrize("name", ["linear_bias-mse", "tanh-cosh"])
def test_all_that_apply_agree(name):
    case, problem = CASES[name], problem_of(name)
    fitting = ["stack", "dense"] + ["deep_linear"] * name.startswith("linear")
    counts = [
        {
            part: (rank.low, rank.rank, rank.high, rank.size)
            for part, rank in hessian_ranks(problem, case.params, engine=engine).items()
        }
        for engine in fitting
    ]
    assert all(count == counts[0] for count in counts)


@jax.custom_vjp
def _straight_through(x):
    return jnp.tanh(3 * x)


_straight_through.defvjp(lambda x: (jnp.tanh(3 * x), None), lambda _, cotangent: (cotangent,))


@jax.custom_jvp
def _own_rule(x):
    return jnp.tanh(x)


@_own_rule.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _own_rule(x), jnp.cos(x) * dx


@jax.custom_vjp
def _clipped_gradient(x):
    return x


_clipped_gradient.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -1, 1),))


def _dead_branch(params, x):
    jnp.tanh(x @ params[0]["w"]) @ params[1]["w"]
    return jax.nn.relu(x @ params[0]["w"]) @ params[1]["w"]


@pytest.mark.parametrize(
    ("activation", "engine"),
    [
        (_straight_through, "dense"),
        (_clipped_gradient, "dense"),
        (_own_rule, "stack"),
        (jax.nn.silu, "stack"),
    ],
    ids=["straight_through", "clipped_gradient", "custom_jvp", "silu"],
)
def test_an_activation_counts_with_its_own_derivative_rules(activation, engine):
    apply, params = mlp((5, 4, 3), activation)
    x, y = data(9, 5, 3)
    problem = Problem(apply, loss="mse", inputs=x, targets=100 * y)
    assert engine_for(problem, params).name == engine
    if engine != "dense":
        assert_as_dense(problem, params)


def assert_as_dense(problem, params):
    auto, dense = (spectra_of(problem, params, name) for name in ("auto", "dense"))
    for part, spectrum in dense.items():
        atol = 1e-12 * abs(dense["H_L"][0])
        np.testing.assert_allclose(np.sort(auto[part]), np.sort(spectrum), rtol=0, atol=atol)


def test_what_apply_computes_and_does_not_return_changes_nothing():
    _, params = mlp((5, 4, 3))
    x, y = data(9, 5, 3)
    assert_as_dense(Problem(_dead_branch, loss="mse", inputs=x, targets=y), params)


def test_a_dead_product_with_a_tied_kernel_changes_nothing():
    def encoder(params, x):
        code = jnp.tanh(x @ params["w"])
        code @ params["w"].T
        return code

    x, y = data(6, 3, 2)
    problem = Problem(encoder, loss="mse", inputs=x, targets=y)
    auto, dense = (
        hessian_ranks(problem, {"w": x[:3, :2]}, engine=engine) for engine in ("auto", "dense")
    )
    assert {part: rank.rank for part, rank in auto.items()} == {
        part: rank.rank for part, rank in dense.items()
    }


@pytest.mark.parametrize(
    ("name", "engines"), [("linear-mse", ["auto"]), ("tanh-mse", ["auto", "dense"])]
)
def test_output_hessians_that_are_not_finite_have_no_rank(name, engines):
    case = CASES[name]

    broken = replace(case, loss=lambda z, y: jnp.sum(jnp.where(y > 0, z**2, jnp.abs(z) ** 1.5)))
    zero = jax.tree.map(np.zeros_like, case.params)  # d2|z|^1.5 is infinite at 0
    problem = stated(broken)
    for engine in engines:
        ranks = hessian_ranks(problem, zero, engine=engine)
        assert {rank.rank for rank in ranks.values()} == {None}


def test_large_weights_keep_their_ranks():
    large = jax.tree.map(lambda a: a * 1e45, CASES["linear-mse"].params)
    auto, dense = (
        hessian_ranks(problem_of("linear-mse"), large, engine=engine)
        for engine in ("auto", "dense")
    )
    assert {part: rank.rank for part, rank in auto.items()} == {
        part: rank.rank for part, rank in dense.items()
    }
    assert auto["H_L"].rank > 0


def test_an_activation_without_second_derivatives_is_explained():
    @jax.custom_vjp
    def activation(x):
        return jnp.tanh(x)

    def backward(x, cotangent):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return (cotangent * jax.pure_callback(lambda x: 1 - np.tanh(x) ** 2, shape, x),)

    activation.defvjp(lambda x: (jnp.tanh(x), x), backward)
    apply, params = mlp((5, 4, 3), activation)
    x, y = data(9, 5, 3)
    problem = Problem(apply, loss="mse", inputs=x, targets=y)
    with refused(ValueError, "differentiate twice", "probes=", "weights"):
        HessianProbe().prepare(problem.flat(params))


@pytest.mark.filterwarnings("ignore::rankmon.RankmonWarning")
def test_a_stack_that_computes_in_float32_is_evaluated_as_it_is():
    module = nn.Sequential([nn.Dense(4, dtype=jnp.float32), nn.tanh, nn.Dense(2)])
    x, y = data(6, 3, 2)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    problem = Problem(module.apply, loss="mse", inputs=x, targets=y)
    assert engine_for(problem, params).name == "dense"


@pytest.mark.parametrize("name", ["linear_bias-mse", "relu-mse"])
def test_one_array_in_a_container_is_the_input_of_a_stack(name):
    case, statement = CASES[name], dict(CASES[name].statement)
    statement["inputs"] = {"x": statement["inputs"]}
    problem = Problem(lambda params, batch: case.apply(params, batch["x"]), **statement)
    assert engine_for(problem, case.params).name == CHOSEN[name]
    with RankMonitor(problem, every=1) as monitor, RankMonitor(stated(case), every=1) as plain:
        scalars, wanted = (m(0, case.params).scalars for m in (monitor, plain))
    ranks = {tag: value for tag, value in wanted.items() if tag.startswith("rank")}
    assert ranks == {tag: scalars.get(tag) for tag in ranks}
    assert "rank_theory/H_L" in ranks or name == "relu-mse"


def test_filtered_parameters_take_the_dense_engine():
    case = CASES["tanh-mse"]
    assert engine_for(stated(case, include=["1/*"]), case.params).name == "dense"


# Nothing twice


@pytest.fixture
def counted(monkeypatch):
    """The orders of the matrices whose eigenvalues are computed."""
    orders, original = [], np.linalg.eigvalsh

    def counting(matrix, *args, **options):
        orders.append(len(matrix))
        return original(matrix, *args, **options)

    monkeypatch.setattr(np.linalg, "eigvalsh", counting)
    return orders


@pytest.mark.parametrize("name", ["linear-mse", "tanh-mse", "conv-mse"])
def test_unchanged_parameters_are_not_measured_again(name, counted):
    case, problem, flat = CASES[name], problem_of(name), flat_of(name)
    engine_for(problem, case.params)  # choosing may compare what the engines give
    counted.clear()
    first, second = (np.full((flat.positions, flat.k), scale) for scale in (1.0, 2.0))
    spectra_of(problem, case.params, "auto", first)
    assert len(counted) in (3, 4)  # where n k is small, H_o comes from singular values
    before = len(counted)
    again = spectra_of(problem, jax.tree.map(np.array, case.params), "auto", first.copy())
    assert len(counted) == before
    assert set(again) == {"H_L", "H_o", "H_f", "H_f_fixed"}
    spectra_of(problem, case.params, "auto", second)
    assert len(counted) == 2 * before
    spectra_of(problem, jax.tree.map(lambda a: a + 1e-9, case.params), "auto", second)
    assert len(counted) == 3 * before


def test_parameters_are_told_apart_in_any_dtype():
    arrays = [np.zeros(3, jnp.bfloat16), np.zeros((3, 0)), np.float64(1.0)]
    assert digest(arrays) == digest([a.copy() for a in arrays])
    assert digest(arrays) != digest([np.ones(3, jnp.bfloat16), *arrays[1:]])


def test_a_reference_that_is_changed_in_place_is_noticed():
    params, problem = CASES["linear-mse"].params, problem_of("linear-mse")
    reference = problem.residuals(params)
    assert hessian_ranks(problem, params, reference=reference)["H_f_fixed"].rank > 0
    reference[:] = 0
    assert hessian_ranks(problem, params, reference=reference)["H_f_fixed"].rank == 0


def test_the_first_probe_counts_the_held_residuals_once(counted):
    problem = problem_of("linear-mse")
    params = jax.tree.map(lambda a: 1.5 * a, CASES["linear-mse"].params)  # not measured before
    residuals = problem.residuals(params)
    spectra = spectra_of(problem, params, "auto", residuals)
    assert len(counted) == 3
    np.testing.assert_array_equal(spectra["H_f_fixed"], spectra["H_f"])


# The Jacobian's singular values


@functools.cache
def wide(loss):
    """Fewer outputs than half of the parameters: the case, and its problem."""
    apply, params = mlp((6, 8, 2), jnp.tanh, bias=True)
    x, y = data(7, 6, 2)
    targets, stated_loss, textbook = {
        "mse": (y, "mse", mse),
        "cross_entropy": (np.arange(7) % 2, "cross_entropy", cross_entropy),
        "student_t": ({"at": 3 * y, "width": np.abs(y) + 0.1}, student_t, student_t),
    }[loss]
    case = Case("wide", apply, params, x, targets, stated_loss, textbook)
    return case, stated(case)


@pytest.mark.parametrize(
    ("loss", "assembly"), [("mse", "dense"), ("mse", "stack"), ("cross_entropy", "stack")]
)
def test_few_examples_give_the_spectrum_of_H_o_by_their_jacobian(loss, assembly, counted):
    case, problem = wide(loss)
    engine_for(problem, case.params, assembly)
    counted.clear()
    got = spectra_of(problem, case.params, assembly)["H_o"]
    assert len(counted) == 2  # H_f and H_L
    want = dense_parts(case)["H_o"]
    eigenvalues = np.sort(np.abs(np.linalg.eigvalsh(want)))[::-1]
    np.testing.assert_allclose(got, eigenvalues, rtol=0, atol=1e-13 * eigenvalues[0])
    # Squares of singular values: rounding is that of eps^2, not eps.
    rank = 14 if loss == "mse" else 7
    assert np.sum(got > 1e-26 * got[0]) == rank


@pytest.mark.parametrize("assembly", ["dense", "stack"])
def test_indefinite_output_hessians_take_the_matrix_itself(assembly):
    case, problem = wide("student_t")
    want = np.linalg.eigvalsh(dense_parts(case)["H_o"])
    assert want[0] < -1e-3 * want[-1]
    got = spectra_of(problem, case.params, assembly)["H_o"]
    np.testing.assert_allclose(np.sort(got), want, rtol=0, atol=1e-13 * np.abs(want).max())


def test_chunks_of_the_jacobian_change_nothing():
    case = replace(wide("mse")[0], weights=np.array([1, 0, 2, 1, 0.5, 1, 3.0]))
    flat = stated(case).flat(case.params)
    theta, fixed = flat.split(flat.leaves(case.params))
    b = flat.output_hessians(theta, fixed)
    whole = Curvature(flat)
    want, root = whole.outer(theta, fixed, b)
    room = whole.workspace_used["H_o"] - 1
    tight = Curvature(flat, memory_limit=dense_bytes(flat.p) + room)
    got, others = tight.outer(theta, fixed, b)
    assert 0 < tight.workspace_used["H_o"] <= room
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14 * np.max(np.abs(want)))
    np.testing.assert_allclose(others, root, rtol=0, atol=1e-14 * np.max(np.abs(root)))


# In a monitor
