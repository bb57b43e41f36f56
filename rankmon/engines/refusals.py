"""Refuse problems that no engine can measure, as far as possible before anything is compiled."""

import jax

from rankmon.engines.base import differentiated_twice
from rankmon.engines.select import certainly_finds_engine, select_engine
from rankmon.hessian.operators import traced_product
from rankmon.problem.flat import FlatProblem
from rankmon.problem.precision import abstract_array, abstract_arrays


def refuse_unmeasurable(
    flat: FlatProblem, *, name: str, memory_limit: int, time_limit: float
) -> None:
    """Raise the errors of `select_engine` and `compile_derivatives` that traces can show.

    Only if the engine may not apply or fit is it selected here, which compiles some programs.

    Raises:
      ValueError: if JAX cannot differentiate the network or the loss twice, or the engine does not
        apply to the network.
      MemoryError: if its matrices do not fit in memory_limit.
    """
    outputs = abstract_array((flat.positions, flat.k), flat.dtype)
    with differentiated_twice(), flat.precision.scope():
        # JAX does not raise some errors before it lowers a program.
        traced_product(flat, "H_f").lower()
        product = jax.vmap(flat.problem.loss.hessian_product)
        jax.eval_shape(product, outputs, abstract_arrays(flat.targets), outputs)
    if not certainly_finds_engine(flat, name=name, memory_limit=memory_limit):
        select_engine(flat, name=name, memory_limit=memory_limit, time_limit=time_limit)
