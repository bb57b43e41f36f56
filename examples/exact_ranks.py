"""Compare the closed forms with exact ranks of random deep linear networks, over a prime field.

Weights, inputs and residuals are random integers modulo a prime. There is no rounding and no cut: a
rank is the number of pivots of Gaussian elimination. The Hessians are those of mse, and come from
the formulas for the first and second derivatives of W^L ... W^1 x, in NumPy alone.
"""

import argparse
from itertools import pairwise

import numpy as np
from tqdm import tqdm

from plotting import check
from rankmon import theory

PRIME = 33_554_393  # below 2^25: sums of 8,192 products fit in 64 bits
DEEPEST, WIDEST, MOST_PARAMETERS = 5, 9, 300
PARTS = {
    "H_o": theory.rank_outer,
    "H_f": theory.rank_functional,
    "columns of H_f": theory.rank_functional_columns,
    "H_L": theory.rank_loss,
}


def draw(rng, bias):
    """Draw a network: its widths, the rank r of the inputs and the rank s of Omega, and `bias`."""
    dims = (10**6,) * 2
    while theory.number_of_parameters(dims, bias=bias) > MOST_PARAMETERS:
        dims = tuple(int(m) for m in rng.integers(1, WIDEST + 1, rng.integers(1, DEEPEST + 1) + 1))
    r = dims[0] if rng.random() < 0.3 else int(rng.integers(0, dims[0] + 1))
    most = min(dims[-1], r + bias)
    s = most if rng.random() < 0.4 else int(rng.integers(0, most + 1))
    return dims, {"r": r, "s": s, "bias": bias}


def of_rank(rng, rows, columns, rank):
    """Draw a matrix of this rank."""
    left, right = rng.integers(0, PRIME, (rows, rank)), rng.integers(0, PRIME, (rank, columns))
    return left @ right % PRIME


def rank_of(matrix):
    """Return the rank over the field: the number of pivots."""
    rank = 0
    while matrix.size:
        (rows,) = np.nonzero(matrix[:, 0])
        if len(rows):
            pivot = matrix[rows[0], 1:] * pow(int(matrix[rows[0], 0]), -1, PRIME) % PRIME
            rest = np.delete(matrix, rows[0], axis=0)
            matrix, rank = (rest[:, 1:] - rest[:, :1] * pivot) % PRIME, rank + 1
        else:
            matrix = matrix[:, 1:]
    return rank


def hessians(rng, dims, r, s, bias):
    """Return H_o and the column blocks of H_f, one a layer, for the weights W^l or [W^l b^l]."""
    o, n, d, K = int(bias), r + 2, dims[0], dims[-1]
    layers = [rng.integers(0, PRIME, (m, before + o)) for before, m in pairwise(dims)]
    center = o * rng.integers(0, PRIME, d)  # with biases r is the rank of the centered inputs
    x = (of_rank(rng, n, d, r) + center) % PRIME
    x = np.hstack([x, np.ones((n, o), np.int64)])
    omega = of_rank(rng, n, K, s).T @ x % PRIME

    into = [np.eye(d + o, dtype=np.int64)]  # the input of layer l is into[l] (x, 1)
    for layer in layers[:-1]:
        one = np.eye(layer.shape[1], dtype=np.int64)[layer.shape[1] - o :]
        into.append(np.vstack([layer, one]) @ into[-1] % PRIME)
    out = [np.eye(K, dtype=np.int64)]  # the outputs are out[l] times the output of layer l
    for layer in layers[:0:-1]:
        out.insert(0, out[0] @ layer[:, : layer.shape[1] - o] % PRIME)

    J = np.hstack([np.kron(B, x @ A.T % PRIME) for A, B in zip(into, out, strict=True)]) % PRIME
    ends = np.cumsum([0, *(layer.size for layer in layers)])
    H_f = np.zeros((ends[-1], ends[-1]), np.int64)
    for low, first in enumerate(layers):
        between = np.eye(len(first), dtype=np.int64)
        for high in range(low + 1, len(layers)):
            # The second derivative of tr(Omega^T F): tr(Omega^T out dW_high between dW_low into).
            ends_with = into[low] @ omega.T % PRIME @ out[high] % PRIME
            padded = np.vstack([between, np.zeros((o, between.shape[1]), np.int64)])
            block = np.einsum("be,fa->abef", padded, ends_with).reshape(layers[high].size, -1)
            H_f[ends[high] : ends[high + 1], ends[low] : ends[low + 1]] = block % PRIME
            between = layers[high][:, : layers[high].shape[1] - o] @ between % PRIME
    H_f += H_f.T
    return J.T @ J % PRIME, np.split(H_f, ends[1:-1], axis=1)


def agree(rng, bias):
    """Draw a network, and return for each of the PARTS whether the formula gives the exact rank."""
    dims, options = draw(rng, bias)
    H_o, columns = hessians(rng, dims, **options)
    H_f = np.hstack(columns)
    exact = [rank_of(H_o), rank_of(H_f), tuple(map(rank_of, columns)), rank_of((H_o + H_f) % PRIME)]
    formulas = [formula(dims, **options) for formula in PARTS.values()]
    return [found == predicted for found, predicted in zip(exact, formulas, strict=True)]


def main():
    """Draw networks, half of them with biases, and count for each formula how often it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="200 networks")
    options = parser.parse_args()
    rng, count = np.random.default_rng(options.seed), 200 if options.quick else options.networks
    claims = {}
    for bias in (False, True):
        name = "with biases" if bias else "without biases"
        found = np.array([agree(rng, bias) for _ in tqdm(range(count // 2), name)])
        for part, wrong in zip(PARTS, np.sum(~found, axis=0), strict=True):
            claims[f"{part:14} {name:14} {len(found):6} networks {wrong:4} mismatches"] = wrong == 0
    check(claims)


if __name__ == "__main__":
    main()
