"""The engine past dense matrices, against dense autodiff and the closed forms of theory."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import CASES, Case, data, dense_parts, mlp
from rankmon import HessianProbe, Problem, RankMonitor, Tolerance, hessian_ranks, theory
from rankmon.choice import chosen_engine
from rankmon.large import DEFAULT_TIME_LIMIT
from rankmon.parts import DEFAULT_MEMORY_LIMIT
from rankmon.sketch import SketchedRank
from rankmon.writers import MemoryWriter

NAMES = [
    "linear-mse",
    "relu_bias-mse",
    "tanh-cross_entropy",
    "tanh-custom",
    "conv-mse",
    "tokens-cross_entropy",
    "batch_statistics-mse",
]
PARTS = ["H_L", "H_o", "H_f", "H_f_fixed"]
EPS = 2.0**-52


def problem_of(case: Case) -> Problem:
    return Problem(case.apply, **case.statement)


@pytest.mark.parametrize("name", NAMES)
def test_ranks_are_those_of_dense_autodiff(name):
    case = CASES[name]
    problem = problem_of(case)
    flat = problem.flat(case.params)
    held = np.random.default_rng(4).standard_normal((flat.positions, flat.k))
    found = hessian_ranks(problem, case.params, reference=held, engine="sketch")
    assert list(found) == PARTS
    matrices = dense_parts(case, held)
    norm = np.linalg.norm(matrices["H_L"], 2)
    for part in PARTS:
        matrix = matrices[part]
        values = np.abs(np.linalg.eigvalsh(matrix))
        cut = flat.p * EPS * max(norm, values.max())
        assert found[part].tolerance == pytest.approx(cut, 1e-2)
        assert found[part].low <= np.sum(values > 10 * cut)
        assert found[part].high >= np.sum(values > cut / 10)
        assert found[part].low <= found[part].rank <= found[part].high
        assert found[part].rank == np.sum(values > cut)
        assert isinstance(found[part], SketchedRank) == (part != "H_o")


def linear(dims, n, seed=0):
    """A deep linear network of these widths, and (r, s)."""
    apply, params = mlp(dims, seed=seed)
    x, y = data(n, dims[0], dims[-1], seed)
    problem = Problem(apply, loss="mse", inputs=x, targets=y)
    return problem, params, {"r": min(n, dims[0]), "s": min(n, dims[0], dims[-1])}


@pytest.mark.parametrize("seed", range(3))
def test_closed_forms_of_a_network_of_ten_thousand_parameters(seed):
    dims = (200, 40, 30, 6)
    problem, params, ranks = linear(dims, 50, seed)
    assert problem.flat(params).p == 9380
    found = hessian_ranks(problem, params, engine="sketch")
    assert found["H_L"].rank == theory.rank_loss(dims, **ranks)
    assert found["H_o"].rank == theory.rank_outer(dims, r=ranks["r"])
    assert found["H_f"].rank == theory.rank_functional(dims, **ranks)
    assert all(rank.certain for rank in found.values())


def test_a_common_cut_as_every_engine_has_it():
    problem, params, _ = linear((12, 8, 5), 30)
    tolerance = Tolerance(relative=1e-3)
    exact = hessian_ranks(problem, params, tolerance=tolerance, engine="dense")
    for part, rank in hessian_ranks(problem, params, tolerance=tolerance, engine="sketch").items():
        assert rank.tolerance == pytest.approx(exact[part].tolerance, 1e-3)
        assert rank.low <= exact[part].low <= exact[part].high <= rank.high


@pytest.mark.parametrize(
    "limits", [{"time_limit": 1e-6}, {"memory_limit": 8 * 2**20}], ids=["time", "memory"]
)
def test_past_its_limits_it_says_what_it_knows(limits):
    dims = (60, 40, 40, 6)
    problem, params, ranks = linear(dims, 60)
    with pytest.warns(UserWarning, match="the ranks of H_L, H_f are more than a sketch shows"):
        found = hessian_ranks(problem, params, engine="sketch", **limits)
    truth = theory.rank_loss(dims, **ranks)
    assert not found["H_L"].complete
    assert found["H_L"].rank == found["H_L"].low <= truth
    assert found["H_L"].low >= 60  # of a sketch of 64 rows at the least
    assert truth <= found["H_L"].high < problem.flat(params).p
    assert found["H_o"].rank == theory.rank_outer(dims, r=ranks["r"])


@pytest.mark.parametrize("engine", ["sketch", "slq"])
def test_nothing_finite_no_rank(engine):
    problem, params, _ = linear((5, 4, 3), 8)
    poisoned = jax.tree.map(lambda leaf: leaf * np.nan, params)
    found = hessian_ranks(problem, poisoned, engine=engine)
    assert [rank.rank for rank in found.values()] == [None] * 3
    huge = jax.tree.map(lambda leaf: np.asarray(leaf) * 1e160, params)
    found = hessian_ranks(problem, huge, engine=engine)
    assert [rank.rank for rank in found.values()] == [None] * 3


SHARDED = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
import rankmon
from rankmon import theory
from rankmon.choice import ENGINES

assert len(jax.devices()) == 4
mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
split = NamedSharding(mesh, PartitionSpec("model"))
rng = np.random.default_rng(0)
params = [jax.device_put(rng.normal(size=s).astype(np.float32), split) for s in ((8, 8), (8, 4))]
x, y = rng.normal(size=(12, 8)), rng.normal(size=(12, 4))
problem = rankmon.Problem(lambda w, x: x @ w[0] @ w[1], loss="mse", inputs=x, targets=y)
coarse = rankmon.Tolerance(relative=0.2)
with jax.set_mesh(mesh):
    expected = rankmon.hessian_ranks(problem, params, engine="dense", tolerance=coarse)
    for engine in ENGINES:
        if engine == "slq":
            found = rankmon.hessian_ranks(problem, params, engine=engine, tolerance=coarse)
            assert found["H_L"].low <= expected["H_L"].low <= expected["H_L"].high
            assert expected["H_L"].high <= found["H_L"].high
        else:
            found = rankmon.hessian_ranks(problem, params, engine=engine)
            assert found["H_L"].rank == theory.rank_loss((8, 8, 4)), engine
            assert found["H_o"].rank == theory.rank_outer((8, 8, 4)), engine
assert len(params[0].sharding.device_set) == 4
"""


def test_every_engine_runs_with_sharded_parameters_under_a_mesh():
    flags = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=flags, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# Which engine


def choice(dims=(30, 20, 10), *, name="auto", memory=DEFAULT_MEMORY_LIMIT, time=DEFAULT_TIME_LIMIT):
    apply, params = mlp(dims, jnp.tanh)
    x, y = data(9, dims[0], dims[-1])
    flat = Problem(apply, loss="mse", inputs=x, targets=y).flat(params)
    return chosen_engine(flat, name=name, memory_limit=memory, time_limit=time)


def test_auto_takes_an_exact_engine_where_it_fits():
    assert choice().engine.name == "stack"
    assert "recognized as a stack" in choice().why


def test_auto_takes_a_sketch_where_matrices_do_not_fit():
    chosen = choice((100, 20, 10), memory=8 * 2**20)
    assert chosen.engine.name == "sketch"
    assert "exceed memory_limit = 8 MiB" in chosen.why
    (told,) = chosen.told
    assert told.startswith("the Hessian's ranks come from a sketch, since the matrices of exact")
    assert "sketches of up to" in chosen.engine.describe()


def test_auto_takes_a_sketch_where_spectra_take_too_long():
    chosen = choice(time=1e-3)
    assert chosen.engine.name == "sketch"
    assert chosen.why.startswith("chosen since spectra of 800 rows take about")


def test_what_is_asked_for_is_taken_or_refused():
    assert choice(name="dense", time=1e-9).engine.name == "dense"
    assert choice(name="sketch").why == "asked for"
    assert not choice(name="sketch").told
    with pytest.raises(MemoryError, match="p = 2,200 parameters"):
        choice((100, 20, 10), name="dense", memory=2**20)
    with pytest.raises(MemoryError, match="expected a sketch of 64 rows"):
        choice(name="sketch", memory=2**17)
    with pytest.raises(MemoryError, match="p = 2,200 parameters"):  # what auto would rather take
        choice((100, 20, 10), memory=2**20)


@pytest.mark.parametrize("limit", [0, -1.0, "10", True, float("nan")])
def test_a_time_limit_is_a_positive_number(limit):
    with pytest.raises((TypeError, ValueError), match="expected time_limit to be"):
        HessianProbe(time_limit=limit)


# In the monitor


def test_the_monitor_logs_intervals_and_says_which_engine(tmp_path):
    dims = (20, 12, 10, 4)
    problem, params, ranks = linear(dims, 30)
    writer = MemoryWriter()
    probe = HessianProbe(engine="sketch")
    with RankMonitor(problem, every=1, probes=[probe], writers=[writer]) as monitor:
        monitor(0, params)
        monitor(1, jax.tree.map(lambda leaf: leaf * 1.1, params))
    first, second = writer.records
    assert first.scalars["rank/H_L"] == theory.rank_loss(dims, **ranks)
    assert first.scalars["rank_theory/H_L"] == theory.rank_loss(dims, **ranks)
    assert second.scalars["rank/H_f_fixed"] == theory.rank_functional(dims, **ranks)
    assert second.scalars["rank_self/H_f"] == theory.rank_functional(dims, **ranks)
    for part in PARTS:
        assert second.scalars[f"rank_low/{part}"] == second.scalars[f"rank_high/{part}"]
    assert not any(tag.startswith("spectrum") for tag in (*first.arrays, *first.scalars))


def test_what_a_sketch_cannot_show_is_told_once():
    problem, params, _ = linear((60, 40, 40, 6), 60)
    writer = MemoryWriter()
    probe = HessianProbe(engine="sketch", memory_limit=8 * 2**20)
    with (
        RankMonitor(problem, every=1, probes=[probe], writers=[writer]) as monitor,
        pytest.warns(UserWarning, match="more than a sketch shows") as warned,
    ):
        for step in range(2):
            monitor(step, params)
    assert len(warned) == 1
    assert writer.records[1].scalars["rank_high/H_L"] < problem.flat(params).p
