"""Tags: the parts of the Hessian, reserved names, rankmon's own tags, and the order of names."""

import re
from collections.abc import Collection, Iterable, Sequence

HESSIAN_PARTS = ("H_L", "H_o", "H_f", "H_f_fixed")

# The families of curves of a part's signed eigenvalues, as <family>/<part>. Weights have soft ranks
# too, as <family>/<layer>; no layer is named like a part.
EXTREMES = ("eigenvalue_max", "eigenvalue_min")
# The edge of stability, as <threshold>/H_L.
THRESHOLD = "eigenvalue_max_threshold"
EPSILON_RANKS = ("rank_0.1", "rank_0.01", "rank_0.001")
NEGATIVE = ("negative_0.01", "negative")
MOMENTS = ("trace", "norm")
SOFT_RANKS = ("stable_rank", "effective_rank")
CURVATURE = (*EXTREMES, *EPSILON_RANKS, *NEGATIVE, *MOMENTS, *SOFT_RANKS)

# The ends of an estimate's interval, as <prefix>/<family>/<part>.
INTERVAL_LOW, INTERVAL_HIGH = "interval_low", "interval_high"

CLASS_MEANS = "collapse/rank_means"

# Several probe batches: the lowest and the highest value of a tag are at batches/<tag>/low and
# high, and the array of the values of all batches is at batches/<tag>.
BATCHES = "batches/"

# A weight with such a name would overwrite tags of other ranks, such as rank_low/<name>.
RESERVED_NAMES = frozenset({*HESSIAN_PARTS, "Omega", CLASS_MEANS})

CARD, ALERTS, LAYERS = "rankmon/card", "rankmon/alerts", "rankmon/layers"  # Markdown
_RANKMONS = re.compile(
    r"(layers/)?(rank|rank_weights|rank_features|stable_rank|det_sign|lemma8|spectrum|rankmon)/."
)


def made_unique(names: Sequence[str], *, taken: Collection[str] = ()) -> tuple[str, ...]:
    """Return the names, with numbers added to those that are taken or repeated: "W", "W (2)"."""
    used, given = set(taken), frozenset(names)
    results = []
    for name in names:
        unique, number = name, 1
        while unique in used or (number > 1 and unique in given):
            number += 1
            unique = f"{name} ({number})"
        used.add(unique)
        results.append(unique)
    return tuple(results)


def without_batches(tag: str) -> str:
    """Return the tag whose values over the batches this tag summarizes; other tags unchanged."""
    if not tag.startswith(BATCHES):
        return tag
    return tag.removeprefix(BATCHES).removesuffix("/low").removesuffix("/high")


def is_rankmons(tags: Iterable[str]) -> bool:
    """Return whether a run with these tags, of any kind, was written by rankmon."""
    return any(_RANKMONS.match(tag) for tag in tags)


# A number with decimals, as in lr_0.003; digits between dots, as in a version or a path, are whole.
_NUMBER = re.compile(r"((?<![\d.])\d+(?:\.\d+(?!\.?\d))?(?:e[-+]?\d+)?|\d+)", re.IGNORECASE)


def natural_order(name: str) -> list[tuple[float, str]]:
    """Return a key that sorts seed_2 before seed_10, and lr_0.003 before lr_0.01."""
    parts = _NUMBER.split(name)  # numbers have odd indices
    return [(float(part), "") if i % 2 else (-1.0, part) for i, part in enumerate(parts)]
