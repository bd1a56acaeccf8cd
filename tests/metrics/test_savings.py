"""Savings of a day are what multiplying by hand gives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skexit.metrics import daily_savings, speedup

positive = st.floats(0.01, 1e6)


@given(
    st.lists(st.floats(0.01, 1), min_size=1, max_size=5),
    st.lists(st.integers(1, 50), min_size=5, max_size=5),
    positive,
    positive,
    positive,
)
def test_sums_over_samples(steps, counts, n_samples, network_ms, price):
    costs, counts = np.cumsum(steps), np.array(counts[: len(steps)])
    samples = np.repeat(costs, counts)
    savings = daily_savings(
        costs,
        counts / counts.sum(),
        samples_per_day=n_samples,
        network_cost=5.0,
        network_ms=network_ms,
        price_per_hour=price,
    )
    assert savings.mean_cost == pytest.approx(samples.mean())
    assert savings.compute == pytest.approx(1 - 1 / speedup(samples))
    scale = n_samples * max(1, samples.mean())
    assert savings.operations == pytest.approx(n_samples * 5 * (1 - samples.mean()), abs=1e-9 * scale)
    hours = n_samples * network_ms * (1 - samples.mean()) / 1000 / 3600
    assert savings.hours == pytest.approx(hours, abs=1e-9 * scale * network_ms)
    assert savings.money == pytest.approx(hours * price, abs=1e-9 * scale * network_ms * price)


def test_accuracy_is_weighted_by_shares_and_may_be_unknown_where_none_leaves():
    savings = daily_savings([0.2, 0.5, 1.1], [0.5, 0, 0.5], accuracies=[0.9, np.nan, 0.7], network_accuracy=0.85)
    assert savings.accuracy == pytest.approx(0.8)
    assert savings.accuracy_lost == pytest.approx(0.05)
    assert str(savings) == "saves 35.0 % of compute; loses 5.0 points of accuracy"


def test_measured_time_counts_rather_than_operations():
    numbers = {"samples_per_day": 3.6e6, "network_ms": 10, "price_per_hour": 2}
    assert daily_savings([0.5, 1], [1, 0], **numbers).hours == pytest.approx(5)
    slower = daily_savings([0.5, 1], [1, 0], live_ms=11, **numbers)
    assert (slower.hours, slower.money) == (pytest.approx(-1), pytest.approx(-2))


def test_what_was_not_given_is_nan():
    savings = daily_savings([0.5, 1], [0.5, 0.5])
    assert np.isnan([savings.accuracy, savings.accuracy_lost, savings.operations, savings.hours, savings.money]).all()
    assert str(savings) == "saves 25.0 % of compute"


@pytest.mark.parametrize(
    ("costs", "shares", "options", "message"),
    [
        ([0.5, 1], [1.0], {}, r"costs has shape \(2,\) and exit_distribution \(1,\)"),
        ([], [], {}, r"costs has shape \(0,\)"),
        ([0.5, 1], [30, 70], {}, "must be shares of the samples, which sum to 1; divide"),
        ([0.5, 1], [1.5, -0.5], {}, "must be shares"),
        ([1, 0.5], [0.5, 0.5], {}, "must be positive and increase"),
        ([0.5, 1], [0.5, 0.5], {"accuracies": [90, 95]}, "divide per cent by 100"),
        ([0.5, 1], [0.5, 0.5], {"accuracies": [0.9]}, "one accuracy for each of 2"),
        ([0.5, 1], [0.5, 0.5], {"network_accuracy": 93.0}, r"network_accuracy=93\.0 must be between 0 and 1"),
        ([0.5, 1], [0.5, 0.5], {"samples_per_day": -1}, "samples_per_day=-1 must be a finite number"),
        ([0.5, 1], [0.5, 0.5], {"price_per_hour": np.inf}, "price_per_hour=inf must be a finite number"),
        ([0.5, 1], [0.5, 0.5], {"live_ms": 3}, "live_ms=3 needs network_ms"),
    ],
)
def test_bad_input(costs, shares, options, message):
    with pytest.raises(ValueError, match=message):
        daily_savings(costs, shares, **options)
