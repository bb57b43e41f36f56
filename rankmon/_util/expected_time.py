"""Estimate the time of compilations and loops: log long ones once, and enforce a time limit.

The estimates are rough: that of a compilation uses the number of equations of its program, that of
a loop its first round.
"""

import logging
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rankmon._util.jaxpr import operations_of
from rankmon._util.program_cache import kept_or_compiled

_log = logging.getLogger("rankmon")
_T = TypeVar("_T")

# Compilation takes half of the time or less, and the programs, which call libraries for most of
# their work, run as long as before. Their results differ in the last digits.
_ON_CPU: dict[str, Any] = {
    "xla_backend_optimization_level": 2,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_cpu_use_fusion_emitters": False,
}
# Leaves out YNNPACK, which makes float32 products no faster: in jaxlib 0.10 its fusions give wrong
# sums for blocks of float32 vectors (tests/util/test_compiled_products.py). float64 is right.
_ON_CPU_BELOW_FLOAT64 = {"xla_disable_hlo_passes": "dot-library-rewriter"}

# Seconds; shorter compilations and loops are not logged.
WORTH_SAYING = 5.0


class OutOfTimeError(Exception):
    """A loop is expected to exceed its time limit."""


@dataclass
class Pace:
    """The time limit for loops of one problem, and the computations logged so far.

    Attributes:
      limit: the largest time of a loop in seconds; infinite by default.
      said: the computations that were logged.
    """

    limit: float = float("inf")
    said: set[str] = field(default_factory=set)

    def say(self, what: str, seconds: float) -> None:
        """Log the expected seconds of a computation, once and only if they are many."""
        self._say(
            what,
            seconds,
            "(a rough estimate); measure less often, on a smaller probe batch, or fewer parameters "
            "with include=",
        )

    def _say(self, what: str, seconds: float, consequence: str) -> None:
        if seconds > WORTH_SAYING and what not in self.said:
            self.said.add(what)
            _log.warning(
                "rankmon: %s: expected to take about %s %s", what, _duration(seconds), consequence
            )

    def over(self, what: str, rounds: "Iterable[_T]", count: int | None = None) -> Iterator[_T]:
        """Yield the rounds of a loop; after the first one, log the expected time of all.

        Args:
          what: the result of the loop, for the log.
          rounds: an iterable of the rounds.
          count: the number of rounds, if `rounds` has no length.

        Raises:
          OutOfTimeError: if the loop is expected to exceed the limit.
        """
        if count is None:
            assert isinstance(rounds, Sized)
            count = len(rounds)
        begun = time.monotonic()
        for done, item in enumerate(rounds):
            if done:
                expected = (time.monotonic() - begun) * count / done
                if expected > self.limit:
                    limit = _duration(self.limit)
                    self._say(what, expected, f"where it may take {limit}: it is left out")
                    raise OutOfTimeError(what)
                if done == 1:
                    self.say(what, expected)
            yield item


@dataclass
class _CompileRate:
    """The compiler's time per equation in this process, in seconds."""

    seconds: float = 0.0
    equations: int = 0

    @property
    def each(self) -> float:
        # Starts as if 100 equations had been compiled in 5 ms each.
        return (self.seconds + 0.5) / (self.equations + 100)

    def add(self, equations: int, seconds: float) -> None:
        self.seconds, self.equations = self.seconds + seconds, self.equations + equations


_rate = _CompileRate()


def say_compiled(before: float) -> None:
    """Log how long compilation has taken since `seconds_compiling` gave `before`, if it was long.

    Time that another thread of the process compiled meanwhile counts too.
    """
    seconds = _rate.seconds - before
    if seconds > WORTH_SAYING:
        _log.warning(
            "rankmon: the first probe compiled its programs in %s, which no later probe repeats",
            _duration(seconds),
        )


def seconds_compiling() -> float:
    """Return the seconds for which this process has compiled programs until now."""
    return _rate.seconds


def compiled(
    what: str,
    traced: Any,
    options: Mapping[str, Any] = MappingProxyType({}),
    placed: Hashable = None,
) -> Any:
    """Compile a traced program once; log a message before it if that is expected to take long.

    Args:
      what: the result of the program, for the log.
      traced: the result of `jax.jit(...).trace`.
      options: compiler options; they are ignored if this compiler does not support them.
      placed: the shardings of the arguments, if they are not where JAX puts arrays by default.
    """
    lowered = traced.lower()

    def compile_now() -> Any:
        equations = sum(1 for _ in operations_of(traced.jaxpr))
        expected = equations * _rate.each
        if expected > WORTH_SAYING:
            _log.warning(
                "rankmon: compiling %s, a program of %s equations: expected to take about %s (a "
                "rough estimate)",
                what,
                f"{equations:,}",
                _duration(expected),
            )
        begun = time.monotonic()
        program = _compiled_soon(lowered, _own_options(traced), options)
        _rate.add(equations, time.monotonic() - begun)
        return program

    return kept_or_compiled(traced, lowered, options, placed, compile_now)


# Compiler options that this process has found to be unknown: jaxlib 0.12 lacks one of ours.
_unknown: set[str] = set()


def _own_options(traced: Any) -> dict[str, Any]:
    """Return the compiler options for this program on this backend."""
    if jax.default_backend() != "cpu":
        return {}
    avals = (*traced.jaxpr.in_avals, *traced.jaxpr.out_avals)
    dtypes = {aval.dtype for aval in avals if jnp.issubdtype(aval.dtype, np.inexact)}
    return _ON_CPU if dtypes <= {np.dtype(np.float64)} else _ON_CPU | _ON_CPU_BELOW_FLOAT64


def _compiled_soon(lowered: Any, own: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Compile with our own options and these, but for those that this compiler does not know."""
    known = {name: value for name, value in {**own, **options}.items() if name not in _unknown}
    while known:
        try:
            return lowered.compile(compiler_options=known)
        except Exception as error:  # noqa: BLE001  errors that are not about an option occur again
            refused = {name for name in known if f"'{name}'" in str(error)}
        if not refused:
            break
        _unknown.update(refused)
        known = {name: value for name, value in known.items() if name not in refused}
    return lowered.compile()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:,.0f} min"
