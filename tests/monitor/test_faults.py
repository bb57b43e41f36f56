"""Test that kills, interrupts and full disks lose no record that was returned or flushed.

The trainings are forks of `faults_child`. Each ends with the same curves as an undisturbed one, bit
for bit, in rankmon.jsonl and in both of TensorBoard's readers.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from rankmon import read_jsonl
from reading import legacy_events, server_events

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork there")
BACKGROUND = pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
STEPS, EVERY = 16, 2  # of the training
TAG = "rank/H_f_fixed"
KILLED = -9


class Trainings:
    """Asks the process that trains in its forks."""

    def __init__(self, folder):
        self._folder, self._numbers = folder, count()
        self._log = open(folder / "log", "w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("faults_child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        for background in (False, True):
            self._ask(folder=self.new(), background=background, here=True)

    def new(self):
        """A folder for a training."""
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        return folder

    def _ask(self, **order):
        order["folder"] = str(order["folder"])
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def __call__(self, folder, background, **order):
        """The exit status, and what the training said; nothing that it said may be lost."""
        answer = self._ask(folder=folder, background=background, **order)
        assert answer["status"] in (0, KILLED), self.log()
        promised = range(order.get("removed_at", 0), order.get("full_from", 10**6))
        check_kept(folder, answer["said"], promised)
        return answer["status"], dict(answer["said"])

    def log(self):
        """The end of what the forks wrote."""
        self._log.seek(0)
        return self._log.read()[-5000:]

    def close(self):
        self._process.communicate()
        self._log.close()


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    trainings = Trainings(tmp_path_factory.mktemp("trainings"))
    yield trainings
    trainings.close()


@pytest.fixture(scope="module")
def straight(train):
    """A training that nothing happens to: its seconds, its curve, and what it said."""
    folder = train.new()
    _, said = train(folder, False)
    assert said["steps"] == due_steps(STEPS)
    return said["seconds"], curve(folder), said


def due_steps(last):
    return sorted({*range(0, last, EVERY), last})


def all_records(folder):
    path = folder / "run" / "rankmon.jsonl"
    return read_jsonl(path, superseded=True) if path.exists() else []


def check_kept(folder, said, promised):
    """What was returned or flushed is in the attempt's records, and nothing is there twice.

    Args:
      folder: of the training.
      said: what it said.
      promised: the steps whose files were neither removed nor on a full disk.
    """
    records = all_records(folder)
    places = [(record.step, record.attempt) for record in records]
    assert len(places) == len(set(places))
    attempt = max((record.attempt for record in records), default=0)
    kept = {record.step for record in records if record.attempt == attempt}
    begins = dict(said).get("begins", 0)
    expected = {step for what, step in said if what == "returned"}
    for flushed in (step for what, step in said if what == "flushed" and step in promised):
        expected.update(range(begins + begins % EVERY, flushed + 1, EVERY))
    assert expected & set(promised) <= kept


def curve(folder):
    """The bits of H_f_fixed's curve, as every reader shows it."""
    records = read_jsonl(folder / "run" / "rankmon.jsonl")
    steps = [record.step for record in records]
    legacy = legacy_events(folder / "run").Scalars(TAG)
    server = server_events(folder / "run").Tensors(TAG)
    assert [event.step for event in legacy] == steps
    assert [event.step for event in server] == steps
    assert [event.value for event in legacy] == [record.scalars[TAG] for record in records]
    return {
        record.step: (record.scalars[TAG], record.arrays["spectrum/H_f_fixed"].tobytes())
        for record in records
    }


# Kills


def kill_at_random(train, straight, background, seed, kills):
    """Kills a training, and those that go on from it, at random instants until one of them ends."""
    seconds, expected, _ = straight
    rng, killed = random.Random(seed), 0
    while killed < kills:
        folder, status = train.new(), KILLED
        while status == KILLED:
            status, _ = train(folder, background, after=rng.uniform(0, seconds))
            killed += status == KILLED
        assert curve(folder) == expected


def resumable(train, background):
    """The folder of a training that was killed some steps after its checkpoint."""
    folder = train.new()
    assert train(folder, background, dies_at=STEPS - 5)[0] == KILLED
    return folder


def kill_at_events(train, straight, background, folder, every=1):
    """Kills a training before and in what it does to files, each time in a copy of the folder."""
    _, said = train(copy_of(train, folder), background)
    events, killed = said["events"], 0
    assert {"start", "write", "replace"} <= set(events)
    places = [(at, "before") for at in range(len(events))]
    places += [(at, "torn") for at, event in enumerate(events) if event in ("write", "start")]
    for at, how in places[::every]:
        mine = copy_of(train, folder)
        status, _ = train(mine, background, event=at, how=how)
        killed += status == KILLED
        train(mine, background)
        assert curve(mine) == straight[1], (events[at], how)
    return killed


def copy_of(train, template):
    return shutil.copytree(template, train.new(), dirs_exist_ok=True)


def test_some_kills(train, straight):
    kill_at_random(train, straight, False, seed=0, kills=2)
    assert kill_at_events(train, straight, True, resumable(train, True), every=25) >= 2


@pytest.mark.slow
@BACKGROUND
def test_kills_at_random(train, straight, background):
    kill_at_random(train, straight, background, seed=1, kills=30)


@pytest.mark.slow
@BACKGROUND
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "resumed"])
def test_kills_at_every_write_rename_and_start(train, straight, fresh, background):
    folder = train.new() if fresh else resumable(train, background)
    every, least = (3, 20) if fresh else (1, 50)
    assert kill_at_events(train, straight, background, folder, every) >= least


# Interrupts


def interrupt(train, background, number, seed):
    """Interrupts a training at random instants; its loop goes on with the step that it was at."""
    folder = train.new()
    order = {"interrupts": number, "pause": 0.004, "seed": seed}
    _, said = train(folder, background, steps=STEPS, **order)
    assert said["interrupts"] >= number
    assert said["settings"]
    last = said["closed"]
    assert said["steps"] == [record.step for record in all_records(folder)] == due_steps(last)
    undisturbed = train.new()
    train(undisturbed, background, steps=last)
    assert curve(folder) == curve(undisturbed)


@BACKGROUND
def test_some_interrupts(train, background):
    interrupt(train, background, 5, seed=0)


@pytest.mark.slow
@BACKGROUND
def test_many_interrupts(train, background):
    interrupt(train, background, 100, seed=1)


# Disks


@BACKGROUND
def test_a_full_disk_that_has_space_again(train, straight, background):
    folder = train.new()
    assert train(folder, background, full_from=5, full_until=11)[0] == 0
    assert curve(folder) == straight[1]


@pytest.mark.slow
@BACKGROUND
@pytest.mark.parametrize("dies_at", range(5, 13))
def test_a_kill_while_the_disk_is_full(train, straight, background, dies_at):
    folder = train.new()
    assert train(folder, background, full_from=5, full_until=99, dies_at=dies_at)[0] == KILLED
    assert train(folder, background, full_from=7, full_until=13)[0] == 0
    assert curve(folder) == straight[1]


@BACKGROUND
def test_a_folder_that_is_removed(train, straight, background):
    folder, removed_at = train.new(), 7
    status, _ = train(folder, background, removed_at=removed_at)
    assert status == 0
    found = curve(folder)
    assert found.items() <= straight[1].items()
    assert found.keys() >= {step for step in due_steps(STEPS) if step >= removed_at}
