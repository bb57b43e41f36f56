"""The arithmetic of measurements: float64 scopes, and the eps of a network's operations.

Training usually runs in float32 with x64 off. A measurement enters `Precision.scope`, which affects
only its own thread, so that the user's configuration does not change.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from rankmon._util.jaxpr import (
    COND,
    SCAN,
    WHILE,
    contradicts_itself,
    interpreted,
    operations_of,
    programs_in,
    scan_of,
    while_of,
)
from rankmon._util.optional_readers import unreadable

_Operation = tuple[str, np.dtype]
_Found = list[_Operation]


@dataclass(frozen=True)
class Precision:
    """The dtype to which parameters are lifted, and the eps of the results.

    Attributes:
      dtype: the dtype, or None if the parameters keep their stored dtypes.
      eps: the eps at which ranks are counted.
      warning: the reason for an eps other than that of float64, else None.
    """

    dtype: np.dtype | None
    eps: float
    warning: str | None = None

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Enter a context in which JAX computes in this precision, for any user configuration.

        Settings with which the user debugs training (no jit, errors for NaN, no transfers, strict
        promotion) are suspended: a measurement copies arrays to the host, and NaN is a result.
        """
        with ExitStack() as stack:
            stack.enter_context(jax.disable_jit(False))
            if self.dtype is not None:
                stack.enter_context(jax.enable_x64(True))
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
            stack.enter_context(jax.numpy_rank_promotion("allow"))
            stack.enter_context(jax.default_matmul_precision("highest"))
            stack.enter_context(jax.transfer_guard("allow"))
            stack.enter_context(jax.debug_nans(False))
            stack.enter_context(jax.debug_infs(False))
            yield

    def with_warning(self, warning: str | None) -> "Precision":
        """Return the precision with this warning, if any, prepended to its own warning."""
        texts = [text for text in (warning, self.warning) if text]
        return replace(self, warning="; ".join(texts) or None)

    def lifted_dtype(self, dtype: Any) -> np.dtype:
        """Return the lifted dtype of floats and complex numbers; other dtypes do not change."""
        if self.dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
            return dtype
        is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
        return np.result_type(self.dtype, np.complex64) if is_complex else self.dtype

    def traced_dtype(self, dtype: Any) -> np.dtype:
        """Return the dtype of an array with this dtype in a program traced in this precision."""
        if self.dtype is None:
            return jax.dtypes.canonicalize_dtype(dtype)
        return self.lifted_dtype(dtype)

    def lift(self, leaf: Any) -> np.ndarray:
        """Return a host copy of a leaf, in its lifted dtype and in native byte order."""
        array = np.asarray(leaf)
        return np.array(array, self.lifted_dtype(array.dtype).newbyteorder("="))


def with_settings_kept(action: Callable[[], Any]) -> Any:
    """Run the action, and restore this thread's JAX settings even if it is interrupted.

    An interrupt may occur at the end of a scope, before the scope has restored all settings.
    """
    kept = [scope(getattr(jax.config, f"jax_{name}")) for name, scope in _SETTINGS.items()]
    for scope in kept:
        scope.__enter__()
    try:
        try:
            return action()
        finally:
            _leave(kept)
    except Exception:
        raise
    except BaseException as error:
        # A suspended generator would otherwise leave its scope later, when the traceback is freed.
        traceback.clear_frames(error.__traceback__)
        _leave(kept)
        raise


_SETTINGS: dict[str, Callable[[Any], AbstractContextManager[None]]] = {
    "disable_jit": jax.disable_jit,
    "enable_x64": jax.enable_x64,
    "numpy_dtype_promotion": jax.numpy_dtype_promotion,
    "numpy_rank_promotion": jax.numpy_rank_promotion,
    "default_matmul_precision": jax.default_matmul_precision,
    "debug_nans": jax.debug_nans,
    "debug_infs": jax.debug_infs,
    "transfer_guard_host_to_device": jax.transfer_guard_host_to_device,
    "transfer_guard_device_to_device": jax.transfer_guard_device_to_device,
    "transfer_guard_device_to_host": jax.transfer_guard_device_to_host,
}


def _leave(scopes: Sequence[AbstractContextManager[None]]) -> None:
    for scope in reversed(scopes):
        scope.__exit__(None, None, None)


DOUBLE = Precision(np.dtype(np.float64), float(np.finfo(np.float64).eps))
SINGLE = Precision(np.dtype(np.float32), float(np.finfo(np.float32).eps))
NATIVE = Precision(None, DOUBLE.eps)


def abstract_array(shape: Sequence[int], dtype: Any, **placed: Any) -> jax.ShapeDtypeStruct:
    """Return a `ShapeDtypeStruct` with exactly this dtype.

    Without this, JAX would change float64 to float32 outside of a float64 scope.

    Args:
      shape: the shape of the array.
      dtype: the dtype of the array.
      **placed: the `sharding` of the array, if any.
    """
    with jax.enable_x64(True):
        return jax.ShapeDtypeStruct(tuple(shape), dtype, **placed)


def abstract_arrays(tree: Any) -> Any:
    """Return the shapes and dtypes of a pytree of arrays."""
    return jax.tree.map(lambda a: abstract_array(np.shape(a), a.dtype), tree)


def eps_of(dtype: Any) -> float:
    """Return the spacing of the dtype's numbers at 1; for integers and booleans, float64's."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return DOUBLE.eps
    return float(jnp.finfo(dtype).eps)


def choose_precision(function: Callable[..., Any], *args: Any, lifts: bool = False) -> Precision:
    """Trace `function(*args)`, and return the precision in which it can be measured.

    This is float64 if all operations compute in float64; float64 with a coarser eps if an operation
    computes below float64; and the arrays' own dtypes if the function cannot be traced in float64.

    Args:
      function: a function from pytrees of arrays to one array.
      *args: arrays, or their shapes and dtypes, as the user stores them.
      lifts: whether the function was lifted already, so that the warning does not suggest it.

    Raises:
      Exception: the error of the trace in the user's own precision, if that fails too.
    """
    lifted = jax.tree.map(
        lambda leaf: abstract_array(np.shape(leaf), DOUBLE.lifted_dtype(leaf.dtype)), args
    )
    try:
        with DOUBLE.scope():
            jaxpr = jax.make_jaxpr(function)(*lifted)
        if contradicts_itself(jaxpr):
            raise TypeError("a 64-bit constant of NumPy that JAX keeps in 32 bits")  # noqa: TRY301
    except Exception as error:  # noqa: BLE001  the function may not support float64
        return _native_precision(function, args, error, lifts=lifts)
    found, unread = _coarsest(jaxpr)
    if found is None:
        return replace(DOUBLE, warning=unread)
    primitive, dtype = found
    remedy = (
        "lift_dtype=True could not lift this operation: give it float64, or write it in others"
        if lifts
        else "for ranks at float64's eps pass lift_dtype=True to the Problem, which lifts what "
        "exists in float64 too"
    )
    return Precision(
        DOUBLE.dtype,
        eps_of(dtype),
        unread
        or f"the network computes in {dtype} inside (first at '{primitive}'), so ranks are counted "
        f"at the eps of {dtype}, {eps_of(dtype):.1e}; {remedy}",
    )


def coarsest_eps(program: ClosedJaxpr) -> float:
    """Return the largest eps of the operations on data."""
    found, _ = _coarsest(program)
    return eps_of(found[1]) if found else DOUBLE.eps


def _native_precision(
    function: Callable[..., Any], args: Any, error: Exception, *, lifts: bool
) -> Precision:
    """Return the precision of the arrays' own dtypes; its warning gives the error of float64."""
    with NATIVE.scope():
        jaxpr = jax.make_jaxpr(function)(*args)
    found, unread = _coarsest(jaxpr)
    eps = max([eps_of(leaf.dtype) for leaf in jax.tree.leaves(args)], default=DOUBLE.eps)
    eps = max(eps, eps_of(found[1])) if found else eps
    remedy = (
        "pass NumPy arrays that the network or the loss closes over through jnp.asarray, or make "
        "them int32 or float32"
        if lifts or "of NumPy" in str(error) or "int64" in str(error)
        else "pass lift_dtype=True to the Problem to lift its operations one by one"
    )
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return Precision(
        None,
        eps,
        unread
        or f"the network cannot be traced in float64 ({type(error).__name__}: {reason[:200]}), so "
        f"it is measured in its own dtype and ranks are counted at eps {eps:.1e}; {remedy}",
    )


def _coarsest(program: ClosedJaxpr) -> tuple[_Operation | None, str | None]:
    """Return the coarsest operation, and a warning if the data flow could not be read."""
    try:
        return coarsest_operation(program), None
    except Exception as error:  # noqa: BLE001  the program of a newer JAX
        # All operations, including those that do not depend on data.
        found = [one for eqn in operations_of(program) for one in _rounded(eqn)]
        return _coarsest_of(found), unreadable("the dtypes of the operations", error)


def _rounded(eqn: JaxprEqn) -> Iterator[_Operation]:
    """Yield the operation's name with the dtype of each floating result."""
    for variable in eqn.outvars:
        if is_inexact(variable):
            yield eqn.primitive.name, np.dtype(variable.aval.dtype)  # type: ignore[attr-defined]


def _coarsest_of(found: _Found) -> _Operation | None:
    """Return the first operation with the largest eps above float64's, if there is one."""
    # Of equal items, `max` returns the first.
    coarse = (item for item in found if eps_of(item[1]) > DOUBLE.eps)
    return max(coarse, key=lambda item: eps_of(item[1]), default=None)


def coarsest_operation(jaxpr: ClosedJaxpr) -> _Operation | None:
    """Return the first operation on data with the largest eps above float64's, or None.

    Only operations that depend on floating arguments count. Constants (a float32 literal, zeros for
    a carry) and values computed from integers and booleans only (masks, position codes) do not
    depend on the parameters and add no rounding noise.
    """
    found: _Found = []
    _collect(jaxpr, [True] * len(jaxpr.in_avals), found)
    return _coarsest_of(found)


def _collect(program: ClosedJaxpr, depends: Sequence[bool], found: _Found) -> list[bool]:
    """Collect the floating operations on data, and return which results depend on data."""

    def operation(_: Jaxpr, eqn: JaxprEqn, flags: list[bool]) -> list[bool]:
        if not any(flags):
            return [False] * len(eqn.outvars)
        outputs = _collect_call(eqn, flags, found)
        if outputs is None:
            outputs = [True] * len(eqn.outvars)
            found.extend(_rounded(eqn))
        return _floating(outputs, eqn.outvars)

    arguments = _floating(depends, program.jaxpr.invars)
    return interpreted(program, arguments, constant=lambda *_: False, operation=operation)


def _floating(flags: Sequence[bool], variables: Sequence[Any]) -> list[bool]:
    """Set the flags of variables that are not floats to False."""
    return [flag and is_inexact(v) for flag, v in zip(flags, variables, strict=True)]


def _collect_call(equation: JaxprEqn, flags: list[bool], found: _Found) -> list[bool] | None:
    """Apply `_collect` to the programs of an operation; return None if it has none."""
    name = equation.primitive.name
    if name == SCAN:
        scan = scan_of(equation)
        return _collect_loop(scan.body, flags, scan.consts, scan.carry, found)
    if name == WHILE:
        loop = while_of(equation)
        # The condition's result is a boolean, which has no rounding error.
        flags = flags[loop.condition_consts :]
        carry = len(flags) - loop.body_consts
        return _collect_loop(loop.body, flags, loop.body_consts, carry, found)
    inner = list(programs_in(equation))
    if not inner:
        return None
    outputs = [False] * len(equation.outvars)
    for sub in inner:
        known = flags[1:] if name == COND else flags
        if len(sub.in_avals) == len(known) and len(sub.out_avals) == len(outputs):
            reached = _collect(sub, known, found)
            outputs = [a or b for a, b in zip(outputs, reached, strict=True)]
        else:  # its arguments have an unknown order
            _collect(sub, [True] * len(sub.in_avals), found)
            outputs = [True] * len(outputs)
    return outputs


def _collect_loop(
    body: ClosedJaxpr, flags: list[bool], consts: int, carry: int, found: _Found
) -> list[bool]:
    """Repeat `_collect` until the part of the carry that depends on data no longer grows."""
    while True:
        outputs = _collect(body, flags, found)
        before = flags[consts : consts + carry]
        grown = [a or b for a, b in zip(before, outputs, strict=False)]
        if grown == before:
            return grown + outputs[carry:]
        flags = [*flags[:consts], *grown, *flags[consts + carry :]]


def is_inexact(variable: Any) -> bool:
    """Return whether a variable of a program is an array of floats or complex numbers."""
    dtype = getattr(variable.aval, "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.inexact))
