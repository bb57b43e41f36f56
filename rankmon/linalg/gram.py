"""Squared singular values of a wide matrix that is generated in blocks of columns.

A = [A_1 A_2 ...], [m, p] with p much larger than m, is never stored as a whole. There are two ways
to compute its singular values sigma:

  Gram   K = sum_b A_b A_b^T has the eigenvalues sigma^2. Its rounding error, about m eps sigma_1^2,
         hides every sigma below sqrt(m eps) sigma_1: half of the digits are lost.
  QR     R in A^T = Q R, updated from block to block (TSQR), has the singular values sigma. Its
         rounding error is only about m eps sigma_1, but it takes several times the work or more.

Rows of the form h_i (x) g_ir, such as those of a dense layer, are never expanded. Their Gram matrix
is the elementwise product of the Gram matrices of h and g. In orthonormal coordinates of h and of g
they have min(a, n) min(b, m) columns instead of a b.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rankmon.linalg.spectrum import singular_values, symmetric_spectrum

_EPS = float(np.finfo(np.float64).eps)

# Terms summed in one product: shorter sums have less rounding error, longer ones update K less.
_LONG_SUM = 1024

# Columns and leading bits of exact products: a sum of 2^11 products of 2 * 21 bits fits in 53 bits.
_EXACT_COLUMNS, _LEADING_BITS = 2048, 21

# Finest cut in units of the error: at a tenth of that cut an eigenvalue is off by at most half.
_CLEARANCE = 20

# Ratio of rows to columns in one QR step: more rows would waste memory, fewer would repeat work.
_TALLNESS = 4


@dataclass(frozen=True)
class KhatriRao:
    """A block with rows (i, r) equal to h_i (x) g_ir: the entry in column (a, b) is h_ia g_irb.

    Attributes:
      left: the factor h.
      right: the factor g.
    """

    left: Float[np.ndarray, "n a"]
    right: Float[np.ndarray, "n r b"]


Block = Float[np.ndarray, "m _s"] | KhatriRao


@dataclass(frozen=True)
class BoundedSpectrum:
    """The absolute eigenvalues of a symmetric matrix, with error bounds.

    Attributes:
      values: the absolute eigenvalues, descending.
      errors: a bound on the error of each value.
      finest_cut: the smallest usable cut: eigenvalues of a tenth of it are off by at most half.
    """

    values: Float[np.ndarray, " m"]
    errors: Float[np.ndarray, " m"]
    finest_cut: float

    @classmethod
    def within(cls, values: Float[np.ndarray, " m"], error: float) -> "BoundedSpectrum":
        """Return a spectrum with the same error bound for all eigenvalues."""
        return cls(values, np.full(len(values), error), _CLEARANCE * error)


@dataclass(frozen=True)
class Gram:
    """The computed Gram matrix K = A A^T, with a bound on its error.

    Attributes:
      matrix: K.
      error: a bound on the error of forming K, in the 2-norm. The rounding error of a sum of t
        products is at most gamma_t (`sum_rounding`) times the sum of their magnitudes. That sum is
        at most |A_i| |A_j| for entry i, j, and the matrix of these bounds has rank one and norm
        tr K.
    """

    matrix: Float[np.ndarray, "m m"]
    error: float

    @classmethod
    def of(cls, blocks: Iterable[Block], m: int) -> "Gram":
        """Form the Gram matrix of A = [A_1 A_2 ...] from its blocks, each with m rows."""
        K, error, count = np.zeros((m, m)), 0.0, 0
        for block in blocks:
            product, terms = _block_gram(block)
            error += sum_rounding(terms) * float(np.trace(product))
            K += product
            count += 1
        # Adding up the blocks rounds too.
        return cls(K, error + sum_rounding(count) * float(np.trace(K)))

    def __sub__(self, other: "Gram") -> "Gram":
        return Gram(self.matrix - other.matrix, self.error + other.error)

    def spectrum(self) -> BoundedSpectrum:
        """Return K's eigenvalues; m eps ||K||_2 is added to their error for LAPACK's rounding."""
        values = np.abs(symmetric_spectrum(self.matrix))
        error = self.error + len(values) * _EPS * float(values[0])
        return BoundedSpectrum.within(values, error)


def sum_rounding(terms: int) -> float:
    """Return gamma_t = t u / (1 - t u), where u is the unit roundoff.

    It bounds the rounding error of a sum of t products, relative to the sum of their magnitudes,
    for any order of summation (Higham, Accuracy and Stability of Numerical Algorithms, section
    3.1).
    """
    return terms * _EPS / 2 / (1 - terms * _EPS / 2)


def gram_resolution(m: int) -> float:
    """Return the smallest possible `finest_cut` of a Gram matrix of m rows, over its norm."""
    return _CLEARANCE * m * _EPS


def gram_bytes(m: int) -> int:
    """Return the bytes needed for the Gram matrix, a block's Gram matrix and LAPACK's copies."""
    return 4 * 8 * m * m


def _block_gram(block: Block) -> tuple[Float[np.ndarray, "m m"], int]:
    """Return the block's Gram matrix and the number of rounding errors in each entry."""
    if not isinstance(block, KhatriRao):
        return _summed_gram(block)
    n, r, b = block.right.shape
    inner, few = _split_gram(block.left)
    outer, many = _split_gram(block.right.reshape(n * r, b))
    # The reshaped array is a view: entry (i r, j s) of `outer` is multiplied by <h_i, h_j>.
    outer.reshape(n, r, n, r)[...] *= inner[:, None, :, None]
    return outer, few + many + 1


def _summed_gram(rows: Float[np.ndarray, "m s"]) -> tuple[np.ndarray, int]:
    """Sum the Gram matrix over chunks of columns; also return the roundings of each entry."""
    columns = rows.shape[1]
    total = rows[:, :_LONG_SUM] @ rows[:, :_LONG_SUM].T
    for start in range(_LONG_SUM, columns, _LONG_SUM):
        part = rows[:, start : start + _LONG_SUM]
        total += part @ part.T
    return total, min(_LONG_SUM, columns) + math.ceil(columns / _LONG_SUM)


def _split_gram(rows: Float[np.ndarray, "m s"]) -> tuple[np.ndarray, int]:
    """Return the Gram matrix with few rounding errors, for four times the work of a plain one.

    Each row is the sum of its leading bits, whose products are summed without rounding, and of a
    rest that is 2^-21 times smaller, as are the rounding errors of its products (Ozaki, Ogita,
    Oishi and Rump, Numerical Algorithms 59, 2012).
    """
    m, columns = rows.shape
    total, count = np.zeros((m, m)), 0
    for start in range(0, columns, _EXACT_COLUMNS):
        part = rows[:, start : start + _EXACT_COLUMNS]
        _, exponents = np.frexp(np.max(np.abs(part), axis=1, keepdims=True))
        unit = np.ldexp(1.0, exponents - _LEADING_BITS)
        leading = np.rint(part / unit) * unit
        rest = part - leading
        total += leading @ leading.T
        mixed = leading @ rest.T
        total += mixed
        total += mixed.T
        total += rest @ rest.T
        # Four sums; the rest's products are off by less than a tenth of one more.
        count += 5
    return total, count


def triangular_factor(blocks: Iterable[Block], m: int) -> Float[np.ndarray, "_ m"]:
    """Return R with A A^T = R^T R and at most m rows, for A = [A_1 A_2 ...] given in blocks."""
    R, waiting, height = np.empty((0, m)), list[np.ndarray](), _TALLNESS * m

    def step() -> np.ndarray:
        return np.asarray(np.linalg.qr(np.concatenate([R, *waiting]), mode="r"))

    # R and the waiting pieces always have the Gram matrix of all columns so far.
    for block in blocks:
        for piece in _tall_pieces(block, height):
            if sum(map(len, waiting)) + len(piece) > height:
                R, waiting = step(), []
            waiting.append(piece)
    return step()


def _tall_pieces(block: Block, height: int) -> Iterator[Float[np.ndarray, "s m"]]:
    """Yield the block's transpose (or a smaller matrix with the same Gram matrix) in pieces.

    Each piece has at most `height` rows.
    """
    if not isinstance(block, KhatriRao):
        for start in range(0, block.shape[1], height):
            yield block[:, start : start + height].T
        return
    n, r, b = block.right.shape
    left = _coordinates(block.left)
    right = _coordinates(block.right.reshape(n * r, b)).reshape(n, r, -1).transpose(2, 0, 1)
    step = max(1, height // len(right))
    for start in range(0, left.shape[1], step):
        part = left[:, start : start + step].T
        yield (part[:, None, :, None] * right).reshape(-1, n * r)


def _coordinates(rows: Float[np.ndarray, "m s"]) -> Float[np.ndarray, "m _"]:
    """Return the rows in an orthonormal basis of their span; unchanged if they span the space."""
    if rows.shape[1] <= rows.shape[0]:
        return rows
    return np.asarray(np.linalg.qr(rows.T, mode="r")).T


def factor_bytes(m: int) -> int:
    """Return the bytes needed for one QR step: R stacked on a piece, and LAPACK's copies."""
    return 3 * (_TALLNESS + 1) * 8 * m * m


def factor_spectrum(
    R: Float[np.ndarray, "_ m"], signs: Float[np.ndarray, " m"] | None = None
) -> BoundedSpectrum:
    """Return the absolute eigenvalues of A^T A, or of A^T S A for signs S, given R of A^T = Q R.

    Without signs the eigenvalues are the squares of R's singular values. With the usual error
    delta = m eps sigma_1 of a singular value, its square is off by 2 sigma delta + delta^2. With
    signs they are the eigenvalues of R S R^T. These are off by 2 sigma_1 delta from the error of R,
    and by at most m eps ||R||_F^2 from each of the product and the eigenvalue computation.

    Args:
      R: the factor that `triangular_factor` returns.
      signs: +-1 for each row of A.
    """
    m = R.shape[1]
    if signs is None:
        sigma = singular_values(R)
        sigma = np.concatenate([sigma, np.zeros(m - len(sigma))])
        delta = m * _EPS * sigma[0]
        # At a tenth of the finest cut, sigma^2 = 20 delta^2, the error is just below 10 delta^2.
        return BoundedSpectrum(sigma**2, 2 * sigma * delta + delta**2, 200 * float(delta**2))
    values = np.abs(symmetric_spectrum((R * signs) @ R.T))
    values = np.concatenate([values, np.zeros(m - len(values))])
    return BoundedSpectrum.within(values, 4 * m * _EPS * float(np.sum(R**2)))
