"""The curves of signed eigenvalues: tags, intervals, and what is logged where nothing is known."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from oracles import CASES, dense_parts
from rankmon import HessianProbe, Problem, RankMonitor, Tolerance, hessian_spectra
from rankmon.engines.base import Ranks
from rankmon.linalg.estimate import Estimate
from rankmon.linalg.numerical_rank import NumericalRank
from rankmon.linalg.signed_spectrum import SignedSpectrum
from rankmon.linalg.sketch import SketchedRank
from rankmon.probes.base import rank_scalars
from rankmon.probes.curvature import curvature_scalars
from shared_problems import problem_of
from small_probes import measured_by

FAMILIES = (
    "eigenvalue_max",
    "eigenvalue_min",
    "negative_0.01",
    "negative",
    "trace",
    "norm",
    "stable_rank",
    "effective_rank",
    "rank_0.1",
    "rank_0.01",
    "rank_0.001",
)
PARTS = ("H_L", "H_o", "H_f", "H_f_fixed")
KNOWN = SignedSpectrum.of_eigenvalues(np.array([3.0, -2.0, 0.02]), norm=3.0, cut=1e-9)


def test_known_numbers_have_one_tag_each():
    scalars = curvature_scalars("H_f", KNOWN)
    assert list(scalars) == [f"{family}/H_f" for family in FAMILIES]
    assert scalars["eigenvalue_max/H_f"] == 3
    assert scalars["eigenvalue_min/H_f"] == -2
    assert scalars["negative_0.01/H_f"] == scalars["negative/H_f"] == 1
    assert scalars["trace/H_f"] == pytest.approx(1.02)
    assert scalars["norm/H_f"] == pytest.approx(np.sqrt(13.0004))
    assert [scalars[f"rank_{share}/H_f"] for share in (0.1, 0.01, 0.001)] == [2, 2, 3]


def test_estimates_have_their_interval_and_unknown_numbers_no_tag():
    estimated = replace(
        KNOWN,
        largest=Estimate(3.0, 2.9, 3.1, 0.95),
        trace=Estimate(1.0, 1.0, 1.0, 0.95),  # it had no width this time
        smallest=Estimate(-2.0, -2.1, -1.9, 1.0),  # certain bounds
        effective_rank=Estimate.unknown(),
        negative=Estimate.unknown(),
        above={**KNOWN.above, 0.01: Estimate(2.0, 1.0, 4.0, 0.95)},
    )
    scalars = curvature_scalars("H_L", estimated)
    ends = {tag: value for tag, value in scalars.items() if tag.startswith("interval_")}
    assert ends == {
        "interval_low/eigenvalue_max/H_L": 2.9,
        "interval_high/eigenvalue_max/H_L": 3.1,
        "interval_low/eigenvalue_min/H_L": -2.1,
        "interval_high/eigenvalue_min/H_L": -1.9,
        "interval_low/trace/H_L": 1.0,
        "interval_high/trace/H_L": 1.0,
        "interval_low/rank_0.01/H_L": 1.0,
        "interval_high/rank_0.01/H_L": 4.0,
    }
    values = {tag for tag in scalars if tag not in ends}
    unknown = {"effective_rank", "negative"}
    assert values == {f"{family}/H_L" for family in FAMILIES if family not in unknown}


def test_a_rank_of_which_only_bounds_are_known_is_not_logged_as_a_rank():
    bounds = NumericalRank(None, 1e-9, 20_000, 1024, 19_968, np.nan)
    sketched = SketchedRank(1024, 1e-9, 20_000, 1024, 19_968, np.nan, 1024, complete=False)
    for rank in (bounds, sketched):
        scalars = rank_scalars("rank", "H_L", rank)
        assert np.isnan(scalars["rank/H_L"])
        assert (scalars["rank_low/H_L"], scalars["rank_high/H_L"]) == (1024, 19_968)
    complete = replace(sketched, complete=True, high=1024)
    assert rank_scalars("rank", "H_L", complete)["rank/H_L"] == 1024


# In the probe


@pytest.mark.parametrize("name", ["tanh-cosh", "conv-mse"])
def test_the_probe_logs_the_signs_and_counts_of_autodiff(name):
    case, problem = CASES[name], problem_of(name)
    flat = problem.flat(case.params)
    held = np.random.default_rng(3).standard_normal((flat.positions, flat.k))
    probe = HessianProbe().prepare(flat)
    state = {"reference": held, "started": np.ones(())}
    scalars, arrays = (
        getattr(measured_by(probe, problem, case.params, state)[0], kind)
        for kind in ("scalars", "arrays")
    )
    matrices = dense_parts(case, held)
    norm = np.linalg.norm(matrices["H_L"], 2)
    for part in PARTS:
        values = np.linalg.eigvalsh((matrices[part] + matrices[part].T) / 2)
        rounding = 1e-11 * norm
        assert scalars[f"eigenvalue_max/{part}"] == pytest.approx(values[-1], abs=rounding)
        assert scalars[f"eigenvalue_min/{part}"] == pytest.approx(values[0], abs=rounding)
        assert scalars[f"trace/{part}"] == pytest.approx(values.sum(), abs=10 * rounding)
        assert scalars[f"norm/{part}"] == pytest.approx(np.linalg.norm(values), abs=rounding)
        assert scalars[f"negative_0.01/{part}"] == np.sum(values < -0.01 * norm)
        cut = scalars[f"tolerance/{part}"]
        assert scalars[f"negative/{part}"] == np.sum(values < -cut)
        for share in (0.1, 0.01, 0.001):
            assert scalars[f"rank_{share}/{part}"] == np.sum(np.abs(values) > share * norm)
        # Of the logged magnitudes, those of the negative eigenvalues.
        logs, below = arrays[f"spectrum/{part}"], arrays[f"spectrum_negative/{part}"]
        assert set(below) <= set(logs)
        assert np.sum(10**below > 10 * rounding) == np.sum(values < -10 * rounding)
        signed = np.sort(np.concatenate([-(10**below), 10 ** logs[~np.isin(logs, below)]]))
        nonzero = signed[np.abs(signed) > 10 * rounding]
        want = values[np.abs(values) > 10 * rounding]
        np.testing.assert_allclose(nonzero, want, rtol=0, atol=rounding)
    assert not any(tag.startswith("interval_") for tag in scalars)


def test_one_of_these_curves_says_what_hessian_spectra_says():
    """README: the spectra with their signs are those of the same eigenvalues."""
    case, problem = CASES["tanh-cosh"], problem_of("tanh-cosh")
    spectra = hessian_spectra(problem, case.params)
    scalars = RankMonitor(problem, every=1, probes=["hessian"])(0, case.params).scalars
    for part in ("H_L", "H_o", "H_f"):
        assert scalars[f"eigenvalue_max/{part}"] == spectra[part].max()
        assert scalars[f"eigenvalue_min/{part}"] == spectra[part].min()


def test_weights_that_are_not_finite_leave_a_gap_in_each_curve():
    case, problem = CASES["tanh-cosh"], problem_of("tanh-cosh")
    broken = [{name: leaf * np.nan for name, leaf in layer.items()} for layer in case.params]
    probe = HessianProbe().prepare(problem.flat(case.params))
    first, _ = measured_by(probe, problem, broken)
    second, _ = measured_by(probe, problem, case.params)
    curves = {f"{family}/{part}" for family in FAMILIES for part in PARTS}
    assert curves <= first.scalars.keys()
    assert curves <= second.scalars.keys()
    assert all(np.isnan(first.scalars[tag]) for tag in curves)
    assert not any(np.isnan(second.scalars[tag]) for tag in curves)


class _Estimating:
    """An engine that knows bounds of the ranks, and a curvature with intervals."""

    name = "estimating"

    def compile(self, *, cotangents):
        pass

    def describe(self):
        return "estimating"

    def ranks(self, point, tolerance):
        bounds = NumericalRank(None, 1e-9, point.flat.p, 2, 9, float("nan"))
        summary = replace(KNOWN, largest=Estimate(3.0, 2.9, 3.1, 0.95), negative=Estimate.unknown())
        return Ranks(
            dict.fromkeys(point.parts, bounds), None, curvature=dict.fromkeys(point.parts, summary)
        )


def test_an_engine_that_estimates():
    case, problem = CASES["tanh-cosh"], problem_of("tanh-cosh")
    prepared = HessianProbe().prepare(problem.flat(case.params))
    probe = replace(prepared, choice=replace(prepared.choice, engine=_Estimating()))
    measurement, _ = measured_by(probe, problem, case.params)
    scalars = measurement.scalars
    for part in PARTS:
        assert np.isnan(scalars[f"rank/{part}"])
        assert (scalars[f"rank_low/{part}"], scalars[f"rank_high/{part}"]) == (2, 9)
        assert scalars[f"interval_low/eigenvalue_max/{part}"] == 2.9
        assert f"negative/{part}" not in scalars
    assert np.isnan(scalars["rank_self/H_f"])
    assert not measurement.arrays
    broken = [{name: leaf * np.nan for name, leaf in layer.items()} for layer in case.params]
    undefined = measured_by(probe, problem, broken)[0].scalars
    assert not {tag for tag in undefined if tag.split("/")[0] in FAMILIES}


def test_a_layer_named_like_a_part_has_a_stable_rank_of_its_own():
    problem = Problem(
        lambda p, x: x @ p["H_L"], loss="mse", inputs=np.eye(4), targets=np.ones((4, 2))
    )
    scalars = RankMonitor(problem, every=1)(0, {"H_L": jnp.ones((4, 2))}).scalars
    assert scalars["stable_rank/params/H_L"] == pytest.approx(1)
    assert scalars["stable_rank/H_L"] == pytest.approx(8)  # H_L is a multiple of the identity


def test_the_cut_of_negative_is_that_of_the_rank():
    case, problem = CASES["tanh-cosh"], problem_of("tanh-cosh")
    tolerance = Tolerance(relative=0.05)
    probe = HessianProbe(tolerance=tolerance).prepare(problem.flat(case.params))
    scalars = measured_by(probe, problem, case.params)[0].scalars
    values = hessian_spectra(problem, case.params)["H_L"]
    cut = 0.05 * np.abs(values).max()
    assert scalars["negative/H_L"] == np.sum(values < -cut) > 0
    assert scalars["rank/H_L"] == np.sum(np.abs(values) > cut)
