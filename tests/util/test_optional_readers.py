"""Test readers of the user's program: if one fails, the general method measures."""

import ast
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

import oracles
import rankmon
from rankmon import MemoryWriter, Problem, RankMonitor
from rankmon._util import jaxpr
from rankmon.network import activations, dense_kernels, kernel_axes, recognized_stack, taps
from rankmon.probes.features import FeaturesProbe
from rankmon.probes.hessian import HessianProbe
from rankmon.probes.weights import WeightsProbe
from rankmon.problem import float64, precision
from refusals import warned

PACKAGE = Path(rankmon.__file__).parent
PARTS = ("H_L", "H_o", "H_f")


def monitored(problem, params, *others, **options):
    """Return the first record of a monitor."""
    memory = MemoryWriter()
    probes = [HessianProbe(**options), WeightsProbe(), *others]
    with RankMonitor(problem, probes=probes, writers=[memory], every=1) as monitor:
        monitor(0, params)
    return memory.records[0]


def assert_ranks(record, case):
    dense = oracles.dense_parts(case)
    cut = len(dense["H_L"]) * np.finfo(np.float64).eps * np.linalg.norm(dense["H_L"], 2)
    for part in PARTS:
        want = int(np.sum(np.abs(np.linalg.eigvalsh(dense[part])) > cut))
        assert record.scalars[f"rank/{part}"] == want, part


# Each reader by a function that it calls: the warning's words, and the engine that reads.
READERS = {
    "dtypes": (precision, "coarsest_operation", "dtypes of the operations", "auto"),
    "stack": (recognized_stack, "_recognized", "stack of dense layers", "auto"),
    "activations": (activations, "_rows", "activations", "auto"),
    "names": (activations, "_name", "activations' names", "auto"),
    "dense kernels": (dense_kernels, "_dense_kernel", "dense kernels", "sketch"),
    "dense kernels walked": (dense_kernels, "_summed_first", "dense kernels", "sketch"),
    "kernels": (kernel_axes, "operation_axes", "axes of kernels", "auto"),
    "lifting": (float64, "_any_operation", "operations to lift", "auto"),
    "features": (taps, "_dense_rows", "features", "auto"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_that_raises_is_left_out_with_one_warning(monkeypatch, reader):
    """The only way to make one reader fail alone is to put the fault into it."""
    module, function, words, engine = READERS[reader]

    def raises(*_):
        raise KeyError("renamed_in_the_next_jax")

    case = oracles.CASES["tanh-mse"]
    monkeypatch.setattr(module, function, raises)
    problem = Problem(case.apply, **case.statement, lift_dtype=reader == "lifting")
    with warned(words, "renamed_in_the_next_jax", "report") as caught:
        record = monitored(problem, case.params, FeaturesProbe(), engine=engine)
    reported = [str(warning.message) for warning in caught if "report" in str(warning.message)]
    assert sum(words in message for message in reported) == 1
    # A second reader may need what the first one finds; it says so itself, once.
    assert len(reported) == len(set(reported)) <= 2
    assert_ranks(record, case)
    assert record.scalars["rank_weights/0/w"] == 4


@cache
def mystery():
    """Return a primitive that calls a program, as a newer JAX or another library may define."""
    primitive = Primitive("mystery_call")
    primitive.multiple_results = True

    def run(*args, body):
        return jaxpr_as_fun(body)(*args)

    def mapped(args, axes, *, body):
        results = jax.vmap(partial(run, body=body), in_axes=tuple(axes))(*args)
        return results, (0,) * len(results)

    primitive.def_impl(run)
    primitive.def_abstract_eval(lambda *_, body: body.out_avals)
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=True))
    batching.primitive_batchers[primitive] = mapped
    ad.primitive_jvps[primitive] = lambda primals, tangents, *, body: jax.jvp(
        partial(run, body=body), tuple(primals), tuple(map(ad.instantiate_zeros, tangents))
    )
    return primitive


def mysteriously(function):
    def called(*args):
        (result,) = mystery().bind(*args, body=jax.make_jaxpr(function)(*args))
        return result

    return called


def activated(params, x):
    return mysteriously(jnp.tanh)(x @ params["W"]) @ params["V"]


def multiplied(params, x):
    return jnp.tanh(mysteriously(jnp.matmul)(x, params["W"])) @ params["V"]


def rounded(params, x):
    half = mysteriously(lambda a: a.astype(jnp.float32) * 1.5)(x @ params["W"])
    return jnp.tanh(half) @ params["V"]


def mystery_case(apply):
    rng = np.random.default_rng(0)
    params = {"W": rng.standard_normal((4, 3)), "V": rng.standard_normal((3, 2))}
    x, y = oracles.data(6, 4, 2)
    return oracles.Case(apply.__name__, apply, params, x, y, "mse", oracles.mse)


@pytest.mark.parametrize(
    ("apply", "engine"),
    [(activated, "auto"), (multiplied, "sketch")],
    ids=["activated-auto", "multiplied-sketch"],
)
def test_readers_go_on_through_an_unknown_higher_order_primitive(apply, engine):
    case = mystery_case(apply)
    record = monitored(
        Problem(apply, **case.statement), case.params, FeaturesProbe(), engine=engine
    )
    assert_ranks(record, case)
    assert record.scalars["rank_weights/W"] == 3


def test_float32_inside_an_unknown_primitive_is_seen():
    case = mystery_case(rounded)
    with pytest.warns(rankmon.RankmonWarning, match="float32.*lift_dtype"):
        rankmon.hessian_ranks(Problem(rounded, **case.statement), case.params)


class ScannedCell(nn.Module):
    """A dense residual layer with the signature of a scan's body."""

    @nn.compact
    def __call__(self, x, _):
        return x + jnp.tanh(nn.Dense(2)(x)), None


class ScannedLayers(nn.Module):
    @nn.compact
    def __call__(self, x):
        scan = nn.scan(
            ScannedCell, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
        )
        return scan()(x, None)[0]


class Recurrent(nn.Module):
    """The carry has the dtype of the parameters: float32 in training, float64 for the oracle."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        return nn.RNN(nn.SimpleCell(2, param_dtype=self.dtype))(x)[:, -1]


def linen_apply(module, params, x):
    return module.apply({"params": params}, x)


class NnxLayers(nnx.Module):
    """Two layers, scanned over their stacked parameters."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=2)
        @nnx.vmap(in_axes=0, out_axes=0)
        def layers(rngs):
            return nnx.Linear(2, 2, rngs=rngs)

        self.layers = layers(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, layer):
            return x + jnp.tanh(layer(x))

        return forward(x, self.layers)


def scanned_networks():
    """Yield apply in float32, apply in float64, parameters and inputs."""
    rng = np.random.default_rng(0)
    sequences, rows = rng.standard_normal((4, 3, 2)), rng.standard_normal((4, 2))
    for module, double, x in (
        (Recurrent(), Recurrent(jnp.float64), sequences),
        (ScannedLayers(), ScannedLayers(), rows),
    ):
        params = oracles.gaussian_variables(module, x)["params"]
        yield partial(linen_apply, module), partial(linen_apply, double), params, x
    graph, params, rest = nnx.split(NnxLayers(nnx.Rngs(0)), nnx.Param, ...)
    merged = lambda params, x: nnx.merge(graph, params, rest)(x)  # noqa: E731
    yield merged, merged, params, rows


def test_scanned_networks_have_the_ranks_of_dense_autodiff():
    """nn.RNN, nn.scan and nnx.scan; lifted, since Flax's carries are float32."""
    y = np.random.default_rng(2).standard_normal((4, 2))
    for apply, double, params, x in scanned_networks():
        problem = Problem(apply, loss="mse", inputs=x, targets=y, lift_dtype=True)
        record = monitored(problem, params, engine="dense")
        assert_ranks(record, oracles.Case("scan", double, params, x, y, "mse", oracles.mse))


def test_one_file_alone_knows_the_names_of_primitives():
    names = {"dot_general", "conv_general_dilated", "custom_jvp_call", "convert_element_type"}
    names |= {"broadcast_in_dim", "dynamic_slice", "num_consts", "num_carry", "dimension_numbers"}
    names |= {"cond_jaxpr", "body_jaxpr", "call_jaxpr", "branches", "preferred_element_type"}
    for path in PACKAGE.glob("*.py"):
        tree = ast.walk(ast.parse(path.read_text()))
        constants = {node.value for node in tree if isinstance(node, ast.Constant)}
        found = {value for value in constants if isinstance(value, str)} & names
        assert not found or path.stem == jaxpr.__name__.split(".")[-1], path
