"""Check that what was fitted and exported with torch is applied without it, with the same answers.

First run ``python .ci/without_torch.py save DIR`` where torch is installed, and then
``python .ci/without_torch.py check DIR`` where only the extras onnx, plot and skops are.
"""

import importlib.util
import sys
from pathlib import Path

import joblib
import numpy as np
import skops.io
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline

import skexit
from skexit import (
    ConvExitHeads,
    EENetPolicy,
    EMExitAssigner,
    ExitHeads,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    ThresholdPolicy,
    recommended_pipeline,
)
from skexit.datasets import load_cifar10_resnet56
from skexit.plotting import AccuracyCostDisplay
from skexit.runtime import OnnxEarlyExit, policy_from_json, policy_to_json

BUDGET = 0.7


def load_data():
    """Rows to fit on and rows to answer, of the packaged data."""
    X, y = load_cifar10_resnet56(return_X_y=True)
    fitted, new = train_test_split(np.arange(len(y)), train_size=1500, test_size=500, stratify=y, random_state=0)
    return X[fitted], y[fitted], X[new]


def make_models():
    """Policies by the names of their files; all train by torch but OptimalStoppingPolicy."""
    policies = [
        # A confidence_weight other than "auto" keeps the routers.
        EMExitAssigner(budget=BUDGET, confidence_weight=1.0, max_epochs=1, random_state=0),
        EENetPolicy(budget=BUDGET, max_epochs=1, random_state=0),
        OptimalStoppingPolicy(budget=BUDGET, random_state=0),
    ]
    models = {type(policy).__name__: make_pipeline(ExitHeads(random_state=0), policy) for policy in policies}
    models["ConvExitHeads"] = make_pipeline(convolutional_heads(), ThresholdPolicy(budget=BUDGET))
    models["JEIGatedEnsemble"] = JEIGatedEnsemble(budget=BUDGET, max_epochs=1, random_state=0)
    models["recommended"] = recommended_pipeline(budget=BUDGET).set_params(ensemble__heads__max_epochs=1)
    return models


def convolutional_heads():
    """Heads that take the averages of each exit for maps of 4 x 4 places."""
    layout = load_cifar10_resnet56().data.layout
    maps = [(0, width // 16, 4, 4) for width in layout.n_features]
    return ConvExitHeads((8,), (1,), max_epochs=1, layout=layout.replace(feature_maps=maps), random_state=0)


def steps_of(model):
    """The policy, and what comes before it."""
    return [step for _, step in model.steps] if isinstance(model, Pipeline) else [model]


def answers_of(model, X):
    """Exits, labels and probabilities."""
    *transformers, policy = steps_of(model)
    for transformer in transformers:
        X = transformer.transform(X)
    return policy.predict_exit(X), policy.predict(X), policy.predict_proba(X)


def answers_of_network(path):
    """Exits, labels and probabilities of a network in ONNX."""
    output = OnnxEarlyExit(path).predict(load_images()[0])
    return output.exits, output.labels, output.probabilities


def load_images():
    """Digits of shape (n_samples, 1, 8, 8), and labels."""
    digits = load_digits()
    return digits.images[:, None].astype(np.float32) / 16, digits.target


def save(folder):
    """Fit, save and answer."""
    X, y, X_new = load_data()
    for name, model in make_models().items():
        model.fit(X, y)
        joblib.dump(model, folder / f"{name}.joblib", compress=3)
        skops.io.dump(model, folder / f"{name}.skops")
        (folder / f"{name}.json").write_text(policy_to_json(steps_of(model)))
        np.savez(folder / f"{name}.npz", *answers_of(model, X_new))
    export_network(folder / "network.onnx")
    np.savez(folder / "network.npz", *answers_of_network(folder / "network.onnx"))


def export_network(path):
    """Export a small network with random weights, and a policy that was fitted on its exits."""
    import torch
    from torch import nn

    from skexit.extraction import ExitExtractor
    from skexit.runtime import EarlyExitModel, export_onnx

    images, labels = map(torch.from_numpy, load_images())
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)),
    )
    exits = ["0", "1.2"]
    cache = ExitExtractor(network, exits=exits).extract([(images, labels)], path.with_name("cache"), progress=False)
    pipeline = make_pipeline(ExitHeads(random_state=0), EENetPolicy(budget=BUDGET, max_epochs=1, random_state=0))
    pipeline.fit(cache.X, cache.y)
    export_onnx(EarlyExitModel(network, exits, pipeline, example_input=images[:2]), path)


def check(folder):
    """Load what was saved, compare its answers, fit what needs no torch, and read the error of what does."""
    assert importlib.util.find_spec("torch") is None, "torch is installed"
    X, y, X_new = load_data()
    for name in make_models():
        models = [
            joblib.load(folder / f"{name}.joblib"),
            skops.io.load(folder / f"{name}.skops", trusted=skexit.TRUSTED_TYPES),
            make_pipeline(*policy_from_json((folder / f"{name}.json").read_text())),
        ]
        for model in models:
            compare(answers_of(model, X_new), folder / f"{name}.npz")
    compare(answers_of_network(folder / "network.onnx"), folder / "network.npz")

    logits = ExitHeads(random_state=0).fit_transform(X, y)
    policies = [ThresholdPolicy(budget=BUDGET), OptimalStoppingPolicy(budget=BUDGET, random_state=0)]
    for policy in policies:
        assert policy.fit(logits, y).mean_cost(logits) <= BUDGET, policy
    AccuracyCostDisplay.from_estimators({"policies": policies}, logits, y)

    message = None
    try:
        EENetPolicy().fit(logits, y)
    except ImportError as error:
        message = str(error)
    assert message == (
        "EENetPolicy trains its networks with torch, which is not installed: pip install 'skexit[torch]'"
    ), message


def compare(answers, path):
    """Exits and labels must be equal, and probabilities up to rounding."""
    with np.load(path) as saved:
        for found, expected in zip(answers, saved.values(), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 if expected.dtype.kind == "f" else 0)


if __name__ == "__main__":
    _, mode, path = sys.argv
    Path(path).mkdir(parents=True, exist_ok=True)
    {"save": save, "check": check}[mode](Path(path))
