"""The command ``skexit``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from skexit._version import __version__
from skexit.cli._cache import cache
from skexit.cli._commands import command, json_asked
from skexit.cli._files import QUIET, SEED, out_option
from skexit.cli._network import add_network_commands
from skexit.cli._policies import add_policy_commands
from skexit.cli._results import add_result_commands


class _InOrder(click.Group):
    """A group that lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="skexit", message="%(prog)s %(version)s")
def skexit() -> None:
    """Stop neural networks early.

    First extract the outputs of a network's exits into a cache. Then fit, compare and export policies on the cache.
    Each command has the option --json for programs. Exit status: 0 is success, 1 an error in the input, 2 a wrong
    command line.
    """


add_network_commands(skexit)
add_policy_commands(skexit)
add_result_commands(skexit)
skexit.add_command(cache)


@command(skexit, "demo", "skexit demo --out skexit-demo")
@out_option("skexit-demo", "Folder to write to.")
@SEED
@click.option("--full", is_flag=True, help="Compare all policies.")
@QUIET
def _demo(out: str, seed: int, full: bool, quiet: bool) -> Any:
    """Train a small network on scikit-learn's digits, and stop it early.

    The demo caches the exits of the network, fits exit policies, and writes a table, a plot and a report. It takes one
    to two minutes on two cores.
    """
    from skexit.cli._demo import run_demo

    results = run_demo(out, seed=seed, full=full, report=None if quiet or json_asked() else print)
    return {"out": out, "results": results.to_dict("records")}, ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default with the arguments of the process, and return the exit status."""
    try:
        return skexit.main(arguments, prog_name="skexit", standalone_mode=False) or 0
    except click.ClickException as error:  # a wrong command line
        error.show()
        return error.exit_code
    except click.Abort:  # Ctrl-C
        return 130
