"""JAX's names of primitives and their parameters, and walks through jaxprs.

JAX renames primitives and parameters between versions. Only this file uses their names, so that
there is one place to adapt.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"})
CUSTOM_JVP_CALLS = frozenset({"custom_jvp_call"})
CUSTOM_VJP_CALLS = frozenset({"custom_vjp_call", "custom_vjp_call_jaxpr"})
CUSTOM_CALLS = CUSTOM_JVP_CALLS | CUSTOM_VJP_CALLS
SCAN, WHILE, COND = "scan", "while", "cond"

CONVERT = "convert_element_type"
ROUNDINGS = frozenset({CONVERT, "reduce_precision"})
BITCAST = "bitcast_convert_type"
COPIES = frozenset({CONVERT, "copy", "copy_p"})

TRANSPOSE, BROADCAST, RESHAPE, SQUEEZE = "transpose", "broadcast_in_dim", "reshape", "squeeze"
SLICE, DYNAMIC_SLICE, REVERSE = "slice", "dynamic_slice", "rev"
SPLIT, PAD, CONCATENATE = "split", "pad", "concatenate"
GATHER = "gather"

# Operations whose results are entries of their first operand, and zeros.
MOVES = frozenset(
    {TRANSPOSE, BROADCAST, RESHAPE, SQUEEZE, SLICE, DYNAMIC_SLICE, REVERSE, PAD, GATHER}
)
NEGATE, MULTIPLY, DIVIDE, SUBTRACT = "neg", "mul", "div", "sub"
SCALINGS = frozenset({MULTIPLY, DIVIDE, NEGATE})

DOT, CONVOLUTION = "dot_general", "conv_general_dilated"
SUMS = frozenset({"add", "add_any"})
MAX, REDUCE = "max", "reduce"
ELEMENTWISE = frozenset(
    """
    abs acos acosh and asin asinh atan atan2 atanh cbrt ceil clamp cos cosh digamma div eq erf
    erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic lt
    max min mul ne neg not or pow rem round rsqrt select_n sign sin sinh sqrt square sub tan tanh
    xor
    """.split()
)
_REDUCTIONS = frozenset(
    """
    reduce_sum reduce_prod reduce_max reduce_min cumsum cumprod cummax cummin
    """.split()
)

T = TypeVar("T")
_Axes = tuple[int, ...]


@dataclass(frozen=True)
class Scan:
    """A `lax.scan`; the body's arguments are constants, carry and a slice of each xs, in order."""

    body: ClosedJaxpr
    consts: int
    carry: int
    length: int
    reverse: bool
    unroll: int


@dataclass(frozen=True)
class While:
    """A `lax.while_loop`; its operands are the constants of both programs, then the carry."""

    condition: ClosedJaxpr
    body: ClosedJaxpr
    condition_consts: int
    body_consts: int


def scan_of(eqn: JaxprEqn) -> Scan:
    """Return the parts of a scan.

    The numbers of constants, carries and xs are derived from the shapes (outside the body, xs and
    ys have one more axis than inside), because JAX 0.11 changed the parameters that hold them.
    """
    body = eqn.params["jaxpr"]
    xs = _one_axis_more(eqn.invars, body.jaxpr.invars)
    ys = _one_axis_more(eqn.outvars, body.jaxpr.outvars)
    carry = len(eqn.outvars) - ys
    return Scan(
        body,
        len(eqn.invars) - carry - xs,
        carry,
        eqn.params["length"],
        eqn.params["reverse"],
        eqn.params["unroll"],
    )


def _one_axis_more(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    pairs = zip(outside, inside, strict=True)
    return sum(len(a.aval.shape) == len(b.aval.shape) + 1 for a, b in pairs)


def while_of(eqn: JaxprEqn) -> While:
    """Return the parts of a while loop."""
    params = eqn.params
    return While(
        params["cond_jaxpr"], params["body_jaxpr"], params["cond_nconsts"], params["body_nconsts"]
    )


def branches_of(eqn: JaxprEqn) -> tuple[ClosedJaxpr, ...]:
    """Return the branches of a cond or a switch; its first operand is the index."""
    return eqn.params["branches"]


def dot_axes(eqn: JaxprEqn) -> tuple[tuple[_Axes, _Axes], tuple[_Axes, _Axes]]:
    """Return the contracted axes and the batch axes of both operands of a dot_general."""
    contracted, batch = eqn.params["dimension_numbers"]
    return contracted, batch


def convolution_axes(eqn: JaxprEqn) -> Any:
    """Return the `ConvDimensionNumbers` of a convolution."""
    return eqn.params["dimension_numbers"]


def convolution_groups(eqn: JaxprEqn) -> _Axes:
    """Return the numbers of groups of features and of examples of a convolution."""
    return eqn.params["feature_group_count"], eqn.params["batch_group_count"]


def is_plain_convolution(eqn: JaxprEqn) -> bool:
    """Return whether a convolution has no padding, and no stride, dilation or groups above one."""
    ones = ("window_strides", "lhs_dilation", "rhs_dilation")
    return (
        all(set(eqn.params[name]) <= {1} for name in ones)
        and not any(low or high for low, high in eqn.params["padding"])
        and convolution_groups(eqn) == (1, 1)
    )


def permutation(eqn: JaxprEqn) -> _Axes:
    """Return the permutation of axes of a transpose."""
    return eqn.params["permutation"]


def broadcast_places(eqn: JaxprEqn) -> _Axes:
    """Return the axis of a broadcast's result for each axis of its operand."""
    return eqn.params["broadcast_dimensions"]


def is_plain_reshape(eqn: JaxprEqn) -> bool:
    """Return whether a reshape reads its operand in C order."""
    return eqn.params["dimensions"] is None


def slice_sizes(eqn: JaxprEqn) -> _Axes:
    """Return the shape of the slice of a dynamic_slice."""
    return eqn.params["slice_sizes"]


def slice_bounds(eqn: JaxprEqn) -> tuple[_Axes, _Axes] | None:
    """Return the first and the last index (exclusive) of a slice by axis; None with strides."""
    if set(eqn.params["strides"] or ()) - {1}:
        return None
    return tuple(eqn.params["start_indices"]), tuple(eqn.params["limit_indices"])


def padding_of(eqn: JaxprEqn) -> tuple[tuple[int, int, int], ...]:
    """Return the numbers of entries that a pad adds before, after and between those of each axis.

    Its second operand is the value of the new entries.
    """
    amounts = eqn.params["padding_config"]
    return tuple((int(before), int(after), int(between)) for before, after, between in amounts)


def concatenated_axis(eqn: JaxprEqn) -> int:
    """Return the axis along which a concatenation joins its operands."""
    return eqn.params["dimension"]


def called_name(eqn: JaxprEqn) -> str:
    """Return the name of the function that a call (one of CALLS) invokes, if it has a name."""
    return str(eqn.params.get("name", eqn.primitive.name))


def programs_in(eqn: JaxprEqn) -> Iterator[ClosedJaxpr]:
    """Yield every program among an operation's parameters, for any operation.

    If a program comes without values for its constants, these are None.
    """
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item
            elif isinstance(item, Jaxpr):
                yield ClosedJaxpr(item, [None] * len(item.constvars))


def operations_of(program: Jaxpr | ClosedJaxpr) -> Iterator[JaxprEqn]:
    """Yield every operation of a program, each followed by the operations nested in it."""
    for eqn in program.eqns:
        yield eqn
        for inner in programs_in(eqn):
            yield from operations_of(inner)


def with_programs(eqn: JaxprEqn, changed: Callable[[ClosedJaxpr], ClosedJaxpr]) -> dict[str, Any]:
    """Return an operation's parameters with every program among them changed.

    Raises:
      ValueError: if a program has separate constants, before the change or after it, but the
        operation cannot pass them.
    """

    def one(value: Any) -> Any:
        if isinstance(value, ClosedJaxpr):
            return changed(value)
        if isinstance(value, Jaxpr):
            if value.constvars:
                raise ValueError("expected a program without constants, got some; keep it")
            closed = changed(ClosedJaxpr(value, ()))
            if closed.consts:
                raise ValueError("expected a program without constants, got some; keep it")
            return closed.jaxpr
        return value

    def each(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            items = [one(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return one(value)

    return {name: each(value) for name, value in eqn.params.items()}


def holds_functions(eqn: JaxprEqn) -> bool:
    """Return whether an operation's parameters contain Python functions (rules, callbacks).

    The function of a reduction does not count, because only the program traced from it is used.
    """
    unused = {"computation"} if eqn.primitive.name == REDUCE else set()
    return any(
        callable(item) and not isinstance(item, (type, np.dtype))
        for name, value in eqn.params.items()
        if name not in unused
        for item in (value if isinstance(value, (tuple, list)) else (value,))
    )


def contradicts_itself(program: ClosedJaxpr) -> bool:
    """Return whether an operation has dtypes that its operation does not allow, which is an error.

    This occurs if a function closes over an int64 or float64 NumPy array, which JAX keeps as int32
    or float32 after its first use with x64 off. JAX then traces the function in the float64 scope
    without an error, but cannot compile it.
    """

    def dtypes(atoms: Sequence[Any]) -> set[Any]:
        return {atom.aval.dtype for atom in atoms if hasattr(atom.aval, "dtype")}

    def contradicts(eqn: JaxprEqn) -> bool:
        name = eqn.primitive.name
        if name in _REDUCTIONS | MOVES:
            return len(dtypes([eqn.invars[0], eqn.outvars[0]])) > 1
        if name in CALLS:
            pairs = zip(eqn.invars, nested(eqn).jaxpr.invars, strict=True)
            return any(len(dtypes(pair)) > 1 for pair in pairs)
        # Random keys have dtypes that NumPy does not know.
        floats = {d for d in dtypes(eqn.invars) if isinstance(d, np.dtype) and d.kind == "f"}
        return name in ELEMENTWISE | SUMS and len(floats) > 1

    return any(map(contradicts, operations_of(program)))


def holds(program: Jaxpr | ClosedJaxpr, names: Collection[str]) -> bool:
    """Return whether the program contains an operation with one of these names, at any depth."""
    return any(eqn.primitive.name in names for eqn in operations_of(program))


def at_highest_precision(params: dict[str, Any], precision: Any) -> dict[str, Any]:
    """Return an operation's parameters with this precision, if it has a precision parameter."""
    return params | {"precision": precision} if "precision" in params else params


def interpreted(
    program: ClosedJaxpr,
    arguments: Sequence[T],
    *,
    constant: Callable[[Any, Any], T],
    operation: Callable[[Jaxpr, JaxprEqn, list[T]], Sequence[T]],
) -> list[T]:
    """Interpret a program abstractly: return one abstract value for each of its results.

    Args:
      program: the program; nested calls are operations like any other.
      arguments: the abstract value of each argument.
      constant: maps the type and the value of a constant to its abstract value.
      operation: maps the surrounding program, an operation, and the abstract values of its operands
        to the abstract values of its results.
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
    """Return the program that a call (one of CALLS or CUSTOM_CALLS) invokes."""
    keys = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    # The key depends on the primitive and on JAX's version.
    program = next(eqn.params[key] for key in keys if key in eqn.params)
    return program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())


def evaluated(jaxpr: Jaxpr, eqn: JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """Evaluate one operation of the program at the values of its operands.

    The operation becomes a program of its own, because some primitives accept the parameters of a
    jaxpr only after a conversion, which JAX makes when it evaluates a program.
    """
    free = {
        atom: value
        for atom, value in zip(eqn.invars, values, strict=True)
        if not isinstance(atom, Literal)
    }
    alone = Jaxpr((), list(free), eqn.outvars, [eqn], eqn.effects, jaxpr.debug_info)
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*free.values())
