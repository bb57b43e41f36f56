"""Figures S21 to S29: the error of H_L's best approximation over its rank, and three cut-offs.

Networks with ReLU, ELU and tanh on MNIST, N = 200, at initialization. The cut-offs: the rank of the
linear counterpart, the measured rank, and the bound n (K + 2 M), which grows with the sample.
"""

from dataclasses import asdict, dataclass

import jax
import numpy as np

import rankmon
from figure_plots import save_reconstruction
from figure_runs import Sweep, Task, images, parse_options, rank_scalars, show, swept
from networks import ACTIVATIONS, initial_weights, stack
from plotting import PARTS, check

jax.config.update("jax_enable_x64", True)

CLASSES, SAMPLES = 10, 200
LINES = {"linear counterpart": "rank_landmark", "measured": "rank", "bound from $N$": "rank_bound"}


@dataclass(frozen=True)
class Setting:
    """The activation, the side of the images, the hidden widths and the loss."""

    activation: str
    side: int
    hidden: tuple[int, ...]
    loss: str


GROUPS = (
    (21, 8, (30, 20), "mse"),
    (24, 7, (50, 40, 30), "mse"),
    (27, 8, (30, 20), "cross_entropy"),
)
FIGURES = {
    f"S{first + i}": Setting(activation, *rest)
    for first, *rest in GROUPS
    for i, activation in enumerate(ACTIVATIONS)
}


def measure(task: Task):
    """Measure the spectrum of H_L, the cut-offs, and the error of each approximation."""
    setting, options = FIGURES[task.figure], task.options
    side, hidden, samples = setting.side, setting.hidden, SAMPLES
    if options.quick:
        side, hidden, samples = 4, (6, 5), 30
    x, labels = images("mnist", side, samples, options)
    dims = (x.shape[1], *hidden, CLASSES)
    weights = initial_weights(jax.random.key(options.seed), dims, "Glorot")
    targets = labels if setting.loss == "cross_entropy" else np.eye(CLASSES)[labels]
    network = stack(ACTIVATIONS[setting.activation])
    problem = rankmon.Problem(network, loss=setting.loss, inputs=x, targets=targets)
    scalars = rank_scalars(rankmon.hessian_ranks(problem, weights, engine="stack"))
    scalars["rank_landmark/H_L"] = rankmon.predicted_ranks(problem, weights).ranks["H_L"]
    scalars["rank_bound/H_L"] = rankmon.theory.rank_loss_bound(dims, n=samples, loss=setting.loss)
    eigenvalues = rankmon.hessian_spectra(problem, weights, engine="stack")["H_L"]  # cached
    return scalars, {
        "spectrum/H_L": np.log10(np.abs(eigenvalues[eigenvalues != 0])),
        "reconstruction_error/H_L": rankmon.reconstruction_error(eigenvalues),
    }


def main() -> None:
    """Measure missing values, draw, and print the error at the predicted rank."""
    options = parse_options(__doc__, "reconstruction_error", FIGURES)
    sweeps = {(f, "spectrum"): Sweep(asdict(FIGURES[f]), [0]) for f in options.figure}
    found = swept(sweeps, measure, options)
    print(f"\n{'':27}{'p':>6}{'predicted':>11}{'measured':>10}{'bound':>8}{'error there':>13}")
    claims = {}
    for figure in options.figure:
        setting, (record,) = FIGURES[figure], found[figure, "spectrum"]
        errors = record.arrays["reconstruction_error/H_L"]
        lines = {label: int(record.scalars[f"{tag}/H_L"]) for label, tag in LINES.items()}
        name = f"{setting.activation}, {setting.loss}".replace("_", " ")
        predicted, measured, bound = lines.values()
        error = errors[predicted]
        print(f"{figure:5}{name:22}{len(errors) - 1:6,}{predicted:11,}{measured:10,}{bound:8,}"
              f"{error:13.3%}")  # fmt: skip
        claims[f"{figure}: at the linear counterpart's rank under 10% is left"] = error < 0.1
        png = options.logdir / f"{figure}.png"
        title = f"{options.heading} {figure}: {PARTS['H_L'][0]}, {name}"
        save_reconstruction(errors, lines, png, title=title)
        show(options.logdir / figure, png)
    check(claims)


if __name__ == "__main__":
    main()
