"""Shared parts of docstrings."""

import re

import pytest

from skexit.utils._docstring import SHARED, fill_docstring, shared_docs


@shared_docs
class Drawing:
    """A drawing."""

    @classmethod
    def from_data(cls, X, y):
        """Draw.

        Parameters
        ----------
        %(X_y)s

        %(display)s
        """

    def plot(self):
        pass


def test_the_methods_of_a_class_are_filled():
    assert "        X : ExitArray, DataFrame or" in Drawing.from_data.__doc__
    assert "        Returns\n        -------\n        Drawing\n" in Drawing.from_data.__doc__
    assert Drawing.__doc__ == "A drawing."
    assert Drawing.plot.__doc__ is None


def test_a_function_is_filled():
    @shared_docs
    def function(X, y):
        """Do something.

        %(X_y)s
        """

    assert "        y : array-like of shape (n_samples,)\n            Class labels.\n" in function.__doc__


def test_without_docstrings():
    """As with ``python -OO``."""
    assert fill_docstring(None) is None


@pytest.mark.parametrize("name", SHARED)
def test_parts_that_stand_for_others(name):
    filled = fill_docstring(f"    %({name})s", "Drawing")
    assert "%(" not in filled
    assert not re.search(" $", filled, flags=re.MULTILINE)
