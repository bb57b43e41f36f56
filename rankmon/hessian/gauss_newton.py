"""The Gauss-Newton term H_o: its product with a vector, and its exact rank, at any p.

Symbols: weights w_i that sum to 1, output Hessians B_i = d2l/dF2 [k, k] and J_i = dF(x_i)/dtheta
[k, p],

  H_o = sum_i w_i J_i^T B_i J_i

With w_i B_i = C_i S_i C_i^T, S_i the signs of B_i's eigenvalues (all 1 for a convex loss), and A
the rows C_i^T J_i, [N k, p]:

  H_o = A^T S A     has the non-zero eigenvalues of   R S R^T with A^T = Q R     [N k, N k]
                                          and of      A A^T                      if S = I

so that no array of size p x p or p x N k is needed. If p < N k, H_o itself is the smaller matrix.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rankmon._util.distributed import gathered
from rankmon._util.expected_time import OutOfTimeError, Pace
from rankmon._util.text import bytes_text
from rankmon.hessian.jacobian import JacobianOperator
from rankmon.linalg.gram import (
    Block,
    BoundedSpectrum,
    Gram,
    factor_bytes,
    factor_spectrum,
    gram_bytes,
    gram_resolution,
    triangular_factor,
)
from rankmon.linalg.numerical_rank import (
    NumericalRank,
    Tolerance,
    numerical_rank,
    undefined_rank,
)
from rankmon.problem.flat import FlatProblem, Vector
from rankmon.problem.output_hessians import ROOTED_ALIVE, OutputHessians, Roots

METHODS = ("auto", "gram", "qr")

# Seconds for a spectrum divided by the matrix's order^3, measured at order 7,000 on two cores.
_SECONDS = 1.2e-10


def pushed_forward(pull_back: Callable[[Any], Any], z: Any, v: Any) -> Any:
    """Return J v as the transpose of u -> J^T u; traceable.

    Forward mode would fail for a function with a custom backward rule alone.

    Args:
      pull_back: the function u -> (J^T u,), from `jax.vjp` at theta.
      z: the outputs at theta.
      v: a vector like theta.
    """
    return jax.vjp(lambda u: pull_back(u)[0], jnp.zeros_like(z))[1](v)[0]


def outer_product(
    flat: FlatProblem,
    theta: Vector,
    fixed: Any,
    inputs: Any,
    targets: Any,
    weights: Float[Array, " n"],
    v: Vector,
) -> Vector:
    """Return H_o v; traceable."""
    z, pull_back = jax.vjp(lambda t: flat.outputs(t, fixed, inputs), theta)
    jv = pushed_forward(pull_back, z, v)
    bjv = jax.vmap(flat.problem.loss.hessian_product)(z, targets, jv)
    cotangent = (weights[:, None] * bjv).astype(
        z.dtype
    )  # outputs may be float32 in a float64 network
    return pull_back(cotangent)[0]


@dataclass(frozen=True)
class OuterRank(NumericalRank):
    """The `NumericalRank` of H_o, with the method and the smallest cut that it resolves.

    `low` counts the eigenvalues that are certainly above 10 x tolerance, `high` those that may be
    above tolerance / 10: both allow for the error of the computed eigenvalues.

    Attributes:
      method: "gram" or "qr".
      finest_cut: the smallest cut that this method resolves; with a smaller one, `high` counts
        rounding errors.
    """

    method: str
    finest_cut: float


class OuterSpectrum:
    """The non-zero eigenvalues of one problem's H_o; its programs are compiled at the first use.

    Args:
      flat: the problem.
      memory_limit: bytes for the matrices and for blocks of the Jacobian.

    Raises:
      MemoryError: if the matrices do not fit; the message gives the bytes that they need.
    """

    def __init__(self, flat: FlatProblem, *, memory_limit: int) -> None:
        self._flat = flat
        self._rows = flat.root_rows
        self._order = min(self._rows, flat.p)
        _refuse_dense_roots(flat, memory_limit)
        need = gram_bytes(self._order) + _roots_bytes(flat)
        if need > memory_limit:
            raise MemoryError(
                f"expected matrices of {self._order:,} rows and columns, the fewer of N k = "
                f"{self._rows:,} and p = {flat.p:,}, to fit in memory_limit = "
                f"{bytes_text(memory_limit)}, got {bytes_text(need)}; raise memory_limit or take a "
                "smaller probe batch"
            )
        self._room = (memory_limit - need) // 2
        self._jacobian = JacobianOperator(flat, room=self._room)

    @classmethod
    def if_it_fits(cls, flat: FlatProblem, *, memory_limit: int) -> "OuterSpectrum | None":
        """Return the spectrum, or None if the matrices do not fit."""
        try:
            return cls(flat, memory_limit=memory_limit)
        except MemoryError:
            return None

    def rank(
        self,
        leaves: Sequence[Any],
        tolerance: Tolerance,
        method: str,
        *,
        time_limit: float = math.inf,
    ) -> OuterRank:
        """Return the rank at these leaves, sharded or not; other arguments as for `outer_rank`.

        Raises:
          OutOfTimeError: if it is expected to take longer than `time_limit` seconds.
        """
        return self.measured(leaves, tolerance, method, time_limit=time_limit)[0]

    def measured(
        self,
        leaves: Sequence[Any],
        tolerance: Tolerance,
        method: str,
        *,
        time_limit: float = math.inf,
    ) -> tuple[OuterRank, BoundedSpectrum | None, bool]:
        """Return the rank, as `rank` does, the absolute eigenvalues, and whether none is negative.

        There are no eigenvalues (None) if something is not finite.
        """
        begun, found, spectrum = time.monotonic(), None, None
        seconds = _SECONDS * self._order**3
        if seconds > time_limit:
            raise OutOfTimeError(f"the spectrum of {self._order:,} rows")
        self._flat.pace.say(f"the spectrum of {self._order:,} rows", seconds)
        # Arrays of JAX stay on their devices, where they may be sharded.
        leaves = [leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for leaf in leaves]
        b = self._output_hessians(leaves)
        if b is None:
            return self._undefined(method), None, False
        roots = b.roots(self._flat.weights)
        if roots is None:
            return self._undefined(method), None, False
        for way in self._ways(tolerance, method, convex=roots.signs is None):
            left = time_limit - (time.monotonic() - begun)
            pace = replace(self._flat.pace, limit=left)  # shares the set of logged messages
            try:
                spectrum = self._spectrum(way, leaves, roots, pace)
            except OutOfTimeError:
                if found is None:
                    raise
                break  # the method before has bounds on the rank at least
            if spectrum is None:
                return self._undefined(way), None, False
            found = self.counted(spectrum, tolerance, way)
            if found.finest_cut <= found.tolerance:  # else the next method resolves smaller cuts
                break
        assert found is not None
        return found, spectrum, roots.signs is None

    def _ways(self, tolerance: Tolerance, method: str, *, convex: bool) -> list[str]:
        """Return the methods to try, the fastest first."""
        small_is_outer = self._order < self._rows
        able = ["gram", "qr"] if convex else ["gram"] if small_is_outer else ["qr"]
        if method not in ("auto", *able):
            raise ValueError(
                f"expected method {able[0]!r} where the loss is not convex in the outputs and p is "
                f"{'below' if small_is_outer else 'at least'} N k, got {method!r}; use 'auto'"
            )
        ways = able if method == "auto" else [method]
        need = factor_bytes(self._order)
        if need > self._room and ways[0] == "qr":
            raise MemoryError(
                f"expected the QR steps of {self._order:,} columns to fit in "
                f"{bytes_text(self._room)}, got {bytes_text(need)}; raise memory_limit or take a "
                "smaller probe batch"
            )
        if need > self._room:
            return ways[:1]
        # "gram" resolves cuts above a known multiple of the norm, so a relative cut can be checked
        # before the matrix exists; `rank` checks an absolute cut when it knows the norm.
        resolved = tolerance.cut(1.0, default=self._default) >= gram_resolution(self._order)
        return ways if tolerance.absolute is not None or resolved else ways[-1:]

    @property
    def _default(self) -> float:
        """The default cut as a multiple of the norm."""
        return self._flat.p * self._flat.precision.eps

    def _spectrum(
        self, way: str, leaves: Sequence[Any], roots: Roots, pace: Pace
    ) -> BoundedSpectrum | None:
        """Return the min(N k, p) eigenvalues that can be non-zero; None if something overflows."""
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is found in the result
            if way == "gram":
                gram = Gram.of(self._blocks(leaves, roots.of_sign(1), pace), self._order)
                if roots.signs is not None:
                    gram -= Gram.of(self._blocks(leaves, roots.of_sign(-1), pace), self._order)
                return gram.spectrum() if np.all(np.isfinite(gram.matrix)) else None
            R = triangular_factor(self._blocks(leaves, roots, pace), self._order)
            if not np.isfinite(np.sum(R**2)):  # it bounds every eigenvalue
                return None
            return factor_spectrum(R, None if roots.signs is None else roots.signs.ravel())

    def _blocks(self, leaves: Sequence[Any], roots: Roots, pace: Pace) -> Iterator[Block]:
        """Return blocks of columns of A, or of A^T if p < N k."""
        jacobian = self._jacobian
        if self._order < self._rows:
            return jacobian.rows(leaves, roots, pace)
        return jacobian.columns(leaves, roots, pace)

    def counted(self, spectrum: BoundedSpectrum, tolerance: Tolerance, way: str) -> OuterRank:
        """Return the number of eigenvalues above the cut, for a spectrum found in this way."""
        flat, values = self._flat, spectrum.values
        cut = tolerance.cut(float(values[0]), default=self._default)
        rank = numerical_rank(values, cut, size=flat.p, errors=spectrum.errors)
        return OuterRank(**asdict(rank), method=way, finest_cut=spectrum.finest_cut)

    def _undefined(self, method: str) -> OuterRank:
        """Return the result for numbers that are not finite."""
        nothing = undefined_rank(self._flat.p)
        return OuterRank(**asdict(nothing), method=method, finest_cut=float("nan"))

    def _output_hessians(self, leaves: Sequence[Any]) -> OutputHessians | None:
        """Return B_i at every position; None if a parameter is not finite."""
        flat = self._flat
        with flat.precision.scope():
            data, finite = gathered(self._state(leaves, flat.inputs, flat.targets))
            return flat.hessians_from(data) if finite else None

    @cached_property
    def _state(self) -> Callable[..., Any]:
        """The program for the data of the output Hessians and whether all parameters are finite."""
        flat = self._flat

        def state(leaves: Any, inputs: Any, targets: Any) -> Any:
            leaves = flat.lifted(leaves)
            z = flat.apply_leaves(leaves, inputs)
            moving = [x for x, s in zip(leaves, flat.specs, strict=True) if s.differentiated]
            finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in moving])
            return flat.hessian_data(z, targets), jnp.all(finite)

        return jax.jit(state)


def _roots_bytes(flat: FlatProblem) -> int:
    """Return the bytes for the roots of the output Hessians and their intermediate arrays."""
    each = 1 if flat.problem.loss.root is not None else flat.k
    return ROOTED_ALIVE * 8 * flat.positions * flat.k * each


def _refuse_dense_roots(flat: FlatProblem, memory_limit: int) -> None:
    """Raise MemoryError if the output Hessians alone, k x k each, do not fit."""
    if _roots_bytes(flat) > memory_limit:
        raise MemoryError(
            f"expected the output Hessians of {flat.problem.loss.name} at {flat.positions:,} "
            f"positions, {flat.k:,} x {flat.k:,} each, to fit in memory_limit = "
            f"{bytes_text(memory_limit)}, got {bytes_text(_roots_bytes(flat))}; raise "
            "memory_limit, take a smaller probe batch, or state the loss as 'cross_entropy', 'mse' "
            "or 'cosh' if it is one of these: their Hessians take no such matrices"
        )
