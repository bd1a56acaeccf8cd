"""Configuration of the documentation."""

import csv
import os
from pathlib import Path

from docutils import nodes

import skexit

project = "skexit"
author = "The skexit developers"
copyright = f"2026, {author}"
version = release = skexit.__version__

extensions = [
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
# References to other projects need their inventories, and so a network: set INTERSPHINX=1 to link them.
if os.environ.get("INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "pandas": ("https://pandas.pydata.org/docs", None),
    "sklearn": ("https://scikit-learn.org/stable", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
}
# The copied code has neither prompts nor output.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
# The gallery is made of the examples; their header is no page by itself.
exclude_patterns = ["_build", "examples"]
templates_path = ["_templates"]
autosummary_generate = True
# The list of methods beside the page of a class leaves out the name of the class.
toc_object_entries_show_parents = "hide"
# The page of a class documents its methods; a list of them would repeat them.
numpydoc_show_class_members = False
# The sections of a docstring say the types, with shapes.
autodoc_typehints = "none"
# All of numpydoc's checks, but for what is deliberately otherwise:
numpydoc_validation_checks = {
    "all",
    "ES01",  # a summary that says all is not followed by more
    "SA01",  # what else to see is said in the guide
    "EX01",  # methods share the example of their class
    "RT02",  # ``self : ThresholdPolicy``, as in scikit-learn
    "SS05",  # takes nouns such as "Scores of every exit" for verbs
}
numpydoc_validation_exclude = {
    r"\.__",
    r"\.set_\w+_request$",
    r"\.(fit_transform|get_metadata_routing|set_output)$",
    r"\.fit_state_$",
    r"\.(named_steps|train)$",
    # What policies and heads write is documented in their base classes.
    r"^skexit\.\w+\.(apply_budget|choose_thresholds|earlier_exits|exit_logits|fit_policy|fitted_scores|new_logits)$",
    r"^skexit\.\w+\.(score_exit|uses_features)$",
    r"^skexit\.policies\.BudgetedPolicy\.fit_policy$",
    # Python documents the fields of named tuples.
    r"\.(ExitOutput|ExitStep|LoaderOutput|OracleRegret|PartialOutput)\.\w+$",
}

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "doc_module": ("skexit",),
    # Pages of the reference list the examples that use them.
    "backreferences_dir": "gallery/backreferences",
    # Names in the code are linked to this documentation.
    "reference_url": {"skexit": None},
    "abort_on_example_error": True,
    "download_all_examples": False,
    "ignore_repr_types": r"matplotlib|skexit\.plotting",
    "within_subsection_order": "FileNameSortKey",
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "skexit"
html_show_sourcelink = False
html_sidebars = {"index": []}
html_static_path = ["_static"]
html_css_files = ["skexit.css"]
html_theme_options = {"secondary_sidebar_items": ["page-toc"]}

# Numbers that stand on more than one page: ``|half_accuracy|`` is the value of that name in this file.
with (Path(__file__).parent / "benchmarks" / "figures.csv").open(encoding="utf-8", newline="") as file:
    rst_epilog = "\n".join(f".. |{row['name']}| replace:: {row['value']}" for row in csv.DictReader(file))

# Every reference must lead somewhere; those to other projects do where the inventories are read.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(sklearn|torch|numpy|pandas|matplotlib|skops|joblib|scipy)\..*")]

# scikit-learn's inherited docstrings refer to its own user guide.
suppress_warnings = ["ref.ref"]


def keep_intervals_whole(app, doctree):
    """A number and its interval stay on one line of a table, also on a phone."""
    for cell in doctree.findall(nodes.entry):
        for text in list(cell.findall(nodes.Text)):
            text.parent.replace(text, nodes.Text(text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")))


def mark_sentences(app, doctree):
    """Cells with more than a few words get a class, so that they are not squeezed on a phone."""
    for cell in doctree.findall(nodes.entry):
        if len(cell.astext()) > 40:
            cell["classes"].append("sentence")


def name_start_page(app, pagename, templatename, context, doctree):
    """The title of the start page in the browser is not the name of the project twice."""
    if pagename == app.config.root_doc:
        context["title"] = "Early exits for neural networks"


def setup(app):
    app.connect("html-page-context", name_start_page)
    app.connect("doctree-read", keep_intervals_whole)
    app.connect("doctree-read", mark_sentences)
