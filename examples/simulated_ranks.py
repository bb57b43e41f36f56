"""Figures S3 and S20: rank/#params over depth and width, from the closed forms alone.

S3: M = 1000, d = r = 784, K = 100, with and without biases. S20: r = 2352, four layers over width,
and hidden width 5000 over depth; the paper does not state K, which is 10 here, as for CIFAR-10.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from figure_plots import THREE, save_simulated
from figure_runs import Sweep, Task, parse_options, show, swept
from plotting import PARTS, check
from rankmon.theory import rank_per_parameter


@dataclass(frozen=True)
class Family:
    """One curve: the widths of the network as a function of the value on the axis."""

    axis: str
    values: Sequence[int]
    dims: Callable[[int], Sequence[int]]
    bias: bool = False


DEPTHS = ("hidden layers", range(1, 51))
FIGURES = {
    "S3": {
        "without biases": Family(*DEPTHS, lambda h: (784, *[1000] * h, 100)),
        "with biases": Family(*DEPTHS, lambda h: (784, *[1000] * h, 100), bias=True),
    },
    "S20": {
        "width": Family("hidden width $M$", range(20, 5001, 20), lambda m: (2352, m, m, m, 10)),
        "depth": Family(*DEPTHS, lambda h: (2352, *[5000] * h, 10)),
    },
}
TITLES = {
    "S3": ("$H_L$ over depth; $M = 1000$, $d = r = 784$, $K = 100$", "linear"),
    "S20": ("four layers over width, and $M = 5000$ over depth; $r = 2352$, $K = 10$", "log"),
}


def measure(task: Task):
    """Compute rank/#params of H_L, H_o and H_f."""
    family = FIGURES[task.figure][task.panel]
    shares = rank_per_parameter(family.dims(task.value), bias=family.bias)
    return {f"rank_per_parameter/{part}": share for part, share in shares.items()}, {}


def main() -> None:
    """Evaluate the formulas, draw, and check the statements of the figures."""
    options = parse_options(__doc__, "simulated_ranks", FIGURES)
    options.jobs = 1  # formulas take less time than a process
    found = swept(
        {
            (figure, name): Sweep({"dims": family.dims(3)}, family.values)
            for figure in options.figure
            for name, family in FIGURES[figure].items()
        },
        measure,
        options,
    )

    def curve(figure: str, panel: str, part: str) -> list[float]:
        return [r.scalars[f"rank_per_parameter/{part}"] for r in found[figure, panel]]

    claims = {}
    for figure in options.figure:
        families = FIGURES[figure]
        if figure == "S3":
            curves = {name: curve(figure, name, "H_L") for name in families}
            lost = [low - high for high, low in zip(*curves.values(), strict=True)]
            panels = [(*DEPTHS, curves), (*DEPTHS, {"with biases minus without": lost})]
            claims["S3: biases lower rank/#params of H_L at every depth"] = max(lost) < 0
        else:
            panels = [
                (family.axis, family.values, {PARTS[p][0]: curve(figure, name, p) for p in THREE})
                for name, family in families.items()
            ]
            outer, functional = (curve(figure, "width", part) for part in ("H_o", "H_f"))
            leads = [f > o for f, o in zip(functional, outer, strict=True)]
            crossing = families["width"].values[leads.index(True)]
            claims[f"S20: H_o leads at first, H_f from M = {crossing} on"] = not leads[
                0
            ] and leads == sorted(leads)
        png = options.logdir / f"{figure}.png"
        title, scale = TITLES[figure]
        save_simulated(panels, png, title=f"Figure {figure}: {title}", scale=scale)
        show(options.logdir / figure, png)
    check(claims)


if __name__ == "__main__":
    main()
