"""A problem at parameters of a known structure, as functions of one vector theta in R^p.

Symbols: n examples; N positions, one for each index of an output [n, ..., k] into all axes but the
last; k outputs; p parameters; delta_i = dl/dz and B_i = d2l/dz2, the derivatives of the loss with
respect to the outputs z at position i.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, Float

from rankmon._util.arrays import check_concrete
from rankmon._util.distributed import gathered
from rankmon._util.expected_time import Pace, compiled
from rankmon._util.warnings import warn_user
from rankmon.problem.checks import check_moving, leaves_fit, leaves_text
from rankmon.problem.losses import Loss, Root
from rankmon.problem.output_hessians import DenseHessians, FactoredHessians, OutputHessians
from rankmon.problem.precision import Precision, abstract_array, abstract_arrays
from rankmon.problem.probabilities import are_probabilities, takes_logits, warn_of_probabilities
from rankmon.problem.pytree import LeafSpec, leaf_specs, passing_names

# theta in R^p: one vector, or the differentiated leaves with the shapes and shardings they have.
Vector = Float[Array, " p"] | tuple[Float[Array, "..."], ...]

# Keys of `FlatProblem.memo`.
_EVALUATION, _PROBABILITIES = "evaluation", "probabilities"


@runtime_checkable
class Statement(Protocol):
    """The part of `Problem` that a `FlatProblem` uses."""

    n: int
    loss: Loss
    inputs: Any
    targets: Any
    weights: np.ndarray | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    lift_dtype: bool
    warnings_given: set[Any]

    def unpack(self, params: Any, extra: Any = None) -> Any:
        """Return the pytree to measure."""

    def outputs(self, tree: Any, inputs: Any) -> Any:
        """Return the network's outputs at an unpacked pytree."""


@dataclass(frozen=True, eq=False)
class FlatProblem:
    """A `Problem` as functions of theta in R^p, the differentiated leaves in the parameter order.

    Attributes:
      problem: the user's problem.
      network: the function (leaves, inputs) -> outputs [n, ..., k].
      structure: the tree structure of the parameters.
      specs: one `LeafSpec` for each leaf.
      precision: the arithmetic of the measurement.
      position_axes: the outputs' shape without k; each position counts as one example.
      k: the number of outputs of an example.
      memo: a cache of results that other modules derive from this problem; each chooses its key.
    """

    problem: Statement
    network: Callable[[Any, Any], Any]
    structure: Any
    specs: tuple[LeafSpec, ...]
    precision: Precision
    position_axes: tuple[int, ...]
    k: int
    memo: dict[Any, Any] = field(default_factory=dict)

    @property
    def p(self) -> int:
        """The number of differentiated parameters."""
        return sum(spec.size for spec in self.specs if spec.differentiated)

    @property
    def leaf_slices(self) -> tuple[slice, ...]:
        """The place in theta of each differentiated leaf."""
        sizes = [spec.size for spec in self.specs if spec.differentiated]
        ends = np.cumsum(sizes).tolist()
        return tuple(slice(end - size, end) for end, size in zip(ends, sizes, strict=True))

    @property
    def positions(self) -> int:
        """The number of examples N, counting every position."""
        return int(np.prod(self.position_axes))

    @property
    def root_rows(self) -> int:
        """The total number of rows of all C_i^T, where C_i is the root of output Hessian B_i."""
        return self.positions * (self.k - self.problem.loss.null_directions)

    @cached_property
    def dtype(self) -> np.dtype:
        """The dtype of theta."""
        if self.precision.dtype is not None:
            return self.precision.dtype
        moving = [spec.dtype for spec in self.specs if spec.differentiated]
        return jax.dtypes.canonicalize_dtype(_common_dtype(moving))

    def narrowed(
        self, include: Sequence[str] | None, exclude: Sequence[str] | None
    ) -> "FlatProblem":
        """Return a problem that differentiates only the leaves that also pass these filters.

        Raises:
          ValueError: if a pattern matches no differentiated leaf, or if no leaf passes.
        """
        moving = [spec.name for spec in self.specs if spec.differentiated]
        passing = passing_names(moving, include, exclude)
        specs = tuple(
            replace(spec, differentiated=spec.differentiated and spec.name in passing)
            for spec in self.specs
        )
        check_moving(specs)
        # A memo of its own: cached results depend on the differentiated leaves.
        return self if specs == self.specs else replace(self, specs=specs, memo={})

    def leaves(self, params: Any) -> list[np.ndarray]:
        """Check that parameters have this problem's structure, and copy their leaves to the host.

        The copies are in this problem's precision. Leaves that are spread over processes are
        gathered, so every process must make this call.

        Raises:
          TypeError: for arrays that JAX is tracing.
          ValueError: if the structure, a shape or a dtype has changed.
        """
        params = self.problem.unpack(params)
        check_concrete("parameters to be measured", params)
        specs = leaf_specs(params, include=self.problem.include, exclude=self.problem.exclude)
        if jax.tree.structure(params) != self.structure or not leaves_fit(specs, self.specs):
            known, now = set(self.specs), set(specs)
            raise ValueError(
                "expected the parameters that were measured first, "
                f"{leaves_text([s for s in self.specs if s not in now])}, got "
                f"{leaves_text([s for s in specs if s not in known])} (only differing arrays are "
                "shown); use one monitor for each parameter structure"
            )
        with self.precision.scope():  # permits the transfer to the host
            return [self.precision.lift(gathered(leaf)) for leaf in jax.tree.leaves(params)]

    def split(self, leaves: list[np.ndarray]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Return theta [p], the raveled differentiated leaves, and the leaves held fixed."""
        moving = [
            np.ravel(x).astype(self.dtype)
            for x, s in zip(leaves, self.specs, strict=True)
            if s.differentiated
        ]
        fixed = tuple(x for x, s in zip(leaves, self.specs, strict=True) if not s.differentiated)
        return np.concatenate(moving), fixed

    def lifted(self, leaves: Sequence[Any]) -> list[Array]:
        """Return all leaves in this problem's precision, without moving them; traceable."""
        return [
            jnp.asarray(leaf, self.precision.lifted_dtype(spec.dtype))
            for leaf, spec in zip(leaves, self.specs, strict=True)
        ]

    def apply_leaves(self, leaves: Sequence[Any], inputs: Any) -> Float[Array, "n k"]:
        """Return the network's outputs at a list of leaves, one row per position; traceable."""
        return self.network(list(leaves), inputs).reshape(-1, self.k)

    def outputs(self, theta: Vector, fixed: Sequence[Any], inputs: Any) -> Float[Array, "n k"]:
        """Return the network's outputs at theta, one row per position of the batch; traceable."""
        return self.apply_leaves(self.joined(theta, fixed), inputs)

    def joined(self, theta: Any, fixed: Sequence[Any]) -> list[Any]:
        """Return all leaves from theta and those held fixed, as `split` gives them; traceable."""
        sizes = [spec.size for spec in self.specs if spec.differentiated]
        held, parts = iter(fixed), iter(_split(theta, sizes))
        return [
            next(parts).reshape(spec.shape).astype(self._leaf_dtype(spec))
            if spec.differentiated
            else next(held)
            for spec in self.specs
        ]

    @cached_property
    def program(self) -> ClosedJaxpr:
        """The jaxpr of `apply_leaves` on the probe batch, with one argument for each leaf."""
        leaves = [
            abstract_array(spec.shape, self.precision.traced_dtype(spec.dtype))
            for spec in self.specs
        ]
        inputs = abstract_arrays(self.inputs)
        with self.precision.scope():
            return jax.make_jaxpr(self.apply_leaves)(leaves, inputs)

    def _leaf_dtype(self, spec: LeafSpec) -> np.dtype:
        # Host arrays may be float64 although x64 is off in JAX.
        return self.precision.dtype or jax.dtypes.canonicalize_dtype(spec.dtype)

    @cached_property
    def inputs(self) -> Any:
        """The probe batch's inputs in this problem's precision."""
        return jax.tree.map(self._traced, self.problem.inputs)

    @cached_property
    def targets(self) -> Any:
        """The targets in this problem's precision, one row for each position."""
        axes = len(self.position_axes)
        return jax.tree.map(
            lambda t: self._traced(t).reshape(self.positions, *t.shape[axes:]),
            self.problem.targets,
        )

    def _traced(self, leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        return np.array(array, self.precision.traced_dtype(array.dtype))

    @cached_property
    def weights(self) -> Float[np.ndarray, " n"]:
        """The weight of each position in the mean loss; the weights sum to 1."""
        w = self.problem.weights
        if w is None:
            return np.full(self.positions, 1.0 / self.positions)
        trailing = (1,) * (len(self.position_axes) - w.ndim)
        w = w.astype(np.float64) / np.max(w)  # the sum of huge weights overflows
        w = np.ravel(np.broadcast_to(w.reshape(w.shape + trailing), self.position_axes))
        return w / np.sum(w)

    @cached_property
    def typed_weights(self) -> np.ndarray:
        """`weights` in the dtype of theta, for use in compiled programs."""
        return self.weights.astype(self.dtype)

    def shapes_of(self, *trees: Any) -> tuple[Any, ...]:
        """Return shapes and dtypes of theta, of the leaves held fixed, and of the given pytrees."""
        theta = abstract_array((self.p,), self.dtype)
        fixed = tuple(
            abstract_array(spec.shape, self.precision.traced_dtype(spec.dtype))
            for spec in self.specs
            if not spec.differentiated
        )
        shapes = abstract_arrays(trees)
        return theta, fixed, *shapes

    @property
    def warning(self) -> str | None:
        """The warning about the precision of the ranks, or None if it is float64."""
        text = self.precision.warning
        if text and self.p * self.precision.eps >= 0.1:
            text += (
                f"; at p = {self.p} that cut, p * eps, is {self.p * self.precision.eps:.2g} of the "
                "Hessian's norm: ranks are hardly meaningful at this precision"
            )
        return text

    def warn_once(self) -> None:
        """Give the precision warning, at the first call only."""
        if self.warning and "warned" not in self.memo:
            self.memo["warned"] = True
            warn_user(self.warning)

    @cached_property
    def pace(self) -> Pace:
        """The long computations that were announced for this problem, and their time limit."""
        return Pace()

    def compile(self, *, gradient: bool = False) -> None:
        """Compile the evaluation of this problem; it may be called on another thread later.

        Compilation uses the JAX settings of the user's thread (a mesh, a default PRNG).

        Args:
          gradient: whether (dF/dtheta)^T u will be needed too; one program then gives all.
        """
        with self.precision.scope():
            self._evaluation(gradient=gradient)

    def loss_and_residuals(
        self, theta: np.ndarray, fixed: Sequence[np.ndarray]
    ) -> tuple[float, Float[np.ndarray, "n k"]]:
        """Return the mean loss and the residuals delta_i = dl/dz at each position, in float64."""
        with self.precision.scope():
            loss, delta, *_ = self.evaluated(theta, fixed)
            return float(loss), np.array(delta, np.float64)

    def output_hessians(self, theta: np.ndarray, fixed: Sequence[np.ndarray]) -> OutputHessians:
        """Return the output Hessians B_i = d2l/dz2 at each position, in float64."""
        with self.precision.scope():
            _, _, data, *_ = self.evaluated(theta, fixed)
            return self.hessians_from(data)

    def evaluated(self, theta: Any, fixed: Any, u: Any = None) -> Any:
        """Return loss, residuals, the data of the output Hessians and, with u, (dF/dtheta)^T u."""
        known = (theta, tuple(fixed), self.inputs, self.targets, self.typed_weights)
        if u is None and (_EVALUATION, True) not in self.memo:
            results, flags = self._evaluation(gradient=False)(*known)
        else:
            u = np.zeros((self.positions, self.k)) if u is None else u
            results, flags = self._evaluation(gradient=True)(*known, u.astype(self.dtype))
        self.memo.setdefault(_PROBABILITIES, any(map(bool, flags)))
        return results

    def warn_of_outputs(self) -> None:
        """Warn if the first outputs were probabilities and the loss takes logits."""
        if self.memo.get(_PROBABILITIES):
            warn_of_probabilities(self.problem.warnings_given)

    def _evaluation(self, *, gradient: bool) -> Callable[..., Any]:
        """Return the program of `evaluated`, compiled once."""
        loss = self.problem.loss

        def evaluate(
            theta: Any, fixed: Any, inputs: Any, targets: Any, weights: Any, *u: Any
        ) -> Any:
            def outputs(t: Any) -> Any:
                return self.outputs(t, fixed, inputs)

            z, *pullback = jax.vjp(outputs, theta) if gradient else (outputs(theta),)
            # jnp.where, because 0 times the NaN of a masked position would be NaN.
            values = jnp.where(weights > 0, jax.vmap(loss.value)(z, targets), 0.0)
            delta = jax.vmap(loss.residual)(z, targets)
            delta = jnp.where(weights[:, None] > 0, delta, 0.0)
            data = self.hessian_data(z, targets)
            products = [back(v.astype(z.dtype))[0] for back, v in zip(pullback, u, strict=True)]
            flags = [are_probabilities(z, weights)] if takes_logits(loss) else []
            return (jnp.sum(weights * values), delta, data, *products), flags

        key = (_EVALUATION, gradient)
        if key not in self.memo:
            known = self.shapes_of(self.inputs, self.targets, self.typed_weights)
            u = [abstract_array((self.positions, self.k), self.dtype)] if gradient else []
            traced = jax.jit(evaluate).trace(*known, *u)
            self.memo[key] = compiled("the loss and its derivatives in the outputs", traced)
        return self.memo[key]

    def hessian_data(self, z: Float[Array, "n k"], targets: Any) -> Any:
        """Return the [n, k] arrays that `hessians_from` converts to output Hessians; traceable."""
        root = self.problem.loss.root
        return z if root is None else jax.vmap(root)(z, targets)

    def hessians_from(self, data: Any) -> OutputHessians:
        """Build the output Hessians from the values of `hessian_data`."""
        if self.problem.loss.root is not None:
            scale, shift, skipped = jax.tree.map(np.asarray, data)
            shift = None if shift is None else shift.astype(np.float64)
            return FactoredHessians(Root(scale.astype(np.float64), shift, skipped))
        z = np.asarray(data)

        def evaluate(part: slice) -> np.ndarray:
            targets = jax.tree.map(lambda t: t[part], self.targets)
            with self.precision.scope():
                return np.asarray(self._dense_hessians(z[part], targets), np.float64)

        return DenseHessians.of(self.positions, self.k, evaluate)

    @cached_property
    def _dense_hessians(self) -> Callable[..., Any]:
        return jax.jit(jax.vmap(self.problem.loss.output_hessian))


def gaussian_leaves(flat: FlatProblem, rng: np.random.Generator) -> list[np.ndarray]:
    """Return random leaves at which two ways to the same result are compared.

    Kernels are scaled so that outputs neither vanish nor explode; leaves of integers are zero.
    """
    return [
        rng.standard_normal(spec.shape) / np.sqrt(max(spec.shape[:-1], default=1) or 1)
        if jnp.issubdtype(spec.dtype, jnp.floating)
        else np.zeros(spec.shape, spec.dtype)
        for spec in flat.specs
    ]


def _common_dtype(dtypes: Sequence[np.dtype]) -> np.dtype:
    """Return a dtype that can represent all of these; at least float32 if they differ."""
    if len(set(dtypes)) == 1:
        return dtypes[0]
    return np.result_type(np.float32, *(dtype for dtype in dtypes if dtype.itemsize >= 4))


def _split(theta: Any, sizes: Sequence[int]) -> Sequence[Any]:
    """Return consecutive parts of theta; those of NumPy stay in NumPy, in their precision."""
    if isinstance(theta, tuple):
        return theta
    if isinstance(theta, np.ndarray):
        return np.split(theta, np.cumsum(sizes)[:-1])
    # Not slices: the derivative of each would be a vector of p entries, mostly zeros.
    return jax.lax.split(theta, sizes)
