"""Checks of parameter leaves: that they are the known ones, and that some are differentiated."""

from collections.abc import Sequence

import jax.numpy as jnp

from rankmon._util.warnings import warn_user
from rankmon.problem.pytree import LeafSpec


def leaves_fit(specs: Sequence[LeafSpec], known: Sequence[LeafSpec]) -> bool:
    """Whether parameters are like the known ones, but for Python's numbers that became arrays."""
    pairs = zip(specs, known, strict=True)
    return all(now == was or (was.is_number and now.shape == ()) for now, was in pairs)


def warn_of_python_numbers(specs: Sequence[LeafSpec]) -> None:
    numbers = python_floats(specs)
    if numbers:
        warn_user(
            f"expected parameters as arrays, got Python numbers at {numbers}, which are held fixed "
            "like the rate of a dropout layer; write jnp.asarray(...) for one that is trained, "
            "or leave it out by exclude="
        )


def python_floats(specs: Sequence[LeafSpec]) -> list[str]:
    return [
        spec.name
        for spec in specs
        if spec.is_number and spec.chosen and jnp.issubdtype(spec.dtype, jnp.floating)
    ]


def check_moving(specs: Sequence[LeafSpec]) -> None:
    if not any(spec.differentiated and spec.size for spec in specs):
        numbers = "write jnp.asarray(...) around Python's numbers, " if python_floats(specs) else ""
        raise ValueError(
            f"expected parameters with at least one floating leaf to differentiate, got "
            f"{leaves_text(specs)}; {numbers}pass the weights, or widen include="
        )


def leaves_text(specs: Sequence[LeafSpec]) -> str:
    shown = [f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in specs[:6]]
    return "{" + ", ".join(shown + (["..."] if len(specs) > 6 else [])) + "}"
