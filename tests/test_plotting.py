"""Displays: arrays in, artists out."""

import sys

import matplotlib
import numpy as np
import pytest
from instances import make_exits

from skexit import StaticExit, ThresholdPolicy
from skexit.plotting import AccuracyCostDisplay

matplotlib.use("Agg")


def test_from_estimators_measures_and_draws():
    X, y = make_exits(n_samples=200, n_exits=3, n_classes=3, random_state=0)
    fitted = [ThresholdPolicy(budget=budget).fit(X, y) for budget in (0.9, 0.5)]
    static = StaticExit(0).fit(X, y)
    display = AccuracyCostDisplay.from_estimators({"threshold": fitted, "static": [static]}, X, y)

    costs, accuracies = display.curves["threshold"]
    np.testing.assert_allclose(costs, [fitted[1].mean_cost(X), fitted[0].mean_cost(X)])
    np.testing.assert_allclose(accuracies, [fitted[1].score(X, y), fitted[0].score(X, y)])
    np.testing.assert_allclose(display.lines_["threshold"].get_xdata(), 100 * costs)
    np.testing.assert_allclose(display.lines_["static"].get_ydata(), [100 * static.score(X, y)])
    assert "%" in display.ax_.get_xlabel()
    assert "%" in display.ax_.get_ylabel()
    matplotlib.pyplot.close(display.figure_)


def test_draws_on_given_axes():
    figure, ax = matplotlib.pyplot.subplots()
    display = AccuracyCostDisplay({"a": ([0.5], [0.9])}).plot(ax=ax)
    assert display.ax_ is ax
    assert display.figure_ is figure
    matplotlib.pyplot.close(figure)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'skexit\[plot\]'"):
        AccuracyCostDisplay({"a": ([0.5], [0.9])}).plot()
