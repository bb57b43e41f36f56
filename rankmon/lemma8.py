"""`rankmon.theory.lemma8` under its public name."""

from rankmon.theory.lemma8 import (
    Assumptions,
    DeterminantPath,
    assumptions,
    balanced_stack,
    balancedness,
    class_mean_size,
    class_means,
    target_input_correlation,
    trace_B,
)

__all__ = [
    "Assumptions",
    "DeterminantPath",
    "assumptions",
    "balanced_stack",
    "balancedness",
    "class_mean_size",
    "class_means",
    "target_input_correlation",
    "trace_B",
]
