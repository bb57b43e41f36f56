"""Test which engine is chosen, and the reason that the user reads."""

from functools import cache

import jax
import jax.numpy as jnp
import pytest

from oracles import CASES, data, mlp
from rankmon import HessianProbe, Problem, RankMonitor, hessian_ranks
from rankmon.engines.select import DEFAULT_TIME_LIMIT, select_engine
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT, dense_bytes
from refusals import refused
from shared_problems import problem_of


@cache
def stated(dims):
    apply, params = mlp(dims, jnp.tanh)
    x, y = data(dims[0] + 9, dims[0], dims[-1])  # inputs of full rank
    return Problem(apply, loss="mse", inputs=x, targets=y).flat(params)


def choice(dims=(30, 20, 10), *, name="auto", memory=DEFAULT_MEMORY_LIMIT, time=DEFAULT_TIME_LIMIT):
    return select_engine(stated(dims), name=name, memory_limit=memory, time_limit=time)


def test_auto_takes_an_exact_engine_where_it_fits():
    assert choice().engine.name == "stack"
    assert "a stack" in choice().why


def test_auto_estimates_where_matrices_do_not_fit():
    chosen = choice((100, 20, 10), memory=8 * 2**20)
    assert chosen.engine.name == "lanczos"
    assert "memory_limit = 8 MiB" in chosen.why
    (told,) = chosen.warnings
    assert "bounds" in told
    assert "memory_limit = 8 MiB" in told
    assert "lanczos" in chosen.engine.describe()


def test_auto_takes_a_sketch_where_it_can_show_the_whole_ranks():
    apply, params = mlp((60, 60, 60, 4), jax.nn.relu)
    x, y = data(2, 60, 4)
    flat = Problem(apply, loss="mse", inputs=x, targets=y).flat(params)
    chosen = select_engine(
        flat, name="auto", memory_limit=256 * 2**20, time_limit=DEFAULT_TIME_LIMIT
    )
    assert chosen.engine.name == "sketch"
    (told,) = chosen.warnings
    assert "sketch" in told
    assert "memory_limit = 256 MiB" in told


def test_auto_estimates_where_spectra_take_too_long():
    chosen = choice(time=1e-3)
    assert chosen.engine.name == "lanczos"
    for key in ("800", "time_limit"):  # rows
        assert key in chosen.why


def test_what_is_asked_for_is_taken_or_refused():
    assert choice(name="dense", time=1e-9).engine.name == "dense"
    assert "requested" in choice(name="sketch").why
    assert not choice(name="sketch").warnings
    with refused(MemoryError, "2,200", "memory_limit"):
        choice((100, 20, 10), name="dense", memory=2**20)
    with refused(MemoryError, "sketch", "memory_limit"):
        choice(name="sketch", memory=2**17)
    with refused(MemoryError, "2,200", "memory_limit"):  # what auto would rather take
        choice((100, 20, 10), memory=2**20)


@pytest.mark.parametrize(
    ("limit", "got"),
    [(0, "0"), (-1.0, "-1.0"), ("10", "str"), (True, "bool"), (float("nan"), "nan")],
)
def test_a_time_limit_is_a_positive_number(limit, got):
    with refused((TypeError, ValueError), "time_limit", got):
        HessianProbe(time_limit=limit)


def test_an_engine_that_does_not_apply_is_refused():
    with refused(ValueError, "stack of dense layers", "'stack'", "engine='auto'"):
        hessian_ranks(problem_of("conv-mse"), CASES["conv-mse"].params, engine="stack")
    with refused(ValueError, "engine", "'magic'"):
        HessianProbe(engine="magic")


def test_auto_takes_another_engine_where_the_first_does_not_fit():
    """One layer: the second moment of the inputs is as large as the Hessian."""
    apply, params = mlp((20, 5))
    x, y = data(50, 20, 5)
    problem = Problem(apply, loss="mse", inputs=x, targets=y)
    limit = dense_bytes(100) + 2**16
    with refused(MemoryError, "100 coordinates", "memory_limit"):
        hessian_ranks(problem, params, engine="deep_linear", memory_limit=limit)
    ranks = hessian_ranks(problem, params, memory_limit=limit)
    assert (ranks["H_o"].rank, ranks["H_f"].rank) == (100, 0)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("linear-mse", "| engine | deep_linear: at most 45 of 48 rows are non-zero "),
        ("relu-mse", "| engine | stack: 48 x 48 matrices"),
        ("conv-mse", "| engine | dense: "),
    ],
)
def test_the_card_tells_the_engine(name, told):
    with RankMonitor(problem_of(name), every=1) as monitor:
        record = monitor(0, CASES[name].params)
    assert told in record.texts["rankmon/card"]


def test_a_probe_takes_the_engine_that_it_is_told():
    records = []
    for engine in ("auto", "dense"):
        probes = [HessianProbe(engine=engine)]
        with RankMonitor(problem_of("linear-mse"), every=1, probes=probes) as monitor:
            records.append(monitor(0, CASES["linear-mse"].params).scalars)
    for tag, value in records[0].items():
        if tag.startswith(("rank", "spectrum_zeros/H_L")) and "theory" not in tag:
            assert records[1][tag] == value or tag.startswith("spectrum_zeros"), tag
