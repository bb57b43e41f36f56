"""Closed-form theory: predicted ranks (exported here), spectra, and Lemma 8's determinants."""

from rankmon.theory.closed_forms import (
    number_of_parameters,
    rank_functional,
    rank_functional_bound,
    rank_functional_columns,
    rank_loss,
    rank_loss_bound,
    rank_outer,
    rank_outer_bound,
    rank_per_parameter,
)
from rankmon.theory.convolutional import Convolutional
from rankmon.theory.families import FormulaRank, NetworkFamily
from rankmon.theory.hidden_layer import (
    rank_functional_hidden,
    rank_outer_group_bound,
    rank_outer_rescaling_bound,
    rank_outer_tanh,
    unit_singular_values,
)
from rankmon.theory.learning_coefficient import LearningCoefficient, learning_coefficient
from rankmon.theory.residual import ResidualBlocks, ResidualChain
from rankmon.theory.tied import MatrixPower, TiedAutoencoder, TiedChain

__all__ = [
    "Convolutional",
    "FormulaRank",
    "LearningCoefficient",
    "MatrixPower",
    "NetworkFamily",
    "ResidualBlocks",
    "ResidualChain",
    "TiedAutoencoder",
    "TiedChain",
    "learning_coefficient",
    "number_of_parameters",
    "rank_functional",
    "rank_functional_bound",
    "rank_functional_columns",
    "rank_functional_hidden",
    "rank_loss",
    "rank_loss_bound",
    "rank_outer",
    "rank_outer_bound",
    "rank_outer_group_bound",
    "rank_outer_rescaling_bound",
    "rank_outer_tanh",
    "rank_per_parameter",
    "unit_singular_values",
]
