"""Logits, probabilities and single columns become the logits of X."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from instances import make_exits
from scipy.sparse import csr_array
from scipy.special import expit, softmax
from sklearn.ensemble import RandomForestClassifier

from skexit import EENetPolicy, ExitArray, ExitLayout, OptimalStoppingPolicy, ThresholdPolicy, stack_exits

LOGITS = arrays(np.float64, (5, 2, 3), elements=st.floats(-12, 12))


@pytest.fixture(scope="module")
def data():
    X, y = make_exits(n_samples=300, n_exits=3, n_classes=4, random_state=0)
    return np.stack([X.logits(k) for k in range(3)], axis=1), y


class TestProbabilities:
    @given(LOGITS)
    def test_they_come_back(self, logits):
        probabilities = softmax(logits, axis=2)
        X = stack_exits(probabilities=probabilities)
        for k in range(2):
            np.testing.assert_allclose(softmax(X.logits(k), axis=1), probabilities[:, k], rtol=1e-9)

    def test_they_are_as_good_as_logits(self, data):
        logits, y = data
        X = stack_exits(probabilities=softmax(logits, axis=2))
        policy, expected = ThresholdPolicy(budget=0.7).fit(X, y), ThresholdPolicy(budget=0.7).fit(logits, y)
        np.testing.assert_allclose(policy.predict_proba(X), expected.predict_proba(logits), atol=1e-9)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32])
    def test_low_precision(self, data, dtype):
        probabilities = softmax(data[0], axis=2).astype(dtype)
        X = stack_exits(probabilities=probabilities)
        assert X.dtype == np.float32
        np.testing.assert_allclose(softmax(X.logits(0), axis=1), probabilities[:, 0], atol=2e-3)

    @pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")
    def test_zeros_of_a_forest(self, data):
        logits, y = data
        blocks = [logits[:, k] for k in range(3)]
        forests = [RandomForestClassifier(5, random_state=0).fit(block, y) for block in blocks]
        probabilities = [forest.predict_proba(block) for forest, block in zip(forests, blocks, strict=True)]
        X = stack_exits(probabilities=probabilities)
        assert np.isfinite(np.asarray(X)).all()
        assert (np.concatenate(probabilities) == 0).any()
        assert X.logits(0).min() == pytest.approx(np.log(1e-12))
        with np.errstate(divide="ignore"):
            by_hand = stack_exits(np.log(probabilities).transpose(1, 0, 2))
        np.testing.assert_allclose(softmax(by_hand.logits(0), axis=1), probabilities[0], atol=1e-12)
        assert ThresholdPolicy(budget=0.7).fit(X, y).calibrate(X, y).score(X, y) > 0.9

    def test_one_column_is_that_of_the_second_class(self):
        p = np.array([[0.2], [0.9], [1.0]])
        X = stack_exits(probabilities=[p])
        np.testing.assert_allclose(softmax(X.logits(0), axis=1), np.hstack([1 - p, p]), atol=1e-11)

    def test_beside_logits(self, data):
        logits, _ = data
        X = stack_exits([None, None, logits[:, 2]], probabilities=[softmax(logits[:, 0], axis=1)] * 2 + [None])
        assert X.layout.n_logits == (4, 4, 4)
        np.testing.assert_array_equal(X.logits(2), logits[:, 2])
        with pytest.raises(ValueError, match="exit 0 has logits and probabilities; pass one of them"):
            stack_exits(logits, probabilities=softmax(logits, axis=2))
        with pytest.raises(ValueError, match="logits has 3 exits and probabilities 1"):
            stack_exits(logits, probabilities=[softmax(logits[:, 0], axis=1)])

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ([-0.1, 0.6, 0.5], r"probabilities\[1\]: row 2 has a value below 0 or above 1: \[-0.1"),
            ([0.2, 0.2, 0.2], r"probabilities\[1\]: row 2 sums to 0.6, not 1"),
            ([20, 30, 50], r"row 2 sums to 100, not 1: \[20.* Divide percentages"),
            ([0, 0, 0], "row 2 sums to 0, not 1"),
            ([np.nan, 0.5, 0.5], "row 2 has NaN: .* Remove such rows"),
            ([np.inf, 0, 0], "row 2 sums to inf"),
        ],
    )
    def test_rows_that_are_none_are_refused(self, row, message):
        probabilities = np.full((4, 2, 3), 1 / 3)
        probabilities[2, 1] = row
        with pytest.raises(ValueError, match=message):
            stack_exits(probabilities=probabilities)


class TestMistaken:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_probabilities_given_as_logits(self, data, dtype):
        logits, y = data
        probabilities = softmax(logits, axis=2).astype(dtype)
        with pytest.warns(UserWarning, match=r"exit 0 is .* stack_exits\(probabilities=\.\.\.\)"):
            stack_exits(probabilities)
        with pytest.warns(UserWarning, match="exit 1 is non-negative and sums to 1"):
            stack_exits([logits[:, 0], probabilities[:, 1]])
        with pytest.warns(UserWarning, match=r"probabilities=\.\.\."):
            ThresholdPolicy().fit(probabilities, y)
        with pytest.warns(UserWarning, match=r"probabilities=\.\.\."):
            ThresholdPolicy(layout=ExitLayout([4] * 3)).fit(probabilities.reshape(len(y), -1), y)

    def test_single_probabilities_given_as_logits(self, data):
        y = data[1] > 1
        z = data[0][:, :, 2:].sum(axis=2) - data[0][:, :, :2].sum(axis=2)
        with pytest.warns(UserWarning, match=r"single logit of exit 0 is between 0 and 1 .*\(probabilities=") as caught:
            stack_exits(expit(z)[:, :, None])
        assert len(caught) == 1
        policy = ThresholdPolicy(budget=0.7).fit(stack_exits(probabilities=expit(z)[:, :, None]), y)
        expected = ThresholdPolicy(budget=0.7).fit(stack_exits(z[:, :, None]), y)
        np.testing.assert_allclose(policy.exit_distribution_, expected.exit_distribution_)

    def test_sparse_blocks_are_refused(self):
        with pytest.raises(TypeError, match=r"Sparse data was passed.*'\.toarray\(\)'"):
            stack_exits(features=[csr_array(np.eye(3))])

    def test_logits_are_not_mistaken(self, data):
        logits, _ = data
        stack_exits(logits)
        stack_exits(np.abs(logits))
        some = softmax(logits, axis=2)
        some[17] = logits[17]
        stack_exits(some)
        ExitArray.from_array(np.zeros((3, 4)))


class TestMaskedClasses:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("where", ["a class", "some rows"])
    @pytest.mark.parametrize(
        "policy",
        [
            ThresholdPolicy(budget=0.7),
            ThresholdPolicy("entropy", budget=0.7),
            OptimalStoppingPolicy(budget=0.7, random_state=0),
            EENetPolicy(budget=0.7, max_epochs=2, random_state=0),
        ],
        ids=repr,
    )
    @pytest.mark.filterwarnings("ignore:some of the budget:UserWarning")
    def test_they_are_never_answered(self, data, policy, where, dtype):
        logits, y = data
        masked = np.concatenate([logits, np.full((len(y), 3, 1), 50.0)], axis=2).astype(dtype)
        rows = slice(None) if where == "a class" else slice(0, None)
        masked[rows, :, 4] = -np.inf
        if where == "some rows":
            masked[:100, :, 0] = np.where(y[:100, None] == 0, masked[:100, :, 0], -np.inf)
        policy.fit(masked, y).calibrate(masked, y)
        probabilities = policy.predict_proba(masked)
        assert np.isfinite(probabilities).all()
        assert (policy.predict(masked) != 4).all()
        assert np.isfinite(policy.exit_scores(masked)).all()
        np.testing.assert_allclose(probabilities[:, 4], 0, atol=1e-3)

    def test_a_row_without_any_class_is_refused(self, data):
        logits, y = data
        empty = logits.copy()
        empty[3, 1] = -np.inf
        with pytest.raises(ValueError, match=r"the logits of exit 1 \(first in row 3"):
            ThresholdPolicy().fit(empty, y)

    def test_elsewhere_the_error_says_what_to_do(self, data):
        logits, y = data
        flat = logits.reshape(len(y), -1).copy()
        flat[:, 0] = -np.inf
        for X, layout in [(flat, ExitLayout([4] * 3)), (ExitArray.from_array(flat, ExitLayout([4] * 3)), None)]:
            with pytest.raises(ValueError, match=r"stack_exits\(probabilities=\.\.\.\).*large negative number"):
                ThresholdPolicy(layout=layout).fit(X, y)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_other_values_are_still_refused(self, data, value):
        logits, y = data
        broken = logits.copy()
        broken[5, 0, 1] = value
        broken[6, 0, 1] = -np.inf
        with pytest.raises(ValueError, match="look for an overflow in the network"):
            ThresholdPolicy().fit(broken, y)


class TestBinaryNetworks:
    @given(arrays(np.float64, (6, 2, 1), elements=st.floats(-30, 30)))
    def test_one_logit_is_that_of_the_second_class(self, z):
        X = stack_exits(z)
        assert X.layout.n_logits == (2, 2)
        for k in range(2):
            np.testing.assert_array_equal(X.logits(k), np.hstack([np.zeros((6, 1)), z[:, k]]))

    def test_policies_take_them(self):
        rng = np.random.default_rng(0)
        y = rng.integers(2, size=300)
        z = (2 * y - 1)[:, None, None] * [[[1.0], [3.0]]] + rng.normal(size=(300, 2, 1))
        policy = ThresholdPolicy(budget=0.7).fit(z, y)
        assert policy.score(z, y) > 0.9
        np.testing.assert_array_equal(policy.predict_at_exits(z), z[:, :, 0] > 0)
        X = stack_exits([None, z[:, 1]], [z[:, 0], z[:, 0]], classes=["no", "yes"])
        assert ThresholdPolicy(budget=0.7).fit(X, np.array(["no", "yes"])[y]).score(X, np.array(["no", "yes"])[y]) > 0.8
