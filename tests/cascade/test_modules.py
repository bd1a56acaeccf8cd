"""Torch modules as models of a cascade, alone and with classifiers of scikit-learn."""

import warnings
from collections import UserDict

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.naive_bayes import GaussianNB
from torch import nn

from skexit import ModelCascade, OptimalStoppingPolicy, ThresholdPolicy, make_exit_pipeline

pytestmark = pytest.mark.slow

NAMES = np.array(["ant", "bee", "cow"])


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=400)
    return (np.eye(3)[y] @ rng.normal(size=(3, 6)) + rng.normal(size=(400, 6))).astype(np.float32), y


@pytest.fixture(scope="module")
def modules(data):
    """A linear module and one with a hidden layer, trained for a moment; dropout is on, as after training."""
    torch.manual_seed(0)
    small = nn.Linear(6, 3)
    large = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))
    X, y = map(torch.tensor, data)
    for model in (small, large):
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        for _ in range(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), y).backward()
            optimizer.step()
    return small, large


def logits_of(module, X):
    mode = module.training
    with torch.no_grad():
        logits = module.eval()(torch.as_tensor(X)).numpy()
    module.train(mode)
    return logits


@pytest.mark.parametrize("as_inputs", [np.asarray, torch.tensor, pd.DataFrame, np.float64, list])
@pytest.mark.parametrize("policy", [ThresholdPolicy(budget=0.5), OptimalStoppingPolicy(budget=0.5, random_state=0)])
def test_modules_alone(data, modules, as_inputs, policy):
    X, y = data
    inputs = as_inputs(X)
    cascade = ModelCascade(modules, costs=[1, 8], cost_unit="MACs", batch_size=100)
    cached = cascade.fit_transform(inputs)
    assert cached.dtype == np.float32
    for k, module in enumerate(modules):
        np.testing.assert_allclose(cached.logits(k), logits_of(module, X), rtol=1e-5, atol=1e-5)
        assert module.training
    policy = policy.fit(cached, y)
    exits = policy.predict_exit(cached)
    assert set(exits) == {0, 1}
    np.testing.assert_array_equal(policy.predict_exit(cascade.transform(inputs)), exits)
    np.testing.assert_array_equal(make_exit_pipeline(cascade, policy).predict(inputs), policy.predict(cached))


def test_modules_and_classifiers(data, modules):
    X, y = data
    tree = GaussianNB().fit(X, NAMES[y])
    cascade = ModelCascade([tree, modules[1]], costs=[1, 8]).fit(torch.tensor(X))
    assert cascade.layout_out_.classes.tolist() == NAMES.tolist()
    pipeline = make_exit_pipeline(cascade, ThresholdPolicy(budget=0.6)).fit(torch.tensor(X), NAMES[y])
    assert pipeline.score(torch.tensor(X), NAMES[y]) > 0.7
    np.testing.assert_array_equal(pipeline.predict_exit(torch.tensor(X)), pipeline.predict_exit(X))
    backwards = nn.Sequential(modules[1], nn.Flatten(), Flip())
    other = ModelCascade([tree, backwards], costs=[1, 8], classes=NAMES[::-1]).fit_transform(X)
    expected = cascade.fit_transform(X)
    for k in range(2):
        np.testing.assert_allclose(other.logits(k), expected.logits(k)[:, ::-1], rtol=1e-5, atol=1e-5)


class Flip(nn.Module):
    def forward(self, x):
        return x.flip(1)


def test_logits_must_be_as_many_as_classes(data, modules):
    X, y = data
    two = GaussianNB().fit(X, y > 0)
    with pytest.raises(
        ValueError, match=r"'?large'? returns 3 logits; it must return 2, one per class of \[False, True"
    ):
        ModelCascade([two, ("large", modules[1])], costs=[1, 2]).fit(X)
    with pytest.raises(
        ValueError, match=r"models\[0\] \(Linear\) returns 2 logits; it must return 3, one per logit of the last model"
    ):
        ModelCascade([nn.Linear(6, 2), modules[1]], costs=[1, 2]).fit(X)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_single_logit_is_that_of_a_binary_network(data, shape):
    class Binary(nn.Module):
        def forward(self, x):
            return x[:, 0].reshape(-1, *shape)

    X, y = data
    exits = ModelCascade([GaussianNB().fit(X, y > 0), Binary()], costs=[1, 2]).fit_transform(X)
    np.testing.assert_array_equal(exits.logits(1), np.column_stack([np.zeros(len(X)), X[:, 0]]))


class TwoInputs(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, mask):
        return {"logits": self.module(x * mask), "loss": None}


@pytest.mark.parametrize("kind", [dict, UserDict, tuple])
def test_several_inputs_and_outputs_with_names(data, modules, kind):
    X, y = data
    mask = torch.ones(len(X), 1)
    inputs = (torch.tensor(X), mask) if kind is tuple else kind(x=torch.tensor(X), mask=mask)
    cascade = ModelCascade([TwoInputs(module) for module in modules], costs=[1, 8])
    policy = ThresholdPolicy(budget=0.5).fit(cascade.fit_transform(inputs), y)
    expected = policy.predict_exit(ModelCascade(modules, costs=[1, 8]).fit_transform(X))
    np.testing.assert_array_equal(policy.predict_exit(cascade.transform(inputs)), expected)


def test_texts_are_passed_as_they_are():
    class Length(nn.Module):
        def forward(self, texts):
            return torch.tensor([[float(len(text)), 3.0] for text in texts])

    texts = ["a", "bbbb", "cc", "ddddd"]
    exits = ModelCascade([Length(), Length()], costs=[1, 2], batch_size=2).fit_transform(texts)
    assert exits.logits(0)[:, 0].tolist() == [1, 4, 2, 5]


def test_half_precision(data):
    half = nn.Linear(6, 3).to(torch.bfloat16)
    exits = ModelCascade([half, nn.Linear(6, 3)], costs=[1, 2]).fit_transform(data[0])
    assert exits.dtype == np.float32
    expected = half(torch.tensor(data[0]).to(torch.bfloat16)).detach().float()
    np.testing.assert_allclose(exits.logits(0), expected, atol=0.05)


def test_integers_are_passed_as_they_are():
    ids = np.arange(12).reshape(6, 2) % 5
    bags = [nn.EmbeddingBag(5, 3), nn.EmbeddingBag(5, 3)]
    np.testing.assert_allclose(
        ModelCascade(bags, costs=[1, 2]).fit_transform(ids).logits(1), logits_of(bags[1], ids), rtol=1e-6
    )


def test_probabilities_of_a_module_are_worth_a_warning(data, modules):
    with pytest.warns(UserWarning, match=r"logits of exit 1 is non-negative.*softmax at the end of models\[1\]"):
        cascade = ModelCascade([modules[0], nn.Sequential(modules[1], nn.Softmax(1))], costs=[1, 8]).fit(data[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.asarray(cascade.transform(data[0]))


def test_other_outputs_are_refused(data):
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(ValueError, match=r"models\[0\] \(Pair\) gave tuple, which has no logits .* returns its logits"):
        ModelCascade([Pair()], costs=[1]).fit(data[0])


def test_measured_costs_and_joblib(data, modules, tmp_path):
    X, y = data
    large = nn.Sequential(nn.Linear(6, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 3))
    cascade = ModelCascade([("small", modules[0]), ("large", large)])
    pipeline = make_exit_pipeline(cascade, ThresholdPolicy(budget=0.5)).fit(X, y)
    assert pipeline.layout_.cost_unit == "ms"
    assert pipeline.costs_[0] < 0.5
    joblib.dump(make_exit_pipeline(ModelCascade(modules, costs=[1, 2]), pipeline[-1]), tmp_path / "cascade.joblib")
    loaded = joblib.load(tmp_path / "cascade.joblib")
    np.testing.assert_array_equal(loaded[0].fit_transform(X), ModelCascade(modules, costs=[1, 2]).fit_transform(X))
