"""Configuration of the documentation."""

import csv
import importlib
import inspect
import os
import re
from operator import attrgetter
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
# References to projects other than scikit-learn need their inventories, and so a network: set INTERSPHINX=1.
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
    r"^skexit\.policies\.BudgetedPolicy\.fit_policy$",
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

#: Methods of scikit-learn's Pipeline that no pipeline has whose last step is a policy.
NO_METHODS_OF_POLICIES = {
    *("decision_function", "fit_predict", "fit_transform", "get_feature_names_out", "inverse_transform"),
    *("predict_log_proba", "score_samples", "set_output", "transform"),
}


def leave_out_members(app, what, name, member, skip, options):
    """Leave out the fields of named tuples, which are documented as parameters, and methods that no policy has."""
    is_field = type(member).__name__ == "_tuplegetter"
    is_unavailable = name in NO_METHODS_OF_POLICIES and getattr(member, "__qualname__", "") == f"Pipeline.{name}"
    return skip or is_field or is_unavailable


def leave_out_versions(app, what, name, member, options, lines):
    """Leave out scikit-learn's versions, and references to its user guide, from methods that are inherited from it."""
    if not str(getattr(member, "__module__", "")).startswith("sklearn."):
        return
    text = "\n".join(lines)
    text = re.sub(r"^( *)\.\. version(added|changed)::.*\n(\1 +\S.*\n|\s*\n)*", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"^ *(See|Refer to)\b[^.]*:ref:[^.]*(\.py[^.]*)?\.$", "", text, flags=re.MULTILINE)
    lines[:] = text.split("\n")


def find_source(app, module, name):
    """The module with the code of a class or function, which may be saved under the name of its package."""
    value = attrgetter(name)(importlib.import_module(module))
    values = [value, *(vars(value).values() if inspect.isclass(value) else ())]
    functions = [inspect.unwrap(each) for each in values if inspect.isfunction(each)]
    return next((each.__module__ for each in functions if each.__qualname__.startswith(name)), None)


def link_to_sklearn(app, env, node, contnode):
    """Names of scikit-learn have pages of known addresses, so that they are linked without its inventory."""
    name = node["reftarget"]
    if node.get("refdomain") != "py" or not name.startswith("sklearn."):
        return None
    page = f"api/{name}" if node["reftype"] == "mod" else f"modules/generated/{name}"
    return nodes.reference("", "", contnode, refuri=f"https://scikit-learn.org/stable/{page}.html", internal=False)


def set_numbers(app, doctree):
    """Numbers in tables have a minus and separate thousands. On a phone, they stay in a line with an interval or %."""
    for cell in doctree.findall(nodes.entry):
        for text in [text for text in cell.findall(nodes.Text) if not isinstance(text.parent, nodes.literal)]:
            number = re.sub(r"^\d{5,}$", lambda match: f"{int(match[0]):,}", text.astext())
            number = re.sub(r" (± |%)", "\N{NO-BREAK SPACE}\\1", number).replace("± ", "±\N{NO-BREAK SPACE}")
            number = re.sub(r"-(0(\.0+)?)(?![\d.])", r"\1", number)
            text.parent.replace(text, nodes.Text(re.sub(r"(?<![\w-])-(?=\d)", "\N{MINUS SIGN}", number)))


def break_signatures(app, doctree):
    """Signatures in lists of names may be broken at spaces: autosummary joins the words of texts, not of inlines."""
    for table in doctree.findall(nodes.table):
        for text in list(table.findall(nodes.Text)) if "autosummary" in table["classes"] else []:
            if isinstance(text.parent, nodes.paragraph):
                text.parent.replace(text, nodes.inline("", text))


def mark_sentences(app, doctree):
    """Cells with more than a few words get a class, so that they are not squeezed on a phone."""
    for cell in doctree.findall(nodes.entry):
        length = len(cell.astext())
        if length > 40:
            cell["classes"].append("sentence" if length <= 160 else "paragraph")


def name_start_page(app, pagename, templatename, context, doctree):
    """The title of the start page in the browser is not the name of the project twice."""
    if pagename == app.config.root_doc:
        context["title"] = "Early exits for neural networks"


def setup(app):
    app.connect("autodoc-skip-member", leave_out_members)
    # Before numpydoc reads the sections.
    app.connect("autodoc-process-docstring", leave_out_versions, priority=400)
    app.connect("viewcode-follow-imported", find_source)
    app.connect("html-page-context", name_start_page)
    app.connect("missing-reference", link_to_sklearn)
    app.connect("doctree-read", set_numbers)
    app.connect("doctree-read", break_signatures)
    app.connect("doctree-read", mark_sentences)
