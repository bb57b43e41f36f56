"""Test records of networks with many layers: TensorBoard gets arrays, every file all numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.util import tensor_util

from rankmon import Problem, RankMonitor, RankmonWarning, SeedsMonitor, read_jsonl
from rankmon._util.layers import by_family
from rankmon.alerts import RankBelow
from rankmon.writers.condense import MOST_LAYERS, condensed, layers_of_text, layers_text
from reading import legacy_events
from refusals import refused

DEPTH = 40
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((6, 4)), RNG.standard_normal((6, 4))


def deep(params, x):
    for kernel in params.values():
        x = jax.nn.tanh(x @ kernel)
    return x


def kernels(depth=DEPTH):
    # Zero-padded, so that the parameters' order is that of the layers.
    return {f"layer_{i:02}": RNG.standard_normal((4, 4)) for i in range(depth)}


PROBLEM = Problem(deep, loss="mse", inputs=X, targets=Y)


def scalars_of(layers, family="rank_weights"):
    return {f"{family}/layer_{i}": float(i) for i in range(layers)}


def test_up_to_the_limit_nothing_changes():
    scalars = {**scalars_of(MOST_LAYERS), "loss": 1.0}
    shown = condensed(scalars)
    assert (shown.scalars, shown.arrays, shown.layers) == (scalars, {}, {})


@pytest.mark.parametrize("name", ["a", "a/b c", "`", "a`|b", "\\", "1. `x`", "ä are those of"])
def test_the_text_of_the_layers_is_read_back(name):
    layers = {"layers/x": ("first", name), "layers/y/z": ("first", name), "layers/w": (name,)}
    places = {array: {n: at for at, n in enumerate(names)} for array, names in layers.items()}
    assert layers_of_text(layers_text(layers)) == places


def test_a_name_of_two_lines_moves_no_other_layer():
    assert layers_of_text(layers_text({"layers/x": ("a", "b\nc", "d")})) == {
        "layers/x": {"a": 0, "d": 2}
    }


def test_beyond_it_every_family_is_an_array():
    scalars = {
        **scalars_of(MOST_LAYERS + 1),
        **scalars_of(2, "log_abs_det"),
        **scalars_of(30, "rank_low/features"),
        "rank_low/H_L": 3.0,
        "stable_rank/H_o": 2.0,
        "layers/rank_weights/min": 0.0,
    }
    shown = condensed(scalars)
    assert shown.scalars.keys() == {"rank_low/H_L", "stable_rank/H_o", "layers/rank_weights/min"}
    assert {name: list(array) for name, array in shown.arrays.items()} == {
        "layers/rank_weights": list(range(25)),
        "layers/log_abs_det": [0, 1],
        "layers/rank_low/features": list(range(30)),
    }
    assert shown.layers["layers/log_abs_det"] == ("layer_0", "layer_1")


@pytest.mark.parametrize("count", [3, 40])
def test_globs_choose_the_layers_with_curves(count):
    shown = condensed(scalars_of(count), ["layer_0", "layer_1*"])
    chosen = {f"layer_{i}" for i in (0, 1, *range(10, 20)) if i < count}
    assert shown.scalars.keys() == {f"rank_weights/{layer}" for layer in chosen}
    assert len(shown.arrays["layers/rank_weights"]) == count
    assert not shown.unmatched
    assert condensed(scalars_of(count), ["head"]).unmatched


def test_forty_layers_have_at_most_120_curves(tmp_path):
    with RankMonitor(PROBLEM, logdir=tmp_path, every=1) as monitor:
        record = monitor(0, params := kernels())
    events = legacy_events(tmp_path)
    tags = events.Tags()["scalars"]
    assert len(tags) <= 120
    assert len(record.scalars) > 400  # nothing is left out of the record and the JSON lines
    assert read_jsonl(tmp_path / "rankmon.jsonl")[0].scalars == record.scalars
    (event,) = events.Tensors("layers/effective_rank/values")
    spectra = [np.linalg.svd(kernel, compute_uv=False) for kernel in params.values()]
    shares = [values / values.sum() for values in spectra]
    effective = [np.exp(-np.sum(share * np.log(share))) for share in shares]
    np.testing.assert_allclose(tensor_util.make_ndarray(event.tensor_proto), effective, rtol=1e-5)
    (lowest,) = events.Scalars("layers/effective_rank/min")
    assert lowest.value == pytest.approx(min(effective), rel=1e-5)
    (order,) = tensor_util.make_ndarray(events.Tensors("rankmon/layers")[0].tensor_proto).ravel()
    names = [line.split("`")[1] for line in order.decode().splitlines() if line[:1].isdigit()]
    assert names[:DEPTH] == list(params)


def test_chosen_layers_have_curves_in_every_attempt(tmp_path):
    for start in (0, 2):
        with RankMonitor(
            PROBLEM, logdir=tmp_path, every=1, probes=["weights"], layers="layer_3*"
        ) as monitor:
            for step in (start, start + 1):
                monitor(step, kernels())
    events = legacy_events(tmp_path)
    curves = {tag for tag in events.Tags()["scalars"] if tag.startswith("rank_weights/")}
    assert curves == {f"rank_weights/layer_{i}" for i in range(30, 40)}
    assert [event.step for event in events.Tensors("rankmon/layers")] == [0, 2]


def test_globs_without_a_layer_warn_once(tmp_path):
    with pytest.warns(RankmonWarning, match="expected layers to match") as caught:  # noqa: SIM117
        with RankMonitor(
            PROBLEM, logdir=tmp_path, every=1, probes=["weights"], layers=["head/*"]
        ) as monitor:
            for step in range(3):
                monitor(step, kernels(4))
    assert len(caught) == 1


@pytest.mark.parametrize("layers", [3, [1], {"a": 1}], ids=str)
def test_layers_that_are_no_globs_are_refused(layers):
    with refused(TypeError, "layers", "globs"):
        RankMonitor(PROBLEM, every=1, layers=layers)


def test_alerts_see_layers_without_curves(tmp_path):
    alarms = []
    with RankMonitor(
        PROBLEM,
        logdir=tmp_path,
        every=1,
        probes=["weights"],
        alerts=[RankBelow(0.5, action=alarms.append)],
    ) as monitor:
        monitor(0, params := kernels())
        monitor(1, params | {"layer_17": np.ones((4, 4))})
    assert [alarm.tag for alarm in alarms] == ["rank_weights/layer_17"]


def test_the_median_over_seeds_is_condensed_too(tmp_path):
    params = jax.tree.map(lambda kernel: jnp.stack([kernel, 2 * kernel]), kernels())
    with SeedsMonitor(PROBLEM, seeds=2, logdir=tmp_path, every=1, probes=["weights"]) as monitor:
        monitor(0, params)
    tags = legacy_events(tmp_path / "median").Tags()["scalars"]
    assert not any(tag.startswith("rank_weights/") for tag in tags)
    assert "layers/rank_weights/median/median" in tags


def test_blocks_of_the_hessian_are_families_by_part():
    tags = [
        "rank_block/H_L/W",
        "rank_low/block/H_o/a/b",
        "rank_high/columns/H_f/W",
        "rank_columns_theory/H_f/W",
    ]
    assert {family: [*layers] for family, layers in by_family(tags).items()} == {
        "rank_block/H_L": ["W"],
        "rank_low/block/H_o": ["a/b"],
        "rank_high/columns/H_f": ["W"],
        "rank_columns_theory/H_f": ["W"],
    }
