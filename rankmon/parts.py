"""The old name of `rankmon.hessian.memory`, for one version."""

from rankmon._util.moved import moved_names

__getattr__ = moved_names(
    "rankmon.parts",
    {
        "DEFAULT_MEMORY_LIMIT": "rankmon.hessian.memory",
        "HESSIAN_PARTS": "rankmon._util.tags",
        "HessianParts": "rankmon.engines.dense_parts",
        "bytes_text": "rankmon._util.text",
        "dense_bytes": "rankmon.hessian.memory",
    },
)
