"""Loss of plasticity in continual learning, and which curves move before it.

A network 784-100-100-10 learns 20 tasks, the same 800 images of MNIST with their labels permuted
anew for each task (Random Label MNIST of Kumar et al. 2023, arXiv 2308.11958; also Lyle et al.
2023, arXiv 2303.01486). Four runs: plain SGD; with their L2 Init, a pull to the initial weights;
with layer normalization; and plain SGD on tasks that only rename the ten classes, from which, at
each task, a copy learns permuted labels as a test. Curves are medians of three seeds.
"""

import argparse
from pathlib import Path

import numpy as np

from datasets import load
from plasticity_curves import FIRST, LOSS, crossing, moved, onset, reached
from plasticity_runs import Setting, Variant, train
from plasticity_views import print_table, save_picture
from plotting import check
from rankmon.report.style import BLUE, GREEN, PURPLE, VERMILION

FULL = Setting(
    data="mnist",
    side=28,
    images=800,
    width=100,
    tasks=20,
    steps=1200,
    rate=0.05,
    pull=5e-3,
    probe=256,
    seeds=3,
)
QUICK = Setting(
    data="digits",
    side=8,
    images=300,
    width=100,
    tasks=8,
    steps=1500,
    rate=0.2,
    pull=2.5e-3,
    probe=100,
    seeds=1,
)
VARIANTS = {
    "SGD": Variant(VERMILION),
    "L2 Init": Variant(BLUE, pulled=True),
    "layer norm": Variant(GREEN, norm=True),
    "classes renamed": Variant(PURPLE, renames=True),
}


def claims(runs):
    """Return the claims about the runs, and whether each holds."""
    plain, tasks = runs["SGD"], len(runs["SGD"][0][0])
    lost = {name: onset(run) for name, run in runs.items()}
    until = {name: tasks if task is None else task for name, task in lost.items()}
    best, last = reached(plain).max(), reached(plain)[-1]
    own = min(ends[-1].scalars["accuracy"] for _, ends, _ in runs["classes renamed"])
    return {
        f"SGD reaches {best:.0%} at its best task and {last:.0%} at the last": last < best / 2,
        f"L2 Init never falls by {LOSS:.0%}": lost["L2 Init"] is None,
        "layer norm keeps its plasticity longer than SGD": until["layer norm"] > until["SGD"],
        f"renamed classes are learned to {own:.0%} at the last task": own > 0.99,
    }


def claims_about_curves(runs):
    """Return the claims about curves, which need all 20 tasks."""
    norm, stable, dead = f"norm_since_start/{FIRST}", f"stable_rank/{FIRST}", f"dead_share/{FIRST}"
    way, died = moved(runs["SGD"], norm), moved(runs["SGD"], dead)
    lost = onset(runs["classes renamed"])
    return {
        "with classes renamed, permuted labels are lost": lost is not None,
        f"before SGD's loss, the norm of W1 - W1(0) moves {way:.0%} of its range": way > 0.5,
        f"before SGD's loss, the dead share moves {died:.0%}": died < 0.15,
        "L2 Init never has the norm and the stable rank of W1 at SGD's loss": all(
            crossing(runs, "L2 Init", tag) is None for tag in (norm, stable)
        ),
    }


def main():
    """Train all variants, print the table, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("logs") / "plasticity")
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, 8 tasks")
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--data-dir", type=Path, help="where TFDS keeps MNIST")
    options = parser.parse_args()
    setting = QUICK if options.quick else FULL
    pixels, labels = load(
        setting.data, side=setting.side, n=setting.images, data_dir=options.data_dir
    )
    images, labels = pixels.astype(np.float32), labels.astype(np.int32)
    runs = {}
    for name, variant in VARIANTS.items():
        folder = options.logdir / name.lower().replace(" ", "_")
        runs[name] = [
            train(variant, setting, seed, images, labels, folder / f"seed_{seed}")
            for seed in range(options.seed, options.seed + setting.seeds)
        ]
    print_table(runs)
    figure = options.logdir / "plasticity.png"
    title = f"{setting.tasks} tasks on {setting.images} images ({setting.data})"
    save_picture(runs, VARIANTS, figure, title)
    print(f"\n{figure}\nSee the curves: tensorboard --logdir {options.logdir}\n")
    check(claims(runs) | ({} if options.quick else claims_about_curves(runs)))


if __name__ == "__main__":
    main()
