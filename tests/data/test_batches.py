"""Fits read a few rows at a time, and do not depend on how many."""

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instances import make_exits
from sklearn.base import clone
from sklearn.linear_model import Ridge

import skexit._nn._mini_batches
import skexit.data._arrays
import skexit.data._lazy
from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitArray,
    ExitEnsemble,
    ExitHeads,
    FeatureCache,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RandomExit,
    RiskControlledPolicy,
    ThresholdPolicy,
    stack_exits,
)
from skexit._nn._mini_batches import number_of_epochs, shuffled
from skexit.cache import CacheWriter
from skexit.policies._most_confident import answer_with_most_confident

pytestmark = pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")

N_ROWS = 150

#: One policy for each way to learn.
LEARN_DIFFERENTLY = [
    ThresholdPolicy("entropy"),
    ThresholdPolicy("vote", use_most_confident=True),
    ThresholdPolicy("margin", schedule="shared"),
    OptimalStoppingPolicy(use_features=True, random_state=0),
    OptimalStoppingPolicy(0.6, estimator=Ridge(), outcome="realised", random_state=0),
    RandomExit(budget=0.6, random_state=0),
    EMExitAssigner(budget=0.6, router_hidden_layer_sizes=(4,), max_epochs=1, cv=2, random_state=0),
    EENetPolicy(max_epochs=2, random_state=0),
    JEIGatedEnsemble(random_state=0),
    RiskControlledPolicy(alpha=0.2, budgets=[0.6, 0.9], random_state=0),
]


@pytest.fixture(scope="module")
def data():
    return make_exits(N_ROWS, n_exits=3, n_classes=3, random_state=0)


def features_only(X):
    return stack_exits(features=[X.features(k) for k in range(X.layout.n_exits)])


def read_little(patch, n_rows):
    """Nothing is kept that can be read again, and few rows are read at a time."""
    patch.setattr(skexit.data._arrays, "BATCH_ROWS", n_rows)
    patch.setattr(skexit._nn._mini_batches, "_IN_MEMORY_BYTES", 0)
    patch.setattr(skexit._nn._mini_batches, "_CHUNK_ROWS", n_rows)
    patch.setattr(skexit.data._lazy, "LARGEST_BYTES", 0)


@pytest.mark.parametrize("template", LEARN_DIFFERENTLY, ids=repr)
def test_decisions_do_not_depend_on_batches(template, data):
    X, y = data
    expected = clone(template).fit(X, y)

    @settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
    @given(n_rows=st.integers(N_ROWS // 10, N_ROWS))
    def check(n_rows):
        with pytest.MonkeyPatch.context() as patch:
            read_little(patch, n_rows)
            found = clone(template).fit(X, y)
            np.testing.assert_array_equal(found.predict_exit(X), expected.predict_exit(X))
            np.testing.assert_array_equal(found.predict(X), expected.predict(X))
            np.testing.assert_array_equal(found.predict_at_exits(X), expected.predict_at_exits(X))
            np.testing.assert_allclose(found.exit_distribution_, expected.exit_distribution_)

    check()


class RecordingSource:
    """The columns of an array, and how many rows were read at most at a time."""

    def __init__(self, X):
        self.X, self.n_rows, self.dtype, self.most = X, len(X), X.dtype, 0

    def read(self, layout, k, part, rows):
        values = self.X.source.read(layout, k, part, rows)
        self.most = max(self.most, len(values))
        return values


@pytest.mark.parametrize("template", LEARN_DIFFERENTLY, ids=repr)
def test_few_rows_are_read_at_a_time(template, data, monkeypatch):
    X, y = data
    source = RecordingSource(X)
    policy = clone(template)
    if "batch_size" in policy.get_params():
        policy.set_params(batch_size=10)
    read_little(monkeypatch, 10)
    monkeypatch.setattr(skexit.data._arrays, "_ENOUGH_NUMBERS", 10 * 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy.fit(ExitArray(source, X.layout), y)
    policy.predict(ExitArray(source, X.layout))
    policy.predict_at_exits(ExitArray(source, X.layout))
    policy.calibrate(ExitArray(source, X.layout), y)
    assert 0 < source.most <= 10


@pytest.mark.parametrize(
    "options", [{}, {"cascade": True}, {"hidden_layer_sizes": (3,), "cascade": True}, {"temperature_scaling": True}]
)
def test_cross_fitted_logits_are_the_same_when_they_are_read_later(options, data, monkeypatch):
    X, y = features_only(data[0]), data[1]
    weight = np.where(np.arange(N_ROWS) % 7 == 0, 0.0, 1.0)
    heads = ExitHeads(cv=3, max_epochs=2, random_state=0, **options)
    expected = clone(heads).fit_transform(X, y, weight)
    monkeypatch.setattr(skexit.data._lazy, "LARGEST_BYTES", 0)
    found = clone(heads).fit_transform(X, y, weight)
    assert isinstance(found.source, skexit.data._lazy.MergedLogits)
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-10)
    rows = [5, 0, 7, 5, 140]
    np.testing.assert_allclose(found[rows].logits(2), expected.logits(2)[rows], rtol=1e-10)
    assert found[[]].logits(1).shape == (0, 3)


@pytest.mark.parametrize("weighted", [False, True])
def test_mixed_logits_are_the_same_when_they_are_read_later(weighted, data, monkeypatch):
    X, y = features_only(data[0]), data[1]
    weight = np.where(np.arange(N_ROWS) % 7 == 0, 0.0, 1.0) if weighted else None
    ensemble = ExitEnsemble(ExitHeads(cv=3, random_state=0))
    expected = clone(ensemble).fit_transform(X, y, weight)
    monkeypatch.setattr(skexit.data._lazy, "LARGEST_BYTES", 0)
    found = clone(ensemble).fit_transform(X, y, weight)
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-9)
    np.testing.assert_allclose(found.logits(2, [7, 3]), expected.logits(2)[[7, 3]], rtol=1e-9)


def test_most_confident_logits_are_the_same_when_they_are_read_later(data, monkeypatch):
    X, _ = data
    expected = [answer_with_most_confident(X).logits(k) for k in range(3)]
    monkeypatch.setattr(skexit.data._lazy, "LARGEST_BYTES", 0)
    for k in (2, 0, 1):
        np.testing.assert_array_equal(answer_with_most_confident(X).logits(k), expected[k])


def test_wide_exits_make_small_batches(monkeypatch):
    X = stack_exits(np.zeros((100, 2, 64)))
    monkeypatch.setattr(skexit.data._arrays, "_BATCH_BYTES", 8 * 64 * 30)
    assert [batch.stop - batch.start for batch in X.batches()] == [30, 30, 30, 10]
    assert [batch.stop - batch.start for batch in X.batches(60)] == [60, 40]


def test_a_cache_in_shards_is_fitted_as_an_array_is(data, tmp_path):
    X, y = data
    with CacheWriter(tmp_path, X.layout, origin={"model": "test"}, shard_rows=20) as writer:
        for part in X.batches(15):
            writer.append([X.logits(k, part) for k in range(3)], [X.features(k, part) for k in range(3)], y[part])
    cache = FeatureCache(tmp_path)
    in_memory = ExitArray.from_array(np.asarray(cache.X), cache.layout)
    for policy in (ThresholdPolicy(), LEARN_DIFFERENTLY[7], LEARN_DIFFERENTLY[8]):
        found, expected = clone(policy).fit(cache.X, cache.y), clone(policy).fit(in_memory, y)
        np.testing.assert_array_equal(found.predict_exit(cache.X), expected.predict_exit(in_memory))


class TestOrder:
    def test_few_rows_are_permuted_at_once(self):
        rows = np.arange(100) * 3
        expected = np.random.RandomState(0).permutation(rows)
        np.testing.assert_array_equal(shuffled(rows, np.random.RandomState(0)), expected)

    def test_many_rows_are_permuted_by_blocks(self, monkeypatch):
        monkeypatch.setattr(skexit._nn._mini_batches, "_SHUFFLED_AT_ONCE", 1000)
        monkeypatch.setattr(skexit._nn._mini_batches, "_BLOCK_ROWS", 8)
        monkeypatch.setattr(skexit._nn._mini_batches, "_MIXED_BLOCKS", 16)
        rows = np.random.RandomState(1).permutation(5003)
        order = shuffled(rows, np.random.RandomState(0))
        np.testing.assert_array_equal(np.sort(order), np.arange(5003))
        for start in range(0, 5003, 128):
            part = order[start : start + 128]
            assert len(np.unique(part // 8)) <= 18  # 16 blocks, and ends of the short one
            assert abs(np.diff(part)).mean() > 500  # from all over, and mixed

    @pytest.mark.parametrize(
        ("max_epochs", "n_rows", "expected"),
        [("auto", 100, 20), ("auto", 75_000, 20), ("auto", 300_000, 5), ("auto", 10**7, 1), (1000, 10**7, 1000)],
    )
    def test_many_rows_are_passed_less_often(self, max_epochs, n_rows, expected):
        assert number_of_epochs(max_epochs, n_rows, 1, 20) == expected
