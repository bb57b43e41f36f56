"""Watch gradient descent reach the edge of stability: H_L's largest eigenvalue stays at 2 / eta.

A tanh network is trained with the full batch, by gradient descent without and with momentum; with
momentum beta the threshold is 2 (1 + beta) / eta. Source: Cohen et al. (2021), arXiv 2103.00065.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

import rankmon
from networks import glorot_normal, stack
from plotting import check, plt, save, series
from rankmon.report.style import BLUE, GRAY, VERMILION

jax.config.update("jax_enable_x64", True)

# Hidden widths, examples, steps, steps from probe to probe, and the threshold of both runs.
FULL = (20, 20), 20, 8000, 100, 10.0
QUICK = (8, 8), 12, 1500, 50, 5.0
RUNS = {"descent": 0.0, "momentum": 0.5}  # beta
NETWORK = stack(jnp.tanh)
MEASURED, THRESHOLD = "eigenvalue_max/H_L", "eigenvalue_max_threshold/H_L"


def train(name, options):
    """Train; return the records, the steps of the alarms, and the eigenvalues by dense autodiff."""
    hidden, n, steps, every, threshold = QUICK if options.quick else FULL
    beta, logdir = RUNS[name], options.logdir / name
    rate = 2 * (1 + beta) / threshold
    x = np.linspace(-1, 1, n)
    y, x = np.sin(6 * x)[:, None], np.stack([x, np.ones(n)], axis=1)  # an input of 1: biases
    params = glorot_normal(jax.random.key(0), (2, *hidden, 1))
    _, unravel = ravel_pytree(params)

    def loss(params):
        return 0.5 * jnp.mean(jnp.sum((NETWORK(params, x) - y) ** 2, axis=1))

    largest = jax.jit(lambda v: jnp.linalg.eigvalsh(jax.hessian(lambda v: loss(unravel(v)))(v))[-1])
    optimizer = optax.sgd(rate, momentum=beta or None)

    @jax.jit
    def train_step(params, state):
        update, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, update), state

    state, alarms, dense = optimizer.init(params), [], {}
    problem = rankmon.Problem(NETWORK, loss="mse", inputs=x, targets=y)
    probe = rankmon.HessianProbe(learning_rate=rate, momentum=beta, parts=("H_L",))
    alert = rankmon.alerts.EdgeOfStability(action=lambda alarm: alarms.append(alarm.step))
    settings = {"every": every, "probes": [probe], "alerts": [alert]}
    with rankmon.RankMonitor(problem, logdir=logdir, **settings) as monitor:
        for step in tqdm(range(steps + 1), name):
            if monitor(step, params):
                dense[step] = float(largest(ravel_pytree(params)[0]))
            params, state = train_step(params, state)
    return rankmon.read_jsonl(logdir / "rankmon.jsonl"), alarms, dense


def save_picture(runs, path):
    """Draw the largest eigenvalue with its threshold, and below it the loss."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True, sharey="row")
    for (name, records), (top, bottom) in zip(runs.items(), axes.T, strict=True):
        top.plot(*series(records, MEASURED), color=BLUE, lw=2, label=r"$\lambda_{\max}(H_L)$")
        top.plot(*series(records, THRESHOLD), "--", color=VERMILION, label=r"$2(1+\beta)/\eta$")
        bottom.plot(*series(records, "loss"), color=GRAY, lw=2)
        top.set(title=rf"gradient descent, $\beta = {RUNS[name]:g}$", ylim=(0, None))
        bottom.set(xlabel="step", yscale="log")
    axes[0, 0].set_ylabel("largest eigenvalue")
    axes[1, 0].set_ylabel("loss")
    figure.align_ylabels()
    axes[0, 0].legend(loc="lower right")
    save(figure, path)


def claims(name, records, alarms, dense):
    """Return the claims about one run, and whether each holds."""
    measured, threshold = (series(records, tag)[1] for tag in (MEASURED, THRESHOLD))
    truth = np.array([dense[record.step] for record in records])
    above = truth > threshold
    rises = list(series(records, MEASURED)[0][above & ~np.append(False, above[:-1])])
    share = measured / threshold
    reached = int(np.argmax(above))
    stays = np.median(share[reached:])
    print(f"{name:9}{threshold[0]:10.4g}{share[0]:10.3f}{records[reached].step:9}", end="")
    print(f"{stays:9.3f}{share[reached:].max():9.3f}{len(alarms):8}")
    return {
        f"{name}: begins below the threshold, and reaches it": share[0] < 0.9 and above.any(),
        f"{name}: the median from then on is within 5 % of it": abs(stays - 1) < 0.05,
        f"{name}: as by dense automatic differentiation": np.allclose(measured, truth, rtol=1e-9),
        f"{name}: the loss falls": records[-1].scalars["loss"] < records[0].scalars["loss"] / 4,
        f"{name}: the {len(rises)} alarms are those of these eigenvalues": alarms == rises,
    }


def main():
    """Train both ways, print, draw, and check the claims."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("logs") / "edge_of_stability")
    parser.add_argument("--quick", action="store_true", help="a smaller network and fewer steps")
    options = parser.parse_args()
    results = {name: train(name, options) for name in RUNS}
    print("\nLargest eigenvalue of H_L, divided by the threshold from the third column on")
    print("         threshold  at start  reached   median  largest  alarms")
    found = [claims(name, *result) for name, result in results.items()]
    path = options.logdir / "edge_of_stability.png"
    save_picture({name: records for name, (records, *_) in results.items()}, path)
    print(f"\n{path}\nSee the curves: tensorboard --logdir {options.logdir}\n")
    check({claim: holds for one in found for claim, holds in one.items()})


if __name__ == "__main__":
    main()
