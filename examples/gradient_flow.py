"""Lemma 8: along the gradient flow log|det W| falls as predicted, and no rank changes.

Three square 6 x 6 weights, balanced at the start, class-centered inputs, mse. Once the flow itself
(Diffrax, with the integral of tr B as part of the ODE's state), once gradient descent by Optax.
"""

import argparse
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from plotting import check, print_ranks, save_determinants, series
from tqdm import tqdm

import rankmon
from rankmon import lemma8

jax.config.update("jax_enable_x64", True)

LAYERS, WIDTH, EXAMPLES = 3, 6, 300
STEP = 1e-4  # the flow time of one step of gradient descent


def class_centered_data(rng):
    """Rotated Gaussian inputs of unequal variance, every class with mean zero; one-hot targets."""
    labels = np.arange(EXAMPLES) % WIDTH
    x = rng.normal(size=(EXAMPLES, WIDTH)) * np.geomspace(0.5, 2.0, WIDTH)
    x = x @ np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    return x - lemma8.class_means(x, labels, WIDTH)[labels], np.eye(WIDTH)[labels]


def network(weights, x):
    """W^L ... W^1 x."""
    for weight in weights:
        x = x @ weight.T
    return x


def main():
    """Solves the flow, trains, monitors both, draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("logs/gradient_flow"))
    parser.add_argument("--horizon", type=float, default=20.0, help="flow time")
    parser.add_argument("--quick", action="store_true", help="flow time 1, some seconds")
    options = parser.parse_args()
    horizon = 1.0 if options.quick else options.horizon

    x, y = class_centered_data(np.random.default_rng(0))
    start = lemma8.balanced_stack(jax.random.key(0), layers=LAYERS, width=WIDTH)
    problem = rankmon.Problem(network, loss="mse", inputs=x, targets=y)
    # Probes lie denser at the start, where tr B is large and the trapezoids would miss most.
    marks = np.rint(0.1 * np.expm1(np.linspace(0, np.log1p(horizon / 0.1), 41)) / STEP).astype(int)

    def loss(weights):
        return 0.5 * jnp.mean(jnp.sum((network(weights, x) - y) ** 2, axis=1))

    def monitored(name, trajectory):
        probes = ["hessian", "weights", rankmon.Lemma8Probe(STEP)]
        schedule = rankmon.schedule.at_steps(marks)
        folder = options.logdir / name
        with rankmon.RankMonitor(
            problem, logdir=folder, schedule=schedule, probes=probes
        ) as monitor:
            for step, weights, extra in tqdm(trajectory, desc=name, total=len(marks)):
                monitor(step, weights, scalars=extra)
        return rankmon.read_jsonl(folder / "rankmon.jsonl")

    flow = monitored("flow", along_flow(loss, start, x.T @ x / len(x), marks))
    descent = monitored("descent", along_descent(loss, start, marks))
    figure = options.logdir / "determinants.png"
    save_determinants(flow, descent, figure, time_of_step=STEP)
    print_ranks(flow)
    print(f"\n{figure}\nSee the curves: tensorboard --logdir {options.logdir.parent}\n")
    check(claims(flow))


def along_flow(loss, start, sigma, marks):
    """(step, weights, prediction) of dW/dt = -grad loss, with the integral of tr B^l beside."""

    def field(t, state, args):
        weights, _ = state
        return jax.tree.map(jnp.negative, jax.grad(loss)(weights)), lemma8.trace_B(weights, sigma)

    times = jnp.asarray(marks * STEP)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Dopri8(),
        t0=0.0,
        t1=times[-1],
        dt0=None,
        y0=(start, jnp.zeros(LAYERS)),
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=1e-10, atol=1e-12),
        max_steps=100_000,
    )
    initial = [np.linalg.slogdet(weight)[1] for weight in start]
    for i, mark in enumerate(marks):
        weights, integral = jax.tree.map(lambda a: a[i], solution.ys)  # noqa: B023
        predicted = {f"flow/log_abs_det/{k}": initial[k] - integral[k] for k in range(LAYERS)}
        yield int(mark), weights, predicted


def along_descent(loss, weights, marks):
    """(step, weights, nothing) of gradient descent."""
    optimizer = optax.sgd(STEP)

    def step(_, carry):
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss)(weights), state)
        return optax.apply_updates(weights, updates), state

    advance = jax.jit(lambda steps, carry: jax.lax.fori_loop(0, steps, step, carry))
    carry = weights, optimizer.init(weights)
    for steps, mark in zip(np.diff(marks, prepend=0), marks, strict=True):
        carry = advance(steps, carry)
        yield int(mark), carry[0], {}


def claims(flow):
    """What Lemma 8 says of the flow."""

    def worst(tag, other=None):
        values = series(flow, tag)[1]
        return np.max(np.abs(values - (0 if other is None else series(flow, other)[1])))

    balance = max(worst(f"lemma8/balancedness/{k}") for k in range(LAYERS - 1))
    error = max(worst(f"flow/log_abs_det/{k}", f"log_abs_det/{k}") for k in range(LAYERS))
    tags = [tag for tag in flow[0].scalars if tag.startswith(("rank/", "rank_weights/"))]
    return {
        f"assumptions hold at the start ({flow[0].scalars['lemma8/class_mean']:.1e} class mean)": all(
            flow[0].scalars[f"lemma8/{a}"] for a in ("centered", "balanced", "square")
        ),
        f"the flow keeps balance: {balance:.1e} < 1e-8": balance < 1e-8,
        f"log|det W| along the flow as predicted: off by {error:.1e} < 1e-6": error < 1e-6,
        f"all {len(tags)} ranks constant along the flow": all(
            np.ptp(series(flow, tag)[1]) == 0 for tag in tags
        ),
    }


if __name__ == "__main__":
    main()
