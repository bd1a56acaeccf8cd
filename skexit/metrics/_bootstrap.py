"""Confidence intervals of metrics."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, norm
from scipy.stats import t as student_t
from sklearn.utils import check_consistent_length, check_random_state

from skexit.utils._checks import is_integer

Floats = NDArray[np.float64]

_METHODS = ("auto", "share", "difference", "percentile")
#: A number with less than this part of the variance of zeros and ones with the same mean is not treated as a share.
_LEAST_VARIANCE = 0.01
#: Means of ones may be above 1 by so much.
_ROUNDING = 1e-9


def bootstrap_interval(
    metric: Callable[..., Any],
    *arrays: ArrayLike,
    confidence_level: float = 0.95,
    n_resamples: int = 1000,
    method: str = "auto",
    random_state: int | np.random.RandomState | None = None,
    **parameters: Any,
) -> tuple[Any, Any]:
    """Confidence interval of a metric, by a bootstrap over samples.

    The metric is computed on `n_resamples` draws of as many rows as there are, with replacement. The
    same rows are drawn from all arrays.

    The interval is for measuring on other samples, not for fitting on other samples. If an entry depends on a part of
    the samples, as the accuracy of an exit does, and is 0 or 1 in all draws, it is treated as depending on all samples:
    measure that part alone.

    Parameters
    ----------
    metric : callable
        Called as ``metric(*arrays, **parameters)``. Returns a number, an array of numbers, or a
        tuple of these of one shape.
    *arrays : array-like of shape (n_samples, ...)
        Arrays with one row per sample.
    confidence_level : float, default=0.95
        Between 0 and 1, both excluded.
    n_resamples : int, default=1000
        Number of draws.
    method : {"auto", "share", "difference", "percentile"}, default="auto"
        ``"share"`` is for means of zeros and ones and similar numbers, such as accuracy, accuracy at a budget, and the
        area under the hull. It is the exact binomial interval [1]_ of the number, corrected for the bias in the draws,
        for the number of rows that explains the variance of the draws, at most all [2]_. Its width is positive even
        if all samples are correct. It holds the level for few samples and shares near 0 or 1, unlike percentiles.
        ``"difference"`` is for differences of two such shares of the same samples: the normal interval after one sample
        more of each sign [3]_. ``"percentile"``: the middle of the draws, made wider for few samples [4]_. ``"auto"``:
        ``"share"`` for each entry that lies between 0 and 1 in all draws, and has a hundredth or more of the variance
        of zeros and ones; else ``"percentile"``.
    random_state : int, RandomState instance or None, default=None
        Seeds the draws.
    **parameters
        Other parameters of the metric, such as ``costs=policy.costs_``.

    Returns
    -------
    low, high : float, ndarray or tuple
        Both in the form of the metric's result. Resamples in which an entry is nan are left out for that
        entry; it is nan if all are.

    Raises
    ------
    ValueError
        If the arrays have different lengths or none is given, a parameter is not as above, the values are outside the
        range of `method`, or the metric gives another shape on a resample than on all samples. Errors of the metric on
        a resample are raised unchanged.

    References
    ----------
    .. [1] Clopper and Pearson. "The use of confidence or fiducial limits illustrated in the case of
       the binomial." Biometrika 26 (1934).
    .. [2] Korn and Graubard. "Confidence intervals for proportions with small expected number of
       positive counts estimated from survey data." Survey Methodology 24 (1998).
    .. [3] Bonett and Price. "Adjusted Wald confidence interval for a difference of binomial
       proportions based on paired data." Journal of Educational and Behavioral Statistics 37 (2012).
    .. [4] Hesterberg. "What teachers should know about the bootstrap." The American Statistician 69
       (2015), 4.

    Examples
    --------
    >>> import numpy as np
    >>> from skexit.metrics import bootstrap_interval, speedup
    >>> costs = np.random.default_rng(0).choice([0.25, 1.0], size=400)
    >>> low, high = bootstrap_interval(speedup, costs, random_state=0)
    >>> round(low, 2), round(speedup(costs), 2), round(high, 2)
    (1.43, 1.51, 1.59)

    Thirty right answers of thirty:

    >>> low, high = bootstrap_interval(np.mean, np.ones(30), random_state=0)
    >>> round(low, 2), high
    (0.88, 1.0)
    """
    if not isinstance(confidence_level, Real) or not 0 < confidence_level < 1:
        raise ValueError(f"confidence_level={confidence_level!r} must be between 0 and 1, as 0.95.")
    if not is_integer(n_resamples) or n_resamples < 1:
        raise ValueError(f"n_resamples={n_resamples!r} must be a positive integer.")
    if method not in _METHODS:
        raise ValueError(f"method={method!r} must be 'auto', 'share', 'difference' or 'percentile'.")
    if not arrays:
        raise ValueError("there is no array to draw rows from; pass those of the metric, such as y_true and y_pred.")
    columns = [np.asarray(array) for array in arrays]
    check_consistent_length(*columns)
    n_samples = len(columns[0])
    rng = check_random_state(random_state)
    measured = metric(*columns, **parameters)
    shape = np.shape(measured)
    values = np.empty((int(n_resamples), *shape))
    for resample in range(int(n_resamples)):
        rows = rng.randint(n_samples, size=n_samples)
        values[resample] = _measure(metric, [column[rows] for column in columns], parameters, shape)
    tail = (1 - confidence_level) / 2
    entries = zip(np.asarray(measured, dtype=np.float64).ravel(), values.reshape(len(values), -1).T, strict=True)
    bounds = np.array([_interval(value, draws, n_samples, tail, method) for value, draws in entries])
    low, high = (side.reshape(shape) for side in bounds.reshape(-1, 2).T)
    return _like(measured, low), _like(measured, high)


def _interval(value: float, draws: Floats, n_samples: int, tail: float, method: str) -> tuple[float, float]:
    """Interval of one number from its value in draws; misses on each side with the probability `tail`."""
    draws = draws[~np.isnan(draws)]
    if len(draws) == 0:
        return np.nan, np.nan
    lowest, highest = min(value, draws.min()), max(value, draws.max())
    floor = -1 if method == "difference" else 0
    is_within = lowest >= floor - _ROUNDING and highest <= 1 + _ROUNDING
    if method in ("share", "difference") and not is_within:
        raise ValueError(
            f"method={method!r} is for numbers between {floor} and 1, and the metric gives {lowest:.4g} to "
            f"{highest:.4g} on resamples. Pass method='percentile'."
        )
    if method == "difference":
        return _difference_interval(value, draws, n_samples, tail)
    if is_within:
        value, draws = min(max(value, 0.0), 1.0), np.clip(draws, 0, 1)
    varies_as_a_share = n_samples * draws.var() >= _LEAST_VARIANCE * value * (1 - value)
    if method == "share" or (method == "auto" and is_within and varies_as_a_share):
        return _share_interval(value, draws, n_samples, tail)
    return _percentiles(draws, n_samples, tail)


def _share_interval(value: float, draws: Floats, n_samples: int, tail: float) -> tuple[float, float]:
    """Binomial interval of the unbiased value, for the number of rows that explains the variance of the draws."""
    unbiased = min(max(2 * value - draws.mean(), 0.0), 1.0)
    variance = draws.var()
    n_rows = min(n_samples, value * (1 - value) / variance) if variance > 0 and 0 < value < 1 else n_samples
    n_ones = n_rows * unbiased
    low = beta.ppf(tail, n_ones, n_rows - n_ones + 1) if n_ones > 0 else 0.0
    high = beta.ppf(1 - tail, n_ones + 1, n_rows - n_ones) if n_ones < n_rows else 1.0
    return float(low), float(high)


def _difference_interval(value: float, draws: Floats, n_samples: int, tail: float) -> tuple[float, float]:
    """Normal interval of the unbiased value, after one sample more with a difference of 1, and one with -1."""
    unbiased = 2 * value - draws.mean()
    squares = n_samples * (n_samples * draws.var() + value**2) + 2
    centre = n_samples * unbiased / (n_samples + 2)
    half = norm.isf(tail) * np.sqrt((squares / (n_samples + 2) - centre**2) / (n_samples + 2))
    return float(max(centre - half, -1.0)), float(min(centre + half, 1.0))


def _percentiles(draws: Floats, n_samples: int, tail: float) -> tuple[float, float]:
    """The middle of the draws, as much wider as the t-interval of a mean is than the normal one of its draws."""
    if n_samples > 1:
        tail = float(norm.cdf(np.sqrt(n_samples / (n_samples - 1)) * student_t.ppf(tail, n_samples - 1)))
    low, high = np.percentile(draws, [100 * tail, 100 * (1 - tail)])
    return float(low), float(high)


def _measure(
    metric: Callable[..., Any], columns: list[NDArray[Any]], parameters: dict[str, Any], shape: tuple[int, ...]
) -> Floats:
    try:
        value = metric(*columns, **parameters)
    except Exception as error:
        error.add_note("This was raised on a bootstrap resample, not on the given samples.")
        raise
    if np.shape(value) != shape:
        raise ValueError(
            f"the metric gives the shape {np.shape(value)} on a resample and {shape} on all samples; a resample may "
            "lack a class, so pass labels=... where the metric takes it."
        )
    return np.asarray(value, dtype=np.float64)


def _like(measured: Any, values: Floats) -> Any:
    """The values in the form of what the metric gives."""
    if isinstance(measured, tuple):
        entries = [_like(None, entry) for entry in values]
        return measured._make(entries) if hasattr(measured, "_make") else tuple(entries)
    return float(values) if np.ndim(values) == 0 else values
