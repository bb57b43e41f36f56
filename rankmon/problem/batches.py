"""Several probe batches of one network: the parts of one `Problem`, or several `Problem`s."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from rankmon._util.text import counted, listed
from rankmon._util.validate import as_integer
from rankmon._util.warnings import warn_user
from rankmon.problem.problem import Problem, check_problem

_REMEDY = "build all of them from one network and loss, with batches of one size"


@dataclass(frozen=True)
class Batches:
    """The probe batches of a monitor.

    Attributes:
      whole: the problem with the examples of all batches.
      each: the problem of each batch; their arrays have the same shapes.
      left_out: the number of examples of `whole` that are in no batch.
    """

    whole: Problem
    each: tuple[Problem, ...]
    left_out: int = 0

    @classmethod
    def of(cls, problem: Problem | Sequence[Problem], count: int) -> "Batches":
        """Split the examples of one problem into batches, or take each problem as a batch.

        A problem is split at random, but always in the same way, because its examples may be sorted
        by class, and because a state of a monitor belongs to the batches that it was saved with.

        Args:
          problem: one problem, or a sequence of problems of one network.
          count: the number of batches of one problem; 1 for a sequence.

        Raises:
          TypeError, ValueError: for anything else, fewer examples than batches, or problems that
            differ in more than their examples.
        """
        count = as_integer("batches", count, least=1, remedy="pass the number of probe batches")
        if isinstance(problem, Problem):
            return cls(problem, (problem,)) if count == 1 else _split(problem, count)
        if not isinstance(problem, list | tuple):
            check_problem(problem)
        if count > 1:
            raise ValueError(
                f"expected either batches= or a list of Problems, got batches={count} and "
                f"{len(problem)} Problems; omit batches="
            )
        if not problem:
            raise ValueError("expected at least one Problem, got an empty list; pass one per batch")
        for one in problem:
            check_problem(one)
        for place, one in enumerate(problem[1:], 1):
            _check_alike(problem[0], one, place)
        return cls(_joined(problem), tuple(problem))


def _split(problem: Problem, count: int) -> Batches:
    """Split the examples into disjoint batches of one size; warn if some are left out."""
    size, left_out = divmod(problem.n, count)
    if size == 0:
        raise ValueError(
            f"expected at least one example for each of {count} batches, got "
            f"{counted(problem.n, 'example')}; pass fewer batches or a larger probe batch"
        )
    # The numbers of `RandomState` are the same in all versions of NumPy.
    order = np.random.RandomState(0).permutation(problem.n)
    rows = [np.sort(order[i * size : (i + 1) * size]) for i in range(count)]
    each = tuple(_rows_of(problem, mine) for mine in rows)
    empty = [i for i, one in enumerate(each) if one.weights is not None and not one.weights.any()]
    if empty:
        raise ValueError(
            f"expected an example of positive weight in each of {count} batches, got none in "
            f"batches[{empty[0]}]; pass fewer batches, or leave out the examples of weight 0"
        )
    if left_out:
        warn_user(
            f"expected a multiple of batches={count} examples, got {problem.n}, of which "
            f"{left_out} {'is' if left_out == 1 else 'are'} left out at random; pass "
            f"{size * count} or {(size + 1) * count} examples"
        )
    return Batches(problem, each, left_out)


def _rows_of(problem: Problem, rows: np.ndarray) -> Problem:
    inputs, targets, weights = jax.tree.map(
        lambda array: array[rows], (problem.inputs, problem.targets, problem.weights)
    )
    return problem.on(inputs, targets, weights)


def _joined(problems: Sequence[Problem]) -> Problem:
    """Return a problem with the examples of all problems."""
    if len(problems) == 1:
        return problems[0]
    inputs, targets, weights = jax.tree.map(
        lambda *arrays: np.concatenate(arrays),
        *((one.inputs, one.targets, one.weights) for one in problems),
    )
    return problems[0].on(inputs, targets, weights)


def _check_alike(first: Problem, other: Problem, place: int) -> None:
    """Refuse a problem that differs from the first one in more than its examples."""
    # Lifting makes a new function of the same loss.
    same_loss = first.lift_dtype or first.loss.value is other.loss.value
    if first.loss.name != other.loss.name or not same_loss:
        raise ValueError(
            f"expected Problems with the same loss, got {first.loss.name} in problems[0] and "
            f"another function, {other.loss.name}, in problems[{place}]; {_REMEDY}"
        )
    for name in ("inputs", "targets", "weights"):
        wanted, got = _shapes(getattr(first, name)), _shapes(getattr(other, name))
        if wanted != got:
            raise ValueError(
                f"expected Problems with {name} of the same shapes and dtypes, got "
                f"{listed(wanted[1])} in problems[0] and {listed(got[1])} in problems[{place}]; "
                f"{_REMEDY}"
            )
    for name in ("include", "exclude", "lift_dtype"):
        if getattr(first, name) != getattr(other, name):
            raise ValueError(
                f"expected Problems with the same {name}=, got {getattr(first, name)} in "
                f"problems[0] and {getattr(other, name)} in problems[{place}]; {_REMEDY}"
            )


def _shapes(tree: Any) -> tuple[Any, list[str]]:
    """Return the structure of a tree, and the dtype and shape of each array."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves]
