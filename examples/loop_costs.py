"""Measurements of `benchmark_loop.py`: each runs in a process of its own and prints JSON.

`python examples/loop_costs.py NAME ARGUMENTS`.
"""

import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from networks import glorot_normal, linear, relu
from rankmon import (  # here, so that no measurement loads them
    HessianProbe,
    Problem,
    RankMonitor,
    WeightsProbe,
    hessian_ranks,
    read_jsonl,
)


def setting(dims, n, apply):
    """Return random weights and a problem of this size, in float32 like most users' networks."""
    weights = glorot_normal(jax.random.key(0), dims)
    x = jax.random.normal(jax.random.key(1), (n, dims[0]))
    y = jax.random.normal(jax.random.key(2), (n, dims[-1]))
    return weights, Problem(apply, loss="mse", inputs=x, targets=y)


def train_step(problem):
    """Return a compiled step of full-batch gradient descent."""
    x, y = jnp.asarray(problem.inputs), jnp.asarray(problem.targets)

    def loss(weights):
        return 0.5 * jnp.mean(jnp.sum((problem.apply(weights, x) - y) ** 2, axis=1))

    return jax.jit(lambda ws: jax.tree.map(lambda w, g: w - 1e-3 * g, ws, jax.grad(loss)(ws)))


def idle_call(calls=100_000, repeats=5):
    """Measure the microseconds of a call that is not due."""
    weights, problem = setting((4, 3, 2), 8, linear)
    monitor = RankMonitor(problem, every=10**9, probes=["weights"])
    monitor(0, weights)

    def once(first):
        began = time.perf_counter()
        for step in range(first, first + calls):
            monitor(step, weights)
        return (time.perf_counter() - began) / calls * 1e6

    return statistics.median(once(1 + i * calls) for i in range(repeats))


def peak_growth(dims, limit):
    """Measure by how many bytes one measurement raises the peak of the resident set."""
    small, problem = setting((4, 3, 2), 8, relu)
    hessian_ranks(problem, small)  # JAX's compiler and LAPACK are in memory from here on
    weights, problem = setting(dims, 300, relu)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    hessian_ranks(problem, weights, reference=np.ones((300, dims[-1])), memory_limit=limit)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def trained(step, weights, steps, monitor=None):
    """Return the wall seconds of this many steps, and the seconds of the monitor's close.

    JAX returns before a step is computed. Both loops have at most eight steps in flight, without
    which their wall times could not be compared.
    """
    began = time.perf_counter()
    flying = []
    for i in range(steps):
        if monitor is not None:
            monitor(i, weights)
        weights = step(weights)
        flying.append(weights)
        if len(flying) > 8:
            jax.block_until_ready(flying.pop(0))
    jax.block_until_ready(weights)
    ended = time.perf_counter()
    if monitor is not None:
        monitor.close(steps, weights)
    return time.perf_counter() - began, time.perf_counter() - ended


def overhead(dims, seconds, pairs):
    """Run pairs of loops without and with the monitor; return wall times, probes and overhead."""
    weights, problem = setting(dims, 300, linear)
    step = train_step(problem)
    options = {"every": 50, "background": True, "overhead": 0.05}
    # Compile the problem's programs and the step before anything is timed.
    with RankMonitor(problem, every=1) as warm:
        warm(0, weights)
        warm(1, step(weights))
    steps = int(1000 * seconds * 1.2 / trained(step, weights, 1000)[0])
    rows = []
    for pair in range(pairs):
        # Repeat with more steps if the loop was shorter than asked for: the machine is faster now.
        while (bare := trained(step, weights, steps)[0]) < seconds:
            steps = int(1.2 * steps * seconds / bare)
        with tempfile.TemporaryDirectory() as logdir:
            monitor = RankMonitor(problem, logdir=logdir, **options)
            watched, drain = trained(step, weights, steps, monitor)
            records = read_jsonl(Path(logdir) / "rankmon.jsonl")
        share = records[-1].scalars["monitor/overhead"]
        rows.append([bare, watched, drain, len(records), share])
        text = f"{bare:.2f} s without, {watched:.2f} s with the monitor, {drain:.2f} s at close"
        print(f"pair {pair + 1} of {pairs}: {text}", file=sys.stderr, flush=True)
    return rows


def resident():
    """Return the bytes that are resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def endurance(dims, probes, engine):
    """Return memory after ten and all probes, later compilations, and versions of the step."""
    weights, problem = setting(dims, 32, linear if engine == "deep_linear" else relu)
    watched = [HessianProbe(engine=engine), WeightsProbe()]
    step, compiled = train_step(problem), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    with tempfile.TemporaryDirectory() as logdir:
        with RankMonitor(problem, logdir=logdir, every=1, probes=watched) as monitor:
            for i in range(probes):
                monitor(i, weights)
                weights = step(weights)
                if i == 1:
                    assert compiled, "expected JAX to tell of compilations, got none"
                    compiled.clear()
                if i == 9:
                    early = resident()
            late = resident()
    return early, late, len(compiled), step._cache_size()


if __name__ == "__main__":
    measured = {f.__name__: f for f in (idle_call, peak_growth, overhead, endurance)}
    print(json.dumps(measured[sys.argv[1]](*json.loads(sys.argv[2]))))
