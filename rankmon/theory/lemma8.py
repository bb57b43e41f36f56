"""Lemma 8: its assumptions, and the path of log|det W^l| that it predicts.

Gradient flow on a deep linear network, with the mean over the examples of 1/2 ||F(x) - y||^2 as the
loss, preserves the rank of every weight for all finite times if

- (a) the classes are centered: the inputs of each class have mean zero, so that E[y x^T] = 0 for
  one-hot y, and Omega = W^{L:1} Sigma with Sigma = E[x x^T];
- (b) the initial weights are balanced: W^{k+1}^T W^{k+1} = W^k W^k^T for k = 1, ..., L-1;
- (c) the weights are square: M x M, and K = d = M.

Then, in flow time t (learning rate x step for gradient descent on that loss),

    log|det W^l(t)| = log|det W^l(0)| - integral_0^t tr B^l(u) du,
    B^l = (W^l^T W^l)^{L-l} W^{l-1:1} Sigma W^{1:l-1},

where W^{l-1:1} = W^{l-1} ... W^1 and W^{1:l-1} is its transpose.

`weights` are (W^1, ..., W^L), with W^l of shape M_l x M_{l-1}; X is n x d, with examples in rows.
`rankmon.weights.ranks` measures log|det W^l|. Functions of the weights are traceable and compute in
the dtype of the weights: call them inside `jax.enable_x64(True)` for float64. Functions of the data
use NumPy and float64.

Source: Lemma 8 and section S5 of arXiv 2106.16225.
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
    """Return the mean input of each class, which is zero under Lemma 8 (a) and for empty classes.

    Args:
      inputs: X, n x d, examples in rows.
      labels: n integers from 0 to classes - 1.
      classes: K, the number of classes.

    Raises:
      ValueError: for shapes that do not match, or a label outside 0, ..., classes - 1.
      TypeError: for labels that are not integers.
    """
    x, y = _examples(inputs, "inputs"), np.asarray(labels)
    if not np.issubdtype(y.dtype, np.integer):
        raise TypeError(f"expected integer labels, got {y.dtype}; of one-hot rows pass the argmax")
    if y.shape != x.shape[:1]:
        raise ValueError(f"expected labels of shape {x.shape[:1]}, got {y.shape}; one per input")
    if y.size and not 0 <= y.min() <= y.max() < classes:
        raise ValueError(f"expected labels 0..{classes - 1}, got {y.min()}..{y.max()}; add classes")
    sums = np.zeros((classes, x.shape[1]))
    np.add.at(sums, y, x)  # `sums[y] += x` would add only one row for each class
    return sums / np.maximum(np.bincount(y, minlength=classes), 1)[:, None]


def class_mean_size(
    inputs: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], classes: int
) -> float:
    """Return the largest norm of a class mean, relative to the root mean square of the inputs.

    max_c ||mean of x over class c|| / sqrt(E||x||^2), or 0 if all inputs are zero. Arguments and
    errors are those of `class_means`.
    """
    largest = np.linalg.norm(class_means(inputs, labels, classes), axis=1).max(initial=0.0)
    return _ratio(largest, _rms(_examples(inputs, "inputs")))


def target_input_correlation(
    inputs: Float[np.ndarray, "n d"], targets: Float[np.ndarray, "n k"]
) -> float:
    """Return the size of E[y x^T], from 0 to 1: ||E[y x^T]||_F / sqrt(E||y||^2 E||x||^2).

    The proof of Lemma 8 uses assumption (a) only to conclude E[y x^T] = 0. For one-hot y, row c of
    this matrix is the sum of the inputs of class c, divided by n. For other targets, use it instead
    of the class means. The result is 0 if all inputs or all targets are zero.

    Args:
      inputs: X, n x d, examples in rows.
      targets: n x K, one row per example; convert integer labels to one-hot rows.

    Raises:
      ValueError: for shapes that do not match.
    """
    x, y = _examples(inputs, "inputs"), _examples(targets, "targets")
    if len(x) != len(y):
        raise ValueError(f"expected a target per input, got {len(y)} for {len(x)}; pass as many")
    return _ratio(np.linalg.norm(y.T @ x) / max(len(x), 1), _rms(x) * _rms(y))


def balancedness(weights: Sequence[Float[Array | np.ndarray, "_ _"]]) -> Float[Array, " l-1"]:
    """Return the distance of each pair of neighboring layers from balance, Lemma 8 (b).

    Entry k is ||W^{k+1}^T W^{k+1} - W^k W^k^T||_F, divided by the larger of
    ||W^{k+1}^T W^{k+1}||_F and ||W^k W^k^T||_F. It lies between 0 (balanced) and sqrt(2); it is 1
    if one of the two weights is zero, and 0 if both are. Gradient flow preserves the difference
    (Lemma 23, arXiv 2106.16225); discrete steps do not.

    Args:
      weights: W^1, ..., W^L; they need not be square.

    Raises:
      ValueError: if there are no weights, or their shapes do not chain.
    """
    _check_chain(weights)
    pairs = [_imbalance(lower, upper) for lower, upper in zip(weights, weights[1:], strict=False)]
    return jnp.stack(pairs) if pairs else jnp.zeros(0, jnp.asarray(weights[0]).dtype)


def _imbalance(
    lower: Float[Array | np.ndarray, "m _"], upper: Float[Array | np.ndarray, "_ m"]
) -> Float[Array, ""]:
    """Return one entry of `balancedness`."""
    # Scaled, because fourth powers of small weights underflow. The ratio does not depend on a
    # common scale.
    scale = jnp.maximum(jnp.max(jnp.abs(lower)), jnp.max(jnp.abs(upper)))
    safe = jnp.where(scale == 0, 1, scale)
    above, below = _matmul(upper.T / safe, upper / safe), _matmul(lower / safe, lower.T / safe)
    larger = jnp.maximum(jnp.linalg.norm(above), jnp.linalg.norm(below))
    return jnp.linalg.norm(above - below) / jnp.where(scale == 0, 1, larger)


def trace_B(
    weights: Sequence[Float[Array | np.ndarray, "m m"]], Sigma: Float[Array | np.ndarray, "m m"]
) -> Float[Array, " l"]:
    """Return tr B^l for every layer, where B^l = (W^l^T W^l)^{L-l} W^{l-1:1} Sigma W^{1:l-1}.

    Under assumptions (a) to (c) of Lemma 8, -tr B^l is the time derivative of log|det W^l|. The
    traces are non-negative; for balanced weights they are all equal.

    Args:
      weights: W^1, ..., W^L, all M x M.
      Sigma: E[x x^T], M x M.

    Raises:
      ValueError: if a weight or Sigma is not M x M.

    Source: proof of Lemma 8, section S5, arXiv 2106.16225.
    """
    _check_chain(weights)
    if not _is_square(weights):
        raise ValueError(
            "expected square weights of one size for Lemma 8 (c), got shapes"
            f" {[jnp.shape(W) for W in weights]}; leave its path out for this network"
        )
    if jnp.shape(Sigma) != jnp.shape(weights[0]):
        shapes = f"{jnp.shape(weights[0])}, got {jnp.shape(Sigma)}"
        raise ValueError(f"expected Sigma of shape {shapes}; pass E[x x^T]")
    covariance, traces = jnp.asarray(Sigma), []  # of the layer's input, W^{l-1:1} Sigma W^{1:l-1}
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
    """The log|det W^l| that Lemma 8 predicts, accumulated over probes at increasing flow times.

    `predicted` is log|det W^l| at the first probe minus the integral of tr B^l since then, computed
    by the trapezoidal rule for any spacing of the probes. `error` estimates the error of that rule:
    the sum of h^3/12 |f''| over the intervals of length h, with f'' from the divided differences of
    three successive probes. It is NaN (unknown) before the third probe, and it cannot detect
    changes between two probes.

    The path is a pytree of NumPy arrays whose shapes depend only on L, so it can be saved in a
    checkpoint; `empty` has the same structure.

    Attributes:
      probes: the number of probes so far.
      times: the flow times of the last two probes, the older one first.
      traces: tr B^l at the last two probes.
      initial: log|det W^l| at the first probe.
      integral: the integral of tr B^l from the first to the last probe.
      error: the estimated error of the integral.

    Source: Lemma 8, arXiv 2106.16225.
    """

    probes: Int[np.ndarray, ""]
    times: Float[np.ndarray, " 2"]
    traces: Float[np.ndarray, "2 l"]
    initial: Float[np.ndarray, " l"]
    integral: Float[np.ndarray, " l"]
    error: Float[np.ndarray, " l"]

    @classmethod
    def empty(cls, layers: int) -> Self:
        """Return the path before the first probe: zero probes, and NaN for all values."""
        nan = np.full(layers, np.nan)
        return cls(np.asarray(0), np.full(2, np.nan), np.stack([nan, nan]), nan, nan, nan)

    @classmethod
    def start(
        cls, time: float, log_abs_det: Float[np.ndarray, " l"], trace: Float[np.ndarray, " l"]
    ) -> Self:
        """Start a path with log|det W^l| and tr B^l of all layers at a flow time.

        Raises:
          ValueError: for a time that is not finite, or arrays that are not both of shape (L,).
        """
        initial, latest = np.array(log_abs_det, np.float64), np.array(trace, np.float64)
        if initial.ndim != 1 or initial.shape != latest.shape:
            raise ValueError(
                "expected one log|det| and one trace per layer,"
                f" got shapes {initial.shape} and {latest.shape}; pass two vectors of one length"
            )
        if not np.isfinite(time):
            raise ValueError(f"expected a finite flow time, got {time}; pass learning rate x step")
        times, traces = np.array([np.nan, time]), np.stack([np.full_like(latest, np.nan), latest])
        unknown = np.full_like(initial, np.nan)
        return cls(np.asarray(1), times, traces, initial, np.zeros_like(initial), unknown)

    def advance(self, time: float, trace: Float[np.ndarray, " l"]) -> DeterminantPath:
        """Return the path extended by a probe, given its flow time and tr B^l of all layers.

        A probe at the time of the last one has no effect. Traces may be NaN or infinite; the
        prediction is not finite after that.

        Raises:
          ValueError: for a path without a first probe, a time that is not finite or earlier than
            the last one, or traces that are not of shape (L,).
        """
        latest = np.asarray(trace, np.float64)
        if self.probes == 0:
            raise ValueError("expected a path with a probe, got none; use DeterminantPath.start")
        if latest.shape != self.initial.shape:
            wanted = self.initial.shape
            raise ValueError(f"expected traces {wanted}, got {latest.shape}; one per layer")
        (before, last), (f0, f1) = self.times, self.traces
        if not last <= time < np.inf:
            raise ValueError(f"expected a time from {last} on, got {time}; start another path")
        if time == last:
            return self
        step = time - last
        with np.errstate(invalid="ignore", over="ignore"):
            bend = (latest - f1) / step - (f1 - f0) / (last - before)
            curvature = np.abs(2 * bend / (time - before))
            # The third probe gives the errors of both intervals, each later one that of the last.
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
        """The log|det W^l| that Lemma 8 predicts at the last probe."""
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
    """Draw square weights that are balanced up to rounding, as in Lemma 8 (b) and (c).

    W^l = U_{l+1} diag(singular_values) U_l^T with independent, Haar-distributed orthogonal U_l, so
    that W^{l+1}^T W^{l+1} = U_{l+1} diag(singular_values)^2 U_{l+1}^T = W^l W^l^T.

    Args:
      key: a JAX random key.
      layers: L, the number of weights.
      width: M, the number of rows and columns.
      singular_values: the M singular values of every W^l. By default they are distinct, in
        geometric progression between 2^(-1/2) and 2^(1/2), and have product 1, so that every
        log|det W^l| is 0.
      dtype: a floating dtype; by default JAX's own, which is float64 inside
        `jax.enable_x64(True)`.

    Raises:
      TypeError: for layers or width that are not integers.
      ValueError: for layers or width below 1, or for singular values that are negative or not M.
    """
    for name, number in (("layers", layers), ("width", width)):
        as_integer(name, number, least=1)
    default = 2.0 ** ((np.arange(width) + 0.5) / width - 0.5)
    values = default if singular_values is None else np.asarray(singular_values, np.float64)
    if values.shape != (width,) or not (values >= 0).all():
        raise ValueError(f"expected {width} singular values, got {singular_values}; all >= 0")
    U = jax.random.orthogonal(key, width, (layers + 1,), dtype)
    return tuple(_matmul(U[1:] * jnp.asarray(values, U.dtype), jnp.swapaxes(U[:-1], 1, 2)))


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """The assumptions of Lemma 8, as measured, and whether they hold at a tolerance.

    Attributes:
      target_input: `target_input_correlation`, for assumption (a).
      imbalance: the largest entry of `balancedness`, for assumption (b); 0 for a single layer.
      square: whether all weights are M x M, assumption (c).
      tolerance: the largest value at which the two measures count as zero; NaN never does.
    """

    target_input: float
    imbalance: float
    square: bool
    tolerance: float

    @property
    def centered(self) -> bool:
        """Whether assumption (a) holds."""
        return self.target_input <= self.tolerance

    @property
    def balanced(self) -> bool:
        """Whether assumption (b) holds."""
        return self.imbalance <= self.tolerance

    @property
    def hold(self) -> bool:
        """Whether all three assumptions hold."""
        return self.centered and self.balanced and self.square


def assumptions(
    weights: Sequence[Float[Array | np.ndarray, "_ _"]],
    inputs: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n k"],
    *,
    tolerance: float = 1e-6,
) -> Assumptions:
    """Measure the assumptions of Lemma 8 for W^1, ..., W^L, inputs n x d and targets n x K.

    Raises:
      ValueError: if the shapes do not chain, or the data do not match the weights.
    """
    _check_chain(weights)
    d, k = jnp.shape(weights[0])[1], jnp.shape(weights[-1])[0]
    if np.shape(inputs)[1:] != (d,) or np.shape(targets)[1:] != (k,):
        raise ValueError(
            f"expected inputs (n, {d}) and targets (n, {k}) for these weights,"
            f" got {np.shape(inputs)} and {np.shape(targets)}; put examples in rows"
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
        raise ValueError(f"expected one or more matrices, got shapes {shapes}; pass W^1 to W^L")
    if any(upper[1] != lower[0] for lower, upper in zip(shapes, shapes[1:], strict=False)):
        raise ValueError(
            f"expected as many columns of W^(l+1) as W^l has rows, got shapes {shapes};"
            " transpose kernels that are stored as inputs x outputs"
        )


def _is_square(weights: Sequence[Float[Array | np.ndarray, "_ _"]]) -> bool:
    width = jnp.shape(weights[0])[0]
    return all(jnp.shape(W) == (width, width) for W in weights)


def _examples(array: Float[np.ndarray, "n _"], name: str) -> Float[np.ndarray, "n _"]:
    matrix = np.asarray(array, np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"expected {name} of 2 axes, got shape {matrix.shape}; one row an example")
    return matrix


def _rms(rows: Float[np.ndarray, "n _"]) -> float:
    return float(np.linalg.norm(rows) / np.sqrt(max(len(rows), 1)))


def _ratio(size: float | np.floating, scale: float) -> float:
    # `scale == 0` rather than `not scale > 0`, so that NaN stays NaN.
    return 0.0 if scale == 0 else float(size / scale)
