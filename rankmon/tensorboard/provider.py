"""Read the series of runs from TensorBoard's data provider."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from tensorboard.data.provider import DataProvider, RunTagFilter
from tensorboard.plugins.hparams import metadata as hparams_plugin
from tensorboard.plugins.scalar.metadata import PLUGIN_NAME as SCALARS
from tensorboard.plugins.text.metadata import PLUGIN_NAME as TEXTS

from rankmon._util.hparams import Hparam
from rankmon._util.tags import ALERTS, CARD, LAYERS
from rankmon.runs.series import ArraySeries, ScalarSeries
from rankmon.writers.condense import layers_of_text

# The plugin name of the tensors that `TensorBoardWriter` writes.
ARRAYS = "rankmon"

# Do not thin the data again: TensorBoard has already done it when it read the files.
_ALL_KEPT = 2**31 - 1
_VALUES = "/values"
_Datum = TypeVar("_Datum")


@dataclass(frozen=True)
class Tags:
    """The tags of one run, the time of its latest scalar, and its hyperparameters by name.

    The time is in seconds since 1970.
    """

    scalars: list[str]
    arrays: list[str]
    texts: list[str]
    latest: float
    hparams: dict[str, Hparam]


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
        hparams = self._provider.list_tensors(**asked, plugin_name=hparams_plugin.PLUGIN_NAME)
        of_layers = self._of_layers(texts)
        return {
            run: Tags(
                [*scalars.get(run, ()), *of_layers.get(run, ())],
                [t.removesuffix(_VALUES) for t in arrays.get(run, ()) if t.endswith(_VALUES)],
                [t for t in texts.get(run, ()) if t in (CARD, ALERTS)],
                max((tag.max_wall_time for tag in scalars.get(run, {}).values()), default=0.0),
                _hparams(hparams.get(run, {})),
            )
            for run in {**scalars, **arrays, **texts}
        }

    def scalars(
        self, runs: Collection[str], tags: Collection[str]
    ) -> dict[str, dict[str, ScalarSeries]]:
        """Return the series of scalars by run and tag, also of layers without a curve of their own.

        `writers.condense` writes the layers of a deep network as one array for each family.
        """
        read = self._provider.read_scalars(**self._wanted(SCALARS, runs, tags))
        found = {
            run: {tag: _scalar_series(data) for tag, data in by_tag.items()}
            for run, by_tag in read.items()
        }
        for run, places in self._of_layers(self._texts_of_layers(runs)).items():
            wanted = {tag: places[tag] for tag in tags if tag in places}
            names = {name for name, _ in wanted.values()}
            arrays = {name: self._arrays(run, name) for name in names}
            for tag, (name, place) in wanted.items():
                if (series := arrays[name]) is not None:
                    found.setdefault(run, {}).setdefault(tag, _of_place(series, place))
        return found

    def _texts_of_layers(self, runs: Collection[str]) -> Mapping[str, Collection[str]]:
        asked = RunTagFilter(runs=runs, tags=[LAYERS])
        listed = self._provider.list_tensors(**self._where, plugin_name=TEXTS, run_tag_filter=asked)
        return {run: list(tags) for run, tags in listed.items()}

    def _of_layers(
        self, texts: Mapping[str, Collection[str]]
    ) -> dict[str, dict[str, tuple[str, int]]]:
        """Return run -> tag -> (array, place in it) of the layers that have no curve."""
        found = {}
        for run in (run for run, tags in texts.items() if LAYERS in tags):
            by_step = self.texts(run, [LAYERS])[LAYERS]
            arrays = layers_of_text(by_step[max(by_step)])
            found[run] = {
                f"{name.removeprefix('layers/')}/{layer}": (name, place)
                for name, layers in arrays.items()
                for layer, place in layers.items()
            }
        return found

    def times(self, run: str, tag: str) -> ScalarSeries:
        """Return the times at which a scalar was logged, in seconds since 1970, by step."""
        read = self._provider.read_scalars(**self._wanted(SCALARS, [run], [tag]))
        return _series((datum.step, datum.wall_time) for datum in read.get(run, {}).get(tag, ()))

    def spectrum(self, run: str, part: str) -> ArraySeries | None:
        """Return the spectra of a part of the Hessian over steps; None if there are none."""
        return self._arrays(run, f"spectrum/{part}")

    def singular_values(self, run: str, weight: str) -> ArraySeries | None:
        """Return the singular values of a weight over steps; None if there are none."""
        return self._arrays(run, f"singular_values/{weight}")

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


def _hparams(tags: Mapping[str, Any]) -> dict[str, Hparam]:
    """Return the hyperparameters of a run; none if it has none that this TensorBoard can read."""
    tag = tags.get(hparams_plugin.SESSION_START_INFO_TAG)
    if tag is None:
        return {}
    try:
        info = hparams_plugin.parse_session_start_info_plugin_data(tag.plugin_content)
    except Exception:  # of protobuf or the plugin: bytes of another program must not hide the tab
        return {}
    kinds = {name: value.WhichOneof("kind") for name, value in info.hparams.items()}
    return {
        name: getattr(info.hparams[name], kind)
        for name, kind in sorted(kinds.items())
        if kind in ("number_value", "string_value", "bool_value")
    }


def _scalar_series(data: Iterable[Any]) -> ScalarSeries:
    return _series((datum.step, datum.value) for datum in data)


def _series(data: Iterable[tuple[int, float]]) -> ScalarSeries:
    latest = _latest(data)
    steps, values = list(latest), list(latest.values())
    return ScalarSeries(np.array(steps, np.int64), np.array(values, np.float64))


def _array_series(data: Iterable[Any]) -> ArraySeries:
    latest = _latest((d.step, d.numpy) for d in data if np.ndim(d.numpy) == 1)
    values = tuple(np.asarray(value, np.float64) for value in latest.values())
    return ArraySeries(np.array(list(latest), np.int64), values)


def _of_place(series: ArraySeries, place: int) -> ScalarSeries:
    fits = [at for at, values in enumerate(series.values) if place < len(values)]
    values = np.array([series.values[at][place] for at in fits])
    return ScalarSeries(series.steps[fits], values)


def _latest(data: Iterable[tuple[int, _Datum]]) -> dict[int, _Datum]:
    """Return the data by increasing step; if steps are repeated, keep the last datum of each."""
    return dict(sorted(dict(data).items()))


def _text(value: Any) -> str:
    first = np.ravel(value)[0] if np.size(value) else b""
    return first.decode("utf-8", "replace") if isinstance(first, bytes) else str(first)
