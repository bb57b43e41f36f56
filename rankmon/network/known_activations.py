"""The activation functions whose units are measured: recognized by their values, with derivatives.

A function f is recognized as c g(a z) if it agrees, on a wide grid of z, with one of the functions
g below at factors c and a, which a few of its values determine. The program that computes f
does not matter: `jax.nn.silu`, x * sigmoid(x) and x / (1 + exp(-x)) are all SiLU.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from jaxtyping import Array, Float
from scipy import special

# 0, and both signs of 2^-10, ..., 2^8 in steps of 2^(1/4); it contains 1 and 2.
_POSITIVE = 2.0 ** (np.arange(-40, 33) / 4)
GRID = np.concatenate([-_POSITIVE[::-1], [0.0], _POSITIVE])
# Programs written by hand may overflow beyond: exp(z) / (1 + exp(z)) in float32.
_FINITE_UP_TO = 16.0
# The known functions differ by more than 5e-4; constants that are rounded to bfloat16 pass.
_AGREEMENT = 1e-4

_TANH_GELU, _CUBE = np.sqrt(2 / np.pi), 0.044715
_MOST = 1e3  # every derivative is constant, to rounding, beyond this argument

_Values = Float[np.ndarray, " z"]
_Slopes = Float[Array, "..."]


@dataclass(frozen=True)
class Activation:
    """A recognized activation f(z) = c g(a z).

    Attributes:
      name: the name of g: "ReLU", "leaky ReLU", "ELU", "tanh", "sigmoid", "SiLU", "GELU" or
        "GELU (tanh)".
      inner: the factor a.
      outer: the factor c.
      negative: for ELU the factor alpha of exp(x) - 1, for leaky ReLU the slope, at x < 0.
    """

    name: str
    inner: float
    outer: float
    negative: float = 0.0

    def __call__(self, z: _Values) -> _Values:
        """Return the values f(z)."""
        return self.outer * _VALUES[self.name](self.inner * z, self.negative)

    def relative_slope(self, z: _Slopes) -> _Slopes:
        """Return |f'(z)| divided by the largest value of |f'|; traceable."""
        x = jnp.clip(self.inner * z, -_MOST, _MOST)  # cubes of huge arguments overflow
        slope, largest = _SLOPES[self.name](x, self.negative)
        return jnp.abs(slope) / largest


def recognized(values: _Values) -> Activation | None:
    """Return the known activation with these values on `GRID`, or None."""
    values = np.asarray(values, np.float64)
    if not np.all(np.isfinite(values[np.abs(GRID) <= _FINITE_UP_TO])):
        return None
    with np.errstate(all="ignore"):  # a fit to another function may divide by zero
        for activation in _candidates(values):
            if _agrees(values, activation(GRID)):
                return activation
    return None


def _agrees(values: _Values, expected: _Values) -> bool:
    compared = np.isfinite(values)
    scale = np.max(np.abs(values[np.abs(GRID) <= 1]))
    off = np.abs(values - expected)[compared]
    return bool(np.all(off <= _AGREEMENT * (scale + np.abs(expected[compared]))))


def _candidates(values: _Values) -> Iterator[Activation]:
    """Yield each known function at the factors that a few of the values determine."""
    for sign, f in ((1.0, values), (-1.0, values[::-1])):  # f(z) and f(-z)
        zero, one, two = (float(f[np.searchsorted(GRID, z)]) for z in (0.0, 1.0, 2.0))
        minus_one, minus_two = (float(f[np.searchsorted(GRID, -z)]) for z in (1.0, 2.0))
        if one == 0:
            continue
        slope = -minus_one / one
        if slope == 0:
            yield Activation("ReLU", sign, one)
        elif 0 < slope < 1 - 10 * _AGREEMENT:  # a slope of 1 is the identity
            yield Activation("leaky ReLU", sign, one, slope)
        for name, inner, outer, negative in (
            _tanh(one, two),
            _sigmoid(zero, one),
            *_gated(one, minus_one),
            _elu(one, minus_one, minus_two),
        ):
            if inner != 0 and np.all(np.isfinite([inner, outer, negative])) and negative >= 0:
                yield Activation(name, sign * inner, outer, negative)


_Fit = tuple[str, float, float, float]


def _tanh(one: float, two: float) -> _Fit:
    """Fit c tanh(a z): tanh(2 a) = 2 t / (1 + t^2) for t = tanh(a)."""
    t = float(np.sqrt(np.float64(2 * one) / two - 1))
    return "tanh", float(np.arctanh(t)), float(np.float64(one) / t), 0.0


def _sigmoid(zero: float, one: float) -> _Fit:
    """Fit c sigmoid(a z), which is c / 2 at 0."""
    return "sigmoid", float(special.logit(np.float64(one) / (2 * zero))), 2 * zero, 0.0


def _gated(one: float, minus_one: float) -> list[_Fit]:
    """Fit s z P(a z) with P(x) + P(-x) = 1, so that f(1) - f(-1) = s."""
    s = np.float64(one - minus_one)
    share = one / s
    u = np.arctanh(2 * share - 1) / _TANH_GELU  # = a + 0.044715 a^3
    roots = np.roots([_CUBE, 0, 1, -u]) if np.isfinite(u) else np.array([np.nan])
    (cubic,) = roots[np.argmin(np.abs(np.imag(roots)))].real[None]
    factors = {
        "SiLU": special.logit(share),
        "GELU": special.ndtri(share),
        "GELU (tanh)": cubic,
    }
    return [(name, float(a), float(s / a), 0.0) for name, a in factors.items()]


def _elu(one: float, minus_one: float, minus_two: float) -> _Fit:
    """Fit c elu(a z): f(-2) / f(-1) = exp(-a) + 1."""
    decay = np.float64(minus_two) / minus_one - 1
    a = -float(np.log(decay))
    outer = float(np.float64(one) / a)
    return "ELU", a, outer, float(minus_one / (decay - 1) / outer)


_VALUES: dict[str, Callable[[_Values, float], _Values]] = {
    "ReLU": lambda x, _: np.maximum(x, 0),
    "leaky ReLU": lambda x, slope: np.where(x > 0, x, slope * x),
    "ELU": lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
    "tanh": lambda x, _: np.tanh(x),
    "sigmoid": lambda x, _: special.expit(x),
    "SiLU": lambda x, _: x * special.expit(x),
    "GELU": lambda x, _: x * special.ndtr(x),
    "GELU (tanh)": lambda x, _: x * (1 + np.tanh(_TANH_GELU * (x + _CUBE * x**3))) / 2,
}


def _silu_slope(x: _Slopes, _: float) -> tuple[_Slopes, float]:
    s = 1 / (1 + jnp.exp(-x))
    return s * (1 + x * (1 - s)), 1.0998393194


def _gelu_slope(x: _Slopes, _: float) -> tuple[_Slopes, float]:
    density = jnp.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    return (1 + erf(x / np.sqrt(2))) / 2 + x * density, 1.1289041452


def _tanh_gelu_slope(x: _Slopes, _: float) -> tuple[_Slopes, float]:
    t = jnp.tanh(_TANH_GELU * (x + _CUBE * x**3))
    inner = _TANH_GELU * (1 + 3 * _CUBE * x**2)
    return (1 + t) / 2 + x * (1 - t**2) * inner / 2, 1.1289930687


def _sigmoid_slope(x: _Slopes, _: float) -> tuple[_Slopes, float]:
    t = jnp.tanh(x / 2)
    return (1 - t**2) / 4, 0.25


# The derivative g'(x), and the largest value of |g'|.
_SLOPES: dict[str, Callable[[_Slopes, float], tuple[_Slopes, float]]] = {
    "ReLU": lambda x, _: (jnp.where(x > 0, 1.0, 0.0), 1.0),
    "leaky ReLU": lambda x, slope: (jnp.where(x > 0, 1.0, slope), 1.0),
    "ELU": lambda x, alpha: (
        jnp.where(x > 0, 1.0, alpha * jnp.exp(jnp.minimum(x, 0))),
        max(1.0, abs(alpha)),
    ),
    "tanh": lambda x, _: (1 - jnp.tanh(x) ** 2, 1.0),
    "sigmoid": _sigmoid_slope,
    "SiLU": _silu_slope,
    "GELU": _gelu_slope,
    "GELU (tanh)": _tanh_gelu_slope,
}
