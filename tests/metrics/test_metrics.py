"""Metrics: each equals what loops say, and keeps its invariances."""

import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from instances import make_exits
from scipy.stats import binomtest, norm
from scipy.stats import t as student_t
from sklearn.metrics import roc_auc_score

from skexit import ThresholdPolicy, oracle
from skexit.metrics import (
    AccuracyCostCurve,
    OracleRegret,
    accuracy_at_budget,
    accuracy_cost_curve,
    area_under_accuracy_cost,
    area_under_risk_coverage,
    bootstrap_interval,
    cost_at_accuracy,
    exit_auroc,
    exit_distribution_by_class,
    exit_report,
    oracle_regret,
    speedup,
)

# Coarse values, so that points share costs, share accuracies, and lie on lines.
coarse = st.integers(1, 10).map(lambda tenths: tenths / 10)
points = st.lists(st.tuples(coarse, coarse), min_size=1, max_size=8)
seeds = st.integers(0, 10_000)


def curve_of(pairs):
    costs, accuracies = zip(*pairs, strict=True)
    return AccuracyCostCurve(costs, accuracies)


def best_mixture(pairs, cost):
    """Accuracy of the best mixture of two points whose mean cost is at most the given one: all pairs."""
    best = -np.inf
    for (cost_1, accuracy_1), (cost_2, accuracy_2) in itertools.product(pairs, repeat=2):
        if cost_1 <= cost + 1e-12:
            best = max(best, accuracy_1)
            if cost_2 > cost:
                share = (cost - cost_1) / (cost_2 - cost_1)
                best = max(best, (1 - share) * accuracy_1 + share * accuracy_2)
    return best


def make_answers(seed, n_samples=40, n_exits=3, n_classes=3):
    """Labels, answers of the exits, exits and costs."""
    rng = np.random.default_rng(seed)
    y_true = rng.integers(n_classes, size=n_samples)
    wrong = rng.random((n_samples, n_exits)) < rng.random(n_exits)
    y_pred = np.where(wrong, rng.integers(n_classes, size=wrong.shape), y_true[:, None])
    return y_true, y_pred, rng.integers(n_exits, size=n_samples), np.cumsum(rng.random(n_exits) + 0.1)


class TestCurve:
    @given(points, st.integers(10, 110))
    def test_accuracy_at_a_cost_is_the_best_mixture(self, pairs, percent):
        curve, cost = curve_of(pairs), percent / 100
        if cost < min(cost for cost, _ in pairs):
            with pytest.raises(ValueError, match="cannot be reached: the cheapest point costs"):
                curve.accuracy_at(cost)
        else:
            assert curve.accuracy_at(cost) == pytest.approx(best_mixture(pairs, cost), abs=1e-9)

    @given(points, st.integers(5, 110))
    def test_cost_at_an_accuracy_is_the_cheapest_mixture(self, pairs, percent):
        curve, accuracy = curve_of(pairs), percent / 100
        if accuracy > max(accuracy for _, accuracy in pairs):
            with pytest.raises(ValueError, match="cannot be reached: the most accurate point has"):
                curve.cost_at(accuracy)
            return
        cost = curve.cost_at(accuracy)
        assert best_mixture(pairs, cost) >= accuracy - 1e-9
        if cost > min(cost for cost, _ in pairs):
            assert best_mixture(pairs, cost - 1e-3) < accuracy

    @given(points)
    def test_hull_is_concave_and_rising(self, pairs):
        hull = curve_of(pairs).hull()
        assert set(zip(hull.costs, hull.accuracies, strict=True)) <= set(pairs)
        assert hull.costs[0] == min(cost for cost, _ in pairs)
        assert hull.accuracies[-1] == max(accuracy for _, accuracy in pairs)
        assert hull.costs[-1] == min(cost for cost, accuracy in pairs if accuracy == hull.accuracies[-1])
        gains = np.diff(hull.accuracies) / np.diff(hull.costs)
        assert (np.diff(hull.costs) > 0).all()
        assert (gains > 0).all()
        assert (np.diff(gains) < 1e-9).all()

    @given(points, seeds)
    def test_mixing_never_beats_the_hull(self, pairs, seed):
        share = np.random.default_rng(seed).dirichlet(np.ones(len(pairs)))
        cost, accuracy = share @ np.array(pairs)
        assert curve_of(pairs).accuracy_at(cost) >= accuracy - 1e-9

    @given(points, seeds)
    def test_dominated_points_and_order_change_nothing(self, pairs, seed):
        rng = np.random.default_rng(seed)
        cost, accuracy = pairs[rng.integers(len(pairs))]
        more = [*pairs, (cost + rng.random(), accuracy - rng.random())]
        rng.shuffle(more)
        first, second = curve_of(pairs).hull(), curve_of(more).hull()
        np.testing.assert_array_equal(first.costs, second.costs)
        np.testing.assert_array_equal(first.accuracies, second.accuracies)

    @given(points, st.integers(10, 150))
    def test_area_is_the_mean_over_budgets(self, pairs, percent):
        curve, max_cost = curve_of(pairs), percent / 100
        cheapest = min(cost for cost, _ in pairs)
        if max_cost < cheapest:
            with pytest.raises(ValueError, match="cannot be reached"):
                curve.area(max_cost)
            return
        # The corners are at multiples of 0.01, so the midpoints of such steps make the sum exact.
        steps = round((max_cost - cheapest) / 0.01)
        budgets = cheapest + 0.01 * (np.arange(steps) + 0.5) if steps else [max_cost]
        expected = np.mean([best_mixture(pairs, budget) for budget in budgets])
        assert curve.area(max_cost) == pytest.approx(expected, abs=1e-9)

    def test_area_ends_at_the_highest_cost(self):
        curve = AccuracyCostCurve([0.2, 0.5, 1.0], [0.2, 0.8, 0.9])
        assert curve.area(0.3) == pytest.approx((0.2 + 0.4) / 2)

    def test_points_are_sorted_and_stay(self):
        curve = AccuracyCostCurve([0.5, 0.2, 0.5], [0.8, 0.9, 0.7])
        assert curve.costs.tolist() == [0.2, 0.5, 0.5]
        assert curve.accuracies.tolist() == [0.9, 0.7, 0.8]
        assert curve.hull().costs.tolist() == [0.2]

    def test_one_point_is_a_curve(self):
        curve = AccuracyCostCurve([0.4], [0.8])
        assert (curve.accuracy_at(0.4), curve.accuracy_at(0.9), curve.cost_at(0.1), curve.cost_at(0.8)) == (
            0.8,
            0.8,
            0.4,
            0.4,
        )
        assert (curve.area(), curve.area(0.4)) == (0.8, 0.8)

    def test_numbers_in_numbers_out(self):
        curve = AccuracyCostCurve([0.2, 1.0], [0.5, 0.9])
        assert type(curve.accuracy_at(0.5)) is float
        assert type(curve.cost_at(0.5)) is float
        np.testing.assert_allclose(curve.accuracy_at([[0.2, 0.6], [1, 2]]), [[0.5, 0.7], [0.9, 0.9]])
        np.testing.assert_allclose(curve.cost_at([0.1, 0.7]), [0.2, 0.6])

    def test_rounding_errors_are_forgiven(self):
        cheapest = np.mean([0.1] * 3)  # a little more than 0.1
        assert cheapest > 0.1
        curve = AccuracyCostCurve([cheapest], [0.3])
        assert curve.accuracy_at(0.1) == 0.3
        assert curve.cost_at(0.1 + 0.2) == cheapest
        assert curve.area(0.1) == 0.3

    def test_errors(self):
        curve = AccuracyCostCurve([0.25, 1], [0.5, 0.875])
        with pytest.raises(
            ValueError,
            match=r"^cost=0\.2 cannot be reached: the cheapest point costs 0\.25 of the network's cost\. Ask",
        ):
            curve.accuracy_at([0.5, 0.2])
        with pytest.raises(
            ValueError, match=r"^accuracy=0\.9 cannot be reached: the most accurate point has 0\.875\. Ask for"
        ):
            curve.cost_at([0.5, 0.9])
        for method in (curve.accuracy_at, curve.cost_at, curve.area):
            with pytest.raises(ValueError, match="=nan cannot be reached"):
                method(np.nan)
        for costs, accuracies in [([], []), ([0.5], [0.5, 0.6]), ([[0.5]], [[0.5]])]:
            with pytest.raises(ValueError, match=r"both must be \(n_points,\), with one point or more"):
                AccuracyCostCurve(costs, accuracies)
        for costs, accuracies in [([np.nan], [0.5]), ([0.5], [np.nan]), ([np.inf], [0.5])]:
            with pytest.raises(ValueError, match=r"^costs and accuracies must be finite; leave out the settings"):
                AccuracyCostCurve(costs, accuracies)


class TestAccuracyAndCost:
    @given(seeds)
    def test_equal_loops(self, seed):
        rng = np.random.default_rng(seed)
        y_true, y_pred, _, _ = make_answers(seed, n_exits=4)
        costs = 0.05 + rng.random(y_pred.shape)
        pairs = []
        for point in range(4):
            right = sum(y_pred[row, point] == y_true[row] for row in range(40))
            pairs.append((sum(costs[:, point]) / 40, right / 40))
        curve = accuracy_cost_curve(y_true, y_pred, costs)
        np.testing.assert_allclose(list(zip(curve.costs, curve.accuracies, strict=True)), sorted(pairs))
        budget = curve.costs[0] + 0.1
        expected = best_mixture(pairs, budget)
        assert accuracy_at_budget(y_true, y_pred, costs, budget=budget) == pytest.approx(expected)
        accuracy = curve.hull().accuracies.mean()
        found = cost_at_accuracy(y_true, y_pred, costs, accuracy=accuracy)
        assert found == pytest.approx(curve_of(pairs).cost_at(accuracy))
        assert area_under_accuracy_cost(y_true, y_pred, costs, max_cost=1.5) == pytest.approx(curve.area(1.5))
        assert area_under_accuracy_cost(y_true, y_pred, costs) == pytest.approx(curve.area(1.0))
        np.testing.assert_allclose(speedup(costs), [40 / sum(costs[:, point]) for point in range(4)])
        assert speedup(costs[:, 0]) == pytest.approx(40 / sum(costs[:, 0]))
        rows = rng.permutation(40)
        again = accuracy_cost_curve(y_true[rows], y_pred[rows], costs[rows])
        np.testing.assert_allclose([again.costs, again.accuracies], [curve.costs, curve.accuracies])

    def test_one_setting_in_one_dimension(self):
        curve = accuracy_cost_curve(["a", "b"], ["a", "a"], [0.5, 1.0])
        assert (curve.costs.tolist(), curve.accuracies.tolist()) == ([0.75], [0.5])
        assert accuracy_at_budget(pd.Series([0, 1]), pd.Series([0, 0]), [0.5, 1.0], budget=0.8) == 0.5

    def test_of_a_policy(self):
        X, y = make_exits(200, 3, 3, random_state=0)
        policies = [ThresholdPolicy(budget=budget).fit(X, y) for budget in (0.5, 0.8)]
        y_pred = np.column_stack([policy.predict(X) for policy in policies])
        costs = np.column_stack([policy.costs_[policy.predict_exit(X)] for policy in policies])
        curve = accuracy_cost_curve(y, y_pred, costs)
        np.testing.assert_allclose(curve.costs, [policy.mean_cost(X) for policy in policies])
        np.testing.assert_allclose(curve.accuracies, [policy.score(X, y) for policy in policies])

    def test_errors(self):
        y_true, y_pred, costs = [0, 1], [[0, 1], [1, 1]], [[0.5, 1.0], [0.5, 1.0]]
        cases = [
            ((y_true, y_pred, [0.5, 1.0]), r"^sample_costs has shape \(2,\) and y_pred \(2, 2\); pass one cost for each answer"),
            ((y_true[:1], y_pred, costs), r"inconsistent numbers of samples: \[1, 2\]"),
            (([0, np.nan], y_pred, costs), "Input y_true contains NaN"),
            ((y_true, [[0, np.nan], [1, 1]], costs), "Input y_pred contains NaN"),
            ((y_true, y_pred, [[0.5, np.nan], [0.5, 1]]), "Input sample_costs contains NaN"),
            ((y_true, y_pred, [[0.5, 0], [0.5, 1]]), "^sample_costs has the cost 0; pass costs above 0"),
            ((["a", "b"], y_pred, costs), "^y_true has dtype <U1 and y_pred int64; pass class labels of the same kind"),
            ((y_true, [["a", "b"]] * 2, costs), "^y_true has dtype int64 and y_pred <U1; pass class labels"),
            (([], np.empty((0, 2)), np.empty((0, 2))), "Found array with 0 sample"),
        ]  # fmt: skip
        for arrays, message in cases:
            with pytest.raises(ValueError, match=message):
                accuracy_cost_curve(*arrays)
        with pytest.raises(ValueError, match=r"^cost=0\.4 cannot be reached: the cheapest point costs 0\.5 of"):
            accuracy_at_budget(y_true, y_pred, costs, budget=0.4)
        with pytest.raises(
            ValueError, match=r"^accuracy=1\.1 cannot be reached: the most accurate point has 1\. Ask for"
        ):
            cost_at_accuracy(y_true, y_pred, costs, accuracy=1.1)
        with pytest.raises(ValueError, match=r"^cost=0\.4 cannot be reached"):
            area_under_accuracy_cost(y_true, y_pred, costs, max_cost=0.4)
        with pytest.raises(ValueError, match="pass costs above 0"):
            speedup([0.5, -1])
        with pytest.raises(ValueError, match="Input sample_costs contains NaN"):
            speedup([0.5, np.nan])

    def test_labels_kept_as_objects(self):
        y_true, y_pred = np.array(["a", "b"], dtype=object), np.array([["a"], ["a"]])
        assert accuracy_cost_curve(y_true, y_pred, [[1.0], [1.0]]).accuracies.tolist() == [0.5]


class TestExitReport:
    @given(seeds)
    def test_equals_loops(self, seed):
        y_true, y_pred, exits, costs = make_answers(seed, n_samples=12)
        report = exit_report(y_true, y_pred, exits, costs, output="dict")
        assert list(report) == ["exit 0", "exit 1", "exit 2", "total"]
        for k in range(3):
            leaving = [row for row in range(12) if exits[row] == k]
            row = report[f"exit {k}"]
            assert row["samples"] == len(leaving)
            assert row["share"] == pytest.approx(len(leaving) / 12)
            assert row["cost"] == pytest.approx(costs[k])
            assert row["accuracy_all"] == pytest.approx(np.mean([y_pred[i, k] == y_true[i] for i in range(12)]))
            if leaving:
                right = sum(y_pred[i, k] == y_true[i] for i in leaving)
                assert row["accuracy_leaving"] == pytest.approx(right / len(leaving))
            else:
                assert np.isnan(row["accuracy_leaving"])
        total, accuracy = report["total"], np.mean([y_pred[i, exits[i]] == y_true[i] for i in range(12)])
        assert (total["share"], total["samples"]) == (1, 12)
        assert total["cost"] == pytest.approx(np.mean([costs[k] for k in exits]))
        assert total["accuracy_leaving"] == total["accuracy_all"] == pytest.approx(accuracy)

    def test_of_a_policy(self):
        X, y = make_exits(200, 3, 3, random_state=0)
        policy = ThresholdPolicy(budget=0.6).fit(X, y)
        report = exit_report(y, policy.predict_at_exits(X), policy.predict_exit(X), policy.costs_, output="dict")
        assert report["total"]["cost"] == pytest.approx(policy.mean_cost(X))
        assert report["total"]["accuracy_all"] == pytest.approx(policy.score(X, y))

    def test_text(self):
        arguments = ([0, 1], [[0, 0], [0, 1]], [0, 0], [0.5, 1])
        assert exit_report(*arguments).splitlines() == [
            "        share   cost  accuracy leaving  accuracy all  samples",
            "exit 0  1.000  0.500             0.500         0.500        2",
            "exit 1  0.000  1.000               nan         1.000        0",
            " total  1.000  0.500             0.500         0.500        2",
        ]
        assert exit_report(*arguments, digits=1).splitlines()[1] == (
            "exit 0    1.0   0.5               0.5           0.5        2"
        )
        in_flops = exit_report(*arguments[:3], [5e9, 1e10])
        assert in_flops.splitlines()[1].split() == ["exit", "0", "1.000", "5000000000.000", "0.500", "0.500", "2"]
        for text in (exit_report(*arguments, digits=15), in_flops):
            assert len({len(line) for line in text.splitlines()}) == 1

    def test_frame(self):
        frame = exit_report([0, 1], [[0, 0], [0, 1]], [0, 0], [1, 2], output="frame")
        assert isinstance(frame, pd.DataFrame)
        assert frame.index.tolist() == ["exit 0", "exit 1", "total"]
        assert frame.columns.tolist() == ["share", "cost", "accuracy_leaving", "accuracy_all", "samples"]
        assert frame["samples"].dtype == np.int64
        assert frame.loc["exit 1", "accuracy_all"] == 1

    def test_errors(self):
        right = ([0, 1], [[0, 0], [0, 1]], [0, 1], [1, 2])
        cases = {
            (2, (0, 2)): r"^exits has the exit 2, but there are 2 exits: pass numbers from 0 to 1\.$",
            (2, (0, -1)): r"^exits has the exit -1, but there are 2 exits",
            (2, (0.0, 1.0)): "^exits has dtype float64; pass whole numbers, as predict_exit returns",
            (2, (0, 1, 1)): "inconsistent numbers of samples",
            (3, (1, 2, 3)): r"^costs has shape \(3,\); pass one cost for each of the 2 exits of y_pred\.$",
            (3, (2, 1)): r"^costs=\[2\.0, 1\.0\] must be positive and increase from exit to exit",
            (3, (1, 1)): "must be positive and increase",
            (3, (0, 1)): "must be positive and increase",
            (3, (1, np.nan)): "must be positive and increase",
            (1, (0, 1)): "Expected 2D array",
        }
        for (position, value), message in cases.items():
            wrong = [*right[:position], list(value), *right[position + 1 :]]
            for function in (exit_report, oracle_regret):
                with pytest.raises(ValueError, match=message):
                    function(*wrong)
        with pytest.raises(ValueError, match=r"^output='html' must be 'text', 'dict' or 'frame'\.$"):
            exit_report(*right, output="html")
        for digits in (-1, 2.5):
            with pytest.raises(ValueError, match=rf"^digits={digits} must be a whole number, 0 or more\.$"):
                exit_report(*right, digits=digits)


class TestExitDistributionByClass:
    @given(seeds)
    def test_equals_loops(self, seed):
        y_true, _, exits, _ = make_answers(seed, n_samples=8)
        shares = exit_distribution_by_class(y_true, exits, n_exits=4, labels=[2, 0, 1])
        assert shares.shape == (3, 4)
        for row, label in enumerate([2, 0, 1]):
            own = [exit for exit, true in zip(exits, y_true, strict=True) if true == label]
            if own:
                np.testing.assert_allclose(shares[row], [own.count(k) / len(own) for k in range(4)])
                assert shares[row].sum() == pytest.approx(1)
            else:
                assert np.isnan(shares[row]).all()

    def test_labels_by_default(self):
        assert exit_distribution_by_class(["b", "a"], [0, 1], n_exits=2).tolist() == [[0, 1], [1, 0]]

    def test_errors(self):
        with pytest.raises(
            ValueError, match=r"^y_true has the class 2, which is not in labels=\[0, 1\]\. Leave such rows out"
        ):
            exit_distribution_by_class([0, 2], [0, 0], n_exits=1, labels=[0, 1])
        with pytest.raises(
            ValueError, match=r"^labels=\[0, 0\] has a class twice; pass a different label for each column\.$"
        ):
            exit_distribution_by_class([0, 0], [0, 0], n_exits=1, labels=[0, 0])
        with pytest.raises(ValueError, match=r"^exits has the exit 1, but there are 1 exits"):
            exit_distribution_by_class([0, 0], [0, 1], n_exits=1)
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            exit_distribution_by_class([0, 0], [0], n_exits=1)
        for n_exits in (0, 1.5):
            with pytest.raises(ValueError, match=rf"^n_exits={n_exits} must be a positive integer\.$"):
                exit_distribution_by_class([0, 0], [0, 0], n_exits=n_exits)


class TestOracleRegret:
    @given(seeds)
    def test_equals_loops(self, seed):
        y_true, y_pred, exits, costs = make_answers(seed)
        accuracy = cost = 0
        for row in range(40):
            right = [k for k in range(3) if y_pred[row, k] == y_true[row]]
            accuracy += bool(right) - (exits[row] in right)
            cost += costs[exits[row]] - costs[right[0] if right else 0]
        regret = oracle_regret(y_true, y_pred, exits, costs)
        assert isinstance(regret, OracleRegret)
        assert regret == pytest.approx((accuracy / 40, cost / 40))
        assert regret.accuracy >= 0

    def test_agrees_with_the_oracle(self):
        X, y = make_exits(200, 3, 3, random_state=0)
        policy, best = ThresholdPolicy(budget=0.6).fit(X, y), oracle(X, y)
        y_pred = policy.predict_at_exits(X)
        regret = oracle_regret(y, y_pred, policy.predict_exit(X), policy.costs_)
        assert regret.accuracy == pytest.approx(best.accuracy - policy.score(X, y))
        assert regret.cost == pytest.approx(policy.mean_cost(X) - best.mean_cost)
        assert oracle_regret(y, y_pred, best.exits, policy.costs_) == (0, 0)


def make_scores(seed, n_samples=7, n_exits=2):
    """Few distinct scores, so that many are tied."""
    rng = np.random.default_rng(seed)
    return rng.random((n_samples, n_exits)) < 0.6, rng.integers(0, 4, size=(n_samples, n_exits)).astype(float)


class TestScores:
    @given(seeds, st.integers(1, 12))
    def test_auroc_counts_pairs(self, seed, n_samples):
        correct, scores = make_scores(seed, n_samples)
        found = exit_auroc(correct, scores)
        for k in range(2):
            right, wrong = scores[correct[:, k], k], scores[~correct[:, k], k]
            won = [1.0 if a > b else 0.5 if a == b else 0.0 for a in right for b in wrong]
            assert found[k] == pytest.approx(np.mean(won) if won else np.nan, nan_ok=True)
            if won:
                assert found[k] == pytest.approx(roc_auc_score(correct[:, k], scores[:, k]))

    @given(seeds, st.integers(1, 6))
    def test_risk_coverage_is_the_mean_over_orders_of_ties(self, seed, n_samples):
        correct, scores = make_scores(seed, n_samples)
        found = area_under_risk_coverage(correct, scores)
        for k in range(2):
            areas = []
            for order in itertools.permutations(range(n_samples)):
                if all(scores[a, k] >= scores[b, k] for a, b in itertools.pairwise(order)):
                    wrong = [not correct[row, k] for row in order]
                    areas.append(np.mean([np.mean(wrong[:size]) for size in range(1, n_samples + 1)]))
            assert found[k] == pytest.approx(np.mean(areas))

    @given(seeds)
    def test_invariances(self, seed):
        correct, scores = make_scores(seed, n_samples=30)
        rows = np.random.default_rng(seed).permutation(30)
        for metric in (exit_auroc, area_under_risk_coverage):
            expected = metric(correct, scores)
            np.testing.assert_allclose(metric(correct[rows], scores[rows]), expected)
            for rescaled in (np.exp(scores) - 7, scores**3, np.where(scores == 3, np.inf, scores)):
                np.testing.assert_allclose(metric(correct, rescaled), expected)
        np.testing.assert_allclose(exit_auroc(correct, -scores), 1 - exit_auroc(correct, scores))

    def test_extremes(self):
        correct = np.array([[True, True, False], [False, True, False]])
        np.testing.assert_array_equal(exit_auroc(correct, np.zeros((2, 3))), [0.5, np.nan, np.nan])
        np.testing.assert_array_equal(area_under_risk_coverage(correct, np.zeros((2, 3))), [0.5, 0, 1])
        np.testing.assert_array_equal(exit_auroc([[True], [False]], [[np.inf], [-np.inf]]), [1])

    @pytest.mark.parametrize("metric", [exit_auroc, area_under_risk_coverage])
    def test_errors(self, metric):
        correct = np.array([[True], [False]])
        with pytest.raises(ValueError, match=r"^correct has dtype int64; pass booleans: policy\.predict_at_exits"):
            metric(correct.astype(int), [[1.0], [2.0]])
        with pytest.raises(
            ValueError, match=r"^scores has shape \(2, 2\) and correct \(2, 1\); pass both for the same rows and exits"
        ):
            metric(correct, np.ones((2, 2)))
        with pytest.raises(ValueError, match=r"^scores contains NaN; remove such rows from scores and correct\.$"):
            metric(correct, [[1.0], [np.nan]])
        with pytest.raises(ValueError, match="Expected 2D array"):
            metric(correct.ravel(), [1.0, 2.0])


def mean(values):
    return float(np.mean(values))


def wider(tail, n_samples):
    """The tail of percentiles that makes the interval of a mean as wide as the t-interval."""
    return norm.cdf(np.sqrt(n_samples / (n_samples - 1)) * student_t.ppf(tail, n_samples - 1))


def draw_answers(n_samples, p, rng):
    """Five exits that are right for a share p of the samples or somewhat less, and six thresholds on a useful score."""
    right = norm.cdf(0.8 * rng.normal(size=(n_samples, 1)) + 0.6 * rng.normal(size=(n_samples, 5)))
    right = right < np.linspace(p - 0.4 * (1 - p), p, 5)
    scores = rng.random((n_samples, 5)) + 0.7 * right
    scores[:, -1] = np.inf
    exits = np.argmax(scores[:, None] >= np.linspace(0.02, 1.7, 6)[:, None], axis=2)
    costs = np.linspace(0.2, 1, 5)[exits]
    return np.ones(n_samples), np.take_along_axis(right, exits, axis=1).astype(float), costs


class TestShare:
    @pytest.mark.parametrize("p", [0.5, 0.8, 0.97, 1.0])
    @pytest.mark.parametrize("n_samples", [30, 200, 1000])
    def test_coverage_of_accuracy(self, p, n_samples):
        """Percentiles hold .97 in 59 % of 30 samples each."""
        rng, n_held = np.random.default_rng(0), 0
        for seed in range(200):
            right = rng.random(n_samples) < p
            low, high = bootstrap_interval(np.mean, right, n_resamples=100, random_state=seed)
            n_held += low <= p <= high
            assert low < high
        assert n_held / 200 >= 0.93

    @pytest.mark.slow
    @pytest.mark.parametrize("p", [0.8, 0.97, 1.0])
    @pytest.mark.parametrize(
        ("metric", "parameters"), [(area_under_accuracy_cost, {}), (accuracy_at_budget, {"budget": 0.7})]
    )
    def test_coverage_of_numbers_from_the_hull(self, p, metric, parameters):
        truth = metric(*draw_answers(100_000, p, np.random.default_rng(1)), **parameters)
        rng, n_held = np.random.default_rng(2), 0
        for seed in range(80):
            low, high = bootstrap_interval(
                metric, *draw_answers(60, p, rng), n_resamples=60, random_state=seed, **parameters
            )
            n_held += low <= truth <= high
            assert low < high
        assert n_held / 80 >= 0.92

    @pytest.mark.parametrize("n_right", [0, 1, 15, 29, 30])
    def test_is_the_exact_binomial_interval(self, n_right):
        right = np.arange(30) < n_right
        found = bootstrap_interval(np.mean, right, n_resamples=4000, confidence_level=0.9, random_state=0)
        expected = binomtest(n_right, 30).proportion_ci(0.9, method="exact")
        np.testing.assert_allclose(found, expected, atol=0.02 if 0 < n_right < 30 else 1e-12)

    def test_rounding_does_not_take_a_share_out_of_its_range(self):
        low, high = bootstrap_interval(lambda values: np.mean(values) * (1 + 1e-15), np.ones(30), random_state=0)
        assert (low, high) == (pytest.approx(0.025 ** (1 / 30)), 1)

    def test_weights_that_differ_are_worth_fewer_rows(self):
        rng = np.random.default_rng(0)
        right, weight = rng.random(300) < 0.9, rng.pareto(1.5, size=300) + 0.01

        def weighted(right, weight):
            return np.average(right, weights=weight)

        low, high = bootstrap_interval(weighted, right, weight, random_state=0)
        even_low, even_high = bootstrap_interval(weighted, right, np.ones(300), random_state=0)
        assert high - low > 1.3 * (even_high - even_low)

    def test_numbers_that_vary_little_are_no_share(self):
        values = np.random.default_rng(0).normal(0.9, 0.02, size=200)
        found = bootstrap_interval(np.mean, values, random_state=0)
        assert found == bootstrap_interval(np.mean, values, method="percentile", random_state=0)

    def test_out_of_range(self):
        with pytest.raises(ValueError, match=r"method='share' is for numbers between 0 and 1, .* method='percentile'"):
            bootstrap_interval(np.mean, np.arange(5.0), method="share", n_resamples=10)
        with pytest.raises(ValueError, match=r"method='difference' is for numbers between -1 and 1, "):
            bootstrap_interval(np.mean, np.arange(5.0), method="difference", n_resamples=10)


class TestDifference:
    @pytest.mark.parametrize("n_samples", [30, 200])
    @pytest.mark.parametrize("shares", [(0.02, 0.01), (0.1, 0.02), (0.3, 0.3), (0.0, 0.0)])
    def test_coverage(self, n_samples, shares):
        """Of the difference where the first alone is right for one share, and the second alone for the other."""
        rng, n_held = np.random.default_rng(0), 0
        for seed in range(200):
            draws = rng.choice([1, -1, 0], p=[*shares, 1 - sum(shares)], size=n_samples)
            low, high = bootstrap_interval(np.mean, draws, method="difference", n_resamples=100, random_state=seed)
            n_held += low <= shares[0] - shares[1] <= high
            assert low < high
        assert n_held / 200 >= 0.93

    def test_is_the_formula(self):
        first, second = np.arange(40) < 30, np.arange(40) >= 8  # 8 and 10 that one has alone
        found = bootstrap_interval(
            lambda a, b: a.mean() - b.mean(), first, second, method="difference", n_resamples=4000, random_state=0
        )
        p_12, p_21 = (8 + 1) / 42, (10 + 1) / 42
        half = norm.ppf(0.975) * np.sqrt((p_12 + p_21 - (p_12 - p_21) ** 2) / 42)
        np.testing.assert_allclose(found, [p_12 - p_21 - half, p_12 - p_21 + half], atol=0.01)


class TestBootstrap:
    def test_coverage_of_a_mean(self):
        """Over 400 data sets, a 90 % interval misses low and high at about 5 % each.

        The standard error is 1.1 % each. Intervals of 80 % or 95 %, or one-sided ones, would be outside the bounds.
        """
        rng, missed_low, missed_high = np.random.default_rng(1), 0, 0
        for seed in range(400):
            values = rng.normal(size=100)
            low, high = bootstrap_interval(mean, values, confidence_level=0.9, n_resamples=300, random_state=seed)
            missed_low, missed_high = missed_low + (high < 0), missed_high + (low > 0)
        assert 0.03 < missed_low / 400 < 0.08
        assert 0.03 < missed_high / 400 < 0.08
        assert 0.075 < (missed_low + missed_high) / 400 < 0.145

    def test_equals_a_loop(self):
        y_true, y_pred, exits, costs = make_answers(0)
        found = bootstrap_interval(
            oracle_regret,
            y_true,
            y_pred,
            exits,
            costs=costs,
            n_resamples=50,
            confidence_level=0.8,
            method="percentile",
            random_state=3,
        )
        rng, values = np.random.RandomState(3), []
        for _ in range(50):
            rows = rng.randint(40, size=40)
            values.append(oracle_regret(y_true[rows], y_pred[rows], exits[rows], costs))
        tail = wider(0.1, 40)
        np.testing.assert_allclose(found, np.quantile(values, [tail, 1 - tail], axis=0))
        assert all(isinstance(bound, OracleRegret) and type(bound.cost) is float for bound in found)

    def test_seeds(self):
        values = np.random.default_rng(0).random(50)
        first, again, other = (bootstrap_interval(mean, values, random_state=seed) for seed in (0, 0, 1))
        assert first == again != other
        assert type(first[0]) is float
        rng = np.random.RandomState(0)
        assert bootstrap_interval(mean, values, random_state=rng) == first
        assert bootstrap_interval(mean, values, random_state=rng) != first

    def test_rows_of_all_arrays_are_drawn_together(self):
        numbers = np.arange(30.0)

        def apart(first, second, third):
            assert (first == second).all()
            assert (first == third[:, 1]).all()
            return len(np.unique(first))

        low, high = bootstrap_interval(
            apart, numbers, pd.Series(numbers), np.column_stack([numbers] * 2), random_state=0
        )
        assert 12 < low < high < 26  # of 30 rows a draw has 63 % on average

    def test_defaults_are_95_percent_of_1000(self):
        values = np.random.default_rng(0).random(20)
        rng = np.random.RandomState(0)
        means = [values[rng.randint(20, size=20)].mean() for _ in range(1000)]
        tail = wider(0.025, 20)
        np.testing.assert_allclose(
            bootstrap_interval(mean, values, method="percentile", random_state=0), np.quantile(means, [tail, 1 - tail])
        )

    def test_arrays_and_frames(self):
        correct, scores = make_scores(0, n_samples=40)
        low, high = bootstrap_interval(exit_auroc, correct, scores, n_resamples=100, random_state=0)
        assert low.shape == high.shape == (2,)
        assert (low < exit_auroc(correct, scores)).all()
        assert (exit_auroc(correct, scores) < high).all()
        y_true, y_pred, exits, costs = make_answers(0)
        low, high = bootstrap_interval(
            exit_report, y_true, y_pred, exits, costs=costs, output="frame", n_resamples=20, random_state=0
        )
        assert low.shape == high.shape == (4, 5)
        low, high = bootstrap_interval(
            lambda values: (values.mean(), values.max()), np.arange(9.0), n_resamples=20, random_state=0
        )
        assert type(low) is tuple
        assert low < high

    def test_nan_resamples_are_left_out(self):
        correct, scores = np.array([[True, True], [True, True], [False, True]]), np.array([[2.0, 0], [1, 0], [1, 0]])
        values = []
        rng = np.random.RandomState(0)
        for _ in range(200):
            rows = rng.randint(3, size=3)
            values.append(exit_auroc(correct[rows], scores[rows])[0])
        assert 0 < np.isnan(values).sum() < 200
        low, high = bootstrap_interval(
            exit_auroc, correct, scores, method="percentile", n_resamples=200, random_state=0
        )
        tail = wider(0.025, 3)
        assert (low[0], high[0]) == pytest.approx(tuple(np.nanquantile(values, [tail, 1 - tail])))
        assert np.isnan([low[1], high[1]]).all()

    @pytest.mark.parametrize(
        ("metric", "parameters"),
        [(accuracy_cost_curve, {}), (accuracy_at_budget, {"budget": 0.9}), (area_under_accuracy_cost, {})],
    )
    def test_of_curves(self, metric, parameters):
        if metric is accuracy_cost_curve:

            def metric(*arrays):
                return accuracy_cost_curve(*arrays).accuracies

        y_true, y_pred, _, _ = make_answers(1)
        costs = np.broadcast_to([0.2, 0.5, 1.0], y_pred.shape)
        low, high = bootstrap_interval(metric, y_true, y_pred, costs, n_resamples=50, random_state=0, **parameters)
        value = metric(y_true, y_pred, costs, **parameters)
        assert np.all(low <= value)
        assert np.all(value <= high)

    def test_what_the_metric_raises_is_raised(self):
        costs = np.array([[0.1]] * 5 + [[1.0]] * 5)
        with pytest.raises(ValueError, match=r"cannot be reached: the cheapest point costs") as raised:
            bootstrap_interval(accuracy_at_budget, np.zeros(10), np.zeros((10, 1)), costs, budget=0.55, random_state=0)
        assert raised.value.__notes__ == ["This was raised on a bootstrap resample, not on the given samples."]
        with pytest.raises(ValueError, match=r"cannot be reached") as raised:
            bootstrap_interval(accuracy_at_budget, np.zeros(10), np.zeros((10, 1)), costs, budget=0.5, random_state=0)
        assert not hasattr(raised.value, "__notes__")

    def test_a_class_that_a_resample_lacks(self):
        y_true, exits = np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1])
        message = (
            r"^the metric gives the shape \(1, 2\) on a resample and \(2, 2\) on all samples; a resample may lack a "
            r"class, so pass labels=\.\.\. where the metric takes it\.$"
        )
        with pytest.raises(ValueError, match=message):
            bootstrap_interval(exit_distribution_by_class, y_true, exits, n_exits=2, random_state=0)
        low, high = bootstrap_interval(
            exit_distribution_by_class, y_true, exits, n_exits=2, labels=[0, 1, 2], random_state=0
        )
        assert low.shape == (3, 2)
        assert low[0, 1] == 0
        assert high[0, 0] == 1
        assert (low[:2] < high[:2]).all()
        assert np.isnan(low[2]).all()

    def test_errors(self):
        with pytest.raises(ValueError, match=r"^there is no array to draw rows from; pass those of the metric"):
            bootstrap_interval(mean)
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            bootstrap_interval(mean, [1, 2], [1, 2, 3])
        for level in (0, 1, 95, np.nan, "0.9"):
            with pytest.raises(ValueError, match=rf"^confidence_level={level!r} must be between 0 and 1, as 0\.95\.$"):
                bootstrap_interval(mean, [1, 2], confidence_level=level)
        with pytest.raises(ValueError, match=r"^method='bca' must be 'auto', 'share', 'difference' or 'percentile'\."):
            bootstrap_interval(mean, [1, 2], method="bca")
        for number in (0, 10.5):
            with pytest.raises(ValueError, match=rf"^n_resamples={number} must be a positive integer\.$"):
                bootstrap_interval(mean, [1, 2], n_resamples=number)


def test_import_needs_neither_torch_nor_matplotlib():
    code = (
        "import sys, skexit.metrics, skexit.model_selection\n"
        "print([name for name in ('torch', 'matplotlib') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
