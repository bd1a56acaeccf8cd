"""Thresholds on the confidence, and on the scores of another policy."""

import numpy as np
import pytest
from instances import make_exits
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from skexit import (
    EENetPolicy,
    ExitEnsemble,
    ExitHeads,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RiskControlledPolicy,
    ThresholdPolicy,
    make_exit_pipeline,
    stack_exits,
)
from skexit.policies._quotas import exits_from_scores


@pytest.mark.parametrize("parameters", [{"schedule": "greedy"}, {"criterion": "certainty"}, {"criterion": 3}], ids=str)
def test_bad_input(parameters):
    X, y = make_exits(50, 3, 2, 0)
    with pytest.raises(ValueError, match=rf"The '{next(iter(parameters))}' parameter of ThresholdPolicy must be"):
        ThresholdPolicy(**parameters).fit(X, y)


class TestScoresOfPolicies:
    @pytest.mark.parametrize(
        "inner",
        [
            OptimalStoppingPolicy(0.5, random_state=0),
            EENetPolicy(0.5, random_state=0, max_epochs=2),
            JEIGatedEnsemble(budget=0.5, random_state=0, max_epochs=2),
        ],
        ids=lambda policy: type(policy).__name__,
    )
    @pytest.mark.parametrize("frozen", [False, True])
    def test_are_those_of_the_policy(self, inner, frozen):
        X, y = make_exits(300, 4, 3, 0)
        new, _ = make_exits(100, 4, 3, 1)
        fitted = clone(inner).fit(X, y)
        policy = ThresholdPolicy(FrozenEstimator(fitted) if frozen else inner, budget=0.6).fit(X, y)
        np.testing.assert_allclose(policy.exit_scores(new), fitted.exit_scores(new))
        assert policy.mean_cost(X) == pytest.approx(0.6, abs=1 / 300)
        assert (policy.policy_ is fitted) == frozen
        stops = policy.predict_exit(new)
        np.testing.assert_array_equal(stops, exits_from_scores(policy.exit_scores(new), policy.thresholds_))

    def test_with_heads(self):
        X, y = make_exits(300, 3, 3, 0)
        X = stack_exits([None, None, X.logits(2)], [X.features(k) for k in range(3)])
        policy = ThresholdPolicy(
            OptimalStoppingPolicy(random_state=0), budget=0.6, heads=ExitHeads(random_state=0)
        ).fit(X, y)
        expected = ThresholdPolicy(OptimalStoppingPolicy(random_state=0), budget=0.6)
        expected.fit(ExitHeads(random_state=0).fit_transform(X, y), y)
        np.testing.assert_allclose(policy.exit_scores(X), expected.exit_scores(policy.heads_.transform(X)))

    def test_their_parameters_can_be_set(self):
        policy = ThresholdPolicy(OptimalStoppingPolicy())
        assert policy.get_params()["criterion__outcome"] == "expected"
        policy.set_params(criterion__outcome="realised", schedule="shared")
        assert policy.get_params()["criterion"].outcome == "realised"

    def test_of_other_exits_are_refused(self):
        X, y = make_exits(100, 4, 3, 0)
        fitted = OptimalStoppingPolicy(random_state=0).fit(*make_exits(100, 3, 3, 0))
        with pytest.raises(
            ValueError, match=r"criterion is a OptimalStoppingPolicy fitted with .* Fit it on the same exits"
        ):
            ThresholdPolicy(FrozenEstimator(fitted)).fit(X, y)

    @pytest.mark.parametrize("frozen", [False, True])
    @pytest.mark.parametrize(
        ("inner", "message"),
        [
            (OptimalStoppingPolicy(0.5, heads=ExitEnsemble(), random_state=0), " with its own heads"),
            (ThresholdPolicy(use_most_confident=True), "with use_most_confident=True.* Set use_most_confident=True"),
            (make_exit_pipeline(ExitEnsemble(), ThresholdPolicy()), "ExitPipeline, which is not a policy"),
        ],
        ids=["heads", "most confident", "pipeline"],
    )
    def test_of_other_logits_are_refused(self, inner, message, frozen):
        X, y = make_exits(100, 3, 3, 0)
        criterion = FrozenEstimator(clone(inner).fit(X, y)) if frozen else inner
        with pytest.raises(ValueError, match=rf"criterion is a .*{message}"):
            ThresholdPolicy(criterion).fit(X, y)

    def test_the_cures_of_the_errors(self):
        X, y = make_exits(300, 3, 3, 0)
        inner = OptimalStoppingPolicy(0.5, heads=ExitEnsemble(), random_state=0).fit(X, y)
        policy = ThresholdPolicy(FrozenEstimator(inner), heads=FrozenEstimator(inner.heads_)).fit(X, y)
        np.testing.assert_allclose(policy.exit_scores(X), inner.exit_scores(X))
        inner = ThresholdPolicy("entropy", use_most_confident=True)
        policy = ThresholdPolicy(inner, use_most_confident=True).fit(X, y)
        np.testing.assert_allclose(policy.exit_scores(X), inner.fit(X, y).exit_scores(X))

    def test_of_risk_control_are_those_of_its_policy(self):
        X, y = make_exits(300, 3, 3, 0)
        with pytest.raises(ValueError, match="cannot be fitted with weights"):
            ThresholdPolicy(RiskControlledPolicy(alpha=0.2)).fit(X, y)
