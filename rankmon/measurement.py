"""The building blocks of a probe of your own: the public names of `rankmon.probes.base`."""

from rankmon._util.facts import Fact
from rankmon._util.text import listed
from rankmon.probes.base import (
    Description,
    Measurement,
    Prediction,
    PreparedProbe,
    Probe,
    State,
    count_scalar,
    rank_scalars,
)
from rankmon.problem.point import Snapshot

__all__ = [
    "Description",
    "Fact",
    "Measurement",
    "Prediction",
    "PreparedProbe",
    "Probe",
    "Snapshot",
    "State",
    "count_scalar",
    "listed",
    "rank_scalars",
]
