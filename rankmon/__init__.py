"""rankmon watches the ranks of weights and of the loss Hessian while a JAX network trains.

Names are imported at their first use (PEP 562): `rankmon predict`, `rankmon report` and the
TensorBoard plugin start without JAX. With EAGER_IMPORT set in the environment all are imported now.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankmon import (
        alerts,
        hooks,
        lemma8,
        probes,
        schedule,
        spectral_theory,
        theory,
        writers,
    )
    from rankmon.hessian.gauss_newton import OuterRank
    from rankmon.linalg.lanczos import Estimate, StochasticSpectrum
    from rankmon.linalg.numerical_rank import NumericalRank, Tolerance
    from rankmon.linalg.sketch import SketchedRank
    from rankmon.linalg.spectrum import reconstruction_error
    from rankmon.measure import (
        PredictedRanks,
        hessian_ranks,
        hessian_spectra,
        ntk_gram,
        ntk_rank,
        outer_rank,
        predicted_ranks,
        stochastic_spectra,
    )
    from rankmon.monitor import RankMonitor, RankmonWarning, SeedsMonitor
    from rankmon.probes import FeaturesProbe, HessianProbe, Lemma8Probe, WeightsProbe
    from rankmon.problem import Problem
    from rankmon.weights import WeightRank, weight_counts, weight_ranks
    from rankmon.writers import JsonlWriter, MemoryWriter, Record, TensorBoardWriter, read_jsonl

# Each module with the public names that are imported from it; "" for modules that are names.
_NAMES = {
    "": "alerts hooks lemma8 probes schedule spectral_theory theory writers",
    "hessian.gauss_newton": "OuterRank",
    "linalg.lanczos": "Estimate StochasticSpectrum",
    "linalg.numerical_rank": "NumericalRank Tolerance",
    "linalg.sketch": "SketchedRank",
    "linalg.spectrum": "reconstruction_error",
    "measure": "PredictedRanks hessian_ranks hessian_spectra ntk_gram ntk_rank outer_rank "
    "predicted_ranks stochastic_spectra",
    "monitor": "RankMonitor SeedsMonitor",
    "_util.warnings": "RankmonWarning",
    "probes": "FeaturesProbe HessianProbe Lemma8Probe WeightsProbe",
    "problem": "Problem",
    "weights": "WeightRank weight_counts weight_ranks",
    "writers": "JsonlWriter MemoryWriter Record TensorBoardWriter read_jsonl",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rankmon' has no attribute {name!r}")
    home = _HOMES[name]
    found = (
        getattr(import_module(f"rankmon.{home}"), name)
        if home
        else import_module(f"rankmon.{name}")
    )
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if os.environ.get("EAGER_IMPORT"):
    for _name in __all__:
        __getattr__(_name)
