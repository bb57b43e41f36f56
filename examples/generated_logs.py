"""Write log folders with any number of invented probes, through rankmon's own writer."""

import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rankmon._util.tags import HESSIAN_PARTS
from rankmon.writers.base import Record
from rankmon.writers.tensorboard import TensorBoardWriter


def spectrum(rank: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw log10 of absolute eigenvalues, descending: `rank` of them above 1e-10, others below."""
    above = rng.uniform(-6, 1, rank)
    below = rng.uniform(-18, -12, size - rank)
    return np.sort(np.concatenate([above, below]))[::-1].astype(np.float32)


def record(step: int, share: float, size: int, rng: np.random.Generator) -> Record:
    """Invent a record after this share of training: ranks fall from `size` to half of it."""
    scalars, arrays = {"loss": float(10 ** (-20 * share))}, {}
    for at, part in enumerate(HESSIAN_PARTS):
        rank = int(size * (1 - 0.5 * share * (at != 3)) * (1 - 0.05 * rng.random()))
        logs = arrays[f"spectrum/{part}"] = spectrum(rank, size, rng)
        arrays[f"spectrum_negative/{part}"] = logs[rng.random(size) < 0.4]
        scalars |= {
            f"rank/{part}": rank,
            f"rank_low/{part}": rank,
            f"rank_high/{part}": rank,
            f"rank_theory/{part}": size // 2,
            f"tolerance/{part}": 1e-10,
            f"eigenvalue_max/{part}": 10 * (1 - share) + at,
            f"eigenvalue_min/{part}": -(1 - share) - 0.1 * at,
        }
    for layer in range(4):
        scalars |= {
            f"rank_weights/layers/{layer}": 30 - 5 * layer,
            f"stable_rank/layers/{layer}": 8 - layer + rng.random(),
            f"effective_rank/layers/{layer}": 20 - 4 * layer + rng.random(),
        }
    return Record(step, 1, 1.8e9 + step, scalars=scalars, arrays=arrays)


def deep_record(
    step: int, share: float, size: int, layers: int, rng: np.random.Generator
) -> Record:
    """Invent a record of a deep network: `record` with the weights of this many layers, 32 x 32."""
    one = record(step, share, size, rng)
    scalars = {tag: value for tag, value in one.scalars.items() if "/layers/" not in tag}
    arrays = dict(one.arrays)
    for layer in range(layers):
        name = f"blocks/{layer}/kernel"
        rank = int(32 - 20 * share * rng.random() * (layer + 1) / layers)
        arrays[f"singular_values/{name}"] = spectrum(rank, 32, rng)
        scalars |= {
            f"rank_weights/{name}": rank,
            f"tolerance/{name}": 1e-10,
            f"stable_rank/{name}": 1 + rng.random() + 3 * layer / layers,
            f"effective_rank/{name}": 0.6 * rank + rng.random(),
            f"log_abs_det/{name}": -20 - 60 * share * layer / layers - rng.random(),
            f"det_sign/{name}": 1.0,
        }
    for family in ("rank_weights", "stable_rank", "effective_rank", "log_abs_det"):
        values = [value for tag, value in scalars.items() if tag.startswith(f"{family}/")]
        for name, over in (("min", min), ("median", statistics.median), ("max", max)):
            scalars[f"layers/{family}/{name}"] = over(values)
    return Record(step, 1, one.wall_time, scalars=scalars, arrays=arrays)


def write_run(folder: Path, probes: int, size: int, seed: int) -> None:
    """Write a run of this many probes, every 10 steps, with spectra of `size` eigenvalues."""
    rng = np.random.default_rng(seed)
    _write(folder, probes, lambda step, share: record(step, share, size, rng))


def write_deep_run(folder: Path, probes: int, size: int, layers: int) -> None:
    """Write a run as `write_run` does, of a network with this many layers."""
    rng = np.random.default_rng(0)
    _write(folder, probes, lambda step, share: deep_record(step, share, size, layers, rng))


def _write(folder: Path, probes: int, invented: Callable[[int, float], Record]) -> None:
    with TensorBoardWriter(folder) as writer:
        for at in range(probes):
            writer.write(invented(10 * at, at / max(probes - 1, 1)))
