"""The base of all commands: it prints errors, shows an example in the help, and prints text or JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
import numpy as np

#: Errors that bad input raises. Other exceptions are defects of skexit, and their traceback is shown.
_INPUT_ERRORS = (ImportError, OSError, RuntimeError, TypeError, ValueError)
_JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")


class Command(click.Command):
    """A command that prints an input error without a traceback and ends with exit status 1.

    Its callback returns ``(facts, text)``: ``--json`` prints the facts, otherwise the text is printed if it is not
    empty. `example` is a command line that the help shows.
    """

    def __init__(self, *args: Any, example: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.example = example
        _JSON_OPTION(self)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Example"):
            formatter.write(f"{'':{formatter.current_indent}}{self.example}\n")

    def invoke(self, ctx: click.Context) -> None:
        as_json = ctx.meta["as_json"] = ctx.params.pop("as_json")
        try:
            with _short_warnings(ctx.command_path):
                facts, text = super().invoke(ctx)
        except BrokenPipeError:
            raise
        except _INPUT_ERRORS as error:
            click.echo(f"{ctx.command_path}: error: {_message(error)}", err=True)
            ctx.exit(1)
        if as_json:
            click.echo(json.dumps(_plain(facts), allow_nan=False))
        elif text:
            click.echo(text)


@contextmanager
def _short_warnings(path: str) -> Iterator[None]:
    """Print warnings in the format of errors, without the line of code that raised them."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: click.echo(f"{path}: warning: {_message(message)}", err=True)
        yield


def command(group: click.Group, name: str, example: str) -> Callable[[Callable[..., Any]], Command]:
    """Add a function to a group as a command; its docstring is the help."""
    return group.command(name, cls=Command, example=example)  # type: ignore[return-value]


def json_asked() -> bool:
    """Whether the running command has the option ``--json``."""
    return bool(click.get_current_context().meta["as_json"])


def printable(text: str) -> str:
    """The text with escape sequences in place of characters that could control the terminal or move other text.

    >>> printable("\\x1b[31mnéa\\u202e")
    '\\\\x1b[31mnéa\\\\u202e'
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def aligned(facts: Mapping[str, str]) -> list[str]:
    """Lines with a name and a value each; the values are aligned."""
    width = max(map(len, facts), default=0)
    return [f"{name:{width}}  {value}" for name, value in facts.items()]


def columns(table: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table with right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in table]


def percent(fraction: float) -> str:
    """A fraction in percent, such as ``93.4 %``; an empty text for NaN."""
    return "" if np.isnan(fraction) else f"{100 * fraction:.1f} %"


def _message(error: BaseException | str) -> str:
    lines = [line for text in (str(error), *getattr(error, "__notes__", [])) for line in text.split("\n")]
    return "\n".join(map(printable, lines)) or type(error).__name__


def _plain(value: Any) -> Any:
    """The value in types that JSON has. NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float) else str(value)
