"""Derivatives of the map A of a linear network F(x) = A x by each weight, as sums of products.

The derivative of A by a weight in the direction V is a sum of terms left V right; for the transpose
in W^T W, of left V^T right. A tied weight has a term for each of its places. The functions apply A
to `start`, the identity or a square root of Sigma = E[x x^T].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Float

from rankmon.theory.families import NetworkFamily
from rankmon.theory.residual import ResidualBlocks, ResidualChain
from rankmon.theory.tied import MatrixPower, TiedAutoencoder, TiedChain

Matrix = Float[np.ndarray, "rows columns"]


@dataclass(frozen=True, eq=False)
class Term:
    """The term left V right of a derivative in the direction V, or left V^T right.

    Attributes:
      left: the factor before V.
      right: the factor after V.
      transposed: whether V is transposed.
    """

    left: Matrix
    right: Matrix
    transposed: bool = False


def weight_shapes(family: NetworkFamily) -> list[tuple[int, int]]:
    """Return the shapes of a residual or tied network's weights, in the order of its formula.

    They are W^1, ..., W^L; A_1, B_1, A_2, B_2, ...; W_in, W, W_out; or the one W.

    Raises:
      ValueError: for another family.
    """
    match family:
        case ResidualChain(dims):
            return [(m, before) for before, m in zip(dims[:-1], dims[1:], strict=True)]
        case ResidualBlocks(d, inner):
            return [shape for m in inner for shape in ((m, d), (d, m))]
        case TiedChain(d, hidden, outputs):
            return [(hidden, d), (hidden, hidden), (outputs, hidden)]
        case MatrixPower(d):
            return [(d, d)]
        case TiedAutoencoder(d, hidden):
            return [(hidden, d)]
    raise ValueError(
        "expected a residual or tied linear network, got "
        f"{getattr(family, 'name', type(family).__name__)}; measure its spectrum with "
        "hessian_spectra"
    )


def check_weights(family: NetworkFamily, weights: Sequence[Matrix]) -> None:
    """Check that the weights have the shapes of a residual or tied network.

    Raises:
      ValueError: for another family, or weights of other shapes.
    """
    shapes, given = weight_shapes(family), [W.shape for W in weights]
    if given != shapes:
        raise ValueError(
            f"expected weights of shapes {shapes} for {family.name}, got {given}; transpose "
            "kernels that are stored (in, out)"
        )


def chain_derivatives(weights: Sequence[Matrix], start: Matrix) -> list[list[Term]]:
    """Return the derivatives of W^L ... W^1 start, one list of terms for each weight."""
    left = [np.eye(weights[-1].shape[0])]
    for W in reversed(weights[1:]):
        left.insert(0, left[0] @ W)
    right = [start]
    for W in weights[:-1]:
        right.append(W @ right[-1])
    return [[Term(B, U)] for B, U in zip(left, right, strict=True)]


def family_derivatives(
    family: NetworkFamily, weights: Sequence[Matrix], start: Matrix
) -> list[list[Term]]:
    """Return the derivatives of A start of a residual or tied network, by `weight_shapes`.

    The weights must have passed `check_weights`.
    """
    match family:
        case ResidualChain():
            return chain_derivatives([W + np.eye(*W.shape) for W in weights], start)
        case ResidualBlocks(d):
            pairs = list(zip(weights[::2], weights[1::2], strict=True))
            of_blocks = chain_derivatives([np.eye(d) + B @ A for A, B in pairs], start)
            return [
                [term]
                for (A, B), [block] in zip(pairs, of_blocks, strict=True)
                for term in (Term(block.left @ B, block.right), Term(block.left, A @ block.right))
            ]
        case TiedChain(_, _, _, repeats):
            first, W, last = weights
            of_first, *of_places, of_last = chain_derivatives([first, *[W] * repeats, last], start)
            return [of_first, [term for [term] in of_places], of_last]
        case MatrixPower(_, repeats):
            return [[term for [term] in chain_derivatives(list(weights) * repeats, start)]]
        case _:  # W^T W
            [W] = weights
            return [[Term(W.T, start), Term(np.eye(W.shape[1]), W @ start, transposed=True)]]


def outer_matrix(derivatives: Sequence[Sequence[Term]]) -> Float[np.ndarray, "kr kr"]:
    """Return J J^T, J the derivatives of A start by all weights, a row for each entry of A start.

    If start is a square root of Sigma, its non-zero eigenvalues are those of H_o under mse.
    """
    return reduce(
        np.add,
        (_product(one, other) for terms in derivatives for one in terms for other in terms),
    )


def _product(one: Term, other: Term) -> np.ndarray:
    """Return the derivative along `one` of the adjoint along `other`, as a matrix."""
    if one.transposed == other.transposed:
        return np.kron(one.left @ other.left.T, one.right.T @ other.right)
    size = one.left.shape[0] * one.right.shape[1]
    crossed = (one.left @ other.right, other.left @ one.right)
    return np.einsum("ib,aj->ijab", *crossed).reshape(size, size)
