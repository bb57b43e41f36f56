"""The lowest, median and highest value of each family of curves over the layers."""

from collections.abc import Mapping

import numpy as np

from rankmon._util.layers import SUMMARIZED, by_family, values_of

# The lowest, median and highest of three values are these values.
_REPEATED = 3

_STATISTICS = (("min", np.min), ("median", np.median), ("max", np.max))


def layer_summaries(scalars: Mapping[str, float]) -> dict[str, float]:
    """Return `layers/<family>/min`, `median` and `max` for the families of more than three layers.

    They are NaN if the value of any layer is NaN.
    """
    families = by_family(scalars)
    shown = (f for f in SUMMARIZED if len(families.get(f, ())) > _REPEATED)
    return {
        f"layers/{family}/{name}": float(statistic(values_of(families[family], scalars)))
        for family in shown
        for name, statistic in _STATISTICS
    }
