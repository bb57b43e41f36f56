"""Test the tables of closed forms against the paper's numbers and Hessians by autodiff."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankmon.theory import ResidualBlocks
from rankmon.theory.tables import closed_forms, family_forms
from refusals import refused


def test_the_papers_network():
    forms = closed_forms((30, 25, 20, 15, 10))
    assert (forms.p, forms.r, forms.s, forms.q) == (1700, 30, 10, 10)
    assert forms.ranks == {"H_L": 1200, "H_o": 300, "H_f": 1000}
    assert forms.columns == (250, 350, 250, 150)
    assert forms.per_parameter == {"H_L": 1200 / 1700, "H_o": 300 / 1700, "H_f": 1000 / 1700}
    assert [(bound.part, bound.value) for bound in forms.bounds] == [("H_f", 1000)]
    assert closed_forms((30, 25, 20, 15, 10), s=7).ranks == {"H_L": 993, "H_o": 300, "H_f": 742}
    assert closed_forms((30, 25, 20, 15, 10), s=0).ranks == {"H_L": 300, "H_o": 300, "H_f": 0}


def test_cross_entropy_has_one_output_fewer():
    forms = closed_forms((8, 6, 3), loss="cross_entropy")
    assert (forms.q, forms.s, forms.p) == (2, 2, 66)
    assert forms.ranks == closed_forms((8, 6, 2)).ranks


def test_a_family_without_a_formula_for_every_part():
    forms = family_forms(ResidualBlocks(6, inner=(2, 3)))
    assert (forms.p, forms.r, forms.s) == (60, 6, 6)
    assert forms.ranks == {"H_L": 60, "H_o": 35, "H_f": 60}
    assert family_forms(ResidualBlocks(6, inner=(2, 3)), s=5).ranks == {"H_o": 35}
    forms = family_forms(ResidualBlocks(6, inner=(2, 3)), s=2)
    assert forms.ranks == {"H_L": 59, "H_o": 35, "H_f": 36}
    assert forms.per_parameter == {"H_L": 59 / 60, "H_o": 35 / 60, "H_f": 36 / 60}
    assert list(forms.bases) == ["H_L", "H_o", "H_f"]
    assert family_forms(ResidualBlocks(6, inner=(3,)), loss="cross_entropy").s == 5
    with refused(ValueError, "r from 0", "got 7"):
        family_forms(ResidualBlocks(6, inner=(3,)), r=7)


@pytest.mark.parametrize(
    ("dims", "options", "bounds"),
    [
        ((8, 6, 3), {}, {"H_o": 6 * (8 + 3 - 1), "H_f": 36}),  # Theorem 9: M (r + K - 1)
        ((8, 6, 3), {"bias": True}, {}),
        ((8, 6, 3), {"bias": True, "n": 2}, {"H_L": 2 * (3 + 2 * 6)}),
        ((8, 6, 5, 3), {"n": 4}, {"H_f": 2 * 3 * 11 + 2 * 3 * 3 - 3 * 9, "H_L": 4 * (3 + 2 * 11)}),
        ((8, 3), {}, {}),
    ],
    ids=str,
)
def test_bounds_where_they_apply(dims, options, bounds):
    found = closed_forms(dims, **options).bounds
    assert {bound.part: bound.value for bound in found} == bounds


@cache
def loss_hessian():
    """The Hessian of a linear network (6, 5, 4) at the first n of 40 examples, weights first."""

    def loss(theta, x, y, n):
        first, second, b, c = jnp.split(theta, [30, 50, 55])
        z = (x @ first.reshape(6, 5) + b) @ second.reshape(5, 4) + c
        return 0.5 * jnp.sum(jnp.where(jnp.arange(40)[:, None] < n, z - y, 0.0) ** 2)

    return jax.jit(jax.hessian(loss))


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("n", [1, 3, 40])
def test_few_examples_lower_the_rank_of_the_inputs(n, bias):
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=s) for s in ((6, 5), (5, 4))]
    biases = [rng.normal(size=s) * bias for s in (5, 4)]
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(40, 4))
    theta = np.concatenate([part.ravel() for part in weights + biases])
    with jax.enable_x64(True):
        H = np.asarray(loss_hessian()(theta, x, y, n))
    p = len(H) if bias else 50
    rank = np.linalg.matrix_rank(H[:p, :p], rtol=1e-9)
    assert closed_forms((6, 5, 4), n=n, bias=bias).ranks["H_L"] == rank


def test_what_theory_refuses_is_refused():
    with refused(ValueError, "r from 0", "d = 8", "got 9"):
        closed_forms((8, 6, 3), r=9)
    with refused(ValueError, "dims", "(8,)"):
        closed_forms((8,))
    with refused(ValueError, "at least 1", "got 0"):
        closed_forms((8, 6, 3), n=0)


def test_the_learning_coefficient_needs_its_conditions():
    assert closed_forms((8, 6, 3)).coefficient is None
    assert closed_forms((8, 6, 3), n=9, rank_true=2).coefficient.value == 11
    full = ("no biases, mse and inputs of full rank", "leave out")
    for options in ({"bias": True}, {"loss": "cosh"}, {"r": 7}, {"n": 7}):
        with refused(ValueError, *full):
            closed_forms((8, 6, 3), rank_true=2, **options)
    with refused(ValueError, "rank from 0", "smallest width = 3", "got 4"):
        closed_forms((8, 6, 3), rank_true=4)
