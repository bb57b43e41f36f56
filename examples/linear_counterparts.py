"""Figures S30 to S34: spectra of a linear and a non-linear network with the same weights.

Hidden widths 30 and 20 on MNIST at 8 x 8, N = 200, at initialization, under mse and cross entropy.
Dashed lines are the predicted ranks of the linear network: the size of the bulk.
"""

from dataclasses import asdict, dataclass

import jax
import numpy as np

import rankmon
from figure_plots import save_counterparts
from figure_runs import Sweep, Task, images, parse_options, rank_scalars, show, swept
from networks import ACTIVATIONS, initial_weights, linear, stack
from plotting import check

jax.config.update("jax_enable_x64", True)

CLASSES, SAMPLES, HIDDEN = 10, 200, (30, 20)
PARTS = ("H_L", "H_f", "H_o")


@dataclass(frozen=True)
class Setting:
    """The activation and the loss of a figure."""

    activation: str
    loss: str = "mse"


FIGURES = {
    "S30": Setting("ReLU"),
    "S31": Setting("ELU"),
    "S32": Setting("ReLU", "cross_entropy"),
    "S33": Setting("tanh", "cross_entropy"),
    "S34": Setting("ELU", "cross_entropy"),
}


def measure(task: Task):
    """Measure spectra and ranks of one of the two networks, and the linear one's predictions."""
    setting, options = FIGURES[task.figure], task.options
    side, hidden, samples = (4, (6, 5), 30) if options.quick else (8, HIDDEN, SAMPLES)
    x, labels = images("mnist", side, samples, options)
    dims = (x.shape[1], *hidden, CLASSES)
    weights = initial_weights(jax.random.key(options.seed), dims, "Glorot")
    targets = labels if setting.loss == "cross_entropy" else np.eye(CLASSES)[labels]
    network = linear if task.panel == "linear" else stack(ACTIVATIONS[setting.activation])
    problem = rankmon.Problem(network, loss=setting.loss, inputs=x, targets=targets)
    scalars = rank_scalars(rankmon.hessian_ranks(problem, weights))
    predicted = rankmon.predicted_ranks(problem, weights).ranks
    family = "rank_theory" if task.panel == "linear" else "rank_landmark"
    scalars |= {f"{family}/{part}": rank for part, rank in predicted.items()}
    spectra = rankmon.hessian_spectra(problem, weights)  # cached: measured once
    return scalars, {
        f"spectrum/{part}": np.log10(np.abs(values[values != 0]))
        for part, values in spectra.items()
    }


def main() -> None:
    """Measure missing values, draw, and check the linear network's ranks."""
    options = parse_options(__doc__, "linear_counterparts", FIGURES)
    sweeps = {
        (figure, network): Sweep(asdict(FIGURES[figure]), [0])
        for figure in options.figure
        for network in ("linear", "nonlinear")
    }
    found = swept(sweeps, measure, options)
    print(f"\n{'':5}{'':21}{'':4}{'predicted':>10}{'linear':>8}{'non-linear':>12}")
    claims = {}
    for figure in options.figure:
        setting = FIGURES[figure]
        (straight,), (bent,) = (found[figure, network] for network in ("linear", "nonlinear"))
        name = f"{setting.activation}, {setting.loss}".replace("_", " ")
        png = options.logdir / f"{figure}.png"
        for part in PARTS:
            tags = (f"rank_theory/{part}", f"rank/{part}")
            counts = [*(straight.scalars[tag] for tag in tags), bent.scalars[tags[1]]]
            print(f"{figure:5}{name:21}{part:4}" + "{:10g}{:8g}{:12g}".format(*counts))
        claims[f"{figure}: the linear network's ranks are predicted, within their margin"] = all(
            straight.scalars[f"rank_low/{part}"]
            <= straight.scalars[f"rank_theory/{part}"]
            <= straight.scalars[f"rank_high/{part}"]
            for part in PARTS
        )
        title = f"{options.heading} {figure}: {name}, and the linear network of the same weights"
        save_counterparts(straight, bent, png, title=title, name=setting.activation)
        show(options.logdir / figure, png)
    check(claims)


if __name__ == "__main__":
    main()
