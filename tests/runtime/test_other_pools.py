"""A live network refuses features that are pooled otherwise than those of the extraction."""

import json
import re
import warnings

import joblib
import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from skexit import ExitHeads, ExitTransformer, StaticExit, ThresholdPolicy
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, export_onnx, policy_from_json, policy_to_json, set_policy

EXITS = ["1", "3"]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def extract(network, images, path, **options):
    loader = [(images, torch.arange(len(images)) % 3)]
    return ExitExtractor(network, EXITS, **options).extract(loader, path, progress=False)


def fit(cache, heads=None):
    return ThresholdPolicy(budget=0.9, heads=ExitHeads() if heads is None else heads).fit(cache.X, cache.y)


def corner(maps):
    return maps[:, :, 0, 0]


def centre(maps):
    return maps[:, :, 4, 4]


@pytest.mark.parametrize(
    ("pool", "known"),
    [
        ("auto", "avg+max+grid2"),
        (("avg", "max", "grid2"), "avg+max+grid2"),
        ("max", "max"),
        ("grid1", "avg"),
        (corner, f"{__name__}.corner"),
    ],
)
def test_the_layout_has_names_and_pools(network, images, tmp_path, pool, known):
    cache = extract(network, images, tmp_path, pool=pool)
    assert cache.layout.exit_names == tuple(EXITS)
    assert cache.layout.pools == (known, known)
    live = EarlyExitModel(network, EXITS, fit(cache), pool=pool, example_input=images)
    torch.testing.assert_close(live(images).exits.numpy(), live.policy.predict_exit(cache.X))


WRONG = [
    ("max", "avg", "pools exit '1' by 'avg' but the policy", "'max'. Pass pool='max', as"),
    ("max", ("avg",), "pools exit '1' by 'avg', pool=('avg',), but the policy", "'max'. Pass pool='max', as"),
    ("auto", ("max", "avg", "grid2"), "by 'max+avg+grid2', pool=('max', 'avg', 'grid2'), but", "Pass pool='auto', as"),
    (("max", "avg"), ("avg", "max"), "by 'avg+max', pool=('avg', 'max'), but", "Pass pool=['max', 'avg'], as"),
    (corner, "avg", "by 'avg' but the policy", f"Pass the function {__name__}.corner as pool=, as"),
    (corner, centre, f"by '{__name__}.centre', pool=<function centre", f"Pass the function {__name__}.corner as pool="),
]


@pytest.mark.parametrize(("fitted", "given", "found", "cure"), WRONG)
def test_another_pool_of_the_same_width(network, images, tmp_path, fitted, given, found, cure):
    policy = fit(extract(network, images, tmp_path, pool=fitted))
    with pytest.raises(ValueError, match=rf"^the live network pools exit '1' .*{re.escape(cure)}") as caught:
        EarlyExitModel(network, EXITS, policy, pool=given, example_input=images)
    assert found in str(caught.value)
    EarlyExitModel(network, EXITS, policy, pool=fitted, example_input=images)


def as_steps(cache):
    heads = ExitHeads().fit(cache.X, cache.y)
    return ThresholdPolicy(budget=0.9).fit(heads.transform(cache.X), cache.y), heads


def after_scaler(cache):
    pipeline = make_pipeline(ExitTransformer(StandardScaler()), ExitHeads(), ThresholdPolicy(budget=0.9))
    return pipeline.fit(cache.X, cache.y), None


@pytest.mark.parametrize(
    "make",
    [
        as_steps,
        after_scaler,
        lambda cache: (policy_from_json(policy_to_json(fit(cache))), None),
        lambda cache: (fit(cache).without_fit_state(), None),
    ],
    ids=["heads apart", "scaler", "JSON", "without state"],
)
def test_however_the_policy_comes(network, images, tmp_path, make):
    policy, heads = make(extract(network, images, tmp_path, pool="max"))
    with pytest.raises(ValueError, match=r"^the live network pools exit '1' by 'avg' but the policy was fitted on"):
        EarlyExitModel(network, EXITS, policy, heads, pool="avg", example_input=images)
    EarlyExitModel(network, EXITS, policy, heads, pool="max", example_input=images)


def test_features_that_no_decision_reads_are_not_compared(network, images, tmp_path):
    cache = extract(network, images, tmp_path, pool="max")
    policy = StaticExit(1).fit(cache.X, cache.y)
    EarlyExitModel(network, EXITS, policy, pool="avg", example_input=images)


def test_plain_arrays_know_no_pools(network, images, tmp_path):
    cache = extract(network, images, tmp_path, pool="max")
    layout = cache.layout.replace(pools=None, exit_names=None)
    policy = ThresholdPolicy(budget=0.9, heads=ExitHeads(), layout=layout).fit(np.asarray(cache.X), cache.y)
    EarlyExitModel(network, EXITS, policy, pool="avg", example_input=images)


class TestNames:
    def test_other_modules_of_the_network(self, network, images, tmp_path):
        policy = fit(extract(network, images, tmp_path, pool="avg"))
        message = "exits has '0', but the policy was fitted on outputs of '1', which the network has, too. Pass "
        message += "exits=['1', '3'], unless the outputs of both are equal."
        with pytest.warns(UserWarning, match=f"^{re.escape(message)}$") as caught:
            EarlyExitModel(network, ["0", "3"], policy, pool="avg", example_input=images)
        assert len(caught) == 1

    def test_renamed_modules(self, network, images, tmp_path):
        policy = fit(extract(network, images, tmp_path, pool="avg"))
        layers = ["a", "b", "c", "d", "e", "f", "g"]
        renamed = nn.Sequential()
        for name, layer in zip(layers, network, strict=True):
            renamed.add_module(name, layer)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            EarlyExitModel(renamed, ["b", "d"], policy, pool="avg", example_input=images)


@pytest.mark.slow
def test_files_of_onnx(network, images, tmp_path):
    onnx = pytest.importorskip("onnx")
    cache = extract(network, images, tmp_path / "max", pool="max")
    policy = fit(cache)
    live = EarlyExitModel(network, EXITS, policy, pool="max", example_input=images)
    path = export_onnx(live, tmp_path / "network.onnx")
    described = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    layout = json.loads(described["skexit.fitted_layout"])
    assert (layout["exit_names"], layout["pools"]) == (EXITS, ["max", "max"])
    set_policy(path, policy.with_budget(0.8))
    for changes, message in [
        ({"pools": ["avg", "avg"]}, "the features of exit '1' in .* were pooled by 'max', but the policy was fitted"),
        ({"exit_names": ["0", "3"]}, r"the policy was fitted on the exits \['0', '3'\], but the policy in .*"),
    ]:
        other = joblib.load(joblib.dump(policy, tmp_path / "policy.joblib")[0])
        for estimator in (other, other.heads_):
            estimator._layout_in = estimator.layout_ = cache.layout.replace(**changes)
        with pytest.raises(ValueError, match=message):
            set_policy(path, other)
