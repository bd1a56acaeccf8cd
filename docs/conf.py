"""Configuration of the documentation."""

import skexit

project = "skexit"
author = "The skexit developers"
copyright = f"2026, {author}"
version = release = skexit.__version__

extensions = ["numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
autosummary_generate = True
# The page of a class documents its methods; a list of them would repeat them.
numpydoc_show_class_members = False
numpydoc_validation_checks = {"GL07", "GL08", "PR01", "PR02", "PR03", "RT01"}
numpydoc_validation_exclude = {r"\.__", r"\.set_\w+_request$", r"\.(fit_transform|get_metadata_routing|set_output)$"}

html_theme = "pydata_sphinx_theme"
html_title = "skexit"
html_show_sourcelink = False
html_sidebars = {"index": [], "guide/*": []}
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}

# scikit-learn's inherited docstrings refer to its own user guide.
suppress_warnings = ["ref.ref"]
