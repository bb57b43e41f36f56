"""Programs within programs: what a call calls, single operations evaluated; knows no network."""

from collections.abc import Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"})
CUSTOM_CALLS = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})


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
