"""Costs and budgets are fractions of the network without heads; what heads cost comes on top, and is told apart."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import make_exits
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline

from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitArray,
    ExitEnsemble,
    ExitHeads,
    ExitLayout,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RandomExit,
    RiskControlledPolicy,
    StaticExit,
    ThresholdPolicy,
    oracle,
    stack_exits,
)
from skexit.exceptions import ExpensiveHeadsWarning
from skexit.metrics import accuracy_cost_curve, exit_report, oracle_regret, speedup
from skexit.runtime import policy_from_json, policy_to_json

N_CLASSES, N_FEATURES = 3, 5
#: A linear head takes as many multiply-adds as it has weights, and one that mixes k exits k numbers a class.
HEAD = N_CLASSES * N_FEATURES


def frozen_network(network_cost=1000.0, unit="MACs", n_samples=200):
    """Three exits of features; the last has the network's own logits, too."""
    X, y = make_exits(n_samples, 3, N_CLASSES, random_state=0, n_features=N_FEATURES)
    costs = np.array([0.3, 0.6, 1.0]) * network_cost
    exits = stack_exits([None, None, X.logits(2)], [X.features(k) for k in range(3)], costs=costs, cost_unit=unit)
    return exits, y


def in_pipeline(heads, policy):
    return make_pipeline(heads, policy)


def as_parameter(heads, policy):
    return policy.set_params(heads=heads)


def as_frozen_parameter(heads, policy):
    return policy.set_params(heads=FrozenEstimator(heads.fit(*frozen_network())))


@pytest.mark.parametrize("combine", [in_pipeline, as_parameter, as_frozen_parameter])
@pytest.mark.parametrize(
    ("heads", "multiply_adds"),
    [
        (ExitHeads(), [HEAD, 2 * HEAD, 2 * HEAD]),
        (ExitEnsemble(), [HEAD + 3, 2 * HEAD + 9, 2 * HEAD + 18]),
        (ExitHeads((2,), distillation=0, max_epochs=1, random_state=0), [16, 32, 32]),
    ],
    ids=["linear", "ensemble", "hidden"],
)
def test_heads_come_on_top_of_the_network(combine, heads, multiply_adds):
    X, y = frozen_network()
    fitted = combine(heads, ThresholdPolicy(budget=0.7)).fit(X, y)
    policy = fitted[-1] if combine is in_pipeline else fitted
    added = np.array(multiply_adds) / 1000
    np.testing.assert_allclose(policy.costs_, np.array([0.3, 0.6, 1.0]) + added)
    np.testing.assert_allclose(policy.layout_.head_fractions, added)
    assert policy.layout_.network_cost == 1000
    again = policy_from_json(policy_to_json(policy))
    np.testing.assert_array_equal(again.costs_, policy.costs_)
    assert again.layout_ == policy.layout_
    assert ExitLayout.from_dict(json.loads(json.dumps(policy.layout_.to_dict()))) == policy.layout_


def test_a_frame_keeps_the_network_and_its_heads_apart():
    X, y = frozen_network()
    with_heads = ExitHeads().fit_transform(X, y)
    again = ExitArray.from_frame(with_heads.to_frame())
    assert again.layout == with_heads.layout
    np.testing.assert_array_equal(again[::2].layout.cost_fractions, with_heads.layout.cost_fractions)
    assert again.layout.cost_fractions[-1] > 1


POLICIES = [
    ThresholdPolicy(),
    ThresholdPolicy(schedule="shared"),
    RandomExit(budget=0.5, random_state=0),
    OptimalStoppingPolicy(random_state=0),
    EMExitAssigner(budget=0.5, random_state=0, max_epochs=2),
    EENetPolicy(random_state=0, max_epochs=2),
    JEIGatedEnsemble(budget=0.5, random_state=0, max_epochs=2),
]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_budget_is_what_the_network_without_heads_takes(policy):
    X, y = frozen_network(n_samples=150)
    fitted = policy.set_params(heads=None, budget=0.5).fit(X, y)
    # Two heads of 15 multiply-adds before the last exit, counted here by hand.
    multiply_adds = np.array([300 + HEAD, 600 + 2 * HEAD, 1000 + 2 * HEAD])
    for budget in (0.4, 0.7, 1.0):
        at_budget = fitted.with_budget(budget)
        spent = at_budget.exit_distribution_ @ multiply_adds
        assert spent <= budget * 1000 + 1e-6
        # Optimal stopping leaves what would do harm; all others spend it, to one sample.
        if not isinstance(policy, OptimalStoppingPolicy):
            assert spent >= budget * 1000 - multiply_adds[-1] / 150 - 1e-6
        assert at_budget.mean_cost(X) == pytest.approx(multiply_adds[at_budget.predict_exit(X)].mean() / 1000)


def test_all_of_the_network_with_heads_is_more_than_the_network():
    X, y = frozen_network()
    policy = StaticExit(-1).fit(X, y)
    assert policy.mean_cost(X) == pytest.approx(1 + 2 * HEAD / 1000)
    with_heads = policy.heads_.transform(X)
    exits = policy.predict_exit(X)
    assert speedup(policy.costs_[exits]) == pytest.approx(1000 / (1000 + 2 * HEAD))
    report = exit_report(y, policy.predict_at_exits(X), exits, policy.costs_, output="dict")
    assert report["total"]["cost"] == pytest.approx(policy.mean_cost(X))
    assert report["exit 2"]["cost"] == pytest.approx(policy.mean_cost(X))
    bound = oracle(with_heads, y)
    assert bound.mean_cost == pytest.approx(policy.costs_[bound.exits].mean())
    regret = oracle_regret(y, policy.predict_at_exits(X), exits, policy.costs_)
    assert regret.cost == pytest.approx(policy.mean_cost(X) - bound.mean_cost)
    curve = accuracy_cost_curve(y, policy.predict(X), policy.costs_[exits])
    assert curve.costs[0] > 1
    with pytest.raises(ValueError, match=r"cheapest point costs 1\.03 of the network's"):
        curve.area()


@pytest.mark.parametrize("budget", [1.0, 0.999])
def test_an_end_before_the_networks_own_takes_less_than_all(budget):
    """What cannot be spent is no fault of the scores."""
    X, y = make_exits(100, 3, N_CLASSES, random_state=0)
    X = X.with_layout(X.layout.replace(network_cost=1.25))
    for schedule in ("geometric", "shared"):
        policy = ThresholdPolicy(budget=budget, schedule=schedule).fit(X, y)
        assert policy.mean_cost(X) == pytest.approx(0.8)


def test_units_that_count_no_operations_have_no_cost_of_heads():
    for unit in ("ms", "joules", None):
        X, y = frozen_network(unit=unit)
        policy = ThresholdPolicy().fit(X, y)
        np.testing.assert_allclose(policy.costs_, [0.3, 0.6, 1.0])
        assert not policy.layout_.head_costs.any()


class TestBudgetsThatCannotBeMet:
    def test_the_cure_names_heads_where_they_are_the_cause(self):
        X, y = frozen_network(network_cost=100)
        with pytest.raises(
            ValueError, match=r"^budget=0\.4 is below the cost of the first exit, 0\.45 of the network"
        ) as caught:
            ThresholdPolicy(budget=0.4).fit(X, y)
        assert (
            "0.15 of it for heads. Raise it to 0.45 or more, or use heads with fewer features or hidden units, or add"
            in str(caught.value)
        )
        ThresholdPolicy(budget=0.46).fit(X, y)
        with pytest.raises(
            ValueError, match=r"first exit, 0\.3 of the network's\. Raise it to 0\.3 or more, or add an earlier"
        ):
            RandomExit(budget=0.2).fit(ExitArray.from_array(np.asarray(X), X.layout.replace(cost_unit="ms")), y)

    def test_no_budget_pays_for_heads_that_cost_more_than_the_network(self):
        X, y = frozen_network(network_cost=20)
        with pytest.raises(
            ValueError, match=r"first exit, 1\.05 of the network's, 0\.75 of it for heads\. Use heads with fewer"
        ) as caught:
            ThresholdPolicy(budget=1).fit(X, y)
        assert "Raise" not in str(caught.value)

    @pytest.mark.parametrize("budget", [1.02, 0, -1, np.nan])
    def test_no_budget_is_above_the_network(self, budget):
        X, y = frozen_network()
        policy = ThresholdPolicy().fit(X, y)
        for call in (policy.with_budget, lambda budget: ThresholdPolicy(budget=budget).fit(X, y)):
            with pytest.raises(ValueError, match=r"must be in \(0, 1\]: it is a fraction of the network's cost"):
                call(budget)


class TestExpensiveHeads:
    """Two heads of 15 multiply-adds."""

    ESTIMATORS = (
        ThresholdPolicy(),
        ThresholdPolicy(heads=ExitEnsemble()),
        make_pipeline(ExitHeads(), ThresholdPolicy()),
        make_pipeline(ExitEnsemble(), OptimalStoppingPolicy(random_state=0)),
        JEIGatedEnsemble(random_state=0, max_epochs=1),
        EMExitAssigner(budget=0.7, random_state=0, max_epochs=1),
        RiskControlledPolicy(alpha=0.5, random_state=0),
        StaticExit(0),
    )

    @pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
    def test_they_are_told_once(self, estimator):
        X, y = frozen_network(network_cost=500)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimator.fit(X, y)
        told = [warning for warning in caught if issubclass(warning.category, ExpensiveHeadsWarning)]
        assert len(told) == 1
        assert told[0].filename == __file__
        assert 0.05 < told[0].message.share < 0.1
        assert f"add {100 * told[0].message.share:.3g} % to the cost of the network" in str(told[0].message)

    def test_a_path_of_prices_tells_it_once(self):
        X, y = frozen_network(network_cost=500)
        with pytest.warns(ExpensiveHeadsWarning) as caught:
            JEIGatedEnsemble(random_state=0, max_epochs=1).lambda_path(X, y, [1.0, 2.0])
        assert len(caught) == 1

    @pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
    def test_cheap_ones_are_not(self, estimator):
        with warnings.catch_warnings():
            warnings.simplefilter("error", ExpensiveHeadsWarning)
            estimator.fit(*frozen_network(network_cost=1000))

    @pytest.mark.slow
    @given(st.floats(100, 1000))
    @settings(max_examples=20, deadline=None)
    def test_from_five_percent_on(self, network_cost):
        X, y = frozen_network(network_cost, n_samples=60)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ExpensiveHeadsWarning)
            policy = StaticExit(0).fit(X, y)
        share = 2 * HEAD / network_cost
        assert policy.layout_.head_fractions[-1] == pytest.approx(share)
        assert bool(caught) == (share > 0.05)

    def test_the_cures_work(self):
        X, y = frozen_network(network_cost=700)
        with pytest.warns(ExpensiveHeadsWarning, match="fewer or no hidden units"):
            ThresholdPolicy(heads=ExitHeads((8,), max_epochs=1)).fit(X, y)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ExpensiveHeadsWarning)
            ThresholdPolicy(heads=ExitHeads()).fit(X, y)

    def test_the_network_knows_its_own_heads(self):
        """Logits of the network's own exits come without heads of ours."""
        X, y = make_exits(100, 3, N_CLASSES, random_state=0)
        X = X.with_layout(X.layout.replace(costs=[1, 2, 3], cost_unit="FLOPs"))
        with warnings.catch_warnings():
            warnings.simplefilter("error", ExpensiveHeadsWarning)
            assert ThresholdPolicy().fit(X, y).costs_[-1] == 1
