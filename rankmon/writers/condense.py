"""Condense a record of a network with many layers for TensorBoard: one array for each family.

TensorBoard draws every scalar as a chart of its own; the charts of forty layers bury all others.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rankmon._util.globs import as_patterns, matches
from rankmon._util.layers import by_family, values_of
from rankmon._util.tags import without_batches

# With more layers, only the chosen ones have curves.
MOST_LAYERS = 24


@dataclass(frozen=True)
class Condensed:
    """The scalars and arrays to write instead of a record's scalars.

    Attributes:
      scalars: tag -> number.
      arrays: `layers/<family>` -> the values of all layers, for each family that has layers without
        a curve.
      layers: `layers/<family>` -> the names of the layers, in the order of the array.
      unmatched: whether there are layers, and the globs match none of them.
    """

    scalars: Mapping[str, float]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unmatched: bool = False


def condensed(scalars: Mapping[str, float], layers: str | Sequence[str] | None = None) -> Condensed:
    """Leave out the curves of layers that are not chosen, and add an array for their families.

    Args:
      scalars: tag -> number.
      layers: globs over the names of the layers that have curves; None for all layers if no family
        has more than `MOST_LAYERS`, and no layer otherwise.
    """
    families = by_family(scalars)
    if layers is None and max(map(len, families.values()), default=0) <= MOST_LAYERS:
        return Condensed(scalars)
    chosen = as_patterns(layers or ())
    hidden = {
        family: [tag for layer, tag in tags.items() if not matches(layer, chosen)]
        for family, tags in families.items()
    }
    arrays = {f"layers/{family}": families[family] for family, tags in hidden.items() if tags}
    left_out = {tag for tags in hidden.values() for tag in tags}
    return Condensed(
        {tag: value for tag, value in scalars.items() if without_batches(tag) not in left_out},
        {name: np.array(values_of(tags, scalars)) for name, tags in arrays.items()},
        {name: tuple(tags) for name, tags in arrays.items()},
        unmatched=bool(chosen and families) and len(left_out) == sum(map(len, families.values())),
    )


def layers_text(layers: Mapping[str, tuple[str, ...]]) -> str:
    """Return the order of the layers in each array, as Markdown."""
    arrays_of: dict[tuple[str, ...], list[str]] = {}
    for name, of_array in layers.items():
        arrays_of.setdefault(of_array, []).append(f"`{name}`")
    return "\n\n".join(
        "\n".join(
            [
                f"The values in {', '.join(names)} are those of these layers, in this order:",
                "",
                *(f"{place}. `{layer}`" for place, layer in enumerate(of_array)),
            ]
        )
        for of_array, names in arrays_of.items()
    )


def layers_of_text(text: str) -> dict[str, dict[str, int]]:
    """Return array -> layer -> place in it, from `layers_text`.

    A layer whose name has several lines is left out.
    """
    found: dict[str, dict[str, int]] = {}
    for paragraph in text.split("The values in ")[1:]:
        arrays, _, layers = paragraph.partition(" are those of these layers")
        named = re.findall(r"^(\d+)\. `(.*)`$", layers, re.MULTILINE)
        places = {layer: int(place) for place, layer in named}
        found |= dict.fromkeys(re.findall("`([^`]*)`", arrays), places)
    return found
