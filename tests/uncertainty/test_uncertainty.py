"""Confidence scores against the formulas, written out row by row."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skexit.uncertainty import log_odds, margin, max_probability, normalized_entropy, softmax, vote
from skexit.uncertainty._scores import CRITERIA, count_votes

LOGITS = arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(2, 7)), elements=st.floats(-300, 300))
PROBABILITIES = LOGITS.map(softmax)
SCORES = {"max_prob": max_probability, "entropy": normalized_entropy, "margin": margin}


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


FROM_SCALE = {
    "max_prob": lambda score: 1 / (1 + np.exp(-score)),
    "entropy": lambda score: 1 - np.exp(-score),
    "margin": lambda score: np.tanh(score / 2),
}


@pytest.mark.parametrize("name", CRITERIA)
class TestEveryCriterion:
    """Functions of the scores of probabilities that tell apart what is rounded to 1 there."""

    @given(logits=LOGITS)
    def test_is_another_scale_of_the_score(self, name, logits):
        expected = [SLOW[name](slow_softmax(row)) for row in logits.tolist()]
        np.testing.assert_allclose(FROM_SCALE[name](CRITERIA[name](logits)), expected, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("n_classes", [2, 3, 10, 100])
    @pytest.mark.parametrize("size", [10.0, 1e3, 1e6, 1e30])
    def test_has_no_upper_end(self, name, size, n_classes):
        """The surer of two samples has the higher score, however sure both are."""
        logits = np.zeros((50, n_classes))
        logits[:, 1] = size * np.linspace(1, 2, 50)
        scores = CRITERIA[name](logits)
        assert (np.diff(scores) > size / 100).all()
        np.testing.assert_allclose(scores, logits[:, 1], atol=1 + np.log(size * n_classes))

    @given(
        logits=arrays(
            np.float64,
            st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 3, 70])),
            elements=st.floats(-1e300, 1e300) | st.floats(-1, 1),
        )
    )
    def test_is_finite(self, name, logits):
        assert np.isfinite(CRITERIA[name](logits)).all()

    @given(logits=LOGITS, data=st.data(), shift=st.floats(-100, 100))
    def test_depends_neither_on_the_order_of_classes_nor_on_a_shift(self, name, logits, data, shift):
        order = data.draw(st.permutations(range(logits.shape[1])))
        np.testing.assert_allclose(CRITERIA[name](logits[:, order] + shift), CRITERIA[name](logits), atol=1e-10)

    def test_many_classes_are_as_few(self, name):
        """Classes that are masked change nothing but the largest entropy."""
        logits = 50 * np.random.default_rng(0).normal(size=(30, 5))
        many = np.hstack([logits, np.full((30, 95), -np.inf)])
        change = math.log(math.log(100) / math.log(5)) if name == "entropy" else 0
        np.testing.assert_allclose(CRITERIA[name](many), CRITERIA[name](logits) + change)

    @pytest.mark.parametrize("n_classes", [1, 2, 6, 100])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_torch_and_numpy_agree(self, name, dtype, n_classes):
        torch = pytest.importorskip("torch")
        logits = (200 * np.random.default_rng(0).normal(size=(4, 50, n_classes))).astype(dtype)
        scores = CRITERIA[name](torch.from_numpy(logits))
        assert scores.dtype == getattr(torch, dtype)
        np.testing.assert_allclose(scores.numpy(), CRITERIA[name](logits), rtol=1e-4, atol=1e-4)


def test_log_odds_of_two_classes_are_the_distance_of_their_logits():
    logits = np.random.default_rng(0).normal(size=(20, 2)) * np.geomspace(1e-3, 1e6, 20)[:, None]
    np.testing.assert_array_equal(log_odds(logits), abs(logits[:, 1] - logits[:, 0]))


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
