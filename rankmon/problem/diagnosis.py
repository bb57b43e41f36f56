"""Explain why a network cannot be evaluated: undo common mistakes and trace it again.

A mistake is reported only if the network without it can be traced on its inputs and targets.
"""

import copy
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from rankmon._util.jaxpr import CALLS, CUSTOM_CALLS, interpreted, nested
from rankmon._util.optional_readers import optionally
from rankmon.problem.constructors import how_to_state_method
from rankmon.problem.equinox_keras import as_arrays, as_given, kinds
from rankmon.problem.flat import FlatProblem
from rankmon.problem.flatten import flat_problem
from rankmon.problem.pytree import Bundle, leaf_specs

_Trial = tuple[Any, Any, str]  # a problem, parameters, and the explanation if they work

# For an error's class: the expectation that was not met, and the remedy.
_BY_NAME = {
    "ScopeCollectionNotFound": (
        "all collections that the module reads",
        "pass all variables as parameters, {'params': ..., 'batch_stats': ...}, or "
        "monitor(step, params, extra={'batch_stats': ...})",
    ),
    "ModifyScopeVariableError": (
        "a module in inference mode",
        "leave out arguments={'train': True} or build the module with its switch in inference; to "
        "measure in training mode write Problem(lambda p, x: module.apply({'params': p, ...}, x, "
        "train=True, mutable=['batch_stats'])[0], ...)",
    ),
    "InvalidRngError": (
        "a module that draws no random numbers",
        "switch them off by arguments={'name': value}, or hold them fixed: "
        "arguments={'rngs': {'dropout': jax.random.key(0)}}",
    ),
    "MissingRNGError": (
        "a network that draws no random numbers",
        "switch them off, or hold them fixed: Problem(lambda p, x: net.apply(p, "
        "jax.random.key(0), x), ...)",
    ),
    "ScopeParamShapeError": (
        "parameters and a probe batch that fit this module",
        "give inputs the shape of those in module.init (a channel axis, the same number of "
        "features), or pass the parameters that its own init made",
    ),
    "TraceContextError": (
        "a function of the parameters alone",
        "state an NNX model by Problem.from_nnx(model, ...)",
    ),
    "TracerArrayConversionError": (
        "a function that JAX can trace",
        "replace NumPy by jax.numpy in this function",
    ),
}
_BY_NAME["ScopeVariableNotFoundError"] = _BY_NAME["ScopeCollectionNotFound"]
_BY_NAME["ScopeParamNotFoundError"] = _BY_NAME["ScopeParamShapeError"]


def explained(problem: Any, params: Any, error: Exception) -> Exception:
    """Return the error to raise for a network that cannot be evaluated.

    Args:
      problem: the user's problem.
      params: its parameters, unpacked.
      error: the original error; it is returned, with a note, if no mistake is recognized.
    """
    # Our own errors give a remedy already; only these mistakes would explain them better.
    is_ours = str(error).startswith("expected ")
    for trial in (_stacked, _for_a_batch, *(() if is_ours else _TRIALS)):
        found = _confirmed(trial, problem, params)
        if found is not None:
            return TypeError(found)
    if is_ours:
        return error
    if _takes_state_and_rng(problem.apply):
        return TypeError(
            "expected apply(params, inputs), got a function of (params, state, rng, inputs), as "
            "Haiku's transform_with_state gives it; write lambda params, x, state: "
            "net.apply(params, state, None, x)[0] and call monitor(step, params, extra=state)"
        )
    known = _BY_NAME.get(type(error).__name__)
    if known is not None:
        expected, remedy = known
        first = (str(error).strip().splitlines() or [""])[0]
        return TypeError(
            f"expected {expected}, got {type(error).__name__}: {first} (inputs here: "
            f"{_shapes(problem.inputs)}); {remedy}"
        )
    stated = how_to_state_method(problem.apply)
    if stated is not None:
        kind = type(problem.apply.__self__).__name__
        return TypeError(f"expected apply(params, inputs), got {kind}.apply: {error}; {stated}")
    error.add_note(
        "rankmon: raised by apply(params, inputs), evaluated by shapes at params "
        f"{_shapes(params)} and inputs {_shapes(problem.inputs)}; it has to give outputs [n, k] "
        "there"
    )
    return error


def _confirmed(
    trial: Callable[[Any, Any], Iterator[_Trial]], problem: Any, params: Any
) -> str | None:
    """Return the explanation of the trial's first attempt that can be traced, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of a trial are not about the user's own code
        try:
            return next((said for p, at, said in trial(problem, params) if _fits(p, at)), None)
        except Exception:  # noqa: BLE001  a trial that fails explains nothing
            return None


def _fits(problem: Any, params: Any) -> bool:
    """Return whether the network can be traced at these parameters."""
    try:
        specs = leaf_specs(params, include=problem.include, exclude=problem.exclude)
        flat_problem(problem, params, specs)
    except Exception:  # noqa: BLE001
        return False
    return True


def _with_apply(problem: Any, apply: Callable[..., Any]) -> Any:
    changed = copy.copy(problem)
    changed.apply = apply
    return changed


def _stacked(problem: Any, params: Any) -> Iterator[_Trial]:
    """Try one of several networks whose parameters are stacked along a first axis."""
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(params)}
    if len(sizes) == 1 and (size := sizes.pop()):
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), params)
        yield (
            problem,
            one,
            "expected the parameters of one network, got a leading axis of "
            f"{size[0]} in every leaf; for several seeds use SeedsMonitor(problem, "
            f"seeds={size[0]}, ...), for pmap's replicas pass one: "
            "flax.jax_utils.unreplicate(params)",
        )


def _other_arguments(problem: Any, params: Any) -> Iterator[_Trial]:
    """Try the function with its arguments in another order."""
    apply, inputs = problem.apply, problem.inputs
    yield (
        _with_apply(problem, lambda p, x, *extra: apply(x, p, *extra)),
        params,
        "expected apply(params, inputs), got a function of (inputs, params); write "
        "lambda params, x: apply(x, params)",
    )
    yield (
        _with_apply(problem, lambda p, x: apply(p, None, x)),
        params,
        "expected apply(params, inputs), got a function of (params, rng, inputs), as Haiku's "
        "transform gives it; write lambda params, x: net.apply(params, None, x), or use "
        "hk.without_apply_rng(net).apply",
    )
    yield (
        _with_apply(problem, lambda p, x: jax.vmap(lambda one: apply(p, one))(x)),
        params,
        "expected apply to take the whole batch of inputs, got a function of one example; write "
        "lambda params, x: jax.vmap(lambda one: apply(params, one))(x)",
    )
    if isinstance(inputs, np.ndarray) and inputs.ndim in (3, 4):
        places = {"inputs[..., None]": (..., None), "inputs[:, None]": (slice(None), None)}
        for code, place in places.items():
            yield (
                _with_apply(problem, lambda p, x, *extra, at=place: apply(p, x[at], *extra)),
                params,
                f"expected inputs with an axis for channels, got shape {inputs.shape}; pass {code}",
            )
    if isinstance(inputs, (tuple, list)):
        yield (
            _with_apply(problem, lambda p, x: apply(p, *x)),
            params,
            "expected apply(params, inputs) with the inputs in one argument, got a function of "
            f"{len(inputs)} inputs; write lambda params, x: apply(params, *x)",
        )
    if isinstance(inputs, dict):
        yield (
            _with_apply(problem, lambda p, x: apply(p, **x)),
            params,
            f"expected apply(params, inputs) with the inputs in one argument, got a function of "
            f"{sorted(map(str, inputs))}; write lambda params, x: apply(params, **x)",
        )


def _for_a_batch(problem: Any, params: Any) -> Iterator[_Trial]:
    """Try an Equinox model on the whole batch."""
    whole = getattr(problem.apply, "on_a_batch", None)
    if whole is not None:
        yield (
            _with_apply(problem, whole),
            params,
            "expected an Equinox model of one example, got one that takes a batch; write it for "
            "one example, or state Problem(lambda model, x: model(x), ...) and pass the model",
        )


def _more_than_parameters(problem: Any, params: Any) -> Iterator[_Trial]:
    """Try the parameters that a training state, or a dict with other collections, contains."""
    given = as_given(params)
    if hasattr(given, "params") and not isinstance(given, Bundle):
        yield problem, as_arrays(given.params), _inside(type(given).__name__, "state.params")
    for key in ("params", "model") if isinstance(given, dict) else ():
        if key in given:
            yield problem, as_arrays(given[key]), _inside("a dict", f"params[{key!r}]")
    for i, part in enumerate(given if isinstance(given, (tuple, list)) else ()):
        yield problem, as_arrays(part), _inside(type(given).__name__, f"its entry {i}")


def _in_training_mode(problem: Any, params: Any) -> Iterator[_Trial]:
    """Try an Equinox model in inference mode, for models whose dropout needs a key."""
    given = as_given(params)
    if isinstance(given, kinds("equinox", "Module")):
        inference = sys.modules["equinox"].nn.inference_mode(given)
        yield (
            problem,
            as_arrays(inference),
            "expected a model in inference mode, got one that draws random numbers; pass "
            "eqx.nn.inference_mode(model) to the monitor",
        )


_TRIALS = (_other_arguments, _more_than_parameters, _in_training_mode)


def _inside(kind: str, place: str) -> str:
    """Return the explanation for an object that contains the parameters at a place."""
    return (
        f"expected the parameters alone, got {kind} that also contains other things; pass {place}"
    )


def _takes_state_and_rng(apply: Callable[..., Any]) -> bool:
    try:
        names = list(inspect.signature(apply).parameters)
    except (TypeError, ValueError):
        return False
    return names[:3] == ["params", "state", "rng"]


def check_uses_parameters(flat: FlatProblem) -> None:
    """Refuse a network whose outputs are the same at all parameters.

    Raises:
      ValueError: if the outputs depend on no parameter; all ranks would be 0.
    """

    def read() -> bool:
        arguments = len(flat.program.in_avals)
        return any(_reached(flat.program, [i < len(flat.specs) for i in range(arguments)]))

    if not optionally(flat.problem, "what outputs depend on", read, otherwise=True):
        raise ValueError(
            "expected apply(params, inputs) to use its parameters, got outputs that do not depend "
            "on them: perhaps apply calls a model from outside; write apply such that it puts "
            "params into the model (nnx.merge, eqx.combine, model.stateless_call(params, ...))"
        )


def _reached(program: Any, flags: list[bool]) -> list[bool]:
    """Return which results depend on the flagged arguments."""

    def operation(_: Any, eqn: Any, operands: list[bool]) -> list[bool]:
        if eqn.primitive.name in CALLS | CUSTOM_CALLS:
            return _reached(nested(eqn), operands)
        return [any(operands)] * len(eqn.outvars)

    return interpreted(program, flags, constant=lambda *_: False, operation=operation)


def _shapes(tree: Any) -> str:
    leaves = jax.tree.leaves(tree)
    shown = [f"{getattr(a, 'dtype', type(a).__name__)}{list(np.shape(a))}" for a in leaves[:4]]
    return "[" + ", ".join(shown + (["..."] if len(leaves) > 4 else [])) + "]"
