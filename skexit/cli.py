"""The command ``skexit``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from skexit import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : list of str, default=None
        Arguments after the command's name; those of the process by default.

    Returns
    -------
    int
        Exit status.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    from skexit.demo import run_demo

    run_demo(options.out, seed=options.seed, report=_ignore if options.quiet else print)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="skexit", description="Stop neural networks early.")
    parser.add_argument("--version", action="version", version=f"skexit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="from a torch network to a fitted exit policy, on scikit-learn's digits",
        description="Train a small CNN on scikit-learn's digits, cache its four exits, fit exit policies on the "
        "cache, and write a table and a plot of accuracy against cost. Takes less than a minute.",
    )
    demo.add_argument("--out", default="skexit-demo", help="folder for what the demo writes (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seeds data split, network and policies (default: 0)")
    demo.add_argument("--quiet", action="store_true", help="print nothing")
    return parser


def _ignore(line: str) -> None:
    """Report nothing."""


if __name__ == "__main__":
    raise SystemExit(main())
