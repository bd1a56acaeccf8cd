"""The command ``skexit``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skexit._version import __version__
from skexit.cli._cache import add_cache_command, printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default with the arguments of the process, and give the exit status."""
    options = _parser().parse_args(arguments)
    return options.run(options)


def _demo(options: argparse.Namespace) -> int:
    from skexit.cli._demo import run_demo

    try:
        run_demo(options.out, seed=options.seed, full=options.full, report=None if options.quiet else print)
    except ImportError as error:
        print(f"skexit demo: error: {error}", file=sys.stderr)
        return 1
    return 0


def _report(options: argparse.Namespace) -> int:
    try:
        print(_write_report(options.cache, options.policies, options.out, options.budget))
    except (ImportError, OSError, ValueError) as error:
        print(f"skexit report: error: {printable(str(error))}", file=sys.stderr)
        return 1
    return 0


def _write_report(cache_path: str, policy_paths: Sequence[str], out: str, budgets: Sequence[float]) -> Path:
    from skexit.cache import FeatureCache
    from skexit.policies._access import check_fits
    from skexit.report import write_report

    cache = FeatureCache(cache_path)
    if cache.y is None:
        raise ValueError(
            f"the cache {cache_path!r} has no labels, which a report needs. Extract into another folder, with a loader "
            "that gives (inputs, labels)."
        )
    policies = {}
    for path, name in zip(policy_paths, _names(policy_paths), strict=True):
        policies[name] = _load_policy(path)
        try:
            check_fits(policies[name], cache.X, cache.y)
        except ValueError as error:
            raise ValueError(f"{path!r} does not fit the cache {cache_path!r}: {error}") from error
    return write_report(cache.X, cache.y, policies, out, budgets=budgets, source=f"the cache {cache_path!r}")


def _load_policy(path: str) -> Any:
    import joblib

    with open(path, "rb"):  # a file that is not there is no damaged one
        pass
    try:
        return joblib.load(path)
    except Exception as error:  # whatever a damaged pickle, or one of another program, makes of it
        raise ValueError(
            f"{path!r} cannot be loaded ({type(error).__name__}: {error}); give a policy saved with joblib.dump."
        ) from error


def _names(paths: Sequence[str]) -> list[str]:
    """Names of the files without folder and ending, or the paths where these are not unique."""
    names = [Path(path).stem for path in paths]
    return names if len(set(names)) == len(names) else list(paths)


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
    demo.add_argument("--full", action="store_true", help="compare all policies")
    demo.add_argument("--quiet", action="store_true", help="print nothing")
    demo.set_defaults(run=_demo)
    report = commands.add_parser(
        "report",
        help="measure saved policies on a cache, and write an HTML page with tables and plots",
        description="Measure saved policies on a labelled cache, and write one HTML page with tables and plots. "
        "Loading a joblib file runs code that it may hold: give only files that you trust.",
    )
    report.add_argument(
        "cache", metavar="CACHE", help="folder of a cache with labels; of rows that nothing was fitted on"
    )
    report.add_argument(
        "policies",
        metavar="POLICY",
        nargs="+",
        help="file of a fitted policy, or of a pipeline that ends in one, saved with joblib.dump; only load files "
        "that you trust",
    )
    report.add_argument(
        "--budget",
        type=float,
        action="append",
        default=[],
        help="mean cost that a sample may have, as a fraction of the whole network's; may be given several times, "
        "the first for the details (default: the policies as they were saved)",
    )
    report.add_argument("--out", default="report.html", help="file to write (default: %(default)s)")
    report.set_defaults(run=_report)
    add_cache_command(commands)
    return parser
