"""Ranks of networks with activations, from the states of their hidden units on a probe batch.

Symbols: F(x) = V sigma(W x) + c with M hidden units and K outputs; x has an additional entry 1 if
the hidden layer has biases, and c is left out without output biases. For n examples, X holds the
inputs x_i, [n, d]; S the slopes s_ij = sigma'(z_ij) at z_ij = w_j x_i, [n, M]; H the hidden
features sigma(z_ij), [n, M]; delta_i = dl/dF the residuals, [n, K]. K' is K, but K - 1 under cross
entropy, whose output Hessians B_i have the kernel (1, ..., 1). o = 1 with output biases, else 0.

The upper bounds on rank H_o bound the rank of the Jacobian; H_o = E[J_i^T B_i J_i] can have that
rank only if B_i > 0 (under cross entropy, on the complement of that kernel). Examples of weight
zero have to be left out.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float

from rankmon._util.validate import as_flag, as_integer
from rankmon.linalg.numerical_rank import numerical_rank
from rankmon.linalg.spectrum import singular_values
from rankmon.theory.symbols import symbols_of, within

_EPS = float(np.finfo(np.float64).eps)
_WELL_CONDITIONED = 1e-6  # far above the rounding of a Gram matrix


def rank_outer_group_bound(
    inputs: Float[np.ndarray, "n d"],
    slopes: Float[np.ndarray, "n units"],
    outputs: int,
    *,
    features: Float[np.ndarray, "n units"] | None = None,
    output_bias: bool = False,
    loss: str = "mse",
    exact: bool = True,
) -> int:
    """Return an upper bound on rank H_o for one hidden layer with sigma(z) = sigma'(z) z.

    Such are ReLU, leaky ReLU, |z| and the identity. Hidden units form a group g if their slopes on
    the batch are equal up to a factor. A group computes the linear network V_g W_g (s_i x_i), so
    its columns of the Jacobian have at most the rank
      b_g = q_g (r_g + K' - q_g),  q_g = min(r_g, m_g, K'),
    for m_g units and inputs s_i x_i of rank r_g. Columns of several groups together have at most K'
    times as many dimensions as there are examples at which one of these groups is active. Hence
      rank H_o <= min over sets T of groups of  sum_{g not in T} b_g + K' |examples that T touches|,
    which is a minimum cut between groups and examples. With output biases add K', and let r_g be
    the rank of (s_i x_i, 1) less 1. Also, from the rows,
      rank H_o <= n K' - max(K' - M, 0) (n - rank H),
    where H gets a column of ones with output biases. The result is the smaller of both.

    With one group this is `rank_outer` of the linear network (Theorem 3); with groups of one unit
    whose inputs have rank r, it is `rank_outer_bound` (Theorem 9). In 500 random networks
    (`examples/group_bound.py`) it was never violated, and mostly met.

    Args:
      inputs: X, [n, d], with a last column of ones if the hidden layer has biases.
      slopes: S, [n, M]; any slope will do for z = 0.
      outputs: K.
      features: H, [n, M]; without them the bound from the rows is n K'.
      output_bias: whether the outputs have biases.
      loss: "mse", "cosh" or "cross_entropy"; for a loss of your own "mse".
      exact: if False, r_g is replaced by the smaller of the rank of all inputs and the number of
        examples that are active, and only all groups together are replaced by their examples: a
        larger bound, in less time for hundreds of units.

    Raises:
      TypeError, ValueError: for arrays that are not finite or whose shapes do not fit; for a number
        of outputs, a flag or a loss that is not one.

    Source: the argument above; it is not in arXiv 2106.16225, whose Theorems 3 and 9 it contains.

    Example:
      >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> slopes = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> rank_outer_group_bound(x, slopes, 1)
      3
    """
    X, S = _arrays(inputs=inputs, slopes=slopes)
    K, o, exact = _outputs(outputs, loss), as_flag("output_bias", output_bias), bool(exact)
    n, M = S.shape
    touching = np.any(X != 0, axis=1)
    groups, sizes = _groups(S * touching[:, None])
    touched = groups != 0
    ranks = _group_ranks(X, groups, output_bias=o) if exact else _at_most(X, touched)
    q = np.minimum(np.minimum(ranks, sizes), K)
    bounds = q * (ranks + K - q)
    from_columns = _least_cover(bounds, touched, K) if exact else int(bounds.sum())
    from_columns = min(from_columns, K * int(touched.any(axis=1).sum()))
    rows = n
    if features is not None:
        (H,) = _arrays(features=features)
        if H.shape != S.shape:
            raise ValueError(
                f"expected features of the shape of slopes, {S.shape}, got {H.shape}; pass both "
                "with a row for each example and a column for each hidden unit"
            )
        rows = _rank(H, ones=o) + o
    return min(from_columns + o * K, n * K - max(K - M, 0) * (n - rows))


def unit_singular_values(
    inputs: Float[np.ndarray, "n d"],
    slopes: Float[np.ndarray, "n units"],
    residuals: Float[np.ndarray, "n k"],
    *,
    weights: Float[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, "units rank"]:
    """Return the singular values of E[delta sigma'(z_j) x^T], [K, d], for each hidden unit j.

    For a piecewise linear sigma they are, with both signs, the eigenvalues of H_f that may be
    nonzero: sigma'' = 0, so only the weights into and out of one unit have second derivatives
    together, and H_f consists of a block [[0, G_j], [G_j^T, 0]] for each unit, G_j being this
    matrix. The blocks share no parameter.

    Args:
      inputs: X, [n, d], with a last column of ones if the hidden layer has biases.
      slopes: S, [n, M].
      residuals: delta, [n, K].
      weights: of the examples in E, [n], summing to 1. Default 1 / n.

    Returns:
      [M, min(K, d)], descending in each row.

    Raises:
      TypeError, ValueError: for arrays that are not finite or whose shapes do not fit.

    Source: the argument above; for linear networks arXiv 2106.16225, section S8.

    Example:
      >>> unit_singular_values(np.eye(2), np.array([[1.0, 1.0], [1.0, 0.0]]), np.eye(2))
      array([[0.5, 0.5],
             [0.5, 0. ]])
    """
    X, S, delta = _arrays(inputs=inputs, slopes=slopes, residuals=residuals)
    n, (K, d) = len(X), (delta.shape[1], X.shape[1])
    w = np.full(n, 1 / n) if weights is None else np.asarray(weights, np.float64)
    if w.shape != (n,) or not np.all(np.isfinite(w)):
        raise ValueError(
            f"expected weights of shape ({n},), finite, got shape {w.shape}; pass one for each "
            "example, or leave them out for 1 / n"
        )
    weighted = w[:, None] * delta
    blocks = [(S[:, j, None] * weighted).T @ X for j in range(S.shape[1])]
    return np.linalg.svd(np.stack(blocks), compute_uv=False).reshape(-1, min(K, d))


def rank_functional_hidden(
    inputs: Float[np.ndarray, "n d"],
    slopes: Float[np.ndarray, "n units"],
    residuals: Float[np.ndarray, "n k"],
    *,
    weights: Float[np.ndarray, " n"] | None = None,
    cut: float | None = None,
) -> int:
    """Return rank H_f for one hidden layer and a piecewise linear sigma.

    sum over the hidden units j of 2 rank E[delta sigma'(z_j) x^T], exactly, for every loss, with
    and without biases (`unit_singular_values` has the argument).

    Args:
      inputs: X, [n, d], with a last column of ones if the hidden layer has biases.
      slopes: S, [n, M].
      residuals: delta, [n, K].
      weights: of the examples in E, [n], summing to 1. Default 1 / n.
      cut: the singular value above which one counts; the eigenvalues of H_f are the same numbers,
        so the cut of H_f is the right one. Default M (d + K) eps times the largest of all units.

    Raises:
      TypeError, ValueError: for arrays that are not finite or whose shapes do not fit.

    Source: the argument of `unit_singular_values`; it is not in arXiv 2106.16225.

    Example:
      >>> rank_functional_hidden(np.eye(2), np.array([[1.0, 1.0], [1.0, 0.0]]), np.eye(2))
      6
    """
    values = unit_singular_values(inputs, slopes, residuals, weights=weights)
    p = len(values) * (np.shape(inputs)[1] + np.shape(residuals)[1])
    largest = float(values.max(initial=0.0))
    return 2 * int(np.sum(values > (p * _EPS * largest if cut is None else cut)))


def rank_outer_tanh(
    units: int,
    outputs: int,
    *,
    n: int,
    inputs_rank: int,
    features_rank: int,
    output_bias: bool = False,
    loss: str = "mse",
) -> int:
    """Return the rank of H_o for one hidden layer of tanh units and n examples.

    min(M (r + K') + o K', n K' - max(K' - M, 0) (n - rank H)), where r is the rank of X, and H has
    a column of ones with output biases. It is an upper bound for every activation: the first number
    is that of the parameters that F depends on, the second is `rank_outer_group_bound`'s from the
    rows. That tanh networks have this rank is checked, not proved: on 99 random networks with
    weights of order one, B_i > 0 and distinct units. Units that are equal up to a sign, or without
    outgoing weight, lower it; and for nearly linear units, and thousands of parameters, the
    numerical rank is lower.

    Args:
      units: M.
      outputs: K.
      n: the number of examples.
      inputs_rank: r, the rank of X with its column of ones if the hidden layer has biases.
      features_rank: the rank of H, with a column of ones with output biases.
      output_bias: whether the outputs have biases.
      loss: "mse", "cosh" or "cross_entropy"; for a loss of your own with B_i > 0, "mse".

    Raises:
      TypeError: for numbers that are not integers, or a flag that is not a bool.
      ValueError: for numbers or a loss out of range.

    Source: not in arXiv 2106.16225.

    Example:
      >>> rank_outer_tanh(5, 2, n=100, inputs_rank=4, features_rank=5)
      30
    """
    M = as_integer("units", units, least=1, remedy="pass the number of hidden units")
    K, o = _outputs(outputs, loss), as_flag("output_bias", output_bias)
    n = as_integer("n", n, least=1, remedy="pass the size of the batch")
    r = within("inputs_rank", inputs_rank, n, "n")
    rows = within("features_rank", features_rank, min(n, M + o), "min(n, M + o)")
    return min(M * (r + K) + o * K, n * K - max(K - M, 0) * (n - rows))


def rank_outer_rescaling_bound(
    p: int, outputs: int, *, n: int, features: int, rescalings: int, loss: str = "mse"
) -> int:
    """Return an upper bound on rank H_o for stacks of any depth: min(n K', p' - rescalings).

    p' = p - features (K - K'): under cross entropy, a shift of all outputs by one number changes
    nothing. If a hidden unit j has sigma(z_j) = sigma'(z_j) z_j on the batch, moving its incoming
    weights and bias along themselves, and its outgoing weights against themselves, changes no
    output to first order. These directions of different units are independent if each of the units
    has an incoming weight or bias that is not zero: order the units by layers; a combination that
    vanishes has, at the incoming weights of a unit of the first of them that counts, only that
    unit's share. So they are all in the kernel of H_o. It is the rank for many examples, unless
    units are dead, or have kinks or pre-activations in common.

    Args:
      p: the number of parameters.
      outputs: K.
      n: the number of examples.
      features: the number of the last layer's inputs, counting its bias as one.
      rescalings: the number of units with sigma(z) = sigma'(z) z on the batch, and a nonzero
        incoming weight or bias; for tanh 0.
      loss: "mse", "cosh" or "cross_entropy"; for a loss of your own "mse".

    Raises:
      TypeError: for numbers that are not integers.
      ValueError: for numbers or a loss out of range.

    Source: the argument above; it is not in arXiv 2106.16225.

    Example:
      >>> rank_outer_rescaling_bound(31, 3, n=100, features=5, rescalings=5)
      26
    """
    p = as_integer("p", p, least=1, remedy="pass the number of parameters")
    n = as_integer("n", n, least=1, remedy="pass the size of the batch")
    K = _outputs(outputs, loss)
    shifts = within("features", features, p // outputs, "p / K") * (outputs - K)
    return min(n * K, p - shifts - within("rescalings", rescalings, p - shifts, "p'"))


def _outputs(outputs: int, loss: str) -> int:
    """Return K', the outputs that the loss depends on independently."""
    K = as_integer("outputs", outputs, least=1, remedy="pass the number of outputs K")
    return symbols_of((1, K), None, None, False, loss).K


def _arrays(**given: Float[np.ndarray, "n _m"]) -> list[Float[np.ndarray, "n _m"]]:
    """Return the arrays in float64; refuse those that are not finite matrices of as many rows."""
    arrays = {name: np.asarray(array, np.float64) for name, array in given.items()}
    rows = {len(array) for array in arrays.values() if array.ndim == 2}
    for name, array in arrays.items():
        if array.ndim != 2 or array.size == 0 or not np.all(np.isfinite(array)):
            raise ValueError(
                f"expected {name} as a finite matrix with a row for each example, got shape "
                f"{array.shape}; leave out examples that are not finite"
            )
    if len(rows) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(
            f"expected one row for each example in every array, got {shapes}; pass the same "
            "examples in all of them"
        )
    return list(arrays.values())


def _groups(
    slopes: Float[np.ndarray, "n units"],
) -> tuple[Float[np.ndarray, "n groups"], np.ndarray]:
    """Return the distinct slopes of units, up to factors, and how many units have each.

    Units without a slope are left out: their columns of the Jacobian are zero.
    """
    live = slopes[:, np.any(slopes, axis=0)]
    first = np.argmax(live != 0, axis=0)
    scaled = live / np.take_along_axis(live, first[None], axis=0)
    distinct, sizes = np.unique(scaled, axis=1, return_counts=True)
    return distinct, sizes


def _group_ranks(
    X: Float[np.ndarray, "n d"], groups: Float[np.ndarray, "n groups"], *, output_bias: bool
) -> np.ndarray:
    """Return the rank of each group's inputs; with output biases modulo a column of ones."""
    return np.array([_rank(s[:, None] * X, ones=output_bias) for s in groups.T], int)


def _at_most(X: Float[np.ndarray, "n d"], touched: Bool[np.ndarray, "n groups"]) -> np.ndarray:
    """Return a bound on the rank of each group's inputs."""
    return np.minimum(_rank(X, ones=False), touched.sum(axis=0)).astype(int)


def _rank(X: Float[np.ndarray, "n d"], *, ones: bool) -> int:
    """Return the rank of a matrix at its own cut; with ones, of (X, 1) less 1."""
    n, d = X.shape
    largest = float(np.abs(X).max(initial=0.0))
    if largest == 0:
        return 0
    scaled = X / largest
    if ones:
        scaled = np.concatenate([scaled, np.ones((n, 1))], axis=1)
    gram = np.linalg.eigvalsh(scaled.T @ scaled) if n > 4 * d else np.zeros(1)
    if gram[0] > _WELL_CONDITIONED * gram[-1]:  # certainly of full rank
        return d
    values = singular_values(scaled)
    return (numerical_rank(values, max(scaled.shape) * _EPS * float(values[0])).rank or 0) - ones


def _least_cover(bounds: np.ndarray, touched: Bool[np.ndarray, "n groups"], K: int) -> int:
    """Return min over sets T of groups of sum_{g not in T} b_g + K |examples that T touches|.

    It is a minimum cut, and thus the largest flow, from a source over groups (of capacity b_g) and
    the examples that they touch (of capacity K) to a sink. Examples that the same groups touch are
    one node.
    """
    from scipy.sparse import coo_array  # not needed by the other closed forms, which start faster
    from scipy.sparse.csgraph import maximum_flow

    patterns, counts = np.unique(touched, axis=0, return_counts=True)
    classes, groups = patterns.shape
    if groups == 0:
        return 0
    source, sink = groups + classes, groups + classes + 1
    at_class, at_group = np.nonzero(patterns)
    rows = _joined([source] * groups, at_group, range(groups, groups + classes))
    columns = _joined(range(groups), groups + at_class, [sink] * classes)
    capacities = _joined(bounds, bounds[at_group], K * counts)
    shape = (sink + 1, sink + 1)
    graph = coo_array((capacities.astype(np.int32), (rows, columns)), shape=shape).tocsr()
    return int(maximum_flow(graph, source, sink).flow_value)


def _joined(*parts: Iterable[int]) -> np.ndarray:
    """Return integers joined to one array, of the type of SciPy's graphs."""
    return np.concatenate([np.fromiter(part, np.int32) for part in parts])
