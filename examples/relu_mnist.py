"""Figure S2: a ReLU network on MNIST; the weights keep their ranks while H_f vanishes.

ReLU network 25-25-20-15-10 on 40 MNIST digits at 5 x 5 in float64. First the paper's training: SGD,
rate 0.09, 2,000 epochs. After it the loss is too large for H_f to vanish, so Levenberg-Marquardt
steps follow, which are not in the paper.
"""

import argparse
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optimistix as optx
from tqdm import tqdm

import rankmon
from datasets import NAMES, load, standardize
from networks import glorot_normal, relu
from plotting import PARTS, Phase, finish, save_rank_evolution, series
from rankmon import read_jsonl
from rankmon.monitor.schedule import at_steps

jax.config.update("jax_enable_x64", True)

HIDDEN, CLASSES, BATCH = (25, 20, 15), 10, 10


def sgd(weights, x, y, *, key, epochs):
    """Yield the weights after each epoch of SGD on the batch mean of 1/2 ||F - y||^2."""
    optimizer = optax.sgd(0.09)

    def loss(weights, rows):
        return 0.5 * jnp.sum((relu(weights, x[rows]) - y[rows]) ** 2) / len(rows)

    def step(carry, rows):
        updates, state = optimizer.update(jax.grad(loss)(carry[0], rows), carry[1])
        return (optax.apply_updates(carry[0], updates), state), None

    @jax.jit
    def epoch(carry, key):
        batches = jax.random.permutation(key, len(x)).reshape(-1, BATCH)
        return jax.lax.scan(step, carry, batches)[0]

    carry = weights, optimizer.init(weights)
    for epoch_key in jax.random.split(key, epochs):
        carry = epoch(carry, epoch_key)
        yield carry[0]


def levenberg_marquardt(weights, x, y, *, steps):
    """Yield the weights after each step; a step that would raise the loss leaves them unchanged."""
    # With its default search the solver stalls near a loss of 1e-7.
    cutoffs = {"high_cutoff": 0.25, "low_cutoff": 1e-3}
    search = optx.ClassicalTrustRegion(**cutoffs, high_constant=10.0, low_constant=0.2)
    solver = optx.LevenbergMarquardt(rtol=0.0, atol=0.0)
    solver = eqx.tree_at(lambda s: s.search, solver, search)

    def residuals(weights, args):
        return relu(weights, x) - y, None

    fixed = {"fn": residuals, "args": None, "options": {}, "tags": frozenset()}
    state = solver.init(y=weights, f_struct=jax.eval_shape(lambda: y), aux_struct=None, **fixed)
    step = eqx.filter_jit(lambda weights, state: solver.step(y=weights, state=state, **fixed)[:2])
    for _ in range(steps):
        weights, state = step(weights, state)
        yield weights


def main():
    """Train in two phases, monitor, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=NAMES, default="mnist")
    parser.add_argument("--data-dir", type=Path, help="where TFDS keeps its data")
    parser.add_argument("--logdir", type=Path, default=Path("logs/relu_mnist"))
    parser.add_argument("--seed", type=int, default=4, help="not every seed reaches zero")
    parser.add_argument("--quick", action="store_true", help="20 of scikit-learn's digits")
    options = parser.parse_args()
    dataset, side, n = ("digits", 5, 20) if options.quick else (options.dataset, 5, 40)
    epochs, steps, share = (200, 60, 0.75) if options.quick else (2000, 60, 0.9)
    images, labels = load(dataset, side=side, n=n, seed=options.seed, data_dir=options.data_dir)
    x, y = jnp.asarray(standardize(images)), jax.nn.one_hot(labels, CLASSES)
    init_key, batch_key = jax.random.split(jax.random.key(options.seed))
    weights = glorot_normal(init_key, (side * side, *HIDDEN, CLASSES))
    problem = rankmon.Problem(relu, loss="mse", inputs=x, targets=y)
    marks = at_steps([*range(0, epochs, 100), *range(epochs, epochs + steps + 1, 4)])
    with rankmon.RankMonitor(problem, logdir=options.logdir, schedule=marks) as monitor:
        monitor(0, weights)
        first = sgd(weights, x, y, key=batch_key, epochs=epochs)
        for epoch, weights in enumerate(tqdm(first, "SGD", epochs, unit="epoch"), 1):
            monitor(epoch, weights)
        second = levenberg_marquardt(weights, x, y, steps=steps)
        for step, weights in enumerate(tqdm(second, "Levenberg-Marquardt", steps), epochs + 1):
            monitor(step, weights)

    records, figure = read_jsonl(options.logdir / "rankmon.jsonl"), options.logdir / "ranks.png"
    phases = [Phase(0, "SGD", "epoch"), Phase(epochs, "Levenberg-Marquardt (ours)", "step")]
    save_rank_evolution(records, figure, title=f"ReLU network on {dataset.upper()}", phases=phases)
    finish(records, figure, options.logdir, claims(records, share))


def claims(records, least):
    """Check the statements of figure S2."""
    full = [*HIDDEN, CLASSES]
    ranks = {part: series(records, f"rank/{part}")[1] for part in PARTS}
    ranks_seen = [set(series(records, f"rank_weights/{i}")[1]) for i in range(len(full))]
    loss, share = records[-1].scalars["loss"], ranks["H_f_fixed"][-1] / ranks["H_f_fixed"][0]
    return {
        f"the loss ends at rounding: {loss:.1e} < 1e-28": loss < 1e-28,
        f"the weights keep full rank, {full}": ranks_seen == [{rank} for rank in full],
        "at the end H_f = 0": ranks["H_f"][-1] == 0,
        "at the end H_L = H_o": ranks["H_L"][-1] == ranks["H_o"][-1],
        f"H_f_fixed ends at {share:.1%} of its first value, over {least:.0%}": share > least,
    }


if __name__ == "__main__":
    main()
