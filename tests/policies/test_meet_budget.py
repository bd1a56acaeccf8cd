"""`meet_budget` on many rows, which reads late exits only for the rows that may reach them."""

import numpy as np
import pytest
from instances import POLICIES
from rows import make_rows
from sklearn.base import clone

from skexit import stack_exits
from skexit.policies import BudgetedPolicy, _budgeted


def rows_with_features(n, seed, signal=1.0):
    X, y = make_rows(n, seed=seed, signal=signal)
    logits = [X.logits(k) for k in range(4)]
    return stack_exits(logits, [np.tanh(block) for block in logits], costs=X.layout.costs, classes=[0, 1, 2]), y


X_FIT, Y_FIT = rows_with_features(300, seed=0)
#: The rows that come later: as those that were fitted, harder, and easier.
SIGNALS = {"the same": 1.0, "harder": 0.6, "easier": 2.0}


def fitted(policy):
    policy = clone(policy).fit(X_FIT, Y_FIT)
    if not isinstance(policy, BudgetedPolicy) or policy.budget is None:
        pytest.skip("the policy has no budget")
    return policy


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: str(policy)[:60])
def test_thresholds_are_those_of_all_scores(policy, signal, monkeypatch):
    policy = fitted(policy)
    X = rows_with_features(900, seed=1, signal=signal)[0]
    expected = policy.meet_budget(X)
    monkeypatch.setattr(_budgeted, "_N_SAMPLED", 200)
    found = policy.meet_budget(X)
    np.testing.assert_allclose(found.thresholds_, expected.thresholds_)
    np.testing.assert_allclose(found.exit_distribution_, expected.exit_distribution_)


def test_late_exits_are_read_for_the_rows_that_may_reach_them(monkeypatch):
    policy = fitted(POLICIES[0])
    X = rows_with_features(20_000, seed=1)[0]
    n_scored = []
    score_exit = type(policy).score_exit
    monkeypatch.setattr(
        type(policy),
        "score_exit",
        lambda self, k, logits, *args: n_scored.append(len(logits)) or score_exit(self, k, logits, *args),
    )
    policy.meet_budget(X)
    in_full = sum(n_scored)
    n_scored.clear()
    monkeypatch.setattr(_budgeted, "_N_SAMPLED", 2000)
    policy.meet_budget(X)
    assert sum(n_scored) < 0.8 * in_full
