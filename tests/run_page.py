"""Run the Python of one page of the documentation from top to bottom, as a reader who pastes it into a new interpreter.

``python run_page.py PAGE`` ends with status 1 if a block fails or an example prints something else. Blocks after a
comment ``.. not run: REASON`` are left out; with ``--examples``, all blocks are.
"""

import contextlib
import doctest
import io
import re
import sys
import textwrap
from pathlib import Path

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
#: Blocks of Python, in reStructuredText and in Markdown.
BLOCK = re.compile(
    r"(?P<left_out>^ *\.\. not run: [^\n]+\n\n)?"
    r"(?:^(?P<indent> *)\.\. code-block:: python\n\n(?P<code>(?:(?P=indent)   [^\n]*\n|[ ]*\n)+)"
    r"|^```python\n(?P<fenced>.*?)^```)",
    re.MULTILINE | re.DOTALL,
)


def examples_of(page, with_blocks=True):
    """The examples and code blocks of a page, in its order; a block is an example that prints nothing."""
    text = page.read_text(encoding="utf-8")
    examples = doctest.DocTestParser().get_examples(text)
    for block in BLOCK.finditer(text) if with_blocks else ():
        if block["left_out"] is None:
            code = textwrap.dedent(block["code"] or block["fenced"])
            line = text.count("\n", 0, block.start())
            examples.append(doctest.Example(f"run_block({code!r})\n", "", lineno=line))
    return sorted(examples, key=lambda example: example.lineno)


def main(page, with_blocks):
    names = {"__name__": "__main__"}

    def run_block(code):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, page.name, "exec"), names)

    names["run_block"] = run_block
    test = doctest.DocTest(examples_of(page, with_blocks), names, page.name, str(page), 0, None)
    test.globs = names  # DocTest copies them
    return doctest.DocTestRunner(optionflags=OPTIONS).run(test, clear_globs=False).failed


if __name__ == "__main__":
    sys.exit(min(main(Path(sys.argv[1]), "--examples" not in sys.argv), 1))
