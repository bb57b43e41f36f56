"""The scalars of a Hessian's blocks by layer: diagonal blocks of H_L and H_o, columns of H_f."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rankmon._util.facts import Fact
from rankmon._util.text import listed
from rankmon.engines.base import Block, Blocks, Engine
from rankmon.engines.block_spectra import DIAGONAL_PARTS
from rankmon.engines.exact import ExactEngine
from rankmon.linalg.numerical_rank import NumericalRank, undefined_rank
from rankmon.network.layers import Layer, layers_of
from rankmon.probes.base import count_scalar
from rankmon.probes.curvature import UNDEFINED, estimate_scalars
from rankmon.problem.flat import FlatProblem

# A measurement with blocks takes at most about so many times as long as one without.
_SLOWDOWN = 2.0


@dataclass(frozen=True)
class BlockPlan:
    """The layers whose blocks are measured, or the reason why none are.

    Attributes:
      layers: the layers; empty if the blocks are left out.
      reason: why they are left out; empty if they are measured.
    """

    layers: tuple[Layer, ...] = ()
    reason: str = ""

    @classmethod
    def of(cls, flat: FlatProblem, engine: Engine, *, time_limit: float) -> "BlockPlan":
        """Return the layers if this engine can measure their blocks in time.

        Args:
          flat: the problem.
          engine: measures it.
          time_limit: seconds for a measurement; infinite if the engine was requested by name.
        """
        if not isinstance(engine, ExactEngine):
            return cls(reason=f"the engine {engine.name!r} computes no matrices")
        seconds = _SLOWDOWN * engine.seconds(time_limit=time_limit)
        if seconds > time_limit:
            return cls(
                reason=f"with them a measurement takes about {seconds:.0f} s, more than time_limit "
                f"= {time_limit:g} s"
            )
        return cls(layers_of(flat))

    @property
    def fact(self) -> Fact:
        """The line of the run's card."""
        if self.reason:
            return Fact("blocks by layer", f"left out: {self.reason}")
        sizes = [f"{layer.name} ({layer.size:,} parameters)" for layer in self.layers]
        return Fact("blocks by layer", listed(sizes))

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warning if the blocks are left out."""
        if not self.reason:
            return ()
        return (
            f"expected an exact engine for the Hessian's blocks by layer, left them out: "
            f"{self.reason}; choose fewer parameters with HessianProbe(include=...), raise "
            "time_limit= and memory_limit=, or leave out blocks=True",
        )


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
        scalars["off_diagonal_share/H_L"] = blocks.off_diagonal
    return scalars


def undefined_blocks(layers: Sequence[Layer], parts: Collection[str]) -> dict[str, float]:
    """Return the scalars of blocks that are not finite: NaN, for all that exact engines measure."""
    undefined = {layer.name: Block(undefined_rank(layer.size), UNDEFINED) for layer in layers}
    diagonal = {part: undefined for part in DIAGONAL_PARTS if part in parts}
    columns = {layer.name: undefined_rank(layer.size) for layer in layers if "H_f" in parts}
    return block_scalars(Blocks(diagonal, columns, math.nan if "H_L" in parts else None))


def _counts(kind: str, name: str, rank: NumericalRank) -> dict[str, float]:
    return {
        f"rank_{kind}/{name}": count_scalar(rank.known),
        f"rank_low/{kind}/{name}": count_scalar(rank.low),
        f"rank_high/{kind}/{name}": count_scalar(rank.high),
    }
