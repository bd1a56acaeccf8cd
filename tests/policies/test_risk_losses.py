"""Losses of RiskControlledPolicy that compare an early answer with the last exit's: values, and the guarantee."""

import numpy as np
import pytest
from rows import make_rows
from scipy.special import softmax
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import brier_score_loss

from skexit import (
    OptimalStoppingPolicy,
    RiskControlledPolicy,
    ThresholdPolicy,
    make_exit_pipeline,
    recommended_heads,
    stack_exits,
)
from skexit.policies._risk_losses import brier_scores

LOSSES = ["disagreement", "brier_gap", "brier_consistency"]
DELTA = 0.1
FITTED = ThresholdPolicy("margin", budget=0.7).fit(*make_rows(600, seed=1))


def losses_by_hand(loss, X, y, stops):
    """From the probabilities of the exits, row by row."""
    logits = np.stack([X.logits(k) for k in range(4)], axis=1)
    probabilities = softmax(logits, axis=2)
    answers = logits.argmax(axis=2)
    values = []
    for row, stop in enumerate(stops):
        if loss == "disagreement":
            values.append(float(answers[row, stop] != answers[row, -1]))
            continue
        target = np.eye(3)[y[row] if loss == "brier_gap" else answers[row, -1]]
        early, last = (((probabilities[row, k] - target) ** 2).sum() / 2 for k in (stop, -1))
        values.append(early - last)
    return np.array(values)


@pytest.mark.parametrize("loss", LOSSES)
def test_risks_are_means_of_the_losses(loss):
    X, y = make_rows(300, seed=2)
    budgets = [0.5, 0.9]
    policy = RiskControlledPolicy(FrozenEstimator(FITTED), alpha=0.9, loss=loss, budgets=budgets).fit(X, y)
    for budget, risk in zip(policy.budgets_, policy.risks_, strict=True):
        stops = FITTED.with_budget(budget).predict_exit(X)
        assert risk == pytest.approx(losses_by_hand(loss, X, y, stops).mean())


def test_brier_score_is_scikit_learns():
    X, y = make_rows(200, seed=3)
    scores = brier_scores(FITTED, X, y, "brier_gap")
    for k in range(4):
        expected = brier_score_loss(y, softmax(X.logits(k), axis=1), scale_by_half=True)
        assert scores[:, k].mean() == pytest.approx(expected)
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("loss", ["disagreement", "brier_consistency"])
def test_labels_are_not_looked_at(loss):
    X, y = make_rows(300, seed=4)
    policy = RiskControlledPolicy(FrozenEstimator(FITTED), alpha=0.1, loss=loss, random_state=0)
    with_labels, without = (policy.fit(X, labels).risks_ for labels in (y, None))
    np.testing.assert_array_equal(with_labels, without)
    np.testing.assert_array_equal(policy.fit(X, np.full(300, -1)).risks_, without)
    np.testing.assert_array_equal(policy.fit(np.asarray(X)).risks_, without)


def test_disagreement_of_several_policies():
    X, _ = make_rows(300, seed=5)
    other = OptimalStoppingPolicy(0.7, random_state=0).fit(*make_rows(600, seed=1))
    given = [FrozenEstimator(FITTED), FrozenEstimator(other)]
    policy = RiskControlledPolicy(given, alpha=0.2, loss="disagreement", random_state=0).fit(X)
    assert policy.budget_ < 1


def test_disagreement_is_at_least_the_drop():
    X, y = make_rows(600, seed=6)
    risks = [
        RiskControlledPolicy(FrozenEstimator(FITTED), alpha=0.99, loss=loss, random_state=0).fit(X, y).risks_
        for loss in ("disagreement", "accuracy_drop")
    ]
    assert (risks[0] >= risks[1]).all()


@pytest.mark.parametrize(
    "policy",
    [
        RiskControlledPolicy(loss="disagreement"),
        RiskControlledPolicy([FrozenEstimator(FITTED), ThresholdPolicy()], loss="disagreement"),
        RiskControlledPolicy(FrozenEstimator(FITTED), loss="brier_gap"),
    ],
    ids=["to fit", "one to fit", "a loss with labels"],
)
def test_labels_are_needed(policy):
    X, _ = make_rows(100)
    with pytest.raises(ValueError, match=r"requires y to be passed, but .* freeze .* loss='disagreement'"):
        policy.fit(X)
    cured = policy.set_params(policy=FrozenEstimator(FITTED), loss="disagreement", alpha=0.5)
    assert cured.fit(X).budget_ is not None


def test_pipelines_of_heads():
    X, y = make_rows(200)
    pipeline = make_exit_pipeline(recommended_heads(random_state=0).set_params(max_epochs=2), ThresholdPolicy())
    features = stack_exits([None, None, None, X.logits(3)], [X.logits(k) for k in range(4)], classes=[0, 1, 2])
    pipeline.fit(features, y)
    policy = RiskControlledPolicy(FrozenEstimator(pipeline), alpha=0.5, loss="brier_consistency").fit(features)
    assert policy.predict(features).shape == (200,)


class Uncorrected(RiskControlledPolicy):
    """The cheapest budget whose mean loss on the calibration rows is small enough: a bound that does not hold."""

    def _p_value(self, losses):
        return 0.0 if losses.mean() <= self.alpha else 1.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no budget qualifies:UserWarning")
@pytest.mark.parametrize("loss", LOSSES)
def test_the_share_of_violations(loss):
    """200 calibration sets of 300 rows, 50 for a bound that does not hold by far; the true risks are those of 100,000 rows."""
    budgets = np.linspace(1, 0.25, 12)
    X, y = make_rows(100_000, seed=7)
    stops = [FITTED.with_budget(budget).predict_exit(X) for budget in budgets]
    if loss == "disagreement":
        answers = FITTED.predict_at_exits(X)
        risks = [np.mean(answers[np.arange(len(y)), at] != answers[:, -1]) for at in stops]
    else:
        scores = brier_scores(FITTED, X, y, loss)
        risks = [np.mean(scores[np.arange(len(y)), at] - scores[:, -1]) for at in stops]
    alpha = risks[8] - 1e-3  # this budget is only just too cheap: the hardest case
    assert risks[7] < alpha < risks[9]
    true_risk = dict(zip(budgets.tolist(), risks, strict=True))
    violations = {}
    for kind, n_sets in ((RiskControlledPolicy, 200), (Uncorrected, 50)):
        budgets_served = []
        for number in range(n_sets):
            rows = slice(300 * number, 300 * (number + 1))
            policy = kind(FrozenEstimator(FITTED), alpha, DELTA, loss=loss, budgets=budgets, random_state=number).fit(
                X[rows], y[rows]
            )
            budgets_served.append(policy.budget_)
        violations[kind] = np.mean([true_risk.get(budget, 0.0) > alpha for budget in budgets_served])
    assert violations[RiskControlledPolicy] <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / 200)
    assert violations[Uncorrected] > 2 * DELTA
