"""The gradients probe: size, rank and direction of each weight's gradient, and relative updates.

The gradient is that of the mean loss over the probe batch, without regularization terms: not that
of the training batch, which differs by its noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rankmon._util.facts import Fact
from rankmon._util.packed import packed, packed_length, unpacked
from rankmon._util.tags import made_unique
from rankmon._util.text import listed
from rankmon._util.validate import as_flag, as_integer
from rankmon.linalg.numerical_rank import DEFAULT_TOLERANCE, Tolerance, as_tolerance
from rankmon.network.kernel_axes import kernel_axes
from rankmon.network.matrix_views import MatrixView, Views, matrix_views, tag_names
from rankmon.probes.base import Description, Measurement, State, count_scalar
from rankmon.problem.flat import FlatProblem
from rankmon.problem.gradient import Gradient, GradientProgram
from rankmon.problem.optimizer import optimizer_update
from rankmon.problem.point import Snapshot
from rankmon.problem.problem import Problem
from rankmon.weights.gradients import alignment, direction, frobenius_norm, gradient_rank, ratio


@dataclass(frozen=True)
class GradientsProbe:
    """Norm, rank and stable rank of each weight's gradient; its alignment; relative updates.

    The gradient is that of the mean loss over the probe batch, in float64 by one backward pass (and
    two more for the size of its rounding errors, which determines the cut of the rank).

    `gradient_alignment` is the cosine of the angle between the gradients of this measurement and
    the one before it; NaN at the first one. `update_to_weight` is ||update|| / ||W||. The update is

      * with the optimizer (this option, or a TrainState) and its state (`opt_state=` in the
        monitor's call, or the TrainState): the update that the optimizer would make at this step
        with the gradient on the probe batch, computed on copies, in the dtypes of training
        (`optax.inject_hyperparams` with the values in its state; `optax.MultiSteps` makes an update
        of zero except at every k-th step);
      * otherwise, if the step before was measured too (every=1): the actual change since then.

    Otherwise it is not logged. Leaves that the problem holds fixed have gradient zero in the
    optimizer's update; this matters to optimizers that couple leaves, as clipping by the global
    norm does. An optimizer that calls back into Python (`hooks.watch_weights` with a reporter) is
    not run a second time: its update is NaN, with a warning.

    `monitor.state` holds the directions of the last gradients in float32 and, without `optimizer`,
    the last weights in their own dtypes.

    Args:
      optimizer: the Optax transformation that trains the parameters.
      tolerance: the cut of the rank; by default max(m, n) * eps64 * ||G||_2, plus ten times the
        estimated rounding error of G.
      vectors: whether to measure also norm, alignment and ratios of leaves that are no matrices,
        such as biases.
      by_head: as for `WeightsProbe`.
      largest: matrices with more rows and more columns than this get a rank that is certified
        without singular values if possible.
      views: as for `WeightsProbe`.
    """

    optimizer: Any = None
    tolerance: Tolerance = DEFAULT_TOLERANCE
    vectors: bool = False
    by_head: bool = False
    largest: int = 2048
    name: str = "gradients"
    views: Views | None = None

    wants_optimizer = True
    # States of former versions, without this probe, are continued.
    optional_state = ("directions", "weights", "step")

    def __post_init__(self) -> None:
        as_tolerance(self.tolerance)
        as_integer("largest", self.largest, least=0)
        as_flag("vectors", self.vectors)
        if self.optimizer is not None and not callable(getattr(self.optimizer, "update", None)):
            raise TypeError(
                "expected optimizer to be an Optax transformation with update(gradient, state, "
                f"params), got {type(self.optimizer).__name__}; pass the tx whose state you pass "
                "as opt_state="
            )

    def placeholder_state(self, problem: Problem) -> State:
        """Return empty vectors: the sizes of the weights are not known yet."""
        return {"directions": np.zeros(0), "weights": np.zeros(0), "step": np.full((), -1.0)}

    def prepare(self, flat: FlatProblem) -> "PreparedGradients":
        """Find the weights, and compile the gradient.

        Raises:
          ValueError: if no differentiated leaf is a matrix, or JAX cannot differentiate the
            network.
        """
        found = matrix_views(
            flat.specs, known=kernel_axes(flat), views=self.views, by_head=self.by_head
        )
        tags = tag_names([view.name for _, view in found], [spec.name for spec in flat.specs])
        units = [
            Unit(tag, index, view)
            for tag, (index, view) in zip(tags, found, strict=True)
            if flat.specs[index].differentiated
        ]
        if self.vectors:
            units += _vectors(flat, [index for index, _ in found], tags)
        if not units:
            raise ValueError(
                "expected a differentiated parameter that is a matrix, got shapes "
                f"{ {s.name: s.shape for s in flat.specs if s.differentiated} }; pass "
                "GradientsProbe(vectors=True), or omit the gradients probe"
            )
        return PreparedGradients(flat, self, tuple(units), GradientProgram.of(flat))


@dataclass(frozen=True)
class Unit:
    """A part of the parameters with curves of its own.

    Attributes:
      tag: its name in tags.
      leaf: the index of its leaf.
      view: its matrix in the leaf; None for a whole leaf that is no matrix.
    """

    tag: str
    leaf: int
    view: MatrixView | None

    def of(self, leaves: Any) -> Any:
        """Return this part of the leaves, or of arrays like them by their index."""
        return leaves[self.leaf] if self.view is None else self.view.of(leaves[self.leaf])


def _vectors(flat: FlatProblem, matrices: Sequence[int], taken: Sequence[str]) -> list[Unit]:
    """Return the differentiated leaves that are not matrices."""
    places = [
        index
        for index, spec in enumerate(flat.specs)
        if spec.differentiated and spec.size and index not in matrices
    ]
    names = tag_names([flat.specs[i].name for i in places], [spec.name for spec in flat.specs])
    unique = made_unique(names, taken=taken)
    return [Unit(tag, index, None) for tag, index in zip(unique, places, strict=True)]


@dataclass(frozen=True)
class PreparedGradients:
    """`GradientsProbe` for one problem.

    Attributes:
      flat: the problem.
      probe: the options.
      units: the matrices, and other leaves, that are measured.
      program: the compiled gradient.
    """

    flat: FlatProblem
    probe: GradientsProbe
    units: tuple[Unit, ...]
    program: GradientProgram

    @cached_property
    def _shapes(self) -> list[tuple[int, ...]]:
        specs = self.flat.specs
        return [specs[u.leaf].shape if u.view is None else u.view.shape for u in self.units]

    @cached_property
    def _stored(self) -> list[Any]:
        """The dtypes in which the units are stored."""
        return [self.flat.specs[unit.leaf].dtype for unit in self.units]

    @property
    def _keeps_weights(self) -> bool:
        """Whether the state holds the weights, for the change in one step."""
        return self.probe.optimizer is None

    def initial_state(self) -> State:
        """Return zeros in the place of directions of gradients and of weights, and step -1."""
        directions = packed_length(self._shapes, [np.dtype(np.float32)] * len(self.units))
        weights = packed_length(self._shapes, self._stored) if self._keeps_weights else 0
        return {
            "directions": np.zeros(directions),
            "weights": np.zeros(weights),
            "step": np.full((), -1.0),
        }

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """Measure the gradient at the snapshot; all is NaN if the snapshot is not finite."""
        state = state if 0 <= state["step"] < snapshot.step else self.initial_state()
        specs = self.flat.specs
        gradient = Gradient(np.full(self.flat.p, np.nan), np.full((1, self.flat.p), np.nan))
        if not snapshot.nonfinite:
            gradient = self.program.at(snapshot.theta, snapshot.fixed)
        of_leaf = iter(self.flat.leaf_slices)
        places = {i: next(of_leaf) for i, spec in enumerate(specs) if spec.differentiated}

        def units_of(vector: np.ndarray) -> list[np.ndarray]:
            leaves = {i: vector[place].reshape(specs[i].shape) for i, place in places.items()}
            return [unit.of(leaves) for unit in self.units]

        gradients = units_of(gradient.values)
        sizes = [list(map(frobenius_norm, units_of(row))) for row in gradient.perturbations]
        weights = [unit.of(snapshot.leaves).astype(np.float64) for unit in self.units]
        directions = [direction(one) for one in gradients]
        before = self._directions(state)
        scalars: dict[str, float] = {}
        for i, unit in enumerate(self.units):
            tag, size = unit.tag, frobenius_norm(gradients[i])
            scalars[f"norm_gradient/{tag}"] = size
            if unit.view is not None:
                noise = frobenius_norm(np.array([row[i] for row in sizes])) / math.sqrt(len(sizes))
                scalars |= self._rank(tag, gradients[i], noise)
            scalars[f"gradient_to_weight/{tag}"] = ratio(size, frobenius_norm(weights[i]))
            scalars[f"gradient_alignment/{tag}"] = alignment(directions[i], before[i])
        updates, warnings = self._updates(snapshot, state, gradient.values, weights)
        scalars |= {
            f"update_to_weight/{unit.tag}": value
            for unit, value in zip(self.units, updates, strict=False)
        }
        if snapshot.nonfinite:
            return Measurement(dict.fromkeys(scalars, math.nan)), self.initial_state()
        if self.flat.warning:
            warnings = (self.flat.warning, *warnings)
        return Measurement(scalars, warnings=warnings), self._state(
            snapshot.step, directions, weights
        )

    def _rank(self, tag: str, matrix: np.ndarray, noise: float) -> dict[str, float]:
        """Return the scalars of one gradient's rank."""
        rank, stable_rank = gradient_rank(
            matrix,
            noise=noise,
            eps=self.flat.precision.eps,
            tolerance=self.probe.tolerance,
            largest=self.probe.largest,
        )
        return {
            f"rank_gradient/{tag}": count_scalar(rank.rank),
            f"rank_low/gradient/{tag}": count_scalar(rank.low),
            f"rank_high/gradient/{tag}": count_scalar(rank.high),
            f"tolerance/gradient/{tag}": rank.tolerance,
            f"stable_rank_gradient/{tag}": stable_rank,
        }

    def _directions(self, state: State) -> list[np.ndarray]:
        """Return the directions of the last measurement's gradients; zeros if there is none."""
        return unpacked(state["directions"], self._shapes, [np.dtype(np.float32)] * len(self.units))

    def _state(self, step: int, directions: list[np.ndarray], weights: list[np.ndarray]) -> State:
        """Return the state after the measurement at this step."""
        kept = []
        if self._keeps_weights:
            kept = [w.astype(dtype) for w, dtype in zip(weights, self._stored, strict=True)]
        return {
            "directions": packed(directions),
            "weights": packed(kept),
            "step": np.full((), float(step)),
        }

    def _updates(
        self,
        snapshot: Snapshot,
        state: State,
        gradient: np.ndarray,
        weights: list[np.ndarray],
    ) -> tuple[list[float], tuple[str, ...]]:
        """Return ||update|| / ||W|| of each unit, if an update is known; and warnings."""
        optimizer, transformation = snapshot.optimizer, self.probe.optimizer
        if transformation is None and optimizer is not None:
            transformation = optimizer.transformation
        if transformation is not None and not snapshot.nonfinite:
            try:
                made = optimizer_update(
                    self.flat, transformation, optimizer, snapshot.leaves, gradient
                )
            except Exception as error:  # noqa: BLE001  an optimizer may raise any error
                return [math.nan] * len(self.units), (_without_update(error),)
            updates = [unit.of(made).astype(np.float64) for unit in self.units]
        elif transformation is not None:
            return [math.nan] * len(self.units), ()
        elif 0 <= state["step"] == snapshot.step - 1:
            before = unpacked(state["weights"], self._shapes, self._stored)
            earlier = [stored.astype(np.float64) for stored in before]
            updates = [now - then for now, then in zip(weights, earlier, strict=True)]
            weights = earlier  # to which the update was applied
        else:
            return [], ()
        sizes = [[frobenius_norm(one) for one in side] for side in (updates, weights)]
        return [ratio(u, w) for u, w in zip(*sizes, strict=True)], ()

    def describe(self) -> Description:
        """Describe the weights, the cut of the rank, and the update."""
        facts = [
            Fact("gradients", listed([unit.tag for unit in self.units])),
            Fact("gradient", "of the mean loss over the probe batch, without regularization"),
            Fact(
                "gradient cut",
                self.probe.tolerance.rule(
                    "max(m, n) eps64 ‖G‖₂, plus 10 times the estimated rounding error of the m x n "
                    f"gradient G: the change that rounding by eps = {self.flat.precision.eps:.3g} "
                    "in outputs and residuals makes, in the Frobenius norm"
                ),
            ),
            Fact("update", self._update_text()),
        ]
        return Description(facts)

    def _update_text(self) -> str:
        theirs = "that of the optimizer at this step, with the gradient on the probe batch"
        if self.probe.optimizer is None:
            theirs = (
                f"{theirs}, if the monitor is called with a TrainState; else the actual change "
                "since the step before, if that was measured"
            )
        problem = self.flat.problem
        if problem.exclude or problem.include != ("*",):
            theirs += "; for the optimizer, the gradient of leaves held fixed counts as zero"
        return theirs


def _without_update(error: Exception) -> str:
    """Return the warning about an optimizer whose update cannot be computed."""
    reason = (str(error).strip().splitlines() or [""])[0][:200]
    return (
        "update_to_weight is NaN: expected the state of the optimizer for these parameters, got "
        f"{type(error).__name__}: {reason}; pass monitor(step, params, opt_state=opt_state) with "
        "GradientsProbe(optimizer=tx), or a TrainState"
    )
