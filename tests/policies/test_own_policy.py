"""The policy of docs/contributing/adding_a_policy.rst is complete: one file, and everything works."""

import joblib
import numpy as np
import pytest
import torch
from agreement import AgreementPolicy
from instances import make_exits
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from skexit import ExitHeads
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel
from skexit.testing import parametrize_policy_checks


# Plain arrays say nothing of exits.
@pytest.mark.filterwarnings("ignore::skexit.exceptions.LayoutLostWarning")
@parametrize_with_checks([AgreementPolicy()])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@parametrize_policy_checks([AgreementPolicy(), AgreementPolicy(0.7)])
def test_policy_checks(policy, check):
    check(policy)


def test_it_is_searched_calibrated_and_saved(tmp_path):
    X, y = make_exits(n_samples=300, n_exits=4, n_classes=3, random_state=0)
    search = GridSearchCV(AgreementPolicy(), {"budget": [0.4, 0.8]}, cv=2).fit(X, y)
    assert search.best_params_ == {"budget": 0.8}
    joblib.dump(search, tmp_path / "search.joblib")
    np.testing.assert_array_equal(joblib.load(tmp_path / "search.joblib").predict(X), search.predict(X))
    assert search.best_estimator_.calibrate(X, y).predict_set(X).shape == (300, 3)


def test_the_live_network_answers_as_the_cache(tmp_path):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3)]
    network = nn.Sequential(*blocks, nn.Linear(6, 3))
    x, y = torch.randn(200, 6), torch.arange(200) % 3
    exits = ["0", "1", "2"]
    cache = ExitExtractor(network, exits).extract([(x, y)], tmp_path / "cache", progress=False)
    policy = AgreementPolicy(0.6, heads=ExitHeads(distillation=0, random_state=0)).fit(cache.X, cache.y)
    answers, _, stops = EarlyExitModel(network, exits, policy, example_input=x[:1])(x)
    np.testing.assert_array_equal(stops, policy.predict_exit(cache.X))
    np.testing.assert_array_equal(answers, policy.predict(cache.X))
    assert len(np.unique(stops)) == 3
