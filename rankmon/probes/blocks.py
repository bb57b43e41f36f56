"""The scalars of a Hessian's blocks by layer: diagonal blocks of H_L and H_o, columns of H_f."""

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from rankmon._util.facts import Fact
from rankmon._util.text import listed
from rankmon.engines.base import Block, Blocks, Engine, Ranks, differentiated_twice
from rankmon.engines.block_estimates import BlockEstimates
from rankmon.engines.block_spectra import DIAGONAL_PARTS
from rankmon.engines.exact import ExactEngine
from rankmon.engines.lanczos import LanczosEngine
from rankmon.engines.quadrature import QuadratureEngine
from rankmon.engines.sketch import SketchEngine
from rankmon.linalg.estimate import Estimate
from rankmon.linalg.numerical_rank import NumericalRank, undefined_rank
from rankmon.network.layers import Layer, layers_of
from rankmon.probes.base import count_scalar
from rankmon.probes.curvature import UNDEFINED, estimate_scalars
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Point

# A measurement with blocks takes at most about so many times as long as one without.
_SLOWDOWN = 2.0

# Of the time limit, for an engine that leaves the rest to estimates of the blocks.
_SHARE_OF_ENGINE = 0.5

# Of the time that is left: steps may take longer than the ones before them.
_SHARE_OF_REST = 0.9

_NO_TIME = (
    "the rest of the Hessian left no time for the blocks of some layers, which this record and "
    "perhaps others lack; raise time_limit= of the HessianProbe"
)


@dataclass(frozen=True)
class BlockPlan:
    """The layers whose blocks are measured, or the reason why none are.

    Attributes:
      layers: the layers; empty if the blocks are left out.
      reason: why they are left out, or only estimated; empty if an exact engine measures them.
      estimates: the estimates without an exact engine.
      has_share: whether the estimates contain the share outside the diagonal blocks.
      left_out: the layers that there is no time for.
    """

    layers: tuple[Layer, ...] = ()
    reason: str = ""
    estimates: BlockEstimates | None = None
    has_share: bool = False
    left_out: tuple[Layer, ...] = ()

    @classmethod
    def of(cls, flat: FlatProblem, engine: ExactEngine, *, time_limit: float) -> "BlockPlan":
        """Return the layers if this engine can measure their blocks in time.

        Args:
          flat: the problem.
          engine: measures it.
          time_limit: seconds for a measurement; infinite if the engine was requested by name.
        """
        seconds = _SLOWDOWN * engine.seconds(time_limit=time_limit)
        if seconds > time_limit:
            return cls(
                reason=f"with them a measurement takes about {seconds:.0f} s, more than time_limit "
                f"= {time_limit:g} s"
            )
        return cls(layers_of(flat))

    @classmethod
    def estimated(
        cls,
        flat: FlatProblem,
        engine: Engine,
        parts: Sequence[str],
        *,
        memory_limit: int,
        time_limit: float,
    ) -> "BlockPlan":
        """Return the layers whose blocks can be estimated in time, beside an inexact engine.

        Args:
          flat: the problem.
          engine: measures the Hessian.
          parts: the parts that are asked for.
          memory_limit: bytes for the bases.
          time_limit: seconds for a measurement, that of the engine included.
        """
        reason = f"the engine {engine.name!r} computes no matrices"
        if not set(parts) & set(DIAGONAL_PARTS):
            return cls(reason=reason)
        layers = layers_of(flat)
        try:
            with differentiated_twice():
                estimates = BlockEstimates.of(flat, layers, parts, memory_limit=memory_limit)
        except MemoryError as error:
            return cls(reason=f"{reason}, and {error}")
        left = _SHARE_OF_REST * (1 - _SHARE_OF_ENGINE) * time_limit
        estimates = estimates.within(left)
        if not estimates.layers:
            return cls(
                reason=f"{reason}, and estimates take more than time_limit = {time_limit:g} s"
            )
        within = tuple(layer for layer in layers if layer in estimates.layers)
        left_out = tuple(layer for layer in layers if layer not in estimates.layers)
        has_share = not left_out and "H_L" in parts and isinstance(engine, LanczosEngine)
        return cls(within, reason, estimates, has_share, left_out)

    @property
    def fact(self) -> Fact:
        """The line of the run's card."""
        if not self.layers:
            return Fact("blocks by layer", f"left out: {self.reason}")
        text = listed([f"{layer.name} ({layer.size:,} parameters)" for layer in self.layers])
        if self.estimates is not None:
            text += f"; {self._limits}"
        return Fact("blocks by layer", text)

    @property
    def _limits(self) -> str:
        """What is only estimated, and what is left out."""
        left_out = ["their ranks", "the ranks of H_f's columns"]
        if not self.has_share:
            left_out.append("the share outside them")
        if self.left_out:
            left_out.append(f"for time the blocks of {listed([x.name for x in self.left_out])}")
        return (
            "extreme eigenvalues and traces are estimates with 95 % intervals, because "
            f"{self.reason}; left out: {', '.join(left_out)}"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warning if the blocks are estimated or left out."""
        if not self.reason:
            return ()
        limits = self._limits if self.layers else f"left them out: {self.reason}"
        return (
            f"expected an exact engine for the Hessian's blocks by layer: {limits}; choose fewer "
            "parameters with HessianProbe(include=...), raise time_limit= and memory_limit=, or "
            "leave out blocks=True",
        )

    def scalars_at(
        self, point: Point, found: Ranks, deadline: float
    ) -> tuple[dict[str, float], tuple[str, ...]]:
        """Return the scalars at a finite point, and warnings about those that are left out.

        Args:
          point: the parameters.
          found: what the engine found.
          deadline: the time by which estimates should be ready, if possible.
        """
        if self.estimates is None:
            return {} if found.blocks is None else block_scalars(found.blocks), self.warnings
        curvature = found.curvature.get("H_L") if self.has_share else None
        norm = None if curvature is None else curvature.frobenius
        until = deadline - (1 - _SHARE_OF_REST) * max(deadline - time.monotonic(), 0.0)
        blocks = self.estimates.blocks(point, norm=norm, deadline=until)
        scalars = block_scalars(blocks)
        complete = all(len(block) == len(self.layers) for block in blocks.diagonal.values())
        return scalars, self.warnings if complete else (*self.warnings, _NO_TIME)

    def undefined(self, parts: Collection[str]) -> dict[str, float]:
        """Return the scalars of blocks that are not finite: NaN, for all that is measured."""
        if self.estimates is not None:
            return block_scalars(self.estimates.undefined(has_share=self.has_share))
        undefined = {x.name: Block(undefined_rank(x.size), UNDEFINED) for x in self.layers}
        diagonal = {part: undefined for part in DIAGONAL_PARTS if part in parts}
        columns = {x.name: undefined_rank(x.size) for x in self.layers if "H_f" in parts}
        share = Estimate.exact(math.nan) if "H_L" in parts else None
        return block_scalars(Blocks(diagonal, columns, share))


def leaving_time(engine: Engine) -> Engine:
    """Return an inexact engine with less time, so that estimates of the blocks have the rest."""
    if not isinstance(engine, SketchEngine | LanczosEngine | QuadratureEngine):
        return engine
    return replace(engine, time_limit=_SHARE_OF_ENGINE * engine.time_limit)


def block_scalars(blocks: Blocks) -> dict[str, float]:
    """Return tag -> number of all blocks; numbers that were not measured have no tag."""
    scalars: dict[str, float] = {}
    for part, layers in blocks.diagonal.items():
        for layer, block in layers.items():
            name = f"{part}/{layer}"
            if block.rank is not None:
                scalars |= _counts("block", name, block.rank)
            scalars |= estimate_scalars(
                {
                    f"eigenvalue_max_block/{name}": block.curvature.largest,
                    f"eigenvalue_min_block/{name}": block.curvature.smallest,
                    f"trace_block/{name}": block.curvature.trace,
                }
            )
    for layer, rank in blocks.columns.items():
        scalars |= _counts("columns", f"H_f/{layer}", rank)
    if blocks.off_diagonal is not None:
        scalars |= estimate_scalars({"off_diagonal_share/H_L": blocks.off_diagonal})
    return scalars


def _counts(kind: str, name: str, rank: NumericalRank) -> dict[str, float]:
    return {
        f"rank_{kind}/{name}": count_scalar(rank.known),
        f"rank_low/{kind}/{name}": count_scalar(rank.low),
        f"rank_high/{kind}/{name}": count_scalar(rank.high),
    }
