"""The probes that users can select by name: "hessian", "weights", "features", and others."""

from collections.abc import Sequence

from rankmon.linalg.numerical_rank import Tolerance
from rankmon.probes.base import Probe
from rankmon.probes.collapse import CollapseProbe
from rankmon.probes.features import FeaturesProbe
from rankmon.probes.gradients import GradientsProbe
from rankmon.probes.hessian import HessianProbe
from rankmon.probes.weights import WeightsProbe


def as_probes(
    probes: Sequence[str | Probe], *, tolerance: Tolerance, memory_limit: int
) -> list[Probe]:
    """Return the probes with these names; probe objects are returned unchanged.

    Args:
      probes: "hessian", "weights", "features", "gradients", "collapse", or probe objects
        (`Lemma8Probe(learning_rate)`).
      tolerance: the cut of the probe "hessian".
      memory_limit: the memory limit of the probe "hessian", in bytes.

    Raises:
      ValueError: for an unknown name, for an empty sequence, or for two probes of the same name.
      TypeError: for an entry that is neither a name nor a probe.
    """
    named: dict[str, Probe] = {
        "hessian": HessianProbe(tolerance=tolerance, memory_limit=memory_limit),
        "weights": WeightsProbe(),
        "features": FeaturesProbe(),
        "gradients": GradientsProbe(),
        "collapse": CollapseProbe(),
    }

    def resolve(probe: str | Probe) -> Probe:
        if not isinstance(probe, str):
            if not hasattr(probe, "prepare"):
                raise TypeError(
                    f"expected probes to be names or probe objects, got {type(probe).__name__}; "
                    f"use one of {sorted(named)} or an object with prepare()"
                )
            return probe
        if probe not in named:
            hint = "pass Lemma8Probe(learning_rate)" if probe == "lemma8" else "use one of these"
            raise ValueError(f"expected a probe among {sorted(named)}, got {probe!r}; {hint}")
        return named[probe]

    chosen = [resolve(probe) for probe in ((probes,) if isinstance(probes, str) else probes)]
    names = [probe.name for probe in chosen]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"expected one or more distinct probes, got {names}; name each once")
    return chosen
