"""The weights probe: ranks, determinants, singular values and changes of weight matrices."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankmon._util.facts import Fact
from rankmon._util.text import listed
from rankmon._util.validate import as_flag, as_integer
from rankmon.linalg.numerical_rank import DEFAULT_TOLERANCE, Tolerance, as_tolerance
from rankmon.network.kernel_axes import kernel_axes
from rankmon.network.matrix_views import Views, matrix_views, tag_names
from rankmon.probes.base import Description, Measurement, State, rank_scalars
from rankmon.probes.weight_changes import Changes, as_track, blank_state, keys_of
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Snapshot
from rankmon.problem.precision import eps_of
from rankmon.problem.problem import Problem
from rankmon.problem.pytree import warn_of_left_out
from rankmon.weights.factors import Factors, Weight, inner_size, product_of, product_values
from rankmon.weights.marchenko_pastur import marchenko_pastur_edge
from rankmon.weights.products import Products, check_products, paired_weights
from rankmon.weights.ranks import WeightRank, weight_count, weight_rank
from rankmon.weights.rounding import frobenius_norm, storage_rounding

_NAN = float("nan")


@dataclass(frozen=True)
class WeightsProbe:
    """Rank, stable rank, effective rank and condition number of each weight matrix; determinants.

    The operations of the network determine which axes of a kernel are rows and which are columns.
    For a convolution, the rows are the axes that it sums over (spatial axes and input channels),
    and the columns are the output channels of all groups. If the network scans over layers that are
    stacked along an axis of one leaf, each layer is a matrix: "<leaf>/0" and so on.

    With `track` or `spectra`, the Frobenius norm is measured too.

    Args:
      tolerance: the cut; by default that of `weight_rank`. The cut of a change is never below the
        rounding errors of the stored weights.
      by_head: whether to measure also each head of attention's projections: "<layer>/head_0" and so
        on.
      largest: matrices with more rows and more columns than this get only a rank and a norm,
        measured without singular values, which would take minutes; see `largest` in
        `weight_ranks`.
      views: the axes of rows and of columns, by globs over the leaves' names, as for
        `weight_ranks`. They replace those found from the network's operations.
      track: "start" to measure also the change W_t - W_0 since the first measurement with finite
        weights, "last" for the change since the last one, or both: rank, stable rank, effective
        rank and Frobenius norm. `monitor.state` holds the earlier weights in their stored dtype,
        so that a resumed run continues both; without a saved state, both begin again.
      spectra: whether to log the singular values, the Marchenko-Pastur edge and the number of
        singular values above it.
      products: pairs of kernels whose product is measured as one more weight, for instance
        {"lora": ("lora_a", "lora_b")}: a name, and two endings of leaves' names or globs, in the
        order of the product. Leaves with the same text before the endings, or in place of the
        wildcards, are a pair. "auto" finds the adapters of `nnx.LoRA` and `nnx.LoRALinear`. A scale
        such as alpha / r is not part of the product: it changes no rank.
    """

    tolerance: Tolerance = DEFAULT_TOLERANCE
    by_head: bool = False
    largest: int = 2048
    name: str = "weights"
    views: Views | None = None
    track: Sequence[str] = ()
    spectra: bool = False
    products: Products | None = None

    per_batch = False

    def __post_init__(self) -> None:
        as_tolerance(self.tolerance)
        as_integer("largest", self.largest, least=0)
        as_flag("spectra", self.spectra)
        as_track(self.track)
        check_products(self.products)

    @property
    def optional_state(self) -> frozenset[str]:
        """The entries of the state that older states lack."""
        return keys_of(as_track(self.track))

    def placeholder_state(self, problem: Problem) -> State:
        """Return the state with empty earlier weights, whose sizes are not known yet."""
        return blank_state(as_track(self.track))

    def prepare(self, flat: FlatProblem) -> "PreparedWeights":
        """Find the matrices, and pair those whose product is measured.

        Raises:
          ValueError: if no differentiated leaf is a matrix, or if `products` do not fit.
        """
        axes = kernel_axes(flat)
        matrices = matrix_views(flat.specs, known=axes, views=self.views, by_head=self.by_head)
        warn_of_left_out(flat.specs)
        if not matrices:
            raise ValueError(
                "expected parameters with at least one matrix, got shapes "
                f"{ {spec.name: spec.shape for spec in flat.specs} }; to measure only the Hessian, "
                "pass probes=['hessian']"
            )
        whole = matrix_views(flat.specs, known=axes, views=self.views)
        products = paired_weights(flat.specs, whole, self.products)
        weights = [Weight(view.name, ((index, view),)) for index, view in matrices] + products
        leaves = [spec.name for spec in flat.specs]
        tags = tag_names([weight.name for weight in weights], leaves)
        by_tag = dict(zip(tags, weights, strict=True))
        changes = Changes(flat, by_tag, as_track(self.track), self.tolerance, self.largest)
        return PreparedWeights(changes, bool(self.spectra))


@dataclass(frozen=True)
class PreparedWeights:
    """`WeightsProbe` for one problem."""

    changes: Changes
    spectra: bool

    def initial_state(self) -> State:
        """Return the state before the first measurement: empty unless changes are measured."""
        return self.changes.initial_state()

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """Measure the matrices of the snapshot; ranks of matrices that are not finite are NaN."""
        scalars: dict[str, float] = {}
        arrays: dict[str, np.ndarray] = {}
        for name, weight in self.changes.weights.items():
            factors = weight.of(snapshot.leaves)
            eps = [eps_of(self.changes.flat.specs[index].dtype) for index, _ in weight.parts]
            own, spectrum = self._weight(name, factors, eps)
            scalars |= own
            arrays |= spectrum
        changed, state, warnings = self.changes.measure(snapshot, state)
        return Measurement(scalars | changed, arrays, warnings), state

    def _weight(
        self, name: str, factors: Factors, eps: Sequence[float]
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Return the scalars and arrays of one weight."""
        matrix = product_of(factors)
        is_finite = bool(np.all(np.isfinite(matrix)))
        # A stored matrix has the default rounding error; a product has those of its factors.
        is_product = len(factors) > 1
        rounding = storage_rounding(factors, eps) if is_product and is_finite else None
        tolerance = self.changes.tolerance
        scalars: dict[str, float] = {}
        if self.spectra or self.changes.track:
            scalars[f"norm/{name}"] = frobenius_norm(matrix) if is_finite else _NAN
        # Certifying the rank alone is several times faster than all singular values.
        if inner_size(factors) > self.changes.largest:
            count = weight_count(matrix, eps=eps[0], tolerance=tolerance, rounding=rounding)
            return rank_scalars("rank_weights", name, count) | scalars, {}
        values = product_values(factors) if is_finite else None
        rank = weight_rank(
            matrix, eps=eps[0], tolerance=tolerance, rounding=rounding, values=values
        )
        scalars = _rank_scalars(name, rank) | scalars
        if not self.spectra:
            return scalars, {}
        found, arrays = _spectrum(name, matrix.shape, rank.tolerance, values)
        return scalars | found, arrays

    def describe(self) -> Description:
        """Describe the matrices, their shapes, the products, and the cuts."""
        weights = self.changes.weights.values()
        shapes = [f"{one.name} {one.shape[0]}x{one.shape[1]}" for one in weights]
        cut = self.changes.tolerance.rule(
            "max(m, n) eps64 ‖W‖₂, plus eps / 2 ‖W‖_F for weights stored below float64"
        )
        facts = [Fact("weights", listed(shapes)), Fact("weight cut", cut)]
        products = [
            f"{one.name} = {' @ '.join(view.name for _, view in one.parts)}"
            for one in weights
            if len(one.parts) > 1
        ]
        if products:
            text = f"{listed(products)}; a scale of the product changes no rank"
            facts.append(Fact("products of weights", text))
        if self.changes.track:
            facts.append(Fact("cut of changes", self.changes.describe()))
        return Description(facts)


def _rank_scalars(name: str, rank: WeightRank) -> dict[str, float]:
    """Return the scalars of one matrix that are always logged."""
    scalars = rank_scalars("rank_weights", name, rank)
    scalars[f"stable_rank/{name}"] = rank.stable_rank
    scalars[f"effective_rank/{name}"] = rank.effective_rank
    scalars[f"condition_number/{name}"] = rank.condition_number
    if rank.det_sign is not None and rank.log_abs_det is not None:
        scalars[f"det_sign/{name}"] = rank.det_sign
        scalars[f"log_abs_det/{name}"] = rank.log_abs_det
    return scalars


def _spectrum(
    name: str, shape: tuple[int, int], cut: float, values: np.ndarray | None
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return the singular values, those that are zero, and the Marchenko-Pastur edge."""
    tags = [f"{family}/{name}" for family in ("singular_values_zeros", "mp_edge", "above_mp_edge")]
    if values is None:
        return dict.fromkeys(tags, _NAN), {}
    nonzero, edge = values[values > 0], marchenko_pastur_edge(values, shape)
    # Below the cut, values are rounding errors, and so is an edge that is computed from them.
    numbers = (values.size - nonzero.size, edge, int(np.sum(values > max(edge, cut))))
    return dict(zip(tags, numbers, strict=True)), {f"singular_values/{name}": np.log10(nonzero)}
