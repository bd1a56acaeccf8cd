"""Conformal sets: their thresholds as the formulas say, and their coverage as the theory says."""

import math
import warnings
from fractions import Fraction

import joblib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from instances import make_exits
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import log_loss

import skexit.data._arrays
import skexit.policies._calibration
from skexit import ExitHeads, RandomExit, StaticExit, ThresholdPolicy, stack_exits
from skexit.uncertainty import conformal_threshold, coverage_score, fit_temperature, inefficiency_score, softmax
from skexit.uncertainty._conformal import ConformalScores
from skexit.uncertainty._temperature import fit_exit_temperatures

METHODS = ["general", "ims", "strict", "gated"]
HUNDREDTHS = st.integers(1, 99)


@st.composite
def calibrations(draw):
    """Scores of a few rows at a few exits, with ties, and where the rows leave."""
    n_samples, n_exits = draw(st.integers(1, 70)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores, exits = rng.integers(12, size=(n_samples, n_exits)) / 12, rng.integers(n_exits, size=n_samples)
    return ConformalScores(scores, exits, rng.integers(3, size=n_samples))


def slow_threshold(scores, hundredths):
    """The smallest score that (n + 1) (1 - alpha) of the scores do not exceed, in whole numbers."""
    needed = (len(scores) + 1) * (1 - Fraction(hundredths, 100))
    for candidate in sorted(scores):
        if sum(score <= candidate for score in scores) >= needed:
            return candidate
    return math.inf


def slow_thresholds(scores, exits, hundredths, method):
    """JEI-DNN, 9.3."""
    rows, n_exits = range(len(scores)), len(scores[0])
    general = slow_threshold([scores[i][exits[i]] for i in rows], hundredths)
    thresholds = []
    for k in range(n_exits):
        leaving = [scores[i][k] for i in rows if exits[i] == k]
        if method == "general" or (method == "gated" and len(leaving) < 20):
            thresholds.append(general)
        elif method == "ims":
            thresholds.append(slow_threshold([scores[i][k] for i in rows], hundredths))
        elif not leaving:
            thresholds.append(-math.inf)
        else:
            thresholds.append(slow_threshold(leaving, hundredths))
    return thresholds


@given(st.lists(st.floats(0, 1), max_size=60), HUNDREDTHS)
def test_threshold(scores, hundredths):
    assert conformal_threshold(scores, hundredths / 100) == slow_threshold(scores, hundredths)


@pytest.mark.parametrize("n_samples", [1, 9, 19, 49, 99, 199, 999])
def test_rank_is_not_off_by_a_rounding_error(n_samples):
    ranks = np.arange(n_samples, 0, -1)
    for hundredths in range(1, 100):
        rank = math.ceil((n_samples + 1) * (1 - Fraction(hundredths, 100)))
        expected = rank if rank <= n_samples else math.inf
        assert conformal_threshold(ranks, hundredths / 100) == expected
        assert conformal_threshold(ranks, 1 - (100 - hundredths) / 100) == expected


def test_ranks_at_the_edge():
    assert conformal_threshold(np.arange(1, 100), 0.1) == 90
    assert conformal_threshold(np.arange(1, 20), 0.05) == 19
    assert conformal_threshold(np.arange(1, 19), 0.05) == math.inf
    assert conformal_threshold(np.arange(1, 20), 1 - 1e-15) == 1
    assert conformal_threshold([], 0.5) == math.inf


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, np.nan, "0.1", None])
def test_wrong_alpha(alpha):
    with pytest.raises(ValueError, match=r"^alpha=.* must be between 0 and 1: the share of sets that may miss"):
        conformal_threshold([0.5], alpha)


@pytest.mark.parametrize("method", METHODS)
class TestThresholds:
    @given(calibration=calibrations(), hundredths=HUNDREDTHS)
    def test_formula(self, method, calibration, hundredths):
        expected = slow_thresholds(calibration.scores.tolist(), calibration.exits.tolist(), hundredths, method)
        np.testing.assert_array_equal(calibration.thresholds(hundredths / 100, method), expected)

    @given(calibration=calibrations(), hundredths=HUNDREDTHS)
    def test_of_each_class(self, method, calibration, hundredths):
        """A fourth class has no rows, and is in every set."""
        found = calibration.class_thresholds(hundredths / 100, method, 4)
        for label in range(4):
            own = calibration.labels == label
            if own.any():
                expected = slow_thresholds(
                    calibration.scores[own].tolist(), calibration.exits[own].tolist(), hundredths, method
                )
                np.testing.assert_array_equal(found[:, label], np.where(np.isneginf(expected), np.inf, expected))
            else:
                assert np.isposinf(found[:, label]).all()

    @given(calibration=calibrations(), low=HUNDREDTHS, high=HUNDREDTHS)
    def test_grow_as_alpha_falls(self, method, calibration, low, high):
        low, high = sorted([low, high])
        assert (calibration.thresholds(low / 100, method) >= calibration.thresholds(high / 100, method)).all()


@given(st.data())
def test_scores_of_sets(data):
    shape = data.draw(st.tuples(st.integers(1, 10), st.integers(1, 4)))
    sets = data.draw(arrays(bool, shape))
    labels = data.draw(arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)))
    names = np.array(["d", "b", "a", "c"])[: shape[1]]
    covered = sum(row[label] for row, label in zip(sets.tolist(), labels.tolist(), strict=True))
    assert coverage_score(names[labels], sets, labels=names) == pytest.approx(covered / shape[0], abs=1e-10)
    assert inefficiency_score(sets) == pytest.approx(sum(sum(row) for row in sets.tolist()) / shape[0], abs=1e-10)
    assert 0 <= inefficiency_score(sets) <= shape[1]


@pytest.mark.parametrize(
    ("y_true", "y_set", "labels", "message"),
    [
        (
            [0, 1],
            [[0.9, 0.1], [0.4, 0.6]],
            None,
            r"^y_set has dtype float64, but must be bool; pass the output of predict_set\.$",
        ),
        ([0, 1], [[True, False]], None, r"inconsistent numbers of samples: \[2, 1\]"),
        ([0, 0], [[True, False], [True, True]], None, r"^y_true has 1 classes, but y_set has 2 columns\."),
        (
            [0, 2],
            [[True, False], [True, True]],
            [0, 1],
            r"^y_true has the class 2, which is not in labels=\[0, 1\]\. Leave such rows out",
        ),
        ([0, 1], [True, False], None, "Expected 2D array"),
    ],
)
def test_errors_of_scores(y_true, y_set, labels, message):
    with pytest.raises(ValueError, match=message):
        coverage_score(y_true, y_set, labels=labels)


# Policies.


@pytest.fixture(scope="module")
def policy():
    return ThresholdPolicy(budget=0.6).fit(*make_exits(400, n_exits=3, n_classes=4, random_state=0))


def test_temperatures_are_those_of_the_rows_that_leave(policy):
    X, y = make_exits(300, n_exits=3, n_classes=4, random_state=1)
    calibrated = policy.with_budget(0.4).calibrate(X, y)
    stops = calibrated.predict_exit(X)
    leaving = [np.flatnonzero(stops == k) for k in range(3)]
    expected = fit_exit_temperatures(
        [(X.logits(k, rows), y[rows], np.ones(len(rows))) for k, rows in enumerate(leaving)]
    )
    np.testing.assert_array_equal(calibrated.temperatures_, expected)


class TestExitTemperatures:
    def draw(self, sizes, factors, seed=0):
        """Calibrated logits of exits, times a factor each."""
        rng = np.random.default_rng(seed)
        exits = []
        for size, factor in zip(sizes, factors, strict=True):
            logits = 2 * rng.normal(size=(size, 4))
            labels = (softmax(logits).cumsum(axis=1) > rng.uniform(size=(size, 1))).argmax(axis=1)
            exits.append((factor * logits, labels, np.ones(size)))
        return exits

    def test_many_rows_find_their_own(self):
        factors = [0.5, 1.0, 3.0]
        np.testing.assert_allclose(fit_exit_temperatures(self.draw([8000] * 3, factors)), factors, rtol=0.1)

    def test_few_rows_borrow_from_the_others(self):
        """Of an exit of eight rows; alone, they can say anything."""
        temperatures = np.array(
            [fit_exit_temperatures(self.draw([500, 8, 500], [2.0] * 3, seed))[1] for seed in range(40)]
        )
        assert np.mean((temperatures > 1.5) & (temperatures < 2.6)) > 0.9

    def test_an_exit_without_rows_has_that_of_all(self):
        logits, labels, weight = self.draw([2000], [2.0])[0]
        first, second = fit_exit_temperatures([(logits, labels, weight), (logits[:0], labels[:0], weight[:0])])
        assert second == pytest.approx(fit_temperature(logits, labels))
        assert first == pytest.approx(second, rel=0.02)

    def test_exits_that_do_not_differ_share_one(self):
        shared = [np.ptp(fit_exit_temperatures(self.draw([40] * 6, [2.0] * 6, seed))) == 0 for seed in range(40)]
        assert np.mean(shared) > 0.7

    def test_right_rows_at_one_exit_do_not_run_away(self):
        exits = self.draw([200, 200], [1.0, 1.0])
        exits[1] = (exits[1][0], exits[1][0].argmax(axis=1), exits[1][2])
        assert 0.05 < fit_exit_temperatures(exits)[1] < 1


@pytest.mark.parametrize("factors", [[1.0, 1.0, 1.0], [0.6, 1.5, 2.5]], ids=["calibrated", "not calibrated"])
@pytest.mark.parametrize("n_rows", [100, 300, 1000])
def test_calibrated_probabilities_are_no_worse_on_new_rows(factors, n_rows):
    """In the mean over 20 calibration sets; at one exit, three of a hundred rows leave."""
    rng = np.random.default_rng(0)

    def draw(n_rows):
        logits = 2 * rng.normal(size=(n_rows, 3, 4))
        y = (softmax(logits[:, 2]).cumsum(axis=1) > rng.uniform(size=(n_rows, 1))).argmax(axis=1)
        logits[:, :2] = logits[:, 2:]
        return stack_exits(logits * np.array(factors)[:, None]), y

    policy = RandomExit(random_state=0).fit(*draw(100))
    policy.thresholds_ = np.array([0.5, 0.03, -np.inf])
    X, y = draw(5000)

    def loss():
        return log_loss(y, policy.predict_proba(X))

    before = loss()
    after = [(policy.calibrate(*draw(n_rows)), loss())[1] for _ in range(20)]
    assert np.mean(after) < before + 0.002
    if factors[0] != 1:
        assert np.mean(after) < before - 0.03


def test_temperatures_of_an_earlier_call_are_kept(policy):
    X, y = make_exits(300, n_exits=3, n_classes=4, random_state=1)
    first = policy.with_budget(0.6).calibrate(X[:200], y[:200])
    temperatures = first.temperatures_
    first.calibrate(X[200:], y[200:], temperature=False)
    np.testing.assert_array_equal(first.temperatures_, temperatures)
    assert len(first.conformal_scores_.exits) == 100
    assert policy.with_budget(0.6).calibrate(X, y, temperature=False).temperatures_.tolist() == [1, 1, 1]


@pytest.mark.parametrize("method", METHODS)
def test_three_rows_promise_nothing_and_so_every_class_is_in_the_set(policy, method):
    X, y = make_exits(60, n_exits=3, n_classes=4, random_state=1)
    with pytest.warns(UserWarning, match="^calibrate has 3 rows with labels"):
        calibrated = policy.with_budget(0.6).calibrate(X[:3], y[:3])
    sets, stops = calibrated.predict_set(X, method=method), calibrated.predict_exit(X)
    unused = np.setdiff1d(np.arange(3), calibrated.predict_exit(X[:3]))
    filled = ~np.isin(stops, unused) if method == "strict" else np.full(len(X), True)
    assert sets[filled].all()
    assert not sets[~filled].any()


def test_an_exit_where_no_calibration_row_leaves():
    X, y = make_exits(100, n_exits=2, n_classes=3, random_state=0)
    policy = StaticExit(1).fit(X, y).calibrate(X, y)
    policy.thresholds_ = np.array([-np.inf, -np.inf])  # now everybody leaves at the first
    assert not policy.predict_set(X, method="strict").any()
    for method in ("general", "ims", "gated"):
        assert policy.predict_set(X, method=method).any()


def test_one_class_only(policy):
    X, y = make_exits(300, n_exits=3, n_classes=4, random_state=1)
    X, y = X[y == 2], y[y == 2]
    calibrated = policy.with_budget(0.6).calibrate(X, y)
    assert calibrated.predict_proba(X).shape == (len(X), 4)
    assert coverage_score(y, calibrated.predict_set(X, alpha=0.1), labels=calibrated.classes_) >= 0.9


@pytest.mark.filterwarnings("ignore:the fitted temperature lies at the bound 20:UserWarning")
@pytest.mark.parametrize("scale", [1e4, 1e300])
@pytest.mark.parametrize("method", METHODS)
def test_probabilities_of_zero_and_one(scale, method):
    X, y = make_exits(200, n_exits=3, n_classes=4, random_state=0)
    X = stack_exits(np.stack([scale * X.logits(k) for k in range(3)], axis=1))
    policy = StaticExit(1).fit(X, y).calibrate(X, y)
    assert np.isfinite(policy.temperatures_).all()
    assert np.isfinite(policy.predict_proba(X)).all()
    sets = policy.predict_set(X, alpha=0.3, method=method)
    assert coverage_score(y, sets) >= 0.7


def test_a_temperature_does_not_part_what_rounding_joined():
    X, y = stack_exits(np.array([[[0, 1e-17]], [[1, 0]]])), np.array([1, 0])
    policy = StaticExit(0).fit(X, y)
    policy.temperatures_ = np.array([0.05])
    np.testing.assert_array_equal(policy.predict(X), StaticExit(0).fit(X, y).predict(X))


def test_labels_may_be_strings(policy):
    X, y = make_exits(300, n_exits=3, n_classes=4, random_state=1)
    names = np.array(["d", "a", "c", "b"])
    named = stack_exits(np.stack([X.logits(k) for k in range(3)], axis=1), classes=names)
    by_name = ThresholdPolicy().fit(named, names[y]).calibrate(named, names[y])
    by_number = ThresholdPolicy().fit(X, y).calibrate(X, y)
    np.testing.assert_allclose(by_name.temperatures_, by_number.temperatures_)
    order = np.argsort(names)
    np.testing.assert_array_equal(by_name.predict_set(named, 0.1), by_number.predict_set(X, 0.1)[:, order])
    assert by_name.classes_.tolist() == names[order].tolist()


def test_calibrates_in_batches_on_heads_of_its_own(monkeypatch):
    X, y = make_exits(200, n_exits=3, n_classes=4, random_state=0)
    features = stack_exits([None, None, X.logits(2)], [X.features(k) for k in range(3)])
    policy = ThresholdPolicy(heads=ExitHeads(cascade=True)).fit(features, y)
    whole = policy.with_budget(0.7).calibrate(features, y)
    monkeypatch.setattr(skexit.data._arrays, "BATCH_ROWS", 17)
    parts = policy.with_budget(0.7).calibrate(features, y)
    np.testing.assert_allclose(parts.temperatures_, whole.temperatures_)
    np.testing.assert_allclose(parts.conformal_scores_.scores, whole.conformal_scores_.scores)
    logits = np.stack([policy.heads_.transform(features).logits(k) for k in range(3)])
    expected = 1 - softmax(logits / parts.temperatures_[:, None, None])[:, np.arange(200), y].T
    np.testing.assert_allclose(parts.conformal_scores_.scores, expected)


# Coverage, over many small calibration sets.

ALPHA, N_CALIBRATION, N_TEST, N_SETS = 0.1, 49, 300, 600


def expected_coverage(n_samples):
    """Without ties; all classes are in the set where the rank exceeds the number of rows."""
    rank = math.ceil((n_samples + 1) * (1 - Fraction(1, 10)))
    return rank / (n_samples + 1) if rank <= n_samples else 1.0


def simulate_exits(n_samples, rng, strengths):
    y = rng.integers(4, size=n_samples)
    logits = [strength * np.eye(4)[y] + rng.normal(size=(n_samples, 4)) for strength in strengths]
    return stack_exits(np.stack(logits, axis=1)), y


def simulate_coverage(policy, method, strengths, n_calibration=N_CALIBRATION):
    """Of each calibration set: the rows that leave at each exit, and who of new rows is covered where."""
    rng = np.random.default_rng(0)
    policy = clone(policy).fit(*simulate_exits(1000, rng, strengths))
    for _ in range(N_SETS):
        X, y = simulate_exits(n_calibration, rng, strengths)
        counts = np.bincount(policy.calibrate(X, y, temperature=False).conformal_scores_.exits, minlength=3)
        X, y = simulate_exits(N_TEST, rng, strengths)
        covered = policy.predict_set(X, ALPHA, method)[np.arange(N_TEST), y]
        yield counts, policy.predict_exit(X), covered


def check_each_exit(runs, expected):
    """At each exit, mean coverage is `expected(rows that leave there)`, to three standard errors."""
    excess = [[], [], []]
    for counts, stops, covered in runs:
        for k in range(3):
            if (stops == k).any():
                excess[k].append(covered[stops == k].mean() - expected(counts[k]))
    for values in excess:
        error = np.std(values) / np.sqrt(len(values))
        assert error < 0.005
        assert abs(np.mean(values)) < 3 * error


BY_CONFIDENCE = ThresholdPolicy(budget=0.6)
BY_CHANCE = RandomExit(random_state=0)


@pytest.mark.parametrize("policy", [BY_CONFIDENCE, BY_CHANCE], ids=repr)
def test_general_coverage(policy):
    coverage = [covered.mean() for _, _, covered in simulate_coverage(policy, "general", (1, 2, 3))]
    error = np.std(coverage) / np.sqrt(len(coverage))
    assert error < 0.004  # a rank wrong by one moves the coverage by 0.02
    assert abs(np.mean(coverage) - 0.9) < 3 * error


@pytest.mark.parametrize("policy", [BY_CONFIDENCE, BY_CHANCE], ids=repr)
def test_strict_coverage_of_those_who_leave(policy):
    runs = simulate_coverage(policy, "strict", (1, 2, 3))
    check_each_exit(runs, lambda count: expected_coverage(count) if count else 0.0)


def test_gated_coverage_of_those_who_leave():
    """Exits as good as each other, and chance: then the general threshold fits each exit, too."""
    n_calibration = 59
    runs = list(simulate_coverage(BY_CHANCE, "gated", (2, 2, 2), n_calibration))
    counts = np.concatenate([counts for counts, _, _ in runs])
    assert 0.2 < np.mean(counts < 20) < 0.8  # both cases occur
    check_each_exit(runs, lambda count: expected_coverage(count if count >= 20 else n_calibration))


def test_gated_coverage_with_rows_enough_at_each_exit():
    runs = list(simulate_coverage(BY_CONFIDENCE, "gated", (1, 2, 3), n_calibration=199))
    assert min(counts.min() for counts, _, _ in runs) >= 20
    check_each_exit(runs, expected_coverage)


def test_ims_coverage_of_those_who_leave_by_chance():
    check_each_exit(simulate_coverage(BY_CHANCE, "ims", (1, 2, 3)), lambda _: 0.9)


def test_ims_coverage_of_all_rows_at_each_exit():
    rng = np.random.default_rng(0)
    policy = clone(BY_CONFIDENCE).fit(*simulate_exits(1000, rng, (1, 2, 3)))
    coverage = []
    for _ in range(N_SETS):
        X, y = simulate_exits(N_CALIBRATION, rng, (1, 2, 3))
        thresholds = policy.calibrate(X, y, temperature=False).conformal_scores_.thresholds(ALPHA, "ims")
        X, y = simulate_exits(N_TEST, rng, (1, 2, 3))
        scores = np.stack([1 - softmax(X.logits(k))[np.arange(N_TEST), y] for k in range(3)], axis=1)
        coverage.append((scores <= thresholds).mean(axis=0))
    error = np.std(coverage, axis=0) / np.sqrt(N_SETS)
    assert (np.abs(np.mean(coverage, axis=0) - 0.9) < 3 * error).all()


def simulate_classes(n_samples, rng):
    """Four classes, each harder to tell than the one before, and three exits."""
    y = rng.integers(4, size=n_samples)
    own = np.eye(4)[y] * np.array([4.0, 2.0, 1.0, 0.0])[y][:, None]
    return stack_exits(np.stack([k + own + rng.normal(size=(n_samples, 4)) for k in range(3)], axis=1)), y


@pytest.mark.parametrize(("method", "by_exit"), [("general", False), ("strict", True)])
def test_coverage_of_each_class(method, by_exit):
    """At each exit, too, with "strict"; a class of which no row leaves there is in every set."""
    rng = np.random.default_rng(0)
    policy = clone(BY_CONFIDENCE).fit(*simulate_classes(1000, rng))
    excess, marginal = [[] for _ in range(4)], [[] for _ in range(4)]
    for _ in range(N_SETS):
        X, y = simulate_classes(160, rng)
        calibration = policy.calibrate(X, y, temperature=False).conformal_scores_
        X_new, y_new = simulate_classes(N_TEST, rng)
        stops, rows = policy.predict_exit(X_new), np.arange(N_TEST)
        covered = policy.predict_set(X_new, ALPHA, method, class_conditional=True)[rows, y_new]
        regardless = policy.predict_set(X_new, ALPHA, method)[rows, y_new]
        for label in range(4):
            mine = y_new == label
            counts = [np.sum((calibration.labels == label) & (calibration.exits == k)) for k in range(3)]
            expected = np.array([expected_coverage(n) for n in (counts if by_exit else [sum(counts)] * 3)])
            excess[label].append(np.mean(covered[mine] - expected[stops[mine]]))
            marginal[label].append(regardless[mine].mean())
    for values in excess:
        error = np.std(values) / np.sqrt(len(values))
        assert error < 0.005
        assert abs(np.mean(values)) < 3 * error
    assert np.mean(marginal[0]) > 0.95
    assert np.mean(marginal[3]) < 0.85  # which class_conditional mends


@pytest.mark.parametrize("class_conditional", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_sets_that_are_never_empty(policy, method, class_conditional):
    X, y = make_exits(300, n_exits=3, n_classes=4, random_state=1)
    calibrated = policy.with_budget(0.6).calibrate(X[:100], y[:100])
    sets = calibrated.predict_set(X, 0.6, method, class_conditional=class_conditional)
    filled = calibrated.predict_set(X, 0.6, method, class_conditional=class_conditional, allow_empty=False)
    empty = ~sets.any(axis=1)
    assert empty.any()
    np.testing.assert_array_equal(filled[~empty], sets[~empty])
    np.testing.assert_array_equal(filled[empty].sum(axis=1), 1)
    np.testing.assert_array_equal(calibrated.classes_[filled[empty].argmax(axis=1)], calibrated.predict(X)[empty])


def test_a_warning_tells_if_rows_are_too_few(policy):
    X, y = make_exits(n_samples=200, n_exits=3, n_classes=4, random_state=1)
    with pytest.warns(
        UserWarning, match=r"^calibrate has 18 rows with labels\. predict_set\(X, alpha=0\.05\) needs 19"
    ):
        policy = policy.with_budget(0.6).calibrate(X[:18], y[:18])
    assert policy.predict_set(X).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not policy.predict_set(X, alpha=1 / 19).all()
        again = policy.calibrate(X[:19], y[:19])
        assert not again.predict_set(X).all()


def test_a_second_calibration_replaces_the_first(policy):
    X, y = make_exits(n_samples=200, n_exits=3, n_classes=4, random_state=1)
    twice = policy.with_budget(0.6).calibrate(X[:100], y[:100]).calibrate(X[100:200], y[100:200])
    once = policy.with_budget(0.6).calibrate(X[100:200], y[100:200])
    np.testing.assert_array_equal(twice.temperatures_, once.temperatures_)
    np.testing.assert_array_equal(twice.predict_set(X), once.predict_set(X))


def test_options_of_sets_go_by_the_order_of_classes_and_survive_saving(policy, tmp_path):
    X, y = make_exits(300, n_exits=3, n_classes=4, random_state=1)
    names = np.array(["d", "a", "c", "b"])
    named = stack_exits(np.stack([X.logits(k) for k in range(3)], axis=1), classes=names)
    by_name = ThresholdPolicy().fit(named, names[y]).calibrate(named, names[y])
    by_number = ThresholdPolicy().fit(X, y).calibrate(X, y)
    order = np.argsort(names)
    expected = by_number.predict_set(X, 0.1, class_conditional=True)[:, order]
    np.testing.assert_array_equal(by_name.predict_set(named, 0.1, class_conditional=True), expected)
    joblib.dump(by_name, tmp_path / "policy.joblib")
    read = joblib.load(tmp_path / "policy.joblib")
    np.testing.assert_array_equal(read.predict_set(named, 0.1, class_conditional=True), expected)
    with pytest.raises(NotFittedError, match="is not calibrated"):
        by_name.without_fit_state().predict_set(named, class_conditional=True)
