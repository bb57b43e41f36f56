"""Three networks on scikit-learn's digits, in JAX and in PyTorch, for `curvature_peers.py`."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Case:
    """Dense layers with biases, after two convolutions if it is a CNN; cross entropy, mean over n.

    Each kernel is applied to the last axis, as in JAX: [..., in, out].
    """

    name: str
    widths: tuple[int, ...]
    n: int
    filters: tuple[int, ...] = ()
    activation: str = "relu"
    steps: int = 10

    @cached_property
    def data(self):
        """Return images [n, 64] with entries in [0, 1], and labels [n]."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        return (digits.data[: self.n] / 16).astype(np.float32), digits.target[: self.n]

    def initial(self):
        """Return He-normal kernels and biases of zero, as a flat list."""
        rng = np.random.default_rng(0)
        shapes = [(3, 3, a, b) for a, b in zip((1, *self.filters), self.filters, strict=False)]
        shapes += list(zip(self.widths, self.widths[1:], strict=False))
        kernels = [rng.normal(size=s) * np.sqrt(2 / np.prod(s[:-1])) for s in shapes]
        return [leaf for kernel in kernels for leaf in (kernel, np.zeros(kernel.shape[-1]))]

    def apply(self, params, x):
        """Return the logits [n, 10], in JAX."""
        import jax

        activation = getattr(jax.nn, self.activation)
        layers = list(zip(params[::2], params[1::2], strict=True))
        if self.filters:
            x = x.reshape(-1, 8, 8, 1)
        for kernel, bias in layers[: len(self.filters)]:
            dims = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims)
            n, side, _, k = x.shape
            x = activation(x + bias).reshape(n, side // 2, 2, side // 2, 2, k).mean((2, 4))
        if self.filters:
            x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # channels first, as in PyTorch
        for kernel, bias in layers[len(self.filters) : -1]:
            x = activation(x @ kernel + bias)
        return x @ layers[-1][0] + layers[-1][1]

    def loss(self, params, x, y):
        """Return the mean cross entropy, in JAX."""
        import optax

        return optax.softmax_cross_entropy_with_integer_labels(self.apply(params, x), y).mean()

    @cached_property
    def params(self):
        """Return float32 weights after so many steps of Adam."""
        import jax
        import optax

        adam = optax.adam(1e-2)
        params = [leaf.astype(np.float32) for leaf in self.initial()]

        @jax.jit
        def step(params, state):
            updates, state = adam.update(jax.grad(self.loss)(params, *self.data), state)
            return optax.apply_updates(params, updates), state

        state = adam.init(params)
        for _ in range(self.steps):
            params, state = step(params, state)
        return [np.asarray(leaf) for leaf in params]

    def torch_model(self):
        """Return the same network in PyTorch, float32, with its batch."""
        import torch

        layers, wanted = [], list(zip(self.params[::2], self.params[1::2], strict=True))
        activation = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[self.activation]
        for kernel, _ in wanted[: len(self.filters)]:
            layers += [torch.nn.Conv2d(*kernel.shape[2:], 3, padding=1), activation()]
            layers += [torch.nn.AvgPool2d(2)]
        if self.filters:
            layers = [torch.nn.Unflatten(1, (1, 8, 8)), *layers, torch.nn.Flatten()]
        for kernel, _ in wanted[len(self.filters) :]:
            layers += [torch.nn.Linear(*kernel.shape), activation()]
        model = torch.nn.Sequential(*layers[:-1])
        with torch.no_grad():
            for leaf, value in zip(model.parameters(), self.params, strict=True):
                axes = (3, 2, 0, 1) if value.ndim == 4 else tuple(range(value.ndim))[::-1]
                leaf.copy_(torch.from_numpy(value.transpose(axes).copy()))
        return model, torch.from_numpy(self.data[0]), torch.from_numpy(self.data[1])


CASES = (
    Case("ReLU MLP", (64, 48, 32, 10), 256),
    Case("tanh MLP", (64, 40, 24, 10), 256, activation="tanh"),
    Case("CNN", (64, 32, 10), 256, filters=(8, 16)),
)
QUICK = (Case("CNN", (16, 8, 10), 60, filters=(3, 4)),)
