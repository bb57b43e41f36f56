"""Per-example losses with their first and second derivatives in the outputs; no network.

Symbols: z the outputs of one example, shape [k]; delta = dl/dz its residual; B = d2l/dz2 its
output Hessian, k x k. The closed forms are written without cancellation, because a rank counts
eigenvalues down to rounding: a residual formed as p - 1 has an absolute error of eps however small
the residual is, and that error shows up as rank.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LossFunction = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Loss:
    """One example's loss l(z, target) and its derivatives in z.

    Attributes:
      name: "mse", "cross_entropy", "cosh", or the callable's own name.
      value: (z [k], target) -> scalar.
      residual: (z [k], target) -> delta [k].
      output_hessian: (z [k], target) -> B [k, k].
    """

    name: str
    value: LossFunction
    residual: LossFunction
    output_hessian: LossFunction

    @property
    def has_dense_targets(self) -> bool:
        """Whether targets must have the outputs' shape (the loss is one of ours, not labels)."""
        return self.name in ("mse", "cosh")


def as_loss(loss: str | LossFunction) -> Loss:
    """The `Loss` of that name, or one made from a callable by automatic differentiation.

    Args:
      loss: "mse" (1/2 ||z - y||^2), "cross_entropy" (softmax, integer or one-hot targets), "cosh"
        (sum of log cosh(z - y)), or any `loss(output [k], target) -> scalar` that JAX can
        differentiate twice.

    Raises:
      ValueError: for an unknown name.
      TypeError: for what is neither a name nor callable.
    """
    if isinstance(loss, str):
        if loss not in _BY_NAME:
            raise ValueError(
                f"expected loss to be one of {sorted(_BY_NAME)} or a callable "
                f"loss(output[k], target) -> scalar, got {loss!r}; pass one of these"
            )
        return _BY_NAME[loss]
    if not callable(loss):
        raise TypeError(
            f"expected loss to be a name or a callable, got {type(loss).__name__}; "
            f"pass one of {sorted(_BY_NAME)} or loss(output[k], target) -> scalar"
        )
    name = getattr(loss, "__name__", type(loss).__name__)
    return Loss(f"custom:{name}", loss, jax.grad(loss), jax.hessian(loss))


def _mse(z: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, ""]:
    return 0.5 * jnp.sum((z - y) ** 2)


def _mse_residual(z: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, " k"]:
    return z - y


def _mse_hessian(z: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, "k k"]:
    return jnp.eye(z.shape[0], dtype=z.dtype)


def _log_cosh(z: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, ""]:
    u = jnp.abs(z - y)
    # log cosh u = log(1 + sinh(u)^2) / 2 keeps the digits of small u; the other form, large u.
    small = 0.5 * jnp.log1p(jnp.sinh(jnp.minimum(u, 1.0)) ** 2)
    large = u + jnp.log1p(jnp.exp(-2.0 * u)) - jnp.log(2.0).astype(u.dtype)
    return jnp.sum(jnp.where(u < 1.0, small, large))


def _cosh_residual(z: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, " k"]:
    return jnp.tanh(z - y)


def _cosh_hessian(z: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, "k k"]:
    return jnp.diag(1.0 / jnp.cosh(z - y) ** 2)  # sech^2; 1 - tanh^2 would cancel


def _probabilities(target: Any, z: Float[Array, " k"]) -> Float[Array, " k"]:
    # A scalar is a label; integers [k] are one-hot already.
    if jnp.ndim(target) == 0:
        return jax.nn.one_hot(target, z.shape[0], dtype=z.dtype)
    return jnp.asarray(target, z.dtype)


def _sum_of_others(v: Float[Array, " k"]) -> Float[Array, " k"]:
    others = 1.0 - jnp.eye(v.shape[0], dtype=v.dtype)
    return jnp.matmul(others, v, precision=jax.lax.Precision.HIGHEST)


def _cross_entropy(z: Float[Array, " k"], target: Any) -> Float[Array, ""]:
    t = _probabilities(target, z)
    z = z - jnp.max(z)  # large logits would cost the digits of their differences
    diagonal = jnp.eye(z.shape[0], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(diagonal, -jnp.inf, z[None, :]), axis=1)
    # -log p_c = log(1 + sum of the others' odds), exact where p_c is 1 to rounding.
    return jnp.sum(jnp.where(t > 0, t * jax.nn.softplus(others - z), 0.0))


def _cross_entropy_residual(z: Float[Array, " k"], target: Any) -> Float[Array, " k"]:
    """delta_c = p_c sum_{j != c} t_j - t_c sum_{j != c} p_j: p - t without cancellation."""
    t = _probabilities(target, z)
    p = jax.nn.softmax(z)
    return p * _sum_of_others(t) - t * _sum_of_others(p)


def _cross_entropy_hessian(z: Float[Array, " k"], target: Any) -> Float[Array, "k k"]:
    """B = diag(p_c sum_{j != c} p_j) - offdiagonal(p p^T), times the targets' total mass."""
    p = jax.nn.softmax(z)
    k = z.shape[0]
    b = jnp.where(jnp.eye(k, dtype=bool), jnp.diag(p * _sum_of_others(p)), -jnp.outer(p, p))
    return jnp.sum(_probabilities(target, z)) * b


_BY_NAME = {
    "mse": Loss("mse", _mse, _mse_residual, _mse_hessian),
    "cosh": Loss("cosh", _log_cosh, _cosh_residual, _cosh_hessian),
    "cross_entropy": Loss(
        "cross_entropy", _cross_entropy, _cross_entropy_residual, _cross_entropy_hessian
    ),
}
