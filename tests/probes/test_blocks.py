"""Test the blocks of the Hessian by layer against dense automatic differentiation."""

import functools
import math
from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.tree_util import tree_flatten_with_path

import oracles
from oracles import CASES, Case, data, mlp, mse
from rankmon import HessianProbe, Problem, RankMonitor, RankmonWarning, theory
from rankmon.engines.base import Ranks
from rankmon.engines.select import exact_engine
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT
from rankmon.network.layers import layers_of
from rankmon.probes.blocks import BlockPlan
from rankmon.problem.point import Point
from refusals import refused
from shared_problems import flat_of, problem_of
from small_probes import measured_by

FAMILIES = ("rank_block", "eigenvalue_max_block", "eigenvalue_min_block", "trace_block")


def measured(problem, params, **options):
    probe = HessianProbe(blocks=True, **options).prepare(problem.flat(params))
    return measured_by(probe, problem, params)[0]


def dense_parts(case):
    """The symmetric matrices of a case, by plain autodiff."""
    found = oracles.dense_parts(case)
    return {part: (found[part] + found[part].T) / 2 for part in ("H_L", "H_o", "H_f")}


def rows_by_layer(params, kept=lambda path: True):
    """The rows of each layer of a case, by the name of its kernel: leaves of one parent."""
    layers, start = {}, 0
    for path, leaf in tree_flatten_with_path(params)[0]:
        name = "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
        if not kept(name):
            continue
        layers.setdefault(name.rpartition("/")[0], []).append((name, start, leaf))
        start += leaf.size
    found = {}
    for leaves in layers.values():
        kernels = [name for name, _, leaf in leaves if leaf.ndim > 1]
        groups = [leaves] if len(kernels) == 1 else [[leaf] for leaf in leaves]
        for group in groups:
            name = kernels[0] if len(kernels) == 1 else group[0][0]
            found[name] = np.concatenate([at + np.arange(leaf.size) for _, at, leaf in group])
    return found


def blocks_of(matrices, layers):
    """The tags that the probe is expected to log, by dense linear algebra."""
    p = len(matrices["H_L"])
    norms = {part: np.linalg.norm(H, 2) for part, H in matrices.items()}
    cuts = {part: p * np.finfo(float).eps * max(norms["H_L"], norm) for part, norm in norms.items()}
    scalars, inside = {}, 0.0
    for name, rows in layers.items():
        for part in ("H_L", "H_o"):
            block = matrices[part][np.ix_(rows, rows)]
            values = np.linalg.eigvalsh(block)
            scalars |= {
                f"rank_block/{part}/{name}": np.sum(np.abs(values) > cuts[part]),
                f"eigenvalue_max_block/{part}/{name}": values[-1],
                f"eigenvalue_min_block/{part}/{name}": values[0],
                f"trace_block/{part}/{name}": np.trace(block),
            }
        columns = np.linalg.svd(matrices["H_f"][:, rows], compute_uv=False)
        scalars[f"rank_columns/H_f/{name}"] = np.sum(columns > cuts["H_f"])
        inside += np.sum(matrices["H_L"][np.ix_(rows, rows)] ** 2)
    scalars["off_diagonal_share/H_L"] = 1 - inside / np.sum(matrices["H_L"] ** 2)
    return scalars


def agrees(scalars, want, norm):
    logged = {
        tag: value
        for tag, value in scalars.items()
        if tag.startswith((*FAMILIES, "rank_columns/", "off_diagonal_share"))
    }
    assert logged.keys() == want.keys()
    for tag, value in want.items():
        if tag.startswith("rank"):
            assert logged[tag] == value, tag
            low, high = (tag.replace("rank_", f"rank_{end}/", 1) for end in ("low", "high"))
            assert scalars[low] <= value <= scalars[high], tag
        else:
            assert logged[tag] == pytest.approx(value, rel=1e-10, abs=1e-11 * max(norm, 1)), tag


@pytest.mark.parametrize("name", CASES)
def test_blocks_are_those_of_autodiff(name):
    case = CASES[name]
    matrices = dense_parts(case)
    want = blocks_of(matrices, rows_by_layer(case.params))
    scalars = measured(problem_of(name), case.params).scalars
    agrees(scalars, want, np.linalg.norm(matrices["H_L"], 2))


@pytest.mark.parametrize("engine", ["stack", "dense"])
def test_all_engines_agree_on_a_biased_linear_network(engine):
    name = "linear_bias-mse"
    want = measured(problem_of(name), CASES[name].params).scalars
    got = measured(problem_of(name), CASES[name].params, engine=engine).scalars
    assert got.keys() == want.keys()
    for tag, value in want.items():
        if "block/" in tag or "columns" in tag or "off_diagonal" in tag:
            assert got[tag] == pytest.approx(value, rel=1e-9, abs=1e-11), tag


def wide():
    """Few examples, more inputs than they span, and a hidden layer with most of the parameters."""
    apply, params = mlp((12, 6, 2), jax.nn.relu, bias=True)
    x, y = data(5, 12, 2)
    return Case("wide", apply, params, x, y, "mse", mse)


@pytest.mark.parametrize("engine", ["auto", "dense"])
def test_blocks_in_coordinates_are_those_of_the_parameters(engine):
    case = wide()
    problem = Problem(case.apply, **case.statement)
    matrices = dense_parts(case)
    want = blocks_of(matrices, rows_by_layer(case.params))
    scalars = measured(problem, case.params, engine=engine).scalars
    assert scalars["spectrum_zeros/H_L"] > 30  # directions that the inputs do not span
    agrees(scalars, want, np.linalg.norm(matrices["H_L"], 2))


def test_a_layer_may_have_rows_that_are_apart():
    """In the tree "inner" lies between the bias and the kernel of the last layer."""

    def apply(params, x):
        return jax.nn.softplus(x @ params["inner"]["w"]) ** 2 @ params["w"] + params["b"]

    rng = np.random.default_rng(2)
    params = {
        "b": rng.standard_normal(2),
        "inner": {"w": rng.standard_normal((3, 4))},
        "w": rng.standard_normal((4, 2)),
    }
    x, y = data(8, 3, 2)
    case = Case("apart", lambda p, x: apply(p, x) + p["w"].sum(), params, x, y, "mse", mse)
    matrices, layers = dense_parts(case), rows_by_layer(params)
    assert list(np.diff(layers["w"])) == [1, 13, *[1] * 7]
    scalars = measured(Problem(case.apply, **case.statement), params).scalars
    agrees(scalars, blocks_of(matrices, layers), np.linalg.norm(matrices["H_L"], 2))


def test_one_layer_is_the_whole_hessian():
    apply, params = mlp((4, 3), bias=True)
    x, y = data(9, 4, 3)
    scalars = measured(Problem(apply, loss="cosh", inputs=x, targets=y), params).scalars
    for part in ("H_L", "H_o"):
        assert scalars[f"rank_block/{part}/0/w"] == scalars[f"rank/{part}"] == 15
        for family in ("eigenvalue_max", "eigenvalue_min", "trace"):
            assert scalars[f"{family}_block/{part}/0/w"] == scalars[f"{family}/{part}"]
    assert scalars["rank_columns/H_f/0/w"] == scalars["rank_columns_theory/H_f/0/w"] == 0
    assert scalars["off_diagonal_share/H_L"] == 0


@pytest.mark.parametrize("name", ["tanh_bias-mse", "linear-mse", "conv-mse"])
def test_layers_held_fixed_have_no_blocks(name):
    case = CASES[name]
    names = list(rows_by_layer(case.params))
    held = names[0].rpartition("/")[0]
    matrices, layers = dense_parts(case), rows_by_layer(case.params)
    moving = np.concatenate([rows for layer, rows in layers.items() if layer != names[0]])
    moving.sort()
    matrices = {part: H[np.ix_(moving, moving)] for part, H in matrices.items()}
    layers = rows_by_layer(case.params, lambda path: not path.startswith(f"{held}/"))
    assert layers.keys() == {*names[1:]}
    scalars = measured(problem_of(name), case.params, exclude=[f"{held}/*"]).scalars
    agrees(scalars, blocks_of(matrices, layers), np.linalg.norm(matrices["H_L"], 2))
    assert not [tag for tag in scalars if tag.startswith("rank_columns_theory")]


@pytest.mark.parametrize("bias", [False, True], ids=["without biases", "with biases"])
def test_columns_of_a_zero_residual_have_rank_zero_as_predicted(bias):
    apply, params = mlp((5, 4, 3, 3), bias=bias)
    x = data(20, 5, 3)[0]
    with jax.enable_x64(True):
        y = np.asarray(apply(params, x))
    problem = Problem(apply, loss="mse", inputs=x, targets=y)
    scalars = measured(problem, params).scalars
    for layer in ("0/w", "1/w", "2/w"):
        assert scalars[f"rank_columns/H_f/{layer}"] == 0
        assert scalars[f"rank_columns_theory/H_f/{layer}"] == 0
        assert scalars[f"rank_block/H_L/{layer}"] == scalars[f"rank_block/H_o/{layer}"] > 0


@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "cosh"])
@pytest.mark.parametrize("bias", [False, True], ids=["without biases", "with biases"])
@pytest.mark.parametrize("dims", [(6, 5, 4, 3), (5, 7, 2, 6, 4), (3, 8, 5)], ids=str)
def test_columns_have_the_ranks_of_theorem_5(dims, bias, loss):
    apply, params = mlp(dims, bias=bias)
    x, y = data(40, dims[0], dims[-1])
    x -= x.mean(axis=0)
    targets = np.argmax(y, axis=1) if loss == "cross_entropy" else y
    scalars = measured(Problem(apply, loss=loss, inputs=x, targets=targets), params).scalars
    want = theory.rank_functional_columns(dims, bias=bias, loss=loss)
    for layer, rank in enumerate(want):
        assert scalars[f"rank_columns_theory/H_f/{layer}/w"] == rank
        assert scalars[f"rank_columns/H_f/{layer}/w"] == rank, layer


def test_only_the_parts_asked_for_have_blocks():
    case = CASES["tanh-mse"]
    scalars = measured(problem_of("tanh-mse"), case.params, parts=("H_o",)).scalars
    blocks = {tag for tag in scalars if tag.startswith((*FAMILIES, "rank_columns", "off_diag"))}
    assert {tag.split("/")[1] for tag in blocks} == {"H_o"}
    without = HessianProbe().prepare(problem_of("tanh-mse").flat(case.params))
    scalars = measured_by(without, problem_of("tanh-mse"), case.params)[0].scalars
    assert not [tag for tag in scalars if "block" in tag or "columns" in tag or "diagonal" in tag]


@pytest.mark.parametrize("name", ["linear-mse", "tanh-mse"])
def test_parameters_that_are_not_finite_have_the_same_tags_as_others(name):
    case, problem = CASES[name], problem_of(name)
    want = measured(problem, case.params).scalars
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.inf), case.params)
    scalars = measured(problem, broken).scalars
    blocks = {tag for tag in want if "block/" in tag or "columns/" in tag or "diagonal" in tag}
    assert len(blocks) > 20
    for tag in blocks:
        assert math.isnan(scalars[tag]), tag


def test_layers_named_like_parts_overwrite_nothing():
    x, y = data(8, 4, 2)
    problem = Problem(lambda p, x: x @ p["H_L"], loss="mse", inputs=x, targets=y)
    scalars = measured(problem, {"H_L": np.ones((4, 2))}).scalars
    assert scalars["rank_block/H_L/params/H_L"] == scalars["rank/H_L"] == 8


@pytest.mark.parametrize("engine", ["deep_linear", "dense"])
def test_squares_of_huge_entries_do_not_overflow(engine):
    problem = problem_of("linear-mse")
    large = jax.tree.map(lambda leaf: leaf * 1e45, CASES["linear-mse"].params)
    share = measured(problem, large, engine=engine).scalars["off_diagonal_share/H_L"]
    assert 0.1 < share < 1


def test_a_zero_hessian_has_no_share():
    x, y = data(6, 3, 2)
    params = {"a": np.zeros((3, 4)), "b": np.zeros((4, 2))}
    problem = Problem(lambda p, x: (x @ p["a"]) ** 3 @ p["b"], loss="mse", inputs=x, targets=y)
    scalars = measured(problem, params).scalars
    assert math.isnan(scalars["off_diagonal_share/H_L"])
    assert scalars["rank_block/H_L/a"] == scalars["rank_columns/H_f/b"] == 0


def test_the_card_names_the_layers_and_an_engine_without_matrices_says_so():
    case, problem = CASES["tanh_bias-mse"], problem_of("tanh_bias-mse")
    probe = HessianProbe(blocks=True).prepare(problem.flat(case.params))
    (fact,) = [fact for fact in probe.describe().facts if fact.name == "blocks by layer"]
    assert "0/w (" in fact.text
    case, problem = estimated_case("relu"), estimated_problem("relu")
    with pytest.warns(RankmonWarning, match="estimates with 95 % intervals"):
        monitor = RankMonitor(problem, every=1, probes=[HessianProbe(blocks=True, engine="sketch")])
        scalars = monitor(0, case.params).scalars
    assert not [tag for tag in scalars if "rank_block" in tag or "columns/" in tag]
    assert not [tag for tag in scalars if "off_diagonal" in tag]  # no engine estimates ||H_L||_F
    assert scalars["interval_low/trace_block/H_L/0/w"] < scalars["trace_block/H_L/0/w"]


def test_blocks_that_would_exceed_the_time_limit_are_left_out():
    flat = flat_of("tanh-mse")
    engine = exact_engine(flat, name="dense", memory_limit=DEFAULT_MEMORY_LIMIT)
    limit = 1.5 * engine.seconds(time_limit=1e-9)
    plan = BlockPlan.of(flat, engine, time_limit=limit)
    assert not plan.layers
    assert "time_limit" in plan.reason
    assert "left out" in plan.fact.text
    assert "time_limit=" in plan.warnings[0]
    assert BlockPlan.of(flat, engine, time_limit=math.inf).layers


def test_blocks_is_a_flag():
    with refused(TypeError, "blocks", "True or False"):
        HessianProbe(blocks="all")


@functools.cache
def estimated_case(activation, seed=0):
    """A network with layers of 130, 110 and 55 parameters, more than the bases have rows here."""
    apply, params = mlp((12, 10, 10, 5), getattr(jax.nn, activation), bias=True)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape) / 3, params)
    rng = np.random.default_rng(0)  # the same problem, whose programs are compiled once
    x, labels = rng.standard_normal((30, 12)), rng.integers(0, 5, 30)
    return Case(activation, apply, params, x, labels, "cross_entropy", oracles.cross_entropy)


@functools.cache
def estimated_problem(activation):
    case = estimated_case(activation)
    return Problem(case.apply, **case.statement)


def estimated(problem, params, *, rows=48, **options):
    """The measurement of a probe whose bases have so many rows, and the probe."""
    probe = HessianProbe(**{"blocks": True, "engine": "lanczos"} | options)
    prepared = probe.prepare(problem.flat(params))
    plan = replace(prepared.blocks, estimates=replace(prepared.blocks.estimates, rows=rows))
    prepared = replace(prepared, blocks=plan)
    return measured_by(prepared, problem, params)[0], prepared


def missed(scalars, want, norm, *, extremes):
    """How many of the intervals miss the numbers of dense autodiff; each number is close to its."""
    misses = []
    for tag, value in want.items():
        if not tag.startswith(("eigenvalue", "trace", "off_diagonal")):
            assert tag not in scalars
            continue
        low, high = (scalars[f"interval_{end}/{tag}"] for end in ("low", "high"))
        assert low <= scalars[tag] <= high
        slack = 1e-9 * norm
        misses.append(not low - slack <= value <= high + slack)
        if tag.startswith("eigenvalue"):
            assert scalars[tag] == pytest.approx(value, abs=extremes * norm), tag
    return sum(misses), len(misses)


@pytest.mark.parametrize("name", ["tanh_bias-mse", "relu-mse", "conv-mse", "linear-weights"])
def test_estimates_of_small_layers_are_those_of_autodiff(name):
    case = CASES[name]
    matrices = dense_parts(case)
    want = blocks_of(matrices, rows_by_layer(case.params))
    found, _ = estimated(problem_of(name), case.params, rows=256)
    norm = np.linalg.norm(matrices["H_L"], 2)
    misses, count = missed(found.scalars, want, norm, extremes=1e-5)
    assert (misses, count % 6) == (0, 1)  # three numbers of two parts for each layer, and the share
    for tag, value in want.items():
        if tag.startswith("trace"):
            assert found.scalars[tag] == pytest.approx(value, abs=1e-4 * norm)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_intervals_of_estimates_hold(activation):
    missing = total = 0
    for seed in range(3):
        case, problem = estimated_case(activation, seed), estimated_problem(activation)
        matrices = dense_parts(case)
        want = blocks_of(matrices, rows_by_layer(case.params))
        found, _ = estimated(problem, case.params)
        norm = np.linalg.norm(matrices["H_L"], 2)
        misses, count = missed(found.scalars, want, norm, extremes=1e-4)
        missing, total = missing + misses, total + count
    assert total == 3 * 19
    assert missing <= 2


def test_estimates_of_a_layer_are_equal_in_both_parts_if_its_block_of_the_functional_part_is_zero():
    found, _ = estimated(estimated_problem("relu"), estimated_case("relu").params)
    for family in FAMILIES[1:]:
        assert found.scalars[f"{family}/H_L/1/w"] == found.scalars[f"{family}/H_o/1/w"]
    assert found.scalars["eigenvalue_min_block/H_o/0/w"] == 0  # 130 parameters, 30 * 4 rows


def test_estimates_at_parameters_that_are_not_finite_have_the_same_tags():
    case, problem = estimated_case("relu"), estimated_problem("relu")
    found, probe = estimated(problem, case.params)
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), case.params)
    scalars = measured_by(probe, problem, broken)[0].scalars
    blocks = {tag for tag in found.scalars if "_block/" in tag or "diagonal" in tag}
    assert len(blocks) == 3 * 19
    assert {tag for tag in scalars if "_block/" in tag or "diagonal" in tag} == blocks
    assert all(math.isnan(scalars[tag]) for tag in blocks)


def test_the_card_says_what_is_estimated_and_what_there_is_no_time_for():
    case, problem = estimated_case("relu"), estimated_problem("relu")
    _, probe = estimated(problem, case.params)
    for words in ("0/w (130 parameters)", "95 % intervals", "ranks of H_f's columns", "'lanczos'"):
        assert words in probe.blocks.fact.text
    flat = problem.flat(case.params)
    estimates = replace(probe.blocks.estimates, seconds=1.0)
    assert [x.name for x in estimates.within(20.0).layers] == ["2/w", "1/w"]
    plan = replace(probe.blocks, estimates=estimates.within(20.0), left_out=layers_of(flat)[:1])
    assert "for time the blocks of 0/w" in plan.fact.text
    limits = {"memory_limit": DEFAULT_MEMORY_LIMIT, "time_limit": 1e-6}
    none = BlockPlan.estimated(flat, probe.choice.engine, ("H_L",), **limits)
    assert "time_limit = 1e-06" in none.fact.text
    assert "left them out" in none.warnings[0]
    late = probe.blocks.scalars_at(Point(flat, 0, flat.leaves(case.params)), Ranks({}, None), 0.0)
    assert late[0] == {}
    assert "left no time" in late[1][-1]
