"""Check the docstrings of all public names by numpydoc's rules."""

import importlib
import inspect
import pkgutil
import sys
from operator import attrgetter

from numpydoc.docscrape import NumpyDocString
from numpydoc.validate import validate

import skexit

#: Not every function has related ones, needs prose or an example. Summaries name what is returned, and ``fit`` returns
#: ``self : type``, as in scikit-learn.
LEFT_OUT = {"SA01", "ES01", "EX01", "SS05", "RT02"}


def public_names():
    """Every public function and class, and the public methods that classes define themselves."""
    modules = [module.name for module in pkgutil.iter_modules(skexit.__path__, "skexit.") if "._" not in module.name]
    for module in ["skexit", *modules]:
        for name in getattr(importlib.import_module(module), "__all__", []):
            value = getattr(importlib.import_module(module), name)
            if callable(value):
                yield f"{module}.{name}"
            if inspect.isclass(value):
                yield from (f"{module}.{name}.{method}" for method in vars(value) if is_documented_here(value, method))


def is_documented_here(kind, name):
    """Whether a method is public, and not one whose documentation a base class has."""
    member = inspect.getattr_static(kind, name)
    is_method = inspect.isfunction(member) or isinstance(member, classmethod | staticmethod | property)
    inherits = any(name in vars(base) for base in kind.__mro__[1:]) and not getattr(kind, name).__doc__
    return is_method and not name.startswith("_") and not inherits


def undescribed(name):
    """Names and types of attributes and results without a description, which numpydoc does not check."""
    docstring = NumpyDocString(inspect.getdoc(attrgetter(name.removeprefix("skexit."))(skexit)) or "")
    entries = [entry for section in ("Attributes", "Returns", "Yields") for entry in docstring[section]]
    return [" ".join([entry.name, entry.type]).strip() for entry in entries if not any(entry.desc)]


def main():
    """Print what is wrong, and give the number of errors as exit status."""
    errors = {
        (name, code, message)
        for name in public_names()
        for code, message in validate(name)["errors"]
        if code not in LEFT_OUT
    }
    errors |= {(name, "no description:", entry) for name in public_names() for entry in undescribed(name)}
    for name, code, message in sorted(errors):
        print(f"{name}: {code} {message}")
    return min(len(errors), 1)


if __name__ == "__main__":
    sys.exit(main())
