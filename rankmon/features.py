"""What each layer of any network receives on the probe batch, and which ReLUs are dead.

The network's own jaxpr is walked: the operand of a product or a convolution with a parameter is
that layer's features; the result of max(z, 0) shows which units are dead. A kernel may be computed
from parameters (weight and spectral normalization), and has then the name of the largest of them.
Layers inside `lax.scan`, `while` and `cond` are not seen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jaxtyping import Array, Bool, Float

from rankmon import theory
from rankmon._jaxprs import (
    CALLS,
    CONVOLUTION,
    CUSTOM_CALLS,
    DOT,
    MAX,
    convolution_axes,
    dot_axes,
    evaluated,
    interpreted,
    nested,
)
from rankmon._precision import abstract_array
from rankmon._readers import optionally
from rankmon._tree import told_apart
from rankmon.flat import FlatProblem
from rankmon.measurement import (
    Description,
    Fact,
    Measurement,
    Prediction,
    Snapshot,
    State,
    count_scalar,
    listed,
)
from rankmon.problem import Problem
from rankmon.rank import (
    DEFAULT_TOLERANCE,
    NumericalRank,
    Tolerance,
    as_tolerance,
    numerical_rank,
    undefined_rank,
)
from rankmon.spectrum import singular_values
from rankmon.stack import recognized_stack


@dataclass(frozen=True)
class FeaturesProbe:
    """The rank of what each layer receives on the probe batch, and the dead units of each ReLU.

    A dense layer's features are a matrix with a row for every example (and position), a
    convolution's one with a row for every example. A unit, along the last axis, is dead where the
    ReLU after the layer gives zero on all of the probe batch. The axis of the examples has to come
    first throughout.

    Args:
      tolerance: another cut than max(m, n) * eps * ||X||_2 for an m x n matrix of features.
    """

    tolerance: Tolerance = DEFAULT_TOLERANCE
    name: str = "features"

    def __post_init__(self) -> None:
        as_tolerance(self.tolerance)

    def placeholder_state(self, problem: Problem) -> State:
        """Nothing to remember."""
        return {}

    def prepare(self, flat: FlatProblem) -> "PreparedFeatures":
        """Walks the network.

        Raises:
          ValueError: where no layer and no ReLU is seen.
        """
        found = optionally(flat.problem, "features", lambda: _compiled_walk(flat), otherwise=None)
        if found is None:
            return PreparedFeatures(flat, lambda *_: ([], []), [], [], self.tolerance)
        compiled, layers, relus = found
        if not (layers or relus):
            raise ValueError(
                "expected a network in which a parameter meets its features in a product or a "
                "convolution, or one with a ReLU, got none outside of loops; leave the features "
                "probe out"
            )
        return PreparedFeatures(flat, compiled, layers, relus, self.tolerance)


@dataclass(frozen=True)
class PreparedFeatures:
    """`FeaturesProbe` for one problem.

    Attributes:
      flat: the problem.
      walk: gives features, and where each ReLU is positive, in the order of `layers` and `relus`.
      layers: the names of the parameters that meet features.
      relus: the names of the parameters before each ReLU.
      tolerance: how the cut is chosen.
    """

    flat: FlatProblem
    walk: Callable[..., Any]
    layers: list[str]
    relus: list[str]
    tolerance: Tolerance

    def initial_state(self) -> State:
        """Nothing to remember."""
        return {}

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """The features' ranks and the dead units at the snapshot; NaN where it is not finite."""
        with self.flat.precision.scope():
            features, positive = self.walk(snapshot.leaves, self.flat.inputs)
            features = [self._counted(np.asarray(rows, np.float64)) for rows in features]
            positive = [self._counted(np.asarray(rows)) for rows in positive]
        scalars: dict[str, float] = {}
        for name, matrix in zip(self.layers, features, strict=True):
            rank = self._rank(matrix)
            scalars[f"rank_features/{name}"] = count_scalar(rank.rank)
            scalars[f"rank_low/features/{name}"] = count_scalar(rank.low)
            scalars[f"rank_high/features/{name}"] = count_scalar(rank.high)
        for name, units in zip(self.relus, positive, strict=True):
            dead = ~np.any(units, axis=0)
            scalars[f"dead_units/{name}"] = float(np.sum(dead))
            scalars[f"dead_share/{name}"] = float(np.mean(dead))
        if snapshot.nonfinite:  # comparisons with NaN would pass for dead units
            return Measurement(dict.fromkeys(scalars, float("nan"))), state
        return Measurement(scalars | self._bound(features, positive, scalars)), state

    def _counted(self, rows: np.ndarray) -> np.ndarray:
        """The rows without those of weight zero."""
        kept = self.flat.weights > 0
        pixels, rest = divmod(len(rows), len(kept))
        return rows if rest else rows[np.repeat(kept, pixels)]

    def _rank(self, matrix: Float[np.ndarray, "rows m"]) -> NumericalRank:
        if not np.all(np.isfinite(matrix)):
            return undefined_rank(min(matrix.shape))
        # Of many rows the triangular factor has the same singular values.
        is_tall = len(matrix) > matrix.shape[1]
        values = singular_values(np.asarray(np.linalg.qr(matrix, "r")) if is_tall else matrix)
        default = max(matrix.shape) * self.flat.precision.eps
        cut = self.tolerance.cut(float(values[0]) if values.size else 0.0, default=default)
        return numerical_rank(values, cut)

    def _bound(
        self,
        features: Sequence[Float[np.ndarray, "_rows _m"]],
        positive: Sequence[Bool[np.ndarray, "_rows _m"]],
        scalars: Mapping[str, float],
    ) -> dict[str, float]:
        """Theorem 9's bound on rank H_o, for ReLU networks of one hidden layer without biases."""
        if not self._has_one_relu:
            return {}
        stack, loss = recognized_stack(self.flat), self.flat.problem.loss.name
        assert stack is not None
        is_relu = np.all(features[1] >= 0) and np.array_equal(features[1] > 0, positive[0])
        r = scalars[f"rank_features/{self.layers[0]}"]
        if not (is_relu and np.isfinite(r)):
            return {}
        active = int(np.sum(np.any(positive[0], axis=0)))
        bound = theory.rank_outer_bound(stack.dims, r=int(r), active=active, loss=loss)
        return {"rank_bound/H_o": bound}

    def describe(self) -> Description:
        """The layers whose features are seen, the ReLUs, the cut, and Theorem 9's bound."""
        facts = [
            Fact("features received by", listed(self.layers)),
            Fact("ReLUs after", listed(self.relus)),
            Fact("features' cut", self.tolerance.rule("max(m, n) eps ‖X‖₂ for m x n features X")),
        ]
        bound = Prediction(
            "H_o at most",
            "rank_bound/H_o",
            "Mt (r + K - 1), Mt the hidden units that are active",
            "theory.rank_outer_bound: Theorem 9, an upper bound for ReLU",
        )
        return Description(facts, predictions=[bound] if self._has_one_relu else [])

    @property
    def _has_one_relu(self) -> bool:
        """Whether Theorem 9 speaks of a network of this structure."""
        stack, loss = recognized_stack(self.flat), self.flat.problem.loss.name
        return (
            stack is not None
            and len(stack.layers) == len(self.layers) == 2
            and stack.bias is False
            and len(self.relus) == 1
            and loss in ("mse", "cosh", "cross_entropy")
        )


@dataclass(frozen=True)
class _Source:
    """Where a value comes from.

    Attributes:
      leaf: the parameter that it is, or the largest of those that it is computed from.
      of_data: whether it depends on the probe batch.
    """

    leaf: int | None = None
    of_data: bool = False

    @property
    def is_kernel(self) -> bool:
        """Whether it is a parameter, or computed from parameters alone."""
        return self.leaf is not None and not self.of_data


_Seen = tuple[Any, _Source]


def _compiled_walk(flat: FlatProblem) -> tuple[Callable[..., Any], list[str], list[str]]:
    """Compile a function from leaves and inputs to features and to where ReLUs are positive.

    Returns:
      The function, the names of the parameters that are applied to those features, and for each
      ReLU the name of the last one before it.
    """
    program, leaves = flat.program, len(flat.specs)
    sources = [_Source(leaf=i) for i in range(leaves)]
    sources += [_Source(of_data=True)] * (len(program.in_avals) - leaves)
    layers: list[str] = []
    relus: list[str] = []

    def walk(arguments: Sequence[Any]) -> Any:
        own = _Walk(flat)  # it holds traced arrays, which must not outlive the trace
        own.along(program, list(zip(arguments, sources, strict=True)))
        layers[:], relus[:] = own.layers, own.relus
        return own.features, own.positive

    shapes = [abstract_array(aval.shape, aval.dtype) for aval in program.in_avals]
    with flat.precision.scope():
        compiled = jax.jit(walk).lower(shapes).compile()
    return lambda leaves, inputs: compiled([*leaves, *jax.tree.leaves(inputs)]), layers, relus


class _Walk:
    """Evaluates a network's jaxpr, and notes the layers and ReLUs on the way.

    Attributes:
      layers: the names of the parameters that are applied to features, in this order.
      features: those features.
      relus: for each ReLU the name of the last parameter before it.
      positive: where each ReLU is positive.
    """

    def __init__(self, flat: FlatProblem) -> None:
        self.layers: list[str] = []
        self.features: list[Float[Array, "_rows _m"]] = []
        self.relus: list[str] = []
        self.positive: list[Bool[Array, "_rows _m"]] = []
        self._specs, self._n = flat.specs, flat.problem.n
        self._names = [spec.name for spec in flat.specs]
        self._width: int | None = None  # the units of the last layer, if they come last

    def along(self, program: ClosedJaxpr, arguments: Sequence[_Seen]) -> list[_Seen]:
        """Return the program's results and where they come from."""
        return interpreted(
            program,
            arguments,
            constant=lambda _, value: (value, _Source()),
            operation=self._operation,
        )

    def _operation(self, jaxpr: Jaxpr, eqn: JaxprEqn, seen: list[_Seen]) -> list[_Seen]:
        name = eqn.primitive.name
        if name in CALLS | CUSTOM_CALLS:
            return self.along(nested(eqn), seen)
        operands, sources = [value for value, _ in seen], [source for _, source in seen]
        results, source = evaluated(jaxpr, eqn, operands), self._merged(sources)
        if name in (DOT, CONVOLUTION):
            self._note_layer(eqn, operands, sources, results[0])
        elif source.of_data and _is_relu(jaxpr, eqn) and self._is_of_layer(results[0]):
            self.relus.append(self._unique(self.layers[-1], self.relus))
            self.positive.append((results[0] > 0).reshape(-1, results[0].shape[-1]))
        return [(result, source) for result in results]

    def _merged(self, sources: Sequence[_Source]) -> _Source:
        leaves = [source.leaf for source in sources if source.leaf is not None]
        largest = max(leaves, key=lambda leaf: self._specs[leaf].size, default=None)
        return _Source(largest, any(source.of_data for source in sources))

    def _note_layer(
        self, eqn: JaxprEqn, operands: Sequence[Any], sources: Sequence[_Source], result: Any
    ) -> None:
        """Note a product of features with a kernel, which may be computed from parameters."""
        kernels = [source.is_kernel for source in sources]
        at = kernels.index(False) if False in kernels else 0  # the place of the features
        leaf = sources[1 - at].leaf
        if not (kernels[1 - at] and sources[at].of_data) or leaf is None:
            return
        self.layers.append(self._unique(self._names[leaf], self.layers))
        if eqn.primitive.name == DOT:
            self.features.append(_dense_rows(eqn, operands[at], at))
            self._width = _dense_units(eqn, operands[1 - at], 1 - at)
        else:
            self.features.append(_convolution_rows(eqn, operands[at], at))
            is_last = convolution_axes(eqn).out_spec[1] == result.ndim - 1
            self._width = result.shape[-1] if is_last else None

    def _unique(self, name: str, seen: Sequence[str]) -> str:
        """The name, numbered if a parameter is applied to features more than once."""
        taken = {*seen, *self._names} if name in seen else seen
        return told_apart([name], taken=taken)[0]

    def _is_of_layer(self, result: Any) -> bool:
        """Whether the examples come first and the last layer's units last: no variance or index."""
        floating = jnp.issubdtype(result.dtype, jnp.floating)
        if not floating or result.ndim < 2:
            return False
        return bool(result.shape[0] % self._n == 0 and result.shape[-1] == self._width)


def _dense_rows(eqn: JaxprEqn, features: Any, at: int) -> Float[Array, "rows m"]:
    """The axes that are summed over are the features; every other one counts rows."""
    summed = dot_axes(eqn)[0][at]
    kept = [axis for axis in range(features.ndim) if axis not in summed]
    width = int(np.prod([features.shape[axis] for axis in summed], dtype=np.int64))
    return jnp.transpose(features, [*kept, *summed]).reshape(-1, width)


def _dense_units(eqn: JaxprEqn, kernel: Any, at: int) -> int | None:
    """Return the size of the kernel's last axis that is not summed over."""
    summed, batch = (axes[at] for axes in dot_axes(eqn))
    free = [axis for axis in range(kernel.ndim) if axis not in (*summed, *batch)]
    return kernel.shape[free[-1]] if free else None


def _convolution_rows(eqn: JaxprEqn, features: Any, at: int) -> Float[Array, "rows m"]:
    """One row an example."""
    examples = convolution_axes(eqn).lhs_spec[0] if at == 0 else 0
    return jnp.moveaxis(features, examples, 0).reshape(features.shape[examples], -1)


def _is_relu(jaxpr: Jaxpr, eqn: JaxprEqn) -> bool:
    """Whether it is max(z, 0) of a z that goes nowhere else: CELU and leaky ReLU take it twice."""
    operands = [atom for atom in eqn.invars if not _is_zero(atom)]
    if eqn.primitive.name != MAX or len(operands) != 1:
        return False
    uses = sum(atom is operands[0] for other in jaxpr.eqns for atom in other.invars)
    return uses == 1


def _is_zero(atom: Any) -> bool:
    return isinstance(atom, Literal) and np.size(atom.val) == 1 and not np.any(atom.val)
