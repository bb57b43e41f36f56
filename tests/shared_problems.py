"""Each case of `oracles` as a `Problem`, built once for all tests that do not need a new one."""

from functools import cache

from oracles import CASES
from rankmon import Problem
from rankmon.problem.flat import FlatProblem


@cache
def problem_of(name: str) -> Problem:
    """Return the problem of this case, which tests share with its compiled programs."""
    case = CASES[name]
    return Problem(case.apply, **case.statement)


def flat_of(name: str) -> FlatProblem:
    """Return that problem at the parameters of the case."""
    return problem_of(name).flat(CASES[name].params)
