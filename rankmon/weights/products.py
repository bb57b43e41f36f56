"""Pairs of kernels whose product is measured as one more weight, as in low-rank adapters."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rankmon._util.tags import made_unique
from rankmon.network.matrix_views import MatrixView
from rankmon.problem.pytree import LeafSpec
from rankmon.weights.factors import Weight

# A name -> patterns of the first and of the second factor; or the adapters of NNX.
Products = Mapping[str, tuple[str, str]] | str
AUTO = "auto"

# `nnx.LoRA` computes x @ lora_a @ lora_b, and `nnx.LoRALinear` contains one.
_NNX = {"lora": ("lora_a", "lora_b")}
_WILDCARDS = {"*": "(.*)", "?": "(.)"}

_Views = dict[int, list[MatrixView]]


def check_products(products: Any) -> None:
    """Refuse anything but None, "auto" and a mapping of names to pairs of patterns.

    Raises:
      TypeError: for another type.
      ValueError: for a string other than "auto".
    """
    remedy = (
        'write {"lora": ("lora_a", "lora_b")}, two endings of names or globs in the order of the '
        'product, or "auto" for the adapters of NNX'
    )
    if products is None or products == AUTO:
        return
    if isinstance(products, str):
        raise ValueError(f"expected products to be a dict or 'auto', got {products!r}; {remedy}")
    if not isinstance(products, Mapping):
        kind = type(products).__name__
        raise TypeError(f"expected products to be a dict or 'auto', got {kind}; {remedy}")
    for name, pair in products.items():
        is_pair = isinstance(pair, tuple | list) and len(pair) == 2
        if not (is_pair and all(isinstance(one, str) and one for one in (name, *pair))):
            raise TypeError(
                f"expected products to pair a name with two patterns, got {name!r}: {pair!r}; "
                f"{remedy}"
            )


def paired_weights(
    specs: Sequence[LeafSpec],
    matrices: Sequence[tuple[int, MatrixView]],
    products: Products | None,
) -> list[Weight]:
    """Return the products of two kernels.

    Args:
      specs: the specs of all leaves.
      matrices: all matrices, without those of heads, with the indices of their leaves.
      products: as for `WeightsProbe`.

    Raises:
      ValueError: if a pattern matches no matrix, a matrix has no partner, or two matrices cannot
        be multiplied.
    """
    views: _Views = {}
    for index, view in matrices:
        views.setdefault(index, []).append(view)
    names = {index: specs[index].name for index in views}
    found: list[Weight] = []
    given = _NNX if isinstance(products, str) else products or {}
    for key, pair in given.items():
        for first, second in _partners(key, pair, names, strict=products != AUTO):
            if products == AUTO and not _chain(views, first, second):
                continue
            _check(key, names, views, first, second)
            name = _joined(key, names[first], names[second])
            for one, other in zip(views[first], views[second], strict=True):
                layer = "/".join([name, *map(str, one.place)])
                found.append(Weight(layer, ((first, one), (second, other))))
    taken = [*names.values(), *(view.name for _, view in matrices)]
    unique = made_unique([weight.name for weight in found], taken=taken)
    return [Weight(name, weight.parts) for name, weight in zip(unique, found, strict=True)]


def _partners(
    key: str, pair: tuple[str, str], names: Mapping[int, str], *, strict: bool
) -> list[tuple[int, int]]:
    """Return the leaves that a pair of patterns matches with the same text for the wildcards.

    Args:
      key: the name of the product.
      pair: the patterns.
      names: the names of the leaves by their indices.
      strict: whether to refuse a pattern that matches nothing, and leaves without a partner.
    """
    first, second = (_matched(pattern, names) for pattern in pair)
    for pattern, matched in zip(pair, (first, second), strict=True):
        if strict and not matched:
            raise ValueError(
                f"expected the pattern {pattern!r} in products[{key!r}] to match a matrix, got "
                f"none among {list(names.values())}; correct the pattern (a glob over these "
                "names, or the ending of a name after a slash)"
            )
    alone = [names[index] for text, index in first.items() if text not in second]
    alone += [names[index] for text, index in second.items() if text not in first]
    if strict and alone:
        raise ValueError(
            f"expected a partner for each matrix that products[{key!r}] = {pair} matches, got "
            f"none for {alone}; partners have the same text in place of the wildcards, or before "
            "the endings"
        )
    return [(index, second[text]) for text, index in first.items() if text in second]


def _matched(pattern: str, names: Mapping[int, str]) -> dict[tuple[str | None, ...], int]:
    """Return the leaves that match, by the text in place of the wildcards or before the ending."""
    is_ending = not any(wildcard in pattern for wildcard in _WILDCARDS)
    escaped = "".join(_WILDCARDS.get(character, re.escape(character)) for character in pattern)
    regex = re.compile(f"(?:(.*)/)?{escaped}" if is_ending else escaped, re.DOTALL)
    found = {index: regex.fullmatch(name) for index, name in names.items()}
    return {match.groups(): index for index, match in found.items() if match is not None}


def _joined(key: str, first: str, second: str) -> str:
    """Return the name of a product: the key in place of what differs in the factors' names."""
    one, other = first.split("/"), second.split("/")
    before = _common(one, other)
    after = _common(one[len(before) :][::-1], other[len(before) :][::-1])[::-1]
    own = [] if before[-1:] == [key] else [key]  # "lora" for "lora/lora_a" and "lora/lora_b"
    return "/".join([*before, *own, *after])


def _common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """Return the longest common beginning."""
    same = [a == b for a, b in zip(one, other, strict=False)]
    return list(one[: [*same, False].index(False)])


def _chain(views: _Views, first: int, second: int) -> bool:
    """Return whether the matrices of two leaves can be multiplied, one pair for each layer."""
    places = [[view.place for view in views[index]] for index in (first, second)]
    inner = views[first][0].shape[1], views[second][0].shape[0]
    return places[0] == places[1] and inner[0] == inner[1]


def _check(key: str, names: Mapping[int, str], views: _Views, first: int, second: int) -> None:
    """Refuse two leaves whose matrices cannot be multiplied."""
    if _chain(views, first, second):
        return
    got = " and ".join(
        f"{names[index]} {list(views[index][0].shape)}"
        + (f" x {len(views[index])} layers" if len(views[index]) > 1 else "")
        for index in (first, second)
    )
    swap = "swap the two" if _chain(views, second, first) else "pair other matrices"
    raise ValueError(
        f"expected products[{key!r}] to be two matrices [m, r] and [r, n] in the order of their "
        f"product, got {got}; {swap}"
    )
