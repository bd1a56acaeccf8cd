"""Formats of the numbers in a report."""

from __future__ import annotations

import numpy as np


def percent(fraction: float) -> str:
    """A fraction as a percentage; empty for nan."""
    return "" if np.isnan(fraction) else f"{100 * fraction:.1f} %"


def interval(bounds: tuple[float, float]) -> str:
    """An interval of fractions, as percentages."""
    return f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %"


def points(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return f"{100 * difference:+.1f}"


def points_interval(bounds: tuple[float, float]) -> str:
    """An interval of a difference, in percentage points."""
    return f"{points(bounds[0])} to {points(bounds[1])}"


def amount(cost: float) -> str:
    """A cost in its unit."""
    return f"{cost:,.6g}" if abs(cost) < 1e6 else f"{cost:,.0f}"
