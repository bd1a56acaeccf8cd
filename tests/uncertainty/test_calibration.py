"""Temperatures and calibration errors against their formulas, written out row by row."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skexit.uncertainty import expected_calibration_error, fit_mixture, fit_temperature, softmax
from skexit.uncertainty._temperature import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE, match_confidence


@st.composite
def labelled_logits(draw, scale=30):
    shape = draw(st.tuples(st.integers(1, 12), st.integers(2, 5)))
    logits = draw(arrays(np.float64, shape, elements=st.floats(-scale, scale)))
    return logits, draw(arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)))


def simulate(n_samples, n_classes, seed):
    """Logits whose softmax is the probability of each class, and labels drawn from it."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n_samples, n_classes))
    labels = (softmax(logits).cumsum(axis=1) > rng.uniform(size=(n_samples, 1))).argmax(axis=1)
    return logits, labels


def slow_loss(logits, labels, temperature, weight=None):
    """Mean cross-entropy of softmax(logits / temperature)."""
    weight = [1.0] * len(labels) if weight is None else weight
    total = 0.0
    for row, label, w in zip(logits.tolist(), labels.tolist(), weight, strict=True):
        scaled = [value / temperature for value in row]
        largest = max(scaled)
        total += w * (largest + math.log(sum(math.exp(value - largest) for value in scaled)) - scaled[label])
    return total / sum(weight)


def slow_expectation(row, inverse):
    """Mean and variance of a row's logits, as its probabilities say."""
    largest = max(row)
    exponentials = [math.exp(inverse * (value - largest)) for value in row]
    mean = sum(e * value for e, value in zip(exponentials, row, strict=True)) / sum(exponentials)
    square = sum(e * value**2 for e, value in zip(exponentials, row, strict=True)) / sum(exponentials)
    return mean, square - mean**2


def slow_prior_rows(logits, labels):
    """max(20, n / (Q - 3)), with Q the squared score over its variance."""
    score = variance = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        mean, own_variance = slow_expectation(row, 1)
        score += row[label] - mean
        variance += own_variance
    excess = score**2 / variance - 3
    return max(20, len(labels) / excess) if excess > 0 else math.inf


def slow_temperature(logits, labels, n_prior_rows):
    """Root, by bisection, of the derivative of the loss of the rows and the prior's by the inverse temperature."""

    def slope(inverse):
        total = 0.0
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
            expected, _ = slow_expectation(row, inverse)
            total += expected - row[label] + n_prior_rows / len(labels) * (expected - slow_expectation(row, 1)[0])
        return total

    low, high = 1 / 20, 1 / 0.05
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


#: Of a warning for which some tests leave the range on purpose.
ignore_bounds = pytest.mark.filterwarnings("ignore:the fitted temperature lies at the bound:UserWarning")


def slow_calibration_error(labels, probabilities, n_bins, strategy):
    """JEI-DNN, eq. 19; bins of the same width as in Guo et al."""
    rows = sorted(
        (max(row), float(row.index(max(row)) == label)) for row, label in zip(probabilities, labels, strict=True)
    )
    error = 0.0
    for b in range(1, n_bins + 1):
        if strategy == "quantile":
            members = rows[len(rows) * (b - 1) // n_bins : len(rows) * b // n_bins]
        else:
            members = [row for row in rows if (b - 1) / n_bins < row[0] <= b / n_bins]
        if members:
            accuracy = sum(right for _, right in members) / len(members)
            confidence = sum(p for p, _ in members) / len(members)
            error += len(members) / len(rows) * abs(accuracy - confidence)
    return error


@ignore_bounds
class TestTemperature:
    @pytest.mark.parametrize("seed", range(5))
    def test_formula(self, seed):
        logits, labels = simulate(n_samples=60, n_classes=4, seed=seed)
        n_rows = slow_prior_rows(logits, labels)
        expected = 1 if math.isinf(n_rows) else slow_temperature(logits, labels, n_rows)
        assert fit_temperature(logits, labels) == pytest.approx(expected, abs=1e-8)

    @given(labelled_logits())
    def test_lies_in_its_range_and_does_not_fit_worse_than_one(self, data):
        logits, labels = data
        temperature = fit_temperature(logits, labels)
        assert LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE
        assert slow_loss(logits, labels, temperature) <= slow_loss(logits, labels, 1) + 1e-9

    def test_rows_that_are_all_right(self):
        """Of twenty, the odds of an error are not below one in a hundred; of more, they are smaller."""
        logits = np.array([2.0, 0.0])
        errors = [softmax(logits / fit_temperature([logits] * n_rows, [0] * n_rows))[1] for n_rows in (20, 60, 2000)]
        assert softmax(logits)[1] >= errors[0] > errors[1] > 0.01 > errors[2] > 1e-4

    @given(labelled_logits(), st.floats(1e-3, 1e3), st.integers(0, 1000))
    def test_a_factor_of_the_weights_changes_nothing(self, data, factor, seed):
        logits, labels = data
        weight = np.random.default_rng(seed).uniform(0.1, 1, size=len(labels))
        expected = fit_temperature(logits, labels, weight)
        assert fit_temperature(logits, labels, factor * weight) == pytest.approx(expected, rel=1e-6)

    @given(labelled_logits(), st.data())
    def test_a_weight_is_a_number_of_copies(self, data, draw):
        logits, labels = data
        weight = np.array(draw.draw(st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels))))
        assume((weight == 1).any())
        repeated = np.repeat(np.arange(len(labels)), weight)
        expected = fit_temperature(logits[repeated], labels[repeated])
        assert fit_temperature(logits, labels, weight) == pytest.approx(expected, rel=1e-6)

    @given(labelled_logits())
    def test_predictions_stay_the_same(self, data):
        logits, labels = data
        scaled = softmax(logits / fit_temperature(logits, labels))
        is_clear = np.diff(np.sort(logits, axis=1)[:, -2:], axis=1)[:, 0] > 1e-6
        np.testing.assert_array_equal(scaled[is_clear].argmax(axis=1), logits[is_clear].argmax(axis=1))

    @pytest.mark.parametrize("factor", [0.2, 0.7, 3.0, 8.0])
    def test_finds_the_factor_by_which_logits_were_scaled(self, factor):
        logits, labels = simulate(n_samples=20_000, n_classes=4, seed=0)
        assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.03)
        assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.03)

    @pytest.mark.parametrize(
        ("scale", "labels", "bound", "message"),
        [
            (
                1e-3,
                [0, 1],
                LOWEST_TEMPERATURE,
                r"lies at the bound 0\.05: the logits are far too small.* pass logits / numpy\.std\(logits\)",
            ),
            (
                1e3,
                [1, 0],
                HIGHEST_TEMPERATURE,
                r"lies at the bound 20\.0: the logits contain little information .* pass logits / numpy\.std\(logits\)",
            ),
        ],
    )
    def test_warns_at_a_bound_and_the_cure_works(self, scale, labels, bound, message):
        logits, labels = scale * np.tile(np.eye(2), (200, 1)), np.tile(labels, 200)
        with pytest.warns(UserWarning, match=message):
            assert fit_temperature(logits, labels) == bound
        assert slow_loss(logits / np.std(logits), labels, 1) < slow_loss(logits, labels, 1)

    def test_equal_logits_need_no_temperature(self):
        assert fit_temperature(np.ones((3, 4)), [0, 1, 2]) == 1
        assert fit_temperature(np.ones((3, 1)), [0, 0, 0]) == 1

    @pytest.mark.parametrize("scale", [1e3, 1e10, 1e300])
    @pytest.mark.parametrize("labels", [[0, 1], [1, 0], [0, 0]])
    def test_probabilities_of_zero_and_one(self, scale, labels):
        logits = scale * np.eye(2)
        temperature = fit_temperature(logits, labels)
        assert temperature == (1 if labels == [0, 1] else HIGHEST_TEMPERATURE)
        assert np.isfinite(softmax(logits / temperature)).all()

    @pytest.mark.parametrize(
        ("logits", "labels", "weight", "message"),
        [
            ([[0.0, 1.0]], [0, 1], None, r"inconsistent numbers of samples: \[1, 2\]"),
            (
                [[0.0, 1.0]],
                [2],
                None,
                r"^labels must be the indices of classes: integers from 0 to 1\. .*numpy\.searchsorted",
            ),
            (
                [[0.0, 1.0]],
                [-1],
                None,
                r"^labels must be the indices of classes: integers from 0 to 1\. .*numpy\.searchsorted",
            ),
            (
                [[0.0, 1.0]],
                ["a"],
                None,
                r"^labels must be the indices of classes: integers from 0 to 1\. .*numpy\.searchsorted",
            ),
            ([[0.0, np.nan]], [0], None, "logits contains NaN"),
            ([0.0, 1.0], [0], None, "Expected 2D array"),
            ([[0.0, 1.0]], [0], [0.0], "zero"),
            ([[0.0, 1.0]], [0], [-1.0], "Negative"),
        ],
    )
    def test_errors(self, logits, labels, weight, message):
        with pytest.raises(ValueError, match=message):
            fit_temperature(logits, labels, weight)


@pytest.mark.parametrize("labels", [[0, -1, 1], [0, 2, 1], [0.0, 1.0, 1.0], ["a", "b", "a"]])
def test_labels_of_mixtures_are_indices_of_classes(labels):
    with pytest.raises(ValueError, match=r"^labels must be the indices of classes: integers from 0 to 1\. "):
        fit_mixture(np.log(np.full((3, 4, 2), 0.5)), labels)


@pytest.mark.parametrize("strategy", ["quantile", "uniform"])
class TestCalibrationError:
    @given(data=labelled_logits(scale=3), n_bins=st.integers(1, 20))
    def test_formula(self, strategy, data, n_bins):
        logits, labels = data
        probabilities = softmax(logits)
        confidence = probabilities.max(axis=1)
        assume(strategy == "uniform" or len(np.unique(confidence)) == len(confidence))
        error = expected_calibration_error(
            labels, probabilities, n_bins=n_bins, strategy=strategy, labels=range(logits.shape[1])
        )
        expected = slow_calibration_error(labels.tolist(), probabilities.tolist(), n_bins, strategy)
        assert error == pytest.approx(expected, abs=1e-10)
        assert 0 <= error <= 1

    @given(seed=st.integers(0, 1000), n_bins=st.integers(1, 50))
    def test_order_of_rows_and_columns_and_names_of_classes_do_not_matter(self, strategy, seed, n_bins):
        logits, labels = simulate(n_samples=40, n_classes=3, seed=seed)
        probabilities, rng = softmax(logits), np.random.default_rng(seed)
        rows, columns, names = rng.permutation(40), rng.permutation(3), np.array(["c", "a", "b"])
        expected = expected_calibration_error(labels, probabilities, n_bins=n_bins, strategy=strategy, labels=[0, 1, 2])
        error = expected_calibration_error(
            names[labels][rows],
            probabilities[rows][:, columns],
            n_bins=n_bins,
            strategy=strategy,
            labels=names[columns],
        )
        assert error == pytest.approx(expected, abs=1e-12)

    def test_zero_where_each_bin_is_right_as_often_as_it_says(self, strategy):
        labels, probabilities = [], []
        for tenths in (6, 7, 8, 9, 10):
            for row in range(10):
                probabilities.append([tenths / 10, 1 - tenths / 10])
                labels.append(int(row >= tenths))
        error = expected_calibration_error(
            labels, probabilities, n_bins=5 if strategy == "quantile" else 10, strategy=strategy
        )
        assert error == pytest.approx(0, abs=1e-12)

    def test_one_where_the_certain_are_wrong(self, strategy):
        assert expected_calibration_error([0, 1], [[0, 1], [1, 0]], strategy=strategy) == 1

    def test_falls_when_a_temperature_is_fitted(self, strategy):
        logits, labels = simulate(n_samples=5000, n_classes=4, seed=0)
        scaled = 4 * logits
        before = expected_calibration_error(labels, softmax(scaled), strategy=strategy)
        after = expected_calibration_error(labels, softmax(scaled / fit_temperature(scaled, labels)), strategy=strategy)
        assert before > 0.15
        assert after < 0.03


def test_a_probability_on_the_edge_of_a_bin_belongs_to_the_lower():
    # 0.75 is right and 0.7 wrong: (0.5, 0.75] holds both, and their errors cancel in part.
    error = expected_calibration_error([0, 1], [[0.75, 0.25], [0.7, 0.3]], n_bins=4, strategy="uniform")
    assert error == pytest.approx(abs(0.25 - 0.7) / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_bins": 0}, r"^n_bins=0 must be a positive integer\.$"),
        ({"n_bins": 2.5}, r"^n_bins=2\.5 must be a positive integer\.$"),
        ({"strategy": "equal"}, r"^strategy='equal' must be 'quantile' or 'uniform'\.$"),
        ({"y_true": [0, 1, 1]}, r"inconsistent numbers of samples: \[3, 2\]"),
        (
            {"y_true": [1, 1]},
            r"^y_true has 1 classes, but y_prob has 2 columns\. Pass the class of each column: labels=",
        ),
        (
            {"labels": [0, 1, 2]},
            r"^labels has 3 classes, but y_prob has 2 columns\. Pass the class of each column: labels=",
        ),
        ({"labels": [1, 2]}, r"^y_true has the class 0, which is not in labels=\[1, 2\]\. Leave such rows out"),
        ({"labels": [1, 1]}, r"^labels=\[1, 1\] has a class twice; pass a different label for each column\.$"),
        (
            {"y_prob": [[-1.0, 2.0], [0.5, 0.5]]},
            r"^y_prob must hold probabilities between 0 and 1; pass the output of predict_proba",
        ),
        ({"y_prob": [[np.nan, 0.5], [0.5, 0.5]]}, "y_prob contains NaN"),
        ({"y_prob": [0.5, 0.5]}, "Expected 2D array"),
    ],
)
def test_errors_of_the_calibration_error(arguments, message):
    arguments = {"y_true": [0, 1], "y_prob": [[0.7, 0.3], [0.4, 0.6]]} | arguments
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(**arguments)


class TestMatchConfidence:
    @pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 5.0])
    def test_finds_the_temperature_that_logits_were_divided_by(self, temperature):
        logits, weight = np.random.default_rng(0).normal(size=(50, 4)), np.ones(50)
        assert match_confidence(logits, logits / temperature, weight) == pytest.approx(temperature)

    def test_counts_rows_by_weight(self):
        rng = np.random.default_rng(0)
        logits, others, weight = rng.normal(size=(30, 3)), 2 * rng.normal(size=(30, 3)), rng.integers(1, 4, size=30)
        copies = [np.repeat(values, weight, axis=0) for values in (logits, others)]
        found = match_confidence(logits, others, weight.astype(float))
        assert found == pytest.approx(match_confidence(*copies, np.ones(weight.sum())))

    def test_bounds_and_equal_logits(self):
        logits, weight = np.array([[1.0, 0], [0, 2.0]]), np.ones(2)
        assert match_confidence(logits, 1e6 * logits, weight) == LOWEST_TEMPERATURE
        assert match_confidence(logits, 0 * logits, weight) == HIGHEST_TEMPERATURE
        assert match_confidence(0 * logits, logits, weight) == 1
