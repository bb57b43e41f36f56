"""Lines of text about a run or an installation: facts for a run's card, findings of the doctor."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

# The fact that says which parameters the Hessian is of, which reports read back from a card.
HESSIAN_OF = "Hessian of"


class Fact(NamedTuple):
    """A line of a run's card, in plain text."""

    name: str
    text: str


@dataclass(frozen=True)
class Finding:
    """The result of one check of `rankmon doctor`.

    Attributes:
      name: the thing that was checked.
      status: "ok"; "missing" if rankmon can do without it; "broken" if it cannot.
      detail: the observation.
      remedy: the advice; empty if the status is "ok".
    """

    name: str
    status: Literal["ok", "missing", "broken"]
    detail: str
    remedy: str = ""
