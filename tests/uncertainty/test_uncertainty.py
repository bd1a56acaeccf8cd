"""Confidence scores against the formulas, written out row by row."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skexit.uncertainty import margin, max_probability, normalized_entropy, softmax, vote
from skexit.uncertainty._scores import SCORES, count_votes

LOGITS = arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(2, 7)), elements=st.floats(-300, 300))
PROBABILITIES = LOGITS.map(softmax)


def slow_softmax(row):
    shifted = [math.exp(value - max(row)) for value in row]
    return [value / sum(shifted) for value in shifted]


def slow_max_probability(row):
    """EENet, eq. 5."""
    largest = row[0]
    for probability in row:
        largest = max(largest, probability)
    return largest


def slow_entropy(row):
    """EENet, eq. 6."""
    total = 0.0
    for probability in row:
        if probability > 0:
            total += probability * math.log(probability)
    return 1 + total / math.log(len(row))


def slow_margin(row):
    first, second = sorted(row, reverse=True)[:2]
    return first - second


def slow_votes(rows):
    """EENet, eq. 7: the share of exits 1 to k whose prediction is the most frequent one, for each k."""
    predictions = [max(range(len(row)), key=row.__getitem__) for row in rows]
    return [
        max(sum(predictions[j] == c for j in range(k + 1)) for c in range(len(rows[0]))) / (k + 1)
        for k in range(len(rows))
    ]


SLOW = {"max_prob": slow_max_probability, "entropy": slow_entropy, "margin": slow_margin}


@given(LOGITS)
def test_softmax(logits):
    np.testing.assert_allclose(softmax(logits), [slow_softmax(row) for row in logits], rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("name", SCORES)
@given(probabilities=PROBABILITIES)
def test_formulas(name, probabilities):
    expected = [SLOW[name](row) for row in probabilities.tolist()]
    np.testing.assert_allclose(SCORES[name](probabilities), expected, rtol=1e-9, atol=1e-12)


@given(arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(2, 4)), elements=st.floats(0, 1)))
def test_votes(probabilities):
    """Samples by exits by classes, one exit after another."""
    counts, scores = None, []
    for k in range(probabilities.shape[1]):
        counts = count_votes(probabilities[:, k], counts)
        scores.append(vote(counts))
    np.testing.assert_allclose(np.stack(scores, axis=1), [slow_votes(rows.tolist()) for rows in probabilities])


@pytest.mark.parametrize("name", SCORES)
class TestEveryScore:
    @given(probabilities=PROBABILITIES)
    def test_lies_between_zero_and_one(self, name, probabilities):
        scores = SCORES[name](probabilities)
        assert scores.min() >= -1e-12
        assert scores.max() <= 1 + 1e-12

    @given(probabilities=PROBABILITIES, data=st.data())
    def test_does_not_depend_on_the_order_of_classes(self, name, probabilities, data):
        order = data.draw(st.permutations(range(probabilities.shape[1])))
        np.testing.assert_allclose(SCORES[name](probabilities[:, order]), SCORES[name](probabilities), atol=1e-12)

    @given(logits=LOGITS, shift=st.floats(-100, 100))
    def test_does_not_depend_on_a_shift_of_the_logits(self, name, logits, shift):
        np.testing.assert_allclose(SCORES[name](softmax(logits + shift)), SCORES[name](softmax(logits)), atol=1e-10)

    @given(logits=LOGITS, factor=st.floats(1.01, 10))
    def test_rises_as_logits_are_scaled_up(self, name, logits, factor):
        assert (SCORES[name](softmax(factor * logits)) >= SCORES[name](softmax(logits)) - 1e-12).all()

    @pytest.mark.parametrize("n_classes", [2, 3, 10])
    def test_extremes(self, name, n_classes):
        scores = SCORES[name](np.stack([np.eye(n_classes)[0], np.full(n_classes, 1 / n_classes)]))
        lowest = 1 / n_classes if name == "max_prob" else 0
        np.testing.assert_allclose(scores, [1, lowest], atol=1e-12)

    def test_a_single_class_is_certain(self, name):
        np.testing.assert_array_equal(SCORES[name](np.ones((3, 1))), [1, 1, 1])

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_torch_and_numpy_agree(self, name, dtype):
        torch = pytest.importorskip("torch")
        logits = (20 * np.random.default_rng(0).normal(size=(50, 6))).astype(dtype)
        scores = SCORES[name](softmax(torch.from_numpy(logits)))
        assert scores.dtype == getattr(torch, dtype)
        np.testing.assert_allclose(scores.numpy(), SCORES[name](softmax(logits)), rtol=1e-4, atol=1e-6)

    def test_keeps_leading_dimensions(self, name):
        probabilities = softmax(np.random.default_rng(0).normal(size=(4, 3, 5)))
        expected = np.stack([SCORES[name](block) for block in probabilities])
        np.testing.assert_allclose(SCORES[name](probabilities), expected)


def test_votes_of_torch_and_numpy_agree():
    torch = pytest.importorskip("torch")
    probabilities = softmax(np.random.default_rng(0).normal(size=(4, 30, 3)).astype(np.float32))
    numpy_counts = torch_counts = None
    for exit in probabilities:
        numpy_counts = count_votes(exit, numpy_counts)
        torch_counts = count_votes(torch.from_numpy(exit), torch_counts)
    np.testing.assert_array_equal(torch_counts.numpy(), numpy_counts)
    np.testing.assert_array_equal(vote(torch_counts).numpy(), vote(numpy_counts))


@pytest.mark.parametrize("logits", [[[1e300, -1e300]], [[-1e5, -1e5 - 1]], [[700.0, 710.0]]])
def test_softmax_neither_overflows_nor_loses_all(logits):
    probabilities = softmax(np.array(logits))
    assert np.isfinite(probabilities).all()
    assert probabilities.sum() == pytest.approx(1)


def test_entropy_of_impossible_classes_is_finite():
    probabilities = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    np.testing.assert_allclose(normalized_entropy(probabilities), [1, 1 - math.log(2) / math.log(3)])


def test_scores_rank_by_certainty():
    probabilities = np.array([[0.4, 0.3, 0.3], [0.6, 0.2, 0.2], [0.9, 0.05, 0.05]])
    for score in (max_probability, normalized_entropy, margin):
        assert (np.diff(score(probabilities)) > 0).all()
