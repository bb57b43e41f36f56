"""The learning coefficient of a deep linear network, in closed form.

The network is F(x) = W^L ... W^1 x with the widths d = M_0, M_1, ..., M_L = K, without biases,
under the squared error. The targets are realizable: y = A x up to noise, where the rank r* of A is
at most the smallest width. The covariance Sigma of the inputs has full rank. Note that r* is the
rank of the *true map* A; the r of `closed_forms` is that of Sigma. Then the learning coefficient
(real log canonical threshold) lambda and its multiplicity m say how fast the set of nearly optimal
parameters shrinks,

    Vol{theta: loss(theta) - minimum < eps} ~ c eps^lambda (log 1/eps)^(m - 1)  for eps -> 0,

with the expected loss, on a compact set with the most degenerate minima in its interior (for A = 0,
the origin). A regular model with p parameters has lambda = p / 2 and m = 1.

The rank of H_L bounds another number. At a minimum theta the loss is, in suitable coordinates, a
sum of rank H_L(theta) squares plus a function g >= 0 of the other coordinates, so that

    rank H_L(theta) / 2 <= lambda(theta),

where lambda(theta) is the *local* coefficient, that of a small ball around theta. They are equal if
and only if the minima near theta are a manifold of codimension rank H_L(theta) (g = 0). This is a
bound on lambda(theta) and not on lambda, the smallest of all lambda(theta), and rank H_L differs
from minimum to minimum. For 2-2-2 and A = 0, lambda is 1.5, and rank H_L / 2 is

- 0 at the origin, where lambda(theta) = 1.5;
- 1 where one of W^1 and W^2 is zero and the other has rank 1, and lambda(theta) = 1.5;
- 1.5 where W^1 and W^2 have rank 1, and lambda(theta) = 1.5;
- 2 where one of them is zero and the other invertible, and lambda(theta) = 2.

At generic points of the largest stratum of minima, rank H_L / 2 was lambda in each of the 454
networks that the tests check exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from rankmon.theory.symbols import widths_of, within


@dataclass(frozen=True)
class LearningCoefficient:
    """A learning coefficient with its multiplicity.

    Attributes:
      value: lambda, a multiple of 1/2: half the codimension of the set of minima.
      multiplicity: m, at least 1; the power of log 1/eps in the volume is m - 1.
    """

    value: float
    multiplicity: int


def learning_coefficient(dims: Sequence[int], *, rank: int) -> LearningCoefficient:
    """Return the learning coefficient of a deep linear network with realizable targets.

    With the widths less r*, in ascending order m_0 <= m_1 <= ... <= m_L, let l >= 1 be the smallest
    number with m_0 + ... + m_l < l m_{l+1} (l = L if there is none), S = m_0 + ... + m_l, and
    a = S - (ceil(S / l) - 1) l. Then

      lambda = [r* (d + K - r*) + sum_{i<j<=l} m_i m_j - ((l - 1) S^2 - a (l - a)) / (2 l)] / 2,
      multiplicity = a (l - a) + 1.

    It is dK / 2 for one layer, and stays bounded when layers are added. It holds for the squared
    error without biases, a full-rank covariance of the inputs, and targets of a map of rank r*
    that the network can represent.

    Args:
      dims: the widths (d, M_1, ..., M_{L-1}, K), positive integers.
      rank: r*, the rank of the true map, 0 to the smallest width.

    Raises:
      TypeError: for widths or a rank that are not integers.
      ValueError: for widths out of range, or a rank that no such network has.

    Source: Aoyagi, "Consideration on the learning efficiency of multiple-layered neural networks
    with linear units", Neural Networks (2024), doi 10.1016/j.neunet.2024.106132, as restated with
    its conditions in public code (E. Lau's `true_dln_learning_coefficient`, also in devinterp's
    tests); the paper itself was not read. For two layers, Aoyagi and Watanabe (2005), doi
    10.1016/j.neunet.2005.03.014. That lambda is half the codimension of the set of minima: Pepin
    Lehalleur and Rimányi (2024), arXiv 2411.19920. The tests compute this codimension exactly over
    a prime field.

    Example:
      >>> learning_coefficient((2, 2, 2), rank=0)
      LearningCoefficient(value=1.5, multiplicity=1)
      >>> learning_coefficient((30, 25, 20, 15, 10), rank=10)
      LearningCoefficient(value=150.0, multiplicity=1)
    """
    widths = widths_of(dims)
    r = within("rank", rank, min(widths), "the smallest width")
    m = sorted(width - r for width in widths)
    L = len(widths) - 1
    used = next((i for i in range(1, L) if sum(m[: i + 1]) < i * m[i + 1]), L)
    total, pairs = sum(m[: used + 1]), sum(x * y for x, y in combinations(m[: used + 1], 2))
    a = (total - 1) % used + 1  # total modulo l, in 1, ..., l
    # S = a modulo l, so that the division is exact.
    excess = ((used - 1) * total**2 - a * (used - a)) // (2 * used)
    codimension = r * (widths[0] + widths[-1] - r) + pairs - excess
    return LearningCoefficient(codimension / 2, a * (used - a) + 1)
