"""Losses of one example with their first and second derivatives in the outputs.

Symbols: z the outputs of one example, shape [k]; delta = dl/dz its residual; B = d2l/dz2 its
output Hessian, k x k. The closed forms are written without cancellation, because a rank counts
eigenvalues down to rounding: a residual formed as p - 1 has an absolute error of eps however small
the residual is, and that error shows up as rank. Arrays of size k x k are formed on request only:
with many classes a batch of them does not fit in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LossFunction = Callable[[Any, Any], Any]


class Root(NamedTuple):
    """C with B = C C^T, from vectors: C = (I - a 1^T) diag(u).

    The vectors are one example's, or have leading axes of examples; NumPy's or JAX's.

    Attributes:
      scale: u, [..., k].
      shift: a, [..., k]; None if it is zero and B diagonal.
      skipped: [...], the column of C that is zero, and left out; None if there is none.
    """

    scale: Any
    shift: Any = None
    skipped: Any = None

    def hessian_product(self, v: Any) -> Any:
        """Return B v for v [..., k]."""
        if self.shift is None:
            return self.scale**2 * v
        y = self.scale**2 * (v - (self.shift * v).sum(-1, keepdims=True))
        return y - self.shift * y.sum(-1, keepdims=True)


@dataclass(frozen=True)
class Loss:
    """One example's loss l(z, target) and its derivatives in z.

    Attributes:
      name: "mse", "cross_entropy", "cosh", or the callable's own name.
      value: (z [k], target) -> scalar.
      residual: (z [k], target) -> delta [k].
      root: (z [k], target) -> the `Root` of B; None if B is known by differentiation alone.
      null_directions: the number of output directions in which the loss does not change, which is
        the number of columns that a root skips.
    """

    name: str
    value: LossFunction
    residual: LossFunction
    root: Callable[[Any, Any], Root] | None = None
    null_directions: int = 0

    def hessian_product(
        self, z: Float[Array, " k"], target: Any, v: Float[Array, " k"]
    ) -> Float[Array, " k"]:
        """Return B v; no k x k array is formed."""
        if self.root is not None:
            return self.root(z, target).hessian_product(v)
        return jax.vjp(lambda z: self.residual(z, target), z)[1](v)[0]

    def output_hessian(self, z: Float[Array, " k"], target: Any) -> Float[Array, "k k"]:
        """Return B, a k x k array."""
        if self.root is not None:
            b = self.root(z, target).hessian_product(jnp.eye(z.shape[0], dtype=z.dtype))
            return (b + b.T) / 2
        return jax.jacrev(self.residual)(z, target)

    @property
    def has_dense_targets(self) -> bool:
        """Whether targets must have the outputs' shape (the loss is one of ours, not labels)."""
        return self.name in ("mse", "cosh")


def as_loss(loss: str | LossFunction) -> Loss:
    """Return the `Loss` of that name, or one made from a callable by automatic differentiation.

    Args:
      loss: "mse" (1/2 ||z - y||^2), "cross_entropy" (softmax, integer or one-hot targets), "cosh"
        (sum of log cosh(z - y)), or any `loss(output [k], target) -> scalar` that JAX can
        differentiate twice.

    Raises:
      ValueError: for an unknown name.
      TypeError: for anything but a name or a callable.
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
    return Loss(f"custom:{name}", loss, jax.grad(loss))


def _mse(z: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, ""]:
    return 0.5 * jnp.sum((z - y) ** 2)


def _mse_residual(z: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, " k"]:
    return z - y


def _mse_root(z: Float[Array, " k"], y: Float[Array, " k"]) -> Root:
    return Root(jnp.ones_like(z))


def _log_cosh(z: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, ""]:
    u = jnp.abs(z - y)
    # log cosh u = log(1 + sinh(u)^2) / 2 keeps the digits of small u; the other form, large u.
    small = 0.5 * jnp.log1p(jnp.sinh(jnp.minimum(u, 1.0)) ** 2)
    large = u + jnp.log1p(jnp.exp(-2.0 * u)) - jnp.log(2.0).astype(u.dtype)
    return jnp.sum(jnp.where(u < 1.0, small, large))


def _cosh_residual(z: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, " k"]:
    return jnp.tanh(z - y)


def _cosh_root(z: Float[Array, " k"], y: Float[Array, " k"]) -> Root:
    return Root(1.0 / jnp.cosh(z - y))  # B = diag(sech^2); 1 - tanh^2 would cancel


def _probabilities(target: Any, z: Float[Array, " k"]) -> Float[Array, " k"]:
    # A scalar is a label; integers [k] are one-hot already.
    if jnp.ndim(target) == 0:
        return jax.nn.one_hot(target, z.shape[0], dtype=z.dtype)
    return jnp.asarray(target, z.dtype)


def _is_largest(v: Float[Array, " k"]) -> Bool[Array, " k"]:
    """Return whether each entry is the first largest one."""
    return jnp.arange(v.shape[0]) == jnp.argmax(v)


def _sum_of_others(v: Float[Array, " k"]) -> Float[Array, " k"]:
    """Return sum_{j != c} v_j of non-negative v; only the largest would cancel in sum v - v_c."""
    largest = _is_largest(v)
    return jnp.where(largest, jnp.sum(jnp.where(largest, 0.0, v)), jnp.sum(v) - v)


def _cross_entropy(z: Float[Array, " k"], target: Any) -> Float[Array, ""]:
    t = _probabilities(target, z)
    z = z - jnp.max(z)  # large logits would cost the digits of their differences
    largest, odds = _is_largest(z), jnp.exp(z)
    smaller = jax.nn.logsumexp(jnp.where(largest, -jnp.inf, z))
    rest = jnp.where(largest, 1.0, jnp.sum(odds) - odds)  # 1 or more, of which log is safe
    others = jnp.where(largest, smaller, jnp.log(rest))
    # -log p_c = log(1 + sum of the others' odds), exact where p_c is 1 to rounding.
    return jnp.sum(jnp.where(t > 0, t * jax.nn.softplus(others - z), 0.0))


def _cross_entropy_residual(z: Float[Array, " k"], target: Any) -> Float[Array, " k"]:
    """Return delta_c = p_c sum_{j != c} t_j - t_c sum_{j != c} p_j: p - t without cancellation."""
    t = _probabilities(target, z)
    p = jax.nn.softmax(z)
    return p * _sum_of_others(t) - t * _sum_of_others(p)


def _cross_entropy_root(z: Float[Array, " k"], target: Any) -> Root:
    """Return C = diag(p)^(1/2) Q of B = diag(p) - p p^T, times the root of the targets' mass.

    With u = p^(1/2), I - u u^T = Q Q^T for the columns of a Householder reflection that takes the
    unit vector of the largest p_m to -u, without its own: no entry of C cancels.
    """
    p = jax.nn.softmax(z)
    largest = _is_largest(p)
    u = jnp.sqrt(p)
    u_m = jnp.max(u)
    mass = jnp.sum(_probabilities(target, z))
    return Root(
        scale=jnp.where(largest, 0.0, jnp.sqrt(mass) * u),
        shift=jnp.where(largest, u_m, p / (1.0 + u_m)),
        skipped=jnp.argmax(p),
    )


_BY_NAME = {
    "mse": Loss("mse", _mse, _mse_residual, _mse_root),
    "cosh": Loss("cosh", _log_cosh, _cosh_residual, _cosh_root),
    "cross_entropy": Loss(
        "cross_entropy",
        _cross_entropy,
        _cross_entropy_residual,
        _cross_entropy_root,
        null_directions=1,
    ),
}
