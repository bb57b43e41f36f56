"""The engine "lanczos" beside dense autodiff: intervals, bounds on ranks, known traces."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import CASES, Case, cross_entropy, dense_parts, mlp, student_t
from rankmon import HessianProbe, Problem, RankMonitor, hessian_ranks
from rankmon.engines.lanczos import LanczosEngine
from rankmon.engines.part_products import NARROW
from rankmon.engines.select import select_engine
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT
from rankmon.linalg.numerical_rank import Tolerance
from rankmon.linalg.signed_spectrum import SHARES
from rankmon.problem.point import Point
from shared_problems import problem_of

HELD = np.random.default_rng(5)
ROWS = 96


def network(activation, *, n=30, width=10, loss="cross_entropy", textbook=cross_entropy):
    """A network of 295 parameters, with more directions than the engine has rows here."""
    apply, params = mlp((12, width, width, 5), activation, bias=True)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((n, 12)), rng.integers(0, 5, n)
    if textbook is student_t:
        y = {"at": rng.standard_normal((n, 5)), "width": np.full((n, 5), 0.3)}
    return Case("network", apply, params, x, y, loss, textbook)


def measured(case, *, held=True, **limits):
    problem = Problem(case.apply, **case.statement)
    point = Point.of(problem, case.params, None)
    reference = HELD.standard_normal(point.residuals.shape) if held else None
    point = point.holding(reference)
    options = {"memory_limit": DEFAULT_MEMORY_LIMIT, "time_limit": 20.0} | limits
    chosen = select_engine(point.flat, name="lanczos", **options)
    engine = replace(chosen.engine, rows=ROWS)
    return engine.ranks(point, Tolerance()), dense_parts(case, reference), engine


NETWORKS = {
    "relu": network(jax.nn.relu),
    "tanh": network(jnp.tanh),
    "indefinite": network(jnp.tanh, loss=student_t, textbook=student_t),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_intervals_hold(name):
    found, matrices, engine = measured(NETWORKS[name])
    assert engine.products.p > engine.rows
    norm = np.linalg.norm(matrices["H_L"], 2)
    for part, curvature in found.curvature.items():
        values = np.linalg.eigvalsh(matrices[part])
        pairs = [
            (curvature.largest, values[-1]),
            (curvature.smallest, values[0]),
            (curvature.trace, values.sum()),
            (curvature.frobenius, np.linalg.norm(values)),
            *((curvature.above[s], np.sum(np.abs(values) > s * norm)) for s in SHARES),
            (curvature.clearly_negative, np.sum(values < -0.01 * norm)),
        ]
        slack = 1e-9 * norm
        assert all(e.low - slack <= true <= e.high + slack for e, true in pairs), part
        assert curvature.largest.value == pytest.approx(values[-1], abs=1e-4 * norm)
        assert curvature.smallest.value == pytest.approx(values[0], abs=1e-4 * norm)
        rank, cut = found.parts[part], found.parts[part].tolerance
        assert rank.low <= np.sum(np.abs(values) > 10 * cut)
        assert rank.high >= np.sum(np.abs(values) > cut / 10)
        assert (rank.rank is None) == (part != "H_o")


def true_numbers(values, norm):
    return {
        "largest": values[-1],
        "smallest": values[0],
        "clearly_negative": np.sum(values < -0.01 * norm),
        **{share: np.sum(np.abs(values) > share * norm) for share in SHARES},
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_with_too_little_time_values_are_left_out_and_intervals_hold(name):
    found, matrices, engine = measured(NETWORKS[name], time_limit=1e-9)
    norm = np.linalg.norm(matrices["H_L"], 2)
    left_out = 0
    for part, curvature in found.curvature.items():
        values = np.linalg.eigvalsh(matrices[part])
        for number, true in true_numbers(values, norm).items():
            is_count = isinstance(number, float)
            e = curvature.above[number] if is_count else getattr(curvature, number)
            assert e.low - 1e-9 * norm <= true <= e.high + 1e-9 * norm, (part, number)
            if np.isnan(e.value):
                left_out += not np.isnan(e.confidence)
            elif is_count or number == "clearly_negative":
                assert e.value <= max(4 * true, true + 3), (part, number)
            else:
                assert abs(e.value - true) <= 0.5 * np.max(np.abs(values)), (part, number)
        assert not curvature.stable_rank.high > engine.products.coordinates.flat.p
        rank, cut = found.parts[part], np.finfo(float).eps * len(values) * norm
        assert rank.low <= np.sum(np.abs(values) > cut)
    assert left_out
    assert any("too few products" in text for text in found.warnings)


def test_slow_products_are_of_few_vectors_and_find_the_extremes(monkeypatch):
    widths = []

    def slow(engine, programs, seconds):
        engine.products.seconds[programs] = seconds
        widths.append(width(engine, programs, seconds))
        return widths[-1]

    width = LanczosEngine._width
    monkeypatch.setattr(LanczosEngine, "_width", slow)
    found, matrices, _ = measured(NETWORKS["tanh"])
    assert set(widths) == {NARROW}
    norm = np.linalg.norm(matrices["H_L"], 2)
    for part, curvature in found.curvature.items():
        values = np.linalg.eigvalsh(matrices[part])
        assert curvature.largest.value == pytest.approx(values[-1], abs=1e-4 * norm)
        for number, true in true_numbers(values, norm).items():
            is_count = isinstance(number, float)
            e = curvature.above[number] if is_count else getattr(curvature, number)
            assert e.low - 1e-9 * norm <= true <= e.high + 1e-9 * norm, (part, number)


def test_with_enough_time_nothing_is_said():
    found, *_ = measured(NETWORKS["tanh"])
    assert not found.warnings
    assert not np.isnan(found.curvature["H_L"].largest.value)


def test_a_network_that_float32_cannot_compute_is_multiplied_in_float64():
    """A counter of integers, for instance of batch statistics, is float64 with x64."""
    case = network(jnp.tanh)

    def apply(params, x):
        kernel = jnp.full((1, 1, 1), jnp.asarray(3) / 3)
        return case.apply(params, jax.lax.conv(x[:, None], kernel, (1,), "SAME")[:, 0])

    with pytest.warns(UserWarning, match="computed in float64 .* float32 raise TypeError") as said:
        found, matrices, _ = measured(replace(case, apply=apply))
    assert len(said) == 1
    values = np.linalg.eigvalsh(matrices["H_L"])
    assert found.curvature["H_L"].largest.value == pytest.approx(values[-1], rel=1e-4)


def test_a_piecewise_linear_network_has_a_known_trace():
    found, matrices, _ = measured(NETWORKS["relu"])
    assert found.curvature["H_f"].trace.is_exact
    assert found.curvature["H_f"].trace.value == 0
    trace = found.curvature["H_L"].trace
    assert trace.is_exact
    assert trace.value == pytest.approx(np.trace(matrices["H_L"]), rel=1e-12)
    smooth, *_ = measured(NETWORKS["tanh"])
    assert not smooth.curvature["H_f"].trace.is_exact


def test_an_activation_that_is_linear_in_a_part_of_its_range_has_no_known_trace():
    case = network(lambda z: jnp.where(z > 20, z * z / 20, z))
    large = replace(case, params=jax.tree.map(lambda leaf: 20 * leaf, case.params))
    for one, known in ((case, True), (large, False)):
        found, matrices, engine = measured(one)
        assert engine.traceless
        assert found.curvature["H_f"].trace.is_exact == known
        trace = found.curvature["H_f"].trace
        want = np.trace(matrices["H_f"])
        assert trace.low - 1e-9 <= want <= trace.high + 1e-9
        assert known == (abs(want) < 1e-9)


@pytest.mark.parametrize("name", ["relu-mse", "conv-mse"])
def test_a_complete_basis_gives_the_exact_ranks(name):
    case = CASES[name]
    exact = hessian_ranks(problem_of(name), case.params, engine="dense")
    found = hessian_ranks(problem_of(name), case.params, engine="lanczos")
    for part, rank in exact.items():
        assert (found[part].low, found[part].rank, found[part].high) == (
            rank.low,
            rank.rank,
            rank.high,
        )


def test_a_probe_logs_intervals():
    case = network(jax.nn.relu, width=30)
    problem = Problem(case.apply, **case.statement)
    probe = HessianProbe(engine="lanczos")
    with RankMonitor(problem, every=1, probes=[probe]) as monitor:
        scalars = monitor(0, case.params).scalars
    assert np.isnan(scalars["rank/H_L"])
    assert 0 < scalars["rank_low/H_L"] < scalars["rank_high/H_L"]
    assert scalars["rank/H_o"] == scalars["rank_low/H_o"]
    assert scalars["eigenvalue_max/H_L"] > 0 > scalars["eigenvalue_min/H_L"]
    low = scalars["interval_low/eigenvalue_max/H_L"]
    assert low <= scalars["eigenvalue_max/H_L"]
    assert scalars["trace/H_f"] == 0


def test_overflow_is_no_estimate():
    case = NETWORKS["tanh"]
    problem = Problem(case.apply, **case.statement)
    params = jax.tree.map(lambda leaf: 1e200 * leaf, case.params)
    found = hessian_ranks(problem, params, engine="lanczos")
    assert all(rank.low is None or np.isfinite(rank.low) for rank in found.values())


def test_too_little_memory_is_refused():
    case = NETWORKS["relu"]
    problem = Problem(case.apply, **case.statement)
    with pytest.raises(MemoryError, match="memory_limit"):
        hessian_ranks(problem, case.params, engine="lanczos", memory_limit=2**18)
