"""The scalars of a part's signed eigenvalues: extremes, moments, counts and their intervals."""

import math
from collections.abc import Mapping

from rankmon._util.tags import INTERVAL_HIGH, INTERVAL_LOW
from rankmon.linalg.estimate import Estimate
from rankmon.linalg.signed_spectrum import NEGATIVE_SHARE, SHARES, SignedSpectrum

# The curvature of a matrix that is not finite.
UNDEFINED = SignedSpectrum(
    **dict.fromkeys(
        (
            "largest",
            "smallest",
            "trace",
            "frobenius",
            "stable_rank",
            "effective_rank",
            "clearly_negative",
            "negative",
        ),
        Estimate.exact(math.nan),
    ),
    above=dict.fromkeys(SHARES, Estimate.exact(math.nan)),
)


def curvature_scalars(part: str, spectrum: SignedSpectrum) -> dict[str, float]:
    """Return tag -> number of one part's signed eigenvalues; numbers not measured have no tag."""
    families = _by_family(spectrum)
    return estimate_scalars({f"{family}/{part}": number for family, number in families.items()})


def estimate_scalars(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Return the scalars of these estimates by tag; estimates that are unknown have none.

    The ends of an estimate's interval have tags of their own. A number that is certain has none,
    but one whose ends coincide by estimation has, so that its curve always has a band.
    """
    scalars = {}
    for tag, estimate in estimates.items():
        if math.isnan(estimate.confidence):
            continue
        scalars[tag] = estimate.value
        if estimate.confidence < 1 or estimate.low < estimate.high:
            scalars[f"{INTERVAL_LOW}/{tag}"] = estimate.low
            scalars[f"{INTERVAL_HIGH}/{tag}"] = estimate.high
    return scalars


def undefined_curvature(part: str) -> dict[str, float]:
    """Return the scalars of a part that is not finite: NaN, for all that exact engines measure."""
    return curvature_scalars(part, UNDEFINED)


def _by_family(spectrum: SignedSpectrum) -> dict[str, Estimate]:
    return {
        "eigenvalue_max": spectrum.largest,
        "eigenvalue_min": spectrum.smallest,
        f"negative_{NEGATIVE_SHARE:g}": spectrum.clearly_negative,
        "negative": spectrum.negative,
        "trace": spectrum.trace,
        "norm": spectrum.frobenius,
        "stable_rank": spectrum.stable_rank,
        "effective_rank": spectrum.effective_rank,
        **{f"rank_{share:g}": count for share, count in spectrum.above.items()},
    }
