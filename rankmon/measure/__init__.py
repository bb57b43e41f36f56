"""Functions that measure once, at given parameters, without a monitor."""

from rankmon.measure.hessian import hessian_curvature, hessian_ranks, hessian_spectra
from rankmon.measure.mesh_jacobian_operator import MeshJacobian, jacobian_operator
from rankmon.measure.mesh_operator import MeshOperator
from rankmon.measure.ntk import ntk_gram, ntk_rank
from rankmon.measure.operator import PartOperator, hessian_eigenpairs, hessian_operator
from rankmon.measure.outer import outer_rank
from rankmon.measure.predicted import PredictedRanks, predicted_ranks
from rankmon.measure.stochastic import stochastic_spectra

__all__ = [
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
]
