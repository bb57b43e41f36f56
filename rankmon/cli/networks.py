"""Read the linear network that the options --residual and --tied of `rankmon predict` describe."""

import argparse
from collections.abc import Sequence

from rankmon.theory import MatrixPower, ResidualBlocks, ResidualChain, TiedAutoencoder, TiedChain
from rankmon.theory.families import NetworkFamily

TRANSPOSE = "transpose"


def whole(text: str) -> int:
    """Return a whole number.

    Raises:
      argparse.ArgumentTypeError: for any other text.
    """
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None


def whole_numbers(text: str) -> tuple[int, ...]:
    """Return whole numbers that are separated by commas, as "2,3".

    Raises:
      argparse.ArgumentTypeError: for any other text.
    """
    return tuple(whole(number) for number in text.split(","))


def repeats_or_transpose(text: str) -> int | str:
    """Return a whole number, or "transpose".

    Raises:
      argparse.ArgumentTypeError: for any other text.
    """
    return text if text == TRANSPOSE else whole(text)


def family_of(args: argparse.Namespace) -> NetworkFamily | None:
    """Return the network of --residual or --tied; None for a plain chain.

    Raises:
      ValueError: for widths or other options that do not fit.
    """
    if args.residual is None and args.tied is None:
        return None
    option = "--tied" if args.residual is None else "--residual"
    for name, given in (
        ("--bias", args.bias),
        ("--examples", args.examples is not None),
        ("--rank-true", args.rank_true is not None),
    ):
        if given:
            raise ValueError(
                f"expected no {name} with {option}, got both; leave {name} out: there is a formula "
                "only for plain chains"
            )
    widths = args.widths
    if option == "--residual":
        return _residual(widths, args.residual)
    if args.tied == TRANSPOSE:
        d, M, K = _widths(widths, "d M d", "--tied transpose, F(x) = W^T W x")
        if K != d:
            raise ValueError(
                f"expected as many outputs as inputs for --tied transpose, got {d} and {K}; write "
                f"{d} {M} {d}"
            )
        return TiedAutoencoder(d, M)
    if len(widths) == 1:
        return MatrixPower(widths[0], args.tied)
    d, M, K = _widths(widths, "d M K or the one width d", f"--tied {args.tied}")
    return TiedChain(d, M, K, args.tied)


def _residual(widths: Sequence[int], inner: tuple[int, ...]) -> NetworkFamily:
    """Return W_l + I in each layer without inner widths, and blocks x + B_l A_l x with them."""
    if not inner:
        return ResidualChain(widths)
    if len(widths) != 1:
        given = ",".join(map(str, inner))
        raise ValueError(
            f"expected one width d with --residual {given}, got {' '.join(map(str, widths))}; for "
            "W_l + I in each layer write --residual alone, after the widths"
        )
    return ResidualBlocks(widths[0], inner)


def _widths(widths: Sequence[int], expected: str, option: str) -> tuple[int, int, int]:
    if len(widths) != 3:
        raise ValueError(
            f"expected the widths {expected} with {option}, got {' '.join(map(str, widths))}; see "
            "rankmon predict --help"
        )
    d, M, K = widths
    return d, M, K
