"""Closed-form theory: predicted ranks (exported here), spectra, and Lemma 8's determinants."""

from importlib import import_module
from typing import TYPE_CHECKING

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
from rankmon.theory.learning_coefficient import LearningCoefficient, learning_coefficient
from rankmon.theory.residual import ResidualBlocks, ResidualChain
from rankmon.theory.tied import MatrixPower, TiedAutoencoder, TiedChain

if TYPE_CHECKING:
    from rankmon.theory.hidden_layer import (
        rank_functional_hidden,
        rank_outer_group_bound,
        rank_outer_rescaling_bound,
        rank_outer_tanh,
        unit_singular_values,
    )

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


if not TYPE_CHECKING:  # with a __getattr__, type checkers would accept any name

    def __getattr__(name):
        """Import `hidden_layer` at first use: it needs arrays, and `rankmon predict` does not."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module("rankmon.theory.hidden_layer"), name)
