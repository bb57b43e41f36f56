"""Closed-form eigenvalues of H_o and H_f, and their comparison with measured eigenvalues.

Symbols (arXiv 2106.16225, section S8): F(x) = W^L ... W^1 x with the widths d = M_0, ..., M_L = K,
W^{k:l} = W^k ... W^l, Sigma = E[x x^T], h = F^{L-1:1}(x) the input of the last layer,
Omega = E[delta x^T], and the loss mse, whose output Hessian is the identity. E is the mean over the
probe batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float

from rankmon._util.validate import as_flag, as_integer
from rankmon.linalg.spectrum import singular_values
from rankmon.theory.families import NetworkFamily
from rankmon.theory.linear_maps import (
    chain_derivatives,
    check_weights,
    family_derivatives,
    outer_matrix,
)


@dataclass(frozen=True, eq=False)
class Plateaus:
    """Predicted eigenvalues that occur several times each.

    Attributes:
      levels: the distinct eigenvalues, descending.
      width: the minimum multiplicity of each.
    """

    levels: Float[np.ndarray, " m"]
    width: int


@dataclass(frozen=True)
class PlateauMatch:
    """One predicted plateau compared with the measured spectrum.

    Attributes:
      level: the predicted eigenvalue.
      width: its predicted multiplicity.
      found: the number of measured eigenvalues within `tolerance` of it.
      error: the largest relative distance among the `width` nearest measured eigenvalues.
      tolerance: the largest relative distance that counts as a match.
    """

    level: float
    width: int
    found: int
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether at least `width` eigenvalues lie within the tolerance."""
        return self.found >= self.width


def outer_spectrum(
    weights: Sequence[Float[np.ndarray, "out in"]],
    inputs: Float[np.ndarray, "n d"],
    *,
    family: NetworkFamily | None = None,
) -> Float[np.ndarray, " m"]:
    """Return the eigenvalues of H_o of a deep linear network under mse that can be non-zero.

    They are the eigenvalues of
    [sum_l W^{L:l+1} W^{l+1:L} (x) W^{1:l-1} W^{l-1:1}] (I_K (x) Sigma), a matrix of size K d.
    Sigma = V diag(sigma^2) V^T, with the singular values sigma of X / sqrt(n), is split and applied
    from both sides, so that the matrix is symmetric and of size K min(n, d). No matrix of size p is
    formed. For a residual or tied network the sum runs over each weight's derivatives of the map A
    of F(x) = A x, in place of W^{L:l+1} and W^{l-1:1}.

    Args:
      weights: (W^1, ..., W^L), each M_l x M_{l-1}; for a family (W^1, ..., W^L) without the
        identities, (A_1, B_1, ..., A_L, B_L), (W_in, W, W_out) or (W,).
      inputs: the probe batch.
      family: the network, if it is not a plain chain: `theory.ResidualChain`, `ResidualBlocks`,
        `TiedChain`, `MatrixPower` or `TiedAutoencoder`.

    Returns:
      K min(n, d) eigenvalues, descending; all others of H_o are zero.

    Raises:
      TypeError: for anything but a sequence of arrays of numbers.
      ValueError: for weights that do not chain or have other shapes than the family's, inputs that
        do not match them, values that are not finite, or another family.

    Source: arXiv 2106.16225, section S8.1.
    """
    if not isinstance(weights, Sequence):
        raise TypeError(
            f"expected weights to be a sequence of matrices, got {type(weights).__name__}; pass "
            "(W^1, ..., W^L)"
        )
    chain = [_finite("every weight", W, axes=2) for W in weights]
    x = _finite("inputs", inputs, axes=2)
    if family is None:
        _check_chain(chain, x)
    else:
        check_weights(family, chain)
        if x.shape[1] != family.inputs:
            raise ValueError(
                f"expected inputs of d = {family.inputs} entries for {family.name}, got "
                f"{x.shape[1]}; pass one row for each example"
            )
    _, sigma, axes = np.linalg.svd(x / np.sqrt(len(x)), full_matrices=False)
    root = axes.T * sigma  # Sigma = root root^T
    terms = (
        chain_derivatives(chain, root)
        if family is None
        else family_derivatives(family, chain, root)
    )
    eigenvalues = np.linalg.eigvalsh(outer_matrix(terms))[::-1]
    return np.maximum(eigenvalues, 0.0)  # zeros can be rounded below zero


def outer_plateaus(
    features: Float[np.ndarray, "n M"], outputs: int, *, bias: bool = False
) -> Plateaus:
    """Return the plateaus of H_o under mse if the last layer is wider than its input, K > M_{L-1}.

    There are K - M_{L-1} output directions orthogonal to the image of W^L. They depend only on the
    last layer's parameters, and H_o restricted to each is E[h h^T]. Its M_{L-1} eigenvalues
    therefore occur K - M_{L-1} times each, for any earlier layers and activations: also if the
    last layer is W^L + I, or W_out after tied weights, but not if it is a block x + B A x, whose
    image is not that of one weight.

    Args:
      features: h on the probe batch, the input of the last layer.
      outputs: K, the number of outputs.
      bias: whether the last layer has a bias; then E[(h, 1) (h, 1)^T] replaces E[h h^T].

    Raises:
      TypeError: for outputs that are not an integer, or a bias that is not a bool.
      ValueError: if K <= M_{L-1}, so that there are no plateaus, or for features that are not
        finite.

    Source: arXiv 2106.16225, section S8.1 (figures S4 and S5); with biases by the same argument.
    """
    h = _finite("features", features, axes=2)
    width = as_integer("outputs", outputs) - h.shape[1]
    if width <= 0:
        raise ValueError(
            f"expected more outputs than features, got K = {outputs} and {h.shape[1]} features; "
            "H_o has these plateaus only if the last layer widens"
        )
    if as_flag("bias", bias):
        h = np.concatenate([h, np.ones((len(h), 1))], axis=1)
    values = singular_values(h / np.sqrt(len(h))) ** 2
    # With fewer examples than features, the other eigenvalues of E[h h^T] are zero.
    return Plateaus(np.concatenate([values, np.zeros(h.shape[1] - values.size)]), width)


def functional_plateaus(
    omega: Float[np.ndarray, "k d"], hidden: int, *, tied: bool = False
) -> Plateaus:
    """Return the non-zero eigenvalues of H_f of a linear network with one hidden layer.

    The eigenvalues of H_f = [[0, Omega (x) I_M], [Omega^T (x) I_M, 0]] are the singular values of
    Omega with both signs, each M times. So are those of one residual block x + B A x, with M its
    inner width. For W^T W, H_f = I_M (x) (Omega + Omega^T).

    Args:
      omega: Omega, or E[delta (x, 1)^T] if the hidden layer has a bias.
      hidden: M, the width of the hidden layer.
      tied: whether the network is W^T W x.

    Returns:
      2 min(K, d) levels, descending from the largest to minus the largest; d levels, descending,
      if tied.

    Raises:
      TypeError: for a width that is not an integer, or `tied` that is not a bool.
      ValueError: for an Omega that is not a finite matrix, or is not square if tied, or a width
        below 1.

    Source: arXiv 2106.16225, section S8.2 (figures S6 and S7).
    """
    omega = _finite("Omega", omega, axes=2)
    as_integer("hidden", hidden, least=1)
    if as_flag("tied", tied):
        if omega.shape[0] != omega.shape[1]:
            raise ValueError(
                f"expected a square Omega for W^T W, got shape {omega.shape}; leave out tied"
            )
        return Plateaus(np.linalg.eigvalsh(omega + omega.T)[::-1], hidden)
    values = singular_values(omega)
    return Plateaus(np.concatenate([values, -values[::-1]]), hidden)


def match_plateaus(
    plateaus: Plateaus, eigenvalues: Float[np.ndarray, " p"], *, tolerance: float = 1e-9
) -> list[PlateauMatch]:
    """Compare each plateau above rounding with the measured eigenvalues.

    Args:
      plateaus: the predicted plateaus.
      eigenvalues: the signed eigenvalues, in any order, as returned by `hessian_spectra`.
      tolerance: the largest relative distance at which an eigenvalue matches a level.

    Raises:
      ValueError: for a spectrum that is not finite or smaller than a plateau, or a tolerance
        below 0.
    """
    measured = _finite("eigenvalues", eigenvalues, axes=1)
    if not isinstance(tolerance, Real) or not 0 <= tolerance < np.inf:
        raise ValueError(
            f"expected tolerance to be a finite number >= 0, got {tolerance!r}; for the default "
            "leave it out"
        )
    if measured.size < plateaus.width:
        raise ValueError(
            f"expected at least {plateaus.width} eigenvalues, got {measured.size}; pass the "
            "spectrum of all parameters"
        )
    found = []
    sizes = np.abs(plateaus.levels)
    # A level at zero is computed as rounding error, which has no meaningful relative distance.
    rounding = measured.size * np.finfo(np.float64).eps * np.max(sizes, initial=0.0)
    for level in plateaus.levels[sizes > rounding]:
        off = np.sort(np.abs(measured - level)) / abs(level)
        found.append(
            PlateauMatch(
                level=float(level),
                width=plateaus.width,
                found=int(np.sum(off <= tolerance)),
                error=float(off[plateaus.width - 1]),
                tolerance=tolerance,
            )
        )
    return found


def _check_chain(chain: Sequence[np.ndarray], x: np.ndarray) -> None:
    """Refuse weights whose shapes do not chain from the inputs on."""
    if not chain:
        raise ValueError("expected at least one weight matrix, got none; pass (W^1, ..., W^L)")
    widths = [x.shape[1], *(W.shape[0] for W in chain)]
    for W, fan_in in zip(chain, widths, strict=False):
        if W.shape[1] != fan_in:
            raise ValueError(
                f"expected a chain of weights M_l x M_{{l-1}} from d = {x.shape[1]} inputs on, got "
                f"shapes {[W.shape for W in chain]}; transpose kernels that are stored (in, out)"
            )


def _finite(name: str, values: Any, *, axes: int) -> np.ndarray:
    """Return the values in float64; refuse anything but a finite array with this many axes."""
    try:
        if values is None:
            raise TypeError
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"expected {name} as an array of numbers, got {type(values).__name__}; pass a NumPy "
            "or JAX array"
        ) from None
    if array.ndim != axes or array.size == 0 or not np.all(np.isfinite(array)):
        raise ValueError(
            f"expected {name} as a finite array of {axes} axes, got shape {array.shape}"
            f"{'' if np.all(np.isfinite(array)) else ' with NaN or infinite entries'}; pass one "
            "row for each example, and look at the weights where values overflow"
        )
    return array
