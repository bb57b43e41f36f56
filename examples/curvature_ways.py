"""Numbers of H_L by curvlinops and PyHessian in float32, for `curvature_peers.py`.

A way is a function of a case. It returns a function of a setting and a seed, which returns the
numbers that it estimates, and with how many products.
"""

import math

import numpy as np

from curvature_truth import SHARES
from slq_ways import pyhessian_class


def quadrature(rules, p):
    """Return counts and extremes from Gauss rules (nodes, weights), one of each random vector."""
    nodes, weights = (np.concatenate(arrays) for arrays in zip(*rules, strict=True))
    size, each = np.abs(nodes), p * weights / len(rules)
    counts = {f"above {s:g}": float(each[size > s * size.max()].sum()) for s in SHARES}
    return counts | {"largest": float(nodes.max()), "smallest": float(nodes.min())}


def torch_parts(case):
    """Return model, loss, parameters and batch in PyTorch."""
    import torch

    model, x, y = case.torch_model()
    return model, torch.nn.CrossEntropyLoss(), list(model.parameters()), (x, y)


def curvlinops_hessian(case):
    """Return its operator."""
    from curvlinops import HessianLinearOperator

    model, loss, params, batch = torch_parts(case)
    return HessianLinearOperator(model, loss, params, [batch], check_deterministic=False)


def curvlinops_lanczos(case):
    """Take a vector at a time, without orthogonalizing again."""
    import torch
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    hessian = curvlinops_hessian(case)

    def estimate(vectors, steps, *, seed):
        torch.manual_seed(seed)
        pairs = [fast_lanczos(hessian, steps) for _ in range(vectors)]
        rules = [(nodes.numpy(), first[0].numpy() ** 2) for nodes, first in pairs]
        return quadrature(rules, hessian.shape[0]), vectors * steps

    return estimate


def curvlinops_hutchpp(case):
    """Multiply a third of the vectors at once, and estimate the trace."""
    import torch
    from curvlinops import hutchpp_trace

    hessian = curvlinops_hessian(case)

    def estimate(products, *, seed):
        torch.manual_seed(seed)
        return {"trace": hutchpp_trace(hessian, products).item()}, products

    return estimate


def pyhessian(case):
    """Return its object, which keeps the graph of the gradient, and p."""
    model, loss, params, batch = torch_parts(case)
    found = pyhessian_class()(model, loss, data=batch, cuda=False)
    return found, sum(leaf.numel() for leaf in params)


def pyhessian_density(case):
    """Take a vector at a time, with each step orthogonalized against all before it."""
    import torch

    found, p = pyhessian(case)

    def estimate(vectors, steps, *, seed):
        torch.manual_seed(seed)
        rules = zip(*map(np.array, found.density(steps, vectors)), strict=True)
        return quadrature(list(rules), p), vectors * steps

    return estimate


def pyhessian_trace(case):
    """Return Hutchinson's estimate; its own rule would stop at the first two vectors that agree."""
    import torch

    found, _ = pyhessian(case)

    def estimate(products, *, seed):
        torch.manual_seed(seed)
        values = found.trace(maxIter=products, tol=-math.inf)
        return {"trace": float(np.mean(values))}, products

    return estimate
