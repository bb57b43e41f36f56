"""Test the Ranks tab's routes in TensorBoard's own application: answers, refusals, and safety."""

import base64
import html
import json
import re
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard import program
from tensorboard.backend.application import TensorBoardWSGIApp
from tensorboard.backend.event_processing.data_ingester import LocalDataIngester
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.data.provider import DataProvider, ScalarDatum, ScalarTimeSeries, TensorDatum
from tensorboard.plugins.core.core_plugin import CorePluginLoader
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto
from werkzeug.test import Client

import rankmon.tensorboard
from rankmon import Problem, RankMonitor, Record, TensorBoardWriter
from rankmon.tensorboard.assets import static_files
from rankmon.tensorboard.plugin import RanksLoader
from refusals import assert_explains
from run_records import NAMES as RUN_NAMES
from run_records import record, small_record

STATIC = Path(rankmon.tensorboard.__file__).parent / "static"
PREFIX = "/data/plugin/ranks/"
ALERT = "<img src=x onerror=alert(1)>"
NAMES = [*RUN_NAMES, ALERT, "100%25 +a&b=c?d#e", "back\\slash", "..a/...", " "]


def configured(logdir: Path, *flags: str):
    """TensorBoard's flags, with what the plugin makes of them."""
    board = program.TensorBoard([CorePluginLoader(), RanksLoader()])
    own = ("--reload_interval=0", "--reload_task=blocking")
    board.configure(("tensorboard", "--logdir", str(logdir), *own, *flags))
    return board.flags


def served(logdir: Path, *flags: str) -> Client:
    """The tab over all that TensorBoard reads in the folder now."""
    options = configured(logdir, *flags)
    ingester = LocalDataIngester(options)
    ingester.start()
    return Client(TensorBoardWSGIApp(options, [RanksLoader()], ingester.data_provider))


def answer(client: Client, route: str, **query):
    """What a data route gives, as strict JSON."""
    response = client.get(PREFIX + route, query_string=query)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/json"

    def refuse(word: str):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(response.text, parse_constant=refuse)


def floats(text: str) -> list[float]:
    return np.frombuffer(base64.b64decode(text), "<f4").tolist()


def counted(part, position: int) -> list[int]:
    """One row of a table of counts, by the slider's position."""
    table = np.frombuffer(base64.b64decode(part["counts"]), f"<u{part['bits'] // 8}")
    return table.reshape(161, len(part["steps"]))[position].tolist()


def write(folder: Path, *records: Record) -> None:
    with TensorBoardWriter(folder) as writer:
        for one in records:
            writer.write(one)


# What the routes give


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The tab over a monitor's run, and the records that the monitor gave."""
    folder = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    problem = Problem(
        lambda w, x: jnp.tanh(x @ w["a/b"]) @ w["c"],
        loss="mse",
        inputs=rng.standard_normal((6, 3)),
        targets=rng.standard_normal((6, 2)),
    )
    first, second = rng.standard_normal((3, 3)), rng.standard_normal((3, 2))
    records = {}
    with RankMonitor(problem, logdir=folder / "mine", every=5) as monitor:
        for step in range(16):
            one = monitor(step, {"a/b": jnp.asarray(first * (1 + step)), "c": second})
            if one is not None:
                records[step] = one
    return served(folder), records


def test_runs_have_what_was_logged(trained):
    client, records = trained
    (run,) = answer(client, "runs")["runs"]
    assert run["name"] == "mine"
    assert run["scalars"] == sorted(records[0].scalars)
    assert run["spectra"] == ["H_L", "H_f", "H_f_fixed", "H_o"]
    assert {f"spectrum/{part}" for part in run["spectra"]} < records[0].arrays.keys()
    assert "H_L" in run["spectra"]
    assert run["texts"] == ["rankmon/card"]


def test_scalars_are_those_written(trained):
    client, records = trained
    found = answer(client, "scalars", run="mine", prefix=["rank", "loss"])["runs"]["mine"]
    expected = {tag for tag in records[0].scalars if tag.startswith(("rank", "loss"))}
    assert set(found) == expected
    assert {"rank_weights/a/b", "rank/H_f_fixed", "loss"} <= expected
    for tag, series in found.items():
        assert series["steps"] == list(records)
        written = [np.float32(one.scalars[tag]) for one in records.values()]
        np.testing.assert_array_equal([float(value) for value in series["values"]], written)


def test_counts_are_those_of_the_records(trained):
    client, records = trained
    parts = answer(client, "counts", run="mine")["parts"]
    assert sorted(parts) == ["H_L", "H_f", "H_f_fixed", "H_o"]
    for part, table in parts.items():
        assert table["steps"] == list(records)
        for position in (0, 60, 70, 90, 110, 160):
            assert counted(table, position) == [
                int(np.sum(10 ** one.arrays[f"spectrum/{part}"] > one.scalars[f"tolerance/{part}"]
                           * 10 ** ((position - 80) / 10)))
                for one in records.values()
            ], (part, position)  # fmt: skip


def test_spectra_are_those_written(trained):
    client, records = trained
    found = answer(client, "spectrum", run="mine", part="H_o", step=11)
    one = records[10]
    assert found["step"] == 10
    assert floats(found["values"]) == one.arrays["spectrum/H_o"].astype(np.float32).tolist()
    assert found["cut"] == pytest.approx(np.log10(one.scalars["tolerance/H_o"]), abs=1e-6)
    assert found["zeros"] == one.scalars["spectrum_zeros/H_o"]
    below = answer(client, "spectrum", run="mine", part="H_f", step=10)["negative"]
    assert floats(below) == one.arrays["spectrum_negative/H_f"].astype(np.float32).tolist() != []


def test_the_heat_map_is_the_spectra_over_steps(trained):
    client, records = trained
    found = answer(client, "heatmap", run="mine", part="H_L")
    assert found["steps"] == found["logged"] == list(records)
    table = np.reshape(floats(found["values"]), (len(records), -1))
    for row, cut, one in zip(table, found["cut"], records.values(), strict=True):
        written = one.arrays["spectrum/H_L"].astype(np.float32)
        np.testing.assert_array_equal(row[: len(written)], written)
        assert np.isnan(row[len(written) :]).all()
        assert cut == pytest.approx(np.log10(one.scalars["tolerance/H_L"]), abs=1e-6)


def test_the_card_comes_as_html(trained):
    client, records = trained
    (card,) = answer(client, "texts", run="mine")["rankmon/card"]
    assert card["step"] == 0
    assert card["html"].startswith("<")
    shown = re.findall(r"\w+", html.unescape(re.sub("<[^>]*>", " ", card["html"])))
    assert len(shown) > 20
    written = re.sub(r"\\(?=\W|_)", "", records[0].texts["rankmon/card"])  # Markdown's escapes
    assert set(shown) <= set(re.findall(r"\w+", html.unescape(written)))


def test_the_tab_is_in_tensorboards_list(trained):
    client, _ = trained
    listed = client.get("/data/plugins_listing").get_json()["ranks"]
    assert (listed["tab_name"], listed["enabled"]) == ("Ranks", True)
    module = listed["loading_mechanism"]["module_path"]
    assert module == f"{PREFIX}static/index.js"
    assert client.get(module).status_code == 200


def test_files_are_served_as_they_are(trained):
    client, _ = trained
    types = {
        ".js": "text/javascript",
        ".css": "text/css",
        ".txt": "text/plain",
        ".md": "text/plain",
    }
    found = {path for path in STATIC.rglob("*") if path.is_file()}
    assert {STATIC / name for name in static_files()} == found
    assert {STATIC / "recount.js", STATIC / "vendor" / "LICENSE.txt"} <= found
    for path in found:
        response = client.get(f"{PREFIX}static/{path.relative_to(STATIC).as_posix()}")
        assert response.status_code == 200
        assert response.data == path.read_bytes()
        assert response.headers["Content-Type"] == f"{types[path.suffix]}; charset=utf-8"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_scripts_take_less_than_250_kb():
    assert sum(path.stat().st_size for path in STATIC.rglob("*.js")) < 250_000


def test_a_prefix_of_tensorboards_addresses(tmp_path):
    write(tmp_path / "a", record(0))
    client = served(tmp_path, "--path_prefix=/x/y")
    assert client.get(f"/x/y{PREFIX}runs").get_json()["runs"][0]["name"] == "a"
    assert client.get(f"/x/y{PREFIX}static/recount.js").status_code == 200


# What they refuse

ROUTES = ["runs", "scalars?run=mine&prefix=rank/", "counts?run=mine",
          "spectrum?run=mine&part=H_L&step=0", "heatmap?run=mine&part=H_L",
          "texts?run=mine", "times?run=mine", "guide", "static/recount.js"]  # fmt: skip


@pytest.mark.parametrize("route", ROUTES)
def test_routes_answer_get_and_head_only(trained, route):
    client, _ = trained
    got, head = client.get(PREFIX + route), client.head(PREFIX + route)
    assert (got.status_code, head.status_code, head.data) == (200, 200, b"")
    for name in ("Content-Type", "Content-Length"):
        assert head.headers[name] == got.headers[name]
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        refused = client.open(PREFIX + route, method=method)
        assert refused.status_code == 405
        assert refused.headers["Allow"] == "GET, HEAD"
        assert refused.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert_explains(refused.text, "GET", method)


@pytest.mark.parametrize(
    ("route", "status", "key"),
    [
        ("scalars", 400, "prefix="),
        ("scalars?run=mine", 400, "prefix="),
        ("scalars?prefix=rank/", 400, "prefix="),
        ("scalars?run=none&prefix=rank/", 404, "'none'"),
        ("counts", 400, "run="),
        ("counts?run=none", 404, "'none'"),
        ("counts?run=", 404, "''"),
        ("spectrum", 400, "run="),
        ("spectrum?run=mine&step=0", 400, "part="),
        ("spectrum?run=mine&part=H_L", 400, "step="),
        ("spectrum?run=none&part=H_L&step=0", 404, "'none'"),
        ("spectrum?run=mine&part=H&step=0", 404, "'H'"),
        ("heatmap?run=mine", 400, "part="),
        ("heatmap?run=none&part=H_L", 404, "'none'"),
        ("heatmap?run=mine&part=", 404, "''"),
        ("texts", 400, "run="),
        ("texts?run=none", 404, "'none'"),
        ("texts?run=a%0Ab", 404, r"'a\nb'"),
        (f"texts?run={ALERT}", 404, f"'{ALERT}'"),
    ],
)
def test_what_is_missing_or_unknown_is_named(trained, route, status, key):
    response = trained[0].get(PREFIX + route)
    assert response.status_code == status
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert_explains(response.text, key)
    assert len(response.text.splitlines()) == 1


@pytest.mark.parametrize("step", ["", "x", "1.5", "--5", "-", "1e3", "NaN", "0x1", "²", "9" * 30])
def test_a_step_that_is_none_is_named(trained, step):
    response = trained[0].get(f"{PREFIX}spectrum?run=mine&part=H_L&step={step}")
    assert response.status_code == 400
    assert_explains(response.text, "step", "integer", repr(step))


@pytest.mark.parametrize(("step", "nearest"), [("-7", 0), ("9" * 18, 15), ("-" + "9" * 18, 0)])
def test_steps_beyond_those_logged(trained, step, nearest):
    assert answer(trained[0], "spectrum", run="mine", part="H_L", step=step)["step"] == nearest


def test_of_runs_asked_for_those_that_are_there_are_given(trained):
    found = answer(trained[0], "scalars", run=["gone", "mine"], prefix="rank/H_L")["runs"]
    assert list(found) == ["mine"]
    assert answer(trained[0], "scalars", run="mine", prefix="none/")["runs"] == {"mine": {}}


@pytest.mark.parametrize(
    "path",
    [
        "static/../plugin.py",
        "static/%2e%2e/plugin.py",
        "static/..%2fplugin.py",
        "static/%2e%2e%2fplugin.py",
        "static/..%5cplugin.py",
        "static/vendor/../../plugin.py",
        "static/vendor/../recount.js",
        "static//etc/passwd",
        "static/%2fetc%2fpasswd",
        "static/../../../../../../../../etc/passwd",
        "static/recount.js%00.txt",
        "static/",
        "static",
        "static/vendor",
        "static/none.js",
        "plugin.py",
        "",
    ],
)
def test_nothing_else_is_served(trained, path):
    assert trained[0].get(PREFIX + path).status_code == 404


# Names


def test_names_of_runs_tags_and_parts_travel_unchanged(tmp_path):
    for name in NAMES:
        logged = record(3, **{f"rank_weights/{name}": 2.0, f"tolerance/{name}": 1.0})
        write(
            tmp_path / name, Record(**vars(logged) | {"arrays": {f"spectrum/{name}": np.ones(4)}})
        )
    client = served(tmp_path)
    runs = {run["name"]: run for run in answer(client, "runs")["runs"]}
    assert sorted(runs) == sorted(NAMES)
    for name, run in runs.items():
        layer = f"rank_weights/{name}"
        assert layer in run["scalars"]
        assert run["spectra"] == [name]
        found = answer(client, "scalars", run=name, prefix=layer)["runs"]
        assert found == {name: {layer: {"steps": [3], "values": [2.0]}}}
        assert counted(answer(client, "counts", run=name)["parts"][name], 80) == [4]
        assert answer(client, "spectrum", run=name, part=name, step=0)["step"] == 3
        assert answer(client, "heatmap", run=name, part=name)["indices"] == [0, 1, 2, 3]
        assert list(answer(client, "texts", run=name)) == ["rankmon/alerts"]
    all_at_once = answer(client, "scalars", run=NAMES, prefix="loss")["runs"]
    assert sorted(all_at_once) == sorted(NAMES)


def test_the_time_of_each_record(tmp_path):
    write(tmp_path / "run", *(record(step) for step in (0, 5, 7)))
    client = served(tmp_path)
    times = answer(client, "times", run="run")
    assert times == {"steps": [0, 5, 7], "values": [1.7e9, 1.7e9 + 5, 1.7e9 + 7]}
    (overview,) = answer(client, "runs")["runs"]
    assert overview["latest"] == 1.7e9 + 7


def test_layers_without_curves_have_theirs_here(tmp_path):
    rng = np.random.default_rng(4)
    layers = [f"block_{i}/`k|" for i in range(30)]
    ranks = {
        step: dict(zip(layers, rng.integers(0, 9, 30).tolist(), strict=True)) for step in (0, 3)
    }
    write(
        tmp_path / "deep",
        *(
            record(step, **{f"rank_weights/{layer}": rank for layer, rank in of.items()})
            for step, of in ranks.items()
        ),
    )
    client = served(tmp_path)
    (overview,) = answer(client, "runs")["runs"]
    assert {f"rank_weights/{layer}" for layer in layers} <= set(overview["scalars"])
    found = answer(client, "scalars", run="deep", prefix="rank_weights/")["runs"]["deep"]
    assert found == {
        f"rank_weights/{layer}": {"steps": [0, 3], "values": [ranks[0][layer], ranks[3][layer]]}
        for layer in layers
    }


def test_the_guide_has_charts_and_meanings(tmp_path):
    (tmp_path / "logs").mkdir()
    guide = answer(served(tmp_path / "logs"), "guide")
    assert "Neural collapse" in [section["title"] for section in guide["sections"]]
    for section in guide["sections"]:
        for one in section["charts"]:
            assert ("margin" in one) != ("tags" in one)
            assert all(re.compile(tag) for tag in one.get("tags", ()))
    for tag, unit in (("rank_gradient/a/b", "count"), ("loss", "unit of the loss")):
        patterns = [
            e for e in guide["legend"] if any(re.fullmatch(p, tag, re.S) for p in e["tags"])
        ]
        assert [entry["unit"] for entry in patterns] == [unit]
    assert not any("`" in entry["meaning"] for entry in guide["legend"])


def test_runs_come_in_natural_order(tmp_path):
    for name in ("seed_10", "seed_2", "²", "1", "median", "seed_1"):
        write(tmp_path / name, record(0))
    names = [run["name"] for run in answer(served(tmp_path), "runs")["runs"]]
    assert names == ["1", "median", "seed_1", "seed_2", "seed_10", "²"]


def test_runs_have_their_hyperparameters(tmp_path):
    settings = {"lr": 0.1, "net": "mlp", "fixed": True, "parameters": 8}
    write(tmp_path / "with", replace(record(0), hparams=settings))
    write(tmp_path / "without", record(0))
    found = {run["name"]: run["hparams"] for run in answer(served(tmp_path), "runs")["runs"]}
    assert found == {"with": settings, "without": {}}


@pytest.mark.parametrize("content", [b"", b"\xff"], ids=["empty", "broken"])
def test_hyperparameters_that_cannot_be_read_are_left_out(tmp_path, content):
    write(tmp_path, record(0))
    start = tensor("_hparams_/session_start_info", "hparams", b"")
    start.metadata.plugin_data.content = content
    write_raw(tmp_path, start)
    (run,) = answer(served(tmp_path), "runs")["runs"]
    assert run["hparams"] == {}


# Runs that lack something


def write_raw(folder: Path, *values: Summary.Value, step: int = 0) -> None:
    """Events as TensorBoard's own writer writes them."""
    writer = EventFileWriter(str(folder))
    writer.add_event(Event(step=step, wall_time=1.7e9, summary=Summary(value=values)))
    writer.close()


def tensor(tag: str, plugin: str, content) -> Summary.Value:
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin))
    metadata.data_class = 2  # tensors
    return Summary.Value(tag=tag, metadata=metadata, tensor=make_tensor_proto(content))


def test_an_empty_folder_has_no_runs(tmp_path):
    client = served(tmp_path)
    assert answer(client, "runs") == {"runs": []}
    assert client.get("/data/plugins_listing").get_json()["ranks"]["enabled"]
    assert client.get(f"{PREFIX}counts?run=.").status_code == 404


def test_runs_of_other_programs_are_left_out(tmp_path):
    write_raw(tmp_path / "other", Summary.Value(tag="loss", simple_value=1.0))
    write_raw(tmp_path / "texts", tensor("notes", "text", b"hello"))
    write(tmp_path / "mine", record(0))
    client = served(tmp_path)
    assert [run["name"] for run in answer(client, "runs")["runs"]] == ["mine"]
    assert answer(client, "counts", run="other")["parts"] == {}
    assert answer(client, "texts", run="texts") == {}
    assert client.get(f"{PREFIX}heatmap?run=other&part=H_L").status_code == 404


def test_a_run_written_by_tensorboards_own_writer(tmp_path):
    write_raw(
        tmp_path,
        Summary.Value(tag="rank/H_L", simple_value=2.0),
        Summary.Value(tag="tolerance/H_L", simple_value=0.01),
        Summary.Value(tag="gap/H_L", simple_value=float("inf")),
        tensor("spectrum/H_L/values", "rankmon", np.array([1.5, 0.5, -6.0], np.float32)),
        tensor("spectrum/flat/values", "rankmon", np.zeros((2, 2), np.float32)),
        tensor("spectrum/none/values", "rankmon", np.zeros(0, np.float32)),
        tensor("rankmon/card", "text", f"# läuft {ALERT}".encode()),
        tensor("rankmon/alerts", "text", b"\xff"),
        tensor("rankmon/other", "text", b"of a later version"),
        step=7,
    )
    client = served(tmp_path)
    (run,) = answer(client, "runs")["runs"]
    assert (run["name"], run["texts"]) == (".", ["rankmon/alerts", "rankmon/card"])
    gap = answer(client, "scalars", run=".", prefix="gap/")["runs"]["."]["gap/H_L"]
    assert gap == {"steps": [7], "values": ["Infinity"]}
    parts = answer(client, "counts", run=".")["parts"]
    assert list(parts) == ["H_L"]
    assert [counted(parts["H_L"], at) for at in (10, 39, 80, 110, 120)] == [[3], [3], [2], [1], [0]]
    found = answer(client, "spectrum", run=".", part="H_L", step=0)
    assert floats(found["values"]) == [1.5, 0.5, -6.0]
    assert found["zeros"] is None
    assert answer(client, "heatmap", run=".", part="none")["indices"] == []
    assert client.get(f"{PREFIX}heatmap?run=.&part=flat").status_code == 404
    texts = answer(client, "texts", run=".")
    assert "läuft" in texts["rankmon/card"][0]["html"]
    assert "onerror" not in texts["rankmon/card"][0]["html"].replace("&lt;img", "")


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def replaced(path: Path) -> None:
    path.write_bytes(b"this is no event file " * 100)


@pytest.mark.parametrize(("harm", "left"), [(torn, 4), (damaged, 2), (emptied, 0), (replaced, 0)])
def test_a_broken_file_breaks_nothing(tmp_path, harm, left):
    for name in ("broken", "whole"):
        write(tmp_path / name, *(record(step) for step in range(5)))
    harm(next((tmp_path / "broken").glob("*tfevents*")))
    client = served(tmp_path)
    names = ["broken", "whole"] if left else ["whole"]
    assert [run["name"] for run in answer(client, "runs")["runs"]] == names
    for name in names:
        steps = list(range(left if name == "broken" else 5))
        scalars = answer(client, "scalars", run=name, prefix="rank/")["runs"][name]
        assert scalars["rank/H_L"]["steps"] == steps
        assert answer(client, "heatmap", run=name, part="H_L")["logged"] == steps


def test_a_step_that_was_written_twice_counts_once_as_last_written(tmp_path):
    for rank in (5.0, 7.0):
        write_raw(
            tmp_path,
            Summary.Value(tag="rank/H_L", simple_value=rank),
            tensor("spectrum/H_L/values", "rankmon", np.full(int(rank), 1.0, np.float32)),
            step=3,
        )
    client = served(tmp_path)
    found = answer(client, "scalars", run=".", prefix="rank/")["runs"]["."]["rank/H_L"]
    assert found == {"steps": [3], "values": [7.0]}
    assert floats(answer(client, "spectrum", run=".", part="H_L", step=3)["values"]) == [1.0] * 7


# How many samples TensorBoard keeps


def test_what_the_plugin_asks_for(tmp_path):
    assert configured(tmp_path).samples_per_plugin == {"rankmon": 1000, "text": 100}


def test_what_the_user_says_holds(tmp_path):
    flags = configured(tmp_path, "--samples_per_plugin=rankmon=5,images=3,scalars=0")
    expected = {"rankmon": 5, "images": 3, "scalars": 0, "text": 100}
    assert flags.samples_per_plugin == expected


def test_all_that_tensorboard_keeps_is_given(tmp_path):
    write(tmp_path, *(small_record(step) for step in range(1010)))
    by_default, by_wish = (served(tmp_path, *f) for f in ([], ["--samples_per_plugin=rankmon=0"]))
    kept = answer(by_default, "heatmap", run=".", part="H_L")["logged"]
    shown = answer(by_default, "scalars", run=".", prefix="loss")["runs"]["."]["loss"]["steps"]
    assert kept == shown  # TensorBoard thins both alike, so that each spectrum has its cut
    assert (len(kept), kept[-1]) == (1000, 1009)
    alerts = answer(by_default, "texts", run=".")["rankmon/alerts"]
    assert (len(alerts), alerts[-1]["step"]) == (100, 1009)
    everything = answer(by_wish, "heatmap", run=".", part="H_L")["logged"]
    assert everything == list(range(1010))


# What they never do


class InMemory(DataProvider):
    """A data provider with no folder at all, which notes what it is asked."""

    def __init__(self, scalars: Mapping, tensors: Mapping) -> None:
        self.data = {"scalars": scalars, **tensors}
        self.asked: list[tuple[str, str]] = []

    def found(self, how: str, plugin_name: str, run_tag_filter):
        self.asked.append((how, plugin_name))
        runs, tags = run_tag_filter.runs, run_tag_filter.tags
        return {
            run: {tag: data for tag, data in by_tag.items() if tags is None or tag in tags}
            for run, by_tag in self.data.get(plugin_name, {}).items()
            if runs is None or run in runs
        }

    def list_scalars(self, ctx=None, *, experiment_id, plugin_name, run_tag_filter=None):
        found = self.found("list_scalars", plugin_name, run_tag_filter)
        return {
            run: {tag: ScalarTimeSeries(
                max_step=data[-1].step,
                max_wall_time=data[-1].wall_time,
                plugin_content=b"",
                description="",
                display_name=tag,
            ) for tag, data in tags.items()}
            for run, tags in found.items()
        }  # fmt: skip

    def list_tensors(self, ctx=None, *, experiment_id, plugin_name, run_tag_filter=None):
        return self.found("list_tensors", plugin_name, run_tag_filter)

    def read_scalars(self, ctx=None, *, experiment_id, plugin_name, downsample, run_tag_filter):
        return self.found("read_scalars", plugin_name, run_tag_filter)

    def read_tensors(self, ctx=None, *, experiment_id, plugin_name, downsample, run_tag_filter):
        return self.found("read_tensors", plugin_name, run_tag_filter)

    def _unused(self, *_, **__):
        raise AssertionError("the tab has no use for this")

    experiment_metadata = list_plugins = list_runs = read_last_scalars = _unused
    list_blob_sequences = read_blob_sequences = read_blob = _unused


@pytest.fixture
def in_memory():
    spectrum = np.array([1.0, -4.0], np.float32)
    return InMemory(
        {"r": {t: [ScalarDatum(2, 0.0, 0.1)] for t in ("rank/H_L", "tolerance/H_L")}},
        {
            "rankmon": {"r": {"spectrum/H_L/values": [TensorDatum(2, 0.0, spectrum)]}},
            "text": {"r": {"rankmon/card": [TensorDatum(2, 0.0, np.array([b"a card"], object))]}},
        },
    )


@contextmanager
def opened_files():
    """The names of the files that are opened meanwhile."""
    names: list[str] = []
    is_watching = True

    def note(event: str, arguments: tuple) -> None:
        if is_watching and event in ("open", "os.listdir", "os.scandir"):
            names.append(str(arguments[0]))

    sys.addaudithook(note)  # stays for good
    try:
        yield names
    finally:
        is_watching = False


def test_data_come_from_the_provider_alone(tmp_path, in_memory):
    flags = configured(tmp_path / "missing")
    client = Client(TensorBoardWSGIApp(flags, [RanksLoader()], in_memory))
    queries = [route.replace("mine", "r") for route in ROUTES]
    for query in queries:  # what is imported at the first request
        assert client.get(PREFIX + query).status_code == 200
    in_memory.asked.clear()
    with opened_files() as names:
        for query in queries:
            assert client.get(PREFIX + query).status_code == 200
    assert names == [str(STATIC / "recount.js")]
    assert set(in_memory.asked) == {
        ("list_scalars", "scalars"),
        ("list_tensors", "rankmon"),
        ("list_tensors", "text"),
        ("list_tensors", "hparams"),
        ("read_scalars", "scalars"),
        ("read_tensors", "rankmon"),
        ("read_tensors", "text"),
    }
    assert counted(answer(client, "counts", run="r")["parts"]["H_L"], 80) == [1]
