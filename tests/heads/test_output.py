"""The containers that transformers give, by set_output and by scikit-learn's configuration."""

import numpy as np
import pandas as pd
import pytest
import sklearn
from instances import POLICIES, make_exits
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from skexit import ExitArray, ExitEnsemble, ExitHeads, ThresholdPolicy, make_exit_pipeline, stack_exits

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")]
CONTAINERS = ["pandas", "polars"]


@pytest.fixture(scope="module")
def data():
    X, y = make_exits(150, 3, 3, 0)
    return stack_exits([None, None, X.logits(2)], [X.features(k) for k in range(3)], costs=[1, 2, 8]), y


@pytest.fixture(params=CONTAINERS)
def container(request):
    return pytest.importorskip(request.param), request.param


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_policies_under_a_global_setting(policy, data, container):
    X, y = data
    expected = clone(policy).fit(X, y)
    with sklearn.config_context(transform_output=container[1]):
        found = clone(policy).fit(X, y)
        np.testing.assert_array_equal(found.predict_exit(X), expected.predict_exit(X))
    np.testing.assert_array_equal(found.thresholds_, expected.thresholds_)
    assert found.layout_ == expected.layout_


@pytest.mark.parametrize("transformer", [ExitHeads(random_state=0), ExitEnsemble()], ids=repr)
def test_transformers_give_frames(transformer, data, container):
    X, y = data
    module, name = container
    expected = clone(transformer)
    expected_arrays = [np.asarray(expected.fit_transform(X, y)), np.asarray(expected.transform(X))]
    set_before = clone(transformer).set_output(transform=name)
    by_method = [set_before.fit_transform(X, y), set_before.transform(X)]
    with sklearn.config_context(transform_output=name):
        globally = clone(transformer)
        by_setting = [globally.fit_transform(X, y), globally.transform(X), globally.transform(np.asarray(X).tolist())]
    for frame, array in zip([*by_method, *by_setting], [*expected_arrays * 2, expected_arrays[1]], strict=True):
        assert isinstance(frame, module.DataFrame)
        assert list(frame.columns) == expected.get_feature_names_out().tolist()
        np.testing.assert_array_equal(np.asarray(frame), array)


def test_heads_of_a_policy_that_give_frames(data, container):
    X, y = data
    expected = ThresholdPolicy(budget=0.7, heads=ExitEnsemble(ExitHeads(random_state=0))).fit(X, y)
    heads = ExitEnsemble(ExitHeads(random_state=0).set_output(transform=container[1])).set_output(
        transform=container[1]
    )
    policy = ThresholdPolicy(budget=0.7, heads=heads).fit(X, y)
    # Frames lie in memory in another order, so that sums round otherwise.
    np.testing.assert_allclose(policy.thresholds_, expected.thresholds_, rtol=1e-9)
    np.testing.assert_allclose(policy.predict_proba(X), expected.predict_proba(X), rtol=1e-9)
    frozen = ThresholdPolicy(budget=0.7, heads=FrozenEstimator(clone(heads).fit(X, y))).fit(X, y)
    assert frozen.layout_ == expected.layout_


@pytest.mark.filterwarnings("ignore:the columns of the DataFrame name its exits, but its attrs")
def test_pipelines(data, container):
    X, y = data
    X = X.with_layout(X.layout.replace(costs=[1 / 3, 2 / 3, 1.0]))  # what column names say
    pipeline = make_exit_pipeline(ExitHeads(random_state=0), ExitEnsemble(), ThresholdPolicy(budget=0.7))
    fitted = clone(pipeline).fit(X, y)
    expected, mean_cost = fitted.predict_exit(X), fitted.mean_cost(X)
    frame = container[0].DataFrame(
        np.asarray(X), **{"schema" if container[1] == "polars" else "columns": X.layout.column_names()}
    )
    with sklearn.config_context(transform_output=container[1]):
        for given in (X, frame):
            found = clone(pipeline).fit(given, y)
            np.testing.assert_array_equal(found.predict_exit(given), expected)
    set_by_method = clone(pipeline).set_output(transform=container[1]).fit(frame, y)
    np.testing.assert_array_equal(set_by_method.predict_exit(frame), expected)
    assert set_by_method.mean_cost(frame) == mean_cost


def test_the_index_of_a_frame_stays(data):
    X, y = data
    frame = X.to_frame(index=np.arange(len(X)) + 7)
    heads = ExitHeads(random_state=0).set_output(transform="pandas").fit(frame, y)
    pd.testing.assert_index_equal(heads.transform(frame).index, frame.index)
    assert isinstance(ExitArray.from_frame(heads.transform(frame)), ExitArray)
