"""The weights probe: ranks and determinants of weight matrices."""

from dataclasses import dataclass

import numpy as np

from rankmon._util.facts import Fact
from rankmon._util.text import listed
from rankmon._util.validate import as_integer
from rankmon.linalg.numerical_rank import DEFAULT_TOLERANCE, Tolerance, as_tolerance
from rankmon.network.kernel_axes import kernel_axes
from rankmon.network.matrix_views import MatrixView, Views, matrix_views, tag_names
from rankmon.probes.base import Description, Measurement, State, rank_scalars
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Snapshot
from rankmon.problem.precision import eps_of
from rankmon.problem.problem import Problem
from rankmon.problem.pytree import warn_of_left_out
from rankmon.weights.ranks import weight_count, weight_rank


@dataclass(frozen=True)
class WeightsProbe:
    """Rank, stable rank, effective rank and condition number of each weight matrix; determinants.

    The operations of the network determine which axes of a kernel are rows and which are columns.
    For a convolution, the rows are the axes that it sums over (spatial axes and input channels),
    and the columns are the output channels of all groups. If the network scans over layers that are
    stacked along an axis of one leaf, each layer is a matrix: "<leaf>/0" and so on.

    Args:
      tolerance: the cut; by default that of `weight_rank`.
      by_head: whether to measure also each head of attention's projections: "<layer>/head_0" and so
        on.
      largest: matrices with more rows and more columns than this get only a rank, measured without
        singular values, which would take minutes; see `largest` in `weight_ranks`.
      views: the axes of rows and of columns, by globs over the leaves' names, as for
        `weight_ranks`. They replace those found from the network's operations.
    """

    tolerance: Tolerance = DEFAULT_TOLERANCE
    by_head: bool = False
    largest: int = 2048
    name: str = "weights"
    views: Views | None = None

    def __post_init__(self) -> None:
        as_tolerance(self.tolerance)
        as_integer("largest", self.largest, least=0)

    def placeholder_state(self, problem: Problem) -> State:
        """Return an empty state: there is nothing to remember."""
        return {}

    def prepare(self, flat: FlatProblem) -> "PreparedWeights":
        """Find the matrices.

        Raises:
          ValueError: if no differentiated leaf is a matrix.
        """
        matrices = matrix_views(
            flat.specs, known=kernel_axes(flat), views=self.views, by_head=self.by_head
        )
        warn_of_left_out(flat.specs)
        if not matrices:
            raise ValueError(
                "expected parameters with at least one matrix, got shapes "
                f"{ {spec.name: spec.shape for spec in flat.specs} }; to measure only the Hessian, "
                "pass probes=['hessian']"
            )
        leaves = [spec.name for spec in flat.specs]
        tags = tag_names([view.name for _, view in matrices], leaves)
        return PreparedWeights(flat, tuple(matrices), tags, self.tolerance, self.largest)


@dataclass(frozen=True)
class PreparedWeights:
    """`WeightsProbe` for one problem."""

    flat: FlatProblem
    matrices: tuple[tuple[int, MatrixView], ...]  # (index of the leaf, matrix) pairs
    tags: tuple[str, ...]
    tolerance: Tolerance
    largest: int

    def initial_state(self) -> State:
        """Return an empty state: there is nothing to remember."""
        return {}

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """Measure the matrices of the snapshot; ranks of matrices that are not finite are NaN."""
        scalars: dict[str, float] = {}
        for name, (index, view) in zip(self.tags, self.matrices, strict=True):
            matrix = view.of(snapshot.leaves[index]).astype(np.float64)
            eps = eps_of(self.flat.specs[index].dtype)
            # Certifying the rank alone is several times faster than all singular values.
            if min(matrix.shape) > self.largest:
                count = weight_count(matrix, eps=eps, tolerance=self.tolerance)
                scalars |= rank_scalars("rank_weights", name, count)
                continue
            rank = weight_rank(matrix, eps=eps, tolerance=self.tolerance)
            scalars |= rank_scalars("rank_weights", name, rank)
            scalars[f"stable_rank/{name}"] = rank.stable_rank
            scalars[f"effective_rank/{name}"] = rank.effective_rank
            scalars[f"condition_number/{name}"] = rank.condition_number
            if rank.det_sign is not None and rank.log_abs_det is not None:
                scalars[f"det_sign/{name}"] = rank.det_sign
                scalars[f"log_abs_det/{name}"] = rank.log_abs_det
        return Measurement(scalars), state

    def describe(self) -> Description:
        """Describe the matrices, their shapes, and the cut."""
        shapes = [f"{view.name} {view.shape[0]}x{view.shape[1]}" for _, view in self.matrices]
        cut = self.tolerance.rule(
            "max(m, n) eps64 ‖W‖₂, plus eps / 2 ‖W‖_F for weights stored below float64"
        )
        return Description([Fact("weights", listed(shapes)), Fact("weight cut", cut)])
