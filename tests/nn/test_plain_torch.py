"""Fits and predictions are the same in any context of torch."""

import numpy as np
import pytest
from instances import make_exits

from skexit import (
    ConvExitHeads,
    EENetPolicy,
    EMExitAssigner,
    ExitHeads,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    ThresholdPolicy,
    stack_exits,
)

torch = pytest.importorskip("torch")
from torch_contexts import CONTEXTS  # noqa: E402 - needs torch

ESTIMATORS = [
    ExitHeads(cv=2, random_state=0),
    ExitHeads((4,), cv=2, max_epochs=2, dropout=0.3, random_state=0),
    ExitHeads((4,), cascade=True, cv=2, max_epochs=2, dropout=0.3, random_state=0),
    ExitHeads((4,), cascade=True, cv=2, max_epochs=2, random_state=0),
    ConvExitHeads((3,), (1,), cv=2, max_epochs=2, random_state=0),
    ThresholdPolicy(),
    OptimalStoppingPolicy(random_state=0),
    EMExitAssigner(cv=2, max_epochs=2, random_state=0),
    EENetPolicy(max_epochs=2, random_state=0),
    JEIGatedEnsemble(cv=2, max_epochs=2, random_state=0),
    JEIGatedEnsemble(joint=False, max_epochs=2, random_state=0),
]


@pytest.fixture(scope="module")
def data():
    X, y = make_exits(n_samples=120, n_exits=3, n_classes=3, random_state=0)
    exits = stack_exits([None, None, X.logits(2)], [X.features(k) for k in range(3)])
    return exits.with_layout(exits.layout.replace(feature_maps=[(0, 1, 2, 2)] * 3)), y


def results(estimator, data):
    X, y = data
    if hasattr(estimator, "predict_exit"):
        return [estimator.fit(X, y).predict_proba(X), estimator.predict_exit(X)]
    found = [np.asarray(estimator.fit_transform(X, y)), np.asarray(estimator.transform(X))]
    if hasattr(estimator, "partial_fit"):
        found.append(np.asarray(estimator.partial_fit(X[:60], y[:60]).partial_fit(X[60:], y[60:]).transform(X)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_any_context(estimator, data):
    expected = results(estimator, data)
    for name, context in CONTEXTS.items():
        with context():
            found = results(estimator, data)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=name)
    assert torch.get_default_dtype() == torch.float32
