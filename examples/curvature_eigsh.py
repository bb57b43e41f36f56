"""Numbers of H_L by SciPy's eigsh in float32; its ways are those of `curvature_ways.py`."""

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

from curvature_truth import SHARES
from curvature_ways import torch_parts


def torch_product(case):
    """Return H_L v in PyTorch, and p; the graph of the gradient is kept."""
    import torch

    model, loss, params, (x, y) = torch_parts(case)
    gradient = torch.autograd.grad(loss(model(x), y), params, create_graph=True)
    sizes = [leaf.numel() for leaf in params]

    def product(v):
        parts = torch.from_numpy(v.ravel()).split(sizes)
        shaped = [part.view_as(leaf) for part, leaf in zip(parts, params, strict=True)]
        found = torch.autograd.grad(gradient, params, shaped, retain_graph=True)
        return torch.cat([leaf.ravel() for leaf in found]).numpy()

    return product, sum(sizes)


def jax_product(case):
    """Return H_L v in JAX, and p: forward over reverse, compiled."""
    import jax
    from jax.flatten_util import ravel_pytree

    theta, split = ravel_pytree(case.params)
    x, y = case.data

    @jax.jit
    def product(t, x, v):
        return jax.jvp(jax.grad(lambda t: case.loss(split(t), x, y)), (t,), (v,))[1]

    return lambda v: np.asarray(product(theta, x, v.ravel())), len(theta)


def operator(product, p):
    """Return the operator, and a list with an entry for each product."""
    done = []

    def counted(v):
        done.append(1)
        return product(np.asarray(v, np.float32))

    return LinearOperator((p, p), matvec=counted, dtype=np.float32), done


def largest(kind, case):
    """Find the k largest in magnitude, and count: NaN if all of them are above a cut."""
    product, p = kind(case)

    def estimate(k, tol, *, seed):
        hessian, done = operator(product, p)
        v = np.random.default_rng(seed).standard_normal(p).astype(np.float32)
        size = np.abs(eigsh(hessian, k, which="LM", tol=tol, v0=v, return_eigenvectors=False))
        cuts = {f"above {s:g}": s * size.max() for s in SHARES}
        found = {name: float(np.sum(size > cut)) for name, cut in cuts.items()}
        seen = {name: n if size.min() < cuts[name] else np.nan for name, n in found.items()}
        return seen, len(done)

    return estimate


def both_ends(kind, case):
    """Find the largest and the smallest eigenvalue."""
    product, p = kind(case)

    def estimate(tol, *, seed):
        hessian, done = operator(product, p)
        v = np.random.default_rng(seed).standard_normal(p).astype(np.float32)
        low, high = eigsh(hessian, 2, which="BE", tol=tol, v0=v, return_eigenvectors=False)
        return {"largest": float(high), "smallest": float(low)}, len(done)

    return estimate
