"""Glob patterns over the names of parameters and tags."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase


def as_patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the glob patterns as a tuple; a single pattern may be a string."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether the name matches one of the glob patterns."""
    return any(matching((name,), pattern) for pattern in patterns)


def matching(names: Iterable[str], pattern: str) -> frozenset[str]:
    """Return the names that the pattern matches; brackets are tried literally, then as a glob."""
    literal = pattern.replace("[", "[[]")
    found = frozenset(name for name in names if fnmatchcase(name, literal))
    return found or frozenset(name for name in names if fnmatchcase(name, pattern))
