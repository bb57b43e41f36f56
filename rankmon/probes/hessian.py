"""The Hessian probe: ranks, spectra and signed curvature of H_L, H_o, H_f and H_f^fixed."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankmon._util.facts import HESSIAN_OF, Fact
from rankmon._util.hparams import Hparam
from rankmon._util.tags import HESSIAN_PARTS
from rankmon._util.validate import as_flag, as_parts, check_engine, check_time_limit
from rankmon.engines.base import Ranks, compile_derivatives
from rankmon.engines.exact import ExactEngine
from rankmon.engines.refusals import refuse_unmeasurable
from rankmon.engines.select import ENGINES, Choice, select_engine
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT
from rankmon.linalg.numerical_rank import (
    DEFAULT_TOLERANCE,
    Tolerance,
    as_tolerance,
    undefined_rank,
)
from rankmon.measure.hidden_units import HiddenUnits
from rankmon.measure.predicted import closed_forms_apply, closed_forms_at, column_ranks_at
from rankmon.measure.symbols import MeasuredSymbols
from rankmon.probes.base import Description, Measurement, State, count_scalar, rank_scalars
from rankmon.probes.blocks import BlockPlan, leaving_time
from rankmon.probes.curvature import curvature_scalars, undefined_curvature
from rankmon.probes.hidden_units import hidden_unit_predictions, hidden_unit_scalars
from rankmon.probes.linear_families import family_scalars
from rankmon.probes.predictions_text import Claims, widths_text
from rankmon.probes.stability import LearningRate, PreparedWithLine, StabilityLine
from rankmon.problem.diagnosis import check_uses_parameters
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Point, Snapshot
from rankmon.problem.problem import Problem
from rankmon.problem.pytree import differentiated_text

# Seconds: a probe is one of many and delays training; `hessian_ranks` is asked for its result.
DEFAULT_TIME_LIMIT = 10.0


@dataclass(frozen=True)
class HessianProbe:
    """Ranks and signed spectra of H_L, H_o, H_f, H_f^fixed; rank of Omega; predictions; loss.

    Args:
      tolerance: the cut; by default p * eps * max(||H_L||_2, ||X||_2) for part X.
      memory_limit: bytes for the matrices and their assembly together.
      engine: the engine, as for `hessian_ranks`.
      time_limit: the limit in seconds on a measurement, which "auto" and "sketch" respect; the
        compilation before the first one does not count. Several probe batches share it.
      include: globs over parameter names, in addition to those of the problem; only matching leaves
        are differentiated, for example the last layer of a large network.
      exclude: globs over parameter names; matching leaves are held fixed.
      parts: the parts to measure, for example ("H_L",); all by default. The ranks that theory
        predicts are logged only if H_f is one of them: they depend on whether it has vanished.
      blocks: whether to measure also the blocks by layer: rank, extreme eigenvalues and trace of
        each diagonal block of H_L and H_o, the share of ||H_L||_F^2 outside these blocks, and the
        rank of H_f's columns of each layer, with the prediction of Theorem 5. A layer is a weight
        matrix with its bias. They take up to twice the time of a probe. Without an exact engine the
        ranks are left out, the other numbers are estimates with 95 % intervals, and the engine has
        half of `time_limit`.
      learning_rate: for the threshold of the largest eigenvalue of H_L, 2 / learning_rate, above
        which gradient descent is unstable: a number, a schedule (function of the step), or
        "optimizer", to read it from the state of `optax.inject_hyperparams(optax.sgd)` that the
        monitor gets as `opt_state=`, also inside of `optax.chain` and `optax.MultiSteps` (Optax
        updates a schedule in it one step late: pass the schedule itself). The threshold presumes
        that the probe batch is the full batch of training, and training without regularization and
        without adaptive steps; leave it out for Adam.
      momentum: beta of training: 2 (1 + beta) / learning_rate (heavy ball without dampening).
      nesterov: whether this is Nesterov's: 2 (1 + beta) / ((1 + 2 beta) learning_rate).
      loss_scale: the trained loss divided by the mean loss over the probe batch (2 if training
        minimizes the mean of ||z - y||^2, since "mse" is half of it); the threshold is divided by
        it.
    """

    tolerance: Tolerance = DEFAULT_TOLERANCE
    memory_limit: int = DEFAULT_MEMORY_LIMIT
    engine: str = "auto"
    time_limit: float = DEFAULT_TIME_LIMIT
    include: str | Sequence[str] | None = ("*",)
    exclude: str | Sequence[str] | None = ()
    name: str = "hessian"
    parts: Sequence[str] = HESSIAN_PARTS
    blocks: bool = False
    learning_rate: LearningRate | None = None
    momentum: float = 0.0
    nesterov: bool = False
    loss_scale: float = 1.0

    def __post_init__(self) -> None:
        as_tolerance(self.tolerance)
        check_engine(self.engine, ENGINES)
        as_parts(self.parts)
        check_time_limit(self.time_limit)
        as_flag("blocks", self.blocks)
        self._line()

    @property
    def wants_optimizer(self) -> bool:
        """Whether measurements need the optimizer's state."""
        return isinstance(self.learning_rate, str)

    def _line(self) -> StabilityLine | None:
        """Return the threshold of the largest eigenvalue; None without a learning rate."""
        if self.learning_rate is None:
            if (self.momentum, self.nesterov, self.loss_scale) != (0, False, 1):
                raise ValueError(
                    "expected a learning_rate with momentum, nesterov or loss_scale, got none; "
                    "pass the one of training"
                )
            return None
        if "H_L" not in as_parts(self.parts):
            raise ValueError(
                f"expected parts to contain H_L with a learning_rate, got {self.parts}; add 'H_L'"
            )
        return StabilityLine(self.learning_rate, self.momentum, self.nesterov, self.loss_scale)

    def placeholder_state(self, problem: Problem) -> State:
        """Return the residuals to hold, as zeros, and a flag that they are not known yet."""
        targets = problem.targets
        shape = targets.shape if isinstance(targets, np.ndarray) else (problem.n,)
        # With labels, the number of outputs is not known before the first parameters.
        if not problem.loss.has_dense_targets:
            shape = (*shape[:1], 1)
        reference = np.zeros((int(np.prod(shape[:-1])), shape[-1]))
        return {"reference": reference, "started": np.zeros(())}

    def checked_state(self, flat: FlatProblem) -> State:
        """Return the initial state; raise the errors of `prepare` that traces and sizes show."""
        flat = flat.narrowed(self.include, self.exclude)
        check_uses_parameters(flat)
        refuse_unmeasurable(
            flat, name=self.engine, memory_limit=self.memory_limit, time_limit=self.time_limit
        )
        return _initial_state(flat)

    def prepare(self, flat: FlatProblem) -> "PreparedHessian | PreparedWithLine":
        """Check the memory, choose and compile the engine, and measure the rank of the inputs.

        Raises:
          ValueError: if the outputs do not depend on the parameters, JAX cannot differentiate
            the network twice, or a filter matches nothing.
          MemoryError: if the matrices of the engine do not fit in `memory_limit`.
        """
        flat = flat.narrowed(self.include, self.exclude)
        check_uses_parameters(flat)
        choice = select_engine(
            flat, name=self.engine, memory_limit=self.memory_limit, time_limit=self.time_limit
        )
        parts = as_parts(self.parts)
        compile_derivatives(choice.engine, cotangents=1 + ("H_f_fixed" in parts))
        blocks = self._planned_blocks(flat, choice) if self.blocks else None
        if blocks is not None and blocks.estimates is not None:
            choice = replace(choice, engine=leaving_time(choice.engine))
        prepared = PreparedHessian(
            flat=flat,
            parts=parts,
            choice=choice,
            tolerance=self.tolerance,
            measured=MeasuredSymbols.of(flat),
            blocks=blocks,
            time_limit=self.time_limit,
            units=HiddenUnits.of(flat),
        )
        line = self._line()
        return prepared if line is None else PreparedWithLine(prepared, line)

    def _planned_blocks(self, flat: FlatProblem, choice: Choice) -> BlockPlan:
        if isinstance(choice.engine, ExactEngine):
            limit = self.time_limit if self.engine == "auto" else math.inf
            return BlockPlan.of(flat, choice.engine, time_limit=limit)
        return BlockPlan.estimated(
            flat,
            choice.engine,
            as_parts(self.parts),
            memory_limit=self.memory_limit,
            time_limit=self.time_limit,
        )


@dataclass(frozen=True)
class PreparedHessian:
    """`HessianProbe` for one problem."""

    flat: FlatProblem
    parts: tuple[str, ...]
    choice: Choice
    tolerance: Tolerance
    measured: MeasuredSymbols
    units: HiddenUnits | None = None
    blocks: BlockPlan | None = None
    time_limit: float = DEFAULT_TIME_LIMIT

    def initial_state(self) -> State:
        """Return residuals [N, k] as zeros, and a flag."""
        return _initial_state(self.flat)

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """Return the ranks at the snapshot; NaN throughout if anything in it is not finite."""
        deadline = time.monotonic() + self.time_limit
        held = state["reference"]
        by_layer = self.blocks is not None and bool(self.blocks.layers)
        point = Point(self.flat, snapshot.step, snapshot.leaves, held, self.parts, by_layer)
        if point.nonfinite:
            return self._undefined(float("nan")), state
        # H_f_fixed holds the residuals of the first step at which they are finite.
        if not state["started"] and point.is_finite:
            state = {"reference": point.residuals, "started": np.ones(())}
            point = point.holding(point.residuals)
        point = point.without_unwanted()
        found = self.choice.engine.ranks(point, self.tolerance) if point.is_finite else None
        if found is None:
            warning = "the outputs or the Hessian are not finite; its ranks are logged as NaN"
            return self._undefined(point.loss, warning), state
        scalars = {"loss": point.loss}
        for part in point.asked:
            scalars |= rank_scalars("rank", part, found.parts[part])
        if "H_f" in point.asked:
            scalars["rank_self/H_f"] = count_scalar(found.own_functional)
            scalars |= self._predicted(point, found)
        if self.units is not None:
            scalars |= hidden_unit_scalars(self.units, point, found)
        arrays = {}
        for part, spectrum in found.spectra.items():  # of the parts asked for
            nonzero = spectrum[spectrum != 0]
            logs = np.log10(np.abs(nonzero))
            arrays[f"spectrum/{part}"] = logs
            arrays[f"spectrum_negative/{part}"] = logs[nonzero < 0]
            scalars[f"spectrum_zeros/{part}"] = spectrum.size - nonzero.size
        for part, summary in found.curvature.items():
            if part in point.asked:
                scalars |= curvature_scalars(part, summary)
        left_out: tuple[str, ...] = ()
        if self.blocks is not None:
            of_blocks, left_out = self.blocks.scalars_at(point, found, deadline)
            scalars |= of_blocks
        warnings = (
            *self._precision_warning(),
            *self.choice.warnings,
            *left_out,
            *found.warnings,
        )
        return Measurement(scalars, arrays, warnings), state

    def _predicted(self, point: Point, found: Ranks) -> dict[str, float]:
        """Return rank/Omega, and rank_theory/* if the closed forms apply; also by layer.

        The closed forms of a stack with activations are those of its linear counterpart, and are
        logged as rank_landmark/*.

        If all of H_f is below a tenth of the common cut, the residual is at the level of rounding
        errors of H_L, and the closed forms use s = 0, although Omega itself may have a positive
        rank.
        """
        measured = self.measured
        if measured.inputs is None:
            return {}
        omega, *held = map(measured.omega_rank, point.functional_residuals)
        scalars = rank_scalars("rank", "Omega", omega)
        if measured.family is not None:
            layers = () if self.blocks is None else self.blocks.layers
            return scalars | family_scalars(measured, point, found, (omega, *held), layers)
        if omega.rank is None or not closed_forms_apply(measured, point):
            return scalars
        of_held = (held[0].rank or 0) if held else 0  # without H_f_fixed
        s = 0 if found.parts["H_f"].high == 0 else omega.rank
        ranks = closed_forms_at(measured, s, of_held)
        logged = {part: rank for part, rank in ranks.items() if part in self.parts}
        is_linear = measured.stack is not None and measured.stack.linear
        family = "rank_theory" if is_linear else "rank_landmark"
        scalars |= {f"{family}/{part}": rank for part, rank in logged.items()}
        if found.blocks is not None and is_linear:
            columns = found.blocks.columns.items()
            for (layer, rank), predicted in zip(columns, column_ranks_at(measured, s), strict=True):
                # The columns of some layers vanish before those of others.
                scalars[f"rank_columns_theory/H_f/{layer}"] = 0 if rank.high == 0 else predicted
        return scalars

    def _undefined(self, loss: float, *warnings: str) -> Measurement:
        """Return a measurement in which all ranks are NaN."""
        scalars = {"loss": loss}
        if "H_f" in self.parts:
            scalars["rank_self/H_f"] = float("nan")
        for part in self.parts:
            scalars |= rank_scalars("rank", part, undefined_rank(self.flat.p))
            if isinstance(self.choice.engine, ExactEngine):
                scalars |= undefined_curvature(part)
        if self.blocks is not None:
            scalars |= self.blocks.undefined(self.parts)
        return Measurement(scalars, warnings=(*self._precision_warning(), *warnings))

    def _precision_warning(self) -> tuple[str, ...]:
        return (self.flat.warning,) if self.flat.warning else ()

    def describe(self) -> Description:
        """Describe sizes, arithmetic, cut, engine and predictions of this network."""
        claims = Claims(self.flat, self.measured)
        of_units = [] if self.units is None else hidden_unit_predictions(self.units)
        return Description(
            facts=[
                *claims.facts,
                *self._part_fact(),
                Fact("p", f"{self.flat.p:,} differentiated parameters"),
                Fact("Hessian dtype", self._arithmetic()),
                Fact("Hessian cut", self._cut()),
                Fact("engine", f"{self.choice.engine.describe()}; {self.choice.why}"),
                *([] if self.blocks is None else [self.blocks.fact]),
            ],
            network=claims.network,
            predictions=[*claims.predictions, *of_units],
            reservation=claims.reservation,
            hparams=self._hparams(claims),
        )

    def _part_fact(self) -> list[Fact]:
        """Return the line on the measured parameters; an empty list if these are all."""
        text = differentiated_text(self.flat.specs)
        return [] if text is None else [Fact(HESSIAN_OF, f"only {text}, p = {self.flat.p:,}")]

    def _arithmetic(self) -> str:
        precision = self.flat.precision
        dtype = "the training dtype" if precision.dtype is None else str(precision.dtype)
        return f"{dtype}, ranks with eps = {precision.eps:.3g}"

    def _cut(self) -> str:
        norm = "max(‖H_L‖₂, ‖X‖₂) for part X"
        relative = self.tolerance.relative
        return (
            f"{relative:g} {norm}" if relative is not None else self.tolerance.rule(f"p eps {norm}")
        )

    def _hparams(self, claims: Claims) -> dict[str, Hparam]:
        flat = self.flat
        hparams: dict[str, Hparam] = {"engine": self.choice.engine.name, "eps": flat.precision.eps}
        if flat.p != sum(spec.size for spec in flat.specs if spec.is_trainable):
            hparams["differentiated"] = flat.p
        if self.measured.stack is not None:
            hparams["widths"] = widths_text(self.measured.stack)
        if self.measured.family is not None:
            hparams["family"] = self.measured.family.family.name
        if self.measured.inputs is not None:
            hparams["input_rank"] = self.measured.r
        if claims.bottleneck is not None:
            hparams["bottleneck"] = claims.bottleneck
        return hparams


def _initial_state(flat: FlatProblem) -> State:
    return {"reference": np.zeros((flat.positions, flat.k)), "started": np.zeros(())}
