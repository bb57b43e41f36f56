"""Mirrors of run folders: on a local path, and on an object store that is held in memory."""

import sys

import fsspec
import jax.numpy as jnp
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rankmon import Problem, RankMonitor, RankmonWarning, read_jsonl
from rankmon.writers import MirrorWriter
from reading import scalar_steps
from refusals import refused
from small_probes import Light

PROBLEM = Problem(lambda w, x: x @ w, loss="mse", inputs=np.eye(2), targets=np.eye(2))
STEPS = [0, 2, 4, 5]


class Store(MemoryFileSystem):
    """Files in memory, in the place of Google's."""

    protocol = ("gcs", "gs")
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).replace("gs://", "memory://"))


@pytest.fixture
def bucket():
    """Yield the address of an empty bucket."""
    fsspec.register_implementation("gcs", Store, clobber=True)
    Store.store.clear()
    yield "gs://bucket"
    Store.store.clear()


def train(folder, to, *, flush_at=()):
    writers = [MirrorWriter(folder, to)]
    with RankMonitor(PROBLEM, logdir=folder, every=2, probes=[Light()], writers=writers) as monitor:
        for step in range(5):
            monitor(step, jnp.eye(2))
            if step in flush_at:
                monitor.flush()
        monitor.close(5, jnp.eye(2))


def test_a_local_mirror_is_a_run_folder(tmp_path):
    train(tmp_path / "run", tmp_path / "mirror")
    assert [r.step for r in read_jsonl(tmp_path / "mirror" / "rankmon.jsonl")] == STEPS
    assert scalar_steps(tmp_path / "mirror", "light") == STEPS
    train(tmp_path / "run", tmp_path / "mirror")  # again, which supersedes the first
    assert scalar_steps(tmp_path / "mirror", "light") == STEPS
    names = {path.name for path in (tmp_path / "run").iterdir() if path.name[0] != "."}
    assert names == {path.name for path in (tmp_path / "mirror").iterdir()}


def test_an_object_store_has_the_bytes_of_the_folder(bucket, tmp_path):
    train(tmp_path, f"{bucket}/deep/run", flush_at=[2])
    stored = {path.rpartition("/")[2]: Store().cat(path) for path in Store.store}
    local = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name[0] != "."}
    assert stored == local
    assert all("deep/run" in path for path in Store.store)


def test_a_flush_copies_what_has_changed(bucket, tmp_path):
    mirror = MirrorWriter(tmp_path, f"{bucket}/run")
    (tmp_path / "a").write_text("1")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_text("2")
    (tmp_path / ".lock").write_text("")
    mirror.flush()
    assert sorted(Store.store) == ["/bucket/run/a", "/bucket/run/sub/b"]
    Store.store.clear()
    (tmp_path / "a").write_text("11")
    mirror.flush()
    assert list(Store.store) == ["/bucket/run/a"]


def test_a_store_that_fails_ends_no_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(RankmonWarning, match="MirrorWriter"):
        train(tmp_path / "run", tmp_path / "file" / "mirror")
    assert [r.step for r in read_jsonl(tmp_path / "run" / "rankmon.jsonl")] == STEPS


def test_addresses_of_stores_are_refused_as_folders():
    with refused(ValueError, "gs://bucket/run", "MirrorWriter"):
        RankMonitor(PROBLEM, logdir="gs://bucket/run", every=1)


def test_mirrors_inside_of_the_folder_are_refused(tmp_path):
    with refused(ValueError, "outside"):
        MirrorWriter(tmp_path, tmp_path / "mirror")


def test_a_missing_etils_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "etils", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .rankmon\[cloud\]"):
        MirrorWriter(tmp_path, "gs://bucket")
