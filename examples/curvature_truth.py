"""The numbers of H_L that `curvature_peers.py` compares, from its dense spectrum."""

import numpy as np

SHARES = (0.1, 0.01)


def summary(eigenvalues):
    """Return the numbers that the ways estimate: counts, trace, norm and extremes."""
    norm = float(np.max(np.abs(eigenvalues)))
    counts = {f"above {s:g}": int(np.sum(np.abs(eigenvalues) > s * norm)) for s in SHARES}
    ends = {"largest": float(np.max(eigenvalues)), "smallest": float(np.min(eigenvalues))}
    return counts | {"trace": float(np.sum(eigenvalues)), "norm": norm} | ends


def truth(case):
    """Return the summary of H_L by automatic differentiation and LAPACK, in float64."""
    import jax
    from jax.flatten_util import ravel_pytree

    with jax.enable_x64(True):
        theta, split = ravel_pytree([leaf.astype(np.float64) for leaf in case.params])
        x, y = case.data[0].astype(np.float64), case.data[1]
        gradient = jax.grad(lambda t: case.loss(split(t), x, y))

        # The loop is Python's: in one of XLA's a convolution takes several times as long.
        rows = jax.jit(jax.vmap(lambda v: jax.jvp(gradient, (theta,), (v,))[1]))
        blocks = np.array_split(np.eye(len(theta)), len(theta) // 32 + 1)
        return summary(np.linalg.eigvalsh(np.concatenate([rows(block) for block in blocks])))
