"""The PNG, read back pixel by pixel with Pillow: every curve in its color, nothing else changed."""

import io
import warnings

import matplotlib
import numpy as np
import pytest
from PIL import Image

from rankmon.pictures import LAYERS, PARTS, png_of
from rankmon_tensorboard.series import RunSeries
from test_summary import series

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


def test_each_part_in_its_color():
    for part, (_, color, *_) in PARTS.items():
        assert has_color(pixels(png_of([run_of()])), color)
        others = [other for other in PARTS if other != part]
        # The axes are black, as H_L is.
        assert part == "H_L" or not has_color(pixels(png_of([run_of(parts=others)])), color)


def test_weights_stand_beside_the_hessian_or_alone():
    weights = {"rank_weights__a": series([5, 4]), "rank_weights__b": series([3, 3])}
    both = pixels(png_of([run_of(**weights)]))
    alone = pixels(png_of([run_of(parts=(), **weights)]))
    for picture in (both, alone):
        assert has_color(picture, LAYERS[0])
    assert both.shape[1] > alone.shape[1]
    assert not has_color(alone, PARTS["H_o"][1])


def test_the_loss_where_there_is_one():
    assert has_color(pixels(png_of([run_of(loss=series([1, 1e-9]))])), "#9a9a9a")
    assert not has_color(pixels(png_of([run_of(loss=series([0, 0]))])), "#9a9a9a")


def test_a_panel_a_run():
    sizes = [pixels(png_of([run_of(f"seed_{i}") for i in range(n)])).shape for n in (2, 3, 4, 7)]
    assert [width for _, width, _ in sizes] == [1248, 1872, 1248, 1872]
    assert sizes[0][0] == sizes[1][0] < sizes[2][0] < sizes[3][0]


@pytest.mark.parametrize(
    "name", ["$x^2", "$\\nope$", "a <b> & c", "日本語", "with\nnewline", "\udcff"], ids=ascii
)
def test_names_are_shown_as_they_are(name):
    more = {f"rank_weights__{name}": series([3, 3])}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        png_of([run_of(name, **more)])
        png_of([run_of(name), run_of(name)])
    assert not caught


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
    assert png_of([RunSeries("run", scalars)]).startswith(b"\x89PNG")


def test_matplotlibs_own_settings_stay():
    before = dict(matplotlib.rcParams)
    png_of([run_of()])
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
    assert has_color(pixels(png_of([run])), PARTS["H_f"][1])
    band = [np.sum(np.any(pixels(png_of([one])) < 250, axis=-1)) for one in (run, narrow)]
    assert band[0] > 1.2 * band[1]
