"""Stochastic spectra of the Hessian's parts at given parameters, without a monitor."""

from typing import Any

import numpy as np
from jaxtyping import Float

from rankmon.engines.quadrature import Lanczos
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT
from rankmon.linalg.lanczos import StochasticSpectrum, starts
from rankmon.problem.point import Point
from rankmon.problem.problem import Problem


def stochastic_spectra(
    problem: Problem,
    params: Any,
    *,
    reference: Float[np.ndarray, "n k"] | None = None,
    probes: int = 16,
    steps: int = 64,
    seed: int = 0,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
) -> dict[str, StochasticSpectrum]:
    """Return the spectra of the loss Hessian and its parts as random vectors see them, in float64.

    They show how many eigenvalues exceed a cut far above rounding (the epsilon-rank), traces and
    densities, each with its interval; for ranks at the cut of float64 use `hessian_ranks`. Takes
    probes x steps products with the Hessian for each part. Needs `pip install 'rankmon[scale]'`.

    Args:
      problem: network, loss and probe batch.
      params: the parameters, any pytree of arrays.
      reference: residuals [N, k] to hold, for H_f_fixed; N counts every position.
      probes: number of random vectors; the sampling error of a count falls with its root.
      steps: Lanczos steps; the uncertainty of each vector's count falls with them.
      seed: seed of the vectors, which the parts share.
      memory_limit: bytes for the `steps` vectors that are kept orthogonal.

    Returns:
      A dict from "H_L", "H_o", "H_f" (and "H_f_fixed") to `StochasticSpectrum`, whose estimates are
      NaN if the weights or the Hessian are not finite.

    Raises:
      TypeError, ValueError: for input that does not fit, before anything is computed.
      MemoryError: if the vectors do not fit in memory_limit.
      ImportError: without matfree.

    Source: Ghorbani, Krishnan and Xiao, arXiv 1901.10159; the bounds are those of `linalg.lanczos`.
    """
    for name, number, least in (("probes", probes, 2), ("steps", steps, 1)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"expected {name} to be an integer, got {number!r}; pass an int")
        if number < least:
            raise ValueError(f"expected {name} to be at least {least}, got {number}; pass more")
    point = Point.of(problem, params, reference)
    lanczos = Lanczos.of(point.flat, steps=steps, memory_limit=memory_limit)
    point.flat.warn_once()
    if not point.is_finite:
        return {part: StochasticSpectrum(point.flat.p, ()) for part in point.parts}
    decompose = lanczos.at(point)
    vectors = list(starts(point.flat.p, probes, seed=seed))
    return {
        part: StochasticSpectrum.of(point.flat.p, [decompose[part](v) for v in vectors])
        for part in point.parts
    }
