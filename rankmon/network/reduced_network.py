"""The network as a function of coordinates in place of its parameters.

The network's program is evaluated with W = U C for each kernel of data, x W as (x U) C: U is small,
and nothing of the size of W is formed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from rankmon._util.jaxpr import (
    CALLS,
    COPIES,
    DOT,
    TRANSPOSE,
    dot_axes,
    evaluated,
    interpreted,
    nested,
    permutation,
)
from rankmon.network.leaf_maps import LeafMap, Span
from rankmon.problem.flat import FlatProblem
from rankmon.problem.precision import abstract_array, abstract_arrays


def reduced_network(flat: FlatProblem, maps: Sequence[LeafMap]) -> Callable[[Any, Any], Any]:
    """Return the network as a function of coordinates and inputs."""

    def network(coordinates: Sequence[Any], inputs: Any) -> Any:
        leaves = [
            c if isinstance(one, Span) else one.outward(c)
            for one, c in zip(maps, coordinates, strict=True)
        ]
        shapes = [
            abstract_array(spec.shape, c.dtype)
            for spec, c in zip(flat.specs, coordinates, strict=True)
        ]
        program, out = jax.make_jaxpr(flat.network, return_shape=True)(
            shapes, abstract_arrays(inputs)
        )
        values = [
            (leaf, _Kernel(one, tuple(range(len(one.leaf)))) if isinstance(one, Span) else None)
            for one, leaf in zip(maps, leaves, strict=True)
        ]
        data = [(x, None) for x in jax.tree.leaves(inputs)]
        results = [_plain(seen) for seen in _through(program, [*values, *data])]
        return jax.tree.unflatten(jax.tree.structure(out), results)

    return network if any(isinstance(one, Span) for one in maps) else _expanded(flat, maps)


def _expanded(flat: FlatProblem, maps: Sequence[LeafMap]) -> Callable[[Any, Any], Any]:
    def network(coordinates: Sequence[Any], inputs: Any) -> Any:
        leaves = [one.outward(c) for one, c in zip(maps, coordinates, strict=True)]
        return flat.network(leaves, inputs)

    return network


@dataclass(frozen=True)
class _Kernel:
    """A kernel in coordinates, as it stands in the program: with its leaf's axes permuted."""

    span: Span
    axes: tuple[int, ...]


_Seen = tuple[Any, _Kernel | None]  # a value, or the coordinates of a kernel


def _through(program: ClosedJaxpr, arguments: Sequence[_Seen]) -> list[_Seen]:
    """Evaluate a program in which some kernels are given by their coordinates."""
    return interpreted(
        program, arguments, constant=lambda _, value: (value, None), operation=_operation
    )


def _plain(seen: _Seen) -> Any:
    """Return the value itself."""
    value, kernel = seen
    return value if kernel is None else jnp.transpose(kernel.span.outward(value), kernel.axes)


def _operation(jaxpr: Jaxpr, eqn: JaxprEqn, seen: list[_Seen]) -> list[_Seen]:
    name = eqn.primitive.name
    if name in CALLS:
        return _through(nested(eqn), seen)
    kernels = [kernel for _, kernel in seen if kernel is not None]
    if name in COPIES and kernels:
        return [(evaluated(jaxpr, eqn, [seen[0][0]])[0], kernels[0])]
    if name == TRANSPOSE and kernels:
        axes = tuple(kernels[0].axes[i] for i in permutation(eqn))
        return [(seen[0][0], _Kernel(kernels[0].span, axes))]
    if name == DOT and len(kernels) == 1:
        product = _product(eqn, seen)
        if product is not None:
            return [(product, None)]
    return [(result, None) for result in evaluated(jaxpr, eqn, [_plain(one) for one in seen])]


def _product(eqn: JaxprEqn, seen: list[_Seen]) -> Any | None:
    """Return x W = (x U) C, so that nothing has the size of W; None for other products."""
    contracted, batch = dot_axes(eqn)
    at = 0 if seen[0][1] is not None else 1
    (C, kernel), (x, _) = seen[at], seen[1 - at]
    assert kernel is not None
    span = kernel.span
    summed = [kernel.axes[i] for i in contracted[at]]
    if any(batch) or sorted(summed) != sorted(span.axes[: span.inputs]):
        return None
    places = [contracted[1 - at][summed.index(axis)] for axis in span.axes[: span.inputs]]
    kept = [i for i in range(x.ndim) if i not in places]
    rows = jnp.transpose(x, [*kept, *places]).reshape(*(x.shape[i] for i in kept), len(span.basis))
    others = [axis for axis in kernel.axes if axis not in summed]
    order = [1 + span.axes[span.inputs :].index(axis) for axis in others]
    columns = jnp.transpose(C.reshape(-1, *span.left), [0, *order])
    product = jnp.tensordot(rows @ jnp.asarray(span.basis, rows.dtype), columns, axes=1)
    if at == 0:
        product = jnp.moveaxis(product, range(len(kept)), range(-len(kept), 0))
    return product.astype(eqn.outvars[0].aval.dtype)  # type: ignore[attr-defined]
