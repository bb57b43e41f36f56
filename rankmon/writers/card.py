"""A run's card: a Markdown page on the network, the probes, predictions and curves.

The card explains the curves that the run has logged so far, with the texts of `legend`. A record
with a new curve gets a new card.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from rankmon._util import markdown
from rankmon._util.facts import Fact
from rankmon._util.hparams import Hparam
from rankmon._util.tags import CARD
from rankmon._util.text import counted, listed
from rankmon.probes.base import Description, Prediction
from rankmon.problem.flat import FlatProblem
from rankmon.problem.pytree import LeafSpec
from rankmon.writers.legend import HEADER, LEGEND, OVER_SEEDS

_SEEDS_SUFFIXES = ("/median", "/low", "/high")


class Explained:
    """The curves that a run has logged so far, as rows of the legend."""

    def __init__(self) -> None:
        self._tags: set[str] = set()
        self._entries: set[int] = set()
        self._own: dict[str, None] = {}

    def grows(self, tags: Iterable[str]) -> bool:
        """Add these tags, and return whether this adds rows to the table."""
        before = len(self._entries) + len(self._own)
        for tag in tags:
            if tag not in self._tags:
                self._tags.add(tag)
                self._take(tag)
        return len(self._entries) + len(self._own) > before

    def _take(self, tag: str) -> None:
        """Add the rows that explain a tag; a tag that is not in the legend gets a new row."""
        found = [place for place, entry in enumerate(LEGEND) if entry.explains(tag)]
        self._entries.update(found)
        if not found:
            first, slash, _ = tag.partition("/")
            self._own[f"{first}/…" if slash else tag] = None

    def table(self) -> str:
        """Return the rows as a Markdown table, with the rows of the legend first."""
        own = "logged by your code or your own probe"
        rows = [LEGEND[place].row for place in sorted(self._entries)]
        rows += [(markdown.code(tag), "user-defined", own) for tag in self._own]
        return markdown.table(HEADER, rows)


class Card:
    """One run's card.

    Args:
      facts: the facts that do not depend on the parameters; the last rows of the card's table.
    """

    def __init__(self, facts: Sequence[Fact] = ()) -> None:
        self._facts = facts
        self._flat: FlatProblem | None = None
        self._descriptions: Mapping[str, Description] = {}
        self._inapplicable: Mapping[str, str] = {}
        self._explained = Explained()
        self._is_shown = False

    def describe(
        self,
        flat: FlatProblem,
        descriptions: Mapping[str, Description],
        inapplicable: Mapping[str, str],
    ) -> None:
        """Set the parts of the card that depend on the parameters.

        Args:
          flat: the problem.
          descriptions: the descriptions of the probes, by name.
          inapplicable: the probes that are left out, by name, and the reasons.
        """
        self._flat, self._descriptions, self._is_shown = flat, descriptions, False
        self._inapplicable = inapplicable

    def begin(self) -> None:
        """Begin an attempt; its first record gets a new card."""
        self._explained, self._is_shown = Explained(), False

    def page(self, step: int, scalars: Mapping[str, float], others: Iterable[str]) -> str | None:
        """Return the card for a record, or None if the last card is still up to date.

        Args:
          step: the step of the record.
          scalars: the scalars of the record.
          others: the tags of its arrays and texts.
        """
        grown = self._explained.grows([*scalars, *others, CARD])
        if self._is_shown and not grown:
            return None
        self._is_shown = True
        parts = [
            f"### {markdown.escaped(self._title)}",
            self._introduction,
            markdown.table(("fact", "value"), list(map(_fact_row, self._all_facts))),
            *self._predicted(step, scalars),
            "#### What each curve of this run means",
            self._explained.table(),
        ]
        return "\n\n".join(parts)

    @property
    def hparams(self) -> dict[str, Hparam]:
        """The facts by which runs may be compared."""
        if self._flat is None:
            return {}
        hparams: dict[str, Hparam] = {
            "loss": self._flat.problem.loss.name,
            "parameters": sum(spec.size for spec in self._flat.specs if spec.is_trainable),
            "examples": self._flat.problem.n,
            "outputs": self._flat.k,
        }
        for description in self._descriptions.values():
            hparams |= description.hparams
        return hparams

    @property
    def _title(self) -> str:
        known = [d.network for d in self._descriptions.values() if d.network]
        return f"Ranks of a {known[0] if known else 'network'} while it trains"

    @property
    def _introduction(self) -> str:
        if self._flat is None:
            return "The values are reported from inside compiled code."
        names = ", ".join(map(markdown.code, self._descriptions))
        return f"Probes: {names}. They measure copies of the parameters on fixed examples."

    @property
    def _all_facts(self) -> list[Fact]:
        known = [] if self._flat is None else _facts_of(self._flat)
        described = [fact for d in self._descriptions.values() for fact in d.facts]
        left_out = [Fact(f"without {name}", why) for name, why in self._inapplicable.items()]
        return [*known, *described, *left_out, *self._facts]

    def _predicted(self, step: int, scalars: Mapping[str, float]) -> list[str]:
        """Return the section on predicted ranks; empty if no probe predicts any."""
        described = self._descriptions.values()
        predictions = [one for description in described for one in description.predictions]
        reservations = [d.reservation for d in described if d.reservation]
        if not (predictions or reservations):
            return []
        rows = [_prediction_row(one, scalars) for one in predictions]
        header = ("matrix", "rank", "formula", "source")
        return [
            f"#### Predicted ranks, at step {step}",
            *map(markdown.escaped, reservations),
            *([markdown.table(header, rows)] if rows else []),
        ]


class MedianCard:
    """The card for the medians over several seeds.

    Args:
      seeds: the number of seeds.
    """

    def __init__(self, seeds: int) -> None:
        self._seeds = seeds
        self._explained = Explained()

    def begin(self) -> None:
        """Begin an attempt; its first record gets a new card."""
        self._explained = Explained()

    def page(self, tags: Iterable[str]) -> str | None:
        """Return the card for a record, or None if the last card is still up to date.

        Args:
          tags: the tags of the record: <tag>/median, <tag>/low and <tag>/high.
        """
        if not self._explained.grows([*map(_without_suffix, tags), CARD]):
            return None
        return "\n\n".join(
            [
                f"### Median over {counted(self._seeds, 'seed')}, and its range",
                f"The median and range of each curve in the runs `seed_0` to "
                f"`seed_{self._seeds - 1}`. Their cards describe the measurements. Custom Scalars "
                "shows the median, with the range as a band.",
                markdown.table(HEADER, [OVER_SEEDS.row]),
                "#### What each curve means, by its tag in the runs of the seeds",
                self._explained.table(),
            ]
        )


def _without_suffix(tag: str) -> str:
    return next((tag.removesuffix(s) for s in _SEEDS_SUFFIXES if tag.endswith(s)), tag)


def _facts_of(flat: FlatProblem) -> list[Fact]:
    """Return the facts about the problem: parameters, dtypes, probe batch, outputs and loss."""
    problem = flat.problem
    trained = [spec for spec in flat.specs if spec.is_trainable]
    others = [spec for spec in flat.specs if not spec.is_trainable]
    dtypes = dict.fromkeys(str(spec.dtype) for spec in trained)
    weighted = "" if problem.weights is None else ", weighted"
    positions = "" if flat.positions == problem.n else f", {flat.positions:,} positions in all"
    return [
        Fact("parameters", _arrays_text(trained)),
        *([Fact("variables beside them", _arrays_text(others))] if others else []),
        Fact("training dtype", ", ".join(dtypes)),
        Fact("n", f"{counted(problem.n, 'example')} in the probe batch{positions}{weighted}"),
        Fact("k", counted(flat.k, "output")),
        Fact("loss", f"{problem.loss.name}, mean over the probe batch"),
    ]


def _arrays_text(specs: Sequence[LeafSpec]) -> str:
    """Return the number of entries, and names and shapes of the arrays."""
    arrays = [f"{spec.name} {'x'.join(map(str, spec.shape)) or 'scalar'}" for spec in specs]
    return f"{sum(spec.size for spec in specs):,}: {listed(arrays)}"


def _fact_row(fact: Fact) -> tuple[str, str]:
    return markdown.escaped(fact.name), markdown.escaped(fact.text)


def _prediction_row(
    prediction: Prediction, scalars: Mapping[str, float]
) -> tuple[str, str, str, str]:
    """Return the row of a prediction in the card's table, with its value at this step."""
    rank = prediction.rank
    number = scalars.get(rank, math.nan) if isinstance(rank, str) else rank
    # A median over an even number of batches may be half of an odd number.
    shown = f"{number:.1f}".removesuffix(".0") if math.isfinite(number) else "none at this step"
    texts = (prediction.quantity, shown, prediction.formula, prediction.source)
    quantity, count, formula, source = map(markdown.escaped, texts)
    return quantity, f"**{count}**", formula, source
