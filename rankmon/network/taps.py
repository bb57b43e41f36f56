"""Taps on any network: inputs of layers, positive units of ReLUs, and outputs of activations.

They are recorded while the network's jaxpr is evaluated. The input (the features) of a layer is the
operand that is multiplied or convolved with a kernel. A kernel may be computed from parameters
(weight and spectral normalization); it is then named after the largest of them. The result of
max(z, 0) shows the positive units of a ReLU. The activations are those of `elementwise`. What is
inside `lax.scan`, `while` and `cond` is not recorded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jaxtyping import Array, Bool, Float

from rankmon._util.expected_time import compiled
from rankmon._util.jaxpr import (
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
from rankmon._util.optional_readers import optionally
from rankmon._util.tags import made_unique
from rankmon.network.elementwise import FoundActivation, Place, found_activations
from rankmon.problem.flat import FlatProblem
from rankmon.problem.precision import abstract_array


class TappedUnits(NamedTuple):
    """The units of one activation f: one column for each unit, one row for each position.

    Rows are combined if there are more than positions of the probe batch (pixels of an image).

    Attributes:
      magnitudes: the mean of |f(z)|.
      slopes: the largest |f'(z)|, divided by the largest value of |f'|.
    """

    magnitudes: Float[Array, "rows units"]
    slopes: Float[Array, "rows units"]


class Tapped(NamedTuple):
    """The recorded arrays.

    Attributes:
      features: the input of each layer: for a dense layer a row for every example and position, for
        a convolution a row for every example.
      positive: for each ReLU an array of bools, with a column for each unit.
      units: the units of each activation.
    """

    features: list[Float[Array, "_rows _m"]]
    positive: list[Bool[Array, "_rows _units"]]
    units: list[TappedUnits]


class Activated(NamedTuple):
    """An activation whose units are recorded.

    Attributes:
      layer: the name of the last layer that its input depends on, numbered if that layer has more
        than one activation.
      function: the name of the function, such as "GELU".
    """

    layer: str
    function: str


class Taps(NamedTuple):
    """The compiled taps on one network.

    Attributes:
      evaluate: the function (leaves, inputs) -> `Tapped`.
      layers: the name of each layer's kernel, numbered if the kernel is used more than once.
      shapes: the numbers of rows and columns of each layer's features.
      relus: for each ReLU the name of the last layer before it, with the same numbering.
      activations: the recognized activations.
    """

    evaluate: Callable[..., Tapped]
    layers: list[str]
    shapes: list[tuple[int, int]]
    relus: list[str]
    activations: list[Activated]


def compiled_taps(flat: FlatProblem) -> Taps:
    """Compile the taps on a problem's network, in the precision of the problem."""
    network, leaves = flat.program, len(flat.specs)
    sources = [_Source(leaf=i) for i in range(leaves)]
    sources += [_Source(of_data=True)] * (len(network.in_avals) - leaves)
    found = optionally(flat.problem, "activations", lambda: found_activations(flat), otherwise=[])
    layers: list[str] = []
    shapes: list[tuple[int, int]] = []
    relus: list[str] = []
    activations: list[Activated] = []

    def walk(arguments: Sequence[Any]) -> Any:
        own = _Walk(flat, found)  # it refers to traced arrays, which must not outlive the trace
        own.through(network, list(zip(arguments, sources, strict=True)))
        layers[:], relus[:], activations[:] = own.layers, own.relus, own.activations
        shapes[:] = [(rows.shape[0], rows.shape[1]) for rows in own.features]
        return Tapped(own.features, own.positive, own.units)

    arguments = [abstract_array(aval.shape, aval.dtype) for aval in network.in_avals]
    with flat.precision.scope():
        program = compiled("the features", jax.jit(walk).trace(arguments))

    def evaluate(leaves: Sequence[Any], inputs: Any) -> Tapped:
        return program([*leaves, *jax.tree.leaves(inputs)])

    return Taps(evaluate, layers, shapes, relus, activations)


@dataclass(frozen=True)
class _Source:
    """The origin of a value.

    Attributes:
      leaf: the parameter, or the largest of the parameters that the value is computed from.
      of_data: whether it depends on the probe batch.
      layer: the number of the last layer that it depends on.
    """

    leaf: int | None = None
    of_data: bool = False
    layer: int | None = None

    @property
    def is_kernel(self) -> bool:
        """Whether the value is a parameter, or computed only from parameters."""
        return self.leaf is not None and not self.of_data


_Seen = tuple[Any, _Source]


class _Walk:
    """An evaluation of a network's jaxpr that records its layers, ReLUs and activations.

    Attributes:
      layers: the names of the kernels, in the order of evaluation.
      features: the inputs of these layers.
      relus: for each ReLU the name of the last layer before it.
      positive: for each ReLU an array of bools, true for positive units.
      activations: the names of the recognized activations.
      units: their units.
    """

    def __init__(self, flat: FlatProblem, found: Sequence[FoundActivation]) -> None:
        self.layers: list[str] = []
        self.features: list[Float[Array, "_rows _m"]] = []
        self.relus: list[str] = []
        self.positive: list[Bool[Array, "_rows _m"]] = []
        self.activations: list[Activated] = []
        self.units: list[TappedUnits] = []
        self._found = {activation.at: activation for activation in found}
        self._roots: dict[Place, Any] = dict.fromkeys(activation.root for activation in found)
        self._count = 0  # of operations, as in `FoundActivation`
        self._specs, self._n, self._positions = flat.specs, flat.problem.n, flat.positions
        self._names = [spec.name for spec in flat.specs]
        self._widths: list[int | None] = []  # of each layer, if its last axis are units

    def through(self, program: ClosedJaxpr, arguments: Sequence[_Seen]) -> list[_Seen]:
        """Evaluate the program; return its results with their origins."""
        return interpreted(
            program,
            arguments,
            constant=lambda _, value: (value, _Source()),
            operation=self._operation,
        )

    def _operation(self, jaxpr: Jaxpr, eqn: JaxprEqn, seen: list[_Seen]) -> list[_Seen]:
        name = eqn.primitive.name
        if name in CALLS | CUSTOM_CALLS:
            return self.through(nested(eqn), seen)
        operands, sources = [value for value, _ in seen], [source for _, source in seen]
        results, source = evaluated(jaxpr, eqn, operands), self._merged(sources)
        if name in (DOT, CONVOLUTION):
            source = self._note_layer(eqn, operands, sources, results[0])
        elif source.of_data and _is_relu(jaxpr, eqn) and self._is_of_layer(results[0], -1):
            self.relus.append(self._unique(self.layers[-1], self.relus))
            self.positive.append((results[0] > 0).reshape(-1, results[0].shape[-1]))
        for i, result in enumerate(results):
            self._note_activation((self._count, i), result, source)
        self._count += 1
        return [(result, source) for result in results]

    def _merged(self, sources: Sequence[_Source]) -> _Source:
        leaves = [source.leaf for source in sources if source.leaf is not None]
        largest = max(leaves, key=lambda leaf: self._specs[leaf].size, default=None)
        layers = [source.layer for source in sources if source.layer is not None]
        of_data = any(source.of_data for source in sources)
        return _Source(largest, of_data, max(layers, default=None))

    def _note_layer(
        self, eqn: JaxprEqn, operands: Sequence[Any], sources: Sequence[_Source], result: Any
    ) -> _Source:
        """Record a layer: a product of features with a kernel, which may be a computed one.

        Return the origin of the product, whether it is a layer or not.
        """
        merged = self._merged(sources)
        kernels = [source.is_kernel for source in sources]
        at = kernels.index(False) if False in kernels else 0  # the operand that holds the features
        leaf = sources[1 - at].leaf
        if not (kernels[1 - at] and sources[at].of_data) or leaf is None:
            return merged
        self.layers.append(self._unique(self._names[leaf], self.layers))
        if eqn.primitive.name == DOT:
            self.features.append(_dense_rows(eqn, operands[at], at))
            self._widths.append(_dense_units(eqn, operands[1 - at], 1 - at))
        else:
            self.features.append(_convolution_rows(eqn, operands[at], at))
            is_last = convolution_axes(eqn).out_spec[1] == result.ndim - 1
            self._widths.append(result.shape[-1] if is_last else None)
        return replace(merged, layer=len(self._widths) - 1)

    def _note_activation(self, at: Place, result: Any, source: _Source) -> None:
        """Keep the result if it is the root of an activation; record it if it is an output."""
        if at in self._roots:
            self._roots[at] = result
        if at not in self._found or source.layer is None:
            return
        if not self._is_of_layer(result, source.layer):
            return
        function, root, _ = self._found[at]
        seen = [activated.layer for activated in self.activations]
        name = self._unique(self.layers[source.layer], seen)
        self.activations.append(Activated(name, function.name))
        precise = jax.dtypes.canonicalize_dtype(np.float64)  # a mean in bfloat16 has two digits
        slopes = function.relative_slope(self._roots[root].astype(precise))
        self.units.append(
            TappedUnits(
                jnp.mean(self._by_position(jnp.abs(result).astype(precise)), axis=1),
                jnp.max(self._by_position(slopes), axis=1),
            )
        )

    def _by_position(self, values: Any) -> Float[Array, "rows pixels units"]:
        """Return the values with one row for each position, if there are as many or more."""
        rows = values.reshape(-1, values.shape[-1])
        count = self._positions if len(rows) % self._positions == 0 else len(rows)
        return rows.reshape(count, -1, values.shape[-1])

    def _unique(self, name: str, seen: Sequence[str]) -> str:
        """Return the name, numbered if the kernel is used more than once."""
        taken = {*seen, *self._names} if name in seen else seen
        return made_unique([name], taken=taken)[0]

    def _is_of_layer(self, result: Any, layer: int) -> bool:
        """Return whether the result is floating and has rows of examples and the layer's units.

        The first axis is a multiple of the examples in size, and the last is as wide as the layer.
        This excludes max(z, 0) in the computation of a variance or an index.
        """
        floating = jnp.issubdtype(result.dtype, jnp.floating)
        if not floating or result.ndim < 2 or not self._widths:
            return False
        return bool(result.shape[0] % self._n == 0 and result.shape[-1] == self._widths[layer])


def _dense_rows(eqn: JaxprEqn, features: Any, at: int) -> Float[Array, "rows m"]:
    """Return the features as rows: the summed axes are the columns, all other axes count rows."""
    summed = dot_axes(eqn)[0][at]
    kept = [axis for axis in range(features.ndim) if axis not in summed]
    width = int(np.prod([features.shape[axis] for axis in summed], dtype=np.int64))
    return jnp.transpose(features, [*kept, *summed]).reshape(-1, width)


def _dense_units(eqn: JaxprEqn, kernel: Any, at: int) -> int | None:
    """Return the size of the last of the kernel's axes that are not summed over."""
    summed, batch = (axes[at] for axes in dot_axes(eqn))
    free = [axis for axis in range(kernel.ndim) if axis not in (*summed, *batch)]
    return kernel.shape[free[-1]] if free else None


def _convolution_rows(eqn: JaxprEqn, features: Any, at: int) -> Float[Array, "rows m"]:
    """Return the features with one row per example."""
    examples = convolution_axes(eqn).lhs_spec[0] if at == 0 else 0
    return jnp.moveaxis(features, examples, 0).reshape(features.shape[examples], -1)


def _is_relu(jaxpr: Jaxpr, eqn: JaxprEqn) -> bool:
    """Return whether this is max(z, 0) with z used only there; CELU and leaky ReLU reuse z."""
    operands = [atom for atom in eqn.invars if not _is_zero(atom)]
    if eqn.primitive.name != MAX or len(operands) != 1:
        return False
    uses = sum(atom is operands[0] for other in jaxpr.eqns for atom in other.invars)
    return uses == 1


def _is_zero(atom: Any) -> bool:
    return isinstance(atom, Literal) and np.size(atom.val) == 1 and not np.any(atom.val)
