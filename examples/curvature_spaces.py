"""Numbers of H_L by the Krylov spaces of the engine "lanczos", with float32 products."""

import numpy as np

from curvature_truth import SHARES


def products(case):
    """Return the product of rows with H_L in float32, p, and a list with the rows of each call."""
    import jax
    from jax.flatten_util import ravel_pytree

    theta, split = ravel_pytree(case.params)
    x, y = case.data
    done = []

    @jax.jit
    def rows(t, x, v):
        gradient = jax.grad(lambda t: case.loss(split(t), x, y))
        if len(v) == 1:
            return jax.jvp(gradient, (t,), (v[0],))[1][None]
        return jax.vmap(lambda u: jax.jvp(gradient, (t,), (u,))[1])(v)

    def product(v):
        done.append(len(v))
        return np.asarray(rows(theta, x, v))

    return product, len(theta), done


def spaces(case, read, options):
    """Take the block Krylov spaces of the engine "lanczos", with float32 products.

    Args:
      case: the network.
      read: the numbers to read from the estimate.
      options: the arguments of `krylov_spectrum` for a setting.
    """
    from rankmon.linalg.krylov import Limits, krylov_spectrum

    product, p, done = products(case)

    def estimate(*setting, seed):
        done.clear()
        sizes = options(*setting)
        limits = Limits(rows=sizes.pop("rows"))
        found = krylov_spectrum(
            product, p, limits=limits, dtype=np.float32, noise=1e-6, seed=seed, **sizes
        )
        return read(found), sum(done)

    return estimate


def counts_of(found):
    """Return the counts above shares of the norm."""
    cuts = {f"above {s:g}": s * found.norm for s in SHARES}
    return {name: found.count(-cut, cut).value for name, cut in cuts.items()}


def ends_of(found):
    """Return the largest and the smallest eigenvalue."""
    return {"largest": float(found.first.values[-1]), "smallest": float(found.first.values[0])}


def trace_of(found):
    """Return the trace."""
    return {"trace": found.trace().value}


def all_of(found):
    """Return all numbers, with the time that their intervals take."""
    found.signed()
    return counts_of(found) | ends_of(found) | trace_of(found)


def one_space(**sizes):
    """Return the arguments for a space that no second one certifies."""
    return {"certified": False, "moments": 0} | sizes


def counts(case):
    """Count with one space."""
    return spaces(case, counts_of, lambda width, rows: one_space(width=width, rows=rows))


def extremes(case):
    """Find the ends of the spectrum with the Krylov space of one vector."""
    return spaces(case, ends_of, lambda r: one_space(width=1, rows=256, goal=1.0, accuracy=r))


def trace(case):
    """Add the trace outside one space, from some more vectors, to that inside."""
    return spaces(case, trace_of, lambda rows, blocks: one_space(rows=rows, moments=blocks))


def intervals(case):
    """Estimate all numbers with intervals, as the engine logs them."""
    return spaces(case, all_of, lambda goal, rows: {"goal": goal, "rows": rows})
