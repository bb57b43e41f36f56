"""Custom probes that take no time, and a function that measures with any probe."""

import numpy as np

from rankmon._util.facts import Fact
from rankmon.probes.base import Description, Measurement
from rankmon.problem.point import Snapshot


class Light:
    """A probe that takes no time: it logs the first entry of the first weight."""

    name = "light"

    def placeholder_state(self, problem):
        return {}

    def prepare(self, flat):
        return self

    def initial_state(self):
        return {}

    def measure(self, snapshot, state):
        return Measurement({"light": float(snapshot.theta[0])}), state

    def describe(self):
        return Description([Fact("light", "the first entry")])


class Remembering(Light):
    """A probe that remembers the first step that it measured."""

    name = "remembering"

    def placeholder_state(self, problem):
        return self.initial_state()

    def initial_state(self):
        return {"first": np.full(2, -1.0)}

    def measure(self, snapshot, state):
        first = np.full(2, float(snapshot.step)) if state["first"][0] < 0 else state["first"]
        return Measurement({"first": first[0]}), {"first": first}


def measured_by(probe, problem, params, state=None, step=0):
    """Return a prepared probe's measurement, and its next state."""
    snapshot = Snapshot.take(problem.flat(params), step, params)
    return probe.measure(snapshot, probe.initial_state() if state is None else state)
