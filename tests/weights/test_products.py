"""Test pairs of kernels: which are paired, their names, and clear errors for all others."""

import numpy as np
import pytest

from rankmon.network.matrix_views import matrix_views
from rankmon.problem.pytree import leaf_specs
from rankmon.weights.factors import change_of, inner_size, product_of, product_values
from rankmon.weights.products import check_products, paired_weights
from rankmon.weights.rounding import change_rounding, storage_rounding
from refusals import refused

RNG = np.random.default_rng(5)
EPS = float(np.finfo(np.float32).eps)


def pairs(shapes, products):
    """The products among leaves of these shapes, with the names of their factors."""
    specs = leaf_specs({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    found = paired_weights(specs, matrix_views(specs), products)
    return {weight.name: [view.name for _, view in weight.parts] for weight in found}


LORA = {"lora": ("lora_a", "lora_b")}
ADAPTERS = {"x/lora_a": (5, 2), "x/lora_b": (2, 7), "y/0/lora_a": (4, 3), "y/0/lora_b": (3, 4)}
EXPECTED = {"x/lora": ["x/lora_a", "x/lora_b"], "y/0/lora": ["y/0/lora_a", "y/0/lora_b"]}


@pytest.mark.parametrize(
    "products",
    [LORA, "auto", {"lora": ["*lora_a", "*lora_b"]}, {"lora": ("*/lora_a", "*/lora_b")}],
    ids=["endings", "auto", "lists", "globs"],
)
def test_pairs_are_found_by_endings_and_globs(products):
    assert pairs(ADAPTERS, products) == EXPECTED


def test_names_of_products():
    assert pairs({"lora_a": (5, 2), "lora_b": (2, 7)}, LORA) == {"lora": ["lora_a", "lora_b"]}
    nested = {"lora/lora_a": (5, 2), "lora/lora_b": (2, 7)}
    assert list(pairs(nested, LORA)) == ["lora"]
    lists = {"down/0": (5, 2), "down/1": (6, 2), "up/0": (2, 7), "up/1": (2, 7)}
    assert pairs(lists, {"bottleneck": ("down/*", "up/*")}) == {
        "bottleneck/0": ["down/0", "up/0"],
        "bottleneck/1": ["down/1", "up/1"],
    }
    taken = {"lora": (2, 2), "lora_a": (5, 2), "lora_b": (2, 7)}
    assert list(pairs(taken, LORA)) == ["lora (2)"]


def test_nothing_is_paired_without_products():
    assert pairs(ADAPTERS, None) == {}
    assert pairs({"W": (3, 4)}, "auto") == {}
    assert pairs({"lora_a": (3, 4), "lora_b": (5, 2), "x/lora_a": (3, 4)}, "auto") == {}


def test_layers_are_paired_one_by_one():
    specs = leaf_specs({"A": np.zeros((3, 5, 2)), "B": np.zeros((3, 2, 7))})
    views = {"A": ((1,), (2,)), "B": ((1,), (2,))}
    found = paired_weights(specs, matrix_views(specs, views=views), {"AB": ("A", "B")})
    assert [weight.name for weight in found] == ["AB/0", "AB/1", "AB/2"]
    assert [[view.name for _, view in weight.parts] for weight in found] == [
        [f"A/{layer}", f"B/{layer}"] for layer in range(3)
    ]
    assert {weight.shape for weight in found} == {(5, 7)}


@pytest.mark.parametrize(
    ("shapes", "products", "keys"),
    [
        (ADAPTERS, {"p": ("lora_c", "lora_b")}, ["lora_c", "none among"]),
        ({"x/A": (2, 3), "y/B": (3, 2)}, {"p": ("A", "B")}, ["x/A", "y/B", "partner"]),
        ({"x/A": (2, 3), "B": (3, 2)}, {"p": ("*/A", "B")}, ["x/A", "partner"]),
        ({"A": (5, 2), "B": (7, 2)}, {"p": ("A", "B")}, ["A [5, 2]", "B [7, 2]", "pair other"]),
        ({"A": (2, 5), "B": (7, 2)}, {"p": ("A", "B")}, ["A [2, 5]", "swap"]),
    ],
    ids=["no match", "no partner", "other wildcards", "shapes", "order"],
)
def test_pairs_that_do_not_fit_are_refused(shapes, products, keys):
    with refused(ValueError, "p", *keys):
        pairs(shapes, products)


@pytest.mark.parametrize(
    ("products", "kind"),
    [
        (3, TypeError),
        ("lora", ValueError),
        ([("a", "b")], TypeError),
        ({"p": "ab"}, TypeError),
        ({"p": ("a", "b", "c")}, TypeError),
        ({"p": ("a", 3)}, TypeError),
        ({"": ("a", "b")}, TypeError),
        ({1: ("a", "b")}, TypeError),
    ],
    ids=["number", "name", "list", "string", "three", "not names", "empty", "key"],
)
def test_other_products_are_refused(products, kind):
    with refused(kind, "products", "lora_a"):
        check_products(products)


# Values


@pytest.mark.parametrize(
    "shape", [(9, 2, 7), (3, 5, 8), (4, 4, 4), (6, 1, 2), (50, 3, 40)], ids=str
)
def test_values_are_those_of_the_product(shape):
    m, r, n = shape
    A, B = RNG.standard_normal((m, r)), RNG.standard_normal((r, n))
    expected = np.linalg.svd(A @ B, compute_uv=False)
    got = product_values((A, B))
    np.testing.assert_allclose(got, expected, atol=1e-12 * expected[0])
    assert got.shape == (min(m, n),)
    assert np.all(got[min(shape) :] == 0)
    assert inner_size((A, B)) == min(shape)


@pytest.mark.parametrize("r", [1, 3, 6], ids=str)
def test_a_change_is_the_difference_of_the_products(r):
    A, A0 = RNG.standard_normal((2, 8, r))
    B, B0 = RNG.standard_normal((2, r, 9))
    change = change_of((A, B), (A0, B0))
    np.testing.assert_allclose(product_of(change), A @ B - A0 @ B0, atol=1e-12)
    expected = np.linalg.svd(A @ B - A0 @ B0, compute_uv=False)
    np.testing.assert_allclose(product_values(change), expected, atol=1e-12)
    same = change_of((A, B), (A, B))
    assert not np.any(product_of(same))
    assert not np.any(product_values(same))


def spectral(matrix):
    return np.linalg.svd(matrix, compute_uv=False)[0]


@pytest.mark.parametrize("r", [2, 20], ids=str)
def test_the_bounds_contain_the_rounding_of_factors(r):
    """Products of factors in float64 and of the same factors, rounded to float32."""
    for scale in (1.0, 1e-6):
        A, B = RNG.standard_normal((30, r)), scale * RNG.standard_normal((r, 25))
        a, b = (side.astype(np.float32).astype(np.float64) for side in (A, B))
        bound = storage_rounding((a, b), (EPS, EPS))
        assert spectral(a @ b - A @ B) < bound < 1e-5 * spectral(A @ B)
        move = 1e-3 * RNG.standard_normal(A.shape)
        now = A + move
        new = now.astype(np.float32).astype(np.float64)
        error = spectral((new @ b - a @ b) - (now @ B - A @ B))
        bound = change_rounding((new, b), (a, b), eps=(EPS, EPS), steps=1)
        # B did not move, so that its error times that of the move is all that it adds.
        assert error < bound + EPS * spectral(move) * np.linalg.norm(B)
