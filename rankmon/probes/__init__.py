"""Probes: named measurements that a monitor repeats.

To write your own probe, import its building blocks from `rankmon.measurement`.
"""

from rankmon.probes.collapse import CollapseProbe
from rankmon.probes.features import FeaturesProbe
from rankmon.probes.gradients import GradientsProbe
from rankmon.probes.hessian import HessianProbe
from rankmon.probes.lemma8 import Lemma8Probe
from rankmon.probes.ntk import NtkProbe
from rankmon.probes.registry import as_probes
from rankmon.probes.weights import WeightsProbe

__all__ = [
    "CollapseProbe",
    "FeaturesProbe",
    "GradientsProbe",
    "HessianProbe",
    "Lemma8Probe",
    "NtkProbe",
    "WeightsProbe",
    "as_probes",
]
