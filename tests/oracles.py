"""Dense, slow, obviously right: the Hessian's parts by plain autodiff, and the cases all share.

Nothing of rankmon is used here but in the tests that import it; losses are the textbook formulas.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.flatten_util import ravel_pytree


@dataclass(frozen=True)
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
        """What a problem is stated with, beside apply."""
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


def _flax_case(name: str, module: Any, inputs: Any, targets: Any, **rest: Any) -> Case:
    variables = module.init(jax.random.key(3), inputs)
    others = {k: v for k, v in variables.items() if k != "params"}

    def apply(params: Any, x: Any) -> Any:
        out = module.apply({"params": params, **others}, x, mutable=list(others))
        return out[0] if isinstance(out, tuple) else out

    params = jax.tree.map(np.asarray, variables["params"])
    return Case(name, apply, params, inputs, targets, **rest)


def cases() -> list[Case]:
    """The networks and losses that every part of the Hessian is held against."""
    x, y = data(9, 5, 3)
    labels = np.arange(9) % 3
    one_hot = np.eye(3)[labels]
    found = []
    for name, activation, bias in (
        ("linear", None, False),
        ("linear_bias", None, True),
        ("relu", jax.nn.relu, False),
        ("relu_bias", jax.nn.relu, True),
        ("tanh", jnp.tanh, False),
        ("tanh_bias", jnp.tanh, True),
    ):
        apply, params = mlp((5, 4, 4, 3), activation, bias=bias)
        found.append(Case(f"{name}-mse", apply, params, x, y, "mse", mse))
    apply, params = mlp((5, 4, 4, 3), jnp.tanh)
    linear, linear_params = mlp((5, 4, 3))
    custom_targets = {"at": y, "width": np.abs(y) + 0.5}
    mask = np.array([1, 0, 2, 1, 0.5, 1, 0, 1, 3.0])
    found += [
        Case("tanh-cross_entropy", apply, params, x, labels, "cross_entropy", cross_entropy),
        Case("tanh-one_hot", apply, params, x, one_hot, "cross_entropy", soft_cross_entropy),
        Case("tanh-cosh", apply, params, x, y, "cosh", cosh),
        Case("tanh-custom", apply, params, x, custom_targets, student_t, student_t),
        Case(
            "linear-cross_entropy", linear, linear_params, x, labels, "cross_entropy", cross_entropy
        ),
        Case("linear-weights", linear, linear_params, x, y, "mse", mse, mask),
    ]
    images = np.random.default_rng(2).standard_normal((6, 4, 4, 1))
    image_targets = np.random.default_rng(3).standard_normal((6, 2))
    tokens = np.random.default_rng(4).integers(0, 5, (4, 3))
    found += [
        _flax_case("conv-mse", _Conv(), images, image_targets, loss="mse", textbook=mse),
        _flax_case(
            "tokens-cross_entropy",
            _PerToken(),
            tokens,
            tokens % 3,
            loss="cross_entropy",
            textbook=cross_entropy,
            weights=np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [2, 1, 0.5]]),
        ),
        _flax_case(
            "batch_statistics-mse", _BatchStatistics(), x, y[:, :2], loss="mse", textbook=mse
        ),
    ]
    return found


def dense_parts(case: Case, reference: Any = None) -> dict[str, np.ndarray]:
    """H_L by `jax.hessian` of the mean loss; H_o and H_f from their definitions; all in float64."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), case.params)
        theta, unravel = ravel_pytree(params)
        inputs = jax.tree.map(_as_double, case.inputs)
        targets = jax.tree.map(_as_double, case.targets)

        def outputs(theta: Any) -> Any:
            z = case.apply(unravel(theta), inputs)
            return z.reshape(-1, z.shape[-1])

        z = outputs(theta)
        axes = case.apply(params, inputs).ndim - 1
        rows = jax.tree.map(lambda t: t.reshape(-1, *t.shape[axes:]), targets)
        w = np.ones(len(z)) if case.weights is None else np.ravel(case.weights)
        w = jnp.asarray(w / w.sum())

        def mean_loss(theta: Any) -> Any:
            return jnp.sum(w * jax.vmap(case.textbook)(outputs(theta), rows))

        delta = jax.vmap(jax.grad(case.textbook))(z, rows)
        b = jax.vmap(jax.hessian(case.textbook))(z, rows)
        jacobian = jax.jacfwd(outputs)(theta)
        second = jax.jacfwd(jax.jacfwd(outputs))(theta)
        parts = {
            "H_L": jax.hessian(mean_loss)(theta),
            "H_o": jnp.einsum("n,nkp,nkl,nlq->pq", w, jacobian, b, jacobian),
            "H_f": jnp.einsum("n,nk,nkpq->pq", w, delta, second),
        }
        if reference is not None:
            parts["H_f_fixed"] = jnp.einsum("n,nk,nkpq->pq", w, reference, second)
        return {name: np.asarray(part) for name, part in parts.items()} | {
            "delta": np.asarray(delta),
            "loss": np.asarray(mean_loss(theta)),
        }


def _as_double(a: Any) -> Any:
    a = np.asarray(a)
    return jnp.asarray(a, jnp.float64) if np.issubdtype(a.dtype, np.floating) else jnp.asarray(a)
