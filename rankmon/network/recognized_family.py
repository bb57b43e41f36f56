"""Recognize from a network's jaxpr a residual, a tied or a convolutional linear network.

Nothing is guessed: `linear_program` follows the data flow to a product of factors, whose leaves and
order decide the family, and the program must equal this product, evaluated in NumPy, at random
parameters and inputs. Since both are polynomials, that proves them equal with probability one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from rankmon._util.expected_time import compiled
from rankmon._util.optional_readers import optionally
from rankmon.network.linear_maps import Convolution, Factor, Product, Skip, Weight, matrix_of
from rankmon.network.linear_program import linear_map
from rankmon.network.recognized_stack import recognized_stack
from rankmon.problem.flat import FlatProblem, gaussian_leaves
from rankmon.theory.convolutional import Convolutional
from rankmon.theory.families import NetworkFamily
from rankmon.theory.residual import ResidualBlocks, ResidualChain
from rankmon.theory.tied import MatrixPower, TiedAutoencoder, TiedChain

Layout = tuple[bool, bool]  # whether inputs, and outputs, are stored channels first


@dataclass(frozen=True)
class RecognizedFamily:
    """A network of a family of `theory`, with the place of its parameters in the program.

    Attributes:
      family: the closed forms.
      map: the network as a product of factors.
      layout: for a convolutional network, whether its inputs and its outputs are flattened with the
        channels before the positions.
    """

    family: NetworkFamily
    map: Product
    layout: Layout = (False, False)

    @property
    def leaves(self) -> tuple[int, ...]:
        """The leaf of each use of a leaf, in the order of the data flow."""
        return tuple(_leaves(self.map.factors)[::-1])

    def matrices(self, leaves: Sequence[Any]) -> tuple[Float[np.ndarray, "_out _in"], ...]:
        """Return the matrix of each factor, in the order of the data flow; not of convolutions."""
        return tuple(matrix_of([factor], leaves) for factor in reversed(self.map.factors))


def recognized_family(flat: FlatProblem) -> RecognizedFamily | None:
    """Return the family of a network that computes in float64 with all leaves differentiated.

    The families are `theory`'s residual, tied and convolutional linear networks. Constant factors
    (as in x + B A x / 2) are allowed, since they only rescale parameters. The result is None for
    other networks, and for a stack of dense layers: see `recognized_stack`.
    """
    if "family" not in flat.memo:
        flat.memo["family"] = optionally(
            flat.problem, "the linear network", lambda: _recognized(flat), otherwise=None
        )
    return flat.memo["family"]


def _recognized(flat: FlatProblem) -> RecognizedFamily | None:
    arrays = jax.tree.leaves(flat.inputs)
    floats = all(np.issubdtype(spec.dtype, np.floating) for spec in flat.specs)
    if flat.precision.dtype is None or not floats or len(arrays) != 1 or arrays[0].ndim < 2:
        return None
    if not all(spec.differentiated for spec in flat.specs) or len(flat.position_axes) != 1:
        return None
    if recognized_stack(flat) is not None:
        return None
    found = linear_map(flat.program, len(flat.specs))
    if found is None or sorted(set(_leaves(found.factors))) != list(range(len(flat.specs))):
        return None
    d = int(np.prod(arrays[0].shape[1:]))
    family = _family(found.factors, d)
    if family is None or (family.inputs, family.outputs) != (d, flat.k):
        return None
    if family.number_of_parameters() != flat.p:
        return None
    layout = _layout_of_program(flat, found, family)
    return None if layout is None else RecognizedFamily(family, found, layout)


def _leaves(factors: Sequence[Factor]) -> list[int]:
    """Return the leaf of each use of a leaf, from the last to the first."""
    used = list[int]()
    for factor in factors:
        if isinstance(factor, (Weight, Convolution)):
            used.append(factor.leaf)
        elif isinstance(factor, Skip):
            used += _leaves(factor.factors)
    return used


def _family(factors: Sequence[Factor], d: int) -> NetworkFamily | None:
    """Return the family of a product of factors; None if it is in no family."""
    if all(isinstance(factor, Convolution) for factor in factors):
        return _convolutional([f for f in factors if isinstance(f, Convolution)][::-1], d)
    used = _leaves(factors)
    once = len(set(used)) == len(used)
    if once and all(_is_block(factor) for factor in factors):
        inner = [factor.factors[-1].shape[0] for factor in reversed(factors)]  # type: ignore[union-attr]
        return ResidualBlocks(d, tuple(inner))
    shapes = [_shifted_shape(factor) for factor in factors]
    if not all(shapes):
        return None
    dims = [shape[0] for shape in shapes if shape is not None]
    if once:
        return ResidualChain((d, *reversed(dims)))
    if len(set(factors)) == 1:
        return MatrixPower(d, len(factors))
    last, *middle, first = factors
    if len(set(middle)) == 1 and len(middle) > 1 and len(set(used)) == 3:
        return TiedChain(d, dims[-1], dims[0], len(middle))
    if not middle and Product((last,)).transposed == Product((first,)):
        return TiedAutoencoder(d, dims[-1])
    return None


def _is_block(factor: Factor) -> bool:
    """Return whether a factor is I + B A."""
    if not isinstance(factor, Skip) or len(factor.factors) != 2:
        return False
    rows, columns = factor.identity.shape
    return rows == columns and all(isinstance(inner, Weight) for inner in factor.factors)


def _shifted_shape(factor: Factor) -> tuple[int, int] | None:
    """Return the shape of W or of E + W, which has the same derivatives; None for others."""
    if isinstance(factor, Skip) and len(factor.factors) == 1:
        return _shifted_shape(factor.factors[0])
    return factor.shape if isinstance(factor, Weight) else None


def _convolutional(layers: Sequence[Convolution], d: int) -> NetworkFamily | None:
    """Return the family of convolutions in the order of the data flow, each with its own kernel."""
    circular = {layer.wrapped is not None for layer in layers if layer.shape[0] > 1}
    distinct = len({layer.leaf for layer in layers}) == len(layers)
    if not layers or not distinct or len(circular) > 1 or d % layers[0].shape[1]:
        return None
    return Convolutional(
        channels=(layers[0].shape[1], *(layer.shape[2] for layer in layers)),
        kernels=tuple(layer.shape[0] for layer in layers),
        length=d // layers[0].shape[1],
        padding="circular" if circular == {True} else "valid",
    )


def _layout_of_program(flat: FlatProblem, found: Product, family: NetworkFamily) -> Layout | None:
    """Return the layout with which the product is the program at random arguments; None if none."""
    rng = np.random.default_rng(0)
    leaves = [np.asarray(x, flat.precision.dtype) for x in gaussian_leaves(flat, rng)]
    batch = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), flat.inputs)
    with flat.precision.scope():
        traced = jax.jit(flat.apply_leaves).trace(leaves, batch)
        outputs = np.asarray(compiled("the linear network", traced)(leaves, batch))
    (x,) = (np.reshape(x, (len(x), -1)) for x in jax.tree.leaves(batch))
    convolved = isinstance(family, Convolutional)
    for layout in ((a, b) for a in (False, convolved) for b in (False, convolved)):
        z = _in_layout(found, family, leaves, x, layout)
        if z is not None and z.shape == outputs.shape:
            if np.abs(outputs - z).max() <= 1e-12 * np.abs(z).max():
                return layout
    return None


def _in_layout(
    found: Product, family: NetworkFamily, leaves: Sequence[Any], x: np.ndarray, layout: Layout
) -> np.ndarray | None:
    """Return the product at inputs [n, d], as outputs [n, K]."""
    if not isinstance(family, Convolutional):
        return found.applied(leaves, x)
    C, N = family.channels[0], family.length
    h = x.reshape(-1, C, N).swapaxes(1, 2) if layout[0] else x.reshape(-1, N, C)
    z = found.applied(leaves, h)
    if z is None:
        return None
    return (z.swapaxes(1, 2) if layout[1] else z).reshape(len(z), -1)
