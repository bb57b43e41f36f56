"""Test engines with many outputs: ranks against dense autodiff, memory, messages about time."""

import functools
import importlib
import logging
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from oracles import Case, dense_parts, mlp
from rankmon import Problem, Tolerance, hessian_ranks, hessian_spectra, outer_rank
from rankmon._util.expected_time import OutOfTimeError, Pace, compiled
from rankmon.engines.select import select_engine
from rankmon.problem.output_hessians import DenseHessians, FactoredHessians
from refusals import refused

RNG = np.random.default_rng(0)


def logistic(z, t):
    return jnp.sum(jax.nn.softplus(z) - t * z)


def one_hot(labels, k):
    return np.eye(k)[labels]


@functools.cache
def case(kind, k):
    """A small network with k outputs; "tokens" has positions, "linear" no activation."""
    hidden, apply = 3, mlp((4, 3, 1), jnp.tanh)[0]
    if kind == "linear":
        apply = mlp((4, 3, 1), None)[0]
    x = RNG.standard_normal((2, 3, 4) if kind == "tokens" else (5, 4))
    labels = RNG.integers(0, k, x.shape[:-1])
    weights = [(4, hidden), (hidden, k)]
    params = [{"w": RNG.standard_normal(shape) / np.sqrt(shape[0])} for shape in weights]
    targets, loss, textbook = {
        "one_hot": (one_hot(labels, k), "cross_entropy", oracles.soft_cross_entropy),
        "smoothed": (
            0.9 * one_hot(labels, k) + 0.1 / k,
            "cross_entropy",
            oracles.soft_cross_entropy,
        ),
        "logistic": (one_hot(labels, k), logistic, logistic),
    }.get(kind, (labels, "cross_entropy", oracles.cross_entropy))
    return Case(kind, apply, params, x, targets, loss, textbook)


@functools.cache
def wanted(kind, k):
    """The parts with the last layer held fixed."""
    it = case(kind, k)
    first, last = it.params
    return dense_parts(replace(it, apply=lambda p, x: it.apply([p, last], x), params=first))


def stated(kind, k):
    """The problem of the first layer alone, and its parameters."""
    it = case(kind, k)
    return Problem(it.apply, **it.statement, include=["0/*"]), it.params


def assert_eigenvalues(got, want):
    norm = np.linalg.norm(want["H_L"], 2)
    for part in ("H_L", "H_o", "H_f"):
        eigenvalues = np.linalg.eigvalsh(want[part])
        np.testing.assert_allclose(np.sort(got[part]), eigenvalues, rtol=0, atol=1e-13 * norm)


@pytest.mark.parametrize(
    ("kind", "k"),
    [
        ("labels", 50),
        ("labels", 400),
        ("tokens", 50),
        pytest.param("smoothed", 50, marks=pytest.mark.slow),
        pytest.param("logistic", 50, marks=pytest.mark.slow),
    ],
)
def test_spectra_and_ranks_of_one_layer_equal_autodiff(kind, k):
    problem, params = stated(kind, k)
    want = wanted(kind, k)
    assert_eigenvalues(hessian_spectra(problem, params), want)
    cut = 1e-10 * np.linalg.norm(want["H_L"], 2)
    ranks = hessian_ranks(problem, params, tolerance=Tolerance(absolute=cut))
    for part, rank in ranks.items():
        assert rank.rank == np.sum(np.abs(np.linalg.eigvalsh(want[part])) > cut), part
    outer = outer_rank(problem, params, tolerance=Tolerance(absolute=cut))
    assert (outer.low, outer.rank, outer.high) == (ranks["H_o"].rank,) * 3


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        ("linear", "deep_linear"),
        pytest.param("one_hot", "stack", marks=pytest.mark.slow),
        pytest.param("logistic", "stack", marks=pytest.mark.slow),
    ],
)
def test_spectra_of_all_layers_equal_autodiff(kind, engine):
    it = case(kind, 20)
    problem = Problem(it.apply, **it.statement)
    assert_eigenvalues(hessian_spectra(problem, it.params, engine=engine), dense_parts(it))
    rows = outer_rank(problem, it.params, tolerance=Tolerance(relative=1e-9))
    eigenvalues = np.linalg.eigvalsh(dense_parts(it)["H_o"])
    assert rows.rank == np.sum(eigenvalues > 1e-9 * eigenvalues[-1])
    assert rows.rank <= 5 * (20 - (it.loss == "cross_entropy"))


@pytest.mark.parametrize("kind", ["labels", "linear", "logistic"])
def test_what_the_host_makes_of_output_hessians_is_what_their_arrays_give(kind):
    it, k = case(kind, 20), 20
    problem = Problem(it.apply, **it.statement)
    flat = problem.flat(it.params)
    split = flat.split(flat.leaves(it.params))
    b = flat.output_hessians(*split)
    assert isinstance(b, DenseHessians if kind == "logistic" else FactoredHessians)
    with jax.enable_x64(True):
        z = it.apply(it.params, jnp.asarray(it.inputs))
        B = np.asarray(jax.vmap(jax.hessian(it.textbook))(z, it.targets))
    V, x, w = RNG.standard_normal((5, k, 2)), RNG.standard_normal((5, 3)), RNG.random(5)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-14)
    close(b.products(V), B @ V)
    close(b.products(V[1:3], slice(1, 3)), B[1:3] @ V[1:3])
    moment = np.einsum("n,nij,na,nb->iajb", w, B, x, x).reshape(3 * k, 3 * k)
    close(b.second_moment(w, x), moment)
    roots = b.roots(w)
    examples, columns = np.arange(5)[:, None], np.arange(roots.count)[None]
    C = roots.columns(examples, columns)
    close(np.einsum("nrk,nrl->nkl", C, C), w[:, None, None] * B)
    close(roots.products(V), C @ V)


# Memory


def test_output_hessians_that_do_not_fit_are_refused_in_a_sentence_or_not_needed():
    problem, params = stated("logistic", 400)
    limit = 8 * 2**20
    with refused(MemoryError, "400 x 400", "memory_limit", "8 MiB", "'cross_entropy'"):
        outer_rank(problem, params, memory_limit=limit)
    found = hessian_ranks(problem, params, engine="sketch", memory_limit=limit)
    want = hessian_ranks(problem, params, engine="dense", memory_limit=limit)
    assert {part: rank.rank for part, rank in found.items()} == {
        part: rank.rank for part, rank in want.items()
    }
    labels, params = stated("labels", 400)
    assert outer_rank(labels, params, memory_limit=limit).rank == 12


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["dense", "sketch"])
def test_resident_memory_grows_by_the_limit_at_the_most(engine, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    monkeypatch.setenv("XLA_FLAGS", "")
    measured = importlib.import_module("many_classes").measured
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        ranks, _, grown = pool.submit(measured, 1000, 32, engine, 300 * 2**20).result()
    assert ranks["H_o"].rank == 2048
    assert grown <= 300 * 2**20  # arrays of the output Hessians' size took 0.8 GiB


# Time


def test_a_long_loop_is_announced_once_by_its_first_round(caplog):
    pace = Pace()
    for _ in range(2):
        for done, _ in enumerate(pace.over("the rows", range(10_000))):
            time.sleep(0.01)
            if done == 2:
                break
    (line,) = caplog.messages
    assert "the rows" in line
    assert "rough estimate" in line
    assert list(pace.over("short", range(3))) == [0, 1, 2]
    assert len(caplog.messages) == 1


def test_a_loop_that_would_take_longer_than_it_may_ends():
    rounds = Pace(limit=1.0).over("the rows", range(10_000))
    with pytest.raises(OutOfTimeError, match="the rows"):
        for _ in rounds:
            time.sleep(0.01)


class Traced:
    """A traced program whose compilation costs nothing."""

    def __init__(self, jaxpr):
        self.jaxpr = jaxpr

    def lower(self):
        return self

    def compile(self, compiler_options=None):
        return "program"


def test_a_long_compilation_is_announced_before_it_begins(caplog):
    function = jnp.sin
    for _ in range(3):  # 100^3 equations, of which few are written out
        function = jax.jit(lambda x, f=function: functools.reduce(lambda y, _: f(y), range(100), x))
    assert compiled("a product", Traced(jax.make_jaxpr(function)(1.0))) == "program"
    (line,) = caplog.messages
    assert "a product" in line
    assert "rough estimate" in line
    compiled("a short one", jax.jit(jnp.sin).trace(1.0))
    assert len(caplog.messages) == 1


def test_assembly_counts_in_the_time_that_an_exact_engine_may_take():
    problem, params = stated("labels", 400)
    flat = problem.flat(params)
    seconds = 1e-5  # the spectra of 12 rows take far less, 24 products with 400 outputs more
    choice = select_engine(flat, name="auto", memory_limit=2**30, time_limit=seconds)
    assert choice.engine.name == "lanczos"
    assert "time_limit" in choice.warnings[0]
    assert (
        select_engine(flat, name="auto", memory_limit=2**30, time_limit=60).engine.name == "dense"
    )


def test_an_engine_that_estimates_the_outer_part_does_not_call_it_exact():
    problem, params = stated("logistic", 400)
    flat = problem.flat(params)
    choice = select_engine(flat, name="auto", memory_limit=8 * 2**20, time_limit=1e-5)
    assert choice.engine.name == "lanczos"
    assert "exact." not in choice.warnings[0]


@pytest.fixture(autouse=True)
def _logged(caplog):
    caplog.set_level(logging.WARNING, logger="rankmon")
