"""rankmon watches the ranks of weights and of the loss Hessian while a JAX network trains.

Names are imported at their first use (PEP 562): `rankmon predict`, `rankmon report` and the
TensorBoard plugin start without JAX. Set EAGER_IMPORT in the environment to import all at once.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

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
    from rankmon._util.warnings import RankmonWarning
    from rankmon.hessian.gauss_newton import OuterRank
    from rankmon.linalg.eigenpairs import Eigenpairs
    from rankmon.linalg.estimate import Estimate
    from rankmon.linalg.lanczos import StochasticSpectrum
    from rankmon.linalg.numerical_rank import NumericalRank, Tolerance
    from rankmon.linalg.signed_spectrum import SignedSpectrum
    from rankmon.linalg.sketch import SketchedRank
    from rankmon.linalg.spectrum import reconstruction_error
    from rankmon.measure import (
        MeshJacobian,
        MeshOperator,
        PartOperator,
        PredictedRanks,
        hessian_curvature,
        hessian_eigenpairs,
        hessian_operator,
        hessian_ranks,
        hessian_spectra,
        jacobian_operator,
        ntk_gram,
        ntk_rank,
        outer_rank,
        predicted_ranks,
        stochastic_spectra,
    )
    from rankmon.monitor import RankMonitor, SeedsMonitor
    from rankmon.probes import (
        CollapseProbe,
        FeaturesProbe,
        GradientsProbe,
        HessianProbe,
        Lemma8Probe,
        WeightsProbe,
    )
    from rankmon.problem import Problem
    from rankmon.weights import WeightRank, weight_counts, weight_ranks
    from rankmon.writers import JsonlWriter, MemoryWriter, Record, TensorBoardWriter, read_jsonl

# The same names for use at run time; tests/house/test_names.py checks that they agree.
_NAMES = {
    "_util.warnings": ["RankmonWarning"],
    "hessian.gauss_newton": ["OuterRank"],
    "linalg.eigenpairs": ["Eigenpairs"],
    "linalg.estimate": ["Estimate"],
    "linalg.lanczos": ["StochasticSpectrum"],
    "linalg.numerical_rank": ["NumericalRank", "Tolerance"],
    "linalg.signed_spectrum": ["SignedSpectrum"],
    "linalg.sketch": ["SketchedRank"],
    "linalg.spectrum": ["reconstruction_error"],
    "measure": [
        "MeshJacobian",
        "MeshOperator",
        "PartOperator",
        "PredictedRanks",
        "hessian_curvature",
        "hessian_eigenpairs",
        "hessian_operator",
        "hessian_ranks",
        "hessian_spectra",
        "jacobian_operator",
        "ntk_gram",
        "ntk_rank",
        "outer_rank",
        "predicted_ranks",
        "stochastic_spectra",
    ],
    "monitor": ["RankMonitor", "SeedsMonitor"],
    "probes": [
        "CollapseProbe",
        "FeaturesProbe",
        "GradientsProbe",
        "HessianProbe",
        "Lemma8Probe",
        "WeightsProbe",
    ],
    "problem": ["Problem"],
    "weights": ["WeightRank", "weight_counts", "weight_ranks"],
    "writers": ["JsonlWriter", "MemoryWriter", "Record", "TensorBoardWriter", "read_jsonl"],
}
_HOMES = {name: f"rankmon.{module}" for module, names in _NAMES.items() for name in names}
# Modules that are attributes of the package but not in `__all__`.
_UNLISTED = {"curvature", "keras", "layout", "measurement", "parts", "rank"}

__all__ = [
    "CollapseProbe",
    "Eigenpairs",
    "Estimate",
    "FeaturesProbe",
    "GradientsProbe",
    "HessianProbe",
    "JsonlWriter",
    "Lemma8Probe",
    "MemoryWriter",
    "MeshJacobian",
    "MeshOperator",
    "NumericalRank",
    "OuterRank",
    "PartOperator",
    "PredictedRanks",
    "Problem",
    "RankMonitor",
    "RankmonWarning",
    "Record",
    "SeedsMonitor",
    "SignedSpectrum",
    "SketchedRank",
    "StochasticSpectrum",
    "TensorBoardWriter",
    "Tolerance",
    "WeightRank",
    "WeightsProbe",
    "alerts",
    "hessian_curvature",
    "hessian_eigenpairs",
    "hessian_operator",
    "hessian_ranks",
    "hessian_spectra",
    "hooks",
    "jacobian_operator",
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


def __dir__() -> list[str]:
    return __all__.copy()


if not TYPE_CHECKING:  # with a __getattr__, type checkers would accept any name

    def __getattr__(name):
        if name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
        elif name in __all__ or name in _UNLISTED:
            value = import_module(f"rankmon.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    if os.environ.get("EAGER_IMPORT"):
        for _name in __all__:
            __getattr__(_name)
