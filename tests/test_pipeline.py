"""recommended_pipeline: what it is made of, and that it works on what users have."""

import joblib
import numpy as np
import pytest
from instances import make_exits
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV

from skexit import ExitEnsemble, ExitHeads, OptimalStoppingPolicy, recommended_pipeline, stack_exits
from skexit.model_selection import accuracy_and_cost, best_within


@pytest.fixture(scope="module")
def data():
    X, y = make_exits(600, 3, 3, 0)
    return stack_exits([None, None, X.logits(2)], [X.features(k) for k in range(3)]), y


def test_is_heads_ensemble_and_stopping(data):
    X, y = data
    pipeline = recommended_pipeline(0.7, random_state=0)
    heads = ExitHeads((256,), cascade=True, dropout=0.5, learning_rate=0.005, batch_size=512, random_state=0)
    assert pipeline["ensemble"].heads.get_params() == heads.get_params()
    # They are the same also after few epochs.
    ensemble = ExitEnsemble(heads.set_params(max_epochs=3))
    pipeline.set_params(ensemble__heads__max_epochs=3).fit(X[:400], y[:400])
    policy = OptimalStoppingPolicy(0.7, random_state=0).fit(ensemble.fit_transform(X[:400], y[:400]), y[:400])
    np.testing.assert_array_equal(pipeline.predict(X), policy.predict(ensemble.transform(X)))
    assert pipeline[-1].exit_distribution_ @ pipeline[-1].costs_ == pytest.approx(0.7, abs=1 / 400)


def test_fitted_heads_are_used_as_they_are(data):
    X, y = data
    heads = ExitHeads((8,), cascade=True, max_epochs=2, random_state=0).fit(X[:300], y[:300])
    pipeline = recommended_pipeline(heads=heads, random_state=0).fit(X[300:], y[300:])
    assert pipeline["ensemble"].heads_.estimator is heads
    with pytest.raises(NotFittedError):
        recommended_pipeline(heads=ExitHeads()).fit(X, y)


@pytest.mark.parametrize("given", ["logits", "features"])
def test_where_exits_have_all_or_no_logits(given):
    X, y = make_exits(300, 3, 3, 0)
    blocks = [getattr(X, given)(k) for k in range(3)]
    X = stack_exits(**{given: blocks})
    pipeline = recommended_pipeline(0.6, random_state=0).set_params(ensemble__heads__max_epochs=10)
    assert pipeline.fit(X, y).score(X, y) > 0.6


def test_clone_search_and_joblib(data, tmp_path):
    X, y = data
    pipeline = clone(recommended_pipeline(random_state=0)).set_params(ensemble__heads__max_epochs=2)
    search = GridSearchCV(
        pipeline,
        {"ensemble__heads__hidden_layer_sizes": [(), (8,)], "policy__budget": [0.5, 0.6]},
        scoring=accuracy_and_cost(),
        refit=best_within(0.7),
        cv=2,
    ).fit(X, y)
    joblib.dump(search.best_estimator_, tmp_path / "pipeline.joblib")
    np.testing.assert_array_equal(joblib.load(tmp_path / "pipeline.joblib").predict(X), search.predict(X))
