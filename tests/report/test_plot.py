"""The picture, read back pixel by pixel with Pillow: every curve in its color, and its legend."""

import io
import re
import warnings

import matplotlib
import numpy as np
import pytest
from PIL import Image

from rankmon.report.plot import picture_of
from rankmon.report.style import LAYERS, PARTS
from rankmon.runs.series import RunSeries
from run_records import series

NAN = float("nan")


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def has_color(picture: np.ndarray, color: str) -> bool:
    """Whether a line of it is drawn; a few pixels are the edges of letters."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int(np.sum(np.all(picture == rgb, axis=-1))) > 150


def run_of(name: str = "run", parts=tuple(PARTS), **more) -> RunSeries:
    scalars = {f"rank/{part}": series([90 - 20 * i, 85 - 20 * i]) for i, part in enumerate(parts)}
    return RunSeries(name, scalars | {tag.replace("__", "/"): one for tag, one in more.items()})


@pytest.mark.parametrize(
    "parts", [("H_L", "H_o"), ("H_L", "H_f"), tuple(PARTS)], ids=["H_o", "H_f", "all"]
)
def test_each_part_in_its_color(parts):
    picture = pixels(picture_of([run_of(parts=parts)]))
    for part, (_, color, *_) in PARTS.items():
        assert has_color(picture, color) == (part in parts), part


def test_weights_stand_beside_the_hessian_or_alone():
    weights = {"rank_weights__a": series([5, 4]), "rank_weights__b": series([3, 3])}
    both = pixels(picture_of([run_of(**weights)]))
    alone = pixels(picture_of([run_of(parts=(), **weights)]))
    for picture in (both, alone):
        assert has_color(picture, LAYERS[0])
    assert both.shape[1] > alone.shape[1]
    assert not has_color(alone, PARTS["H_o"][1])


def test_the_loss_where_there_is_one():
    losses = (series([1, 1e-9]), series([0, 0]))
    pictures = [pixels(picture_of([run_of(parts=["H_o"], loss=loss)])) for loss in losses]
    assert [has_color(picture, "#9a9a9a") for picture in pictures] == [True, False]


NAMES = ["$x^2", "$\\nope$", "a <b> & c", "日本語", "with\nnewline", "\udcff"]


def quiet(runs):
    """A picture that nothing is warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return picture_of(runs)


def test_the_name_of_one_run_is_shown_as_it_is():
    assert quiet([RunSeries(" ".join(NAMES), {})])


def test_a_panel_a_run_with_its_name():
    runs = [RunSeries(name, {}) for name in NAMES]
    two, four, six = (pixels(quiet(runs[:n])).shape for n in (2, 4, 6))
    assert [two[1], four[1], six[1]] == [1248, 1248, 1872]
    assert two[0] < four[0] == six[0]


def test_names_of_weights_are_shown_as_they_are():
    weights = {f"rank_weights/{name}": series([3 + i]) for i, name in enumerate(NAMES)}
    assert quiet([RunSeries("run", weights)])


@pytest.mark.parametrize(
    "scalars",
    [
        {"rank/H_L": series([NAN, NAN])},
        {"rank/H_L": series([3])},
        {"rank/H_L": series([3, 4], [0, 1]), "rank_low/H_L": series([3]), "loss": series([NAN, 1])},
        {"rank_weights/W": series([NAN])},
        {"rank/H_L": series(range(9), [0, 1, 2, 4, 8, 16, 32, 64, 1024])},
        {"loss": series([1])},
        {},
    ],
    ids=lambda scalars: ", ".join(scalars) or "nothing",
)
def test_odd_runs(scalars):
    assert picture_of([RunSeries("run", scalars)]).startswith(b"\x89PNG")


@pytest.mark.parametrize("suffix", [".svg", ".pdf"])
def test_other_formats(suffix):
    run = run_of(loss=series([1, 2]), rank_theory__H_L=series([90, 85]))
    picture = picture_of([run], suffix=suffix)
    assert picture.startswith({".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])
    assert picture == picture_of([run], suffix=suffix)


def words(*runs: RunSeries) -> set[str]:
    """Return what an SVG of the runs says: Matplotlib keeps each text as a comment."""
    picture = picture_of(runs, suffix=".svg").decode()
    return {text.strip() for text in re.findall("<!--(.*?)-->", picture)}


LEGEND = ("$H_L$", "$H_o$", "rank at 10 to 0.1 times the cut", "theory",
          "loss (right axis)", "NaN")  # fmt: skip


@pytest.mark.parametrize(
    ("scalars", "entries"),
    [
        ({"rank/H_L": [9, 8]}, (0,)),
        ({"rank/H_L": [9, 8], "loss": [1, 2]}, (0, 4)),
        ({"rank/H_L": [9, 8], "rank_low/H_L": [9, 8], "rank_high/H_L": [9, 8]}, (0,)),
        ({"rank/H_L": [9, 8], "rank_low/H_L": [9, 7], "rank_high/H_L": [9, 8]}, (0, 2)),
        ({"rank/H_o": [9, 8], "rank_theory/H_o": [9, 8]}, (1, 3)),
        ({"rank/H_L": [9, NAN], "rank/H_o": [9, 8]}, (0, 1, 5)),
        ({"rank/H_L": [NAN, NAN]}, (5,)),
        ({"rank/H_L": [NAN, 5], "rank_low/H_L": [4, 5], "rank_high/H_L": [9, 5]}, (0, 2)),
    ],
    ids=["rank", "loss", "empty band", "band", "theory", "NaN", "only NaN", "bounds"],
)
def test_the_legend_has_what_is_drawn(scalars, entries):
    said = words(RunSeries("run", {tag: series(values) for tag, values in scalars.items()}))
    assert [name for name in LEGEND if name in said] == [LEGEND[i] for i in entries]


def test_every_line_of_weights_has_its_name_and_soft_ranks_their_panels():
    layers = [f"Dense_{i}/kernel" for i in range(8)]
    ranks = {f"rank_weights/{layer}": series([5, 5]) for layer in layers}
    soft = {f"effective_rank/{layer}": series([5, 2 + i]) for i, layer in enumerate(layers)}
    said = words(RunSeries("run", ranks | soft | {"effective_rank/H_L": series([9, 8])}))
    assert set(layers) <= said
    assert {"rank of weights", "effective rank of weights"} <= said
    assert "stable rank of weights" not in said
    many = words(RunSeries("run", {f"rank_weights/{i}": series([i]) for i in range(40)}))
    assert {"23", "and 16 more"} <= many


def test_a_hessian_of_some_parameters_says_so():
    card = "| fact | value |\n| Hessian of | only Dense\\_1/*, p = 650 |\n"
    run = run_of(rank_weights__a=series([5, 4]))
    said = words(RunSeries("run", run.scalars, texts={"rankmon/card": {0: card}}))
    assert "Hessian: only Dense_1/*, p = 650" in said
    assert "Hessian" in words(run)


def test_the_band_over_batches_is_no_margin_of_the_cut():
    tags = {"rank/H_L": [9, 8], "rank_low/H_L": [9, 8], "rank_high/H_L": [9, 8]}
    ends = {"batches/rank/H_L/low": [7, 8], "batches/rank/H_L/high": [9, 8]}
    said = words(RunSeries("run", {tag: series(one) for tag, one in {**tags, **ends}.items()}))
    assert "range over seeds or probe batches" in said
    assert "rank at 10 to 0.1 times the cut" not in said


def test_a_run_of_nan_says_so():
    lost = RunSeries("lost", {"rank/H_L": series([NAN, NAN])})
    assert "NaN at every step" in words(lost)
    assert "NaN at every step" not in words(RunSeries("run", {"rank/H_L": series([3, NAN])}))


def test_matplotlibs_own_settings_stay():
    before = dict(matplotlib.rcParams)
    picture_of([RunSeries("run", {})])
    assert dict(matplotlib.rcParams) == before


def test_medians_over_seeds_are_drawn_with_their_range():
    tag = "rank/H_f"
    run = RunSeries(
        "median",
        {
            f"{tag}/median": series([5, 5]),
            f"{tag}/low": series([2, 2]),
            f"{tag}/high": series([8, 8]),
        },
    )
    narrow = RunSeries("median", {**run.scalars, f"{tag}/low": series([5, 5])})
    pictures = [pixels(picture_of([one])) for one in (run, narrow)]
    assert has_color(pictures[0], PARTS["H_f"][1])
    band = [np.sum(np.any(picture < 250, axis=-1)) for picture in pictures]
    assert band[0] > 1.2 * band[1]


def ink(png: bytes, color: str) -> np.ndarray:
    """Where a picture has exactly this color."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return np.all(pixels(png) == rgb, axis=-1)


@pytest.mark.parametrize("steps", [1, 3], ids=["one step", "three steps"])
def test_a_rank_of_which_bounds_are_known_is_a_band_and_no_line(steps):
    color = PARTS["H_f"][1]
    bounds = {
        "rank_low/H_f": series([100] * steps),
        "rank_high/H_f": series([900] * steps),
        "rank/H_L": series([1000] * steps),
    }
    unknown, known = (
        ink(picture_of([RunSeries("run", bounds | {"rank/H_f": series([rank] * steps)})]), color)
        for rank in (NAN, 500.0)
    )
    # Bars from 100 to 900 of the axis, which ends a little above 1,000; a line at 500 otherwise.
    # The legend is below.
    height = len(unknown)
    extents = [
        np.ptp(np.flatnonzero(found[: 6 * height // 7].any(1))) for found in (unknown, known)
    ]
    assert 0.5 * height < extents[0] < 0.8 * height
    assert extents[1] < 0.1 * height
