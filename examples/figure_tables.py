"""Compare measured with predicted ranks: the table and verdict of the supplement's rank sweeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from figure_plots import THREE
from plotting import check
from rankmon import NumericalRank, Record
from rankmon.linalg.numerical_rank import numerical_rank

WAYS = ("", "_autodiff")


def ranks_at_own_cuts(
    spectra: Mapping[str, Float[np.ndarray, " p"]],
) -> dict[str, NumericalRank]:
    """Return the rank of each part X of the Hessian above p * eps * ||X||_2, as in `matrix_rank`.

    At initialization no part vanishes, and the smallest eigenvalues of H_f can lie below rankmon's
    default cut, which is relative to the norm of H_L for all parts.
    """
    eps = np.finfo(np.float64).eps
    return {
        part: numerical_rank(np.abs(values), values.size * eps * np.abs(values).max())
        for part, values in spectra.items()
    }


@dataclass(frozen=True)
class Verdict:
    """The numbers of predicted ranks that were measured, or not.

    Attributes:
        ranks: predictions that were compared.
        exact: those that equal every engine's count.
        interval: those that differ from some count, but lie in every engine's [low, high].
        mismatches: those outside some engine's [low, high].
        outside: predictions not compared, because a weight lacks full rank (Assumption A1).
        few: those compared for inputs that do not span all dimensions, r < d.
    """

    ranks: int = 0
    exact: int = 0
    interval: int = 0
    mismatches: int = 0
    outside: int = 0
    few: int = 0

    def __add__(self, other: "Verdict") -> "Verdict":
        mine, theirs = vars(self), vars(other)
        return Verdict(**{name: mine[name] + theirs[name] for name in mine})


def rank_verdict(records: Sequence[Record]) -> Verdict:
    """Compare the predictions of a run with the ranks of every part by both engines."""
    return sum((_of_one(r.scalars, part) for r in records for part in THREE), Verdict())


def _of_one(scalars: Mapping[str, float], part: str) -> Verdict:
    if not scalars["full_rank"]:
        return Verdict(outside=1)
    predicted = scalars[f"rank_theory/{part}"]
    counts = [scalars[f"rank{way}/{part}"] for way in WAYS]
    margins = [(scalars[f"rank_low{w}/{part}"], scalars[f"rank_high{w}/{part}"]) for w in WAYS]
    exact = all(count == predicted for count in counts)
    inside = all(low <= predicted <= high for low, high in margins)
    return Verdict(
        ranks=1,
        exact=int(exact),
        interval=int(inside and not exact),
        mismatches=int(not inside),
        few=int(scalars["r"] < scalars["d"]),
    )


def report(runs: Mapping[tuple[str, str], Sequence[Record]], folder: Path) -> None:
    """Print and save every point and the verdicts; exit with an error if there is a mismatch.

    Args:
        runs: records by figure and panel.
        folder: the folder in which to save the table.
    """
    verdicts: dict[str, Verdict] = {}
    for (figure, _), records in runs.items():
        verdicts[figure] = verdicts.get(figure, Verdict()) + rank_verdict(records)
    total = sum(verdicts.values(), Verdict())
    points = [_point(*key, record) for key, records in runs.items() for record in records]
    text = "\n".join([*_heading(), *points, "", *_verdict_lines(verdicts | {"all": total})])
    print(f"\n{text}\n")
    (folder / "table.txt").write_text(text + "\n")
    claim = f"predicted ranks are measured: {total.mismatches} mismatches of {total.ranks}"
    check({claim: total.ranks > 0 and not total.mismatches})


def _heading() -> list[str]:
    parts = "".join(f"{part + ': theory, reduced, autodiff':>32}" for part in THREE)
    return [f"{'':6}{'':9}{'':5}{'p':>6}{'r':>4}{'s':>4}{parts}"]


def _point(figure: str, panel: str, record: Record) -> str:
    scalars = record.scalars
    p, r, s = (int(scalars[tag]) for tag in ("p", "r", "rank/Omega"))
    line = f"{figure:6}{panel:9}{record.step:5}{p:6}{r:4}{s:4}"
    for part in THREE:
        verdict = _of_one(scalars, part)
        mark = "!" if verdict.mismatches else "~" if verdict.interval else " "
        counts = (scalars[f"{tag}/{part}"] for tag in ("rank_theory", "rank", "rank_autodiff"))
        line += f"{'':8}" + "".join(f"{count:8g}" for count in counts) + mark
    return line + ("  r < d" if r < scalars["d"] else "")


def _verdict_lines(verdicts: Mapping[str, Verdict]) -> list[str]:
    names = list(vars(Verdict()))
    rows = [
        f"{figure:6}" + "".join(f"{vars(verdict)[name]:12}" for name in names)
        for figure, verdict in verdicts.items()
    ]
    return [f"{'':6}" + "".join(f"{name:>12}" for name in names), *rows]
