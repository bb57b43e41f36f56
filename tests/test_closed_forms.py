"""What is gathered of the closed forms, against the paper's numbers and autodiff's Hessians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from rankmon.closed_forms import closed_forms


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


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("n", [1, 3, 40])
def test_few_examples_lower_the_rank_of_the_inputs(n, bias):
    dims = (6, 5, 4)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        weights = [jnp.asarray(rng.normal(size=s)) for s in ((6, 5), (5, 4))]
        biases = [jnp.asarray(rng.normal(size=s)) for s in (5, 4)] if bias else []
        flat, unravel = ravel_pytree((weights, biases))
        x, y = rng.normal(size=(n, 6)), rng.normal(size=(n, 4))

        def loss(theta):
            (first, second), shifts = unravel(theta)
            hidden = x @ first + (shifts[0] if bias else 0.0)
            return 0.5 * jnp.sum((hidden @ second + (shifts[1] if bias else 0.0) - y) ** 2)

        rank = np.linalg.matrix_rank(np.asarray(jax.hessian(loss)(flat)), rtol=1e-9)
    assert closed_forms(dims, n=n, bias=bias).ranks["H_L"] == rank


def test_what_theory_refuses_is_refused():
    with pytest.raises(ValueError, match=r"expected r within 0 and d = 8, got 9"):
        closed_forms((8, 6, 3), r=9)
    with pytest.raises(ValueError, match=r"expected dims \(d, M_1, ..., K\)"):
        closed_forms((8,))
    with pytest.raises(ValueError, match="expected at least n = 1 example, got 0"):
        closed_forms((8, 6, 3), n=0)
