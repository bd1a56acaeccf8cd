"""The data set that comes with the package."""

import re
import subprocess
import sys
from importlib import resources

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from skexit import ExitArray, ExitHeads, ThresholdPolicy
from skexit.data._layout_of_input import FRAME_ATTRIBUTE
from skexit.datasets import load_cifar10_resnet56
from skexit.model_selection import accuracy_and_cost, best_within


@pytest.fixture(scope="module")
def outputs():
    return load_cifar10_resnet56()


def test_shapes(outputs):
    assert isinstance(outputs.data, ExitArray)
    assert outputs.data.shape == (5000, 346)
    assert outputs.data.dtype == np.float32
    assert outputs.target.shape == (5000,)
    assert outputs.target.dtype == np.int64
    assert outputs.frame is None
    assert outputs.feature_names == outputs.data.layout.column_names()
    assert outputs.target_names.tolist()[:2] == ["airplane", "automobile"]
    np.testing.assert_array_equal(np.unique(outputs.target), np.arange(10))
    assert np.isfinite(np.asarray(outputs.data)).all()


def test_layout(outputs):
    layout = outputs.data.layout
    assert layout.n_logits == (0,) * 8 + (10,)
    assert layout.n_features == (16,) * 3 + (32,) * 3 + (64,) * 3
    assert layout.cost_unit == "FLOPs"
    assert layout.classes.tolist() == list(range(10))
    # Two FLOPs for each of the multiply-adds of a ResNet-56, of which its authors count 125 million.
    assert layout.costs[-1] == pytest.approx(2 * 125.5e6, rel=0.01)


def test_each_call_gives_arrays_of_its_own(outputs):
    again = load_cifar10_resnet56()
    again.target[:] = -1
    again.data.features(0)[:] = -1
    assert outputs.target.min() == 0
    fresh = load_cifar10_resnet56()
    np.testing.assert_array_equal(fresh.target, outputs.target)
    np.testing.assert_array_equal(np.asarray(fresh.data), np.asarray(outputs.data))


def test_return_X_y(outputs):
    X, y = load_cifar10_resnet56(return_X_y=True)
    assert X.layout == outputs.data.layout
    np.testing.assert_array_equal(np.asarray(X), np.asarray(outputs.data))
    np.testing.assert_array_equal(y, outputs.target)


def test_as_frame(outputs):
    framed = load_cifar10_resnet56(as_frame=True)
    assert framed.data.columns.tolist() == outputs.feature_names
    assert "exit0__feature3" in framed.data
    assert framed.frame.columns.tolist() == [*outputs.feature_names, "target"]
    assert isinstance(framed.target, pd.Series)
    assert framed.target.name == "target"
    assert FRAME_ATTRIBUTE in framed.data.attrs
    assert ExitArray.from_frame(framed.data).layout == outputs.data.layout
    np.testing.assert_array_equal(framed.data.to_numpy(), np.asarray(outputs.data))


def test_return_X_y_as_frame():
    X, y = load_cifar10_resnet56(return_X_y=True, as_frame=True)
    assert isinstance(X, pd.DataFrame)
    assert isinstance(y, pd.Series)


@pytest.mark.slow
@pytest.mark.parametrize("as_frame", [False, True])
def test_search_over_a_pipeline(as_frame):
    X, y = load_cifar10_resnet56(return_X_y=True, as_frame=as_frame)
    X, y = X[:300], y[:300]
    pipeline = Pipeline([("heads", ExitHeads(random_state=0)), ("policy", ThresholdPolicy())])
    grid = {"policy__budget": [0.5, 0.75]}
    search = GridSearchCV(pipeline, grid, scoring=accuracy_and_cost(), refit=best_within(0.9), cv=2).fit(X, y)
    assert search.best_params_ == {"policy__budget": 0.75}
    assert search.cv_results_["mean_test_accuracy"].min() > 0.6


def test_accuracy_of_the_network_is_that_of_the_description(outputs):
    accuracy = np.mean(outputs.data.logits(8).argmax(axis=1) == outputs.target)
    described = re.search(r"network's own logits have an accuracy of ([\d.]+) %", outputs.DESCR)[1]
    assert float(described) == pytest.approx(100 * accuracy)


def test_reference_accuracies_are_those_of_the_description(outputs):
    heads = ExitHeads(distillation=0, random_state=0).fit(outputs.data[:2500], outputs.target[:2500])
    logits = heads.transform(outputs.data[2500:])
    rows = re.findall(r"^(\d) +``layer\d\.\d`` +(\d+) +([\d.]+) +(\d\d\.\d)$", outputs.DESCR, flags=re.M)
    layout = outputs.data.layout
    assert len(rows) == layout.n_exits
    for k, (exit, n_features, cost, accuracy) in enumerate(rows):
        assert (int(exit), int(n_features)) == (k, layout.n_features[k])
        assert float(cost) == pytest.approx(layout.costs[k] / 1e6, abs=0.06)
        # Other processors round otherwise, and a few rows in 2,500 fall on the other side.
        assert np.mean(logits.logits(k).argmax(axis=1) == outputs.target[2500:]) == pytest.approx(
            float(accuracy) / 100, abs=0.002
        )


def test_files_are_in_the_package_and_small():
    files = {file.name: file for file in (resources.files("skexit.datasets") / "data").iterdir()}
    assert set(files) == {"cifar10_resnet56.npz", "cifar10_resnet56.rst"}
    assert sum(len(file.read_bytes()) for file in files.values()) < 4_000_000


def test_the_package_does_not_load_the_data_and_loading_imports_neither_torch_nor_matplotlib():
    code = (
        "import sys, skexit; assert 'skexit.datasets' not in sys.modules; "
        "from skexit.datasets import load_cifar10_resnet56; load_cifar10_resnet56(); "
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
