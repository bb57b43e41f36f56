"""What each layer of any network receives on the probe batch, and which ReLUs are dead.

The network's own jaxpr is walked: where a product or a convolution meets a parameter, its other
operand is that layer's features; where max(z, 0) stands, its result tells which units are dead.
Not seen are layers inside `lax.scan`, `while` and `cond`, and those whose kernel is computed or a
part of a parameter.
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
    BROADCAST,
    CALLS,
    CONVOLUTION,
    COPIES,
    CUSTOM_CALLS,
    DOT,
    MAX,
    RESHAPE,
    REVERSE,
    SQUEEZE,
    TRANSPOSE,
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

# What leaves a parameter the same numbers in another arrangement.
_REARRANGEMENTS = COPIES | {TRANSPOSE, RESHAPE, SQUEEZE, BROADCAST, REVERSE}


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
        walk = _Walk([spec.name for spec in flat.specs], flat.problem.n)
        compiled = optionally(flat.problem, "features", lambda: walk.compiled(flat), otherwise=None)
        if compiled is None:
            return PreparedFeatures(flat, lambda *_: ([], []), [], [], self.tolerance)
        if not (walk.layers or walk.relus):
            raise ValueError(
                "expected a network in which a parameter meets its features in a product or a "
                "convolution, or one with a ReLU, got none outside of loops; leave the features "
                "probe out"
            )
        return PreparedFeatures(flat, compiled, walk.layers, walk.relus, self.tolerance)


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


_Seen = tuple[Any, int | None]  # a value, and the parameter that it is


class _Walk:
    """Evaluates a network's jaxpr and writes down what meets parameters, and its ReLUs.

    Attributes:
      layers: the names of the parameters that meet features, in the order of evaluation.
      relus: for each ReLU the name of the last parameter before it.
    """

    def __init__(self, names: Sequence[str], n: int) -> None:
        self.layers: list[str] = []
        self.relus: list[str] = []
        self._names, self._n = names, n
        self._width: int | None = None  # of the last layer's product
        self._features: list[Float[Array, "_rows _m"]] = []
        self._positive: list[Bool[Array, "_rows _m"]] = []

    def compiled(self, flat: FlatProblem) -> Callable[..., Any]:
        """A function from leaves and inputs to the features, and where ReLUs are positive."""
        program = flat.program

        def walk(arguments: Sequence[Any]) -> Any:
            parameters = [i if i < len(flat.specs) else None for i in range(len(arguments))]
            self._through(program, list(zip(arguments, parameters, strict=True)))
            return self._features, self._positive

        shapes = [abstract_array(aval.shape, aval.dtype) for aval in program.in_avals]
        with flat.precision.scope():
            compiled = jax.jit(walk).lower(shapes).compile()
        return lambda leaves, inputs: compiled([*leaves, *jax.tree.leaves(inputs)])

    def _through(self, program: ClosedJaxpr, arguments: Sequence[_Seen]) -> list[_Seen]:
        """The program's results, and which parameter each is, in whatever arrangement."""
        return interpreted(
            program, arguments, constant=lambda _, value: (value, None), operation=self._operation
        )

    def _operation(self, jaxpr: Jaxpr, eqn: JaxprEqn, seen: list[_Seen]) -> list[_Seen]:
        name = eqn.primitive.name
        if name in CALLS | CUSTOM_CALLS:
            return self._through(nested(eqn), seen)
        operands, which = [value for value, _ in seen], [at for _, at in seen]
        results = evaluated(jaxpr, eqn, operands)
        self._note(jaxpr, eqn, operands, which, results)
        found = which[:1] if name in _REARRANGEMENTS else [None] * len(results)
        return list(zip(results, found, strict=True))

    def _note(
        self,
        jaxpr: Jaxpr,
        eqn: JaxprEqn,
        operands: Sequence[Any],
        which: Sequence[int | None],
        results: Sequence[Any],
    ) -> None:
        name = eqn.primitive.name
        if name in (DOT, CONVOLUTION):
            at = which.index(None) if None in which else 0
            parameter = which[1 - at]
            if parameter is None or which[at] is not None:
                return
            self.layers.append(self._unique(self._names[parameter], self.layers))
            rows = _dense_rows if name == DOT else _convolution_rows
            self._features.append(rows(eqn, operands[at], at))
            self._width = results[0].shape[-1]
        elif _is_relu(jaxpr, eqn) and self._is_of_layer(results[0]):
            self.relus.append(self._unique(self.layers[-1], self.relus))
            self._positive.append((results[0] > 0).reshape(-1, results[0].shape[-1]))

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
