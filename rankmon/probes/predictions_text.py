"""Texts for the card on the closed forms that apply to a network: formula, source, and status.

The symbols are those of `theory`: d = M_0, M_1, ..., M_L = K are the widths, r is the rank of the
inputs, s the rank of Omega, q = min(r, M_1, ..., K), qh = min(q, s), M = M_1 + ... + M_{L-1}. Under
cross entropy, K - 1 replaces K.
"""

from dataclasses import dataclass, replace

from rankmon import theory
from rankmon._util.facts import Fact
from rankmon._util.optional_readers import optionally
from rankmon.measure.symbols import MeasuredSymbols
from rankmon.network.activations import activation_names
from rankmon.network.recognized_stack import DenseStack
from rankmon.probes.base import Prediction
from rankmon.probes.linear_families import (
    family_facts,
    family_predictions,
    family_reservation,
)
from rankmon.problem.flat import FlatProblem
from rankmon.theory.symbols import symbols_of

_SYMBOLS = (
    "The widths are d = M_0, M_1, ..., M_L = K; M = M_1 + ... + M_{L-1}; qh = min(q, s). s is the "
    "rank of Omega at this step (0 once all eigenvalues of H_f are below a tenth of the cut); for "
    "H_f_fixed, it is the rank with the residuals of the first probe."
)
_REFERENCE = (
    "The closed forms of the network's linear counterpart (the same layers without activations) "
    "are landmarks: reference values, not claims about this network."
)
_CONDITION = "The closed forms hold if every weight has full rank, and are logged only then."


@dataclass(frozen=True)
class Claims:
    """The predictions of theory for a network's ranks, made before the first measurement.

    Attributes:
      flat: the problem.
      measured: the problem's r, and its stack of layers if the network is one.
    """

    flat: FlatProblem
    measured: MeasuredSymbols

    @property
    def network(self) -> str:
        """The kind of network and its widths; empty if the network is not a stack of layers."""
        stack, family = self.measured.stack, self.measured.family
        if family is not None:
            return f"linear network ({family.family.name})"
        if stack is None:
            return ""
        kind = "deep linear network" if stack.linear else "stack of dense layers"
        return f"{kind} {widths_text(stack)}"

    @property
    def facts(self) -> list[Fact]:
        """Facts on the layers, r and q."""
        measured, stack = self.measured, self.measured.stack
        facts = family_facts(measured) if stack is None else self._layers(stack)
        if measured.inputs is not None:
            shown = (
                ""
                if measured.visible == measured.r
                else f"; {measured.visible} for H_o, which depends on the squares of the inputs"
            )
            of = "(X, 1) minus 1" if stack is not None and stack.bias else "the inputs X"
            cut = "with a cut relative to their norm"
            facts.append(Fact("r", f"{measured.r}: the rank of {of}, {cut}{shown}"))
        if (q := self.bottleneck) is not None:
            last = "K - 1 (cross entropy)" if measured.loss == "cross_entropy" else "K"
            facts.append(
                Fact("q", f"{q}: the bottleneck, the minimum of r, the hidden widths and {last}")
            )
        return facts

    @property
    def bottleneck(self) -> int | None:
        """The bottleneck q; None if the network is not a stack or the loss is not a named one."""
        measured, stack = self.measured, self.measured.stack
        if stack is None or measured.loss is None:
            return None
        return symbols_of(stack.dims, measured.r, None, bool(stack.bias), measured.loss).q

    def _layers(self, stack: DenseStack) -> list[Fact]:
        """Return the facts about a stack's widths, biases and activations."""
        having = {True: "in every layer", False: "none", None: "in some layers"}
        facts = [Fact("widths", widths_text(stack)), Fact("biases", having[stack.bias])]
        if stack.linear:
            return [*facts, Fact("activations", "none")]
        names = optionally(
            self.flat.problem,
            "the activations' names",
            lambda: activation_names(self.flat),
            otherwise=(),
        )
        if not names:
            return facts
        listed = ", ".join(names)
        return [*facts, Fact("activations", f"{listed} (as the network's jaxpr names them)")]

    @property
    def predictions(self) -> list[Prediction]:
        """The closed forms at r and s, and upper bounds for stacks that are not linear."""
        measured, stack = self.measured, self.measured.stack
        if measured.family is not None:
            return family_predictions(measured)
        if stack is None or measured.loss is None:
            return []
        bounds = [] if stack.linear else self._bounds(stack, measured.loss)
        if stack.bias is None:
            return bounds
        forms = _closed_forms(len(stack.dims) - 1, with_bias=stack.bias)
        if not stack.linear:
            forms = [_as_landmark(form) for form in forms]
        omega = Prediction("Omega (s)", "rank/Omega", "E[delta x^T]", "measured")
        return [omega, *forms, *bounds]

    def _bounds(self, stack: DenseStack, loss: str) -> list[Prediction]:
        """Return an upper bound on the rank of H_L, if it is below p and thus informative."""
        if stack.layers[-1].activated:
            return []
        n = int((self.flat.weights > 0).sum())
        bound = theory.rank_loss_bound(stack.dims, n=n, loss=loss)
        if bound >= self.flat.p:
            return []
        source = "theory.rank_loss_bound: an upper bound for any activations"
        return [Prediction("H_L at most", bound, "n (K + 2 M)", source)]

    @property
    def reservation(self) -> str:
        """The limits of the predictions, or the reason why there are none."""
        measured, stack = self.measured, self.measured.stack
        if measured.family is not None:
            return family_reservation(measured)
        if stack is None:
            return (
                "No closed form applies: the network is not recognized as a stack of dense layers, "
                "or as a residual, tied or convolutional linear network, that computes in float64 "
                "with every parameter differentiated."
            )
        if measured.loss is None:
            return "No closed form applies: the loss is a user-defined function."
        if stack.bias is None:
            return "No closed form applies: only some layers have a bias."
        outputs = " Under cross entropy, K - 1 replaces K." * (measured.loss == "cross_entropy")
        return f"{_CONDITION if stack.linear else _REFERENCE} {_SYMBOLS}{outputs}"


def _as_landmark(form: Prediction) -> Prediction:
    """Return the closed form of a linear network as a reference value for another one."""
    tag = str(form.rank).replace("rank_theory/", "rank_landmark/")
    return replace(form, quantity=f"{form.quantity}, linear counterpart", rank=tag)


def widths_text(stack: DenseStack) -> str:
    """Return the widths as d-M_1-...-K."""
    return "-".join(map(str, stack.dims))


def _closed_forms(depth: int, *, with_bias: bool) -> list[Prediction]:
    """Return formula and source of each part's rank, for a stack with or without biases."""
    if depth == 1:
        source = "a single layer is linear in its parameters"
        of_functional, of_loss = ("0", source), ("equal to H_o's", source)
    elif with_bias:
        of_functional = (
            "the sum over the layers of theory.rank_functional_columns",
            "theory.rank_functional: section S7, extended to bottlenecks; proved in docs/theory.md",
        )
        of_loss = (
            "rank H_o + rank H_f - qh (2 s - qh - 1)",
            "theory.rank_loss: section S7, extended; proved for mse in docs/theory.md",
        )
    else:
        of_functional = (
            "2 qh M + 2 qh s - L qh^2",
            "theory.rank_functional: Theorem 5, Corollary 6; proved in docs/theory.md",
        )
        of_loss = (
            "rank H_o + rank H_f - qh (2 s - qh)",
            "theory.rank_loss: the paper's formula for s >= q, extended to any s; proved for "
            "mse in docs/theory.md",
        )
    of_outer = (
        ("q (r + K - q) + K", "theory.rank_outer: Theorem 12; proved in docs/theory.md")
        if with_bias
        else ("q (r + K - q)", "theory.rank_outer: Theorem 3, Corollary 4")
    )
    forms = {"H_L": of_loss, "H_o": of_outer, "H_f": of_functional, "H_f_fixed": of_functional}
    return [Prediction(part, f"rank_theory/{part}", *form) for part, form in forms.items()]
