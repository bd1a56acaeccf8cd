"""Pieces of HTML. These functions escape all text."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from skexit.utils._optional import import_pyplot

#: Dots per inch of the pictures; they are sharp on screens with two dots per pixel, too.
_DPI = 192
#: Width of the pictures in inches; narrow, so that letters are readable on a phone.
_WIDTH = 5
#: Largest number of columns of a table that fits on a phone.
_MOST_COLUMNS = 3


def page(title: str, sections: Sequence[str]) -> str:
    """A page with these sections."""
    template = files("skexit.report").joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(title=escape(title), body="\n".join(sections))


def heading(text: str) -> str:
    """The heading of a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, kind: str = "text") -> str:
    """A paragraph; the kind is a class of the template's style."""
    return f'<p class="{kind}">{_prose(text)}</p>'


def answer(statement: str, details: str) -> str:
    """A statement in bold, and its details."""
    return f'<div class="answer"><p><strong>{_prose(statement)}</strong></p><p>{_prose(details)}</p></div>'


def choice(name: str, options: Sequence[tuple[str, str]], selected: int) -> str:
    """Labels of which the reader selects one, and the HTML of the selected option; without a script.

    The style shows the part that follows the label of the checked button, and lines up the labels above it.
    """
    pieces = []
    for index, (label, content) in enumerate(options):
        checked = " checked" if index == selected else ""
        pieces.append(
            f'<input type="radio" name="{escape(name)}" id="{escape(name)}-{index}"{checked}>'
            f'<label for="{escape(name)}-{index}">{escape(label)}</label><div class="selected">{content}</div>'
        )
    return f'<div class="choice" role="radiogroup" aria-label="{escape(name)}">\n' + "\n".join(pieces) + "\n</div>"


def folded(summary: str, content: str) -> str:
    """HTML that is folded until the reader opens it."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def definitions(entries: Mapping[str, str], kind: str = "text") -> str:
    """Terms and their texts; the kind is a class of the template's style."""
    items = "\n".join(f"<div><dt>{escape(term)}</dt><dd>{escape(text)}</dd></div>" for term, text in entries.items())
    return f'<dl class="{kind}">\n{items}\n</dl>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], kinds: Sequence[str] | None = None) -> str:
    """A table; the kind of a row is a class of the template's style."""
    kinds = [""] * len(rows) if kinds is None else kinds
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    # On a narrow screen each row is a card, where the style writes the name of the column beside the cell.
    body = "\n".join(
        f'<tr class="{kind}">'
        + "".join(
            f'<td data-column="{escape(name)}">{escape(cell)}</td>' for name, cell in zip(columns, row, strict=True)
        )
        + "</tr>"
        for row, kind in zip(rows, kinds, strict=True)
    )
    layout = "" if len(columns) <= _MOST_COLUMNS else ' class="cards"'
    return (
        f'<div class="wide"><table{layout}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    )


def picture(display: Any, description: str) -> str:
    """The figure of a display as a PNG image within the page; the figure is closed."""
    content = io.BytesIO()
    display.figure_.set_size_inches(_WIDTH, display.figure_.get_size_inches()[1])
    display.figure_.savefig(content, format="png", dpi=_DPI)
    import_pyplot().close(display.figure_)
    data = base64.b64encode(content.getvalue()).decode("ascii")
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'


def plot_text(name: str) -> str:
    """A name for matplotlib: dollar signs start no formula, and a leading underscore does not hide it in a legend."""
    text = name.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _prose(text: str) -> str:
    """Escaped text, with each percent sign on the same line as its number."""
    return escape(text).replace(" %", "&nbsp;%")
