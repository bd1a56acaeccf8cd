"""Parameters that are integers refuse True and False, which Python counts as integers."""

import numpy as np
import pytest
from instances import estimators, make_exits
from messages import exactly
from sklearn.base import clone

from skexit import ConvExitHeads, ExitHeads, ExitLayout, StaticExit
from skexit.metrics import bootstrap_interval, exit_distribution_by_class, exit_report
from skexit.model_selection import choose_exits
from skexit.uncertainty import expected_calibration_error
from skexit.utils._checks import check_positive, is_integer
from skexit.utils._sklearn import Interval

X, y = make_exits(n_samples=60, n_exits=2, n_classes=3, random_state=0)


def integer_parameters():
    """Every parameter of an estimator for which an integer is valid and a bool is not."""
    for estimator in estimators():
        constraints = estimator._parameter_constraints
        for name, allowed in constraints.items():
            if any(isinstance(each, Interval) for each in allowed) and "boolean" not in allowed:
                yield pytest.param(estimator, name, id=f"{type(estimator).__name__}.{name}")


@pytest.mark.parametrize(("estimator", "name"), list(integer_parameters()))
@pytest.mark.parametrize("value", [True, False])
def test_numbers_of_estimators(estimator, name, value):
    changed = clone(estimator).set_params(**{name: value})
    with pytest.raises(ValueError, match=rf"'{name}' parameter of \w+ must be .* Got {value} instead|{name}={value}"):
        changed.fit(X, y)


def test_the_error_of_an_estimator():
    message = "The 'exit' parameter of StaticExit must be an int in the range (-inf, inf). Got True instead."
    with pytest.raises(ValueError, match=exactly(message)):
        StaticExit(True).fit(X, y)
    StaticExit(1).fit(X, y)
    StaticExit(np.int64(1)).fit(X, y)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda: choose_exits(X, y, n_exits=True),
            "n_exits=True must be from 1 to 2, the number of exits of X, or None.",
        ),
        (
            lambda: ExitLayout([True, True], [2, 2]),
            "n_logits=[True, True] must be integers, one for each exit: the number of its columns.",
        ),
        (
            lambda: ExitLayout([0, 0], [2, 2.5]),
            "n_features=[2, 2.5] must be integers, one for each exit: the number of its columns.",
        ),
        (lambda: ExitLayout.even(8, True), "n_exits=True must be an integer of at least 1."),
        (lambda: next(X.batches(True)), "batch_size=True must be an integer of at least 1."),
        (lambda: bootstrap_interval(np.mean, y, n_resamples=True), "n_resamples=True must be a positive integer."),
        (
            lambda: expected_calibration_error(y, np.full((60, 3), 1 / 3), n_bins=True),
            "n_bins=True must be a positive integer.",
        ),
        (
            lambda: exit_distribution_by_class(y, np.zeros(60, dtype=int), n_exits=True),
            "n_exits=True must be a positive integer.",
        ),
        (
            lambda: exit_report(y, np.zeros((60, 2)), np.zeros(60, dtype=int), [0.5, 1], digits=True),
            "digits=True must be a whole number, 0 or more.",
        ),
        (
            lambda: ExitLayout([0], [8], feature_maps=[(False, 2, 2, 2)]),
            "feature_maps[0]=(False, 2, 2, 2) must be four integers: the number of the map's first feature, and its "
            "channels, height and width.",
        ),
        (
            lambda: ExitHeads((True,)).fit(X, y),
            "hidden_layer_sizes=(True,) must hold one positive integer for each hidden layer; () makes the networks "
            "linear.",
        ),
        (
            lambda: choose_exits(X, y, cv=True),
            "cv=True must be an integer of at least 2, a splitter, or an iterable of folds.",
        ),
    ],
)
def test_integers_of_functions(use, message):
    with pytest.raises(ValueError, match=exactly(message)):
        use()


def test_integers_of_convolutions():
    maps = ExitLayout([0, 3], [8, 8], feature_maps=[(0, 2, 2, 2)] * 2)
    rows = np.random.default_rng(0).normal(size=(60, 19))
    for name in ("channels", "strides"):
        message = f"{name}=(True,) must hold one positive integer for each layer, at least one."
        with pytest.raises(ValueError, match=exactly(message)):
            ConvExitHeads(**({"channels": (2,), "strides": (1,)} | {name: (True,)}), layout=maps).fit(rows, y)


@pytest.mark.parametrize("value", [1, 7, np.int64(3), np.uint8(2)])
def test_positive_integers(value):
    assert is_integer(value)
    assert check_positive("size", value) == value
    assert type(check_positive("size", value)) is int


@pytest.mark.parametrize("value", [True, False, np.True_, 1.0, "1", None])
def test_what_is_no_integer(value):
    assert not is_integer(value)
    with pytest.raises(ValueError, match=exactly(f"size={value!r} must be an integer of at least 1.")):
        check_positive("size", value)


@pytest.mark.parametrize("value", [0, -3])
def test_integers_that_are_not_positive(value):
    with pytest.raises(ValueError, match=exactly(f"size={value} must be at least 1.")):
        check_positive("size", value)
