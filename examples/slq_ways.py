"""Three ways to count H_L's eigenvalues by stochastic Lanczos quadrature, for `slq_peers.py`."""

import warnings
from functools import partial

import numpy as np


def problem_of(network):
    """Return the problem of a network, and its weights."""
    import jax

    import rankmon

    weights, x, y = network.data()
    apply = partial(network.apply, jax.nn.relu)
    return rankmon.Problem(apply, loss="mse", inputs=x, targets=y), weights


def truth(network):
    """Return the absolute eigenvalues of H_L, the largest first."""
    import rankmon

    return np.abs(rankmon.hessian_spectra(*problem_of(network))["H_L"])


def ours(network, probes, steps):
    """Use rankmon.stochastic_spectra, which estimates all parts, and gives intervals."""
    import rankmon

    problem, weights = problem_of(network)

    def counts(cuts):
        found = rankmon.stochastic_spectra(problem, weights, probes=probes, steps=steps)["H_L"]
        return [(e.value, e.low, e.high) for e in map(found.count, cuts)]

    return counts


def torch_model(network):
    """Return the network in PyTorch, and its batch."""
    import torch

    weights, x, y = network.data()
    layers = [torch.nn.Linear(*w.shape, bias=False) for w in weights]
    mixed = [part for layer in layers for part in (layer, torch.nn.ReLU())][:-1]
    model = torch.nn.Sequential(*mixed).double()
    for layer, w in zip(layers, weights, strict=True):
        layer.weight.data = torch.from_numpy(w.T.copy())
    return model, torch.from_numpy(x), torch.from_numpy(y)


def quadrature_counts(rules, p, cuts):
    """Return for each cut p times the weight of the nodes beyond it, as a mean over vectors."""
    return [(p * float(np.mean([w[np.abs(n) > cut].sum() for n, w in rules])),) for cut in cuts]


def curvlinops(network, probes, steps):
    """Use curvlinops' Hessian and fast_lanczos, which does not reorthogonalize."""
    import torch
    from curvlinops import HessianLinearOperator
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    model, x, y = torch_model(network)
    loss, params = torch.nn.MSELoss(reduction="sum"), list(model.parameters())
    # The sum over examples, of twice the loss.
    hessian = HessianLinearOperator(model, loss, params, [(x, y)], check_deterministic=False)

    def counts(cuts):
        pairs = [fast_lanczos(hessian, steps) for _ in range(probes)]
        scale = 2 * network.n
        rules = [(nodes.numpy() / scale, vectors[0].numpy() ** 2) for nodes, vectors in pairs]
        return quadrature_counts(rules, hessian.shape[0], cuts)

    return counts


def pyhessian_class():
    """Return PyHessian's class, with the function that its wheel of 2021 needs from PyTorch 1."""
    import torch
    from pyhessian import hessian

    def eig(tridiagonal, eigenvectors):
        # Its repository calls torch.linalg.eig, with the same Lanczos steps before it.
        values, vectors = torch.linalg.eigh(tridiagonal)
        return torch.stack([values, torch.zeros_like(values)], dim=1), vectors

    torch.eig = eig
    warnings.filterwarnings("ignore", "Using backward.. with create_graph", UserWarning)
    return hessian


def pyhessian(network, probes, steps):
    """Use PyHessian's density: it keeps the graph of the gradient, and reorthogonalizes."""
    model, x, y = torch_model(network)
    p = sum(w.numel() for w in model.parameters())

    def loss(outputs, targets):
        return ((outputs - targets) ** 2).sum() / (2 * network.n)

    def counts(cuts):
        model.zero_grad(set_to_none=True)
        found = pyhessian_class()(model, loss, data=(x, y), cuda=False)
        rules = zip(*map(np.array, found.density(steps, probes)), strict=True)
        return quadrature_counts(list(rules), p, cuts)

    return counts


WAYS = {"rankmon": ours, "curvlinops": curvlinops, "PyHessian": pyhessian}
