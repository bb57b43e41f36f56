"""Losses of one example, with their first and second derivatives with respect to the outputs.

Symbols: z the outputs of one example, shape [k]; delta = dl/dz its residual; B = d2l/dz2 its
output Hessian, k x k. The closed forms avoid cancellation, because a rank counts eigenvalues down
to rounding errors: a residual computed as p - 1 has an absolute error of eps, however small the
residual is, and that error increases the rank. Arrays of size k x k are formed only on request:
with many classes, a batch of them does not fit in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LossFunction = Callable[[Any, Any], Any]


class Root(NamedTuple):
    """A root C of B = C C^T, given by vectors: C = (I - a 1^T) diag(u).

    The vectors (NumPy or JAX arrays) belong to one example, or have leading axes for examples.

    Attributes:
      scale: u, [..., k].
      shift: a, [..., k]; None if a is zero, so that B is diagonal.
      skipped: [...], the index of the zero column of C, which is left out; None if C has no zero
        column.
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
    """The loss l(z, target) of one example, and its derivatives with respect to z.

    Attributes:
      name: "mse", "cross_entropy", "cosh", or the callable's own name.
      value: the function (z [k], target) -> scalar.
      residual: the function (z [k], target) -> delta [k].
      root: the function (z [k], target) -> the `Root` of B; None if B has no closed form and is
        computed by automatic differentiation.
      null_directions: the number of output directions along which the loss is constant, which is
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
        """Return B v without forming a k x k array."""
        if self.root is not None:
            return self.root(z, target).hessian_product(v)
        # In reverse mode, because a loss with a custom backward rule has no forward mode.
        return jax.vjp(lambda z: self.residual(z, target), z)[1](v)[0]

    def output_hessian(self, z: Float[Array, " k"], target: Any) -> Float[Array, "k k"]:
        """Return B, a k x k array."""
        if self.root is not None:
            b = self.root(z, target).hessian_product(jnp.eye(z.shape[0], dtype=z.dtype))
            # Rounding would leave it slightly asymmetric.
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
    if _is_of_keras(loss):
        raise TypeError(
            "expected loss to be a name or a callable loss(output [k], target) of one example, got "
            f"Keras's {getattr(loss, '__name__', type(loss).__name__)}, which takes (y_true, "
            "y_pred) of a batch; pass loss='cross_entropy' for (Sparse)CategoricalCrossentropy, "
            "with logits as outputs or a softmax as the last layer, loss='mse' for "
            "MeanSquaredError, or write it as lambda z, y: ... for one example"
        )
    if not callable(loss):
        raise TypeError(
            f"expected loss to be a name or a callable, got {type(loss).__name__}; "
            f"pass one of {sorted(_BY_NAME)} or loss(output[k], target) -> scalar"
        )
    name = getattr(loss, "__name__", type(loss).__name__)
    return Loss(f"custom:{name}", loss, jax.grad(loss))


def _is_of_keras(loss: Any) -> bool:
    """Return whether this is one of Keras's own losses, an object or a function."""
    module = getattr(loss, "__module__", None) or ""
    return module.startswith(("keras.src.losses", "keras.losses"))


def _mse(z: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, ""]:
    return 0.5 * jnp.sum((z - y) ** 2)


def _mse_residual(z: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, " k"]:
    return z - y


def _mse_root(z: Float[Array, " k"], y: Float[Array, " k"]) -> Root:
    return Root(jnp.ones_like(z))


def _log_cosh(z: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, ""]:
    u = jnp.abs(z - y)
    # log cosh u = log(1 + sinh(u)^2) / 2 is accurate for small u, the other form for large u.
    # `minimum` keeps the sinh that is not used from overflowing.
    small = 0.5 * jnp.log1p(jnp.sinh(jnp.minimum(u, 1.0)) ** 2)
    large = u + jnp.log1p(jnp.exp(-2.0 * u)) - jnp.log(2.0).astype(u.dtype)
    return jnp.sum(jnp.where(u < 1.0, small, large))


def _cosh_residual(z: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, " k"]:
    return jnp.tanh(z - y)


def _cosh_root(z: Float[Array, " k"], y: Float[Array, " k"]) -> Root:
    return Root(1.0 / jnp.cosh(z - y))  # B = diag(sech^2); 1 - tanh^2 would cancel


def _probabilities(target: Any, z: Float[Array, " k"]) -> Float[Array, " k"]:
    # A scalar target is a label; integers [k] are already one-hot.
    if jnp.ndim(target) == 0:
        return jax.nn.one_hot(target, z.shape[0], dtype=z.dtype)
    return jnp.asarray(target, z.dtype)


def _is_largest(v: Float[Array, " k"]) -> Bool[Array, " k"]:
    """Return for each entry whether it is the largest (the first of several)."""
    return jnp.arange(v.shape[0]) == jnp.argmax(v)


def _sum_of_others(v: Float[Array, " k"]) -> Float[Array, " k"]:
    """Return sum_{j != c} v_j for all c, with v non-negative.

    The difference sum v - v_c would cancel only for the largest v_c, which is summed directly.
    """
    largest = _is_largest(v)
    return jnp.where(largest, jnp.sum(jnp.where(largest, 0.0, v)), jnp.sum(v) - v)


def _cross_entropy(z: Float[Array, " k"], target: Any) -> Float[Array, ""]:
    t = _probabilities(target, z)
    z = z - jnp.max(z)  # differences of large logits would lose digits
    largest, odds = _is_largest(z), jnp.exp(z)
    smaller = jax.nn.logsumexp(jnp.where(largest, -jnp.inf, z))
    rest = jnp.where(largest, 1.0, jnp.sum(odds) - odds)  # at least 1, so log is safe
    others = jnp.where(largest, smaller, jnp.log(rest))
    # -log p_c = log(1 + the sum of p_j / p_c, j != c) is accurate even if p_c rounds to 1.
    return jnp.sum(jnp.where(t > 0, t * jax.nn.softplus(others - z), 0.0))


def _cross_entropy_residual(z: Float[Array, " k"], target: Any) -> Float[Array, " k"]:
    """Return delta = p - t without cancellation.

    delta_c = p_c sum_{j != c} t_j - t_c sum_{j != c} p_j.
    """
    t = _probabilities(target, z)
    p = jax.nn.softmax(z)
    return p * _sum_of_others(t) - t * _sum_of_others(p)


def _cross_entropy_root(z: Float[Array, " k"], target: Any) -> Root:
    """Return C = diag(p)^(1/2) Q for B = diag(p) - p p^T, times the square root of sum_j t_j.

    With u = p^(1/2), I - u u^T = Q Q^T. Q has the columns of a Householder reflection that maps the
    unit vector e_m of the largest p_m to -u, except column m. No entry of C suffers cancellation.
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
