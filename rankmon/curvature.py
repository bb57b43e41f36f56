"""The old name of `rankmon.hessian.memory`, for one version."""

from rankmon._util.moved import moved_names

__getattr__ = moved_names("rankmon.curvature", {"dense_bytes": "rankmon.hessian.memory"})
