"""Lift functions that cast to float32 or bfloat16 inside: evaluate them in float64 throughout.

A lifted function performs the same operations as in training, traced with its own dtypes, but their
results are not rounded to these dtypes. Custom derivatives (`jax.custom_jvp`, `custom_vjp`) are
kept.
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from rankmon._util.jaxpr import (
    BITCAST,
    CALLS,
    COND,
    CUSTOM_JVP_CALLS,
    CUSTOM_VJP_CALLS,
    ROUNDINGS,
    SCAN,
    WHILE,
    at_highest_precision,
    branches_of,
    evaluated,
    holds_functions,
    interpreted,
    nested,
    scan_of,
    while_of,
    with_programs,
)
from rankmon.problem.precision import DOUBLE, abstract_array, is_inexact

Function = Callable[..., Any]
_Values = Sequence[Any]


def lifted(function: Function) -> Function:
    """Return the function with every floating operation in float64; call it in a float64 scope.

    Operations that are defined for one dtype only (the bits of a float32) are not changed.
    """

    @wraps(function)
    def on_float64(*args: Any) -> Any:
        return lifted_at(function, *args)(*args)

    return on_float64


def lifted_at(function: Function, *shapes: Any) -> Function:
    """Return `lifted(function)`, traced now at arguments of these shapes and dtypes."""
    program, shape = jax.make_jaxpr(function, return_shape=True)(*shapes)

    def on_float64(*args: Any) -> Any:
        results = _run(program, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return on_float64


def _run(program: ClosedJaxpr, args: _Values) -> list[Any]:
    """Return the program's results, computed with all intermediate floats in float64."""
    arguments = [_as_lifted(aval, x) for aval, x in zip(program.in_avals, args, strict=True)]
    return interpreted(program, arguments, constant=_as_lifted, operation=_any_operation)


def _any_operation(jaxpr: Jaxpr, eqn: JaxprEqn, values: list[Any]) -> list[Any]:
    results = _RULES.get(eqn.primitive.name, _operation)(jaxpr, eqn, values)
    return [_as_lifted(v.aval, x) for v, x in zip(eqn.outvars, results, strict=True)]


def _as_lifted(aval: Any, value: Any) -> Any:
    """Return the value in the lifted dtype of the abstract value."""
    dtype = getattr(aval, "dtype", None)
    return value if dtype is None else _cast(value, _wide(dtype))


def _as_stored(variable: Any, value: Any) -> Any:
    """Return the value in the variable's own dtype."""
    dtype = getattr(variable.aval, "dtype", None)
    return value if dtype is None else _cast(value, dtype)


def _wide(dtype: Any) -> Any:
    """Return float64 or complex128 for a narrower dtype; float32 outside of a float64 scope."""
    lifts = jnp.issubdtype(dtype, jnp.inexact)
    return jax.dtypes.canonicalize_dtype(DOUBLE.lifted_dtype(dtype)) if lifts else dtype


def _cast(value: Any, dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jax.dtypes.extended) or getattr(value, "dtype", None) == dtype:
        return value  # the dtype of random keys supports no casts
    return jnp.asarray(value, dtype)


def _operation(jaxpr: Jaxpr, eqn: JaxprEqn, values: _Values) -> _Values:
    """Apply an operation that has no special rule: in float64 if it accepts that.

    The programs in its parameters (the update of a scatter, the function of a reduction, those of a
    linear solve) are lifted as well.
    """
    if holds_functions(eqn):
        return _as_it_is(jaxpr, eqn, values)
    try:
        params = with_programs(eqn, _lifted_program)
        params = {name: _lifted_param(value) for name, value in params.items()}
        params = at_highest_precision(params, jax.lax.Precision.HIGHEST)
        results = eqn.primitive.bind(*values, **params)
    except Exception:  # noqa: BLE001  there are many errors for an unsupported dtype
        return _as_it_is(jaxpr, eqn, values)
    return results if eqn.primitive.multiple_results else [results]


def _lifted_program(program: ClosedJaxpr) -> ClosedJaxpr:
    """Return the lifted version of a program in an operation's parameters."""
    shapes = [abstract_array(aval.shape, _wide(aval.dtype)) for aval in program.in_avals]
    return jax.make_jaxpr(lambda *args: _run(program, args))(*shapes)


def _lifted_param(value: Any) -> Any:
    """Return float64 if the parameter is a narrower dtype (an operation's result type)."""
    return _wide(value) if isinstance(value, np.dtype) else value


def _as_it_is(jaxpr: Jaxpr, eqn: JaxprEqn, values: _Values) -> _Values:
    return _original(jaxpr, eqn)(*map(_as_stored, eqn.invars, values))


def _original(jaxpr: Jaxpr, eqn: JaxprEqn) -> Callable[..., list[Any]]:
    """Return a function that applies the operation in its own dtypes."""

    def run(*values: Any) -> list[Any]:
        return evaluated(jaxpr, eqn, values)

    return run


def _convert(jaxpr: Jaxpr, eqn: JaxprEqn, values: _Values) -> _Values:
    return values  # `_any_operation` casts each result to its lifted dtype


def _call(jaxpr: Jaxpr, eqn: JaxprEqn, values: _Values) -> _Values:
    return _run(nested(eqn), values)


def _scan(jaxpr: Jaxpr, eqn: JaxprEqn, values: _Values) -> _Values:
    """Apply a scan with a lifted body, so that its carry is float64 throughout."""
    scan = scan_of(eqn)
    at = (scan.consts, scan.consts + scan.carry)
    consts, carry, xs = values[: at[0]], values[at[0] : at[1]], values[at[1] :]

    def step(carry: Any, x: Any) -> Any:
        results = _run(scan.body, [*consts, *carry, *x])
        return results[: len(carry)], results[len(carry) :]

    carry, ys = jax.lax.scan(step, list(carry), list(xs), scan.length, scan.reverse, scan.unroll)
    return [*carry, *ys]


def _while(jaxpr: Jaxpr, eqn: JaxprEqn, values: _Values) -> _Values:
    loop = while_of(eqn)
    at = (loop.condition_consts, loop.condition_consts + loop.body_consts)
    return jax.lax.while_loop(
        lambda carry: _run(loop.condition, [*values[: at[0]], *carry])[0],
        lambda carry: _run(loop.body, [*values[at[0] : at[1]], *carry]),
        list(values[at[1] :]),
    )


def _cond(jaxpr: Jaxpr, eqn: JaxprEqn, values: _Values) -> _Values:
    index, *operands = values
    branches = [partial(_run, branch) for branch in branches_of(eqn)]
    return jax.lax.switch(index, branches, operands)


def _custom_jvp(jaxpr: Jaxpr, eqn: JaxprEqn, values: _Values) -> _Values:
    """Apply a function with a custom derivative; the derivative is traced, then lifted."""
    floats = [is_inexact(var) for var in eqn.invars]
    moved = _shapes([var for var in eqn.invars if is_inexact(var)])

    def pushed(primals: _Values, directions: _Values) -> tuple[_Values, _Values]:
        rest = iter(directions)
        # JAX requires tangents of the dtype float0 for integers and booleans.
        tangents = [
            next(rest) if moves else np.zeros(np.shape(x), jax.dtypes.float0)
            for x, moves in zip(primals, floats, strict=True)
        ]
        outputs, changes = jax.jvp(_original(jaxpr, eqn), tuple(primals), tuple(tangents))
        return outputs, [d for d in changes if d.dtype != jax.dtypes.float0]

    @jax.custom_jvp
    def function(*args: Any) -> list[Any]:
        return list(_call(jaxpr, eqn, args))

    @function.defjvp
    def derivative(primals: _Values, tangents: _Values) -> tuple[list[Any], list[Any]]:
        moving = [t for t, moves in zip(tangents, floats, strict=True) if moves]
        outputs, changes = lifted_at(pushed, _shapes(eqn.invars), moved)(primals, moving)
        rest = iter(changes)
        return outputs, [
            next(rest) if is_inexact(v) else np.zeros(np.shape(x), jax.dtypes.float0)
            for v, x in zip(eqn.outvars, outputs, strict=True)
        ]

    return function(*values)


def _custom_vjp(jaxpr: Jaxpr, eqn: JaxprEqn, values: _Values) -> _Values:
    """Apply a function with a custom backward rule; the rule is traced, then lifted."""
    floats = [is_inexact(var) for var in eqn.invars]
    arguments, outputs = _shapes(eqn.invars), _shapes(eqn.outvars)

    def pulled(primals: _Values, cotangents: _Values) -> list[Any]:
        changes = jax.vjp(_original(jaxpr, eqn), *primals)[1](list(cotangents))
        return [c for c, moves in zip(changes, floats, strict=True) if moves]

    def first(primals: _Values) -> list[Any]:
        return jax.vjp(_original(jaxpr, eqn), *primals)[0]

    @jax.custom_vjp
    def function(*args: Any) -> list[Any]:
        return list(_call(jaxpr, eqn, args))

    def forward(*args: Any) -> tuple[list[Any], _Values]:
        return lifted_at(first, arguments)(args), args

    def backward(args: _Values, cotangents: _Values) -> tuple[Any, ...]:
        rest = iter(lifted_at(pulled, arguments, outputs)(args, cotangents))
        # JAX reads None as the zero cotangent, also of an integer.
        return tuple(next(rest) if moves else None for moves in floats)

    function.defvjp(forward, backward)
    return function(*values)


def _shapes(variables: Sequence[Any]) -> list[Any]:
    return [abstract_array(v.aval.shape, v.aval.dtype) for v in variables]


_RULES: dict[str, Callable[[Jaxpr, JaxprEqn, _Values], _Values]] = {
    **dict.fromkeys(CALLS, _call),
    **dict.fromkeys(ROUNDINGS, _convert),
    BITCAST: _as_it_is,
    SCAN: _scan,
    WHILE: _while,
    COND: _cond,
    **dict.fromkeys(CUSTOM_JVP_CALLS, _custom_jvp),
    **dict.fromkeys(CUSTOM_VJP_CALLS, _custom_vjp),
}
