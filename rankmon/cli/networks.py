"""Read the network that the options --residual, --tied and --conv of `rankmon predict` describe."""

import argparse
from collections.abc import Sequence
from math import inf, nan

from rankmon.theory import (
    Convolutional,
    MatrixPower,
    ResidualBlocks,
    ResidualChain,
    TiedAutoencoder,
    TiedChain,
)
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


def seconds(text: str) -> float:
    """Return a positive number of seconds.

    Raises:
      argparse.ArgumentTypeError: for any other text.
    """
    try:
        number = float(text)
    except ValueError:
        number = nan
    if not 0 < number < inf:
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text!r}")
    return number


def whole_numbers(text: str) -> tuple[int, ...]:
    """Return whole numbers that are separated by commas, as "2,3".

    Raises:
      argparse.ArgumentTypeError: for any other text.
    """
    return tuple(whole(number) for number in text.split(","))


def channels(text: str) -> tuple[int, ...]:
    """Return whole numbers that are separated by the letter x, as "5x3x2".

    Raises:
      argparse.ArgumentTypeError: for any other text.
    """
    return tuple(whole(number) for number in text.split("x"))


def repeats_or_transpose(text: str) -> int | str:
    """Return a whole number, or "transpose".

    Raises:
      argparse.ArgumentTypeError: for any other text.
    """
    return text if text == TRANSPOSE else whole(text)


def family_of(args: argparse.Namespace) -> NetworkFamily | None:
    """Return the network of --residual, --tied or --conv; None for a plain chain.

    Raises:
      ValueError: for widths or other options that do not fit.
    """
    named = {"--residual": args.residual, "--tied": args.tied, "--conv": args.conv}
    option = next((name for name, given in named.items() if given is not None), None)
    if option != "--conv":
        for name in ("kernels", "length", "padding"):
            if getattr(args, name) is not None:
                raise ValueError(
                    f"expected --conv with --{name}, got --{name} alone; give the channels, as "
                    "--conv 5x3x2"
                )
        if not args.widths:
            raise ValueError(
                "expected the widths of the layers, got none; write them from the inputs to the "
                "outputs, for instance rankmon predict 8 6 3"
            )
    if option is None:
        return None
    for name, given in (
        ("--bias", args.bias),
        ("--examples", args.examples is not None),
        ("--rank-true", args.rank_true is not None),
    ):
        if given:
            raise ValueError(
                f"expected no {name} with {option}, got both; leave out {name}, for which only "
                "plain chains have formulas"
            )
    widths = args.widths
    if option == "--conv":
        return _convolutional(args)
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


def _convolutional(args: argparse.Namespace) -> Convolutional:
    if args.widths:
        raise ValueError(
            f"expected no widths with --conv, got {' '.join(map(str, args.widths))}; leave "
            "them out, since --conv has the channels"
        )
    if args.kernels is None:
        raise ValueError(
            "expected --kernels with --conv, got none; give the number of taps of each layer, as "
            "--kernels 3,3"
        )
    # One more than the receptive field: two positions of the output, without wrapping around.
    shortest = max(sum(args.kernels) - len(args.kernels) + 2, 1)
    length = shortest if args.length is None else args.length
    return Convolutional(args.conv, args.kernels, length, padding=args.padding or "valid")


def _widths(widths: Sequence[int], expected: str, option: str) -> tuple[int, int, int]:
    if len(widths) != 3:
        raise ValueError(
            f"expected the widths {expected} with {option}, got {' '.join(map(str, widths))}; pass "
            "these, or leave out the option for a plain chain"
        )
    d, M, K = widths
    return d, M, K
