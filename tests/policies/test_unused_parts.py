"""What a policy has learned and does not use is not run, and what it cannot use is not learned."""

import numpy as np
import pytest
from instances import make_exits
from sklearn.base import clone

from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitHeads,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RiskControlledPolicy,
    ThresholdPolicy,
    stack_exits,
)
from skexit.policies import _stopping
from skexit.policies._decision import ExitDecision
from skexit.policies.eenet import _policy as eenet_policy
from skexit.policies.em import _assigner


@pytest.fixture(scope="module")
def data():
    return make_exits(n_samples=200, n_exits=3, n_classes=3, random_state=0)


def without_features(X):
    return stack_exits(np.stack([X.logits(k) for k in range(X.layout.n_exits)], axis=1))


def not_called(*args, **kwargs):
    pytest.fail("what is not used is trained")


@pytest.mark.parametrize("budget", [None, 0.6])
def test_em_trains_no_routers_where_the_confidence_decides_alone(data, budget, monkeypatch):
    X, y = data
    monkeypatch.setattr(_assigner, "train", not_called)
    policy = EMExitAssigner(budget=budget, confidence_weight=np.inf).fit(X, y)
    assert policy.routers_ == []
    assert policy.uses_routers_ is False
    np.testing.assert_array_equal(policy.exit_scores(X), ThresholdPolicy().fit(X, y).exit_scores(X))
    if budget:
        assert policy.with_budget(0.8).exit_distribution_ @ policy.costs_ == pytest.approx(0.8, abs=0.005)
        # Routers that are trained and not used decide the same.
        trained = EMExitAssigner(budget=budget, max_epochs=1, confidence_weight=0)
        monkeypatch.undo()
        assert len(trained.fit(X, y).routers_) == 2
        assert trained.lam_ == policy.lam_


def test_eenet_runs_no_networks_where_the_confidence_decides_alone(data, monkeypatch):
    X, y = data
    policy = EENetPolicy(confidence_weight=np.inf, max_epochs=1, random_state=0).fit(X, y)
    scores_alone = EENetPolicy(learn_scores=False, max_epochs=1, random_state=0).fit(X, y)
    learned = EENetPolicy(max_epochs=1, random_state=0).fit(X, y)
    assert policy.learned_distribution_ is not None  # which the quotas follow
    for one, uses in [(policy, False), (scores_alone, False), (learned, True)]:
        assert one.uses_networks_ is uses
        assert [len(one.earlier_exits(k)) for k in range(3)] == ([0, 1, 2] if uses else [0, 0, 0])
    np.testing.assert_array_equal(policy.exit_scores(X), scores_alone.exit_scores(X))
    np.testing.assert_array_equal(policy.thresholds_, scores_alone.thresholds_)
    monkeypatch.setattr(eenet_policy, "train_scheduler", not_called)
    untrained = clone(policy).set_params(learn_distribution=False).fit(X, y)
    assert not untrained.uses_networks_
    np.testing.assert_array_equal(untrained.thresholds_, ThresholdPolicy().fit(X, y).thresholds_)


def test_stopping_reads_no_features_that_change_nothing(data, monkeypatch):
    X, y = data
    policy = OptimalStoppingPolicy(0.6, use_features=True).fit(X, y)
    assert [policy.uses_features(k) for k in range(3)] == [True, True, False]
    # Nobody is right at later exits who is not at the first: nothing is gained by going on.
    logits = np.repeat(X.logits(0)[:, None], 3, axis=1)
    same = stack_exits(logits, [X.features(k) for k in range(3)])
    idle = OptimalStoppingPolicy(0.6, use_features=True, outcome="realised").fit(same, y)
    assert [idle.uses_features(k) for k in range(3)] == [False] * 3
    assert [len(idle.earlier_exits(k)) for k in range(3)] == [0] * 3
    other = stack_exits(logits, [np.zeros_like(X.features(k)) for k in range(3)])
    np.testing.assert_array_equal(idle.exit_scores(other), idle.exit_scores(same))
    np.testing.assert_array_equal(ExitDecision(idle).uses_features(0), False)
    monkeypatch.setattr(_stopping, "exit_evidence", not_called)
    assert policy.score_exit(2, X.logits(2), None, {}).tolist() == [0.0] * len(y)


@pytest.mark.filterwarnings("ignore:no budget qualifies:UserWarning")
def test_risk_control_runs_no_policy_where_no_budget_qualifies(data):
    X, y = data
    risk = RiskControlledPolicy(OptimalStoppingPolicy(use_features=True), alpha=0.0, delta=1e-6, loss="error")
    risk.fit(X, y)
    assert risk.budget_ is None
    assert not any(risk.uses_features(k) for k in range(3))
    assert [len(risk.earlier_exits(k)) for k in range(3)] == [0] * 3
    np.testing.assert_array_equal(risk.exit_scores(X), np.zeros((len(y), 3)))
    np.testing.assert_array_equal(risk.predict_exit(X), 2)


@pytest.mark.parametrize("heads", [ExitHeads(cascade=True), ExitHeads((4,), cascade=True, max_epochs=1)], ids=repr)
def test_cascades_read_no_features_that_no_head_sees(data, heads):
    X, y = data
    features = [X.features(k) for k in range(3)]
    last_has_logits = stack_exits([None, None, X.logits(2)], features)
    fitted = clone(heads).fit(last_has_logits, y)
    assert [fitted.uses_features(k) for k in range(3)] == [True, True, False]
    assert [len(fitted.earlier_exits(k)) for k in range(3)] == [0, 1, 0]
    assert fitted.exit_logits(2, X.logits(2), None, {}) is not None
    middle_has_logits = stack_exits([None, X.logits(1), None], features)
    fitted = clone(heads).fit(middle_has_logits, y)
    hands_on = not heads.hidden_layer_sizes
    assert [fitted.uses_features(k) for k in range(3)] == [True, hands_on, True]
    assert [len(fitted.earlier_exits(k)) for k in range(3)] == [0, 0, 2]


@pytest.mark.parametrize(
    ("parameters", "needs_first"), [({}, False), ({"decision": "sampled"}, True), ({"gate_reading": "exit"}, True)]
)
def test_gates_read_earlier_exits_only_if_their_scores_depend_on_them(data, parameters, needs_first):
    policy = JEIGatedEnsemble(budget=0.6, random_state=0, **parameters).fit(*data)
    policy.thresholds_[0] = np.inf
    decision = ExitDecision(policy)
    assert decision.is_observed == [needs_first, True, True]
    exits = policy.predict_exit(data[0])
    scores = policy.exit_scores(data[0])
    np.testing.assert_array_equal(exits, np.where(scores[:, 1] >= policy.thresholds_[1], 1, 2))
