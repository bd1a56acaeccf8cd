"""ExitTransformer: a transformer of scikit-learn for the features of each exit."""

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from instances import make_exits
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA, IncrementalPCA
from sklearn.feature_selection import SelectKBest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, MinMaxScaler, Normalizer, StandardScaler
from torch import nn

import skexit
from skexit import ExitArray, ExitHeads, ExitTransformer, OptimalStoppingPolicy, ThresholdPolicy, stack_exits
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, OnnxEarlyExit, export_onnx, policy_to_json


@pytest.fixture(scope="module")
def data():
    X, y = make_exits(n_samples=200, n_exits=3, n_classes=4, random_state=0)
    names = np.array(["cat", "ant", "eel", "bee"])
    exits = stack_exits(
        [None, X.logits(1), X.logits(2)],
        [X.features(0), 5 + 3 * X.features(1), None],
        costs=[1, 2, 10],
        cost_unit="ms",
        classes=names,
    )
    return exits, names[y]


@pytest.mark.parametrize(
    "transformer",
    [
        StandardScaler(),
        MinMaxScaler(),
        Normalizer(),
        PCA(2, random_state=0),
        SelectKBest(k=3),
        KBinsDiscretizer(3, quantile_method="averaged_inverted_cdf"),
    ],
    ids=repr,
)
def test_each_exit_has_its_own(data, transformer):
    X, y = data
    out = ExitTransformer(transformer).fit(X, y).transform(X)
    assert isinstance(out, ExitArray)
    for k in (0, 1):
        expected = clone(transformer).fit(X.features(k), y).transform(X.features(k))
        expected = expected.toarray() if hasattr(expected, "toarray") else expected
        np.testing.assert_allclose(out.features(k), expected)
        np.testing.assert_allclose(out.features(k, [5, 3]), expected[[5, 3]])
    for k in (1, 2):
        np.testing.assert_array_equal(out.logits(k), X.logits(k))
    assert out.features(2).shape == (200, 0)
    assert out.layout == X.layout.replace(n_features=[out.features(k).shape[1] for k in range(3)])
    assert out[:0].features(0).shape == (0, out.layout.n_features[0])


def test_in_a_pipeline(data):
    X, y = data
    pipeline = make_pipeline(ExitTransformer(PCA(2)), ExitHeads(random_state=0), ThresholdPolicy(budget=0.6))
    pipeline.fit(X, y)
    assert pipeline[-1].costs_.tolist() == [0.1, 0.2, 1]
    by_hand = ExitTransformer(PCA(2)).fit_transform(X, y)
    expected = make_pipeline(ExitHeads(random_state=0), ThresholdPolicy(budget=0.6)).fit(by_hand, y)
    np.testing.assert_array_equal(pipeline.predict(X), expected.predict(by_hand))
    search = GridSearchCV(pipeline, {"exittransformer__transformer__n_components": [1, 3]}, cv=2).fit(X, y)
    assert search.best_estimator_[0].layout_out_.n_features == (search.best_params_.popitem()[1],) * 2 + (0,)


@pytest.mark.filterwarnings("ignore:X .* feature names:UserWarning")
def test_frames_and_set_output(data):
    X, y = data
    transformer = ExitTransformer(PCA(2)).set_output(transform="pandas")
    frame = transformer.fit_transform(X.to_frame(index=range(7, 207)), y)
    assert isinstance(frame, pd.DataFrame)
    assert frame.index[0] == 7
    assert frame.columns.tolist() == transformer.get_feature_names_out().tolist()
    assert frame.columns[:3].tolist() == ["exit0__feature0", "exit0__feature1", "exit1__logit0"]
    again = ExitArray.from_frame(frame)
    assert again.layout == transformer.layout_out_
    np.testing.assert_allclose(again, ExitTransformer(PCA(2)).fit_transform(X))
    with_names = ThresholdPolicy(budget=0.6).fit(frame, y)
    assert with_names.costs_.tolist() == [0.1, 0.2, 1]


def test_classes_in_another_order_stay_with_their_logits(data):
    X, y = data
    order = [2, 0, 3, 1]
    other = stack_exits(
        [None, X.logits(1)[:, order], X.logits(2)[:, order]],
        [X.features(0), X.features(1), None],
        costs=[1, 2, 10],
        cost_unit="ms",
        classes=X.layout.classes[order],
    )
    pipeline = make_pipeline(ExitTransformer(StandardScaler()), ExitHeads(random_state=0), ThresholdPolicy(budget=0.6))
    pipeline.fit(X, y)
    np.testing.assert_array_equal(pipeline.predict(other), pipeline.predict(X))


def test_plain_arrays_have_the_layout_that_was_fitted(data):
    X, _ = data
    transformer = ExitTransformer(StandardScaler()).fit(X)
    np.testing.assert_allclose(transformer.transform(np.asarray(X)), transformer.transform(X))
    by_parameter = ExitTransformer(StandardScaler(), layout=X.layout).fit(np.asarray(X))
    np.testing.assert_allclose(by_parameter.transform(X), transformer.transform(X))
    with pytest.raises(ValueError, match="X has the layout"):
        transformer.transform(stack_exits(features=[X.features(0)]))


class CountingScaler(StandardScaler):
    """Counts how often it was given rows."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __sklearn_clone__(self):
        return CountingScaler()

    def partial_fit(self, X, y=None, sample_weight=None):
        self.calls.append(len(X))
        return super().partial_fit(X, y, sample_weight)

    def transform(self, X, copy=None):
        self.calls.append(-len(X))
        return super().transform(X, copy)


def test_it_is_lazy_and_learns_in_batches():
    rng = np.random.default_rng(0)
    X = stack_exits(features=[rng.normal(3, 2, size=(20_000, 2)), rng.normal(size=(20_000, 3))])
    transformer = ExitTransformer(CountingScaler()).fit(X)
    of_first = transformer.transformers_[0]
    assert of_first.calls == [6667, 6667, 6666, -1]
    out = transformer.transform(X)[100:200]
    assert of_first.calls[4:] == []
    assert out.features(0).shape == (100, 2)
    assert of_first.calls[4:] == [-100]
    np.testing.assert_allclose(of_first.mean_, X.features(0).mean(axis=0))
    np.testing.assert_allclose(of_first.scale_, X.features(0).std(axis=0))
    reduced = ExitTransformer(IncrementalPCA(2)).fit(X)
    assert reduced.transformers_[1].n_samples_seen_ == 20_000


def test_persistence(data, tmp_path):
    X, y = data
    pipeline = make_pipeline(ExitTransformer(StandardScaler()), ExitHeads(random_state=0), ThresholdPolicy(budget=0.6))
    pipeline.fit(X, y)
    joblib.dump(pipeline, tmp_path / "p.joblib")
    skops.io.dump(pipeline, tmp_path / "p.skops")
    for loaded in (
        joblib.load(tmp_path / "p.joblib"),
        skops.io.load(tmp_path / "p.skops", trusted=skexit.TRUSTED_TYPES),
    ):
        np.testing.assert_array_equal(loaded.predict_proba(X), pipeline.predict_proba(X))
    with pytest.raises(ValueError, match=r"transformers_\[0\] has the type sklearn.*cannot be written as JSON"):
        policy_to_json(pipeline)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:some of the budget:UserWarning")
def test_in_a_live_network(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    x, y = torch.randn(300, 8), torch.arange(300) % 3
    X, labels = ((cache := ExitExtractor(model, ["1", "3"]).extract([(x, y)], tmp_path / "cache")).X, cache.y)
    policy = OptimalStoppingPolicy(budget=0.8, use_features=True, random_state=0)
    first = [ExitTransformer(PCA(5, random_state=0)), ExitTransformer(StandardScaler())]
    pipeline = make_pipeline(*first, ExitHeads(random_state=0), policy).fit(X, labels)
    live = EarlyExitModel(model, ["1", "3"], pipeline, example_input=x[:1])
    answers, probabilities, exits = live(x)
    np.testing.assert_array_equal(exits, pipeline[-1].predict_exit(pipeline[:-1].transform(X)))
    np.testing.assert_array_equal(answers, pipeline.predict(X))
    np.testing.assert_allclose(probabilities, pipeline.predict_proba(X), atol=1e-6)
    session = OnnxEarlyExit(export_onnx(live, tmp_path / "network.onnx"))
    np.testing.assert_array_equal(session.predict(x.numpy()).exits, exits)
    bounded = make_pipeline(ExitTransformer(MinMaxScaler(clip=True)), ExitHeads(random_state=0), policy)
    live = EarlyExitModel(model, ["1", "3"], bounded.fit(X, labels), example_input=x[:1])
    with pytest.raises(ValueError, match=r"MinMaxScaler.* cannot be written as ONNX, because .* not linear"):
        export_onnx(live, tmp_path / "network.onnx")
    late = make_pipeline(ExitHeads(random_state=0), ExitTransformer(StandardScaler()), policy).fit(X, labels)
    with pytest.raises(ValueError, match=r"ExitTransformer.* comes after a step that gives logits.*put it first"):
        EarlyExitModel(model, ["1", "3"], late)


class TestErrors:
    def test_features_must_be_finite(self):
        broken = stack_exits(features=[np.array([[1.0], [np.nan]])])
        with pytest.raises(ValueError, match="NaN or infinity: the features of exit 0"):
            ExitTransformer(StandardScaler()).fit(broken)

    def test_what_is_no_transformer(self, data):
        with pytest.raises(ValueError, match="transformer"):
            ExitTransformer(BaseEstimator()).fit(data[0])

    def test_labels_are_required_where_the_transformer_needs_them(self, data):
        with pytest.raises(ValueError, match="requires y to be passed"):
            ExitTransformer(SelectKBest(k=1)).fit(data[0])
