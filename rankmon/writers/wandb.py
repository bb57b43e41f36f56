"""`WandbWriter`: write records to a run of Weights & Biases, or of trackio.

Neither library is imported here: whoever passes a run has imported its library.
"""

import html
import inspect
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from rankmon._util.closing import ClosesOnExit
from rankmon._util.hparams import Hparam
from rankmon._util.markdown import escaped, table
from rankmon._util.tags import ALERTS
from rankmon.writers.base import Record
from rankmon.writers.events import histogram

# All names begin with this prefix, so that they never replace the user's own "loss".
PREFIX = "rankmon/"
# No tag has these names, because the names of tags have the prefix.
STEP, ATTEMPT = "rankmon_step", "rankmon_attempt"
# The row that has the last record, for each run: the writer of a second monitor must know it too.
_LAST_ROWS: WeakKeyDictionary[Any, int | None] = WeakKeyDictionary()


class WandbWriter(ClosesOnExit):
    """Writes records to a run of wandb or of trackio: `WandbWriter(wandb.init(...))`.

    The tag "rank/H_L" becomes "rankmon/rank/H_L", so that no curve of your own is replaced.
    Scalars keep all digits; NaN and infinities are kept. Arrays become histograms of
    their finite values (an array without any is left out), texts become HTML (wandb) or Markdown
    (trackio), alerts also become alerts of the run, and hyperparameters stand in the run's config
    under "rankmon". trackio sends the config with the first `log` of a run, so call the monitor
    before it; in any case the text "rankmon/hparams" has them.

    Steps: in wandb, the training step is the metric "rankmon_step", the x-axis of all curves of
    rankmon. A record joins the row that your next `run.log` completes, so that the monitor adds no
    steps to your own curves, unless two records come between two of your calls. In trackio,
    records are logged at the training step: pass `step=` in your own `trackio.log` too.

    Restarts: neither can delete points. Each record has "rankmon_attempt", which counts on if the
    run is resumed online in wandb; a point is superseded if a later attempt began at its step or
    before. `wandb.init(resume_from="<run>?_step=<row>")` cuts a run before it continues.

    `wandb.init(sync_tensorboard=True)` does not see the event files of rankmon: it watches other
    libraries' writers. This writer works with it as without it.

    The run is never finished by the writer: whoever created it finishes it, after the monitor is
    closed.
    """

    def __init__(self, run: Any) -> None:
        """Store the run, and let wandb draw the curves of rankmon over the training step.

        Raises:
          TypeError: for anything but a run of wandb or trackio.
        """
        library: Any = sys.modules.get(type(run).__module__.partition(".")[0])
        if not callable(getattr(run, "log", None)) or not hasattr(library, "Histogram"):
            got = f"the module {run.__name__}" if inspect.ismodule(run) else type(run).__name__
            raise TypeError(
                f"expected a run of wandb or trackio, got {got}; pass the result of "
                "wandb.init(...) or trackio.init(...)"
            )
        self._run: Any = run
        self._library: Any = library
        self._has_rows = hasattr(run, "define_metric")  # wandb
        self._attempt = 0
        if self._has_rows:
            run.define_metric(STEP, hidden=True)
            run.define_metric(ATTEMPT, step_metric=STEP)
            run.define_metric(f"{PREFIX}*", step_metric=STEP)
            with suppress(Exception):  # a run that is not resumed has no summary yet
                self._attempt = int(run.summary.get(ATTEMPT, 0))

    def start(self, step: int) -> None:
        """Begin an attempt, numbered in "rankmon_attempt"."""
        self._attempt += 1

    def write(self, record: Record) -> None:
        """Log one record."""
        self._attempt = max(self._attempt, 1)
        texts = {**record.texts, **(self._configured(record.hparams) if record.hparams else {})}
        values: dict[str, Any] = {
            **{tag: float(value) for tag, value in record.scalars.items()},
            **{tag: self._histogram(values) for tag, values in record.arrays.items()},
            **{tag: self._text(text) for tag, text in texts.items()},
        }
        data = {_name(tag): value for tag, value in values.items() if value is not None}
        self._log({**data, STEP: record.step, ATTEMPT: self._attempt}, record.step)
        if ALERTS in record.texts:
            self._alert(record.texts[ALERTS], record.step)

    def flush(self) -> None:
        """Do nothing: both libraries send from a thread or process of their own."""

    def close(self) -> None:
        """Do nothing: the run belongs to its creator, who may go on to log to it."""

    def _log(self, data: Mapping[str, Any], step: int) -> None:
        if not self._has_rows:
            self._run.log(data, step=step)
            return
        # A second record in a row would replace the first one: complete the row before.
        last = _LAST_ROWS.get(self._run)
        if last is not None and last == self._current_row():
            self._run.log({}, commit=True)
        self._run.log(data, commit=False)
        row = _LAST_ROWS[self._run] = self._current_row()
        if row is None:
            self._run.log({}, commit=True)

    def _current_row(self) -> int | None:
        """Return the row that the next call completes; None if several processes share the run."""
        try:
            return self._run.step
        except Exception:  # noqa: BLE001  the shared mode of wandb has no such number
            return None

    def _histogram(self, values: np.ndarray) -> Any:
        """Return the library's histogram of the finite values; None if there are none."""
        bins = histogram(values)
        if not bins.bucket:
            return None
        edges = np.array([bins.min, *bins.bucket_limit])
        return self._library.Histogram(np_histogram=(np.array(bins.bucket), edges))

    def _text(self, text: str) -> Any:
        if hasattr(self._library, "Markdown"):
            return self._library.Markdown(text)
        page = f"<pre style='white-space: pre-wrap'>{html.escape(text)}</pre>"
        return self._library.Html(page, inject=False)

    def _alert(self, text: str, step: int) -> None:
        takes_step = "step" in inspect.signature(self._run.alert).parameters
        title = f"rankmon, step {step}"
        self._run.alert(title=title, text=text, **({"step": step} if takes_step else {}))

    def _configured(self, hparams: Mapping[str, Hparam]) -> dict[str, str]:
        """Put the hyperparameters into the config; return texts, if it may be too late for it."""
        if hasattr(self._run.config, "persist"):  # wandb refuses to replace a value without this
            self._run.config.update({"rankmon": dict(hparams)}, allow_val_change=True)
            return {}
        self._run.config["rankmon"] = dict(hparams)
        rows = [(escaped(name), escaped(str(value))) for name, value in hparams.items()]
        return {"hparams": table(("hyperparameter", "value"), rows)}


def _name(tag: str) -> str:
    return tag if tag.startswith(PREFIX) else PREFIX + tag
