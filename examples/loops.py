"""Options, batches of digits and the final checks, shared by the training-loop examples."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

import rankmon
from datasets import load
from plotting import check


def parse_options(doc: str, name: str, *, steps: int) -> argparse.Namespace:
    """Parse the command line that all these scripts share."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("logs") / name)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, few steps")
    parser.add_argument("--data-dir", type=Path, help="where TFDS keeps MNIST")
    options = parser.parse_args()
    options.steps = min(options.steps, 24) if options.quick else options.steps
    return options


def digits(
    options: argparse.Namespace, n: int
) -> tuple[Float[np.ndarray, "n side side 1"], Int[np.ndarray, "n"]]:
    """Load n images in float32 and their labels, from MNIST, or scikit-learn's digits if quick."""
    name, side = ("digits", 8) if options.quick else ("mnist", 28)
    pixels, labels = load(name, side=side, n=n, data_dir=options.data_dir)
    return pixels.reshape(n, side, side, 1).astype(np.float32), labels.astype(np.int32)


def batches(steps: int, n: int, size: int) -> Int[np.ndarray, "steps size"]:
    """Draw the indices of the images for each step."""
    return np.random.default_rng(0).integers(0, n, (steps, size), dtype=np.int32)


def finish(
    options: argparse.Namespace, watched: Any, bare: Any, tags: Sequence[str], *, every: int
) -> None:
    """Print the curves' first and last values; check that the monitor left training unchanged."""
    records = rankmon.read_jsonl(options.logdir / "rankmon.jsonl")
    shown = [tag for tag in records[0].scalars if tag.startswith(tuple(tags))]
    print(f"{'':36}{'first':>12}{'last':>12}")
    for tag in shown:
        print(f"{tag:36}{records[0].scalars[tag]:12.5g}{records[-1].scalars[tag]:12.5g}")
    print(f"\nSee the curves: tensorboard --logdir {options.logdir.parent}\n")
    pairs = zip(jax.tree.leaves(watched), jax.tree.leaves(bare), strict=True)
    steps = [record.step for record in records]
    check(
        {
            "trained with and without the monitor: the same bits": all(
                np.array_equal(a, b) for a, b in pairs
            ),
            f"a record every {every} steps, and of the last": steps
            == [*range(0, options.steps, every), options.steps],
            f"with {', '.join(tags)}": all(
                any(tag.startswith(prefix) for tag in shown) for prefix in tags
            ),
        }
    )
