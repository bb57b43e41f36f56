"""Keep compiled programs, so that a program compiled for one monitor serves the next ones.

A kept program is used only for a program whose text, constants, arguments, options and device are
the same: the compiler would return it again. Programs that call back into Python, use more
than one device or depend on a mesh are compiled each time, because their text does not show all
that they depend on.
"""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from operator import attrgetter
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from rankmon._util.jaxpr import operations_of, programs_in

# Programs that are kept, the most recently used ones, and the characters of the longest: a network
# may close over a data set.
_MOST_PROGRAMS = 64
_MOST_CHARACTERS = 2**23

_ONE_DEVICE = ("mhlo.num_partitions = 1 ", "mhlo.num_replicas = 1 ")
_NOT_IN_THE_TEXT = re.compile(r"callback|sharding|\bsdy\.")
_ADDRESS = re.compile(r"0x[0-9a-f]+")

_default_device = attrgetter("jax_default_device")

_kept: OrderedDict[Hashable, Any] = OrderedDict()


def kept_or_compiled(
    traced: Any,
    lowered: Any,
    options: Mapping[str, Any],
    placed: Hashable,
    compile_now: Callable[[], Any],
) -> Any:
    """Return a kept program that is the same as this one, or else compile it and keep it.

    Args:
      traced: the traced program.
      lowered: the same program, lowered.
      options: compiler options.
      placed: the shardings of the arguments.
      compile_now: compiles the program.
    """
    try:
        key = _key(traced, lowered, options, placed)
        program = None if key is None else _kept.get(key)
    except Exception:  # noqa: BLE001  a program that cannot be described is not kept
        key = program = None
    if program is None:
        program = compile_now()
    if key is not None:
        _kept.pop(key, None)
        _kept[key] = program  # now the last one
        while len(_kept) > _MOST_PROGRAMS:
            _kept.popitem(last=False)
    return program


def _key(
    traced: Any, lowered: Any, options: Mapping[str, Any], placed: Hashable
) -> Hashable | None:
    """Return a key that determines the compiled program; None if that is not known."""
    text = lowered.as_text()
    if (
        len(text) > _MOST_CHARACTERS
        or not all(once in text for once in _ONE_DEVICE)
        or _NOT_IN_THE_TEXT.search(text)
        or traced.jaxpr.effects
        or not jax.sharding.get_abstract_mesh().empty
    ):
        return None
    found = hashlib.blake2b(text.encode())
    # The lowered text leaves out arguments that are not used; the jaxpr shows which these are.
    found.update(without_addresses(traced.jaxpr).encode())
    for constant in _constants(traced.jaxpr):
        found.update(np.asarray(constant).tobytes())
    key = (
        found.digest(),
        repr(jax.tree.leaves(traced.args_info)),
        jax.tree.structure(traced.args_info),
        jax.tree.structure(traced.out_info),
        tuple(sorted(options.items())),
        placed,
        _default_device(jax.config),
        jax.default_backend(),
    )
    hash(key)
    return key


def without_addresses(program: Any) -> str:
    """Return the text of a jaxpr without the addresses of objects."""
    return _ADDRESS.sub("", str(program))


def _constants(program: Any) -> Iterator[Any]:
    """Yield all arrays that a program closes over, without scalars, which its text shows."""
    yield from program.consts
    for eqn in operations_of(program):
        yield from (a.val for a in eqn.invars if isinstance(a, Literal) and np.ndim(a.val))
        for inner in programs_in(eqn):
            yield from (constant for constant in inner.consts if constant is not None)
