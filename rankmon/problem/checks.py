"""Check a problem's inputs, targets, weights, outputs and parameters before any computation."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankmon._util.text import counted
from rankmon._util.warnings import warn_user
from rankmon.problem.losses import Loss
from rankmon.problem.pytree import LeafSpec, leaf_names


def leading_axis(name: str, tree: Any) -> int:
    """Return n, the common leading axis of all leaves.

    Raises:
      ValueError: if the leaves have no common leading axis, or n = 0.
    """
    leaves = jax.tree.leaves(tree)
    sizes = {leaf.shape[:1] for leaf in leaves}
    if len(leaves) > 1 and sizes == {()}:
        raise ValueError(
            f"expected {name} to be arrays with one common leading axis n >= 1, got {len(leaves)} "
            f"single values of dtype {leaves[0].dtype}, as from nested lists; pass one array of "
            f"numbers: np.asarray({name})"
        )
    if len(sizes - {()}) > 1:
        raise ValueError(
            f"expected {name} with one common leading axis n, got the shapes {_shown(tree)}; stack "
            "the examples along the first axis. For a graph, whose arrays have axes of their own, "
            "pass the array with a row for each output, and let the function keep the others: "
            "Problem(lambda params, nodes: net(params, nodes, edges), inputs=nodes, ...)"
        )
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        shapes = [leaf.shape for leaf in leaves[:6]] + ["..."] * (len(leaves) > 6)
        raise ValueError(
            f"expected {name} to be arrays with one common leading axis n >= 1, got shapes "
            f"{shapes}; stack the examples along the first axis"
        )
    return int(sizes.pop()[0])


def check_some_numbers(inputs: Any) -> None:
    """Refuse inputs whose arrays are all empty."""
    if not any(leaf.size for leaf in jax.tree.leaves(inputs)):
        raise ValueError(
            f"expected inputs with at least one number for each example, got shapes "
            f"{_shown(inputs)}; for a network without inputs pass np.zeros((n, 1))"
        )


def _shown(tree: Any) -> str:
    """Return the names and shapes of a tree's first few arrays, as text."""
    named = list(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))
    shown = [f"{name} {np.shape(leaf)}" for name, leaf in named[:6]]
    return "{" + ", ".join(shown + ["..."] * (len(named) > 6)) + "}"


def check_finite(name: str, tree: Any) -> None:
    """Refuse leaves that are not numeric, and leaves that contain NaN or infinity."""
    for leaf in jax.tree.leaves(tree):
        if not (jnp.issubdtype(leaf.dtype, jnp.number) or jnp.issubdtype(leaf.dtype, jnp.bool_)):
            remedy = (
                "stack its entries into one numeric array, np.stack(list(a)), or cast it"
                if leaf.dtype == object
                else "convert them to numbers"
            )
            raise TypeError(f"expected {name} to be numbers, got dtype {leaf.dtype}; {remedy}")
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            bad = int(np.sum(~np.isfinite(leaf.astype(np.float64))))
            if bad:
                raise ValueError(
                    f"expected finite {name}, got {counted(bad, 'NaN or infinite value')}; remove "
                    "these examples from the probe batch"
                )


def check_weights(weights: np.ndarray, n: int) -> None:
    """Refuse example weights unless they are [n, ...], non-negative and not all zero."""
    check_finite("weights", weights)
    if weights.ndim < 1 or weights.shape[0] != n:
        raise ValueError(
            f"expected weights [n, ...] with n = {n}, got shape {weights.shape}; "
            "give one weight for each example or position"
        )
    if np.any(weights < 0) or not np.any(weights > 0):
        raise ValueError(
            "expected non-negative weights with a positive sum, got "
            f"weights from {np.min(weights)} to {np.max(weights)}; "
            "use 0 to mask an example and 1 to keep it"
        )


def check_outputs(outputs: Any, n: int) -> None:
    """Refuse outputs of apply that are not [n, ..., k] floats; the error gives the correct code."""
    if not hasattr(outputs, "shape"):
        raise TypeError(
            f"expected apply(params, inputs) to give one array [n, k], got a "
            f"{type(outputs).__name__}; {_how_to_give_one(outputs, n)}"
        )
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise TypeError(
            f"expected apply to give floating outputs, got {outputs.dtype}; "
            "return the logits or predictions, not labels"
        )
    if len(outputs.shape) < 2 or outputs.shape[0] != n or 0 in outputs.shape:
        raise ValueError(
            f"expected apply to give outputs [n, k] or [n, ..., k] with n = {n}, got shape "
            f"{tuple(outputs.shape)}; keep the example axis first and the outputs' axis last "
            "(for one output per example, [n, 1])"
        )


def _how_to_give_one(outputs: Any, n: int) -> str:
    """Return the code that turns several outputs into one array, as text."""
    picked = "[0]" if isinstance(outputs, (tuple, list)) else "[...]"
    if isinstance(outputs, dict) and outputs:
        picked = f"[{next(iter(outputs))!r}]"
    rows = [a for a in jax.tree.leaves(outputs) if np.shape(a)[:1] == (n,)]
    if len(rows) < 2:
        return f"wrap it: `lambda params, x: apply(params, x){picked}`"
    return (
        f"if the loss needs only one of them, pass `lambda params, x: apply(params, x){picked}`; "
        "if it needs several, concatenate them, `lambda params, x: jnp.concatenate("
        "jax.tree.leaves(apply(params, x)), axis=-1)`, and take them apart in a callable loss (for "
        "a VAE, the mean and the log variance too: without them, its KL term is not measured)"
    )


def check_targets(
    loss: Loss, targets: Any, weights: np.ndarray | None, outputs: tuple[int, ...]
) -> None:
    """Refuse targets and weights that do not match the outputs [n, ..., k] and the loss."""
    if weights is not None and weights.shape != outputs[:-1][: weights.ndim]:
        raise ValueError(
            f"expected weights of shape {outputs[:-1]} or {outputs[:1]}, got {weights.shape}; "
            "give one weight for each example or for each position"
        )
    if loss.name.startswith("custom:"):
        for leaf in jax.tree.leaves(targets):
            if leaf.shape[: len(outputs) - 1] != outputs[:-1]:
                raise ValueError(
                    f"expected targets with leading axes {outputs[:-1]}, got shape {leaf.shape}; "
                    "give one target for each position of the outputs"
                )
        return
    if not isinstance(targets, np.ndarray):
        raise TypeError(
            f"expected one array of targets for loss {loss.name!r}, got a "
            f"{type(targets).__name__}; pass the array, or a callable loss of this structure"
        )
    if loss.has_dense_targets:
        if targets.shape != outputs:
            remedy = (
                "give them a last axis of one, targets[..., None]"
                if outputs[-1] == 1
                else f"for labels use jax.nn.one_hot(labels, {outputs[-1]}) or loss='cross_entropy'"
            )
            raise ValueError(
                f"expected targets of the outputs' shape {outputs} for loss {loss.name!r}, got "
                f"{targets.dtype} of shape {targets.shape}; {remedy}"
            )
        return
    _check_classes(targets, outputs)


def _check_classes(targets: np.ndarray, outputs: tuple[int, ...]) -> None:
    """Refuse targets of cross entropy unless they are labels or distributions over the outputs."""
    k = outputs[-1]
    if k < 2:
        raise ValueError(
            "expected at least 2 outputs for loss 'cross_entropy', got 1; give both classes a "
            "logit, or pass a callable logistic loss"
        )
    if targets.shape == outputs[:-1] and jnp.issubdtype(targets.dtype, jnp.integer):
        if targets.min() < 0 or targets.max() >= k:
            raise ValueError(
                f"expected labels in 0..{k - 1} for {k} outputs, got {targets.min()}.."
                f"{targets.max()}; mask padding with weights= and a valid label"
            )
    elif targets.shape == outputs:
        # The tolerance allows for probabilities that were stored in a low precision.
        if np.min(targets) < 0 or not np.allclose(np.sum(targets, -1), 1.0, atol=1e-3):
            raise ValueError(
                "expected each row of one-hot targets to be a distribution (non-negative, sum 1), "
                f"got minimum {np.min(targets)} and sums {np.min(np.sum(targets, -1)):.3g} to "
                f"{np.max(np.sum(targets, -1)):.3g}; normalize them or pass a callable loss"
            )
    else:
        raise ValueError(
            f"expected integer labels of shape {outputs[:-1]} or one-hot targets {outputs} for "
            f"loss 'cross_entropy', got {targets.dtype} of shape {targets.shape}; "
            "convert the targets to one of the two"
        )


def check_moving(specs: Sequence[LeafSpec]) -> None:
    """Refuse parameters without any differentiated leaf."""
    if not any(spec.differentiated and spec.size for spec in specs):
        numbers = (
            "write jnp.asarray(...) around Python's numbers, " if _python_floats(specs) else ""
        )
        raise ValueError(
            f"expected parameters with at least one floating leaf to differentiate, got "
            f"{leaves_text(specs)}; {numbers}pass the weights, or widen include="
        )


def leaves_fit(specs: Sequence[LeafSpec], known: Sequence[LeafSpec]) -> bool:
    """Return whether all leaves match their specs; a Python number may have become an array."""
    pairs = zip(specs, known, strict=True)
    return all(now == was or (was.is_number and now.shape == ()) for now, was in pairs)


def leaves_text(specs: Sequence[LeafSpec]) -> str:
    """Return the names, dtypes and shapes of the first few leaves, as text."""
    shown = [f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in specs[:6]]
    return "{" + ", ".join(shown + (["..."] if len(specs) > 6 else [])) + "}"


def warn_of_python_numbers(specs: Sequence[LeafSpec]) -> None:
    """Warn about Python numbers among the parameters, because they are held fixed."""
    numbers = _python_floats(specs)
    if numbers:
        warn_user(
            f"expected parameters as arrays, got Python numbers at {numbers}, which are held fixed "
            "like the rate of a dropout layer; write jnp.asarray(...) for one that is trained, "
            "or leave it out by exclude="
        )


def _python_floats(specs: Sequence[LeafSpec]) -> list[str]:
    """Return the names of the leaves that are Python numbers and pass the path filters."""
    return [
        spec.name
        for spec in specs
        if spec.is_number and spec.chosen and jnp.issubdtype(spec.dtype, jnp.floating)
    ]
