"""Three ways to count H_L's eigenvalues by stochastic Lanczos quadrature, for `slq_peers.py`.

PyHessian itself requires PyTorch 1, so that its algorithm is repeated here.
"""

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


def torch_operator(network):
    """Return the product with curvlinops' Hessian of the mean loss, and p."""
    import torch
    from curvlinops import HessianLinearOperator

    weights, x, y = network.data()
    layers = [torch.nn.Linear(*w.shape, bias=False) for w in weights]
    mixed = [part for layer in layers for part in (layer, torch.nn.ReLU())][:-1]
    model = torch.nn.Sequential(*mixed).double()
    for layer, w in zip(layers, weights, strict=True):
        layer.weight.data = torch.from_numpy(w.T.copy())
    batch = [(torch.from_numpy(x), torch.from_numpy(y) / 1.0)]
    loss, params = torch.nn.MSELoss(reduction="sum"), list(model.parameters())
    hessian = HessianLinearOperator(model, loss, params, batch, check_deterministic=False)
    return lambda v: (hessian @ v) / (2 * network.n), sum(p.numel() for p in params)


def quadrature_counts(rules, p, cuts):
    """Return for each cut p times the weight of the nodes beyond it, as a mean over vectors."""
    return [(p * np.mean([w[np.abs(n) > cut].sum() for n, w in rules]),) for cut in cuts]


def curvlinops(network, probes, steps):
    """Use curvlinops' fast_lanczos, which does not reorthogonalize."""
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    product, p = torch_operator(network)
    operator = type("Operator", (), {"shape": (p, p), "__matmul__": lambda _, v: product(v)})()
    import torch

    operator.device, operator.dtype = torch.device("cpu"), torch.float64

    def counts(cuts):
        pairs = [fast_lanczos(operator, steps) for _ in range(probes)]
        rules = [(nodes.numpy(), vectors[0].numpy() ** 2) for nodes, vectors in pairs]
        return quadrature_counts(rules, p, cuts)

    return counts


def pyhessian_style(network, probes, steps):
    """Use Rademacher vectors and Lanczos with full reorthogonalization, like PyHessian."""
    import torch

    product, p = torch_operator(network)

    def rule():
        v = torch.randint(0, 2, (p,), dtype=torch.float64) * 2 - 1
        basis, alphas, betas = [v / v.norm()], [], []
        for _ in range(steps):
            w = product(basis[-1])
            alphas.append(float(w @ basis[-1]))
            for q in basis:
                w = w - (w @ q) * q
            betas.append(float(w.norm()))
            basis.append(w / betas[-1])
        T = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
        nodes, vectors = np.linalg.eigh(T)
        return nodes, vectors[0] ** 2

    return lambda cuts: quadrature_counts([rule() for _ in range(probes)], p, cuts)


WAYS = {"rankmon": ours, "curvlinops": curvlinops, "PyHessian-style": pyhessian_style}
