"""Walks through jaxprs, what a call calls, single operations evaluated; knows no network."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

T = TypeVar("T")

CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"})
CUSTOM_CALLS = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})


def interpreted(
    program: ClosedJaxpr,
    arguments: Sequence[T],
    *,
    constant: Callable[[Any, Any], T],
    operation: Callable[[Jaxpr, JaxprEqn, list[T]], Sequence[T]],
) -> list[T]:
    """What a program's results are, given what its arguments are, in whatever sense.

    Args:
      program: its calls of other programs are operations like any other.
      arguments: what they are.
      constant: from a constant's abstract value and value to what it is.
      operation: from an operation, the program around it and what its operands are to what its
        results are.
    """
    jaxpr = program.jaxpr
    known = dict(zip(jaxpr.invars, arguments, strict=True))
    for variable, value in zip(jaxpr.constvars, program.consts, strict=True):
        known[variable] = constant(variable.aval, value)

    def read(atom: Any) -> T:
        return constant(atom.aval, atom.val) if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        results = operation(jaxpr, eqn, [read(atom) for atom in eqn.invars])
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def nested(eqn: JaxprEqn) -> ClosedJaxpr:
    """The program that one of CALLS or CUSTOM_CALLS (functions with own derivatives) calls."""
    keys = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    program = next(eqn.params[key] for key in keys if key in eqn.params)
    return program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())


def evaluated(jaxpr: Jaxpr, eqn: JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """The results of one operation of the program, at the values of its operands."""
    free = {
        atom: value
        for atom, value in zip(eqn.invars, values, strict=True)
        if not isinstance(atom, Literal)
    }
    alone = Jaxpr((), list(free), eqn.outvars, [eqn], eqn.effects, jaxpr.debug_info)
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*free.values())
