"""Random networks with one hidden layer, and the ranks of their H_o and H_f without rankmon.

F(x) = V sigma(W x + b) + c with sigma(z) = z for z > 0 and a z else: ReLU (a = 0), leaky ReLU
(a = 0.1), |z| (a = -1); or tanh (a = None).
"""

from dataclasses import dataclass, replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

SLOPES = {"ReLU": 0.0, "leaky ReLU": 0.1, "|z|": -1.0, "tanh": None}
_MOST, _CHUNK = 13, 512  # entries of x with its 1; examples in one product


@dataclass(frozen=True)
class Network:
    """A network, with a column of W for b, and its batch, with a column of ones if b is used."""

    W: np.ndarray
    V: np.ndarray
    X: np.ndarray
    targets: np.ndarray
    activation: str
    output_bias: bool
    loss: str

    @property
    def n(self):
        """The number of examples."""
        return len(self.X)

    @property
    def K(self):
        """The number of outputs."""
        return len(self.V)

    @property
    def p(self):
        """The number of parameters, c included."""
        return self.W.size + self.V.size + self.K * self.output_bias

    @property
    def a(self):
        """The slope at z < 0."""
        return SLOPES[self.activation]

    @cached_property
    def Z(self):
        """The pre-activations."""
        return self.X @ self.W.T

    @property
    def slopes(self):
        """The slopes sigma'(z)."""
        return 1 - np.tanh(self.Z) ** 2 if self.a is None else np.where(self.Z > 0, 1.0, self.a)

    @property
    def features(self):
        """The hidden features sigma(z)."""
        return np.tanh(self.Z) if self.a is None else np.where(self.Z > 0, self.Z, self.a * self.Z)

    @property
    def residuals(self):
        """The derivatives of the loss in the outputs, with c = 0."""
        outputs = self.features @ self.V.T
        if self.loss == "cross_entropy":
            outputs = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            outputs /= outputs.sum(axis=1, keepdims=True)
        return outputs - self.targets

    def trained(self, steps, rate):
        """Return this network after gradient descent on W and V."""
        here = self
        for _ in range(steps):
            delta = here.residuals / self.n
            inward = (delta @ here.V * here.slopes).T @ self.X
            outward = delta.T @ here.features
            here = replace(here, W=here.W - rate * inward, V=here.V - rate * outward)
        return here

    def jacobian(self):
        """Return dF/dtheta, [n K, p], under cross entropy without its part along (1, ..., 1)."""
        n, K = self.n, self.K
        of_W = np.einsum("kj,nj,nd->nkjd", self.V, self.slopes, self.X).reshape(n, K, -1)
        of_V = np.einsum("kc,nj->nkcj", np.eye(K), self.features).reshape(n, K, -1)
        of_c = np.broadcast_to(np.eye(K), (n, K, K))[..., : K * self.output_bias]
        J = np.concatenate([of_W, of_V, of_c], axis=2)
        if self.loss == "cross_entropy":
            J = J - J.mean(axis=1, keepdims=True)
        return J.reshape(n * K, -1)

    def functional(self):
        """Return H_f of W and V by automatic differentiation, [p, p]."""
        (M, d), K = self.W.shape, self.K
        padded = [_padded(self.W), _padded(self.V)]
        total = 0.0
        for start in range(0, self.n, _CHUNK):
            part = slice(start, start + _CHUNK)
            x, delta = (_padded(array[part], _CHUNK) for array in (self.X, self.residuals))
            total = total + np.asarray(_hessian(*padded, x, delta, self.a))
        square = np.zeros((2, _MOST, _MOST), bool)
        square[0, :M, :d], square[1, :K, :M] = True, True
        return total[np.ix_(square.ravel(), square.ravel())] / self.n


def _padded(array, rows=_MOST):
    """Return a matrix with zeros to fixed sizes, so that all networks share one program."""
    return np.pad(array, ((0, rows - len(array)), (0, _MOST - array.shape[1])))


@jax.jit
def _hessian(W, V, x, delta, a):
    """Return the second derivatives of sum_i <delta_i, F(x_i)> in (W, V)."""

    def along(theta):
        W, V = theta.reshape(2, _MOST, _MOST)
        z = x @ W.T
        return jnp.sum(delta * (jnp.where(z > 0, z, a * z) @ V.T))

    return jax.hessian(along)(jnp.concatenate([W.ravel(), V.ravel()]))


def drawn(seed, activations=("ReLU", "leaky ReLU", "|z|")):
    """Return a random network: widths 1 to 12, n from p / (4 K) to 30 p / K, trained or not."""
    rng = np.random.default_rng(seed)
    d, M, K = rng.integers(1, 13, 3)
    hidden_bias, output_bias = rng.random(2) < 0.4
    loss = "cross_entropy" if K > 1 and rng.random() < 0.3 else "mse"
    p = M * (d + hidden_bias + K) + K * output_bias
    n = max(1, round(p / K * np.exp(rng.uniform(np.log(1 / 4), np.log(30)))))
    X = rng.standard_normal((n, d))
    targets = np.eye(K)[rng.integers(0, K, n)]
    if loss == "mse":
        targets = rng.standard_normal((n, K))
    X = np.concatenate([X, np.ones((n, 1))], axis=1) if hidden_bias else X
    W = rng.standard_normal((M, X.shape[1])) / np.sqrt(d)
    V = rng.standard_normal((K, M)) / np.sqrt(M)
    activation = str(rng.choice(activations))
    network = Network(W, V, X, targets, activation, bool(output_bias), loss)
    return network.trained(200, 0.05) if seed % 2 else network


def clear_rank(matrix):
    """Return the rank of a matrix; None if its singular values have no gap of 1000 at the cut."""
    if len(matrix) > 2 * matrix.shape[1]:
        matrix = np.linalg.qr(matrix, mode="r")
    values = np.linalg.svd(matrix, compute_uv=False)
    if values[0] == 0:
        return 0
    rank = int(np.sum(values > 1e-10 * values[0]))
    below = values[rank] if rank < len(values) else 0.0
    return rank if values[rank - 1] > 1e3 * below else None
