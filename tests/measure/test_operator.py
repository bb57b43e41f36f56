"""The Hessian's parts as operators, and their eigenpairs, against dense autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import CASES, data, dense_parts, mlp
from rankmon import Problem, RankmonWarning, hessian_eigenpairs, hessian_operator, hessian_spectra
from refusals import refused
from shared_problems import flat_of, problem_of

PARTS = ("H_L", "H_o", "H_f", "H_f_fixed")
NAMES = [
    "relu_bias-mse",
    "tanh-custom",
    "conv-mse",
    "tokens-cross_entropy",
    "linear-weights",
    "batch_statistics-mse",
]


def reference_of(name):
    flat = flat_of(name)
    return np.random.default_rng(5).standard_normal((flat.positions, flat.k))


def operator_of(name, part, **options):
    return hessian_operator(
        problem_of(name), CASES[name].params, part, reference=reference_of(name), **options
    )


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_the_matrix(name, part):
    H = dense_parts(CASES[name], reference_of(name))[part]
    operator = operator_of(name, part)
    p = len(H)
    assert (operator.shape, operator.dtype) == ((p, p), np.float64)
    scale = 1e-12 * np.abs(H).sum(0).max()
    V = np.random.default_rng(0).standard_normal((p, 19))  # more than are taken at once
    np.testing.assert_allclose(operator.matvec(V[:, 0]), H @ V[:, 0], atol=scale)
    np.testing.assert_allclose(operator.matmat(V), H @ V, atol=scale)
    assert operator.matmat(V[:, :0]).shape == (p, 0)
    np.testing.assert_array_equal(operator @ V[:, 0], operator.matvec(V[:, 0]))
    linear = operator.to_scipy()
    for product in (linear @ V, linear.T @ V, linear.rmatmat(V)):
        np.testing.assert_allclose(product, H @ V, atol=scale)
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["conv-mse", "tokens-cross_entropy", "tanh-custom"])
def test_a_batch_that_does_not_fit_is_summed_over_examples(name, part):
    H = dense_parts(CASES[name], reference_of(name))[part]
    scale = 1e-12 * np.abs(H).sum(0).max()
    V = np.random.default_rng(0).standard_normal((len(H), 5))
    whole = operator_of(name, part)
    most = whole._one.programs.block.bytes
    chunked = operator_of(name, part, memory_limit=int(0.7 * most))
    assert chunked._one.programs.block.examples < problem_of(name).n
    np.testing.assert_allclose(chunked.matvec(V[:, 0]), H @ V[:, 0], atol=scale)
    np.testing.assert_allclose(chunked.matmat(V), H @ V, atol=scale)


def test_a_batch_that_does_not_fit_is_refused_if_its_examples_interact():
    most = operator_of("batch_statistics-mse", "H_L")._one.programs.block.bytes
    with refused(MemoryError, "memory_limit"):
        operator_of("batch_statistics-mse", "H_L", memory_limit=int(0.7 * most))
    with refused(MemoryError, "memory_limit"):
        operator_of("conv-mse", "H_L", memory_limit=100)


def test_rules_with_a_reverse_mode_alone_give_the_same_products():
    @jax.custom_vjp
    def activation(x):
        return jnp.tanh(x)

    activation.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))
    case = CASES["tanh-mse"]
    apply, params = mlp((5, 4, 4, 3), activation)
    H = dense_parts(case)["H_L"]
    v = np.random.default_rng(0).standard_normal(len(H))
    got = hessian_operator(Problem(apply, **case.statement), params).matvec(v)
    np.testing.assert_allclose(got, H @ v, atol=1e-12 * np.abs(H).sum(0).max())


def test_networks_that_end_in_float32_are_multiplied_with_a_warning():
    def apply(w, x):
        return jnp.tanh(x.astype(jnp.float32) @ w.astype(jnp.float32))

    x, y = data(9, 5, 3)
    problem = Problem(apply, loss="mse", inputs=x, targets=y)
    w = np.random.default_rng(1).standard_normal((5, 3))
    with pytest.warns(RankmonWarning, match="float32"):
        loss = hessian_operator(problem, w)
    outer, functional = (hessian_operator(problem, w, part) for part in ("H_o", "H_f"))
    V = np.eye(15)
    want = outer.matmat(V) + functional.matmat(V)
    assert np.abs(loss.matmat(V) - want).max() <= 1e-5 * np.abs(want).max()


def test_vectors_go_in_the_order_of_the_parameters():
    apply, params = mlp((5, 4, 3), jnp.tanh, bias=True)
    x, y = data(7, 5, 3)
    problem = Problem(apply, loss="mse", inputs=x, targets=y, exclude=["*/b"])
    operator = hessian_operator(problem, params)
    tree = jax.tree.map(lambda a: np.ones_like(a, np.float64), params)
    v = operator.ravel(tree)
    assert v.shape == (operator.shape[0],) == (32,)
    back = operator.unravel(np.arange(32.0))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    np.testing.assert_array_equal(back[0]["w"], np.arange(20.0).reshape(5, 4))
    np.testing.assert_array_equal(back[1]["w"], np.arange(20.0, 32.0).reshape(4, 3))
    assert not np.any(back[0]["b"])
    np.testing.assert_array_equal(operator.ravel(back), np.arange(32.0))


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
@pytest.mark.parametrize("part", PARTS)
def test_eigenpairs_of_few_parameters(part, which):
    name = "tanh_bias-mse"
    H = dense_parts(CASES[name], reference_of(name))[part]
    want = np.linalg.eigvalsh((H + H.T) / 2)
    key = {"LM": -np.abs(want), "LA": -want, "SA": want}[which]
    want = want[np.argsort(key)]
    for k in (3, len(H)):
        got = hessian_eigenpairs(
            problem_of(name),
            CASES[name].params,
            k,
            part=part,
            which=which,
            reference=reference_of(name),
        )
        atol = 1e-12 * np.abs(want).max()
        np.testing.assert_allclose(got.values, want[:k], atol=atol)
        assert got.vectors.shape == (len(H), k)
        assert np.all(got.residuals <= 10 * atol)


@pytest.fixture(scope="module")
def larger():
    apply, params = mlp((12, 14, 12, 5), jnp.tanh)
    x, y = data(40, 12, 5)
    return Problem(apply, loss="mse", inputs=x, targets=y), params


@pytest.mark.parametrize("part", ["H_L", "H_o", "H_f"])
@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
def test_eigenpairs_of_more_parameters(larger, part, which):
    problem, params = larger
    want = hessian_spectra(problem, params, engine="dense")[part]
    norm = np.abs(want).max()
    key = {"LM": -np.abs(want), "LA": -want, "SA": want}[which]
    want = want[np.argsort(key, kind="stable")][:7]
    got = hessian_eigenpairs(problem, params, 7, part=part, which=which)
    np.testing.assert_allclose(got.values, want, atol=1e-10 * norm)
    assert np.all(got.residuals <= 1e-10 * norm)
    again = hessian_eigenpairs(problem, params, 7, part=part, which=which)
    np.testing.assert_array_equal(got.values, again.values)  # the start vectors are the same
    np.testing.assert_array_equal(got.vectors, again.vectors)


def test_eigenvalues_of_a_linear_network_have_all_their_copies():
    """H_o of one linear layer has those of the inputs' covariance once for each output."""
    x, y = data(60, 50, 8)
    problem = Problem(lambda W, x: x @ W, loss="mse", inputs=x, targets=y)
    got = hessian_eigenpairs(problem, np.ones((50, 8)), 20)
    want = np.repeat(np.linalg.eigvalsh(x.T @ x / 60)[::-1], 8)[:20]
    np.testing.assert_allclose(got.values, want, rtol=1e-9)


def test_what_is_not_finite_has_no_eigenpairs(larger):
    problem, params = larger
    broken = jax.tree.map(np.array, params)
    broken[0]["w"][0, 0] = np.nan
    assert np.isnan(hessian_eigenpairs(problem, broken, 2).values).all()
    assert np.isnan(hessian_operator(problem, broken).matvec(np.ones(396))).all()


def test_what_cannot_be_meant_is_refused(larger):
    problem, params = larger
    with refused(ValueError, "part", "'H_x'"):
        hessian_operator(problem, params, "H_x")
    with refused(ValueError, "reference", "H_f_fixed"):
        hessian_operator(problem, params, "H_f_fixed")
    operator = hessian_operator(problem, params)
    with refused(ValueError, "p = 396", "(5,)"):
        operator.matvec(np.ones(5))
    with refused(ValueError, "[p, m]", "(3, 396)"):
        operator.matmat(np.ones((3, 396)))
    for k in (0, 397):
        with refused(ValueError, "k", str(k)):
            hessian_eigenpairs(problem, params, k)
    with refused(TypeError, "k", "float"):
        hessian_eigenpairs(problem, params, 2.0)
    with refused(ValueError, "which", "'SM'"):
        hessian_eigenpairs(problem, params, 2, which="SM")
    with refused(ValueError, "accuracy"):
        hessian_eigenpairs(problem, params, 2, accuracy=-1)
    with refused(TimeoutError, "time_limit", "H_L"):
        hessian_eigenpairs(problem, params, 2, time_limit=1e-9)
    with refused(MemoryError, "396", "memory_limit"):
        hessian_eigenpairs(problem, params, 99, memory_limit=500_000)

    @jax.custom_vjp
    def once(x):
        return x

    once.defvjp(lambda x: (x, None), lambda _, g: (jax.pure_callback(lambda a: a, g, g),))
    bad = Problem(lambda w, x: once(x @ w), loss="mse", inputs=np.eye(3), targets=np.eye(3))
    with refused(ValueError, "differentiate twice"):
        hessian_operator(bad, np.ones((3, 3)))
