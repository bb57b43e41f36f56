"""Read the series of runs from TensorBoard's data provider."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from tensorboard.data.provider import DataProvider, RunTagFilter
from tensorboard.plugins.scalar.metadata import PLUGIN_NAME as SCALARS
from tensorboard.plugins.text.metadata import PLUGIN_NAME as TEXTS

from rankmon._util.tags import ALERTS, CARD
from rankmon.runs.series import ArraySeries, ScalarSeries

# The plugin name of the tensors that `TensorBoardWriter` writes.
ARRAYS = "rankmon"

# Do not thin the data again: TensorBoard has already done it when it read the files.
_ALL_KEPT = 2**31 - 1
_VALUES = "/values"
_Datum = TypeVar("_Datum")


@dataclass(frozen=True)
class Tags:
    """The tags of one run."""

    scalars: list[str]
    arrays: list[str]
    texts: list[str]


class Stored:
    """The series of one experiment, read from TensorBoard's data provider on demand.

    Args:
      provider: TensorBoard's data provider.
      context: the context of the request.
      experiment: the id of the experiment.
    """

    def __init__(self, provider: DataProvider, context: Any, experiment: str) -> None:
        self._provider = provider
        self._where = {"ctx": context, "experiment_id": experiment}

    def tags(self, runs: Collection[str] | None = None) -> dict[str, Tags]:
        """Return the tags by run, for all runs (None) or those of the given runs that exist."""
        asked = {**self._where, "run_tag_filter": RunTagFilter(runs=runs)}
        scalars = self._provider.list_scalars(**asked, plugin_name=SCALARS)
        arrays = self._provider.list_tensors(**asked, plugin_name=ARRAYS)
        texts = self._provider.list_tensors(**asked, plugin_name=TEXTS)
        return {
            run: Tags(
                list(scalars.get(run, ())),
                [t.removesuffix(_VALUES) for t in arrays.get(run, ()) if t.endswith(_VALUES)],
                [t for t in texts.get(run, ()) if t in (CARD, ALERTS)],
            )
            for run in {**scalars, **arrays, **texts}
        }

    def scalars(
        self, runs: Collection[str], tags: Collection[str]
    ) -> dict[str, dict[str, ScalarSeries]]:
        """Return the series of scalars by run and tag."""
        read = self._provider.read_scalars(**self._wanted(SCALARS, runs, tags))
        return {
            run: {tag: _scalar_series(data) for tag, data in by_tag.items()}
            for run, by_tag in read.items()
        }

    def spectrum(self, run: str, part: str) -> ArraySeries | None:
        """Return the spectra of a part of the Hessian over steps; None if there are none."""
        return self._arrays(run, f"spectrum/{part}")

    def negative(self, run: str, part: str) -> ArraySeries | None:
        """Return the negative eigenvalues in these spectra; None if the run has no signs."""
        return self._arrays(run, f"spectrum_negative/{part}")

    def _arrays(self, run: str, name: str) -> ArraySeries | None:
        tag = f"{name}{_VALUES}"
        read = self._provider.read_tensors(**self._wanted(ARRAYS, [run], [tag]))
        data = read.get(run, {}).get(tag)
        return None if data is None else _array_series(data)

    def texts(self, run: str, tags: Collection[str]) -> dict[str, dict[int, str]]:
        """Return the texts of a run by tag and step."""
        read = self._provider.read_tensors(**self._wanted(TEXTS, [run], tags))
        by_tag: Mapping[str, Iterable[Any]] = read.get(run, {})
        return {
            tag: {datum.step: _text(datum.numpy) for datum in data} for tag, data in by_tag.items()
        }

    def _wanted(self, plugin: str, runs: Collection[str], tags: Collection[str]) -> dict[str, Any]:
        """Return the arguments for TensorBoard's data provider to read these tags of these runs."""
        return {
            **self._where,
            "plugin_name": plugin,
            "downsample": _ALL_KEPT,
            "run_tag_filter": RunTagFilter(runs=runs, tags=tags),
        }


def _scalar_series(data: Iterable[Any]) -> ScalarSeries:
    latest = _latest((datum.step, datum.value) for datum in data)
    steps, values = list(latest), list(latest.values())
    return ScalarSeries(np.array(steps, np.int64), np.array(values, np.float64))


def _array_series(data: Iterable[Any]) -> ArraySeries:
    latest = _latest((d.step, d.numpy) for d in data if np.ndim(d.numpy) == 1)
    values = tuple(np.asarray(value, np.float64) for value in latest.values())
    return ArraySeries(np.array(list(latest), np.int64), values)


def _latest(data: Iterable[tuple[int, _Datum]]) -> dict[int, _Datum]:
    """Return the data by increasing step; if steps are repeated, keep the last datum of each."""
    return dict(sorted(dict(data).items()))


def _text(value: Any) -> str:
    first = np.ravel(value)[0] if np.size(value) else b""
    return first.decode("utf-8", "replace") if isinstance(first, bytes) else str(first)
