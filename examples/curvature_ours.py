"""Numbers of H_L by rankmon for `curvature_peers.py`, and the settings that each way tries."""

from functools import partial

import numpy as np

import curvature_ways as peers
from curvature_eigsh import both_ends, jax_product, largest, torch_product
from curvature_spaces import counts, extremes, intervals, trace
from curvature_truth import SHARES

# Vectors and steps: at most 4,096 products, the fewest first.
LANCZOS = sorted(
    ((v, m) for v in (1, 2, 4, 8, 16, 32) for m in (32, 64, 128, 256) if v * m <= 4096),
    key=lambda pair: (pair[0] * pair[1], pair[1]),
)
# The share of ||H_L|| down to which eigenvalues shall be exact, and the most rows of a basis.
KRYLOV = [(0.01, 256), (0.01, 384), (0.01, 768)]
# Vectors, rows of a basis; rows, blocks of vectors beside it; residuals of the extremes.
COUNTS = [(4, 32), (8, 64), (16, 64), (16, 96), (16, 128), (16, 192), (16, 256)]
BESIDE = [(16, 1), (32, 1), (32, 2), (48, 2), (64, 2), (96, 2), (96, 4)]
RESIDUALS = [(1e-2,), (1e-3,), (3e-4,), (1e-4,)]
TRACES = [(3 * 2**i,) for i in range(3, 11)]
# How many eigenvalues: a user does not know, so that nobody would find the first that is enough.
EIGSH = [(int(12 * 1.2**i), 1e-2) for i in range(24)]
ENDS = [(10.0**-i,) for i in range(1, 6)]


def problem_of(case):
    """Return the problem for rankmon."""
    import rankmon

    x, y = case.data
    return rankmon.Problem(case.apply, loss="cross_entropy", inputs=x, targets=y)


def quadrature(case):
    """Take stochastic_spectra: float64, with bounds, for H_L, H_o and H_f at once."""
    import rankmon

    problem = problem_of(case)

    def estimate(probes, steps, *, seed):
        sizes = {"probes": probes, "steps": steps, "seed": seed}
        found = rankmon.stochastic_spectra(problem, case.params, **sizes)["H_L"]
        nodes = np.concatenate([t.rule()[0] for t in found.tridiagonals])
        counts = {f"above {s:g}": found.count(s * found.norm).value for s in SHARES}
        ends = {"largest": float(nodes.max()), "smallest": float(nodes.min())}
        return counts | ends | {"trace": found.trace().value}, probes * steps

    return estimate


# Each way's function, its settings, and the libraries that it needs and rankmon does not.
WAYS = {
    "rankmon, counts": (counts, COUNTS, ()),
    "rankmon, trace": (trace, BESIDE, ()),
    "rankmon, extremes": (extremes, RESIDUALS, ()),
    "rankmon, intervals": (intervals, KRYLOV, ()),
    "rankmon, quadrature": (quadrature, [(16, 64)], ("matfree",)),
    "curvlinops, Lanczos": (peers.curvlinops_lanczos, LANCZOS, ("torch", "curvlinops")),
    "curvlinops, Hutch++": (peers.curvlinops_hutchpp, TRACES, ("torch", "curvlinops")),
    "PyHessian, density": (peers.pyhessian_density, LANCZOS, ("torch", "pyhessian")),
    "PyHessian, trace": (peers.pyhessian_trace, TRACES, ("torch", "pyhessian")),
    "eigsh LM, PyTorch": (partial(largest, torch_product), EIGSH, ("torch",)),
    "eigsh LM, JAX": (partial(largest, jax_product), EIGSH, ()),
    "eigsh BE, PyTorch": (partial(both_ends, torch_product), ENDS, ("torch",)),
    "eigsh BE, JAX": (partial(both_ends, jax_product), ENDS, ()),
}
