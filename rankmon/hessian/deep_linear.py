"""The Hessian of a deep linear network in closed form, reduced to coordinates that can be non-zero.

Symbols (arXiv 2106.16225): F(x) = W^L ... W^1 x, or with biases, which are one more column of W^l
that multiplies a constant input 1; Omega = E[delta x^T], S = E[B_i (x) x_i x_i^T] (for mse I_K (x)
Sigma). x is written in an orthonormal basis of the space that the probe batch spans, r coordinates.

  B_l = W^{L:l+1}         [K, M_l]      from layer l to the outputs
  U_l = W^{l-1:1}         [c_l, r]      from the inputs to layer l; c_l is M_{l-1}, and 1 more with
                                        a bias, whose row is that of the constant 1
  Z_{kl} = W^{k-1:l+1}    [c_k, M_l]    from layer l to layer k > l

Derivatives along V_l and V_k, of the shapes of W^l and W^k, l < k:

  dF_i = B_l V_l U_l x_i,    d2 <delta, F> = tr(V_k Z_{kl} V_l U_l Omega^T B_k)

so the rows of H that belong to W^l, seen as M_l x c_l matrices, lie in a sum of products of spaces:

  H_o                     row(B_l)                  (x)  col(U_l X)
  H_f, layers j < l       col(B_l^T Omega U_j^T)    (x)  col(Z_{lj})
  H_f, layers k > l       row(Z_{kl})               (x)  col(U_l Omega^T B_k)

On either side these spaces are nested, so that one orthonormal basis is adapted to all of them and
the spaces become rectangles of its coordinates. Entries outside every rectangle are zero and the
rotation is orthogonal, so the matrix inside the rectangles has the Hessian's non-zero spectrum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from rankmon.linalg.nested_basis import nested_basis
from rankmon.problem.output_hessians import OutputHessians

# Rows and columns of a rectangle that starts at the first coordinate.
Rectangle = tuple[int, int]

# Which coordinates of one layer are kept: columns of its P_l by columns of its R_l.
Mask = Bool[np.ndarray, "_a _b"]


@dataclass(frozen=True)
class InputBasis:
    """The probe batch in an orthonormal basis of the space that it spans.

    Attributes:
      axes: Q, [d, r], from the SVD of X, because X^T X would halve the number of correct digits; if
        any layer has a bias, [d + 1, r] with the last row for the constant 1.
      coordinates: X Q, [n, r].
      weights: of the examples in the mean, [n].
    """

    axes: Float[np.ndarray, "d r"]
    coordinates: Float[np.ndarray, "n r"]
    weights: Float[np.ndarray, " n"]

    @classmethod
    def of(
        cls, x: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"], *, affine: bool
    ) -> "InputBasis":
        """Return the basis for this batch; with the constant 1 if `affine`.

        Examples of weight 0 add no direction.
        """
        if affine:
            x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        axes, _ = nested_basis([(np.sqrt(weights)[:, None] * x).T])
        return cls(axes, x @ axes, weights)

    def omega(self, delta: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "k r"]:
        """Return Omega = E[delta x^T]."""
        return (self.weights[:, None] * delta).T @ self.coordinates

    def second_moment(self, b: OutputHessians) -> Float[np.ndarray, "kr kr"]:
        """Return S = E[B_i (x) x_i x_i^T]."""
        return b.second_moment(self.weights, self.coordinates)


@dataclass(frozen=True)
class Layers:
    """The products of weights that appear in the Hessian.

    Attributes:
      forward: U_1, ..., U_L.
      backward: B_1, ..., B_L.
      middle: Z_{kl} by (k, l), counted from 0.
    """

    forward: tuple[Float[np.ndarray, "_c r"], ...]
    backward: tuple[Float[np.ndarray, "k _out"], ...]
    middle: dict[tuple[int, int], Float[np.ndarray, "_c _out"]]

    @classmethod
    def at(
        cls,
        weights: Sequence[Float[np.ndarray, "_out _in"]],
        biases: Sequence[Float[np.ndarray, " _out"] | None],
        axes: Float[np.ndarray, "d r"],
    ) -> "Layers":
        """Return the products at W^1, ..., W^L and b^1, ..., b^L, None for a layer without bias."""
        affine = any(bias is not None for bias in biases)
        forward, state = [], axes[:-1] if affine else axes
        for W, b in zip(weights, biases, strict=True):
            forward.append(state if b is None else np.concatenate([state, axes[-1:]]))
            state = W @ state if b is None else W @ state + np.outer(b, axes[-1])
        backward = [np.eye(len(weights[-1]))]
        for W in reversed(weights[1:]):
            backward.append(backward[-1] @ W)
        middle = {}
        for start, W in enumerate(weights):
            z = np.eye(len(W))
            for k in range(start + 1, len(weights)):
                # The constant 1 of layer k does not depend on an earlier layer.
                constant = np.zeros((len(forward[k]) - len(z), len(W)))
                middle[k, start] = np.concatenate([z, constant])
                z = weights[k] @ z
        return cls(tuple(forward), tuple(reversed(backward)), middle)


@dataclass(frozen=True)
class LayerBasis:
    """Orthonormal bases on either side of one layer, and the rectangles that can be non-zero.

    Attributes:
      left: P_l, of the layer's outputs, [M_l, a].
      right: R_l, of the layer's inputs, [c_l, b].
      functional: the rectangles of H_f.
      outer: the rectangle of H_o.
    """

    left: Float[np.ndarray, "out a"]
    right: Float[np.ndarray, "c b"]
    functional: tuple[Rectangle, ...]
    outer: Rectangle

    @classmethod
    def of(cls, layers: Layers, at: int, omega: Float[np.ndarray, "k r"]) -> "LayerBasis":
        """Return the bases adapted to the nested spaces of layer `at` for this Omega."""
        U, B, Z = layers.forward, layers.backward, layers.middle
        before, after = range(at), range(at + 1, len(U))
        left, rows = nested_basis(
            [B[at].T @ omega @ U[j].T for j in reversed(before)]
            + [B[at].T]
            + [Z[k, at].T for k in reversed(after)]
        )
        right, columns = nested_basis(
            [U[at] @ omega.T @ B[k] for k in after] + [U[at]] + [Z[at, j] for j in before]
        )
        rectangles = tuple(zip(rows, reversed(columns), strict=True))
        return cls(left, right, rectangles[:at] + rectangles[at + 1 :], rectangles[at])

    @property
    def outer_mask(self) -> Mask:
        """The coordinates at which H_o can be non-zero."""
        return self._inside([self.outer])

    @property
    def functional_mask(self) -> Mask:
        """The coordinates at which H_f can be non-zero."""
        return self._inside(self.functional)

    def _inside(self, rectangles: Sequence[Rectangle]) -> Mask:
        """Return the coordinates in the union of these rectangles."""
        inside = np.zeros((self.left.shape[1], self.right.shape[1]), bool)
        for rows, columns in rectangles:
            inside[:rows, :columns] = True
        return inside


@dataclass(frozen=True)
class Group:
    """Coordinates of one layer that are kept: column a of its P_l with column b of its R_l."""

    layer: int
    a: Int[np.ndarray, " m"]
    b: Int[np.ndarray, " m"]

    @classmethod
    def of_each_layer(cls, masks: Sequence[Mask]) -> list["Group"]:
        """Return one group a layer, of the coordinates at which its mask is true, in C order."""
        return [cls(layer, *np.nonzero(mask)) for layer, mask in enumerate(masks)]


@dataclass(frozen=True)
class Reduction:
    """The Hessian with one Omega, reduced to the coordinates that can be non-zero.

    Attributes:
      layers: the products of weights.
      omega: Omega in the basis of the inputs, [k, r].
    """

    layers: Layers
    omega: Float[np.ndarray, "k r"]

    @cached_property
    def bases(self) -> tuple[LayerBasis, ...]:
        """One basis for each layer."""
        count = len(self.layers.forward)
        return tuple(LayerBasis.of(self.layers, at, self.omega) for at in range(count))

    @cached_property
    def loss_groups(self) -> list[Group]:
        """The coordinates at which H_L can be non-zero, those of H_o first."""
        outer = [basis.outer_mask for basis in self.bases]
        others = [
            basis.functional_mask & ~mask for basis, mask in zip(self.bases, outer, strict=True)
        ]
        return Group.of_each_layer(outer) + Group.of_each_layer(others)

    @cached_property
    def functional_groups(self) -> list[Group]:
        """The coordinates at which H_f can be non-zero."""
        return Group.of_each_layer([basis.functional_mask for basis in self.bases])

    def functional(self) -> Float[np.ndarray, "f f"]:
        """Return H_f in the coordinates of `functional_groups`."""
        return self._functional(self.functional_groups)

    def outer(self, S: Float[np.ndarray, "kr kr"]) -> Float[np.ndarray, "o o"]:
        """Return R S R^T, where J^T = Q R: H_o = J^T S J in the columns of Q."""
        R = np.asarray(np.linalg.qr(np.concatenate(self._jacobians(), axis=1).T, mode="r"))
        return R @ S @ R.T

    def outer_blocks(self, S: Float[np.ndarray, "kr kr"]) -> list[Float[np.ndarray, "_o _o"]]:
        """Return the diagonal block of H_o of each layer, where it can be non-zero."""
        return [J.T @ (S @ J) for J in self._jacobians()]

    def loss(self, S: Float[np.ndarray, "kr kr"]) -> Float[np.ndarray, "m m"]:
        """Return H_L = H_o + H_f in the coordinates of `loss_groups`."""
        J = np.concatenate(self._jacobians(), axis=1)
        H = self._functional(self.loss_groups)
        H[: J.shape[1], : J.shape[1]] += J.T @ (S @ J)
        return H

    def _jacobians(self) -> list[Float[np.ndarray, "kr _o"]]:
        """Return J by layer: column (l, a, b) is (B_l P_l)_a (x) (R_l^T U_l)_b."""
        blocks = []
        for at, basis in enumerate(self.bases):
            rows, columns = basis.outer
            left = self.layers.backward[at] @ basis.left[:, :rows]
            right = basis.right[:, :columns].T @ self.layers.forward[at]
            blocks.append(np.kron(left, right.T))
        return blocks

    @cached_property
    def _factors(self) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
        """P_l^T Z_{kl}^T R_k and R_l^T U_l Omega^T B_k P_k by (l, k), l < k."""
        U, B, bases = self.layers.forward, self.layers.backward, self.bases
        return {
            (at, k): (
                bases[at].left.T @ Z.T @ bases[k].right,
                bases[at].right.T @ (U[at] @ self.omega.T @ B[k]) @ bases[k].left,
            )
            for (k, at), Z in self.layers.middle.items()
        }

    def _functional(self, groups: Sequence[Group]) -> Float[np.ndarray, "m m"]:
        """Return H_f in the coordinates of these groups.

        The entry at (l, a, b), (k, a', b') is (Z_kl)_{b' a} (U_l Omega^T B_k)_{b a'}.
        """
        spans = _spans(groups)
        H = np.zeros((spans[-1].stop, spans[-1].stop))
        for group, rows in zip(groups, spans, strict=True):
            for other, columns in zip(groups, spans, strict=True):
                if group.layer < other.layer:
                    Z, G = self._factors[group.layer, other.layer]
                    block = Z[group.a][:, other.b]
                    block *= G[group.b][:, other.a]
                    H[rows, columns] = block
                    H[columns, rows] = block.T
        return H


def rows_by_layer(groups: Sequence[Group]) -> list[Int[np.ndarray, " _m"]]:
    """Return the rows of each layer in the matrices in the coordinates of these groups."""
    spans = _spans(groups)
    return [
        np.concatenate([np.r_[s] for s, g in zip(spans, groups, strict=True) if g.layer == layer])
        for layer in range(1 + max(group.layer for group in groups))
    ]


def _spans(groups: Sequence[Group]) -> list[slice]:
    """Return the rows of each group."""
    ends = np.cumsum([len(group.a) for group in groups]).tolist()
    return [slice(end - len(g.a), end) for end, g in zip(ends, groups, strict=True)]


def coordinate_count(dims: Sequence[int], biases: Sequence[bool], basis: InputBasis) -> int:
    """Return the largest number of coordinates of `loss_groups` for these dimensions.

    It is counted at Gaussian weights and a Gaussian Omega, at which every space has its largest
    dimension with probability one. Weights of lower rank need fewer coordinates.
    """
    rng = np.random.default_rng(0)
    shapes = list(zip(dims[1:], dims[:-1], strict=True))
    weights = [rng.standard_normal(shape) / np.sqrt(shape[1]) for shape in shapes]
    drawn = [
        rng.standard_normal(out) if bias else None
        for (out, _), bias in zip(shapes, biases, strict=True)
    ]
    layers = Layers.at(weights, drawn, basis.axes)
    omega = rng.standard_normal((dims[-1], basis.axes.shape[1]))
    return sum(len(group.a) for group in Reduction(layers, omega).loss_groups)
