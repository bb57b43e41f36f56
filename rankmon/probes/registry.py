"""The probes that users can select by name: "hessian", "weights", ..., or all that apply: "all"."""

from collections.abc import Sequence
from dataclasses import dataclass

from rankmon.linalg.numerical_rank import Tolerance
from rankmon.probes.base import NotApplicableError, PreparedProbe, Probe, State, WrappingProbe
from rankmon.probes.collapse import CollapseProbe
from rankmon.probes.features import FeaturesProbe
from rankmon.probes.gradients import GradientsProbe
from rankmon.probes.hessian import HessianProbe
from rankmon.probes.ntk import NtkProbe
from rankmon.probes.weights import WeightsProbe
from rankmon.problem.flat import FlatProblem
from rankmon.problem.problem import Problem

ALL = "all"


@dataclass(frozen=True)
class OptionalProbe(WrappingProbe):
    """A probe that is left out of the run if it cannot measure the problem.

    Its state stays the placeholder then, so that `monitor.state` has the same keys in any case.
    """

    @property
    def per_batch(self) -> bool:
        """Whether the probe measures on each of several probe batches."""
        return getattr(self.probe, "per_batch", True)

    def placeholder_state(self, problem: Problem) -> State:
        """Return the placeholder of the probe."""
        return self.probe.placeholder_state(problem)

    def prepare(self, flat: FlatProblem) -> PreparedProbe:
        """Prepare the probe.

        Raises:
          NotApplicableError: if the probe refuses the problem.
        """
        try:
            return self.probe.prepare(flat)
        except (ValueError, MemoryError) as error:
            raise NotApplicableError(str(error)) from error


def as_probes(
    probes: Sequence[str | Probe], *, tolerance: Tolerance, memory_limit: int
) -> list[Probe]:
    """Return the probes with these names; probe objects are returned unchanged.

    "all" stands for all probes with a name. Those that do not apply are left out; the Hessian
    applies to every problem, so an error of its probe is raised. Next to "all", a probe object
    replaces the probe of the same name: ["all", HessianProbe(blocks=True)].

    Args:
      probes: "all", "hessian", "weights", "features", "gradients", "collapse", "ntk", or probe
        objects (`Lemma8Probe(learning_rate)`).
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
        "ntk": NtkProbe(),
    }
    weights = WeightsProbe(track=("start", "last"), spectra=True, products="auto")
    everything = named | {"weights": weights}

    def resolve(probe: str | Probe) -> Probe:
        if not isinstance(probe, str):
            if not hasattr(probe, "prepare"):
                raise TypeError(
                    f"expected probes to be names or probe objects, got {type(probe).__name__}; "
                    f"use one of {sorted([ALL, *named])} or an object with prepare()"
                )
            return probe
        if probe not in named:
            hint = "pass Lemma8Probe(learning_rate)" if probe == "lemma8" else "use one of these"
            among = sorted([ALL, *named])
            raise ValueError(f"expected a probe among {among}, got {probe!r}; {hint}")
        return named[probe]

    given = [probes] if isinstance(probes, str) else list(probes)
    chosen = [resolve(probe) for probe in given if not (isinstance(probe, str) and probe == ALL)]
    if len(chosen) < len(given):
        own = {probe.name: probe for probe in chosen}
        optional = {
            name: probe if name == "hessian" else OptionalProbe(probe)
            for name, probe in everything.items()
        }
        chosen = [*[x for n, x in optional.items() if n not in own], *chosen]
    names = [probe.name for probe in chosen]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"expected one or more distinct probes, got {names}; name each once")
    return chosen
