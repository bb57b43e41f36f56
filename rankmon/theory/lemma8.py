"""Lemma 8: its assumptions, and the path of log|det W^l| that it predicts.

Lemma 8 and section S5 of arXiv 2106.16225. Gradient flow on a deep linear network, under the mean
over the examples of 1/2 ||F(x) - y||^2, keeps the rank of every weight for all finite times if

- (a) the classes are centered: the inputs of each class have mean zero, so that E[y x^T] = 0 for
  one-hot y, and Omega = W^{L:1} Sigma with Sigma = E[x x^T];
- (b) the start is balanced: W^{k+1}^T W^{k+1} = W^k W^k^T for k = 1, ..., L-1;
- (c) the weights are square: M x M, and K = d = M.

Then, in flow time t (learning rate x step for gradient descent on that mean),

    log|det W^l(t)| = log|det W^l(0)| - integral_0^t tr B^l(u) du,
    B^l = (W^l^T W^l)^{L-l} W^{l-1:1} Sigma W^{1:l-1},

W^{l-1:1} = W^{l-1} ... W^1 and W^{1:l-1} its transpose. `weights` is the stack (W^1, ..., W^L), W^l
of shape M_l x M_{l-1}; X is n x d, with examples in rows. The measured log|det W^l| is that of
`rankmon.weights.ranks`.

Functions of the weights are traceable and compute in the dtype they get: call them inside
`jax.enable_x64(True)` for float64. Functions of the data compute in NumPy's float64.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from rankmon._util.validate import as_integer

_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def class_means(
    inputs: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], classes: int
) -> Float[np.ndarray, "k d"]:
    """Return the mean input of each class, which Lemma 8 (a) asks to vanish; 0 for an empty class.

    Args:
        inputs: X, n x d, examples in rows.
        labels: n integers from 0 to classes - 1.
        classes: K, the number of classes.

    Raises:
        ValueError: For shapes that do not match, or a label outside 0, ..., classes - 1.
        TypeError: For labels that are not integers.
    """
    x, y = _examples(inputs, "inputs"), np.asarray(labels)
    if not np.issubdtype(y.dtype, np.integer):
        raise TypeError(f"labels must be integers, got {y.dtype}; for one-hot rows pass the argmax")
    if y.shape != x.shape[:1]:
        raise ValueError(f"expected one label per input, shape {x.shape[:1]}, got {y.shape}")
    if y.size and not 0 <= y.min() <= y.max() < classes:
        raise ValueError(f"labels must lie in 0, ..., {classes - 1}, got {y.min()} to {y.max()}")
    sums = np.zeros((classes, x.shape[1]))
    np.add.at(sums, y, x)
    return sums / np.maximum(np.bincount(y, minlength=classes), 1)[:, None]


def class_mean_size(
    inputs: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], classes: int
) -> float:
    """Return the largest norm of a class mean over the root mean square norm of the inputs.

    max_c ||mean of x over class c|| / sqrt(E||x||^2), and 0 for inputs that all vanish. Arguments
    and errors are those of `class_means`.
    """
    largest = np.linalg.norm(class_means(inputs, labels, classes), axis=1).max(initial=0.0)
    return _ratio(largest, _rms(_examples(inputs, "inputs")))


def target_input_correlation(
    inputs: Float[np.ndarray, "n d"], targets: Float[np.ndarray, "n k"]
) -> float:
    """Return the size of E[y x^T], from 0 to 1: ||E[y x^T]||_F / sqrt(E||y||^2 E||x||^2).

    The proof of Lemma 8 uses (a) only for E[y x^T] = 0. For one-hot y its row c is the sum of the
    inputs of class c over n; for other targets it takes the place of the class means. It is 0 if
    inputs or targets all vanish.

    Args:
        inputs: X, n x d, examples in rows.
        targets: n x K, one row per example; integer labels have to be made one-hot.

    Raises:
        ValueError: For shapes that do not match.
    """
    x, y = _examples(inputs, "inputs"), _examples(targets, "targets")
    if len(x) != len(y):
        raise ValueError(f"expected as many targets as inputs, got {len(y)} and {len(x)}")
    return _ratio(np.linalg.norm(y.T @ x) / max(len(x), 1), _rms(x) * _rms(y))


def balancedness(weights: Sequence[Float[Array | np.ndarray, "_ _"]]) -> Float[Array, " l-1"]:
    """Return the distance of each pair of neighboring layers from balance, Lemma 8 (b).

    Entry k is ||W^{k+1}^T W^{k+1} - W^k W^k^T||_F over the larger of ||W^{k+1}^T W^{k+1}||_F and
    ||W^k W^k^T||_F: from 0 (balanced) to sqrt(2), 1 if one of the two weights vanishes, 0 if both
    do. Gradient flow keeps the difference (Lemma 23, arXiv 2106.16225), discrete steps do not.

    Args:
        weights: W^1, ..., W^L; they need not be square.

    Raises:
        ValueError: For an empty stack, or shapes that do not chain.
    """
    _check_chain(weights)
    pairs = [_imbalance(lower, upper) for lower, upper in zip(weights, weights[1:], strict=False)]
    return jnp.stack(pairs) if pairs else jnp.zeros(0, jnp.asarray(weights[0]).dtype)


def _imbalance(
    lower: Float[Array | np.ndarray, "m _"], upper: Float[Array | np.ndarray, "_ m"]
) -> Float[Array, ""]:
    # Fourth powers underflow for small weights; the ratio does not depend on a common scale.
    scale = jnp.maximum(jnp.max(jnp.abs(lower)), jnp.max(jnp.abs(upper)))
    safe = jnp.where(scale == 0, 1, scale)
    above, below = _matmul(upper.T / safe, upper / safe), _matmul(lower / safe, lower.T / safe)
    larger = jnp.maximum(jnp.linalg.norm(above), jnp.linalg.norm(below))
    return jnp.linalg.norm(above - below) / jnp.where(scale == 0, 1, larger)


def trace_B(
    weights: Sequence[Float[Array | np.ndarray, "m m"]], Sigma: Float[Array | np.ndarray, "m m"]
) -> Float[Array, " l"]:
    """Return tr B^l, B^l = (W^l^T W^l)^{L-l} W^{l-1:1} Sigma W^{1:l-1}, in the layers' order.

    Under Lemma 8's (a) to (c), -tr B^l is the time derivative of log|det W^l|. No trace is
    negative, and those of balanced weights are all equal.

    Args:
        weights: W^1, ..., W^L, all M x M.
        Sigma: E[x x^T], M x M.

    Raises:
        ValueError: For weights that are not all M x M, or a Sigma that is not.

    Source: proof of Lemma 8, S5, arXiv 2106.16225.
    """
    _check_chain(weights)
    if not _is_square(weights):
        raise ValueError(
            "Lemma 8 (c) needs square weights of one size, got shapes"
            f" {[jnp.shape(W) for W in weights]}; leave its path out for this network"
        )
    if jnp.shape(Sigma) != jnp.shape(weights[0]):
        raise ValueError(f"expected Sigma {jnp.shape(weights[0])}, got shape {jnp.shape(Sigma)}")
    covariance, traces = jnp.asarray(Sigma), []
    for layer, W in enumerate(weights, start=1):
        gram, product = _matmul(W.T, W), covariance
        for _ in range(len(weights) - layer):
            product = _matmul(gram, product)
        traces.append(jnp.trace(product))
        covariance = _matmul(_matmul(W, covariance), W.T)
    return jnp.stack(traces)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DeterminantPath:
    """Lemma 8's log|det W^l| by layer, accumulated over probes at increasing flow times.

    `predicted` is log|det W^l| at the first probe minus the trapezoid integral of tr B^l since, at
    probes of any spacing. `error` estimates the error of the trapezoids: the sum of h^3/12 |f''|
    over the intervals, f'' from the divided differences of three successive probes. It is NaN
    (unknown) until there are three, and does not see changes between two probes.

    It is a pytree of NumPy arrays whose shapes depend on L alone, fit for a checkpoint; `empty` has
    the same structure before there is a probe. Source: Lemma 8, arXiv 2106.16225.
    """

    probes: Int[np.ndarray, ""]
    times: Float[np.ndarray, " 2"]  # of the last probe but one, and of the last
    traces: Float[np.ndarray, "2 l"]
    initial: Float[np.ndarray, " l"]
    integral: Float[np.ndarray, " l"]
    error: Float[np.ndarray, " l"]

    @classmethod
    def empty(cls, layers: int) -> Self:
        """Return the state before the first probe: a count of zero, and NaN."""
        nan = np.full(layers, np.nan)
        return cls(np.asarray(0), np.full(2, np.nan), np.stack([nan, nan]), nan, nan, nan)

    @classmethod
    def start(
        cls, time: float, log_abs_det: Float[np.ndarray, " l"], trace: Float[np.ndarray, " l"]
    ) -> Self:
        """Start a path at a flow time with the log|det W^l| and tr B^l of all layers there.

        Raises:
            ValueError: For a time that is not finite, or arrays that are not both of shape (L,).
        """
        initial, latest = np.array(log_abs_det, np.float64), np.array(trace, np.float64)
        if initial.ndim != 1 or initial.shape != latest.shape:
            raise ValueError(
                "expected one log|det| and one trace per layer,"
                f" got shapes {initial.shape} and {latest.shape}"
            )
        if not np.isfinite(time):
            raise ValueError(f"expected a finite flow time, learning rate x step, got {time}")
        times, traces = np.array([np.nan, time]), np.stack([np.full_like(latest, np.nan), latest])
        unknown = np.full_like(initial, np.nan)
        return cls(np.asarray(1), times, traces, initial, np.zeros_like(initial), unknown)

    def advance(self, time: float, trace: Float[np.ndarray, " l"]) -> DeterminantPath:
        """Return the path with one more probe, from its flow time and the tr B^l of all layers.

        A probe at the time of the last one changes nothing. Traces that are not finite are data:
        the prediction is not finite from there on.

        Raises:
            ValueError: Before `start`, for a time that is not finite or lies before the last, or
                for traces that are not of shape (L,).
        """
        latest = np.asarray(trace, np.float64)
        if self.probes == 0:
            raise ValueError("the path has no first probe; use DeterminantPath.start")
        if latest.shape != self.initial.shape:
            raise ValueError(f"expected traces of shape {self.initial.shape}, got {latest.shape}")
        (before, last), (f0, f1) = self.times, self.traces
        if not last <= time < np.inf:
            raise ValueError(f"expected a time from {last} on, got {time}; start another path")
        if time == last:
            return self
        step = time - last
        with np.errstate(invalid="ignore", over="ignore"):
            bend = (latest - f1) / step - (f1 - f0) / (last - before)
            curvature = np.abs(2 * bend / (time - before))
            # Three probes give the errors of two intervals, each later one that of the last alone.
            earlier = (last - before) ** 3 / 12 * curvature if self.probes == 2 else self.error
            return DeterminantPath(
                probes=np.asarray(self.probes + 1),
                times=np.array([last, time], np.float64),
                traces=np.stack([f1, latest]),
                initial=self.initial,
                integral=self.integral + step * (f1 + latest) / 2,
                error=earlier + step**3 / 12 * curvature,
            )

    @property
    def predicted(self) -> Float[np.ndarray, " l"]:
        """Lemma 8's log|det W^l| at the last probe."""
        with np.errstate(invalid="ignore"):
            return self.initial - self.integral


def balanced_stack(
    key: Array,
    *,
    layers: int,
    width: int,
    singular_values: Sequence[float] | Float[np.ndarray, " m"] | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "m m"], ...]:
    """Draw square weights that are balanced up to rounding: Lemma 8 (b) and (c).

    W^l = U_{l+1} diag(singular_values) U_l^T, the U_l independent and Haar-distributed orthogonal,
    so that W^{l+1}^T W^{l+1} = U_{l+1} diag(singular_values)^2 U_{l+1}^T = W^l W^l^T.

    Args:
        key: A JAX random key.
        layers: L.
        width: M.
        singular_values: The M singular values of every W^l. By default distinct, in geometric
            progression between 2^(-1/2) and 2^(1/2), of product 1: all log|det W^l| are 0.
        dtype: A floating dtype; by default JAX's own, float64 inside `jax.enable_x64(True)`.

    Raises:
        TypeError: For layers or width that are not integers.
        ValueError: For layers or width below 1, or singular values that are negative or not M.
    """
    for name, number in (("layers", layers), ("width", width)):
        if as_integer(name, number) < 1:
            raise ValueError(f"expected {name} of at least 1, got {number}; pass L and M")
    default = 2.0 ** ((np.arange(width) + 0.5) / width - 0.5)
    values = default if singular_values is None else np.asarray(singular_values, np.float64)
    if values.shape != (width,) or not (values >= 0).all():
        raise ValueError(f"expected {width} non-negative singular values, got {singular_values}")
    U = jax.random.orthogonal(key, width, (layers + 1,), dtype)
    return tuple(_matmul(U[1:] * jnp.asarray(values, U.dtype), jnp.swapaxes(U[:-1], 1, 2)))


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """Which of Lemma 8's assumptions hold at a tolerance, and by how much.

    Attributes:
        target_input: `target_input_correlation`, for (a).
        imbalance: Largest entry of `balancedness`, for (b); 0 for a single layer.
        square: Whether all weights are M x M, (c).
        tolerance: The largest value at which either measure counts as zero; NaN never does.
    """

    target_input: float
    imbalance: float
    square: bool
    tolerance: float

    @property
    def centered(self) -> bool:
        """Whether (a) holds."""
        return self.target_input <= self.tolerance

    @property
    def balanced(self) -> bool:
        """Whether (b) holds."""
        return self.imbalance <= self.tolerance

    @property
    def hold(self) -> bool:
        """Whether (a), (b) and (c) all hold."""
        return self.centered and self.balanced and self.square


def assumptions(
    weights: Sequence[Float[Array | np.ndarray, "_ _"]],
    inputs: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n k"],
    *,
    tolerance: float = 1e-6,
) -> Assumptions:
    """Measure Lemma 8's three assumptions for weights W^1, ..., W^L and data n x d and n x K.

    Raises:
        ValueError: For shapes that do not chain, or data that do not fit the stack.
    """
    _check_chain(weights)
    d, k = jnp.shape(weights[0])[1], jnp.shape(weights[-1])[0]
    if np.shape(inputs)[1:] != (d,) or np.shape(targets)[1:] != (k,):
        raise ValueError(
            f"expected inputs (n, {d}) and targets (n, {k}) for these weights,"
            f" got {np.shape(inputs)} and {np.shape(targets)}"
        )
    return Assumptions(
        target_input=target_input_correlation(inputs, targets),
        imbalance=float(jnp.max(balancedness(weights), initial=0.0)),
        square=_is_square(weights),
        tolerance=tolerance,
    )


def _check_chain(weights: Sequence[Float[Array | np.ndarray, "_ _"]]) -> None:
    shapes = [jnp.shape(W) for W in weights]
    if not shapes or any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"expected one or more matrices W^1, ..., W^L, got shapes {shapes}")
    if any(upper[1] != lower[0] for lower, upper in zip(shapes, shapes[1:], strict=False)):
        raise ValueError(
            f"W^(l+1) needs as many columns as W^l has rows, got shapes {shapes};"
            " transpose kernels that are stored as inputs x outputs"
        )


def _is_square(weights: Sequence[Float[Array | np.ndarray, "_ _"]]) -> bool:
    width = jnp.shape(weights[0])[0]
    return all(jnp.shape(W) == (width, width) for W in weights)


def _examples(array: Float[np.ndarray, "n _"], name: str) -> Float[np.ndarray, "n _"]:
    matrix = np.asarray(array, np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"expected {name} with one row per example, got shape {matrix.shape}")
    return matrix


def _rms(rows: Float[np.ndarray, "n _"]) -> float:
    return float(np.linalg.norm(rows) / np.sqrt(max(len(rows), 1)))


def _ratio(size: float | np.floating, scale: float) -> float:
    # Compared with 0, not for being positive: NaN has to come through as NaN.
    return 0.0 if scale == 0 else float(size / scale)
