"""Figure S35: the rank of the neural tangent kernel's Gram matrix over sample size.

Linear networks 64-20-20-1 on three data sets. The rank is counted from J's singular values, with J
by contractions and by automatic differentiation, and from the Gram matrix; theory gives rank_outer.
"""

import jax
import numpy as np

import rankmon
from figure_plots import save_ntk
from figure_runs import Sweep, Task, images, parse_options, rank_scalars, show, source, swept
from networks import initial_weights, linear
from plotting import check

jax.config.update("jax_enable_x64", True)

FIGURES = {"S35": ("cifar10", "fashion_mnist", "mnist")}
SAMPLES = (8, 16, 32, 48, 64, 65, 80, 120, 200, 300)
COUNTS = ("rank_theory", "rank", "rank_autodiff", "rank_gram")


def measure(task: Task):
    """Measure the ranks at one sample size."""
    options = task.options
    side, hidden = (3, (5, 4)) if options.quick else (8, (20, 20))
    x, _ = images(task.panel, side, task.value, options)
    dims = (x.shape[1], *hidden, 1)
    weights = initial_weights(jax.random.key(options.seed), dims, "Glorot")
    problem = rankmon.Problem(linear, loss="mse", inputs=x, targets=np.zeros((len(x), 1)))
    r = int(np.linalg.matrix_rank(x))
    scalars = {"r": r, "rank_theory/NTK": rankmon.theory.rank_outer(dims, r=r)}
    for suffix, engine in (("", "stack"), ("_autodiff", "dense")):
        rank = rankmon.ntk_rank(problem, weights, engine=engine)
        scalars |= rank_scalars({"NTK": rank}, suffix)
    gram = rankmon.ntk_gram(problem, weights, engine="dense")
    scalars["rank_gram/NTK"] = int(np.linalg.matrix_rank(gram, hermitian=True))
    return scalars, {}


def main() -> None:
    """Measure missing values, draw, and check every sample size."""
    options = parse_options(__doc__, "ntk_rank", FIGURES)
    sizes = SAMPLES[:4] if options.quick else SAMPLES
    claims = {}
    for figure in options.figure:
        sweeps = {(figure, name): Sweep(source(name, options), sizes) for name in FIGURES[figure]}
        records = {name: run for (_, name), run in swept(sweeps, measure, options).items()}
        png = options.logdir / f"{figure}.png"
        save_ntk(
            records, png, title=f"{options.heading} {figure}: rank of the neural tangent kernel"
        )
        show(options.logdir / figure, png)
        print(f"\n{'':14}{'N':>5}{'predicted':>11}{'contracted':>12}{'autodiff':>10}{'Gram':>6}")
        for name, run in records.items():
            for record in run:
                counts = [record.scalars[f"{count}/NTK"] for count in COUNTS]
                print(f"{name:14}{record.step:5}" + "{:11g}{:12g}{:10g}{:6g}".format(*counts))
            claims[f"{name}: the rank is the predicted one at all {len(run)} sample sizes"] = all(
                len({record.scalars[f"{count}/NTK"] for count in COUNTS[:3]}) == 1 for record in run
            )
    check(claims)


if __name__ == "__main__":
    main()
