"""The recognition of residual, tied and convolutional linear networks, and of their impostors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rankmon
from rankmon.network.recognized_family import recognized_family
from rankmon.theory import (
    Convolutional,
    MatrixPower,
    ResidualBlocks,
    ResidualChain,
    TiedAutoencoder,
    TiedChain,
)

N, D, M, K = 9, 5, 3, 2
lax = jax.lax


def gaussian(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def weights(*shapes):
    """Leaves named in reverse, so that the order of names is not that of the data flow."""
    names = "zyxwvuts"
    return {names[i]: gaussian(*shape, seed=i) for i, shape in enumerate(shapes)}


def family_of(apply, params, x):
    outputs = jax.eval_shape(apply, params, x)
    problem = rankmon.Problem(apply, loss="mse", inputs=x, targets=np.zeros(outputs.shape))
    found = recognized_family(problem.flat(params))
    return None if found is None else found.family


class LinenChain(nn.Module):
    dims: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for m in self.dims:
            x = x + nn.Dense(m, use_bias=False)(x)
        return x


class LinenBlocks(nn.Module):
    inner: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for m in self.inner:
            h = nn.Dense(m, use_bias=False)(x)
            x = x + 0.5 * nn.Dense(x.shape[-1], use_bias=False)(h)
        return x


class LinenTied(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(M, use_bias=False)(x)
        recurrent = nn.Dense(M, use_bias=False)
        for _ in range(3):
            x = recurrent(x)
        return nn.Dense(K, use_bias=False)(x)


class LinenConvolutions(nn.Module):
    channels: tuple[int, ...]
    padding: str

    @nn.compact
    def __call__(self, x):
        for c in self.channels:
            x = nn.Conv(c, (3,), padding=self.padding, use_bias=False)(x)
        return x.reshape(len(x), -1)


class NnxBlocks(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(D, M, use_bias=False, rngs=rngs)
        self.again = nnx.Linear(M, D, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return x + self.again(self.first(x))


class NnxConvolutions(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(2, 3, (3,), padding="CIRCULAR", use_bias=False, rngs=rngs)
        self.again = nnx.Conv(3, 2, (3,), padding="CIRCULAR", use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.again(self.first(x)).reshape(len(x), -1)


class NnxTied(nnx.Module):
    def __init__(self, rngs):
        self.encode = nnx.Linear(D, M, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.encode(x) @ self.encode.kernel[...].T


def linen(module, x):
    return module.apply, module.init(jax.random.key(0), x), x


def from_nnx(network, x):
    graph, state = nnx.split(network(nnx.Rngs(0)))
    return lambda state, x: nnx.merge(graph, state)(x), state, x


def convolved(spec, *, pad=None, **options):
    """Apply convolutions in a layout, each after `pad`, and flatten."""

    def apply(params, h):
        for name in sorted(params, reverse=True):
            h = h if pad is None else pad(h)
            h = lax.conv_general_dilated(
                h, params[name], (1,), "VALID", dimension_numbers=spec, **options
            )
        return h.reshape(len(h), -1)

    return apply


def wrapped(h):
    return jnp.concatenate([h, h[:, :2]], axis=1)


def power(p, x):
    for _ in range(3):
        x = x @ p["z"]
    return x


X = gaussian(N, D)
LINE = gaussian(N, 7, 2)
SQUARES = weights((D, D), (D, D))
BLOCKS = weights((M, D), (D, M), (2, D), (D, 2))
TIED = weights((M, D), (M, M), (K, M))
KERNELS = weights((3, 2, 3), (2, 3, 2))
VALID = Convolutional((2, 3, 2), (3, 2), 7)

RECOGNIZED = {
    "chain-linen": (*linen(LinenChain((D, D, D)), X), ResidualChain((D, D, D, D))),
    "chain-stored-out-in": (
        lambda p, x: (x + x @ p["z"].T) @ (jnp.eye(D) + p["y"]),
        SQUARES,
        X,
        ResidualChain((D, D, D)),
    ),
    "chain-partly-plain": (
        lambda p, x: (x - 2 * (x @ p["z"])) @ p["y"],
        weights((D, D), (D, K)),
        X,
        ResidualChain((D, D, K)),
    ),
    "chain-partial-identities": (
        lambda p, x: _narrow(p["y"], _widen(p["z"], x)),
        weights((D, D + 2), (D + 2, M)),
        X,
        ResidualChain((D, D + 2, M)),
    ),
    "chain-by-vmap": (
        lambda p, x: jax.vmap(lambda one: p["z"] @ one + one)(x),
        weights((D, D)),
        X,
        ResidualChain((D, D)),
    ),
    "blocks-linen": (*linen(LinenBlocks((M, 2, 4)), X), ResidualBlocks(D, (M, 2, 4))),
    "blocks-nnx": (*from_nnx(NnxBlocks, X), ResidualBlocks(D, (M,))),
    "blocks-einsum": (
        lambda p, x: _block(p["x"], p["w"], _block(p["z"], p["y"], x)),
        BLOCKS,
        X,
        ResidualBlocks(D, (M, 2)),
    ),
    "blocks-product-first": (
        lambda p, x: x + x @ (p["y"] @ p["z"]).T,
        {name: BLOCKS[name] for name in "zy"},
        X,
        ResidualBlocks(D, (M,)),
    ),
    "blocks-jit-and-remat": (
        lambda p, x: jax.jit(jax.checkpoint(lambda x: x / 2 + x @ p["z"].T @ p["y"].T))(x),
        {name: BLOCKS[name] for name in "zy"},
        X,
        ResidualBlocks(D, (M,)),
    ),
    "tied-linen": (*linen(LinenTied(), X), TiedChain(D, M, K, 3)),
    "tied-loop": (
        lambda p, x: lax.fori_loop(0, 4, lambda _, h: h @ p["y"], x @ p["z"].T) @ p["x"].T,
        TIED,
        X,
        TiedChain(D, M, K, 4),
    ),
    "tied-residual": (
        lambda p, x: _twice(lambda h: h + h @ p["y"], x @ p["z"].T) @ p["x"].T,
        TIED,
        X,
        TiedChain(D, M, K, 2),
    ),
    "power": (power, weights((D, D)), X, MatrixPower(D, 3)),
    "power-of-matrix": (
        lambda p, x: x @ jnp.linalg.matrix_power(p["z"].T, 4),
        weights((D, D)),
        X,
        MatrixPower(D, 4),
    ),
    "autoencoder": (
        lambda p, x: (x @ p["z"].T) @ p["z"],
        weights((M, D)),
        X,
        TiedAutoencoder(D, M),
    ),
    "autoencoder-gram": (
        lambda p, x: x @ (p["z"] @ p["z"].T),
        weights((D, M)),
        X,
        TiedAutoencoder(D, M),
    ),
    "autoencoder-nnx": (*from_nnx(NnxTied, X), TiedAutoencoder(D, M)),
    "valid-nwc": (convolved(("NWC", "WIO", "NWC")), KERNELS, LINE, VALID),
    "valid-ncw": (
        convolved(("NCW", "OIW", "NCW")),
        {name: np.transpose(w, (2, 1, 0)) for name, w in KERNELS.items()},
        np.swapaxes(LINE, 1, 2),
        VALID,
    ),
    "valid-mixed": (convolved(("NWC", "WIO", "NCW")), weights((3, 2, 3)), LINE, None),
    "valid-linen": (
        *linen(LinenConvolutions((3, 2), "VALID"), LINE),
        Convolutional((2, 3, 2), (3, 3), 7),
    ),
    "circular-linen": (
        *linen(LinenConvolutions((3, 2), "CIRCULAR"), LINE),
        Convolutional((2, 3, 2), (3, 3), 7, padding="circular"),
    ),
    "circular-nnx": (
        *from_nnx(NnxConvolutions, LINE),
        Convolutional((2, 3, 2), (3, 3), 7, padding="circular"),
    ),
    "circular-by-hand": (
        convolved(("NWC", "WIO", "NWC"), pad=wrapped),
        weights((3, 2, 3), (3, 3, 1)),
        LINE,
        Convolutional((2, 3, 1), (3, 3), 7, padding="circular"),
    ),
    "one-channel": (
        lambda p, x: _one_channel(p, x),
        weights((3,), (2,)),
        X,
        Convolutional((1, 1, 1), (3, 2), D),
    ),
}
RECOGNIZED["valid-mixed"] = (*RECOGNIZED["valid-mixed"][:3], Convolutional((2, 3), (3,), 7))


def _widen(W, x):
    return jnp.pad(x, ((0, 0), (0, W.shape[1] - x.shape[1]))) + x @ W


def _narrow(W, x):
    return x[:, : W.shape[1]] + x @ W


def _block(A, B, x):
    return x + jnp.einsum("nd,md,em->ne", x, A, B)


def _twice(step, x):
    return step(step(x))


def _one_channel(p, x):
    h = x[..., None]
    for name in "zy":
        kernel = p[name].reshape(-1, 1, 1)
        h = lax.conv_general_dilated(
            h, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
    return h[..., 0]


@pytest.mark.parametrize("name", RECOGNIZED)
def test_each_spelling_of_a_family_is_recognized(name):
    *network, family = RECOGNIZED[name]
    assert family_of(*network) == family


@jax.custom_vjp
def reversed_gradient(x):
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-g,))


@jax.custom_jvp
def same(x):
    return x


same.defjvp(lambda x, t: (x[0], t[0]))


def conv(h, w, padding="VALID", spec=("NWC", "WIO", "NWC"), **options):
    stride = options.pop("stride", 1)
    return lax.conv_general_dilated(h, w, (stride,), padding, dimension_numbers=spec, **options)


def flat(h):
    return h.reshape(len(h), -1)


def _mirrored(h):
    return jnp.concatenate([h, h[:, :2][:, ::-1]], axis=1)


def _shifted(h):
    return jnp.concatenate([h, h[:, 1:3]], axis=1)


IMPOSTORS = {
    "tied-weight-used-again": lambda p, x: x @ p["z"].T @ p["y"] @ p["y"] @ p["z"],
    "tied-transposed-once": lambda p, x: x @ p["z"].T @ p["y"] @ p["y"].T @ p["x"].T,
    "tied-interrupted": lambda p, x: (x @ p["z"].T @ p["y"] + x @ p["z"].T) @ p["y"] @ p["x"].T,
    "power-transposed-once": lambda p, x: x @ p["z"].T @ p["z"].T @ p["z"],
    "power-plus-lower-power": lambda p, x: power(p, x) + x @ p["z"] @ p["z"],
    "autoencoder-twice": lambda p, x: x @ p["z"].T @ p["z"] @ p["z"].T @ p["z"],
    "stopped-skip": lambda p, x: lax.stop_gradient(x @ p["z"]) + x @ p["z"] @ p["y"],
    "stopped-weight": lambda p, x: x + x @ lax.stop_gradient(p["z"]),
    "stopped-branch": lambda p, x: x + x @ p["z"].T @ lax.stop_gradient(p["y"].T),
    "mask": lambda p, x: x + (x @ p["z"].T) @ (p["y"].T * (np.arange(D) > 1)),
    "mask-of-features": lambda p, x: (x + x @ p["z"]) * (np.arange(D) > 1),
    "relu-in-one-block": lambda p, x: _block(
        p["x"], p["w"], x + jax.nn.relu(x @ p["z"].T) @ p["y"].T
    ),
    "shared-by-blocks": lambda p, x: _block(p["x"], p["y"], _block(p["z"], p["y"], x)),
    "skip-over-two-blocks": lambda p, x: x + _block(p["x"], p["w"], _block(p["z"], p["y"], x)),
    "skip-past-the-last-block": lambda p, x: (
        _block(p["x"], p["w"], _block(p["z"], p["y"], x)) + 2 * x
    ),
    "three-weights-in-a-block": lambda p, x: x + x @ p["z"].T @ p["y"] @ p["x"].T,
    "custom-vjp": lambda p, x: x + reversed_gradient(x @ p["z"].T @ p["y"].T),
    "custom-vjp-of-weight": lambda p, x: x + x @ reversed_gradient(p["z"]),
    "custom-jvp": lambda p, x: x + same(x @ p["z"].T @ p["y"].T),
    "gate-of-inputs": lambda p, x: x + x[:, :1] * (x @ p["z"]),
    "gate-of-parameters": lambda p, x: x + p["a"] * (x @ p["z"]),
    "squared-weight": lambda p, x: x + x @ p["z"] ** 2,
    "batch-coupling": lambda p, x: (x - x.mean(axis=0)) + (x - x.mean(axis=0)) @ p["z"],
    "batch-reversed": lambda p, x: x + x[::-1] @ p["z"],
    "examples-for-features": lambda p, x: x + (x.T @ p["z"]).T,
    "inputs-squared": lambda p, x: x + (x * x) @ p["z"],
    "affine": lambda p, x: x + x @ p["z"] + 1.0,
    "bias": lambda p, x: x + x @ p["z"] + p["a"],
    "unused-leaf": lambda p, x: x + x @ p["z"],
    "reversed-identity": lambda p, x: x[:, ::-1] + x @ p["z"],
    "other-constant": lambda p, x: x @ (p["z"] + np.triu(np.ones((D, D)))),
    "constant-first": lambda p, x: (x + x @ p["z"]) @ np.triu(np.ones((D, D))),
    "no-skip-left": lambda p, x: (x + x @ p["z"]) - x @ p["z"],
    "rounded": lambda p, x: x + (x @ p["z"]).astype(np.float16).astype(x.dtype),
    "strides": lambda p, x: flat(conv(conv(x, p["z"]), p["y"], stride=2)),
    "dilation": lambda p, x: flat(conv(conv(x, p["z"], rhs_dilation=(2,)), p["y"])),
    "groups": lambda p, x: flat(conv(x, p["z"][:, :1], feature_group_count=2)),
    "same": lambda p, x: flat(conv(conv(x, p["z"], "SAME"), p["y"])),
    "padded-by-hand": lambda p, x: flat(conv(jnp.pad(x, ((0, 0), (0, 2), (0, 0))), p["z"])),
    "mirrored": lambda p, x: flat(conv(_mirrored(x), p["z"])),
    "wrapped-elsewhere": lambda p, x: flat(conv(_shifted(x), p["z"])),
    "wrapped-once": lambda p, x: flat(conv(conv(wrapped(x), p["z"]), p["y"])),
    "wrapped-too-far": lambda p, x: flat(conv(wrapped(x), p["y"])),
    "true-convolution": lambda p, x: flat(conv(x, p["z"][::-1])),
    "shared-kernel": lambda p, x: flat(conv(conv(x, p["z"]), p["z"])),
    "pooled": lambda p, x: conv(x, p["z"]).mean(axis=1),
    "convolution-and-dense": lambda p, x: flat(conv(x, p["z"])) @ p["y"],
    "skip-past-convolution": lambda p, x: flat(wrapped(x)[:, :7] + conv(wrapped(x), p["z"])),
}
SHAPES = {
    **dict.fromkeys(IMPOSTORS, ((D, D),)),
    **dict.fromkeys(
        ("tied-transposed-once", "tied-interrupted", "three-weights-in-a-block"),
        ((M, D), (M, M), (K, M)),
    ),
    "three-weights-in-a-block": ((M, D), (M, M), (D, M)),
    "tied-weight-used-again": ((M, D), (M, M)),
    "autoencoder-twice": ((M, D),),
    "stopped-skip": ((D, D), (D, D)),
    **dict.fromkeys(("stopped-branch", "mask", "custom-vjp", "custom-jvp"), ((M, D), (D, M))),
    **dict.fromkeys(
        ("relu-in-one-block", "skip-over-two-blocks", "skip-past-the-last-block"),
        ((M, D), (D, M), (2, D), (D, 2)),
    ),
    "shared-by-blocks": ((M, D), (D, M), (M, D)),
    "unused-leaf": ((D, D), (D, D)),
    "examples-for-features": ((N, N),),
    **dict.fromkeys(("strides", "dilation", "same", "wrapped-once"), ((3, 2, 3), (2, 3, 2))),
    **dict.fromkeys(("groups", "padded-by-hand", "true-convolution", "pooled"), ((3, 2, 4),)),
    **dict.fromkeys(("mirrored", "wrapped-elsewhere"), ((3, 2, 4),)),
    **dict.fromkeys(("shared-kernel", "skip-past-convolution"), ((3, 2, 2),)),
    "wrapped-too-far": ((3, 2, 2), (2, 2, 2)),
    "convolution-and-dense": ((3, 2, 3), (15, 4)),
}
SCALARS = {"gate-of-parameters": gaussian(), "bias": gaussian(D)}


@pytest.mark.parametrize("name", IMPOSTORS)
def test_impostors_are_refused(name):
    shapes = SHAPES[name]
    params = weights(*shapes) | ({"a": SCALARS[name]} if name in SCALARS else {})
    if name == "wrapped-too-far":
        params.pop("z")
    assert family_of(IMPOSTORS[name], params, LINE if len(shapes[0]) == 3 else X) is None


def test_a_held_leaf_is_refused():
    apply, params, x, _ = RECOGNIZED["blocks-einsum"]
    problem = rankmon.Problem(apply, loss="mse", inputs=x, targets=np.zeros((N, D)), exclude="z")
    assert recognized_family(problem.flat(params)) is None


def test_plain_and_activated_networks_are_never_followed():
    plain = {"z": gaussian(D, M), "y": gaussian(M, K)}
    assert family_of(lambda p, x: x @ p["z"] @ p["y"], plain, X) is None
    assert family_of(lambda p, x: jnp.tanh(x @ p["z"]) @ p["y"], plain, X) is None
