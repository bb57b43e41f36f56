"""Test that warnings point at the user's own line, whatever the path to the warning."""

from contextlib import ExitStack

import numpy as np
import pytest

import rankmon

PROBLEM = rankmon.Problem(lambda W, x: x @ W, loss="mse", inputs=np.eye(2), targets=np.eye(2))
WEIGHTS = np.diag([1.0, 2.0])
RECORD = rankmon.Record(0, 1, 0.0, {"a": 1.0}, {})
INTEGERS = {"W": WEIGHTS, "table": np.ones((2, 2), np.int32)}


def lazy_name(folder, stack):
    vars(rankmon).pop("weight_ranks", None)
    return lambda: rankmon.weight_ranks(INTEGERS)


def deprecated_name(folder, stack):
    with pytest.warns(DeprecationWarning, match="rankmon.rank.weight_ranks"):
        from rankmon.rank import weight_ranks
    return lambda: weight_ranks(INTEGERS)


def alias_file(folder, stack):
    from rankmon.alerts import RankBelow

    alerts = [RankBelow(0.75)]
    monitor = stack.enter_context(
        rankmon.RankMonitor(PROBLEM, every=1, probes=["weights"], alerts=alerts)
    )
    monitor(0, WEIGHTS)
    return lambda: monitor(1, np.diag([1.0, 0.0]))


def jsonl_writer(folder, stack):
    jsonl_reader(folder, stack)
    return lambda: stack.enter_context(rankmon.writers.JsonlWriter(folder / "a.jsonl"))


def jsonl_reader(folder, stack):
    with rankmon.JsonlWriter(folder / "a.jsonl") as writer:
        writer.write(RECORD)
    with (folder / "a.jsonl").open("a") as file:
        file.write("{}\n{}\n")
    return lambda: rankmon.read_jsonl(folder / "a.jsonl")


def tensorboard_writer(folder, stack):
    writer = stack.enter_context(rankmon.TensorBoardWriter(folder))
    writer.write(RECORD)
    for path in folder.iterdir():
        path.unlink()
    return lambda: writer.write(RECORD)


def writer_of_a_monitor(folder, stack):
    monitor = stack.enter_context(
        rankmon.RankMonitor(PROBLEM, every=1, probes=["weights"], logdir=folder)
    )
    monitor(0, WEIGHTS)
    (folder / "rankmon.jsonl").unlink()
    return lambda: monitor(1, WEIGHTS)


WAYS = [
    lazy_name,
    deprecated_name,
    alias_file,
    jsonl_writer,
    jsonl_reader,
    tensorboard_writer,
    writer_of_a_monitor,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_warning_names_the_users_line(tmp_path, way):
    with ExitStack() as stack:
        warns = way(tmp_path, stack)
        with pytest.warns(rankmon.RankmonWarning) as caught:
            warns()
    lines = {(warning.filename, warning.lineno) for warning in caught}
    assert lines == {(__file__, warns.__code__.co_firstlineno)}
