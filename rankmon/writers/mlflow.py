"""`MLflowWriter`: write records to a run of MLflow."""

import posixpath
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from rankmon._util.closing import ClosesOnExit
from rankmon._util.strict_json import json_numbers
from rankmon.writers.base import Record

# All names begin with this prefix, so that they never continue the user's own "loss".
PREFIX = "rankmon/"
ATTEMPT = "rankmon_attempt"
# The limits of MLflow's servers: entries in a batch, and characters.
_MOST_METRICS, _MOST_PARAMS, _LONGEST_NAME, _LONGEST_VALUE = 900, 90, 250, 500
_NOT_IN_NAMES = re.compile(r"[^\w\-. /]")


class MLflowWriter(ClosesOnExit):
    """Writes records to a run of MLflow: `MLflowWriter(mlflow.start_run())`.

    The tag "rank/H_L" becomes the metric "rankmon/rank/H_L" at the training step, so that no
    metric of your own is continued. Scalars keep all digits, and NaN stays NaN; a SQL store
    replaces infinities by the largest float. Arrays are the artifacts
    `rankmon/arrays/step_<step>.json`, texts (alerts too) `rankmon/texts/<tag>/step_<step>.md`, and
    hyperparameters are params; the newest alert is also the tag `rankmon.alert`. MLflow accepts
    letters, digits and " _-./" in names: a tag with other characters gets "_" for each of them, and
    a checksum at the end.

    Restarts: MLflow cannot delete points. The metric "rankmon_attempt" counts the attempts, on from
    those in the run; a point is superseded if a later attempt began at its step or before.
    Artifacts of a step are replaced. A param cannot change: if a later attempt has another value,
    it is kept as a tag.

    The run is never ended by the writer: whoever started it ends it.
    """

    def __init__(self, run: Any, *, client: Any = None) -> None:
        """Store the run.

        Args:
          run: a run of MLflow, as `mlflow.start_run()` returns it, or its id.
          client: an `mlflow.MlflowClient`; by default one of the current tracking URI.

        Raises:
          TypeError: for anything but a run.
          ModuleNotFoundError: if MLflow is not installed.
        """
        self._id = run if isinstance(run, str) else getattr(getattr(run, "info", None), "run_id", 0)
        if not isinstance(self._id, str):
            raise TypeError(
                f"expected a run of MLflow or its id, got {type(run).__name__}; pass the "
                "result of mlflow.start_run()"
            )
        self._client = _client() if client is None else client
        self._attempt: int | None = None

    def start(self, step: int) -> None:
        """Begin an attempt, numbered in "rankmon_attempt"."""
        self._attempt = 1 + (self._last_attempt() if self._attempt is None else self._attempt)

    def write(self, record: Record) -> None:
        """Log one record: its artifacts, hyperparameters and metrics, in this order."""
        if self._attempt is None:
            self.start(record.step)
        if record.arrays:
            arrays = {tag: json_numbers(values) for tag, values in record.arrays.items()}
            self._client.log_dict(self._id, arrays, f"rankmon/arrays/{_step(record)}.json")
        for tag, text in record.texts.items():
            name = _name(tag).removeprefix(PREFIX)
            self._client.log_text(self._id, text, f"rankmon/texts/{name}/{_step(record)}.md")
            if name == "alerts":
                alert = f"step {record.step}: {text}"
                self._client.set_tag(self._id, "rankmon.alert", alert[:_LONGEST_VALUE])
        if record.hparams:
            self._log_hparams(record)
        self._log_metrics(record)

    def flush(self) -> None:
        """Do nothing: each call of the client waits for the server."""

    def close(self) -> None:
        """Do nothing: the run belongs to its creator, who may go on to log to it."""

    def _last_attempt(self) -> int:
        return int(self._client.get_run(self._id).data.metrics.get(ATTEMPT, 0))

    def _log_metrics(self, record: Record) -> None:
        from mlflow.entities import Metric

        at = int(1000 * record.wall_time), record.step
        numbers = {_name(tag): float(value) for tag, value in record.scalars.items()}
        # The attempt is part of the last batch: a record that has it is complete.
        values = {**numbers, ATTEMPT: float(self._attempt or 1)}
        metrics = [Metric(name, value, *at) for name, value in values.items()]
        for batch in _batches(metrics, _MOST_METRICS):
            self._client.log_batch(self._id, metrics=batch)

    def _log_hparams(self, record: Record) -> None:
        from mlflow.entities import Param, RunTag

        known = self._client.get_run(self._id).data.params
        given = {_name(name): str(value) for name, value in record.hparams.items()}
        given = {name: value[:_LONGEST_VALUE] for name, value in given.items()}
        new = [Param(name, value) for name, value in given.items() if name not in known]
        changed = [RunTag(n, v) for n, v in given.items() if known.get(n, v) != v]
        for params in _batches(new, _MOST_PARAMS):
            self._client.log_batch(self._id, params=params)
        for tags in _batches(changed, _MOST_PARAMS):
            self._client.log_batch(self._id, tags=tags)


def _client() -> Any:
    try:
        from mlflow import MlflowClient
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"expected MLflow for MLflowWriter, got none ({error}); run: pip install mlflow"
        ) from None
    return MlflowClient()


def _step(record: Record) -> str:
    """Return the step as part of a file's name, in which names sort as steps do."""
    return f"step_{record.step:010d}"


def _name(tag: str) -> str:
    """Return the tag as a name that MLflow accepts, different for different tags."""
    name = tag if tag.startswith(PREFIX) else PREFIX + tag
    accepted = _NOT_IN_NAMES.sub("_", name)
    accepted = posixpath.normpath(accepted.replace("..", "__")).strip("/ ")
    if accepted == name and len(name) <= _LONGEST_NAME:
        return name
    checksum = f"-{zlib.crc32(tag.encode()):08x}"
    return accepted[: _LONGEST_NAME - len(checksum)] + checksum


def _batches(entries: Sequence[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(entries)
    while batch := list(islice(rest, size)):
        yield batch
