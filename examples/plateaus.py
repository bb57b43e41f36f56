"""Figures S4 to S7: repeated eigenvalues of H_o and H_f, at the predicted levels and counts.

S4, S5: ReLU networks d-8-M-K with K > M: H_o has M plateaus of width K - M. S6, S7: linear networks
d-M-K: H_f has 2 K plateaus of width M. Data: a mixture of Gaussians, and MNIST at 5 x 5.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import jax
import numpy as np

import rankmon
from figure_plots import NAMES, save_plateaus
from figure_runs import Sweep, Task, images, parse_options, show, swept
from networks import ACTIVATIONS, features, initial_weights, linear, relu
from plotting import PARTS, check
from rankmon import spectral_theory

jax.config.update("jax_enable_x64", True)

SAMPLES = 300


@dataclass(frozen=True)
class Setting:
    """The data, the part of the Hessian, and the swept widths: M for H_o, K for H_f."""

    data: str
    part: str
    fixed: int  # K if M is swept, M if K is
    values: Sequence[int]


FIGURES = {
    "S4": Setting("mixture", "H_o", 20, (2, 3, 4)),
    "S5": Setting("mnist", "H_o", 10, (3, 4, 5)),
    "S6": Setting("mixture", "H_f", 15, (3, 4, 5)),
    "S7": Setting("mnist", "H_f", 10, (3, 4, 5)),
}


def data(setting: Setting, classes: int, options):
    """Return inputs, of a mixture of Gaussians or digits, and labels from 0 to classes - 1."""
    if setting.data == "mixture":
        rng = np.random.default_rng(options.seed)
        labels = np.arange(SAMPLES) % classes
        return rng.normal(size=(classes, 5))[labels] + rng.normal(size=(SAMPLES, 5)), labels
    x, labels = images(setting.data, 5, 4 * SAMPLES, options)
    chosen = np.flatnonzero(labels < classes)[:SAMPLES]
    return x[chosen], labels[chosen]


def measure(task: Task):
    """Measure the spectrum, its plateaus and the error of H_o's closed form at one width."""
    setting, options = FIGURES[task.figure], task.options
    is_outer = setting.part == "H_o"
    hidden, classes = (task.value, setting.fixed)[:: 1 if is_outer else -1]
    x, labels = data(setting, classes, options)
    dims = (x.shape[1], *([8] if is_outer else []), hidden, classes)
    weights = initial_weights(jax.random.key(options.seed), dims, "Glorot")
    y = np.eye(classes)[labels]
    problem = rankmon.Problem(relu if is_outer else linear, loss="mse", inputs=x, targets=y)
    eigenvalues = rankmon.hessian_spectra(problem, weights)[setting.part]
    if is_outer:
        received = np.asarray(features(ACTIVATIONS["ReLU"], weights, x))
        plateaus = spectral_theory.outer_plateaus(received, classes)
    else:
        omega = problem.residuals(weights).T @ x / len(x)
        plateaus = spectral_theory.functional_plateaus(omega, hidden)
    straight = rankmon.Problem(linear, loss="mse", inputs=x, targets=y)
    closed = spectral_theory.outer_spectrum([np.asarray(w).T for w in weights], x)
    by_autodiff = rankmon.hessian_spectra(straight, weights, engine="dense")["H_o"]
    size = min(len(closed), len(by_autodiff))  # all others are zero
    off = np.max(np.abs(closed[:size] - np.sort(by_autodiff)[::-1][:size])) / closed[0]
    return {"plateaus/width": plateaus.width, "closed_form/error": float(off)}, {
        f"eigenvalues/{setting.part}": eigenvalues,
        "plateaus/levels": plateaus.levels,
    }


def main() -> None:
    """Measure missing values, draw, and check every plateau."""
    options = parse_options(__doc__, "plateaus", FIGURES)
    sweeps = {(f, "spectra"): Sweep(asdict(FIGURES[f]), FIGURES[f].values) for f in options.figure}
    found = swept(sweeps, measure, options)
    claims = {}
    print(f"\n{'':5}{'':7}{'plateaus':>9}{'of width':>9}{'furthest eigenvalue':>21}{'H_o off':>10}")
    for figure in options.figure:
        setting, panels, matched = FIGURES[figure], [], []
        for record in found[figure, "spectra"]:
            name = f"{'M' if setting.part == 'H_o' else 'K'} = {record.step}"
            values, levels = (
                record.arrays[tag] for tag in (f"eigenvalues/{setting.part}", "plateaus/levels")
            )
            width, off = (record.scalars[tag] for tag in ("plateaus/width", "closed_form/error"))
            plateaus = spectral_theory.Plateaus(levels, int(width))
            matches = spectral_theory.match_plateaus(plateaus, values)
            panels.append((name, values[np.abs(values) > 1e-12 * np.abs(values[0])], matches))
            # H_o may have more: a unit that is never active with another one adds to a level.
            exact = setting.part == "H_f"
            matched += [m.found == m.width if exact else m.holds for m in matches]
            worst = max(match.error for match in matches)
            print(f"{figure:5}{name:7}{len(levels):9}{width:9g}{worst:21.1e}{off:10.1e}")
        claims[f"{figure}: all plateaus have their place, to 1e-9, and their width"] = all(matched)
        claims[f"{figure}: H_o of the linear network has the closed spectrum, to 1e-12"] = all(
            record.scalars["closed_form/error"] < 1e-12 for record in found[figure, "spectra"]
        )
        kind = "ReLU" if setting.part == "H_o" else "linear"
        title = f"{options.heading} {figure}: {PARTS[setting.part][0]} of {kind} networks on "
        title += NAMES[setting.data]
        png = options.logdir / f"{figure}.png"
        save_plateaus(panels, png, title=title, signed=setting.part == "H_f")
        show(options.logdir / figure, png)
    check(claims)


if __name__ == "__main__":
    main()
