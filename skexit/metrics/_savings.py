"""What an early exit saves in a day, from a few numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skexit.utils._checks import check_costs


@dataclass(frozen=True)
class Savings:
    """What a network with early exits saves in a day, compared with the plain network.

    A number is nan where what it follows from was not given. Savings are negative where the exits cost more.

    Parameters
    ----------
    mean_cost : float
        Mean cost of a sample, as a fraction of the plain network's cost.
    accuracy : float
        Share of right answers.
    accuracy_lost : float
        Accuracy of the plain network minus `accuracy`.
    operations : float
        Operations saved, in the unit of `network_cost`.
    hours : float
        Hours of computing saved.
    money : float
        Money saved, in the currency of `price_per_hour`.

    See Also
    --------
    daily_savings : Computes them.

    Examples
    --------
    >>> from skexit.metrics import daily_savings
    >>> daily_savings([0.25, 1.0], [0.5, 0.5]).compute
    0.375
    """

    mean_cost: float
    accuracy: float
    accuracy_lost: float
    operations: float
    hours: float
    money: float

    @property
    def compute(self) -> float:
        """Share of the plain network's compute that is saved."""
        return 1 - self.mean_cost

    def __str__(self) -> str:
        parts = [f"saves {100 * self.compute:.1f} % of compute"]
        parts += [f"{self.operations:.3g} operations a day"] if np.isfinite(self.operations) else []
        parts += [f"{self.hours:,.2f} hours a day"] if np.isfinite(self.hours) else []
        parts += [f"{self.money:,.2f} in money a day"] if np.isfinite(self.money) else []
        lost = f"; loses {100 * self.accuracy_lost:.1f} points of accuracy" if np.isfinite(self.accuracy_lost) else ""
        return ", ".join(parts) + lost


def daily_savings(
    costs: ArrayLike,
    exit_distribution: ArrayLike,
    *,
    accuracies: ArrayLike | None = None,
    network_accuracy: float | None = None,
    samples_per_day: float | None = None,
    network_cost: float | None = None,
    network_ms: float | None = None,
    live_ms: float | None = None,
    price_per_hour: float | None = None,
) -> Savings:
    """Compute, time and money that early exits save in a day.

    Parameters
    ----------
    costs : array-like of shape (n_exits,)
        Cost of an answer at each exit, as a fraction of the plain network's cost: ``policy.costs_``. They increase.
    exit_distribution : array-like of shape (n_exits,)
        Share of the samples that leave at each exit; they sum to 1.
    accuracies : array-like of shape (n_exits,), default=None
        Accuracy on the samples that leave at each exit; nan where none leaves.
    network_accuracy : float, default=None
        Accuracy of the plain network.
    samples_per_day : float, default=None
        How many samples the network answers in a day.
    network_cost : float, default=None
        Operations of the plain network for a sample: ``policy.layout_.network_cost``.
    network_ms : float, default=None
        Milliseconds of the plain network for a sample, at the batch size that you use.
    live_ms : float, default=None
        Milliseconds of the live network for a sample, measured at the same batch size. By default `network_ms` times
        the mean cost; see the notes.
    price_per_hour : float, default=None
        What an hour of the machine costs.

    Returns
    -------
    Savings
        Numbers of a day.

    Raises
    ------
    ValueError
        If costs do not increase, shares do not sum to 1, or a number is negative or not finite.

    Notes
    -----
    Operations are not time. Single inputs on a CPU save about the share of the operations. In a batch, time is saved
    only as far as smaller batches are faster, and on a GPU that a batch does not keep busy that may be nothing. Before
    you count on money, measure `network_ms` and `live_ms` at your batch size:
    :meth:`skexit.runtime.ExitLatency.expected` has both.

    Examples
    --------
    >>> from skexit.metrics import daily_savings
    >>> savings = daily_savings(
    ...     [0.25, 1.0], [0.6, 0.4], accuracies=[0.97, 0.85], network_accuracy=0.93,
    ...     samples_per_day=1_000_000, network_ms=20, price_per_hour=0.5,
    ... )
    >>> print(savings)
    saves 45.0 % of compute, 2.50 hours a day, 1.25 in money a day; loses 0.8 points of accuracy
    """
    shares = _check_shares(exit_distribution, costs)
    cumulative = check_costs(costs, len(shares))
    numbers = {
        "network_accuracy": network_accuracy,
        "samples_per_day": samples_per_day,
        "network_cost": network_cost,
        "network_ms": network_ms,
        "live_ms": live_ms,
        "price_per_hour": price_per_hour,
    }
    given = {name: _check_number(name, value) for name, value in numbers.items()}
    if live_ms is not None and network_ms is None:
        raise ValueError(f"live_ms={live_ms} needs network_ms, the time of the plain network; give both.")
    mean_cost = float(shares @ cumulative)
    accuracy = np.nan if accuracies is None else _mean_accuracy(accuracies, shares)
    live = given["network_ms"] * mean_cost if live_ms is None else given["live_ms"]
    hours = given["samples_per_day"] * (given["network_ms"] - live) / 3.6e6
    return Savings(
        mean_cost=mean_cost,
        accuracy=accuracy,
        accuracy_lost=given["network_accuracy"] - accuracy,
        operations=given["samples_per_day"] * given["network_cost"] * (1 - mean_cost),
        hours=hours,
        money=hours * given["price_per_hour"],
    )


def _check_shares(exit_distribution: ArrayLike, costs: ArrayLike) -> NDArray[np.float64]:
    shares = np.asarray(exit_distribution, dtype=np.float64)
    if shares.ndim != 1 or shares.shape != np.shape(costs) or not len(shares):
        raise ValueError(
            f"costs has shape {np.shape(costs)} and exit_distribution {shares.shape}; give one number of each for each "
            "exit."
        )
    if not (shares >= 0).all() or not np.isclose(shares.sum(), 1, atol=1e-3):
        raise ValueError(
            f"exit_distribution={shares.tolist()} must be shares of the samples, which sum to 1; divide numbers of "
            "samples by their sum."
        )
    return shares / shares.sum()


def _mean_accuracy(accuracies: ArrayLike, shares: NDArray[np.float64]) -> float:
    values = np.asarray(accuracies, dtype=np.float64)
    if values.shape != shares.shape:
        raise ValueError(f"accuracies has shape {values.shape}; give one accuracy for each of {len(shares)} costs.")
    used = values[shares > 0]
    if not ((used >= 0) & (used <= 1)).all():
        raise ValueError(f"accuracies={values.tolist()} must be between 0 and 1; divide per cent by 100.")
    return float(used @ shares[shares > 0])


def _check_number(name: str, value: float | None) -> float:
    if value is None:
        return np.nan
    if not (np.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value} must be a finite number of at least 0.")
    if name == "network_accuracy" and value > 1:
        raise ValueError(f"network_accuracy={value} must be between 0 and 1; divide per cent by 100.")
    return float(value)
