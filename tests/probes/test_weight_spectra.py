"""Test singular values as arrays, the Marchenko-Pastur edge, and products of kernels as weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tensorboard.backend.event_processing import event_accumulator

from rankmon import Problem, RankMonitor, WeightsProbe, read_jsonl, weight_ranks
from refusals import refused
from small_probes import measured_by

RNG = np.random.default_rng(11)
_SEED = RNG.bit_generator.state
NAN = np.full((4, 3), np.nan)


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    RNG.bit_generator.state = _SEED


def one_layer(shape):
    m, n = shape
    return Problem(
        lambda p, x: x @ p["W"].astype(x.dtype),
        loss="mse",
        inputs=np.ones((2, m), np.float32),
        targets=np.ones((2, n)),
    )


def measured(matrix, **options):
    problem, params = one_layer(matrix.shape), {"W": matrix}
    probe = WeightsProbe(**options).prepare(problem.flat(params))
    return measured_by(probe, problem, params)[0]


def of_rank(r, shape):
    return RNG.standard_normal((shape[0], r)) @ RNG.standard_normal((r, shape[1]))


CASES = {
    "square": lambda: RNG.standard_normal((6, 6)),
    "wide": lambda: RNG.standard_normal((4, 9)),
    "tall": lambda: RNG.standard_normal((9, 4)),
    "rank 1": lambda: of_rank(1, (8, 6)),
    "most of full rank": lambda: of_rank(5, (8, 6)),
    "one row": lambda: RNG.standard_normal((1, 5)),
    "one entry": lambda: np.array([[3.0]]),
    "zero rows": lambda: np.vstack([np.zeros((3, 4)), RNG.standard_normal((2, 4))]),
    "diagonal": lambda: np.diag([4.0, 2.0, 0.0, 0.0, 0.0]),
    "spike": lambda: RNG.standard_normal((40, 30)) + 20 * of_rank(1, (40, 30)) / 30,
    "zero": lambda: np.zeros((4, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_singular_values_and_the_edge(case):
    W = CASES[case]().astype(np.float32)
    found = measured(W, spectra=True)
    values = np.linalg.svd(W.astype(np.float64), compute_uv=False)
    logs = found.arrays["singular_values/W"]
    np.testing.assert_allclose(logs, np.log10(values[values > 0]), atol=1e-12)
    assert found.scalars["singular_values_zeros/W"] == np.sum(values == 0)
    edge, cut = found.scalars["mp_edge/W"], found.scalars["tolerance/W"]
    assert found.scalars["above_mp_edge/W"] == np.sum(values > max(edge, cut))
    assert found.scalars["norm/W"] == pytest.approx(np.sqrt(np.sum(W.astype(np.float64) ** 2)))
    if 2 * np.linalg.matrix_rank(W) < min(W.shape):
        assert edge <= cut
        assert found.scalars["above_mp_edge/W"] == found.scalars["rank_weights/W"]
    if case == "spike":
        assert found.scalars["above_mp_edge/W"] == 1


def test_spectra_add_to_what_is_measured_without_them():
    W = RNG.standard_normal((6, 6)).astype(np.float32)
    plain, more = measured(W), measured(W, spectra=True)
    assert plain.arrays == {}
    added = {"singular_values_zeros/W", "mp_edge/W", "above_mp_edge/W", "norm/W"}
    assert more.scalars.keys() - plain.scalars.keys() == added
    assert {tag: more.scalars[tag] for tag in plain.scalars} == dict(plain.scalars)


def test_weights_that_are_not_finite_have_nan_and_no_spectrum():
    finite = measured(np.ones((4, 3), np.float32), spectra=True)
    found = measured(NAN.astype(np.float32), spectra=True)
    assert found.scalars.keys() == finite.scalars.keys()
    assert all(np.isnan(value) for value in found.scalars.values())
    assert found.arrays == {}


def test_large_weights_have_a_norm_and_no_spectrum():
    found = measured(np.ones((9, 8), np.float32), spectra=True, largest=7)
    assert found.arrays == {}
    assert found.scalars["norm/W"] == pytest.approx(np.sqrt(72))
    assert found.scalars["rank_weights/W"] == 1
    assert "mp_edge/W" not in found.scalars


def test_spectra_come_back_from_files(tmp_path):
    W = RNG.standard_normal((6, 5)).astype(np.float32)
    probes = [WeightsProbe(spectra=True)]
    with RankMonitor(one_layer((6, 5)), logdir=tmp_path, every=1, probes=probes) as monitor:
        monitor(0, {"W": W})
        monitor(1, {"W": np.zeros((6, 5), np.float32)})
    values = np.linalg.svd(W.astype(np.float64), compute_uv=False)
    first, second = read_jsonl(tmp_path / "rankmon.jsonl")
    np.testing.assert_allclose(first.arrays["singular_values/W"], np.log10(values), atol=1e-12)
    assert second.arrays["singular_values/W"].size == 0
    assert second.scalars["singular_values_zeros/W"] == 5
    reader = event_accumulator.EventAccumulator(str(tmp_path))
    reader.Reload()
    assert "singular_values/W" in reader.Tags()["histograms"]
    assert "singular_values/W/values" in reader.Tags()["tensors"]


@pytest.mark.parametrize("spectra", [1, "yes", None])
def test_other_switches_are_refused(spectra):
    with refused(TypeError, "spectra"):
        WeightsProbe(spectra=spectra)


# Products


def adapted(scale=1.0):
    """A layer with an adapter, y = x (W + scale A B)."""

    def apply(p, x):
        return x @ p["d"]["kernel"] + scale * (x @ p["d"]["lora_a"]) @ p["d"]["lora_b"]

    return Problem(apply, loss="mse", inputs=np.ones((2, 9)), targets=np.ones((2, 7)))


def adapter(a, b):
    leaves = {"kernel": RNG.standard_normal((9, 7)), "lora_a": a, "lora_b": b}
    return {"d": {name: leaf.astype(np.float32) for name, leaf in leaves.items()}}


PRODUCTS = {"lora": ("lora_a", "lora_b")}


def measured_products(steps, problem=None, products=PRODUCTS, **options):
    problem, state, found = problem or adapted(), None, []
    options = {"track": ("start", "last"), "spectra": True, "products": products} | options
    for step, params in enumerate(steps):
        probe = WeightsProbe(**options).prepare(problem.flat(params))
        measurement, state = measured_by(probe, problem, params, state, step)
        found.append(measurement)
    return found


def test_a_product_is_measured_with_all_families():
    steps = [
        adapter(RNG.standard_normal((9, 2)), RNG.standard_normal((2, 7)) * size)
        for size in (0.0, 0.01, 1.0)
    ]
    found = measured_products(steps)
    families = [
        {tag.removesuffix(f"/d/{name}") for tag in found[0].scalars if tag.endswith(f"/d/{name}")}
        for name in ("lora", "kernel")
    ]
    assert families[0] == families[1]
    products = [
        step["d"]["lora_a"].astype(np.float64) @ step["d"]["lora_b"].astype(np.float64)
        for step in steps
    ]
    for at, product in enumerate(products):
        scalars = found[at].scalars
        assert scalars["rank_weights/d/lora"] == (0 if at == 0 else 2)
        values = np.linalg.svd(product, compute_uv=False)[:2]
        logs = found[at].arrays["singular_values/d/lora"]
        np.testing.assert_allclose(10**logs, values[values > 0], rtol=1e-9)
        assert scalars["singular_values_zeros/d/lora"] == 7 - logs.size
        assert scalars["norm/d/lora"] == pytest.approx(np.linalg.norm(product), rel=1e-12)
        if at:
            stable = np.sum(values**2) / values[0] ** 2
            assert scalars["stable_rank/d/lora"] == pytest.approx(stable, rel=1e-9)
            assert scalars["condition_number/d/lora"] == np.inf
        for since, before in (("start", 0), ("last", at - 1)):
            if before >= 0 and at > 0:
                change = product - products[before]
                got = scalars[f"norm_since_{since}/d/lora"]
                assert got == pytest.approx(np.linalg.norm(change), rel=1e-9)
                rank = 2 if before == 0 else 4  # a difference of two products of rank 2
                assert scalars[f"rank_since_{since}/d/lora"] == rank


def test_adapters_in_bfloat16_have_their_ranks():
    a, b = RNG.standard_normal((9, 2)), RNG.standard_normal((2, 7))
    steps = [adapter(a, 0 * b), adapter(a, b), adapter(a, b), adapter(1.5 * a, b)]
    for step in steps:
        step["d"] |= {name: step["d"][name].astype(jnp.bfloat16) for name in ("lora_a", "lora_b")}
    found = measured_products(steps)
    assert [one.scalars["rank_weights/d/lora"] for one in found] == [0, 2, 2, 2]
    assert [one.scalars["rank_since_start/d/lora"] for one in found] == [0, 2, 2, 2]
    assert [one.scalars["rank_since_last/d/lora"] for one in found[1:]] == [2, 0, 2]


def test_factors_that_moved_by_rounding_do_not_change_the_product():
    a, b = (RNG.standard_normal(s).astype(np.float32) for s in ((9, 2), (2, 7)))
    up = [np.nextafter(side, np.float32(np.inf)) for side in (a, b)]
    found = measured_products([adapter(a, b), adapter(*up)])
    assert found[1].scalars["rank_since_start/d/lora"] == 0
    assert found[1].scalars["norm_since_start/d/lora"] > 0


def test_a_scale_changes_no_rank():
    steps = [adapter(RNG.standard_normal((9, 2)), RNG.standard_normal((2, 7)))]
    one, other = (measured_products(steps, adapted(scale)) for scale in (1.0, 16.0))
    np.testing.assert_equal(dict(one[0].scalars), dict(other[0].scalars))


def test_an_adapter_that_is_not_finite_is_nan():
    good = adapter(RNG.standard_normal((9, 2)), RNG.standard_normal((2, 7)))
    bad = adapter(np.full((9, 2), np.inf), np.zeros((2, 7)))
    found = measured_products([good, bad])
    for tag, value in found[1].scalars.items():
        if tag.endswith("/d/lora"):
            assert np.isnan(value), tag
    assert found[0].scalars.keys() == found[1].scalars.keys()


def test_square_products_have_a_determinant():
    a, b = RNG.standard_normal((2, 4, 4))
    params = {"a": a, "b": b, "c": RNG.standard_normal((4, 2)), "d": RNG.standard_normal((2, 4))}
    problem = Problem(
        lambda p, x: x @ (p["a"] @ p["b"] + p["c"] @ p["d"]),
        loss="mse",
        inputs=np.ones((2, 4)),
        targets=np.ones((2, 4)),
    )
    products = {"ab": ("a", "b"), "cd": ("c", "d")}
    (found,) = measured_products([params], problem, products, track=())
    sign, log = np.linalg.slogdet(a @ b)
    assert found.scalars["det_sign/ab"] == sign
    assert found.scalars["log_abs_det/ab"] == pytest.approx(log, rel=1e-9)
    assert found.scalars["det_sign/cd"] == 0
    assert found.scalars["log_abs_det/cd"] == -np.inf
    expected = weight_ranks({"ab": a @ b})["ab"]
    assert found.scalars["rank_weights/ab"] == expected.rank == 4
    assert found.scalars["condition_number/ab"] == pytest.approx(
        expected.condition_number, rel=1e-6
    )


def test_large_products_of_small_inner_size_have_singular_values():
    steps = [adapter(RNG.standard_normal((9, 2)), RNG.standard_normal((2, 7)))]
    (found,) = measured_products(steps, largest=3)
    assert found.arrays.keys() == {f"singular_values/d/{n}" for n in ("lora", "lora_a", "lora_b")}
    assert found.scalars["stable_rank/d/lora"] > 0


class Adapted(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.LoRALinear(9, 8, lora_rank=2, rngs=rngs)
        self.second = nnx.LoRA(8, 3, 7, base_module=nnx.Linear(8, 7, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


def test_adapters_of_nnx_are_found():
    model = Adapted(nnx.Rngs(0))
    x, y = RNG.standard_normal((5, 9)), RNG.standard_normal((5, 7))
    problem = Problem.from_nnx(model, loss="mse", inputs=x.astype(np.float32), targets=y)
    with RankMonitor(problem, every=1, probes=["weights"]) as monitor:
        plain = monitor(0, model)
    probe = WeightsProbe(products="auto", track="start")
    with RankMonitor(problem, every=1, probes=[probe]) as monitor:
        first = monitor(0, model)
        for layer in (model.first.lora, model.second):
            layer.lora_b[...] = jnp.asarray(RNG.standard_normal(layer.lora_b.shape), jnp.float32)
        second = monitor(1, model)
    new = {
        tag.removeprefix("rank_weights/")
        for tag in first.scalars.keys() - plain.scalars.keys()
        if tag.startswith("rank_weights/")
    }
    assert new == {"first/lora", "second/lora"}
    for name, rank in (("first/lora", 2), ("second/lora", 3)):
        assert first.scalars[f"rank_weights/{name}"] == 0
        assert second.scalars[f"rank_weights/{name}"] == rank
        assert second.scalars[f"rank_since_start/{name}"] == rank
    product = np.asarray(model.second.lora_a[...] @ model.second.lora_b[...], np.float64)
    values = np.linalg.svd(product, compute_uv=False)
    assert second.scalars["effective_rank/second/lora"] == pytest.approx(
        np.exp(-sum(p * np.log(p) for p in (values / values.sum())[:3])), rel=1e-5
    )


def test_products_that_do_not_fit_are_refused_before_training():
    params = adapter(RNG.standard_normal((9, 2)), RNG.standard_normal((2, 7)))
    for products, keys in (
        ({"lora": ("lora_b", "lora_a")}, ["d/lora_b [2, 7]", "swap"]),
        ({"lora": ("down", "up")}, ["down", "d/lora_a"]),
    ):
        probe = WeightsProbe(products=products)
        with refused(ValueError, "products['lora']", *keys):
            RankMonitor(adapted(), every=1, probes=[probe], params=params)
    with refused(TypeError, "products"):
        WeightsProbe(products=[("lora_a", "lora_b")])


def test_a_card_names_the_products_and_the_cut_of_changes():
    params = adapter(RNG.standard_normal((9, 2)), RNG.standard_normal((2, 7)))
    probe = WeightsProbe(products=PRODUCTS, track="start").prepare(adapted().flat(params))
    facts = {fact.name: fact.text for fact in probe.describe().facts}
    assert "d/lora 9x7" in facts["weights"]
    assert "d/lora = d/lora_a @ d/lora_b" in facts["products of weights"]
    assert "rounding" in facts["cut of changes"]


def test_heads_of_attention_are_tracked_too():
    kernel = RNG.standard_normal((6, 2, 3)).astype(np.float32)
    params = {"query": {"kernel": kernel}}
    problem = Problem(
        lambda p, x: jnp.einsum("bi,ihd->bhd", x, p["query"]["kernel"]).reshape(len(x), -1),
        loss="mse",
        inputs=np.ones((2, 6), np.float32),
        targets=np.ones((2, 6)),
    )
    later = jax.tree.map(np.copy, params)
    later["query"]["kernel"][:, 1] += 1
    found = measured_products([params, later], problem, None, by_head=True)
    scalars = found[1].scalars
    assert scalars["rank_since_start/query/kernel/head_0"] == 0
    assert scalars["rank_since_start/query/kernel/head_1"] == 1
    assert scalars["norm_since_start/query/kernel"] == pytest.approx(np.sqrt(18), rel=1e-6)
