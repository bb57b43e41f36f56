"""Find the last layer of a network whose outputs are a product of features and a kernel.

The outputs must be c (h W + b): features h times a kernel W, plus an optional bias b, times an
optional number c. This is read from the program: the labels of `kernel_axes` follow the axes of the
product to the outputs, and any operation but sums with a bias, scalings by a number and
rearrangements ends the search.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jaxtyping import Array, Float, Int

from rankmon._util.expected_time import compiled
from rankmon._util.jaxpr import (
    BROADCAST,
    CALLS,
    COPIES,
    CUSTOM_CALLS,
    DOT,
    RESHAPE,
    ROUNDINGS,
    SQUEEZE,
    SUMS,
    TRANSPOSE,
    dot_axes,
    evaluated,
    interpreted,
    is_plain_reshape,
    nested,
)
from rankmon.network.dataflow import is_float
from rankmon.network.kernel_axes import Label, arranged_labels
from rankmon.problem.flat import FlatProblem, gaussian_leaves
from rankmon.problem.precision import abstract_array

_REARRANGEMENTS = COPIES | ROUNDINGS | {TRANSPOSE, BROADCAST, RESHAPE, SQUEEZE}
_CHECKED = 64  # rows on which the product is compared with the outputs


class LastLayer(NamedTuple):
    """The compiled last layer of one network.

    Attributes:
      evaluate: the function (leaves, inputs) -> `Evaluation`.
      kernel: the name of the kernel; "constant" if it is not a parameter.
      width: d, the number of features.
    """

    evaluate: Callable[..., "Evaluation"]
    kernel: str
    width: int


class Evaluation(NamedTuple):
    """The last layer at some parameters.

    Attributes:
      features: h, one row per position.
      kernel: c W.
      decisions: the index of the largest output of each position; -1 if an output is not finite.
      error: the largest deviation of outputs from the product plus a bias, on the first positions.
      size: the largest of these outputs.
    """

    features: Float[Array, "n d"]
    kernel: Float[Array, "d k"]
    decisions: Int[Array, " n"]
    error: Float[Array, ""]
    size: Float[Array, ""]


def last_layer(flat: FlatProblem) -> LastLayer | None:
    """Compile the last layer, in the precision of the problem; None for outputs of another form.

    The form is also checked at random parameters, unless outputs are not finite there.
    """
    network, leaves = flat.program, len(flat.specs)
    found: list[_Product] = []

    def walk(arguments: Sequence[Any]) -> Evaluation | None:
        values = [_Value(x, i, number=_number(x)) for i, x in enumerate(arguments[:leaves])]
        values += [_Value(x, of_data=True) for x in arguments[leaves:]]
        (outputs,) = _Walk(flat).through(network, values)
        product = outputs.product
        if product is None or not product.is_in_order(flat.positions, flat.k):
            return None
        found[:] = [replace(product, features=None, kernel=None, scale=None)]
        return _evaluation(product, outputs.array)

    shapes = [abstract_array(aval.shape, aval.dtype) for aval in network.in_avals]
    with flat.precision.scope():
        traced = jax.jit(walk).trace(shapes)
        if not found:
            return None
        program = compiled("the last layer", traced)

        def evaluate(leaves: Sequence[Any], inputs: Any) -> Evaluation:
            return program([*leaves, *jax.tree.leaves(inputs)])

        at_random = evaluate(_drawn(flat), flat.inputs)
        error, size = float(at_random.error), float(at_random.size)
    product = found[0]
    width = product.width
    allowed = 16 * (width + 16) * flat.precision.eps * size
    if np.isfinite(error) and np.isfinite(size) and error > allowed:
        return None
    name = "constant" if product.leaf is None else flat.specs[product.leaf].name
    return LastLayer(evaluate, name, width)


def _drawn(flat: FlatProblem) -> list[np.ndarray]:
    """Return random leaves in the dtypes of the program."""
    drawn = gaussian_leaves(flat, np.random.default_rng(0))
    # Leaves held fixed include variances, of which networks take square roots.
    return [
        np.asarray(x if spec.differentiated else np.abs(x), flat.precision.traced_dtype(spec.dtype))
        for x, spec in zip(drawn, flat.specs, strict=True)
    ]


def _evaluation(product: "_Product", outputs: Float[Array, "n k"]) -> Evaluation:
    kernel = product.kernel * product.scale
    first = slice(0, _CHECKED)
    biases = outputs[first] - product.features[first] @ kernel
    finite = jnp.all(jnp.isfinite(outputs), axis=1)
    return Evaluation(
        product.features,
        kernel,
        jnp.where(finite, jnp.argmax(outputs, axis=1), -1),
        jnp.max(jnp.abs(biases - biases[:1])),
        jnp.max(jnp.abs(outputs[first])) + jnp.max(jnp.abs(biases)),
    )


@dataclass(frozen=True)
class _Product:
    """A value that is the product of features and a kernel, up to a bias, a scale and its axes.

    Attributes:
      features: h, one row for each index of the features' axes that are not summed over.
      kernel: W, with the summed axes as rows.
      scale: c.
      leaf: the kernel's leaf, or the largest of the leaves that it is computed from.
      width: the number of features.
      rows: the sizes of the product's axes that count rows, by the number of the axis.
      columns: the same for columns.
      labels: the axes of the product that each axis of the value runs over.
    """

    features: Any
    kernel: Any
    scale: Any
    leaf: int | None
    width: int
    rows: Label
    columns: Label
    labels: tuple[Label, ...]

    def is_in_order(self, positions: int, k: int) -> bool:
        """Return whether the value is [positions, k], with rows and columns in their order."""
        return [_longer(label) for label in self.labels] == [
            _longer(self.rows),
            _longer(self.columns),
        ] and (_size(self.rows), _size(self.columns)) == (positions, k)

    def regrouped(self, shape: Sequence[int]) -> "_Product | None":
        """Return the product after a reshape that splits rows; None if it mixes rows and columns.

        Examples and positions are often merged for the last layer, and split again after it.
        """
        order = [entry for label in self.labels for entry in _longer(label)]
        in_order = order == [*_longer(self.rows), *_longer(self.columns)]
        if not in_order or not shape or shape[-1] != _size(self.columns):
            return None
        axes = tuple(enumerate(shape))
        labels = tuple((axis,) for axis in axes)
        return replace(self, rows=axes[:-1], columns=axes[-1:], labels=labels)


def _longer(label: Label) -> Label:
    """Return the label without axes of size one, whose place does not matter."""
    return tuple((axis, size) for axis, size in label if size > 1)


def _size(label: Label) -> int:
    return int(np.prod([size for _, size in label], dtype=np.int64))


@dataclass(frozen=True)
class _Value:
    """A value of the network's program.

    Attributes:
      array: the traced array.
      leaf: the parameter, or the largest of the parameters that the value is computed from.
      of_data: whether it depends on the probe batch.
      number: the number that all its entries equal, if the program shows that there is one.
      product: the product that it is, if it is one.
    """

    array: Any
    leaf: int | None = None
    of_data: bool = False
    number: Any = None
    product: _Product | None = None


class _Walk:
    """An evaluation of a network's program that follows products of features and kernels."""

    def __init__(self, flat: FlatProblem) -> None:
        self._specs = flat.specs

    def through(self, program: ClosedJaxpr, arguments: Sequence[_Value]) -> list[_Value]:
        """Evaluate the program; return its results."""
        return interpreted(
            program,
            arguments,
            constant=lambda _, x: _Value(x, number=_number(x)),
            operation=self._operation,
        )

    def _operation(self, jaxpr: Jaxpr, eqn: JaxprEqn, values: list[_Value]) -> list[_Value]:
        if eqn.primitive.name in CALLS | CUSTOM_CALLS:
            return self.through(nested(eqn), values)
        results = evaluated(jaxpr, eqn, [value.array for value in values])
        leaves = [value.leaf for value in values if value.leaf is not None]
        leaf = max(leaves, key=lambda i: self._specs[i].size, default=None)
        of_data = any(value.of_data for value in values)
        product = _product(eqn, values) if eqn.primitive.name == DOT else _followed(eqn, values)
        repeated = values[0].number if eqn.primitive.name == BROADCAST else None
        return [
            _Value(x, leaf, of_data, _number(x) if repeated is None else repeated, product)
            for x in results
        ]


def _product(eqn: JaxprEqn, values: Sequence[_Value]) -> _Product | None:
    """Return the product of features and a kernel that this operation is, if it is one."""
    contracted, batch = dot_axes(eqn)
    sides = [value.of_data for value in values]
    if any(batch) or sorted(sides) != [False, True] or not is_float(eqn.outvars[0].aval):
        return None
    at = sides.index(True)
    features, kernel = values[at].array, values[1 - at].array
    summed, of_kernel = contracted[at], contracted[1 - at]
    kept = [axis for axis in range(features.ndim) if axis not in summed]
    free = [axis for axis in range(kernel.ndim) if axis not in of_kernel]
    width = int(np.prod([features.shape[axis] for axis in summed], dtype=np.int64))
    axes = tuple(enumerate(_shape(eqn.outvars[0])))
    rows, columns = (axes[: len(kept)], axes[len(kept) :])
    if at == 1:
        columns, rows = (axes[: len(free)], axes[len(free) :])
    return _Product(
        features=jnp.transpose(features, [*kept, *summed]).reshape(-1, width),
        kernel=jnp.transpose(kernel, [*of_kernel, *free]).reshape(width, -1),
        scale=1.0,
        leaf=values[1 - at].leaf,
        width=width,
        rows=rows,
        columns=columns,
        labels=tuple((axis,) for axis in axes),
    )


def _followed(eqn: JaxprEqn, values: Sequence[_Value]) -> _Product | None:
    """Return the product that the result still is, up to a bias, a scale and its axes."""
    name = eqn.primitive.name
    at = next((i for i, value in enumerate(values) if value.product is not None), None)
    others = [value for i, value in enumerate(values) if i != at]
    if at is None or any(value.of_data for value in others) or not is_float(eqn.outvars[0].aval):
        return None
    product = values[at].product
    assert product is not None
    if name in _REARRANGEMENTS:
        old, new = _shape(eqn.invars[at]), _shape(eqn.outvars[0])
        labels = arranged_labels(eqn, product.labels, old, new)
        if labels is None:
            is_flat = name == RESHAPE and is_plain_reshape(eqn)
            return product.regrouped(new) if is_flat else None
        return replace(product, labels=labels)
    if name in SUMS or (name == "sub" and at == 0):
        return product
    if name in ("neg", "sub"):
        return replace(product, scale=-product.scale)
    number = others[0].number if len(others) == 1 else None
    if number is None or (name, at) not in (("mul", 0), ("mul", 1), ("div", 0)):
        return None
    scale = product.scale * number if name == "mul" else product.scale / number
    return replace(product, scale=scale)


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def _number(array: Any) -> Any:
    """Return the number that an array consists of; None if it has more than one entry."""
    return jnp.reshape(array, ()) if np.size(array) == 1 else None
