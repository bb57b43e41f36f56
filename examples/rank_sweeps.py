"""Figures S8 to S19: the ranks of deep linear networks over sample size, width and depth.

At every point the ranks of H_L, H_o and H_f at initialization, by the exact reduction and by
automatic differentiation, are compared with the closed forms at the ranks of inputs and Omega.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import jax

import rankmon
from figure_plots import NAMES, save_rank_sweep
from figure_runs import Sweep, Task, images, parse_options, rank_scalars, show, source, swept
from figure_tables import ranks_at_own_cuts, report
from networks import affine, initial_weights, linear, with_biases

jax.config.update("jax_enable_x64", True)

CLASSES = 10


@dataclass(frozen=True)
class Setting:
    """The settings that the panels of one figure share."""

    dataset: str
    loss: str = "mse"
    initializer: str = "Glorot"
    bias: bool = False


@dataclass(frozen=True)
class Panel:
    """One sweep: the side of the images, and hidden widths and sample size at each value."""

    side: int
    hidden: Callable[[int], Sequence[int]]
    samples: Callable[[int], int]
    values: Sequence[int]


FIGURES = {
    "S8": Setting("cifar10"),
    "S9": Setting("fashion_mnist"),
    "S10": Setting("mnist"),
    "S11": Setting("cifar10", "cross_entropy"),
    "S12": Setting("fashion_mnist", "cross_entropy"),
    "S13": Setting("mnist", "cross_entropy"),
    "S14": Setting("cifar10", "cosh"),
    "S15": Setting("fashion_mnist", "cosh"),
    "S16": Setting("mnist", "cosh"),
    "S17": Setting("cifar10", initializer="uniform"),
    "S18": Setting("cifar10", initializer="orthogonal"),
    "S19": Setting("cifar10", bias=True),
}
PANELS = {
    "samples": Panel(8, lambda n: (50, 20, 20, 20), lambda n: n, (10, 40, 64, 65, 300)),
    "width": Panel(8, lambda m: (m, m), lambda m: 300, (5, 10, 15, 20, 25, 30, 35)),
    "depth": Panel(4, lambda h: (25,) * h, lambda h: 300, (1, 2, 3, 4, 5, 6)),
}
QUICK_PANELS = {
    "samples": Panel(3, lambda n: (6, 4, 5), lambda n: n, (6, 40)),
    "width": Panel(3, lambda m: (m, m), lambda m: 40, (12,)),
    "depth": Panel(3, lambda h: (5,) * h, lambda h: 40, (3,)),
}


def measure(task: Task):
    """Measure ranks by both engines at one point; predict them from the ranks of the data."""
    setting, options = FIGURES[task.figure], task.options
    panel = (QUICK_PANELS if options.quick else PANELS)[task.panel]
    x, labels = images(setting.dataset, panel.side, panel.samples(task.value), options)
    dims = (x.shape[1], *panel.hidden(task.value), CLASSES)
    key, _ = jax.random.split(jax.random.key(options.seed))  # the key of the committed pictures
    weights = initial_weights(key, dims, setting.initializer)
    network, params = (affine, with_biases(weights)) if setting.bias else (linear, weights)
    targets = labels if setting.loss == "cross_entropy" else jax.nn.one_hot(labels, CLASSES)
    problem = rankmon.Problem(network, loss=setting.loss, inputs=x, targets=targets)

    theory = rankmon.predicted_ranks(problem, params)
    p = rankmon.theory.number_of_parameters(dims, bias=setting.bias)
    scalars = {"r": theory.r, "d": x.shape[1], "p": p, "full_rank": float(theory.full_rank)}
    scalars["rank/Omega"] = theory.s.rank
    for suffix, engine in (("", "deep_linear"), ("_autodiff", "dense")):
        spectra = rankmon.hessian_spectra(problem, params, engine=engine)
        scalars |= rank_scalars(ranks_at_own_cuts(spectra), suffix)
    for part, predicted in theory.ranks.items():
        scalars[f"rank_theory/{part}"] = predicted
        scalars[f"rank_per_parameter/{part}"] = scalars[f"rank/{part}"] / p
    jax.clear_caches()  # no later point has these shapes
    return scalars, {}


def main() -> None:
    """Measure missing values, draw, and check every point."""
    options = parse_options(__doc__, "rank_sweeps", FIGURES)
    panels = QUICK_PANELS if options.quick else PANELS
    sweeps = {}
    for figure in options.figure:
        setting = FIGURES[figure]
        # Load once now, so that missing data fail here and not an hour later.
        images(setting.dataset, 4, 300, options)
        settings = asdict(setting) | source(setting.dataset, options) | {"cut": "own"}
        sweeps |= {(figure, name): Sweep(settings, panel.values) for name, panel in panels.items()}
    found = swept(sweeps, measure, options)
    for figure in options.figure:
        records = {name: found[figure, name] for name in panels}
        setting, png = FIGURES[figure], options.logdir / f"{figure}.png"
        data, loss = NAMES[setting.dataset], setting.loss.replace("_", " ")
        title = f"{options.heading} {figure}: {data}, {loss}, {setting.initializer} weights"
        save_rank_sweep(records, png, title=title + ", biases" * setting.bias)
        show(options.logdir / figure, png)
    report(found, options.logdir)


if __name__ == "__main__":
    main()
