"""What is passed in place of X and y raises an error that says what to pass, and this works."""

from pathlib import Path

import numpy as np
import pytest
import torch
from instances import estimators, make_exits
from messages import exactly
from sklearn.base import clone

from skexit import ExitArray, ExitEnsemble, ExitHeads, ThresholdPolicy, make_exit_pipeline, oracle, recommended_pipeline
from skexit.cache import CacheWriter, FeatureCache
from skexit.metrics import accuracy_cost_curve, exit_report
from skexit.model_selection import budget_curve, choose_exits
from skexit.report import write_report
from skexit.uncertainty import fit_temperature

X, y = make_exits(n_samples=60, n_exits=2, n_classes=3, random_state=0)
FITTED = ThresholdPolicy().fit(X, y)
PIPELINE = make_exit_pipeline(ExitHeads(random_state=0), ThresholdPolicy()).fit(X, y)
IMAGES = np.zeros((60, 3, 8, 8), dtype=np.float32)

OUTPUTS = (
    "X has the outputs of a network's exits: pass the X of a cache, as ExitExtractor(network).extract(loader, path).X, "
    "or stack_exits(logits)."
)
ARE_IMAGES = (
    f"X has the shape (60, 3, 8, 8), as images have. {OUTPUTS} Images are for a live network, "
    "skexit.runtime.EarlyExitModel(network, exits, policy)."
)
NO_LABELS = (
    "A cache has no labels if its loader gave none: pass your own, one for each row of X, in the order of the loader. "
    "Or extract into another folder, with a loader that yields (inputs, labels)."
)


def every_estimator():
    return [*estimators(), recommended_pipeline(), make_exit_pipeline(ExitHeads(), ThresholdPolicy())]


def name_of(estimator):
    return type(estimator).__name__


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    path = tmp_path_factory.mktemp("cache")
    with CacheWriter(path, X.layout, origin={"model": "a test"}) as writer:
        writer.append([X.logits(k) for k in range(2)], [X.features(k) for k in range(2)])
    return FeatureCache(path)


@pytest.mark.parametrize("estimator", every_estimator(), ids=name_of)
@pytest.mark.parametrize("images", [IMAGES, torch.from_numpy(IMAGES), list(IMAGES)], ids=["array", "tensor", "list"])
def test_fit_on_images(estimator, images):
    with pytest.raises(ValueError, match=exactly(ARE_IMAGES)):
        clone(estimator).fit(images, y)


@pytest.mark.parametrize("estimator", [FITTED, PIPELINE], ids=name_of)
@pytest.mark.parametrize(
    "method", ["predict", "predict_proba", "predict_exit", "predict_at_exits", "exit_scores", "mean_cost"]
)
def test_methods_on_images(estimator, method):
    with pytest.raises(ValueError, match=exactly(ARE_IMAGES)):
        getattr(estimator, method)(IMAGES)
    getattr(estimator, method)(X)


@pytest.mark.parametrize(
    "use",
    [
        lambda: FITTED.score(IMAGES, y),
        lambda: FITTED.calibrate(IMAGES, y),
        lambda: PIPELINE.calibrate(IMAGES, y),
        lambda: ExitHeads().partial_fit(IMAGES, y, classes=[0, 1, 2]),
        lambda: ExitHeads().fit(X, y).transform(IMAGES),
        lambda: ExitArray.from_array(IMAGES),
        lambda: oracle(IMAGES, y),
        lambda: choose_exits(IMAGES, y),
    ],
)
def test_other_uses_of_images(use):
    with pytest.raises(ValueError, match=exactly(ARE_IMAGES)):
        use()


def test_what_is_passed_in_place_of_the_outputs(unlabelled):
    for given, message in (
        (unlabelled, "X is a FeatureCache; pass its X, cache.X."),
        (None, f"X is None. {OUTPUTS}"),
        ("cache", "X is 'cache'; pass the X of the cache in this folder, skexit.FeatureCache('cache').X."),
        (Path("cache"), "X is 'cache'; pass the X of the cache in this folder, skexit.FeatureCache('cache').X."),
    ):
        for use in (FITTED.predict, lambda given: ThresholdPolicy().fit(given, y), ExitArray.from_array):
            with pytest.raises(ValueError, match=exactly(message)):
                use(given)
    FITTED.predict(unlabelled.X)
    FITTED.predict(FeatureCache(unlabelled.path).X)


def needs_labels(estimator):
    return name_of(estimator) not in ("ExitTransformer", "RiskControlledPolicy")


@pytest.mark.parametrize("estimator", list(filter(needs_labels, every_estimator())), ids=name_of)
def test_fit_on_a_cache_without_labels(estimator, unlabelled):
    first = estimator.steps[0][1] if hasattr(estimator, "steps") else estimator
    message = f"This {name_of(first)} estimator requires y to be passed, but the target y is None. {NO_LABELS}"
    with pytest.raises(ValueError, match=exactly(message)):
        clone(estimator).fit(unlabelled.X, unlabelled.y)


def test_the_cure_for_a_cache_without_labels(unlabelled):
    ThresholdPolicy().fit(unlabelled.X, y)
    ExitEnsemble().fit(unlabelled.X, y)


@pytest.mark.parametrize(
    ("use", "fault"),
    [
        (lambda X: FITTED.score(X, None), "y is None."),
        (lambda X: PIPELINE.score(X), "y is None."),
        (lambda X: FITTED.calibrate(X, None), "y is None."),
        (lambda X: PIPELINE.calibrate(X, None), "y is None."),
        (lambda X: oracle(X, None), "y is None."),
        (lambda X: budget_curve(ThresholdPolicy(), X, None, [0.7]), "y is None."),
        (
            lambda X: choose_exits(X, None),
            "This ThresholdPolicy estimator requires y to be passed, but the target y is None.",
        ),
        (
            lambda X: ExitHeads().partial_fit(X, None, classes=[0, 1, 2]),
            "This ExitHeads estimator requires y to be passed, but the target y is None.",
        ),
        (lambda X: fit_temperature(X.logits(0), None), "labels is None."),
        (
            lambda X: exit_report(None, FITTED.predict_at_exits(X), FITTED.predict_exit(X), FITTED.costs_),
            "y_true is None.",
        ),
        (
            lambda X: accuracy_cost_curve(None, FITTED.predict(X), FITTED.costs_[FITTED.predict_exit(X)]),
            "y_true is None.",
        ),
    ],
)
def test_other_uses_without_labels(use, fault, unlabelled):
    with pytest.raises(ValueError, match=exactly(f"{fault} {NO_LABELS}")):
        use(unlabelled.X)


def test_a_report_without_labels(unlabelled, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=exactly(f"y is None: a report needs the labels of the rows. {NO_LABELS}")):
        write_report(unlabelled.X, unlabelled.y, {"policy": FITTED}, tmp_path / "report.html")
