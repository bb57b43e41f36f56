"""Names in tags: the Hessian's parts, names reserved for them, and numbers for repeated names."""

from collections.abc import Collection, Sequence

HESSIAN_PARTS = ("H_L", "H_o", "H_f", "H_f_fixed")

# Tags such as rank_low/<name> and gap/<name> of a weight with such a name would overwrite theirs.
RESERVED_NAMES = frozenset({*HESSIAN_PARTS, "Omega"})


def told_apart(names: Sequence[str], *, taken: Collection[str] = ()) -> tuple[str, ...]:
    """Return the names, numbering one that is taken or came before: "W", "W (2)"."""
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
