"""Test the sketch engine against dense autodiff and the closed forms of theory."""

from functools import cache

import jax
import numpy as np
import pytest

from oracles import CASES, data, dense_parts, mlp
from rankmon import HessianProbe, Problem, RankMonitor, Tolerance, hessian_ranks, theory
from rankmon.engines.select import ENGINES
from rankmon.linalg.sketch import SketchedRank
from rankmon.writers.memory import MemoryWriter
from refusals import warned
from shared_problems import problem_of

# An indefinite output Hessian; several positions an example, with weights. Deep linear networks are
# below, by their closed forms; products with the Hessian of other networks are in test_operators.
NAMES = ["tanh-custom", "tokens-cross_entropy"]
PARTS = ["H_L", "H_o", "H_f", "H_f_fixed"]
EPS = 2.0**-52


@pytest.mark.parametrize("name", NAMES)
def test_ranks_are_those_of_dense_autodiff(name):
    case = CASES[name]
    problem = problem_of(name)
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


@cache
def linear(dims, n):
    """A deep linear network of these widths, and (r, s)."""
    apply, params = mlp(dims)
    x, y = data(n, dims[0], dims[-1])
    problem = Problem(apply, loss="mse", inputs=x, targets=y)
    return problem, params, {"r": min(n, dims[0]), "s": min(n, dims[0], dims[-1])}


SMALL, TEN_THOUSAND = ((20, 12, 10, 4), 30), ((200, 40, 30, 6), 50)
# Of more rank than a sketch shows that fits in so much memory.
NARROW, MEMORY = ((40, 20, 20, 4), 30), 4 * 2**20


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("shape", "p"), [(SMALL, 400), pytest.param(TEN_THOUSAND, 9380, marks=pytest.mark.slow)]
)
def test_closed_forms(shape, p, seed):
    problem, _, ranks = linear(*shape)
    dims, _ = shape
    _, params = mlp(dims, seed=seed)
    assert problem.flat(params).p == p
    found = hessian_ranks(problem, params, engine="sketch")
    assert found["H_L"].rank == theory.rank_loss(dims, **ranks)
    assert found["H_o"].rank == theory.rank_outer(dims, r=ranks["r"])
    assert found["H_f"].rank == theory.rank_functional(dims, **ranks)
    assert all(rank.certain for rank in found.values())


def test_a_common_cut_as_every_engine_has_it():
    problem, params, _ = linear(*SMALL)
    tolerance = Tolerance(relative=1e-3)
    exact = hessian_ranks(problem, params, tolerance=tolerance, engine="deep_linear")
    for part, rank in hessian_ranks(problem, params, tolerance=tolerance, engine="sketch").items():
        assert rank.tolerance == pytest.approx(exact[part].tolerance, 1e-3)
        assert rank.low <= exact[part].low <= exact[part].high <= rank.high


def test_past_its_memory_it_says_what_it_knows():
    """Past its time: test_rank_bound."""
    dims, _ = NARROW
    problem, params, ranks = linear(*NARROW)
    asked = {"engine": "sketch", "memory_limit": MEMORY, "reference": problem.residuals(params)}
    with pytest.warns(UserWarning, match="H_L, H_f"):
        found = hessian_ranks(problem, params, **asked)
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


# In the monitor


def test_the_monitor_logs_intervals_and_says_which_engine():
    dims, _ = SMALL
    problem, params, ranks = linear(*SMALL)
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
    problem, params, _ = linear(*NARROW)
    writer = MemoryWriter()
    probe = HessianProbe(engine="sketch", memory_limit=MEMORY)
    with (
        RankMonitor(problem, every=1, probes=[probe], writers=[writer]) as monitor,
        pytest.warns(UserWarning, match="sketch") as warned,
    ):
        for step in range(2):
            monitor(step, params)
    assert len(warned) == 1
    assert writer.records[1].scalars["rank_high/H_L"] < problem.flat(params).p


# Counts


def theory_of(dims, n):
    r, s = min(n, dims[0]), min(n, dims[0], dims[-1])
    return {"H_L": theory.rank_loss(dims, r=r, s=s), "H_o": theory.rank_outer(dims, r=r)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", [((4, 3, 2), 2), ((3, 2, 1), 3)], ids=str)
def test_counts_are_in_order_at_few_parameters(engine, shape):
    problem, params, _ = linear(*shape)
    found = hessian_ranks(problem, params, engine=engine, reference=problem.residuals(params))
    for rank in found.values():
        assert 0 <= rank.low <= rank.rank <= rank.high <= rank.size == problem.flat(params).p
    if engine != "slq":
        for part, truth in theory_of(*shape).items():
            assert (found[part].low, found[part].rank, found[part].high) == (truth,) * 3


BELOW = [Tolerance(absolute=1e-300), Tolerance(absolute=0.0), Tolerance(relative=1e-19)]


@pytest.mark.parametrize(
    ("engine", "tolerance"),
    [*((engine, BELOW[0]) for engine in ENGINES[1:]), *(("dense", other) for other in BELOW[1:])],
    ids=str,
)
def test_a_cut_below_rounding_is_said_and_rounding_is_not_counted(engine, tolerance):
    shape = (4, 3, 2), 2
    problem, params, _ = linear(*shape)
    with warned("rounding", "raise the tolerance"):
        found = hessian_ranks(problem, params, engine=engine, tolerance=tolerance)
    for rank in found.values():
        assert rank.low <= rank.rank <= rank.high <= rank.size
    truth = theory_of(*shape)["H_L"]
    assert found["H_L"].low <= truth <= found["H_L"].high
    assert found["H_L"].rank == truth or engine == "slq"


def test_a_sketch_does_not_count_the_rounding_of_products():
    """It counted up to its 4096 rows, of p = 400."""
    problem, params, ranks = linear(*SMALL)
    with warned("rounding", "raise the tolerance"):
        found = hessian_ranks(problem, params, engine="sketch", tolerance=BELOW[0])
    truth = theory.rank_loss(SMALL[0], **ranks)
    assert (found["H_L"].low, found["H_L"].rank, found["H_L"].high) == (truth, truth, 400)
