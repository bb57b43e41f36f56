"""Probes: named measurements that a monitor repeats.

`rankmon.measurement` has what a probe of your own needs.
"""

from rankmon.probes.features import FeaturesProbe
from rankmon.probes.hessian import HessianProbe
from rankmon.probes.lemma8 import Lemma8Probe
from rankmon.probes.registry import as_probes
from rankmon.probes.weights import WeightsProbe

__all__ = ["FeaturesProbe", "HessianProbe", "Lemma8Probe", "WeightsProbe", "as_probes"]
