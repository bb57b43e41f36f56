"""Gradient flow keeps the rank of a two-layer linear network; SGD with label noise loses it.

After Varre, Sagitova and Flammarion (NeurIPS 2024). W^2 W^1 is stored as the square matrix Theta =
[W^1, (W^2)^T]. A step on the example x with the residual delta multiplies Theta from the right by
I - eta [[0, C], [C^T, 0]], C = x delta^T, and thus adds log|1 - eta^2 |x|^2 |delta|^2| to
log|det Theta|: nothing along the flow (eta -> 0), and under SGD a negative number at every step,
which noise on the labels keeps from vanishing. A second network meets Lemma 8's assumptions.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import rankmon
from gradient_flow import class_centered_data, network
from plotting import check, series
from rank_deficiency_plot import print_table, save_picture
from rank_deficiency_runs import along_flow, along_sgd

jax.config.update("jax_enable_x64", True)

INPUTS, OUTPUTS, EXAMPLES = 5, 2, 1000
# SGD takes one example a step; noise of this standard deviation, drawn anew, is added to its label.
RATE, NOISE, STEPS = 0.01, 2.0, 80_000
# The rounding errors of the steps hold the smallest singular values above 1e-16 times the largest.
CUT = rankmon.Tolerance(relative=1e-12)


def stacked(theta, x):
    """Return W^2 W^1 x for Theta = [W^1, (W^2)^T]."""
    return x @ theta[:, :INPUTS].T @ theta[:, INPUTS:]


def watched(apply, start, data, marks, probes, logdir):
    """Monitor the flow and SGD from the same start; return the records of both."""
    problem = rankmon.Problem(apply, loss="mse", inputs=data[0], targets=data[1])
    records = {}
    paths = {
        "flow": along_flow(apply, start, *data, marks, RATE),
        "sgd": along_sgd(apply, start, *data, marks, RATE, NOISE),
    }
    for name, path in paths.items():
        settings = {"schedule": rankmon.schedule.at_steps(marks), "probes": probes}
        with rankmon.RankMonitor(problem, logdir=logdir / name, **settings) as monitor:
            for step, params, scalars in tqdm(path, f"{logdir.name}/{name}", len(marks)):
                monitor(step, params, scalars=scalars)
        records[name] = rankmon.read_jsonl(logdir / name / "rankmon.jsonl")
    return records


def claims(teacher, lemma):
    """Return the claims, and whether each holds."""
    flow, sgd = (series(teacher[name], "log_abs_det/params")[1] for name in ("flow", "sgd"))
    kept, lost = (series(teacher[name], "rank_weights/params")[1] for name in ("flow", "sgd"))
    change = series(teacher["sgd"], "steps/log_abs_det")[1]
    off = np.abs(sgd[0] + change - sgd)[lost == lost[0]].max()
    met = [lemma["flow"][0].scalars[f"lemma8/{a}"] for a in ("centered", "balanced", "square")]
    fall = np.ptp(series(lemma["flow"], "log_abs_det/0")[1])
    tag = "lemma8/prediction_error/0"
    error, missed = (np.abs(series(lemma[name], tag)[1]) for name in ("flow", "sgd"))
    missed = missed[np.isfinite(missed)].max()
    constant, fallen = (series(lemma[name], "rank_weights/0")[1] for name in ("flow", "sgd"))
    return {
        f"the flow keeps log|det Theta| up to {np.ptp(flow):.0e}, and the rank {kept[0]:g}": (
            np.ptp(flow) < 1e-6 and np.ptp(kept) == 0
        ),
        f"label noise lowers it to the teacher's {OUTPUTS}, never to rise again": (
            lost[-1] == OUTPUTS and np.all(np.diff(lost) <= 0)
        ),
        f"log|det Theta| is the sum over the steps up to {off:.0e}, while the rank is full": (
            off < 1e-3
        ),
        "the second network meets the assumptions of Lemma 8": all(met),
        f"the flow keeps its ranks, and log|det W^1| falls by {fall:.3g} as predicted, "
        f"up to {error.max():.0e}": np.ptp(constant) == 0 and error.max() < 0.01 * fall,
        f"under SGD the prediction is off by {missed:.3g}, and rank W^1 falls to {fallen[-1]:g}": (
            missed > 0.5 * fall and fallen[-1] < fallen[0]
        ),
    }


def main():
    """Follow both networks, print, draw, and check the claims."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("logs/rank_deficiency"))
    parser.add_argument("--quick", action="store_true", help="half as many probes")
    options = parser.parse_args()
    probes, rng = 21 if options.quick else 41, np.random.default_rng(0)
    weights = rankmon.WeightsProbe(tolerance=CUT, spectra=True)

    x = rng.normal(size=(EXAMPLES, INPUTS))
    data = x, x @ rng.normal(size=(INPUTS, OUTPUTS))
    theta = jnp.asarray(rng.normal(size=(INPUTS + OUTPUTS, INPUTS + OUTPUTS)))
    marks = np.linspace(0, STEPS, probes).astype(int)
    teacher = watched(stacked, theta, data, marks, [weights], options.logdir / "teacher")

    data = class_centered_data(np.random.default_rng(0))
    start = rankmon.lemma8.balanced_stack(jax.random.key(0), layers=2, width=len(data[1][0]))
    # Probes are denser at the start, because the trapezoids' error is largest there.
    marks = np.unique(10 * np.expm1(np.linspace(0, np.log1p(STEPS / 10), 3 * probes)).astype(int))
    both = [weights, rankmon.Lemma8Probe(RATE)]
    lemma = watched(network, start, data, marks, both, options.logdir / "lemma8")

    path = options.logdir / "rank_deficiency.png"
    save_picture(teacher, lemma, path, rate=RATE, cut=CUT.relative)
    print_table({"Theta": (teacher, "params"), "W^1": (lemma, "0")}, RATE)
    print(f"\n{path}\nSee the curves: tensorboard --logdir {options.logdir}\n")
    check(claims(teacher, lemma))


if __name__ == "__main__":
    main()
