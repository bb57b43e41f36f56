"""Ranks of the Hessian's parts: against dense autodiff, against theory, and their invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import CASES, dense_parts, mlp
from rankmon import (
    HessianProbe,
    MemoryWriter,
    Problem,
    RankMonitor,
    RankmonWarning,
    Tolerance,
    hessian_ranks,
    hessian_spectra,
    predicted_ranks,
    theory,
)
from refusals import refused
from shared_problems import flat_of, problem_of

EPS = np.finfo(np.float64).eps


def oracle_counts(parts):
    """Low, rank and high of each part at the common cut, from NumPy's own eigenvalues."""
    spectra = {part: np.abs(np.linalg.eigvalsh((h + h.T) / 2)) for part, h in parts.items()}
    p = len(spectra["H_L"])
    counts = {}
    for part, s in spectra.items():
        cut = p * EPS * max(spectra["H_L"].max(), s.max())
        counts[part] = tuple(int((s > cut * factor).sum()) for factor in (10, 1, 0.1))
    return counts


@pytest.mark.parametrize(
    "name", ["linear-mse", "relu_bias-mse", "tanh-cross_entropy", "conv-mse", "linear-weights"]
)
def test_ranks_equal_those_of_autodiff(name):
    case, flat = CASES[name], flat_of(name)
    reference = np.random.default_rng(5).standard_normal((flat.positions, flat.k))
    ranks = hessian_ranks(problem_of(name), case.params, reference=reference)
    parts = dense_parts(case, reference)
    want = oracle_counts({part: parts[part] for part in ranks})
    certain = {part for part, (low, _, high) in want.items() if low == high}
    assert {part for part, rank in ranks.items() if rank.certain} == certain
    for part, rank in ranks.items():
        assert rank.size == flat.p
        if part in certain:
            assert (rank.low, rank.rank, rank.high) == want[part], part


# Every two of the three choices together.
@pytest.mark.parametrize(
    ("dims", "loss", "bias"),
    [
        ((6, 5, 4, 3), "mse", False),
        ((6, 5, 4, 3), "cosh", True),
        ((6, 5, 4, 3), "cross_entropy", False),
        ((5, 2, 4, 3), "mse", True),
        ((5, 2, 4, 3), "cosh", False),
        ((5, 2, 4, 3), "cross_entropy", True),
    ],
    ids=[
        "wide-mse",
        "wide-cosh-bias",
        "wide-cross_entropy",
        "bottleneck-mse-bias",
        "bottleneck-cosh",
        "bottleneck-cross_entropy-bias",
    ],
)
def test_linear_networks_meet_theory(dims, loss, bias):
    apply, params = mlp(dims, bias=bias, seed=2)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, dims[0]))
    x -= x.mean(0)
    y = rng.standard_normal((40, 3)) if loss != "cross_entropy" else rng.integers(0, 3, 40)
    ranks = hessian_ranks(Problem(apply, loss=loss, inputs=x, targets=y), params)
    expected = {
        "H_L": theory.rank_loss(dims, bias=bias, loss=loss),
        "H_o": theory.rank_outer(dims, bias=bias, loss=loss),
        "H_f": theory.rank_functional(dims, bias=bias, loss=loss),
    }
    assert {part: rank.rank for part, rank in ranks.items()} == expected
    assert all(rank.certain for rank in ranks.values())


def test_float32_parameters_are_measured_in_float64():
    case = CASES["linear-mse"]
    narrow = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), case.params)
    problem = Problem(
        jax.jit(case.apply),
        loss="mse",
        inputs=jnp.asarray(case.inputs, jnp.float32),
        targets=jnp.asarray(case.targets, jnp.float32),
    )
    ranks = hessian_ranks(problem, narrow)
    assert {part: rank.rank for part, rank in ranks.items()} == {
        "H_L": theory.rank_loss((5, 4, 4, 3)),
        "H_o": theory.rank_outer((5, 4, 4, 3)),
        "H_f": theory.rank_functional((5, 4, 4, 3)),
    }
    assert ranks["H_L"].tolerance < 1e-11


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_ranks_do_not_depend_on_the_scale_of_the_loss(scale):
    case = CASES["tanh-mse"]
    scaled = Problem(
        case.apply,
        loss=lambda z, y: 0.5 * y["scale"][0] * jnp.sum((z - y["at"]) ** 2),
        inputs=case.inputs,
        targets={"at": case.targets, "scale": np.full((len(case.targets), 1), scale)},
    )
    plain = hessian_ranks(problem_of("tanh-mse"), case.params)
    for part, rank in hessian_ranks(scaled, case.params).items():
        want = plain[part]
        assert (rank.low, rank.rank, rank.high) == (want.low, want.rank, want.high)
        assert rank.tolerance == pytest.approx(scale * want.tolerance, rel=1e-6)


def test_ranks_do_not_depend_on_the_order_of_parameters():
    apply, params = mlp((5, 4, 3), jnp.tanh)
    x, y = CASES["tanh-mse"].inputs, CASES["tanh-mse"].targets
    swapped = {"a": params[1]["w"], "b": params[0]["w"]}
    problem = Problem(apply, loss="mse", inputs=x, targets=y)
    other = Problem(
        lambda p, x: apply([{"w": p["b"]}, {"w": p["a"]}], x), loss="mse", inputs=x, targets=y
    )
    counts = {part: rank.rank for part, rank in hessian_ranks(problem, params).items()}
    assert counts == {part: rank.rank for part, rank in hessian_ranks(other, swapped).items()}


def test_only_included_parameters_count():
    apply, params = mlp((5, 4, 3), jnp.tanh, bias=True)
    x, y = CASES["tanh-mse"].inputs, CASES["tanh-mse"].targets
    problem = Problem(apply, loss="mse", inputs=x, targets=y, include=["1/*"], exclude=["*/b"])
    ranks = hessian_ranks(problem, params)
    # The last layer alone is linear in its weights: H_f = 0, H_o = I_K (x) E[h h^T].
    assert ranks["H_L"].size == 12
    assert (ranks["H_o"].rank, ranks["H_f"].rank) == (12, 0)
    assert np.isnan(ranks["H_f"].gap)


def test_functional_term_falls_at_the_common_cut_and_not_at_its_own():
    case = CASES["linear-mse"]
    z = np.asarray(case.apply(case.params, case.inputs))
    noise = np.random.default_rng(1).standard_normal(z.shape)
    near = Problem(case.apply, loss="mse", inputs=case.inputs, targets=z + 1e-20 + 1e-15 * noise)
    ranks = hessian_ranks(near, case.params, reference=noise)
    assert ranks["H_f"].rank == 0
    assert ranks["H_L"].rank == ranks["H_o"].rank == theory.rank_outer((5, 4, 4, 3))
    assert ranks["H_f_fixed"].rank == theory.rank_functional((5, 4, 4, 3))


@pytest.mark.parametrize("engine", ["auto", "dense", "sketch"])
def test_functional_term_has_its_own_rank_far_below_the_norm_of_the_hessian(engine):
    """Its products are rounded in proportion to itself: the residual is noise beside H_L alone."""
    case, memory = CASES["linear-mse"], MemoryWriter()
    z = np.asarray(case.apply(case.params, case.inputs))
    noise = np.random.default_rng(1).standard_normal(z.shape)
    near = Problem(case.apply, loss="mse", inputs=case.inputs, targets=z + 1e-13 * noise)
    probe = HessianProbe(engine=engine)
    with RankMonitor(near, every=1, probes=[probe], writers=[memory]) as monitor:
        monitor(0, case.params)
    assert memory.records[0].scalars["rank/H_f"] < theory.rank_functional((5, 4, 4, 3))
    assert memory.records[0].scalars["rank_self/H_f"] == theory.rank_functional((5, 4, 4, 3))


def test_nonfinite_weights_have_no_rank(monkeypatch):
    case = CASES["linear-mse"]
    broken = jax.tree.map(np.array, case.params)
    broken[0]["w"][0, 0] = np.nan
    monkeypatch.setattr(np.linalg, "eigvalsh", None)
    ranks = hessian_ranks(problem_of("linear-mse"), broken, reference=np.zeros((9, 3)))
    assert set(ranks) == {"H_L", "H_o", "H_f", "H_f_fixed"}
    assert all(rank.rank is None and np.isnan(rank.gap) for rank in ranks.values())


def test_overflowing_networks_have_no_rank():
    case = CASES["linear-mse"]
    huge = jax.tree.map(lambda a: a * 1e120, case.params)
    with np.errstate(over="ignore", invalid="ignore"):
        assert hessian_ranks(problem_of("linear-mse"), huge)["H_L"].rank is None


def test_tolerances():
    case, problem = CASES["linear-mse"], problem_of("linear-mse")
    everything = hessian_ranks(problem, case.params, tolerance=Tolerance(absolute=1e300))
    assert {rank.rank for rank in everything.values()} == {0}
    ranks = hessian_ranks(problem, case.params, tolerance=Tolerance(relative=1e-3))
    norm = np.linalg.norm(dense_parts(case)["H_L"], 2)
    assert ranks["H_o"].tolerance == pytest.approx(1e-3 * norm, rel=1e-9)


def test_bad_input_is_explained():
    case, problem = CASES["linear-mse"], problem_of("linear-mse")
    with refused(ValueError, "reference", "(9, 3)", "(3, 9)"):
        hessian_ranks(problem, case.params, reference=np.zeros((3, 9)))
    with refused(ValueError, "engine", "'magic'"):
        hessian_ranks(problem, case.params, engine="magic")


@pytest.mark.parametrize("ends_in", [jnp.float32, jnp.float64])
def test_coarse_arithmetic_is_said_once(ends_in):
    def apply(w, x):
        return (x.astype(jnp.float32) @ w.astype(jnp.float32)).astype(ends_in)

    with jax.enable_x64(True):
        problem = Problem(apply, loss="mse", inputs=np.eye(4), targets=np.ones((4, 2)))
        with pytest.warns(RankmonWarning, match="float32") as caught:
            ranks = hessian_ranks(problem, np.ones((4, 2)))
            hessian_ranks(problem, np.ones((4, 2)))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert (ranks["H_o"].rank, ranks["H_f"].rank) == (8, 0)


def test_residuals_are_what_reference_takes():
    case = CASES["tanh-cross_entropy"]
    problem = problem_of("tanh-cross_entropy")
    residuals = problem.residuals(case.params)
    np.testing.assert_allclose(residuals, dense_parts(case)["delta"], atol=1e-14)
    ranks = hessian_ranks(problem, case.params, reference=residuals)
    assert ranks["H_f_fixed"] == ranks["H_f"]


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("linear-mse", "auto"),
        ("tanh-custom", "auto"),
        ("tanh-cross_entropy", "dense"),
        ("conv-mse", "auto"),
    ],
)
def test_spectra_are_signed_eigenvalues_by_falling_magnitude(name, engine):
    case, problem, flat = CASES[name], problem_of(name), flat_of(name)
    reference = np.random.default_rng(5).standard_normal((flat.positions, flat.k))
    spectra = hessian_spectra(problem, case.params, reference=reference, engine=engine)
    parts = dense_parts(case, reference)
    assert list(spectra) == ["H_L", "H_o", "H_f", "H_f_fixed"]
    for part, values in spectra.items():
        assert np.all(np.diff(np.abs(values)) <= 0)
        want = np.linalg.eigvalsh((parts[part] + parts[part].T) / 2)
        atol = 1e-12 * np.abs(want).max()
        np.testing.assert_allclose(np.sort(values), want, rtol=0, atol=atol)


def test_without_a_reference_there_is_no_spectrum_of_held_residuals():
    params = CASES["linear-mse"].params
    assert list(hessian_spectra(problem_of("linear-mse"), params)) == ["H_L", "H_o", "H_f"]


def test_spectra_belong_to_the_caller():
    case = CASES["linear-mse"]
    problem = problem_of("linear-mse")
    first = hessian_spectra(problem, case.params)
    first["H_L"][:] = 0
    assert hessian_spectra(problem, case.params)["H_L"][0] != 0


def test_spectra_of_what_is_not_finite_are_nan():
    case = CASES["linear-mse"]
    broken = jax.tree.map(np.array, case.params)
    broken[0]["w"][0, 0] = np.inf
    spectra = hessian_spectra(problem_of("linear-mse"), broken)
    assert {part: values.shape for part, values in spectra.items()} == dict.fromkeys(
        ("H_L", "H_o", "H_f"), (48,)
    )
    assert all(np.isnan(values).all() for values in spectra.values())


@pytest.mark.parametrize(("loss", "bias"), [("mse", True), ("cross_entropy", False)])
def test_predictions_are_at_the_measured_ranks(loss, bias):
    dims, n = (9, 5, 6, 4), 7
    apply, params = mlp(dims, bias=bias, seed=2)
    x = np.random.default_rng(0).standard_normal((n, 9))
    x -= x.mean(0)
    y = np.arange(n) % 4 if loss == "cross_entropy" else np.eye(4)[np.arange(n) % 4]
    problem = Problem(apply, loss=loss, inputs=x, targets=y)
    found = predicted_ranks(problem, params)
    assert (found.dims, found.bias, found.linear, found.full_rank) == (dims, bias, True, True)
    assert found.r == n - 1  # n inputs with mean zero
    design = np.hstack([x, np.ones((n, 1))]) if bias else x
    omega = problem.residuals(params).T @ design
    assert found.s.rank == np.linalg.matrix_rank(omega) == 4 - (loss == "cross_entropy")
    measured = hessian_ranks(problem, params, engine="dense")
    assert found.ranks == {part: rank.rank for part, rank in measured.items()}


@pytest.mark.parametrize(
    ("tail", "outputs"),
    [(1e-4, 8), (1e-9, 3), (1e-9, 8)],
    ids=["seen-8", "unseen-3", "unseen-8"],
)
def test_predictions_count_the_inputs_that_each_part_can_show(tail, outputs):
    dims = (5, 8, outputs)
    apply, params = mlp(dims, seed=2)
    rng = np.random.default_rng(0)
    x = np.linalg.qr(rng.standard_normal((30, 5)))[0] * [1.0, 1.0, 1.0, 1.0, tail]
    problem = Problem(apply, loss="mse", inputs=x, targets=rng.standard_normal((30, outputs)))
    found = predicted_ranks(problem, params)
    assert (found.r, found.visible) == (5, 5 if tail > 1e-6 else 4)
    # Where s exceeds what H_o shows, only H_f shows all of it, and theory is silent on H_L.
    assert ("H_L" in found.ranks) == (found.s.rank <= found.visible)
    assert ("H_L" not in found.ranks) == (tail < 1e-6 and outputs == 8)
    measured = hessian_ranks(problem, params, engine="dense")
    for part, rank in found.ranks.items():
        assert rank == measured[part].rank, part


def test_arithmetic_too_coarse_for_any_rank_shows_no_inputs():
    def apply(params, x):
        first, last = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
        x = jnp.tanh(x.astype(jnp.bfloat16) @ first["w"] + first["b"])
        return x @ last["w"] + last["b"]

    _, params = mlp((8, 9, 6), bias=True)
    x, y = np.random.default_rng(0).standard_normal((2, 20, 8))
    problem = Problem(apply, loss="mse", inputs=x, targets=y[:, :6])
    with pytest.warns(RankmonWarning, match="bfloat16"):
        found = predicted_ranks(problem, params)
    assert (found.r, found.visible) == (8, 0)
    assert found.ranks["H_o"] == theory.rank_outer((8, 9, 6), r=0, bias=True)


def test_predictions_say_what_they_rest_on():
    apply, params = mlp((6, 4, 3), jnp.tanh)
    x, y = np.random.default_rng(0).standard_normal((2, 20, 6))
    problem = Problem(apply, loss="mse", inputs=x, targets=y[:, :3])
    found = predicted_ranks(problem, params)
    assert not found.linear
    assert found.ranks["H_o"] == theory.rank_outer((6, 4, 3))
    params[0]["w"][:, 1] = params[0]["w"][:, 0]
    assert not predicted_ranks(problem, params).full_rank


def test_what_theory_says_nothing_of_is_refused():
    with refused(ValueError, "stack of dense layers"):
        predicted_ranks(problem_of("conv-mse"), CASES["conv-mse"].params)
    with refused(ValueError, "loss by name", "custom"):
        predicted_ranks(problem_of("tanh-custom"), CASES["tanh-custom"].params)
    mixed = Problem(
        lambda p, x: (x @ p["W1"] + p["b1"]) @ p["W2"],
        loss="mse",
        inputs=np.eye(4),
        targets=np.ones((4, 2)),
    )
    params = {"W1": np.ones((4, 3)), "b1": np.ones(3), "W2": np.ones((3, 2))}
    with refused(ValueError, "biases in some layers"):
        predicted_ranks(mixed, params)
    broken = jax.tree.map(lambda a: a * np.nan, CASES["linear-mse"].params)
    with refused(ValueError, "finite parameters"):
        predicted_ranks(problem_of("linear-mse"), broken)


@pytest.mark.parametrize("part", ["H_L", "H_o", "H_f", "H_f_fixed"])
@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("linear-mse", "deep_linear"),
        ("tanh_bias-mse", "stack"),
        ("conv-mse", "dense"),
        ("conv-mse", "sketch"),
    ],
    ids=["deep_linear", "stack", "dense", "sketch"],
)
def test_a_part_alone_is_as_among_all(name, engine, part):
    case, flat = CASES[name], flat_of(name)
    reference = np.random.default_rng(5).standard_normal((flat.positions, flat.k))
    ask = {"reference": reference, "engine": engine}
    together = hessian_ranks(problem_of(name), case.params, **ask)
    alone = hessian_ranks(problem_of(name), case.params, parts=(part,), **ask)
    assert list(alone) == [part]
    got, want = alone[part], together[part]
    assert (got.rank, got.low, got.high, got.size) == (want.rank, want.low, want.high, want.size)
    assert got.tolerance == pytest.approx(want.tolerance, rel=1e-9)
    if engine != "sketch":
        spectra = hessian_spectra(problem_of(name), case.params, parts=[part], **ask)
        assert list(spectra) == [part]
        all_spectra = hessian_spectra(problem_of(name), case.params, **ask)
        np.testing.assert_allclose(spectra[part], all_spectra[part], atol=1e-13)


def test_eigenvalues_of_parts_that_are_not_asked_for_are_not_computed(monkeypatch):
    case, calls, eigvalsh = CASES["tanh_bias-mse"], [], np.linalg.eigvalsh

    def counting(matrix, **options):
        calls.append(len(matrix))
        return eigvalsh(matrix, **options)

    problem = Problem(case.apply, **case.statement)
    reference = np.ones((9, 3))
    monkeypatch.setattr(np.linalg, "eigvalsh", counting)
    counts = []
    for parts in (None, ("H_L",), ("H_L", "H_f")):
        calls.clear()
        hessian_ranks(problem, case.params, reference=reference, parts=parts)
        counts.append(len(calls))
    assert counts == [3, 1, 2]  # H_o's are squares of singular values


def test_parts_that_there_are_not_are_refused():
    case, problem = CASES["linear-mse"], problem_of("linear-mse")
    for parts in (("H_x",), (), "H"):
        with refused(ValueError, "parts", "'H_L'"):
            hessian_ranks(problem, case.params, parts=parts)
    with refused(TypeError, "parts", "3"):
        hessian_spectra(problem, case.params, parts=3)
    with refused(ValueError, "reference", "H_f_fixed"):
        hessian_ranks(problem, case.params, parts=("H_f_fixed",))
    with refused(ValueError, "parts", "'H_x'"):
        HessianProbe(parts=("H_x",))


@pytest.mark.parametrize("parts", [("H_L",), ("H_o", "H_f_fixed"), ("H_f",)], ids="+".join)
def test_a_probe_of_some_parts_logs_these_alone(parts):
    case = CASES["linear-mse"]
    moved = jax.tree.map(lambda a: 1.1 * a, case.params)

    def records(**options):
        memory = MemoryWriter()
        probe = HessianProbe(**options)
        with RankMonitor(
            problem_of("linear-mse"), every=1, probes=[probe], writers=[memory]
        ) as monitor:
            for step, params in enumerate((case.params, moved)):
                monitor(step, params)
        return memory.records, monitor.state

    (some, state), (every, whole) = records(parts=parts), records()
    assert jax.tree.structure(state) == jax.tree.structure(whole)
    for found, all_of_them in zip(some, every, strict=True):
        named = {tag.split("/")[1] for tag in found.scalars if tag.startswith(("rank", "gap"))}
        assert named - {"Omega"} == set(parts)
        assert {tag.split("/")[1] for tag in found.arrays} == set(parts)
        for tag, value in found.scalars.items():
            if not tag.startswith("monitor/"):
                assert value == pytest.approx(all_of_them.scalars[tag], rel=1e-9, nan_ok=True)
