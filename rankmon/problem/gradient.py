"""The gradient of the mean loss over the probe batch, with the size of its rounding errors.

Symbols: N positions with weights w_i that sum to 1; at each of them the outputs z_i = F(x_i) in
R^k, the residual delta_i = dl/dz, the output Hessian B_i = d2l/dz2 and J_i = dF(x_i)/dtheta [k, p].

  g = sum_i w_i J_i^T delta_i

To first order, a rounding of relative size eps in outputs and residuals changes g by eps h, with

  h = sum_i w_i J_i^T (s_i delta_i + B_i (s'_i z_i))

and signs s_i, s'_i = +-1 for each entry. g vanishes if the gradients of the examples cancel in the
mean, and also if the residuals vanish, but h does not: it separates a small gradient from one that
consists of rounding errors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rankmon._util.expected_time import compiled
from rankmon.problem.flat import FlatProblem

# Random signs can cancel too: two draws make a much too small h unlikely.
DRAWS = 2


@dataclass(frozen=True)
class Gradient:
    """The gradient at one point.

    Attributes:
      values: g.
      perturbations: h, once for each draw of the signs.
    """

    values: Float[np.ndarray, " p"]
    perturbations: Float[np.ndarray, "draws p"]


@dataclass(frozen=True)
class GradientProgram:
    """The compiled gradient of a problem.

    Attributes:
      flat: the problem.
      program: returns g and then the h of each draw, as rows.
    """

    flat: FlatProblem
    program: Callable[..., Any]

    @classmethod
    def of(cls, flat: FlatProblem) -> "GradientProgram":
        """Compile the gradient.

        Raises:
          ValueError: if JAX cannot differentiate the network in reverse mode.
        """

        def rows(theta: Any, fixed: Any, inputs: Any, targets: Any, weights: Any) -> Any:
            return _rows(flat, theta, fixed, inputs, targets, weights)

        with flat.precision.scope():
            shapes = flat.shapes_of(flat.inputs, flat.targets, flat.typed_weights)
            try:
                traced = jax.jit(rows).trace(*shapes)
            except Exception as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise ValueError(
                    "expected a network and a loss that JAX can differentiate in reverse mode, got "
                    f"{type(error).__name__}: {reason[:200]}; omit the gradients probe"
                ) from error
            return cls(flat, compiled("the gradient", traced))

    def at(self, theta: Float[np.ndarray, " p"], fixed: Sequence[np.ndarray]) -> Gradient:
        """Return the gradient at these parameters, in float64."""
        flat = self.flat
        with flat.precision.scope():
            batch = (flat.inputs, flat.targets, flat.typed_weights)
            rows = np.array(self.program(theta, tuple(fixed), *batch), np.float64)
        return Gradient(rows[0], rows[1:])


def _rows(
    flat: FlatProblem,
    theta: Float[Array, " p"],
    fixed: Any,
    inputs: Any,
    targets: Any,
    weights: Float[Array, " N"],
) -> Float[Array, "rows p"]:
    """Return g and then the h of each draw; traceable."""
    loss = flat.problem.loss
    leaves = flat.joined(theta, fixed)
    places = [i for i, spec in enumerate(flat.specs) if spec.differentiated]

    def outputs(moving: list[Array]) -> Array:
        at = dict(zip(places, moving, strict=True))
        return flat.apply_leaves([at.get(i, leaf) for i, leaf in enumerate(leaves)], inputs)

    # By leaves: the derivative of a slice of theta is as long as theta.
    z, pull_back = jax.vjp(outputs, [leaves[i] for i in places])
    # In closed form, which keeps the digits of a small residual.
    delta = jax.vmap(loss.residual)(z, targets)

    def row(draw: Array) -> Float[Array, " p"]:
        # The kind of key is given, because the user may have changed the default.
        key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), draw)
        signs, others = (
            jax.random.rademacher(one, z.shape, z.dtype) for one in jax.random.split(key)
        )
        rounding = signs * delta + jax.vmap(loss.hessian_product)(z, targets, others * z)
        cotangent = weights[:, None] * jnp.where(draw == 0, delta, rounding)
        # 0 times the NaN of a masked position would be NaN.
        cotangent = jnp.where(weights[:, None] > 0, cotangent, 0.0)
        (slopes,) = pull_back(cotangent.astype(z.dtype))
        return jnp.concatenate([jnp.ravel(slope).astype(theta.dtype) for slope in slopes])

    # One after the other, so that the memory is that of a single backward pass.
    return jax.lax.map(row, jnp.arange(1 + DRAWS))
