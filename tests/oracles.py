"""Oracles: the Hessian's parts by plain autodiff, dense and slow; and the cases that tests share.

They use nothing of rankmon, and the losses are the textbook formulas.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.flatten_util import ravel_pytree


@dataclass(frozen=True, eq=False)
class Case:
    """A network at some parameters with its loss and batch; `textbook` is the plain loss."""

    name: str
    apply: Callable[[Any, Any], Any]
    params: Any
    inputs: Any
    targets: Any
    loss: Any
    textbook: Callable[[Any, Any], Any]
    weights: Any = None

    @property
    def statement(self) -> dict[str, Any]:
        """The arguments of a `Problem` of this case, except apply."""
        return {name: getattr(self, name) for name in ("loss", "inputs", "targets", "weights")}


def mse(z: Any, y: Any) -> Any:
    return 0.5 * jnp.sum((z - y) ** 2)


def cross_entropy(z: Any, label: Any) -> Any:
    return -jax.nn.log_softmax(z)[label]


def soft_cross_entropy(z: Any, t: Any) -> Any:
    return -jnp.sum(t * jax.nn.log_softmax(z))


def cosh(z: Any, y: Any) -> Any:
    return jnp.sum(jnp.log(jnp.cosh(z - y)))


def student_t(z: Any, y: Any) -> Any:
    """A loss that is not convex, so that output Hessians are indefinite."""
    return jnp.sum(jnp.log1p((z - y["at"]) ** 2 / y["width"]))


def mlp(dims: tuple[int, ...], activation: Any = None, *, bias: bool = False, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    params = []
    for fan_in, fan_out in zip(dims[:-1], dims[1:], strict=True):
        layer = {"w": rng.standard_normal((fan_in, fan_out)) * np.sqrt(2 / (fan_in + fan_out))}
        if bias:
            layer["b"] = 0.3 * rng.standard_normal(fan_out)
        params.append(layer)

    def apply(params: Any, x: Any) -> Any:
        for i, layer in enumerate(params):
            x = x @ layer["w"] + layer.get("b", 0.0) if bias else x @ layer["w"]
            if activation is not None and i + 1 < len(params):
                x = activation(x)
        return x

    return apply, params


def data(n: int, d: int, k: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), rng.standard_normal((n, k))


class _Conv(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.tanh(nn.Conv(3, (2, 2))(x))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


class _PerToken(nn.Module):
    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        x = nn.Embed(5, 4)(tokens)
        return nn.Dense(3)(nn.tanh(nn.Dense(4)(x)))


class _BatchStatistics(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(4)(x)
        x = nn.BatchNorm(use_running_average=False, use_bias=True)(x)
        return nn.Dense(2)(nn.tanh(x))


def _flax_case(
    name: str,
    module: Any,
    shapes: dict[str, Any],
    inputs: Any,
    targets: Any,
    others: dict[str, Any] | None = None,
    **rest: Any,
) -> Case:
    """Return the case of a Linen network with Gaussian parameters, without calling its `init`."""
    others = others or {}
    rng = np.random.default_rng(3)

    def gaussian(shape: tuple[int, ...]) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)

    def apply(params: Any, x: Any) -> Any:
        out = module.apply({"params": params, **others}, x, mutable=list(others))
        return out[0] if isinstance(out, tuple) else out

    params = jax.tree.map(gaussian, shapes, is_leaf=lambda node: isinstance(node, tuple))
    return Case(name, apply, params, inputs, targets, **rest)


def _dense_case(
    name: str,
    loss: Any,
    targets: Any,
    textbook: Any,
    *,
    dims: tuple[int, ...] = (5, 4, 4, 3),
    weights: Any = None,
) -> Case:
    network = name.split("-")[0]
    activation = {"linear": None, "relu": jax.nn.relu, "tanh": jnp.tanh}[network.split("_")[0]]
    apply, params = mlp(dims, activation, bias=network.endswith("_bias"))
    return Case(name, apply, params, X, targets, loss, textbook, weights)


X, Y = data(9, 5, 3)
_LABELS = np.arange(9) % 3
_MASK = np.array([1, 0, 2, 1, 0.5, 1, 0, 1, 3.0])


def _conv() -> Case:
    images = np.random.default_rng(2).standard_normal((6, 4, 4, 1))
    targets = np.random.default_rng(3).standard_normal((6, 2))
    shapes = {
        "Conv_0": {"kernel": (2, 2, 1, 3), "bias": (3,)},
        "Dense_0": {"kernel": (12, 2), "bias": (2,)},
    }
    return _flax_case("conv-mse", _Conv(), shapes, images, targets, loss="mse", textbook=mse)


def _tokens() -> Case:
    tokens = np.random.default_rng(4).integers(0, 5, (4, 3))
    shapes = {
        "Embed_0": {"embedding": (5, 4)},
        "Dense_0": {"kernel": (4, 3), "bias": (3,)},  # the outer call is written first
        "Dense_1": {"kernel": (4, 4), "bias": (4,)},
    }
    return _flax_case(
        "tokens-cross_entropy",
        _PerToken(),
        shapes,
        tokens,
        tokens % 3,
        loss="cross_entropy",
        textbook=cross_entropy,
        weights=np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [2, 1, 0.5]]),
    )


def _batch_statistics() -> Case:
    shapes = {
        "Dense_0": {"kernel": (5, 4), "bias": (4,)},
        "BatchNorm_0": {"scale": (4,), "bias": (4,)},
        "Dense_1": {"kernel": (4, 2), "bias": (2,)},
    }
    moving = {"BatchNorm_0": {"mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)}}
    return _flax_case(
        "batch_statistics-mse",
        _BatchStatistics(),
        shapes,
        X,
        Y[:, :2],
        {"batch_stats": moving},
        loss="mse",
        textbook=mse,
    )


_BUILDERS: dict[str, Callable[[], Case]] = {
    **{
        f"{network}-mse": partial(_dense_case, f"{network}-mse", "mse", Y, mse)
        for network in ("linear", "linear_bias", "relu", "relu_bias", "tanh", "tanh_bias")
    },
    "tanh-cross_entropy": partial(
        _dense_case, "tanh-cross_entropy", "cross_entropy", _LABELS, cross_entropy
    ),
    "tanh-one_hot": partial(
        _dense_case, "tanh-one_hot", "cross_entropy", np.eye(3)[_LABELS], soft_cross_entropy
    ),
    "tanh-cosh": partial(_dense_case, "tanh-cosh", "cosh", Y, cosh),
    "tanh-custom": partial(
        _dense_case, "tanh-custom", student_t, {"at": Y, "width": np.abs(Y) + 0.5}, student_t
    ),
    "linear-cross_entropy": partial(
        _dense_case,
        "linear-cross_entropy",
        "cross_entropy",
        _LABELS,
        cross_entropy,
        dims=(5, 4, 3),
    ),
    "linear-weights": partial(
        _dense_case, "linear-weights", "mse", Y, mse, dims=(5, 4, 3), weights=_MASK
    ),
    "conv-mse": _conv,
    "tokens-cross_entropy": _tokens,
    "batch_statistics-mse": _batch_statistics,
}


class _Cases(Mapping[str, Case]):
    """The cases by name; each is built at its first use."""

    def __getitem__(self, name: str) -> Case:
        return _built(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_BUILDERS)

    def __len__(self) -> int:
        return len(_BUILDERS)


@cache
def _built(name: str) -> Case:
    return _BUILDERS[name]()


# The networks and losses on which all engines are tested.
CASES = _Cases()


def dense_parts(case: Case, reference: Any = None) -> dict[str, np.ndarray]:
    """Return H_L by `jax.hessian` of the mean loss, and H_o and H_f by their definitions."""
    found = _dense(case)
    parts = {name: found[name] for name in ("H_L", "H_o", "H_f", "delta", "loss")}
    if reference is not None:
        parts["H_f_fixed"] = np.einsum("n,nk,nkpq->pq", found["w"], reference, found["second"])
    return parts


@lru_cache(maxsize=64)
def _dense(case: Case) -> dict[str, np.ndarray]:
    """Compute all arrays of a case in one compiled program; they are shared and read-only."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), case.params)
        theta, unravel = ravel_pytree(params)
        inputs = jax.tree.map(_as_double, case.inputs)
        targets = jax.tree.map(_as_double, case.targets)
        shape = jax.eval_shape(case.apply, params, inputs).shape
        rows = jax.tree.map(lambda t: t.reshape(-1, *t.shape[len(shape) - 1 :]), targets)
        w = np.ones(int(np.prod(shape[:-1]))) if case.weights is None else np.ravel(case.weights)
        w = jnp.asarray(w / w.sum())

        def outputs(theta: Any, inputs: Any) -> Any:
            return case.apply(unravel(theta), inputs).reshape(-1, shape[-1])

        def mean_loss(theta: Any, inputs: Any, rows: Any) -> Any:
            return jnp.sum(w * jax.vmap(case.textbook)(outputs(theta, inputs), rows))

        @jax.jit
        def program(theta: Any, inputs: Any, rows: Any) -> dict[str, Any]:
            z = outputs(theta, inputs)
            delta = jax.vmap(jax.grad(case.textbook))(z, rows)
            b = jax.vmap(jax.hessian(case.textbook))(z, rows)
            jacobian = jax.jacfwd(outputs)(theta, inputs)
            second = jax.jacfwd(jax.jacfwd(outputs))(theta, inputs)
            return {
                "H_L": jax.hessian(mean_loss)(theta, inputs, rows),
                "H_o": jnp.einsum("n,nkp,nkl,nlq->pq", w, jacobian, b, jacobian),
                "H_f": jnp.einsum("n,nk,nkpq->pq", w, delta, second),
                "delta": delta,
                "loss": mean_loss(theta, inputs, rows),
                "second": second,
                "w": w,
            }

        return jax.tree.map(np.asarray, program(theta, inputs, rows))


def _as_double(a: Any) -> Any:
    a = np.asarray(a)
    return jnp.asarray(a, jnp.float64) if np.issubdtype(a.dtype, np.floating) else jnp.asarray(a)


def gaussian_variables(module: Any, *inputs: Any, seed: int = 3) -> dict[str, Any]:
    """Draw the variables of a Linen module: Gaussian parameters, and positive other variables.

    The module's `init` gives their shapes and dtypes; it is traced, but not run.
    """
    rng = np.random.default_rng(seed)

    def drawn(path: Any, leaf: Any) -> np.ndarray:
        values = rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        return (values if path[0].key == "params" else np.abs(values) + 0.5).astype(leaf.dtype)

    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree_util.tree_map_with_path(drawn, shapes)
