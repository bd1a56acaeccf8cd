"""How sure a measured number is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_consistent_length, check_random_state


def bootstrap_interval(
    metric: Callable[..., Any],
    *arrays: ArrayLike,
    confidence_level: float = 0.95,
    n_resamples: int = 1000,
    random_state: int | np.random.RandomState | None = None,
    **parameters: Any,
) -> tuple[Any, Any]:
    """Confidence interval of a metric: percentile bootstrap over samples.

    The metric is computed on `n_resamples` draws of as many rows as there are, with replacement;
    the interval holds the middle of these values. The same rows are drawn from all arrays.

    It says how much the number would vary with other samples to measure on, not with other samples
    to fit on. For few samples it is somewhat too narrow, like every percentile interval.

    Parameters
    ----------
    metric : callable
        Called as ``metric(*arrays, **parameters)``; gives a number, an array of numbers, or a
        tuple of these of one shape.
    *arrays : array-like of shape (n_samples, ...)
        What has one row for each sample.
    confidence_level : float, default=0.95
        Between 0 and 1, both excluded.
    n_resamples : int, default=1000
        Number of draws.
    random_state : int, RandomState instance or None, default=None
        Seeds the draws.
    **parameters
        What else the metric takes, such as ``costs=policy.costs_``.

    Returns
    -------
    low, high : float, ndarray or tuple
        Both as what the metric gives. Resamples on which an entry is nan are left out for that
        entry; it is nan where all are.

    Raises
    ------
    ValueError
        If the arrays have different lengths or none is given, a parameter is not as above, or the metric gives another
        shape on a resample than on all samples. What the metric raises on a resample is raised.

    Examples
    --------
    >>> import numpy as np
    >>> from skexit.metrics import bootstrap_interval, speedup
    >>> costs = np.random.default_rng(0).choice([0.25, 1.0], size=400)
    >>> low, high = bootstrap_interval(speedup, costs, random_state=0)
    >>> round(low, 2), round(speedup(costs), 2), round(high, 2)
    (1.43, 1.51, 1.59)
    """
    if not isinstance(confidence_level, Real) or not 0 < confidence_level < 1:
        raise ValueError(f"confidence_level={confidence_level!r} must be between 0 and 1.")
    if not isinstance(n_resamples, Integral) or n_resamples < 1:
        raise ValueError(f"n_resamples={n_resamples!r} must be a positive integer.")
    if not arrays:
        raise ValueError("bootstrap_interval needs one array or more to draw rows from.")
    columns = [np.asarray(array) for array in arrays]
    check_consistent_length(*columns)
    rng = check_random_state(random_state)
    measured = metric(*columns, **parameters)
    values = np.empty((int(n_resamples), *np.shape(measured)))
    for resample in range(int(n_resamples)):
        rows = rng.randint(len(columns[0]), size=len(columns[0]))
        values[resample] = _measure(metric, [column[rows] for column in columns], parameters, np.shape(measured))
    tail = (1 - confidence_level) / 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        low, high = np.nanpercentile(values, [100 * tail, 100 * (1 - tail)], axis=0)
    return _like(measured, low), _like(measured, high)


def _measure(
    metric: Callable[..., Any], columns: list[NDArray[Any]], parameters: dict[str, Any], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    try:
        value = metric(*columns, **parameters)
    except Exception as error:
        error.add_note("This was raised on a bootstrap resample, not on the samples as they are.")
        raise
    if np.shape(value) != shape:
        raise ValueError(
            f"the metric gives the shape {np.shape(value)} on a resample and {shape} on all samples; a resample may "
            "lack a class, so pass labels=... where the metric takes it."
        )
    return np.asarray(value, dtype=np.float64)


def _like(measured: Any, values: NDArray[np.float64]) -> Any:
    """The values in the form of what the metric gives."""
    if isinstance(measured, tuple):
        entries = [_like(None, entry) for entry in values]
        return measured._make(entries) if hasattr(measured, "_make") else tuple(entries)
    return float(values) if np.ndim(values) == 0 else values
