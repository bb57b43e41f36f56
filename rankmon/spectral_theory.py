"""`rankmon.theory.spectra` under its public name."""

from rankmon.theory.spectra import (
    PlateauMatch,
    Plateaus,
    functional_plateaus,
    match_plateaus,
    outer_plateaus,
    outer_spectrum,
)

__all__ = [
    "PlateauMatch",
    "Plateaus",
    "functional_plateaus",
    "match_plateaus",
    "outer_plateaus",
    "outer_spectrum",
]
