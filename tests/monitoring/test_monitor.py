"""Monitors notice changes, and nothing else."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from rows import make_rows
from scipy.stats import binomtest
from threads import frequent_switches

from skexit import ThresholdPolicy
from skexit.monitoring import ExitMonitor, prometheus_collector
from skexit.monitoring._eprocess import DriftEvidence
from skexit.monitoring._reference import mean_interval
from skexit.utils._warnings import silenced


@pytest.fixture(scope="module")
def policy():
    return ThresholdPolicy(budget=0.6).fit(*make_rows(600, 0))


def feed(monitor, policy, X, y, size=100):
    for start in range(0, len(y), size):
        rows = X[start : start + size]
        labels = y[start : start + size]
        confidence = policy.predict_proba(rows).max(axis=1)
        monitor.update(policy.predict_exit(rows), confidence=confidence, correct=policy.predict(rows) == labels)


def test_same_inputs_give_no_alarm(policy):
    monitor = ExitMonitor(policy, *make_rows(2000, 1))
    feed(monitor, policy, *make_rows(4000, 2))
    assert not monitor.changed
    assert monitor.advice == "No change was found."
    frame = monitor.to_frame()
    assert list(frame.index) == ["exit 0", "exit 1", "exit 2", "exit 3", "mean cost", "confidence", "accuracy"]
    inside = (frame["low"] <= frame["mean"]) & (frame["mean"] <= frame["high"])
    assert inside.drop("mean cost").all()


def test_harder_inputs_give_an_alarm(policy):
    monitor = ExitMonitor(policy, *make_rows(2000, 1))
    feed(monitor, policy, *make_rows(1000, 2))
    with pytest.warns(UserWarning, match="inputs have changed, first"):
        feed(monitor, policy, *make_rows(1500, 3, signal=0.4))
    assert 1000 < monitor.changed_at <= 2500
    assert monitor.first_changed in monitor.to_frame().index
    assert "Accuracy has fallen" in monitor.advice


@pytest.mark.parametrize(("at", "direction"), [(3, "risen"), (0, "fallen")])
def test_without_labels_the_advice_is_about_the_cost(policy, at, direction):
    monitor = ExitMonitor(policy, *make_rows(2000, 1))
    with pytest.warns(UserWarning, match="inputs have changed"):
        monitor.update(np.full(500, at))
    assert f"The mean cost has {direction}. Unless a BudgetController sets the thresholds" in monitor.advice


def test_late_labels_alone(policy):
    """Exits are as before, answers are wrong."""
    monitor = ExitMonitor(policy, *make_rows(2000, 1))
    X, _ = make_rows(500, 2)
    monitor.update(policy.predict_exit(X))
    with pytest.warns(UserWarning, match="first accuracy"):
        monitor.update(correct=np.zeros(200, dtype=bool))
    assert monitor.n_samples == 500


def test_memory_does_not_grow(policy):
    monitor = ExitMonitor(policy, *make_rows(500, 1))
    with silenced():
        for _ in range(30):
            monitor.update(np.arange(100) % 4)
    history = monitor.history
    assert len(history) <= 512
    assert history["n_samples"].iloc[-1] > 2900
    assert (np.diff(history["n_samples"]) > 0).all()


@pytest.mark.slow
def test_false_alarms_stay_below_the_level():
    """400 streams from the reference's own distribution, watched at every step; the reference is drawn anew."""
    rng, level, n_alarms = np.random.default_rng(0), 0.1, 0
    for _ in range(400):
        p = rng.dirichlet(np.ones(4))
        reference = rng.multinomial(1, p, size=300)
        intervals = np.array([mean_interval(column.astype(float), level / 2 / 4) for column in reference.T])
        evidence = DriftEvidence(*intervals.T)
        largest = 0.0
        for row in rng.multinomial(1, p, size=500).astype(float):
            evidence.update(row)
            largest = max(largest, float(evidence.e_values().mean()))
        n_alarms += largest >= 2 / level
    assert binomtest(n_alarms, 400, level, alternative="greater").pvalue > 0.001


def test_e_values_do_not_gain_where_nothing_changed():
    """The mean of e-values at a fixed time is at most one, also at the edge of the hypothesis."""
    rng = np.random.default_rng(0)
    low, high = np.array([0.2, 0.5]), np.array([0.3, 0.6])
    final = []
    for _ in range(2000):
        evidence = DriftEvidence(low, high)
        for row in (rng.random((30, 2)) < high).astype(float):
            evidence.update(row)
        final.append(evidence.e_values())
    means, errors = np.mean(final, axis=0), np.std(final, axis=0) / np.sqrt(2000)
    assert (means <= 1 + 4 * errors).all()


def test_intervals_hold_the_mean():
    rng, n_missed = np.random.default_rng(0), 0
    for _ in range(300):
        mean = rng.uniform(0.05, 0.95)
        low, high = mean_interval((rng.random(80) < mean).astype(float), 0.1)
        n_missed += not low <= mean <= high
    assert binomtest(n_missed, 300, 0.1, alternative="greater").pvalue > 0.001
    values = rng.beta(2, 5, size=400)
    low, high = mean_interval(values, 0.05)
    assert low < 2 / 7 < high
    assert high - low < 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pass exits, confidence or correct"),
        ({"exits": [0, 9]}, "exits are 0 to 3"),
        ({"exits": [0, 1], "confidence": [0.5]}, "the arrays have the shapes"),
        ({"exits": []} | {"confidence": [0.5]}, "the arrays have the shapes"),
        ({"exits": [0.0]}, "exits are 0 to 3"),
        ({"confidence": [1.5]}, "pass probabilities"),
        ({"confidence": [np.nan]}, "pass probabilities"),
        ({"correct": [True, -1]}, "correct has the value -1; pass True or False for each answer"),
        ({"correct": [np.nan]}, "correct has the value nan.* leave out samples without a label"),
        ({"correct": ["yes"]}, "correct has the value 'yes'"),
    ],
)
def test_wrong_samples(policy, arguments, message):
    monitor = ExitMonitor(policy, *make_rows(200, 1))
    with pytest.raises(ValueError, match=message):
        monitor.update(**arguments)
    assert monitor.to_frame()["mean"].isna().all()


@pytest.mark.parametrize("given", [{"exits": []}, {"exits": [], "confidence": [], "correct": []}, {"correct": []}])
def test_no_samples_change_nothing(policy, given):
    monitor = ExitMonitor(policy, *make_rows(200, 1))
    monitor.update([0, 1], confidence=[0.5, 0.9], correct=[True, False])
    before = monitor.to_frame()
    monitor.update(**given)
    assert monitor.n_samples == 2
    pd.testing.assert_frame_equal(monitor.to_frame(), before)


def test_reference_labels(policy):
    X, y = make_rows(200, 1)
    expected = ExitMonitor(policy, X, y).to_frame()
    for labels in (y[:, None], pd.Series(y, index=np.arange(200)[::-1]), y.tolist(), y.astype(float)):
        pd.testing.assert_frame_equal(ExitMonitor(policy, X, labels).to_frame(), expected)
    for labels, message in (
        (y[:5], r"inconsistent numbers of samples: \[200, 5\]"),
        (np.where(y == 1, 7, y), "y has the class 7, which is none of those known"),
        (y.astype(str), "y has the class '0', which is none of those known"),
    ):
        with pytest.raises(ValueError, match=message):
            ExitMonitor(policy, X, labels)


def test_labels_without_reference_labels(policy):
    X, _ = make_rows(200, 1)
    monitor = ExitMonitor(policy, X)
    assert "accuracy" not in monitor.to_frame().index
    with pytest.raises(ValueError, match="Pass y to ExitMonitor"):
        monitor.update(correct=[True])
    with pytest.raises(ValueError, match="level=2 must be in"):
        ExitMonitor(policy, X, level=2)


def test_prometheus(policy):
    client = pytest.importorskip("prometheus_client")
    monitor = ExitMonitor(policy, *make_rows(300, 1))
    monitor.update([0, 1, 3])
    registry = client.CollectorRegistry()
    registry.register(prometheus_collector(monitor))
    text = client.generate_latest(registry).decode()
    assert "skexit_samples_total 3.0" in text
    assert 'skexit_drift_e_value{direction="rise",quantity="exit 0"}' in text


def test_threads_share_a_monitor(policy):
    X, _ = make_rows(400, 2)
    exits, confidence = policy.predict_exit(X), policy.predict_proba(X).max(axis=1)
    alone, shared = ExitMonitor(policy, *make_rows(500, 1)), ExitMonitor(policy, *make_rows(500, 1))

    def update(_):
        for k in range(0, len(X), 10):
            shared.update(exits[k : k + 10], confidence=confidence[k : k + 10])
            assert 0 < pickle.loads(pickle.dumps(shared)).n_samples <= 4 * len(X)

    with frequent_switches(), ThreadPoolExecutor(4) as pool:
        list(pool.map(update, range(4)))
    for _ in range(4):
        alone.update(exits, confidence=confidence)
    assert shared.n_samples == alone.n_samples == 4 * len(X)
    pd.testing.assert_series_equal(shared.to_frame()["mean"], alone.to_frame()["mean"])
