"""The two ways to train in `rank_deficiency`: gradient flow, and SGD with label noise."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np


def along_flow(apply, start, x, y, marks, rate):
    """Yield (step, parameters, no scalars) of the gradient flow at the times rate * step."""

    def loss(params):
        return 0.5 * jnp.mean(jnp.sum((apply(params, x) - y) ** 2, axis=1))

    def field(t, params, args):
        return jax.tree.map(jnp.negative, jax.grad(loss)(params))

    times = jnp.asarray(rate * marks)
    steps = {"dt0": None, "stepsize_controller": diffrax.PIDController(rtol=1e-10, atol=1e-12)}
    steps |= {"saveat": diffrax.SaveAt(ts=times), "max_steps": 1_000_000}
    span = {"t0": 0.0, "t1": times[-1], "y0": start}
    solution = diffrax.diffeqsolve(diffrax.ODETerm(field), diffrax.Dopri8(), **span, **steps)
    for i, mark in enumerate(marks):
        yield int(mark), jax.tree.map(lambda leaf, i=i: leaf[i], solution.ys), {}


def along_sgd(apply, params, x, y, marks, rate, noise):
    """Yield (step, parameters, the sum of all log|1 - eta^2 |x|^2 |delta|^2|) of SGD."""
    x, y = jnp.asarray(x), jnp.asarray(y)

    def step(_, carry):
        params, change, key = carry
        key, index_key, noise_key = jax.random.split(key, 3)
        index = jax.random.randint(index_key, (1,), 0, len(x))
        target = y[index] + noise * jax.random.normal(noise_key, (1, y.shape[1]))
        outputs, pull = jax.vjp(lambda params: apply(params, x[index]), params)
        (gradient,) = pull(outputs - target)
        size = jnp.sum(x[index] ** 2) * jnp.sum((outputs - target) ** 2)
        params = jax.tree.map(lambda leaf, slope: leaf - rate * slope, params, gradient)
        return params, change + jnp.log(jnp.abs(1 - rate**2 * size)), key

    advance = jax.jit(lambda steps, carry: jax.lax.fori_loop(0, steps, step, carry))
    carry = params, jnp.zeros(()), jax.random.key(0)
    for steps, mark in zip(np.diff(marks, prepend=0), marks, strict=True):
        carry = advance(steps, carry)
        yield int(mark), carry[0], {"steps/log_abs_det": float(carry[1])}
