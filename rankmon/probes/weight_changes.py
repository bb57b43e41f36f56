"""The changes of weights since the first and since the last measurement.

The earlier weights are part of the probe's state, in the dtype in which they are stored. The state
of a change since "start" or "last" has two entries: the packed leaves, and the step at which they
were measured: -1 before the first measurement, NaN if an older state was restored that lacks them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankmon._util.packed import packed, packed_length, unpacked
from rankmon.linalg.numerical_rank import NumericalRank, SoftRanks, Tolerance, undefined_rank
from rankmon.probes.base import State, rank_scalars
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Snapshot
from rankmon.problem.precision import eps_of
from rankmon.weights.factors import (
    Factors,
    Weight,
    change_of,
    inner_size,
    product_of,
    product_values,
)
from rankmon.weights.ranks import ranks_of_values, weight_count
from rankmon.weights.rounding import change_rounding, frobenius_norm

TRACKS = ("start", "last")
_NAN = float("nan")
_NEVER = -1.0

_LOST = (
    "expected a state with the weights of the first measurement for track='start', got one that "
    "was saved without them, so that the changes since the start are NaN; to measure changes from "
    "now on, begin a run without state="
)


def as_track(track: Any) -> tuple[str, ...]:
    """Return the changes to measure, in the order of `TRACKS`.

    Raises:
      TypeError: if these are not names.
      ValueError: for another name.
    """
    given = (track,) if isinstance(track, str) else track
    if not isinstance(given, Collection) or not all(isinstance(kind, str) for kind in given):
        raise TypeError(f"expected track to be names, got {track!r}; write track=('start', 'last')")
    if not set(given) <= set(TRACKS):
        raise ValueError(
            f"expected track among {TRACKS}, got {tuple(given)}; leave it out for no changes"
        )
    return tuple(kind for kind in TRACKS if kind in given)


def keys_of(track: Sequence[str]) -> frozenset[str]:
    """Return the entries of the state for these changes."""
    return frozenset(key for kind in track for key in (kind, f"{kind}_step"))


def blank_state(track: Sequence[str], length: int = 0) -> State:
    """Return the state before the first measurement, for packed leaves of this length."""
    state: State = {}
    for kind in track:
        state |= {kind: np.zeros(length), f"{kind}_step": np.asarray(_NEVER)}
    return state


@dataclass(frozen=True)
class Changes:
    """Measures the changes of weights for one problem.

    Attributes:
      flat: the problem.
      weights: the weights by their names in tags.
      track: "start", "last" or both.
      tolerance: the rule for the cut.
      largest: the rank of larger matrices is measured without singular values.
    """

    flat: FlatProblem
    weights: Mapping[str, Weight]
    track: tuple[str, ...]
    tolerance: Tolerance
    largest: int

    def initial_state(self) -> State:
        """Return the state before the first measurement."""
        return blank_state(self.track, packed_length(*self._stored) if self.track else 0)

    def measure(
        self, snapshot: Snapshot, state: State
    ) -> tuple[dict[str, float], State, tuple[str, ...]]:
        """Return the scalars, the next state, and the texts of warnings."""
        scalars: dict[str, float] = {}
        warnings: tuple[str, ...] = ()
        state = dict(state)
        for kind in self.track:
            at = float(state[f"{kind}_step"])
            # The first measurement, or training went back to a step before the earlier weights.
            begins = at == _NEVER or snapshot.step <= at
            if kind == "last":
                known = not (begins or np.isnan(at))
                earlier = self._unpacked(state[kind]) if known else None
                state |= self._held(kind, snapshot)
            else:
                if begins and self._is_finite(snapshot):
                    state |= self._held(kind, snapshot)
                    at, begins = float(snapshot.step), False
                earlier = None if begins or np.isnan(at) else self._unpacked(state[kind])
                warnings = (_LOST,) if np.isnan(at) else ()
            for name, weight in self.weights.items():
                scalars |= self._scalars(f"since_{kind}", name, weight, snapshot, earlier, at)
        return scalars, state, warnings

    def describe(self) -> str:
        """Describe the cut of changes."""
        return self.tolerance.rule("max(m, n) eps64 ‖ΔW‖₂") + (
            ", plus the rounding errors of the stored weights in entries that changed: the larger "
            "one of eps ‖W‖_F and √t eps / 2 (the largest norms of a row and of a column of W), "
            "for t steps"
        )

    def _scalars(
        self,
        since: str,
        name: str,
        weight: Weight,
        snapshot: Snapshot,
        earlier: Sequence[np.ndarray] | None,
        at: float,
    ) -> dict[str, float]:
        """Return the scalars of the change of one weight; NaN if the earlier one is not known."""
        now = weight.of(snapshot.leaves)
        before = now if earlier is None else weight.of(earlier)
        change = change_of(now, before)
        matrix = product_of(change)
        known = earlier is not None and bool(np.all(np.isfinite(matrix)))
        is_large = inner_size(change) > self.largest
        rank, soft = undefined_rank(min(matrix.shape)), SoftRanks()
        if known:
            specs = [self.flat.specs[index] for index, _ in weight.parts]
            rounding = change_rounding(
                now,
                before,
                eps=[eps_of(spec.dtype) for spec in specs],
                steps=snapshot.step - int(at),
            )
            rank, soft = self._ranks(change, matrix, rounding, is_large=is_large)
        scalars = rank_scalars("rank", f"{since}/{name}", rank)
        scalars[f"rank_{since}/{name}"] = scalars.pop(f"rank/{since}/{name}")
        scalars[f"norm_{since}/{name}"] = frobenius_norm(matrix) if known else _NAN
        if not is_large:
            scalars[f"stable_rank_{since}/{name}"] = soft.stable_rank
            scalars[f"effective_rank_{since}/{name}"] = soft.effective_rank
        return scalars

    def _ranks(
        self, change: Factors, matrix: np.ndarray, rounding: float, *, is_large: bool
    ) -> tuple[NumericalRank, SoftRanks]:
        """Return the ranks of a finite change; of a large one, only the numerical rank."""
        if is_large:
            rank = weight_count(matrix, tolerance=self.tolerance, rounding=rounding)
            return rank, SoftRanks()
        return ranks_of_values(
            product_values(change), matrix.shape, tolerance=self.tolerance, rounding=rounding
        )

    # The earlier weights

    @property
    def _leaves(self) -> list[int]:
        """The indices of the leaves that hold weights."""
        return sorted({index for weight in self.weights.values() for index, _ in weight.parts})

    @property
    def _stored(self) -> tuple[list[tuple[int, ...]], list[np.dtype]]:
        """The shapes and dtypes in which these leaves are stored."""
        specs = [self.flat.specs[index] for index in self._leaves]
        return [spec.shape for spec in specs], [spec.dtype for spec in specs]

    def _is_finite(self, snapshot: Snapshot) -> bool:
        return all(bool(np.all(np.isfinite(snapshot.leaves[index]))) for index in self._leaves)

    def _held(self, kind: str, snapshot: Snapshot) -> State:
        """Return the entries of the state that hold the weights of the snapshot."""
        # The snapshot may hold them in float64: the way back to the stored dtype is exact.
        leaves = [
            snapshot.leaves[index].astype(dtype)
            for index, dtype in zip(self._leaves, self._stored[1], strict=True)
        ]
        return {kind: packed(leaves), f"{kind}_step": np.asarray(float(snapshot.step))}

    def _unpacked(self, vector: np.ndarray) -> list[np.ndarray]:
        """Return all leaves; those without weights are empty."""
        leaves = [np.zeros(0)] * len(self.flat.specs)
        for index, leaf in zip(self._leaves, unpacked(vector, *self._stored), strict=True):
            leaves[index] = leaf
        return leaves
