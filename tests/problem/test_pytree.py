"""Names of parameter leaves in the containers that JAX users keep weights in, and their kinds."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx, struct
from flax.core import freeze

from oracles import gaussian_variables
from rankmon._util.globs import matches
from rankmon.problem.pytree import Bundle, is_matrix, leaf_names, leaf_specs
from refusals import refused

A, B = np.ones((3, 2)), np.ones(2)


class Pair(NamedTuple):
    kernel: np.ndarray
    bias: np.ndarray


@jax.tree_util.register_dataclass
@dataclass
class Layer:
    kernel: np.ndarray
    value: np.ndarray


@struct.dataclass
class FlaxLayer:
    kernel: np.ndarray
    bias: np.ndarray


class TwoLayers(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(3, 2, rngs=rngs)
        self.rest = nnx.List([nnx.Linear(2, 2, rngs=rngs), nnx.BatchNorm(2, rngs=rngs)])


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({"b": B, "a": {"w": A}}, ("a/w", "b")),
        ([A, [B, A]], ("0", "1/0", "1/1")),
        ((A, {"w": B}), ("0", "1/w")),
        (freeze({"Dense_0": {"kernel": A, "bias": B}}), ("Dense_0/bias", "Dense_0/kernel")),
        (Pair(A, B), ("kernel", "bias")),
        ({"layer": Pair(A, B)}, ("layer/kernel", "layer/bias")),
        (Layer(A, B), ("kernel", "value")),
        (FlaxLayer(A, B), ("kernel", "bias")),
        ({3: A, 10: B}, ("3", "10")),
        (A, ("params",)),
        ({"a": None, "b": B}, ("b",)),
        ({}, ()),
        (
            nnx.state(nnx.eval_shape(TwoLayers), nnx.Param),
            (
                "first/bias",
                "first/kernel",
                "rest/0/bias",
                "rest/0/kernel",
                "rest/1/bias",
                "rest/1/scale",
            ),
        ),
        (
            nnx.to_pure_dict(
                nnx.state(nnx.eval_shape(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0))), nnx.Param)
            ),
            ("bias", "kernel"),
        ),
    ],
    ids=[
        "dict",
        "list",
        "tuple",
        "FrozenDict",
        "NamedTuple",
        "nested",
        "dataclass",
        "flax-dataclass",
        "integer-keys",
        "lone-leaf",
        "None",
        "empty",
        "nnx.State",
        "nnx-pure-dict",
    ],
)
def test_names(params, names):
    assert leaf_names(params) == names
    assert tuple(spec.name for spec in leaf_specs(params)) == names


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({"params": {"w": A, "b": B}}, ("b", "w")),
        (freeze({"params": {"w": A}}), ("w",)),
        ({"params": A}, ("params",)),
        ({"params": {"params": {"w": A}}}, ("params/w",)),
        ({"params": {"w": A}, "batch_stats": {"mean": B}}, ("batch_stats/mean", "params/w")),
        ({"other": {"w": A}}, ("other/w",)),
    ],
    ids=["lone", "frozen", "leaf", "twice", "with-others", "another"],
)
def test_only_a_lone_params_collection_is_dropped(params, names):
    assert leaf_names(params) == names


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({"enc/W": A, "enc": {"W": B}}, ("enc/W", "enc/W (2)")),
        ({"W": {"a": A, "a (2)": B}, "W/a": A}, ("W/a", "W/a (2)", "W/a (3)")),
        ({"": A, "params": B}, ("params", "params (2)")),
        ({"a": {"b/c": A, "b": {"c": B}}, "a/b": {"c": A}}, ("a/b/c", "a/b/c (2)", "a/b/c (3)")),
        ({"params": {"w/b": A, "w": {"b": B}}}, ("w/b", "w/b (2)")),
        (Bundle({"extra/m": A}, {"m": B}), ("extra/m", "extra/m (2)")),
        ([{"1/w": A}, A], ("0/1/w", "1")),
    ],
    ids=["slash", "numbered-before", "empty", "three", "params", "extra", "list"],
)
def test_no_two_leaves_have_one_name(params, names):
    assert leaf_names(params) == names
    reordered = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(params))
    assert leaf_names(reordered) == names


def test_the_other_of_two_alike_is_chosen_by_its_own_name():
    params = {"enc/W": A, "enc": {"W": np.ones((4, 4))}}
    for options, kept in (
        ({"include": "enc/W"}, [True, False]),
        ({"include": "enc/W (2)"}, [False, True]),
        ({"exclude": "enc/W (2)"}, [True, False]),
        ({"include": "enc/*"}, [True, True]),
    ):
        assert [spec.differentiated for spec in leaf_specs(params, **options)] == kept


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("W[1]", {"W[1]"}),
        ("W[[]1]", {"W[1]"}),
        ("W[2]", {"W2"}),
        ("W[[]*", {"W[1]", "W[a]/b"}),
        ("W[a]/*", {"W[a]/b"}),
        ("[W]?", {"W1", "W2"}),
        ("*]*", {"W[1]", "W[a]/b"}),
        ("q*", {"q*", "q?"}),
    ],
)
def test_brackets_in_names_may_be_written_as_they_are(pattern, chosen):
    params = {"W[1]": A, "W1": A, "W2": A, "W[a]": {"b": A}, "q*": A, "q?": A}
    specs = leaf_specs(params, include=pattern)
    assert {spec.name for spec in specs if spec.differentiated} == chosen
    specs = leaf_specs(params, exclude=pattern)
    assert {spec.name for spec in specs if not spec.differentiated} == chosen
    assert all(matches(name, ["no", pattern]) for name in chosen)


def test_names_and_specs_follow_the_order_of_the_leaves():
    params = gaussian_variables(
        nn.Sequential([nn.Dense(2), nn.Conv(3, (2,))]), np.ones((1, 4, 3), np.float32)
    )
    specs, leaves = leaf_specs(params), jax.tree.leaves(params)
    assert [s.shape for s in specs] == [leaf.shape for leaf in leaves]
    assert [s.size for s in specs] == [leaf.size for leaf in leaves]
    assert len(specs) == 4


@pytest.mark.parametrize(
    ("leaf", "differentiated"),
    [
        (np.ones(2), True),
        (np.ones(2, np.float16), True),
        (jnp.ones(2, jnp.bfloat16), True),
        (jnp.ones(2, jnp.float8_e4m3fn), True),
        (1.5, False),
        (np.float32(1.5), True),
        (jax.ShapeDtypeStruct((2,), jnp.float32), True),
        (np.ones(2, np.int32), False),
        (np.ones(2, np.uint8), False),
        (np.ones(2, bool), False),
        (3, False),
        (True, False),
    ],
    ids=str,
)
def test_floats_alone_are_differentiated(leaf, differentiated):
    (spec,) = leaf_specs({"x": leaf})
    assert spec.differentiated is differentiated
    assert spec.shape == np.shape(leaf)


NAMED = {"enc": {"w": A, "b": B}, "dec": {"w": A, "steps": np.ones(2, int)}}


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        (("*",), (), {"enc/w", "enc/b", "dec/w"}),
        (("enc/*",), (), {"enc/w", "enc/b"}),
        (("*/w", "*/b"), (), {"enc/w", "enc/b", "dec/w"}),
        (("*",), ("*/b", "dec/*"), {"enc/w"}),
        (("enc/*",), ("*/b",), {"enc/w"}),
        (("?ec/[w]",), (), {"dec/w"}),
        (("dec/steps",), (), set()),
        ((), (), set()),
    ],
    ids=["all", "one", "several", "excluded", "both", "glob", "integers", "none"],
)
def test_filters(include, exclude, chosen):
    specs = leaf_specs(NAMED, include=include, exclude=exclude)
    assert {spec.name for spec in specs if spec.differentiated} == chosen
    assert len(specs) == 4


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_filter_that_matches_nothing_is_a_mistake(option):
    with refused(ValueError, "'Enc/*'", "'enc/w'"):
        leaf_specs(NAMED, **{option: ("Enc/*",)})


@pytest.mark.parametrize(
    ("leaf", "kind", "dtype"),
    [
        ("text", "str", "<U4"),
        (object(), "object", "object"),
        (np.array([None, 1]), "ndarray", "object"),
    ],
    ids=["string", "object", "object-array"],
)
def test_leaves_that_are_not_numbers(leaf, kind, dtype):
    with refused(TypeError, kind, dtype, "'a/b'", ".params"):
        leaf_specs({"a": {"b": leaf}})


def test_a_random_key_is_told_how_to_come_along():
    for tree in ({"a": {"b": jax.random.key(0)}}, Bundle(A, {"b": jax.random.key(0)})):
        with refused(TypeError, "random key", "/b'", "key_data", "extra="):
            leaf_specs(tree)


def test_the_whole_state_of_an_nnx_model_is_told_to_pass_the_weights():
    model = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    with refused(TypeError, "nnx.state(model, nnx.Param)"):
        leaf_specs(nnx.state(model))


def test_complex_leaves_can_only_be_held_fixed():
    params = {"w": A, "c": np.ones(2, np.complex64)}
    with refused(TypeError, "real", "complex64", "'c'", "exclude"):
        leaf_specs(params)
    specs = leaf_specs(params, exclude=("c",))
    assert {spec.name: spec.differentiated for spec in specs} == {"c": False, "w": True}


def test_wide_integer_matrices_are_no_weights_and_quantized_ones_are():
    params = {
        "table": np.ones((3, 3), np.int32),
        "mask": np.ones((3, 3), bool),
        "q": np.ones((3, 3), np.int8),
        "q4": jnp.ones((3, 3), jnp.int4),
        "held": np.ones((3, 3), np.uint8),
    }
    specs = leaf_specs(params, exclude=["held"])
    assert {spec.name for spec in specs if is_matrix(spec)} == {"q", "q4"}
    assert not any(spec.differentiated for spec in specs)
