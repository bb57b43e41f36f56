"""rankmon watches the ranks of weights and of the loss Hessian while a JAX network trains."""

# What is measured
from rankmon.problem import Problem

# One measurement
from rankmon.expectation import PredictedRanks, predicted_ranks
from rankmon.hessian import HessianProbe, hessian_ranks, hessian_spectra
from rankmon.ntk import ntk_gram, ntk_rank
from rankmon.outer import OuterRank, outer_rank
from rankmon.rank import NumericalRank, Tolerance, WeightRank, weight_ranks
from rankmon.spectrum import reconstruction_error
from rankmon.stochastic import stochastic_spectra
from rankmon.quadrature import Estimate, StochasticSpectrum
from rankmon.sketch import SketchedRank
from rankmon.counts import weight_counts

# During training
from rankmon.monitor import RankMonitor, RankmonWarning
from rankmon.seeds import SeedsMonitor
from rankmon.probes import FeaturesProbe, Lemma8Probe, WeightsProbe
from rankmon.writers import JsonlWriter, MemoryWriter, Record, TensorBoardWriter, read_jsonl

# What to measure, when, where to, what to expect
from rankmon import alerts, hooks, lemma8, probes, schedule, spectral_theory, theory, writers  # isort: skip

__all__ = [
    "Estimate",
    "FeaturesProbe",
    "HessianProbe",
    "JsonlWriter",
    "Lemma8Probe",
    "MemoryWriter",
    "NumericalRank",
    "OuterRank",
    "PredictedRanks",
    "Problem",
    "RankMonitor",
    "RankmonWarning",
    "Record",
    "SeedsMonitor",
    "SketchedRank",
    "StochasticSpectrum",
    "TensorBoardWriter",
    "Tolerance",
    "WeightRank",
    "WeightsProbe",
    "alerts",
    "hessian_ranks",
    "hessian_spectra",
    "hooks",
    "lemma8",
    "ntk_gram",
    "ntk_rank",
    "outer_rank",
    "predicted_ranks",
    "probes",
    "read_jsonl",
    "reconstruction_error",
    "schedule",
    "spectral_theory",
    "stochastic_spectra",
    "theory",
    "weight_counts",
    "weight_ranks",
    "writers",
]
