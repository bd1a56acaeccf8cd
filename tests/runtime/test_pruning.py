"""Exits that take longer than they save are switched off, and no others."""

import warnings
from itertools import combinations

import numpy as np
import pytest
from instances import make_exits
from torch import nn

from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitEnsemble,
    ExitHeads,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RandomExit,
    StaticExit,
    ThresholdPolicy,
    make_exit_pipeline,
)
from skexit.exceptions import UnprofitableExitsWarning
from skexit.runtime import EarlyExitModel, ExitLatency, pruned
from skexit.utils._warnings import silenced

N_EXITS = 4
POLICIES = [
    ThresholdPolicy(budget=0.7),
    ThresholdPolicy("margin", schedule="shared", budget=0.7),
    ThresholdPolicy("vote", budget=0.7),
    RandomExit(budget=0.7, random_state=0),
    EENetPolicy(0.7, max_epochs=2, random_state=0),
    EMExitAssigner(budget=0.7, max_epochs=2, random_state=0),
    JEIGatedEnsemble(budget=0.7, random_state=0),
    OptimalStoppingPolicy(0.7, random_state=0),
]


@pytest.fixture(scope="module")
def data():
    return make_exits(400, N_EXITS, 3, random_state=0)


@pytest.fixture(scope="module")
def fitted(data):
    with np.errstate(all="ignore"), silenced():
        return [policy.fit(*data) for policy in POLICIES]


def make_latency(decisions, sizes=(1,), stages=(5, 5, 5, 5)):
    growth = np.array(sizes)[:, None] ** 0.5
    stage_ms, exit_ms = growth * np.array([stages], float), growth * np.array([decisions], float)
    return ExitLatency(np.array(sizes), stage_ms, exit_ms, 0 * stage_ms, 0 * stage_ms, stage_ms.sum(1))


def time_without(policy, scores, exits, latency, batch_size):
    """Time by hand where nobody leaves at some exits; of a policy that looks at no earlier exits."""
    thresholds = policy.thresholds_.copy()
    thresholds[list(exits)] = np.inf
    stops, total = (scores >= thresholds).argmax(1), 0.0
    for k in range(stops.max() + 1):
        n_rows = batch_size * (stops >= k).mean()
        per_size = latency.stage_ms[:, k] + (thresholds[k] < np.inf) * latency.exit_ms[:, k]
        total += np.interp(max(n_rows, 1), latency.batch_sizes, per_size) * min(n_rows, 1)
    return total


@pytest.mark.filterwarnings("ignore:the mean cost on the fitting data")
@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("seed", range(6))
def test_as_the_best_of_all_subsets(data, fitted, batch_size, seed):
    policy, scores = fitted[0], fitted[0].exit_scores(data[0])
    decisions = np.random.default_rng(seed).exponential(1.5, size=N_EXITS)
    latency = make_latency(decisions, sizes=(1, 4, 8))
    early = range(N_EXITS - 1)
    # The budget pays for one of the first two exits, not for the third alone.
    subsets = [exits for n in range(N_EXITS) for exits in combinations(early, n) if not {0, 1} <= {*exits}]
    best = min(time_without(policy, scores, exits, latency, batch_size) for exits in subsets)
    found = pruned(policy, latency, batch_size)
    switched_off = np.flatnonzero(np.isposinf(found.thresholds_))
    assert time_without(policy, scores, switched_off, latency, batch_size) == pytest.approx(best)
    assert found.mean_cost(data[0]) == pytest.approx(0.7, abs=0.01)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(POLICIES)), ids=lambda number: type(POLICIES[number]).__name__)
def test_any_policy(data, fitted, number):
    X, policy = data[0], fitted[number]
    # Nothing is saved by an exit that takes longer than all stages together; free ones stay as they were.
    found = pruned(policy, make_latency([0, 0, 100, 0]))
    assert found.thresholds_[2] == np.inf
    stops = found.predict_exit(X)
    assert not (stops == 2).any()
    assert found.mean_cost(X) <= 0.7 + 1e-9
    np.testing.assert_allclose(found.exit_distribution_, np.bincount(stops, minlength=N_EXITS) / len(X), atol=0.02)
    if np.isfinite(policy.thresholds_[2]):
        assert found.with_budget(0.8).thresholds_[2] == np.inf
    assert pruned(policy, make_latency([0, 0, 0, 0])) is policy
    again = found.fit(*data)
    np.testing.assert_allclose(again.thresholds_, policy.thresholds_)


@pytest.mark.filterwarnings("ignore")
def test_exits_that_later_ones_need_are_kept(data):
    latency = make_latency([4.0, 0, 0, 0])
    heads = ExitEnsemble().fit(*data)
    alone = ThresholdPolicy(budget=0.7).fit(heads.transform(data[0]), data[1])
    pipeline = make_exit_pipeline(ExitEnsemble(), ThresholdPolicy(budget=0.7)).fit(*data)
    assert pruned(alone, latency).thresholds_[0] == np.inf
    for found in (pruned(alone, latency, heads=heads), pruned(pipeline, latency)[-1]):
        np.testing.assert_array_equal(found.thresholds_, alone.thresholds_)


def test_a_pipeline(data):
    pipeline = make_exit_pipeline(ExitHeads(random_state=0, max_epochs=2), ThresholdPolicy(budget=0.7)).fit(*data)
    found = pruned(pipeline, make_latency([0, 100, 0, 0]))
    assert type(found) is type(pipeline)
    assert found[0] is pipeline[0]
    assert found[-1].thresholds_[1] == np.inf
    assert np.isfinite(pipeline[-1].thresholds_[1])


def test_where_nothing_pays(data, fitted):
    found = pruned(fitted[0], make_latency([100] * N_EXITS))
    # The budget pays for the second exit, not for the third alone.
    np.testing.assert_array_equal(np.isfinite(found.thresholds_[:3]), [False, True, False])
    with pytest.raises(ValueError, match=r"not switched off, 0\.5\. Give at least this cost, or call with_budget"):
        found.with_budget(0.4)


@pytest.mark.parametrize(
    ("policy", "arguments", "message"),
    [
        (lambda fitted: fitted, {"batch_size": 0}, "batch_size=0 must be at least 1"),
        (lambda fitted: fitted.without_fit_state(), {}, "no fit_state_.*Call pruned on the policy that was fitted"),
        (lambda fitted: fitted, {"latency": make_latency([0, 0], stages=(1, 1))}, "has 4 exits, but latency has 2"),
    ],
)
def test_errors(fitted, policy, arguments, message):
    with pytest.raises(ValueError, match=message):
        pruned(policy(fitted[0]), **{"latency": make_latency([0] * N_EXITS), **arguments})


def test_a_policy_without_budget(data):
    with pytest.raises(ValueError, match="has no budget"):
        pruned(StaticExit(1).fit(*data), make_latency([0] * N_EXITS))


@pytest.mark.parametrize(
    "policy", [ThresholdPolicy(budget=0.7), ThresholdPolicy("margin", schedule="shared", budget=0.7)]
)
def test_a_budget_in_milliseconds_is_spent_on_the_exits_that_are_left(data, policy):
    X, y = data
    latency = make_latency([1.0, 4.0, 0.5, 0.0])
    in_ms = X.with_layout(latency.layout(X.layout, 1))
    fitted = policy.fit(in_ms, y)
    found = pruned(fitted, latency)
    assert np.isposinf(found.thresholds_[1])
    assert latency.expected(found)["saved"][1] == pytest.approx(0.3, abs=0.01)
    assert found.mean_cost(in_ms) == pytest.approx(0.7, rel=0.01)
    # With the costs of all decisions, a part of the budget would be left.
    underspent = fitted._without_exits([1])
    assert latency.expected(underspent)["live_ms"][1] < 0.95 * latency.expected(found)["live_ms"][1]
    np.testing.assert_allclose(found.fit(in_ms, y).costs_, fitted.layout_.cost_fractions)


class FourLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(N_EXITS))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def make_live(policy, latency):
    return EarlyExitModel(FourLayers(), [f"layers.{k}" for k in range(N_EXITS)], policy, latency=latency)


@pytest.mark.filterwarnings("ignore:the mean cost on the fitting data")
@pytest.mark.parametrize("number", range(len(POLICIES)), ids=lambda number: type(POLICIES[number]).__name__)
def test_a_warning_names_exits_that_do_not_pay_and_its_cure_ends_it(fitted, number):
    policy, latency = fitted[number], make_latency([0.1, 0.1, 100, 0], sizes=(1, 8))
    used = np.isfinite(policy.thresholds_[2])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnprofitableExitsWarning)
        make_live(policy, latency)
    found = [str(warning.message) for warning in caught if warning.category is UnprofitableExitsWarning]
    assert len(found) == used
    assert not used or "'layers.2' take longer than they save, in batches of 1 and 8. Switch" in found[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnprofitableExitsWarning)
        make_live(pruned(policy, latency, batch_size=1), latency)
        make_live(policy, make_latency([0] * N_EXITS))
        make_live(policy.without_fit_state(), latency)


@pytest.mark.filterwarnings("ignore:the mean cost on the fitting data")
def test_an_exit_that_pays_in_some_batches_is_not_warned_of(fitted):
    latency = make_latency([0] * N_EXITS, sizes=(1, 8))
    latency.exit_ms[1, 2] = 100
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnprofitableExitsWarning)
        make_live(fitted[0], latency)
