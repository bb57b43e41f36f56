"""Check the patterns of --tags: one that matches nothing is most likely a typing error."""

import sys
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from rankmon._util.globs import matches
from rankmon._util.tags import natural_order
from rankmon._util.text import listed, printable


def check_patterns(command: str, patterns: Sequence[str], tags: Collection[str]) -> None:
    """Check that the patterns match tags; say on stderr which of several patterns match none.

    Args:
      command: the command's name, for the line on stderr.
      patterns: the globs that the user gave.
      tags: the tags of all runs.

    Raises:
      ValueError: if no pattern matches any tag.
    """
    missed = [pattern for pattern in patterns if not any(matches(tag, [pattern]) for tag in tags)]
    if not missed:
        return
    names = ", ".join(repr(pattern) for pattern in missed)
    message = (
        f"expected --tags to match tags of these runs, got {names}, which "
        f"{'matches' if len(missed) == 1 else 'match'} none; {_remedy(missed[0], tags)}"
    )
    if len(missed) == len(patterns):
        raise ValueError(message)
    print(f"rankmon {command}: {printable(message)}", file=sys.stderr)


def _remedy(pattern: str, tags: Collection[str]) -> str:
    """Return the tag that the user may have meant, and the groups of tags that the runs have."""
    groups = sorted({_group(tag) for tag in tags}, key=natural_order)
    known = f"they have {listed(groups)}" if groups else "they have no such curves"
    near = get_close_matches(pattern, [*tags, *groups], n=1, cutoff=0.75)
    return f"did you mean {near[0]!r}? {known}" if near else known


def _group(tag: str) -> str:
    """Return the tag's family as a glob, or the tag itself."""
    family, slash, _ = tag.partition("/")
    return f"{family}/*" if slash else tag
