"""Labels without numbers do not say which logit is theirs."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skexit import ThresholdPolicy, stack_exits

NAMES = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])


def make(n_rows, accuracy, seed=0, n_classes=10):
    """Logits of two exits that are correct with this probability, and the number of each label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(n_classes, size=n_rows)
    labels[:n_classes] = np.arange(n_classes)
    predicted = np.where(rng.random(n_rows) < accuracy, labels, rng.integers(n_classes, size=n_rows))
    logits = rng.normal(size=(n_rows, 2, n_classes))
    logits[np.arange(n_rows), :, predicted] += 5
    return logits, labels


def test_another_order_is_refused_and_the_error_gives_it():
    logits, labels = make(400, 0.9)
    message = r"at exit 1, the logits have an accuracy of \d+\.\d% on y in the sorted order of the classes, but of "
    with pytest.raises(ValueError, match=message + r"\d+\.\d% in the order " + re.escape(str(NAMES.tolist()))):
        ThresholdPolicy(budget=0.7).fit(stack_exits(logits), NAMES[labels])


def test_classes_that_take_turns():
    labels = np.arange(600) % 6
    names = np.array(["oak", "ash", "elm", "fir", "yew", "box"])
    logits = np.random.default_rng(0).normal(size=(600, 2, 6)) + 6 * np.eye(6)[labels][:, None]
    with pytest.raises(ValueError, match=r"but of (99|100)\.\d% in the order " + re.escape(str(names.tolist()))):
        ThresholdPolicy(budget=0.8).fit(stack_exits(logits), names[labels])


def test_cures():
    logits, labels = make(400, 0.9)
    X, y = stack_exits(logits), NAMES[labels]
    named = X.with_layout(X.layout.replace(classes=NAMES.tolist()))
    scores = [
        ThresholdPolicy(budget=0.7).fit(named, y).score(named, y),
        ThresholdPolicy(budget=0.7).fit(stack_exits(logits, classes=NAMES.tolist()), y).score(named, y),
        ThresholdPolicy(budget=0.7).fit(X, labels).score(X, labels),
    ]
    assert min(scores) > 0.8
    assert len(set(scores)) == 1


@settings(max_examples=40, deadline=None)
@given(n_classes=st.integers(2, 10), n_rows=st.integers(20, 500), accuracy=st.floats(0, 1), seed=st.integers(0, 2**16))
def test_the_sorted_order_is_taken(n_classes, n_rows, accuracy, seed):
    """Of accurate exits and of exits at chance, on few rows and on many."""
    names = np.sort(NAMES[:n_classes])
    logits, labels = make(n_rows, accuracy, seed, n_classes)
    policy = ThresholdPolicy(budget=0.8).fit(stack_exits(logits), names[labels])
    assert policy.classes_.tolist() == names.tolist()
