"""The ranks by JAX, PyTorch and curvlinops alone, which `benchmark.py` compares with rankmon.

Each way is a function of a network that returns a function of its weights. All of them compute with
the same float64 numbers, and none of them uses rankmon.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PARTS = ("H_L", "H_o", "H_f", "H_f_fixed")
Weights = list[np.ndarray]
Way = Callable[[Weights], Mapping[str, Any]]


@dataclass(frozen=True)
class Network:
    """Dense layers without biases under the loss 1/2 ||F - y||^2, mean over n examples."""

    name: str
    kind: str
    dims: Sequence[int]
    n: int = 300

    def data(self) -> tuple[Weights, np.ndarray, np.ndarray]:
        """Draw Glorot-normal weights, and standard normal inputs and targets."""
        rng = np.random.default_rng(0)
        shapes = list(zip(self.dims[:-1], self.dims[1:], strict=True))
        weights = [rng.normal(size=shape) * np.sqrt(2 / sum(shape)) for shape in shapes]
        x, y = (rng.normal(size=(self.n, self.dims[i])) for i in (0, -1))
        return weights, x, y

    def apply(self, activation, weights, x):
        """Return the outputs, in the library of the arrays: NumPy, JAX or PyTorch."""
        for weight in weights[:-1]:
            x = activation(x @ weight) if self.kind == "ReLU" else x @ weight
        return x @ weights[-1]

    def split(self, theta):
        """Split one vector into the weights."""
        shapes = list(zip(self.dims[:-1], self.dims[1:], strict=True))
        ends = np.cumsum([a * b for a, b in shapes]).tolist()
        starts = [0, *ends[:-1]]
        return [theta[i:j].reshape(s) for i, j, s in zip(starts, ends, shapes, strict=True)]

    def held(self):
        """Return the residuals at the weights of `data`, for H_f_fixed."""
        weights, x, y = self.data()
        return self.apply(lambda z: np.maximum(z, 0), weights, x) - y


NETWORKS = (
    Network("S1", "linear", (30, 25, 20, 15, 10)),
    Network("S2", "ReLU", (25, 25, 20, 15, 10)),
    Network("64-30-30-10", "linear", (64, 30, 30, 10)),
    Network("wide", "linear", (64, 100, 100, 100, 10)),
)
QUICK = (Network("S1", "linear", (6, 5, 4, 3), 20), Network("S2", "ReLU", (6, 5, 4, 3), 20))
# The benchmark skips dense p x p matrices and their O(p^3) eigenproblems above this p.
LARGEST_DENSE = 12_000
MATRICES = {"JAX": 4, "PyTorch": 4, "curvlinops": 3, "engine dense": 4}


def counted(matrix_rank, matrices, weights):
    """Count the rank of each part, in the order of PARTS, and of each weight."""
    ranks = {part: int(matrix_rank(m)) for part, m in zip(PARTS, matrices, strict=False)}
    return ranks | {f"W{i + 1}": int(matrix_rank(w)) for i, w in enumerate(weights)}


def obvious_jax(network: Network) -> Way:
    """Use jax.hessian for H_L and H_f_fixed, jax.jacrev for H_o, and matrix_rank."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    _, x, y = network.data()
    n, held = network.n, network.held()

    def outputs(theta):
        return network.apply(jax.nn.relu, network.split(theta), x)

    hessian = jax.jit(jax.hessian(lambda theta: jnp.sum((outputs(theta) - y) ** 2) / (2 * n)))
    fixed = jax.jit(jax.hessian(lambda theta: jnp.vdot(held, outputs(theta)) / n))
    jacobian = jax.jit(jax.jacrev(lambda theta: outputs(theta).reshape(-1)))

    def ranks(weights):
        theta = jnp.concatenate([jnp.ravel(w) for w in weights])
        h_l, j = hessian(theta), jacobian(theta)
        h_o = j.T @ j / n
        return counted(jnp.linalg.matrix_rank, (h_l, h_o, h_l - h_o, fixed(theta)), weights)

    return ranks


def pytorch(network: Network) -> Way:
    """Use torch.func for the same matrices, and torch.linalg.matrix_rank as it is by default."""
    import torch

    _, x, y = network.data()
    x, y, held = (torch.from_numpy(a) for a in (x, y, network.held()))
    n = network.n

    def outputs(theta):
        return network.apply(torch.relu, network.split(theta), x)

    hessian = torch.func.hessian(lambda theta: torch.sum((outputs(theta) - y) ** 2) / (2 * n))
    fixed = torch.func.hessian(lambda theta: torch.sum(held * outputs(theta)) / n)
    jacobian = torch.func.jacrev(lambda theta: outputs(theta).reshape(-1))

    def ranks(weights):
        weights = [torch.from_numpy(w) for w in weights]
        theta = torch.cat([w.reshape(-1) for w in weights])
        h_l, j = hessian(theta), jacobian(theta)
        h_o = j.T @ j / n
        return counted(torch.linalg.matrix_rank, (h_l, h_o, h_l - h_o, fixed(theta)), weights)

    return ranks


def curvlinops(network: Network) -> Way:
    """Multiply its Hessian and GGN with the identity; it has no operator for H_f_fixed."""
    import torch
    from curvlinops import GGNLinearOperator, HessianLinearOperator

    _, x, y = network.data()
    batches = [(torch.from_numpy(x), torch.from_numpy(y))]
    layers = []
    for a, b in zip(network.dims[:-1], network.dims[1:], strict=True):
        layers += [torch.nn.Linear(a, b, bias=False)]
        layers += [torch.nn.ReLU()] if network.kind == "ReLU" else []
    layers = layers[:-1] if network.kind == "ReLU" else layers
    model, loss = torch.nn.Sequential(*layers).double(), torch.nn.MSELoss(reduction="sum")
    params = list(model.parameters())
    identity = torch.eye(sum(p.numel() for p in params), dtype=torch.float64)

    def ranks(weights):
        for p, w in zip(params, weights, strict=True):
            p.data = torch.from_numpy(w.T.copy())
        operators = (
            kind(model, loss, params, batches, check_deterministic=False)
            for kind in (HessianLinearOperator, GGNLinearOperator)
        )
        h_l, h_o = ((operator @ identity).detach() / (2 * network.n) for operator in operators)
        return counted(torch.linalg.matrix_rank, (h_l, h_o, h_l - h_o), [p.data for p in params])

    return ranks
