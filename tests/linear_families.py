"""Ranks of a linear network's Hessians at random parameters: exact, and in float64 with softmax."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prime_field import Jet, exact_hessians, exact_rank, field, of_rank
from rankmon.theory import NetworkFamily

PARTS = ("H_o", "H_f", "H_L")


@dataclass(frozen=True)
class LinearNetwork:
    """A member of a family, F(x) = A x.

    Attributes:
      family: its closed forms.
      shapes: the shapes of the parameters.
      matrix: A, as a function of the parameters; of jets or of arrays.
    """

    family: NetworkFamily
    shapes: Sequence[tuple[int, ...]]
    matrix: Callable[[Sequence[Any]], Any]

    @property
    def p(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes)

    def draw_ranks(self, rng: np.random.Generator) -> tuple[int, int, str]:
        """Draw r, s and a loss; often the largest ranks, in a third of the cases cross entropy."""
        d, K = self.family.inputs, self.family.outputs
        loss = "cross_entropy" if K > 1 and rng.random() < 1 / 3 else "mse"
        r = d if rng.random() < 0.4 else int(rng.integers(0, d + 1))
        most = min(r, K - (loss == "cross_entropy"))
        s = most if rng.random() < 0.3 else int(rng.integers(0, most + 1))
        return r, s, loss

    def exact_ranks(
        self, rng: np.random.Generator, r: int, s: int, loss: str = "mse"
    ) -> tuple[dict[str, int], list[int]]:
        """Return the ranks of the parts, and of the columns of H_f for each parameter.

        The kernel of softmax's output Hessians is the vector of ones, and residuals are orthogonal
        to it. So cross entropy has the ranks of mse after a map of the outputs with this kernel.
        """
        d, K = self.family.inputs, self.family.outputs
        seen = np.eye(K, dtype=np.int64)
        if loss == "cross_entropy":
            differences = np.eye(K - 1, K, dtype=np.int64) - np.eye(K, dtype=np.int64)[-1]
            seen = field(rng, K - 1, K - 1) @ differences
        x = np.eye(d, dtype=np.int64) if r == d else of_rank(rng, d, r, r)
        residuals = of_rank(rng, len(seen), r, s)

        def outputs(weights: list[Jet]) -> Jet:
            return seen @ (self.matrix(weights) @ x)

        arrays = [field(rng, *shape) for shape in self.shapes]
        found = exact_hessians(outputs, arrays, residuals)
        ranks = [exact_rank(H) for H in (found.outer, found.functional, found.loss)]
        return dict(zip(PARTS, ranks, strict=True)), [exact_rank(block) for block in found.columns]

    def softmax_ranks(self, rng: np.random.Generator, r: int, s: int) -> dict[str, int]:
        """Return the ranks of the parts under cross entropy, by automatic differentiation."""
        d, K, n = self.family.inputs, self.family.outputs, 30
        x = rng.standard_normal((d, r)) @ rng.standard_normal((r, n))
        residuals = rng.standard_normal((K, s)) @ rng.standard_normal((s, n))
        residuals -= residuals.mean(axis=0)
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])

        def outputs(theta: jax.Array) -> jax.Array:
            pieces = jnp.split(theta, ends[:-1])
            weights = [one.reshape(shape) for one, shape in zip(pieces, self.shapes, strict=True)]
            return self.matrix(weights) @ x

        @jax.jit
        def derivatives(theta: jax.Array) -> tuple[jax.Array, ...]:
            H_f = jax.hessian(lambda t: jnp.sum(residuals * outputs(t)))(theta)
            return jax.jacfwd(outputs)(theta), H_f, jax.nn.softmax(outputs(theta), axis=0)

        with jax.enable_x64(True):
            found = derivatives(jnp.asarray(0.7 * rng.standard_normal(self.p)))
        J, H_f, probabilities = (np.asarray(array) for array in found)
        means = np.einsum("kn,knp->np", probabilities, J)
        H_o = np.einsum("kn,knp,knq->pq", probabilities, J - means, J - means)
        Hessians = (H_o, H_f, H_o + H_f)
        return {part: certain_rank(H) for part, H in zip(PARTS, Hessians, strict=True)}

    def mismatches(self, measured: dict[str, int], r: int, s: int, loss: str) -> list[str]:
        """Return a line for each formula that differs from the measured rank."""
        return [
            f"{self.family.name}, r = {r}, s = {s}, {loss}: {part} is {measured[part]}, not {one}"
            for part, one in self.family.ranks(r=r, s=s, loss=loss).items()
            if one.value != measured[part]
        ]


def check_exactly(
    draw: Callable[[np.random.Generator], LinearNetwork], seed: int, networks: int
) -> int:
    """Check all formulas on random networks, until each part was checked on so many.

    Returns:
      The number of networks on which the part was checked that was checked least.
    """
    rng = np.random.default_rng(seed)
    counts, wrong = dict.fromkeys(PARTS, 0), []
    while min(counts.values()) < networks:
        network = draw(rng)
        r, s, loss = network.draw_ranks(rng)
        measured, _ = network.exact_ranks(rng, r, s, loss)
        wrong += network.mismatches(measured, r, s, loss)
        for part in network.family.ranks(r=r, s=s, loss=loss):
            counts[part] += 1
    assert not wrong, wrong[:10]
    return min(counts.values())


def certain_rank(matrix: np.ndarray) -> int:
    """Return the number of singular values above 1e-9 of the largest; none may be close to it."""
    values = np.linalg.svd(matrix, compute_uv=False)
    cut = 1e-9 * max(float(values[0]), 1e-300)
    assert not np.any((values > cut / 30) & (values < cut * 30)), values
    return int(np.sum(values > cut))
