"""Units of a layer that no longer do anything on the probe batch: dormant and saturated ones."""

import numpy as np
from jaxtyping import Bool, Float

DORMANT_TAUS = (0.1, 0.025)
SATURATED_SHARE = 0.05


def dormant_units(
    magnitudes: Float[np.ndarray, " units"], tau: float
) -> Bool[np.ndarray, " units"]:
    """Return which units of a layer are tau-dormant.

    The score of unit i is s_i = E|h_i| / mean_k E|h_k|, with the mean over the layer's units k; the
    unit is dormant if s_i <= tau. If all units are zero, all are dormant (their scores are 0 / 0).

    Args:
      magnitudes: the mean E|h_i| of each unit's magnitude over the batch and all positions.
      tau: the threshold.

    Source: Sokar et al. 2023 (arXiv 2302.12902), equation 1 and definition 3.1.
    """
    largest = np.max(magnitudes)
    scaled = magnitudes / largest if largest > 0 else magnitudes  # sums of huge numbers overflow
    return scaled <= tau * np.mean(scaled)


def saturated_units(
    slopes: Float[np.ndarray, "rows units"], share: float = SATURATED_SHARE
) -> Bool[np.ndarray, " units"]:
    """Return which units of an activation f are saturated: f is nearly flat on the whole batch.

    A unit is saturated if |f'(z)| < share * max |f'| at every example and position. For tanh, this
    means |z| > 2.18; for leaky ReLU with a slope below the share, that z < 0 always, as for a dead
    unit of a ReLU; with a larger slope, leaky ReLU never saturates.

    Args:
      slopes: |f'(z)| divided by the largest value of |f'|.
      share: the share; that it is 0.05 is rankmon's choice.

    Source: saturation as in Glorot and Bengio 2010 (section 3), of a unit on all inputs as in the
    frozen units of Joudaki et al. 2025 (arXiv 2510.00304), for which the derivative vanishes.
    """
    return np.all(slopes < share, axis=0)
