"""rankmon watches the ranks of weights and of the loss Hessian while a JAX network trains."""

# What is measured
from rankmon.problem import Problem

# One measurement
from rankmon.hessian import HessianProbe, hessian_ranks
from rankmon.rank import NumericalRank, Tolerance, WeightRank, weight_ranks

# During training
from rankmon.monitor import RankMonitor, RankmonWarning
from rankmon.probes import Lemma8Probe, WeightsProbe
from rankmon.writers import JsonlWriter, MemoryWriter, Record, TensorBoardWriter, read_jsonl

# What to measure, when, where to, what to expect
from rankmon import lemma8, probes, schedule, theory, writers  # isort: skip

__all__ = [
    "HessianProbe",
    "JsonlWriter",
    "Lemma8Probe",
    "MemoryWriter",
    "NumericalRank",
    "Problem",
    "RankMonitor",
    "RankmonWarning",
    "Record",
    "TensorBoardWriter",
    "Tolerance",
    "WeightRank",
    "WeightsProbe",
    "hessian_ranks",
    "lemma8",
    "probes",
    "read_jsonl",
    "schedule",
    "theory",
    "weight_ranks",
    "writers",
]
