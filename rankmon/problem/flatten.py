"""Build the `FlatProblem` of a user's problem at parameters of a known structure."""

from collections.abc import Callable
from typing import Any

import jax

from rankmon.problem.checks import (
    check_moving,
    check_outputs,
    check_targets,
    warn_of_python_numbers,
)
from rankmon.problem.flat import FlatProblem, Statement
from rankmon.problem.loss_checks import check_loss
from rankmon.problem.measured_function import Network, chosen_network
from rankmon.problem.precision import NATIVE, abstract_array
from rankmon.problem.pytree import LeafSpec


def flat_problem(problem: Statement, params: Any, specs: tuple[LeafSpec, ...]) -> FlatProblem:
    """Return the problem at parameters of this structure, checked by shapes without computation.

    Raises:
      TypeError, ValueError: for invalid parameters; the message says how to fix them.
    """
    check_moving(specs)
    warn_of_python_numbers(specs)
    structure = jax.tree.structure(params)
    leaves = [abstract_array(spec.shape, NATIVE.traced_dtype(spec.dtype)) for spec in specs]
    network = _network(problem, structure)
    with NATIVE.scope():
        outputs = jax.eval_shape(network, leaves, problem.inputs)
        check_outputs(outputs, problem.n)
    shape = tuple(outputs.shape)
    check_targets(problem.loss, problem.targets, problem.weights, shape)
    check_loss(problem.loss, outputs, problem.targets)
    k = shape[-1]

    def measured(network: Network) -> Callable[..., Any]:
        """Return the losses and residuals as a function, whose operations fix the precision."""

        def losses(leaves: Any, inputs: Any, targets: Any) -> Any:
            z = network(leaves, inputs).reshape(-1, k)
            rows = jax.tree.map(lambda t: t.reshape(-1, *t.shape[len(shape) - 1 :]), targets)
            loss = problem.loss
            return jax.vmap(loss.value)(z, rows), jax.vmap(loss.residual)(z, rows)

        return losses

    network, precision = chosen_network(problem, network, measured, leaves, jax.tree.leaves(params))
    return FlatProblem(
        problem=problem,
        network=network,
        structure=structure,
        specs=specs,
        precision=precision,
        position_axes=shape[:-1],
        k=k,
    )


def _network(problem: Statement, structure: Any) -> Callable[[Any, Any], Any]:
    """Return the function (leaves, inputs) -> outputs [n, ..., k]."""

    def network(leaves: Any, inputs: Any) -> Any:
        return problem.outputs(jax.tree.unflatten(structure, leaves), inputs)

    return network
