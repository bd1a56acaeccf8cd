"""An ExitArray and its DataFrame are the same X, in ``fit`` and in later calls."""

import warnings

import numpy as np
import pytest
from instances import make_exits
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import StandardScaler

from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitEnsemble,
    ExitHeads,
    ExitTransformer,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RandomExit,
    RiskControlledPolicy,
    StaticExit,
    ThresholdPolicy,
    make_exit_pipeline,
    stack_exits,
)

EXITS, y = make_exits(n_samples=150, n_exits=3, n_classes=3, random_state=0)
X = stack_exits([None, None, EXITS.logits(2)], [EXITS.features(k) for k in range(3)])
FRAME = X.to_frame()

ESTIMATORS = [
    ThresholdPolicy(budget=0.9, heads=ExitHeads()),
    OptimalStoppingPolicy(0.9, heads=ExitHeads()),
    EENetPolicy(0.9, max_epochs=1, heads=ExitHeads()),
    EMExitAssigner(max_epochs=1, heads=ExitHeads()),
    JEIGatedEnsemble(joint=False),
    StaticExit(1, heads=ExitHeads()),
    RandomExit(0.9, heads=ExitHeads()),
    RiskControlledPolicy(ThresholdPolicy(budget=1.0, heads=ExitHeads())),
    RiskControlledPolicy(FrozenEstimator(ThresholdPolicy(budget=1.0, heads=ExitHeads()).fit(X, y))),
    ExitHeads(),
    ExitEnsemble(ExitHeads()),
    ExitTransformer(StandardScaler()),
    make_exit_pipeline(ExitTransformer(StandardScaler()), ExitHeads(), ThresholdPolicy(budget=0.9)),
]


def answers(estimator, X):
    return np.asarray(estimator.predict(X) if hasattr(estimator, "predict") else estimator.transform(X))


def fit(estimator, X):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clone(estimator).fit(X, y)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_either_serves_an_estimator_that_was_fitted_on_the_other(estimator):
    for fitted in (fit(estimator, X), fit(estimator, FRAME)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(answers(fitted, X), answers(fitted, FRAME))


@pytest.mark.parametrize("first", [X, FRAME])
def test_batches_of_both_kinds(first):
    heads = ExitHeads()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in (first, X, FRAME):
            heads.partial_fit(batch, y)


def test_names_of_the_user_are_compared():
    named = FRAME.set_axis([f"column{j}" for j in range(FRAME.shape[1])], axis=1)
    policy = ThresholdPolicy(budget=0.9, heads=ExitHeads(), layout=X.layout).fit(named, y)
    np.testing.assert_array_equal(policy.predict(X), policy.predict(named))
    with pytest.warns(UserWarning, match="X does not have valid feature names, but ThresholdPolicy was fitted with"):
        policy.predict(np.asarray(X))
    with pytest.raises(ValueError, match="The feature names should match those that were passed during fit"):
        policy.predict(named[named.columns[::-1]])
    with pytest.raises(ValueError, match="The feature names should match those that were passed during fit"):
        policy.predict(FRAME)


def test_a_frame_with_other_columns_of_the_same_widths():
    policy = fit(ThresholdPolicy(budget=0.9, heads=ExitHeads()), X)
    with pytest.raises(ValueError, match="out of order"):
        policy.predict(FRAME[FRAME.columns[::-1]])
    with pytest.raises(ValueError, match="the columns of the DataFrame are not those of the layout kept in its attrs"):
        policy.predict(FRAME.drop(columns=FRAME.columns[-1]))
    with pytest.raises(ValueError, match="NaN"):
        policy.predict(FRAME.mask(FRAME.iloc[0, 0] == FRAME))
