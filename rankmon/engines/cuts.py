"""The common cut of the Hessian's parts, and the finest cuts above the rounding of products."""

from collections.abc import Mapping

from rankmon.linalg.numerical_rank import Tolerance


def common_cuts(
    norms: Mapping[str, float], tolerance: Tolerance, *, default: float
) -> dict[str, float]:
    """Return the cut of each part, relative to the larger of its norm and that of H_L."""
    return {
        part: tolerance.cut(norm, default=default, reference_norm=norms["H_L"])
        for part, norm in norms.items()
    }


def finest_cuts(norms: Mapping[str, float], *, p: int, eps: float) -> dict[str, float]:
    """Return the least cut of each part that tells eigenvalues from the rounding of products.

    As for `common_cuts`, H_L's norm counts too; a part by itself has `finest_cut`.
    """
    return {part: finest_cut(max(norm, norms["H_L"]), p=p, eps=eps) for part, norm in norms.items()}


def finest_cut(norm: float, *, p: int, eps: float) -> float:
    """Return the rounding of products with a matrix of this norm, and of its spectrum."""
    return min(p, 10) * eps * norm


def below_rounding(cuts: Mapping[str, float], finest: Mapping[str, float]) -> tuple[str, ...]:
    """Return a warning if a cut is below the finest one, in a tuple that is else empty.

    Its words are the same at every step, so that the user is warned once.
    """
    if all(cut >= finest[part] for part, cut in cuts.items()):
        return ()
    return (
        "expected a tolerance above the rounding of the Hessian's products, 10 eps times its norm, "
        "got a smaller one: rank and low count what is above that rounding, high all that may be; "
        "raise the tolerance or leave it out",
    )
