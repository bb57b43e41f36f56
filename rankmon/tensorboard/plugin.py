"""The TensorBoard plugin of the Ranks tab: its routes, and the number of samples that it needs."""

import functools
import json
import re
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

from tensorboard import errors, plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug.wrappers import Request, Response

from rankmon._util.tags import is_rankmons, natural_order
from rankmon.runs.series import ArraySeries
from rankmon.tensorboard import payload
from rankmon.tensorboard.assets import static_files, static_text
from rankmon.tensorboard.guide import guide
from rankmon.tensorboard.pdf_route import can_draw, serve_pdf
from rankmon.tensorboard.provider import ARRAYS, TEXTS, Stored, Tags

# By default, TensorBoard's readers keep only 10 or 100 samples of such a tag. Keep as many spectra
# as scalars (1000), and as many texts as the Text tab shows (100).
_SAMPLES = MappingProxyType({ARRAYS: 1000, TEXTS: 100})
_STEP = re.compile(r"-?[0-9]{1,18}")  # fits in int64, as NumPy's arithmetic needs
_Answer = Callable[[Stored, Request], payload.Json]


class RanksLoader(base_plugin.TBLoader):
    """Creates the plugin when TensorBoard starts."""

    def fix_flags(self, flags: Any) -> None:
        """Make TensorBoard keep enough spectra and alerts.

        The user's own --samples_per_plugin=rankmon=...,text=... takes precedence.
        """
        flags.samples_per_plugin = {**_SAMPLES, **(flags.samples_per_plugin or {})}

    def load(self, context: base_plugin.TBContext) -> "RanksPlugin":
        """Return the plugin."""
        return RanksPlugin(context)


class RanksPlugin(base_plugin.TBPlugin):
    """The plugin of the Ranks tab."""

    plugin_name = "ranks"

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._provider = context.data_provider

    def get_plugin_apps(self) -> dict[str, Callable[..., Any]]:
        """Return the routes: those of the data, one for each static file, and the one of PDFs."""
        answers: dict[str, _Answer] = {
            "/runs": _runs,
            "/scalars": _scalars,
            "/counts": _counts,
            "/times": _times,
            "/guide": lambda *_: guide() | {"pdf": can_draw()},
            "/spectrum": _spectrum,
            "/heatmap": _heatmap,
            "/texts": _texts,
        }
        data = {route: functools.partial(self._serve, answer) for route, answer in answers.items()}
        static = {
            f"/static/{name}": functools.partial(_serve_file, name, kind)
            for name, kind in static_files().items()
        }
        read = {route: _get_only(serve) for route, serve in {**data, **static}.items()}
        return {**read, "/pdf": serve_pdf}

    def is_active(self) -> bool:
        """Return True: without runs, the tab explains how to write some."""
        return True

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Return the tab's name, and the module that the browser loads."""
        return base_plugin.FrontendMetadata(
            es_module_path="/static/index.js", tab_name="Ranks", disable_reload=True
        )

    def _serve(self, answer: _Answer, request: Request) -> Response:
        """Answer a request for data with JSON; TensorBoard turns errors into status codes."""
        environ = request.environ
        stored = Stored(
            self._provider, plugin_util.context(environ), plugin_util.experiment_id(environ)
        )
        body = json.dumps(answer(stored, request), allow_nan=False)
        return http_util.Respond(request, body, "application/json")


def _serve_file(name: str, kind: str, request: Request) -> Response:
    return http_util.Respond(request, static_text(name), kind)


def _get_only(serve: Callable[[Request], Response]) -> Callable[..., Any]:
    """Return a web application that answers GET and HEAD, and refuses other methods."""

    @Request.application
    def application(request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            text = f"expected GET, got {request.method}; this tab only reads"
            return http_util.Respond(
                request, text, "text/plain", code=405, headers=[("Allow", "GET, HEAD")]
            )
        return serve(request)

    return application


def _argument(request: Request, name: str) -> str:
    """Return an argument of the address; raise if it is missing."""
    value = request.args.get(name)
    if value is None:
        raise errors.InvalidArgumentError(f"expected {name}=... in the URL, got none; add it")
    return value


def _tags(stored: Stored, runs: Sequence[str]) -> dict[str, Tags]:
    """Return the tags of those of the runs that still exist; raise if none of them does."""
    found = stored.tags(runs)
    if not found:
        named = " or ".join(map(repr, runs))
        raise errors.NotFoundError(f"expected the name of a run, got {named}; see the route runs")
    return found


def _part(stored: Stored, run: str, part: str) -> ArraySeries:
    """Return the spectra of a part of the Hessian; raise if there are none."""
    series = stored.spectrum(run, part)
    if series is None or not len(series.steps):
        raise errors.NotFoundError(
            f"expected a part with a spectrum, got {part!r}; see the route runs"
        )
    return series


def _runs(stored: Stored, _: Request) -> payload.Json:
    """Return an overview of each of rankmon's runs."""
    overviews = [
        payload.overview(run, tags.scalars, tags.arrays, tags.texts, tags.latest, tags.hparams)
        for run, tags in sorted(stored.tags().items(), key=lambda item: natural_order(item[0]))
        if is_rankmons([*tags.scalars, *tags.arrays, *tags.texts])
    ]
    return {"runs": overviews}


def _scalars(stored: Stored, request: Request) -> payload.Json:
    """Return the scalars of some runs whose tags have one of some prefixes."""
    runs, prefixes = request.args.getlist("run"), request.args.getlist("prefix")
    if not runs or not prefixes:
        raise errors.InvalidArgumentError(
            "expected run=... and prefix=... in the URL, got only one of them or none; add both"
        )
    known = _tags(stored, runs)
    all_tags = {tag for tags in known.values() for tag in tags.scalars}
    read = stored.scalars(runs, [tag for tag in all_tags if tag.startswith(tuple(prefixes))])
    return {"runs": {run: payload.scalars(read.get(run, {}), prefixes) for run in known}}


def _counts(stored: Stored, request: Request) -> payload.Json:
    """Return the numbers of eigenvalues above each position of the cut's slider."""
    run = _argument(request, "run")
    tags = _tags(stored, [run])[run]
    spectra = {part: stored.spectrum(run, part) for part in payload.parts(tags.arrays)}
    weights = payload.weights(tags.arrays)
    spectra |= {name: stored.singular_values(run, name) for name in weights}
    cuts = stored.scalars([run], [f"tolerance/{name}" for name in spectra]).get(run, {})
    return payload.counts_of_run(
        {name: series for name, series in spectra.items() if series is not None},
        {tag.removeprefix("tolerance/"): series for tag, series in cuts.items()},
    )


def _times(stored: Stored, request: Request) -> payload.Json:
    """Return the time of each record of a run, in seconds since 1970."""
    run = _argument(request, "run")
    scalars = _tags(stored, [run])[run].scalars
    if not scalars:
        return {"steps": [], "values": []}
    tag = "loss" if "loss" in scalars else scalars[0]  # the loss is logged at each record
    return payload.scalars({tag: stored.times(run, tag)}, [tag])[tag]


def _spectrum(stored: Stored, request: Request) -> payload.Json:
    """Return the spectrum at the logged step nearest to a given one."""
    run, part, step = (_argument(request, name) for name in ("run", "part", "step"))
    if not _STEP.fullmatch(step):
        raise errors.InvalidArgumentError(
            f"expected step to be an integer, got {step!r}; pass a training step"
        )
    _tags(stored, [run])
    series = _part(stored, run, part)
    cut, zeros = f"tolerance/{part}", f"spectrum_zeros/{part}"
    scalars = stored.scalars([run], [cut, zeros]).get(run, {})
    negative = stored.negative(run, part)
    return payload.spectrum(series, scalars.get(cut), scalars.get(zeros), int(step), negative)


def _heatmap(stored: Stored, request: Request) -> payload.Json:
    """Return the spectra of all steps as a table."""
    run, part = _argument(request, "run"), _argument(request, "part")
    _tags(stored, [run])
    series = _part(stored, run, part)
    cut = f"tolerance/{part}"
    return payload.heatmap(series, stored.scalars([run], [cut]).get(run, {}).get(cut))


def _texts(stored: Stored, request: Request) -> payload.Json:
    run = _argument(request, "run")
    return payload.texts(stored.texts(run, _tags(stored, [run])[run].texts))
