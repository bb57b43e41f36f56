"""How a record is put together: its scalars, what the alerts find, the card, hyperparameters."""

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from rankmon._util.errors import ErrorPolicy
from rankmon._util.facts import Fact
from rankmon._util.hparams import Hparam
from rankmon.monitor.alerts import Action, Alarm, Alert, Watch
from rankmon.monitor.overhead import Overhead
from rankmon.monitor.user_scalars import UserScalars
from rankmon.probes.base import Measurement
from rankmon.writers import card
from rankmon.writers.base import Record
from rankmon.writers.card import Card

Found = Sequence[tuple[Action, Alarm]]

_TIMES = ("monitor/seconds", "monitor/overhead", "monitor/errors")


class RecordBuilder:
    """Puts together the records of one monitor.

    Args:
      errors: decides what an error does, and counts them.
      overhead: knows the share of the wall time.
      alerts: conditions on the records.
      facts: for the card, of what only the monitor knows.
      hparams: the user's, for the first record of each attempt; None for none, the card's neither.

    Attributes:
      user_scalars: converts those of the user.
      watch: the alerts of the run.
      card: of the run.
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
        self.user_scalars = UserScalars(errors, reserved=(card.TAG, *_TIMES))
        self.watch = Watch(alerts)
        self.card = Card(facts)
        self._errors, self._overhead, self._hparams = errors, overhead, hparams
        self._opens = False  # whether the next record is the first one of an attempt

    def begin(self) -> None:
        """Begin a new attempt: its first record has the card and the hyperparameters again."""
        self.card.begin()
        self._opens = True

    def scalars(
        self,
        measurement: Measurement,
        counts: Mapping[str, float],
        numbers: Mapping[str, float],
        seconds: float,
    ) -> dict[str, float]:
        """Return the scalars of a measurement, the monitor's own and the user's.

        Args:
          measurement: what the probes show.
          counts: more scalars of the monitor.
          numbers: the user's, which give way to tags of the others.
          seconds: that the measurement has taken.
        """
        values = (seconds, self._overhead.share_taken(seconds), self._errors.errors)
        own = {**measurement.scalars, **counts, **dict(zip(_TIMES, values, strict=True))}
        return own | self.user_scalars.with_free_tags([*own, *measurement.arrays], numbers)

    def build(
        self,
        step: int,
        attempt: int,
        scalars: dict[str, float],
        arrays: Mapping[str, np.ndarray] = MappingProxyType({}),
        note: str = "",
    ) -> tuple[Record, Found]:
        """Return a record with the note, and what the alerts find in it."""
        what = f"the alerts at step {step}"
        found: Found = self._errors.guard(what, self.watch.look, step, scalars) or []
        texts: dict[str, str] = {}
        said = [*([note] if note else []), *(alarm.message for _, alarm in found)]
        if said:
            texts["rankmon/alerts"] = "\n".join(f"* {message}" for message in said)
        page = self._errors.guard("the card", self.card.page, step, scalars, [*arrays, *texts])
        if page is not None:
            texts[card.TAG] = page
        hparams = self._hparams_now()
        return Record(step, attempt, time.time(), scalars, arrays, texts, hparams), found

    def _hparams_now(self) -> dict[str, Hparam]:
        """Return those of the first record of an attempt: the user's, then the card's facts."""
        opens, self._opens = self._opens, False
        if self._hparams is None or not opens:
            return {}
        own = self.card.hparams
        return {**self._hparams, **{name: own[name] for name in own if name not in self._hparams}}
