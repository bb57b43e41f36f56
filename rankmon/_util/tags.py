"""Tags of scalars: the Hessian's parts, reserved names, names that are told apart."""

from collections.abc import Collection, Sequence

HESSIAN_PARTS = ("H_L", "H_o", "H_f", "H_f_fixed")


def told_apart(names: Sequence[str], *, taken: Collection[str] = ()) -> tuple[str, ...]:
    """Return the names; one that is taken or came before is numbered, as in "W", "W (2)"."""
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


# What a weight's rank_low, rank_high and gap would otherwise overwrite.
RESERVED_NAMES = frozenset({*HESSIAN_PARTS, "Omega"})
