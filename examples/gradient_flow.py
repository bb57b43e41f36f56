"""Lemma 8: along the gradient flow log|det W| falls as predicted, and no rank changes.

Balanced 6 x 6 weights, class-centered inputs, mse. Diffrax solves the flow; Optax does descent.
"""

import argparse
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import rankmon
from networks import linear
from plotting import finish, save_determinants, series

jax.config.update("jax_enable_x64", True)

LAYERS, WIDTH, EXAMPLES = 3, 6, 300
STEP = 1e-4  # the flow time of one step of gradient descent


def class_centered_data(rng):
    """Draw rotated Gaussian inputs of unequal variance, class means zero; and one-hot targets."""
    labels = np.arange(EXAMPLES) % WIDTH
    x = rng.normal(size=(EXAMPLES, WIDTH)) * np.geomspace(0.5, 2.0, WIDTH)
    x = x @ np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    return x - rankmon.lemma8.class_means(x, labels, WIDTH)[labels], np.eye(WIDTH)[labels]


def network(weights, x):
    """Return W^L ... W^1 x, the weights stored (out, in)."""
    return linear([weight.T for weight in weights], x)


def main():
    """Solve the flow, train, monitor both, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("logs/gradient_flow"))
    parser.add_argument("--quick", action="store_true", help="flow time 1 instead of 20")
    options = parser.parse_args()
    x, y = class_centered_data(np.random.default_rng(0))
    start = rankmon.lemma8.balanced_stack(jax.random.key(0), layers=LAYERS, width=WIDTH)
    problem = rankmon.Problem(network, loss="mse", inputs=x, targets=y)
    # Probes are denser at the start, because the trapezoids' error is largest while tr B is large.
    times = 0.1 * np.expm1(np.linspace(0, np.log1p(10 if options.quick else 200), 41))
    marks = np.rint(times / STEP).astype(int)

    def loss(weights):
        return 0.5 * jnp.mean(jnp.sum((network(weights, x) - y) ** 2, axis=1))

    def monitored(name, trajectory):
        probes = ["hessian", "weights", rankmon.Lemma8Probe(STEP)]
        settings = {"schedule": rankmon.schedule.at_steps(marks), "probes": probes}
        with rankmon.RankMonitor(problem, logdir=options.logdir / name, **settings) as monitor:
            for step, weights, predicted in tqdm(trajectory, name, len(marks)):
                monitor(step, weights, scalars=predicted)
        return rankmon.read_jsonl(options.logdir / name / "rankmon.jsonl")

    flow = monitored("flow", along_flow(loss, start, x.T @ x / len(x), marks))
    descent = monitored("descent", along_descent(loss, start, marks))
    figure = save_determinants(flow, descent, options.logdir / "determinants.png", STEP)
    finish(flow, figure, options.logdir, claims(flow))


def along_flow(loss, start, sigma, marks):
    """Yield (step, weights, prediction) of dW/dt = -grad loss and the integral of tr B^l."""

    def field(t, state, args):
        downhill = jax.tree.map(jnp.negative, jax.grad(loss)(state[0]))
        return downhill, rankmon.lemma8.trace_B(state[0], sigma)

    term, times = diffrax.ODETerm(field), jnp.asarray(marks * STEP)
    steps = {"dt0": None, "stepsize_controller": diffrax.PIDController(rtol=1e-10, atol=1e-12)}
    span = {"t0": 0.0, "t1": times[-1], "y0": (start, jnp.zeros(LAYERS))}
    steps |= {"saveat": diffrax.SaveAt(ts=times), "max_steps": 100_000}
    solution = diffrax.diffeqsolve(term, diffrax.Dopri8(), **span, **steps)
    initial = [np.linalg.slogdet(weight)[1] for weight in start]
    for mark, *weights, integral in zip(marks, *solution.ys[0], solution.ys[1], strict=True):
        predicted = {f"flow/log_abs_det/{k}": initial[k] - integral[k] for k in range(LAYERS)}
        yield int(mark), tuple(weights), predicted


def along_descent(loss, weights, marks):
    """Yield (step, weights, no prediction) of gradient descent."""
    optimizer = optax.sgd(STEP)

    def step(_, carry):
        updates, state = optimizer.update(jax.grad(loss)(carry[0]), carry[1])
        return optax.apply_updates(carry[0], updates), state

    advance = jax.jit(lambda steps, carry: jax.lax.fori_loop(0, steps, step, carry))
    carry = weights, optimizer.init(weights)
    for steps, mark in zip(np.diff(marks, prepend=0), marks, strict=True):
        carry = advance(steps, carry)
        yield int(mark), carry[0], {}


def claims(flow):
    """Check the statements of Lemma 8 on the flow."""
    values = {tag: series(flow, tag)[1] for tag in flow[0].scalars}
    balance = max(values[f"lemma8/balancedness/{k}"].max() for k in range(LAYERS - 1))
    pairs = [(values[f"flow/log_abs_det/{k}"], values[f"log_abs_det/{k}"]) for k in range(LAYERS)]
    error = max(np.abs(predicted - measured).max() for predicted, measured in pairs)
    ranks = [tag for tag in values if tag.startswith(("rank/", "rank_weights/"))]
    met = [values[f"lemma8/{name}"][0] == 1 for name in ("centered", "balanced", "square")]
    return {
        "the assumptions hold at the start": all(met),
        f"the flow keeps balance: {balance:.1e} < 1e-8": balance < 1e-8,
        f"log|det W| along the flow as predicted: off by {error:.1e} < 1e-6": error < 1e-6,
        f"all {len(ranks)} ranks are constant": all(np.ptp(values[tag]) == 0 for tag in ranks),
    }


if __name__ == "__main__":
    main()
