"""Extremes and traces of a Hessian's diagonal blocks by layer, with intervals, from products.

The block of layer l multiplies a vector v of its parameters as H multiplies v with zeros for all
others, of which the rows of layer l are kept. Krylov spaces of these products show the spectrum of
the block, as `linalg.krylov` says, without the matrix.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from rankmon.engines.base import Block, Blocks
from rankmon.engines.block_spectra import DIAGONAL_PARTS
from rankmon.engines.part_products import NOISE_OF_DOUBLE, PartProducts
from rankmon.linalg.block_lanczos import Product
from rankmon.linalg.estimate import Estimate
from rankmon.linalg.krylov import Limits, krylov_spectrum
from rankmon.linalg.krylov_spectrum import CONFIDENCE
from rankmon.linalg.signed_spectrum import SignedSpectrum
from rankmon.network.layers import Layer
from rankmon.problem.flat import FlatProblem, gaussian_leaves
from rankmon.problem.point import Point

# Vectors at once: fewer find the extremes in fewer products, more have narrower intervals.
_WIDTH = 8

# Eigenvalues below this share of a block's norm need not converge: only the extremes are logged.
_GOAL = 0.1

# Rows of a basis.
_MOST_ROWS, _LEAST_ROWS = 256, 4 * _WIDTH

# Blocks of vectors for the trace.
_MOMENTS = 3

# Products of `_WIDTH` vectors that show something of a block, about.
_LEAST_PRODUCTS = 8

_UNDEFINED = Estimate(math.nan, math.nan, math.nan, CONFIDENCE)


@dataclass(frozen=True)
class BlockEstimates:
    """Estimates of the diagonal blocks of some layers.

    Attributes:
      products: the products with each part.
      layers: the layers, in the order in which they are measured.
      parts: H_L and H_o, as far as asked for.
      rows: the most rows of a basis that memory allows.
      seconds: the time of a product with each of these parts.
    """

    products: PartProducts
    layers: tuple[Layer, ...]
    parts: tuple[str, ...]
    rows: int
    seconds: float = 0.0

    @classmethod
    def of(
        cls, flat: FlatProblem, layers: Sequence[Layer], parts: Sequence[str], *, memory_limit: int
    ) -> "BlockEstimates":
        """Return the estimates of these layers' blocks, with their programs compiled.

        Raises:
          MemoryError: if not even a small basis fits.
        """
        products = PartProducts.of(flat, memory_limit=memory_limit, width=_WIDTH)
        asked = tuple(part for part in DIAGONAL_PARTS if part in parts)
        ordered = tuple(sorted(layers, key=lambda layer: layer.size))  # the most in a given time
        largest = max((_places(layer, products).size for layer in ordered), default=0)
        # Two bases, the eigenvectors between them, and copies of some of their rows.
        rows = min(memory_limit // (2 * 8 * 3 * max(largest, 1)), _MOST_ROWS)
        if rows < _LEAST_ROWS:
            raise MemoryError(
                f"{_LEAST_ROWS} vectors of a layer of {largest:,} parameters exceed memory_limit"
            )
        return cls(products, ordered, asked, rows)._timed()

    def _timed(self) -> "BlockEstimates":
        """Return these estimates with the time of a product; compile them."""
        reduced, rng = self.products.reduced, np.random.default_rng(0)
        delta = rng.standard_normal((reduced.positions, reduced.k))
        point = Point(reduced, 0, gaussian_leaves(reduced, rng), delta)
        alike = "H_L" in self.parts and all(self._is_outer(point, x, delta) for x in self.layers)
        parts = [part for part in self.parts if part == "H_L" or not alike]
        self.products.compile(parts)
        seconds = 0.0
        v = rng.standard_normal((_WIDTH, reduced.p))
        for part in parts:
            product, _ = self.products.rows(part, point, [delta] if part == "H_L" else [])
            seconds += min(_seconds(product, v) for _ in range(2))  # other programs take time too
        return replace(self, seconds=seconds)

    def within(self, seconds: float) -> "BlockEstimates":
        """Return the estimates of as many layers as are expected to fit in these seconds."""
        fitting = int(seconds / max(_LEAST_PRODUCTS * self.seconds, 1e-9))
        return replace(self, layers=self.layers[:fitting])

    def blocks(self, point: Point, *, norm: Estimate | None, deadline: float) -> Blocks:
        """Return the blocks that there was time for.

        Args:
          point: the point, in the parameters of the problem; finite.
          norm: ||H_L||_F, for the share outside the blocks; None if it is not known.
          deadline: the time by which they should be ready.
        """
        whole = self.products.coordinates.at(point)
        found: dict[str, dict[str, Block]] = {part: {} for part in self.parts}
        for done, layer in enumerate(self.layers):
            now = time.monotonic()
            if now + _LEAST_PRODUCTS * self.seconds / 4 > deadline:
                break
            until = now + (deadline - now) / (len(self.layers) - done)
            for part, curvature in self._of_layer(whole, layer, until).items():
                found[part][layer.name] = Block(None, curvature)
        inside = [block.curvature.frobenius for block in found.get("H_L", {}).values()]
        if norm is None or len(inside) < len(self.layers):
            return Blocks(found)
        return Blocks(found, off_diagonal=_share_outside(inside, norm))

    def undefined(self, *, has_share: bool) -> Blocks:
        """Return the blocks of a Hessian that is not finite, and their share if there is one."""
        block = Block(None, _summary(_UNDEFINED, _UNDEFINED, _UNDEFINED, _UNDEFINED))
        diagonal = {part: {layer.name: block for layer in self.layers} for part in self.parts}
        return Blocks(diagonal, off_diagonal=_UNDEFINED if has_share else None)

    def _of_layer(self, point: Point, layer: Layer, until: float) -> dict[str, SignedSpectrum]:
        """Return the summary of one layer's block in each part, at a point in the coordinates."""
        delta = point.residuals
        is_outer = "H_L" in self.parts and self._is_outer(point, layer, delta)
        parts = self.parts[:1] if is_outer else self.parts
        found = {}
        for done, part in enumerate(parts):
            now = time.monotonic()
            end = now + (until - now) / (len(parts) - done)
            deltas = [delta] if part == "H_L" else []
            positive = part == "H_o" or is_outer
            found[part] = self._estimated(part, point, deltas, layer, end, positive)
        return {part: found.get(part, found[parts[0]]) for part in self.parts}

    def _is_outer(self, point: Point, layer: Layer, delta: np.ndarray) -> bool:
        """Return whether the block of H_f is zero: then those of H_L and H_o are the same."""
        places = _places(layer, self.products)
        functional = self.products.operator("H_f", point, [delta])
        return functional.vanishes_in(places, np.random.default_rng(1))

    def _estimated(
        self,
        part: str,
        point: Point,
        deltas: Sequence[np.ndarray],
        layer: Layer,
        until: float,
        of_outer: bool,
    ) -> SignedSpectrum:
        places = _places(layer, self.products)
        zero = Estimate(0.0, 0.0, 0.0, CONFIDENCE)
        if not places.size:
            return _summary(zero, zero, zero, zero)
        product, noise = self.products.rows(part, point, deltas, places=places)
        spectrum = krylov_spectrum(
            product,
            places.size,
            goal=_GOAL,
            limits=Limits(until, self.rows),
            width=_WIDTH,
            moments=_MOMENTS,
            dtype=np.float64 if noise == NOISE_OF_DOUBLE else np.float32,
            noise=noise,
        )
        if spectrum is None:
            return _summary(_UNDEFINED, _UNDEFINED, _UNDEFINED, _UNDEFINED)
        largest, smallest = spectrum.largest(), spectrum.smallest()
        if places.size < layer.size:  # the other directions have the eigenvalue zero
            largest, smallest = _clipped(largest, 0.0, math.inf), _clipped(smallest, -math.inf, 0.0)
        if of_outer and point.flat.problem.loss.root is not None:  # B_i = C_i C_i^T
            largest, smallest = (_clipped(end, 0.0, math.inf) for end in (largest, smallest))
            if point.flat.root_rows < layer.size:
                smallest = zero
        return _summary(
            largest, smallest, spectrum.trace(), spectrum.frobenius()
        ).without_vague_values()


def _seconds(product: Product, v: Float[np.ndarray, "m q"]) -> float:
    begun = time.monotonic()
    product(v)
    return time.monotonic() - begun


def _places(layer: Layer, products: PartProducts) -> Int[np.ndarray, " b"]:
    return layer.places(products.reduced)


def _clipped(estimate: Estimate, low: float, high: float) -> Estimate:
    value, *ends = (min(max(x, low), high) for x in (estimate.value, estimate.low, estimate.high))
    return Estimate(value, ends[0], ends[1], estimate.confidence)


def _summary(
    largest: Estimate, smallest: Estimate, trace: Estimate, frobenius: Estimate
) -> SignedSpectrum:
    """Return a summary with these numbers, and no others."""
    unknown = Estimate.unknown()
    return SignedSpectrum(
        largest=largest,
        smallest=smallest,
        trace=trace,
        frobenius=frobenius,
        stable_rank=unknown,
        effective_rank=unknown,
        above={},
        clearly_negative=unknown,
        negative=unknown,
    )


def _share_outside(blocks: Sequence[Estimate], norm: Estimate) -> Estimate | None:
    """Return 1 - sum_l ||H_ll||_F^2 / ||H||_F^2; None if nothing is known of a block."""
    if not norm.low > 0 or any(math.isnan(block.value) for block in blocks):
        return None

    def outside(inside: Sequence[float], whole: float) -> float:
        return min(max(1 - sum((size / whole) ** 2 for size in inside), 0.0), 1.0)

    low = outside([block.high for block in blocks], norm.low)
    high = outside([block.low for block in blocks], norm.high)
    return Estimate(outside([block.value for block in blocks], norm.value), low, high, CONFIDENCE)
