"""Glob patterns over names of parameters and tags."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase


def as_patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    """The glob patterns; one alone may come without a list around it."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether the name matches one of the glob patterns."""
    return any(matching((name,), pattern) for pattern in patterns)


def matching(names: Iterable[str], pattern: str) -> frozenset[str]:
    """Return the names that the pattern matches: its brackets as they are, else as a glob's."""
    literal = pattern.replace("[", "[[]")
    found = frozenset(name for name in names if fnmatchcase(name, literal))
    return found or frozenset(name for name in names if fnmatchcase(name, pattern))
