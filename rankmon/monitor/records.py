"""`RecordBuilder`: build a record from scalars, alarms, the run's card and hyperparameters."""

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from rankmon._util.errors import ErrorPolicy
from rankmon._util.facts import Fact
from rankmon._util.hparams import Hparam
from rankmon._util.tags import ALERTS, CARD
from rankmon.monitor.alerts import Action, Alarm, Alert, Watch
from rankmon.monitor.layer_summaries import layer_summaries
from rankmon.monitor.overhead import Overhead
from rankmon.monitor.user_scalars import UserScalars
from rankmon.probes.base import Measurement
from rankmon.writers.base import Record
from rankmon.writers.card import Card

Found = Sequence[tuple[Action, Alarm]]

_TIMES = ("monitor/seconds", "monitor/overhead", "monitor/errors")


class RecordBuilder:
    """Builds the records of one monitor.

    Args:
      errors: the error policy, which also counts errors.
      overhead: the share of the wall time that probes take.
      alerts: conditions on the records.
      facts: lines for the card that only the monitor can give.
      hparams: the user's hyperparameters, for the first record of each attempt; None to write no
        hyperparameters, not even the card's facts.

    Attributes:
      user_scalars: converts the user's scalars.
      watch: the alerts of the run.
      card: the card of the run.
    """

    def __init__(
        self,
        *,
        errors: ErrorPolicy,
        overhead: Overhead,
        alerts: Sequence[Alert] = (),
        facts: Sequence[Fact] = (),
        hparams: Mapping[str, Hparam] | None = None,
    ) -> None:
        self.user_scalars = UserScalars(errors, reserved=(CARD, *_TIMES))
        self.watch = Watch(alerts)
        self.card = Card(facts)
        self._errors, self._overhead, self._hparams = errors, overhead, hparams
        self._opens = False  # whether the next record is the first one of an attempt

    def begin(self) -> None:
        """Begin a new attempt: its first record gets the card and the hyperparameters again."""
        self.card.begin()
        self._opens = True

    def scalars(
        self,
        measurement: Measurement,
        counts: Mapping[str, float],
        numbers: Mapping[str, float],
        seconds: float,
    ) -> dict[str, float]:
        """Return the scalars of a measurement, its summaries, the monitor's and the user's.

        Args:
          measurement: the measurements of the probes.
          counts: additional scalars of the monitor.
          numbers: the user's scalars; a tag that is taken is renamed.
          seconds: the time that the measurement took.
        """
        values = (seconds, self._overhead.share_taken(seconds), self._errors.errors)
        over_layers = layer_summaries(measurement.scalars)
        own = {
            **measurement.scalars,
            **over_layers,
            **counts,
            **dict(zip(_TIMES, values, strict=True)),
        }
        return own | self.user_scalars.with_free_tags([*own, *measurement.arrays], numbers)

    def build(
        self,
        step: int,
        attempt: int,
        scalars: dict[str, float],
        arrays: Mapping[str, np.ndarray] = MappingProxyType({}),
        note: str = "",
    ) -> tuple[Record, Found]:
        """Return a record, and the alarms that its scalars cause.

        The texts of the record are the note and the alarms, and the card if it has changed.
        """
        what = f"the alerts at step {step}"
        found: Found = self._errors.guard(what, self.watch.look, step, scalars) or []
        texts: dict[str, str] = {}
        said = [*([note] if note else []), *(alarm.message for _, alarm in found)]
        if said:
            texts[ALERTS] = "\n".join(f"* {message}" for message in said)
        page = self._errors.guard("the card", self.card.page, step, scalars, [*arrays, *texts])
        if page is not None:
            texts[CARD] = page
        hparams = self._hparams_now()
        return Record(step, attempt, time.time(), scalars, arrays, texts, hparams), found

    def _hparams_now(self) -> dict[str, Hparam]:
        """Return the hyperparameters of an attempt: the user's, then the card's facts."""
        opens, self._opens = self._opens, False
        if self._hparams is None or not opens:
            return {}
        own = self.card.hparams
        return {**self._hparams, **{name: own[name] for name in own if name not in self._hparams}}
