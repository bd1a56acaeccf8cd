"""Displays: arrays in, artists out."""

import sys

import matplotlib
import numpy as np
import pytest
from instances import make_exits
from matplotlib import pyplot as plt
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from skexit import ExitHeads, StaticExit, ThresholdPolicy, oracle, stack_exits
from skexit.model_selection import accuracy_and_cost, best_within
from skexit.plotting import (
    AccuracyCostDisplay,
    CoverageDisplay,
    ExitDistributionDisplay,
    ExitScoreDisplay,
    ReliabilityDisplay,
)
from skexit.uncertainty import coverage_score, expected_calibration_error

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def data():
    return make_exits(n_samples=300, n_exits=3, n_classes=3, random_state=0)


@pytest.fixture(scope="module")
def policy(data):
    X, y = data
    return ThresholdPolicy(budget=0.6).fit(X, y)


def bar_widths(bars):
    return [bar.get_width() for bar in bars]


class TestAccuracyCost:
    def test_from_estimators_measures_and_draws(self, data):
        X, y = data
        fitted = [ThresholdPolicy(budget=budget).fit(X, y) for budget in (0.9, 0.5)]
        static = StaticExit(0).fit(X, y)
        display = AccuracyCostDisplay.from_estimators({"threshold": fitted, "static": static}, X, y)

        costs, accuracies = display.curves["threshold"]
        np.testing.assert_allclose(costs, [fitted[1].mean_cost(X), fitted[0].mean_cost(X)])
        np.testing.assert_allclose(accuracies, [fitted[1].score(X, y), fitted[0].score(X, y)])
        np.testing.assert_allclose(display.lines_["threshold"].get_xdata(), 100 * costs)
        np.testing.assert_allclose(display.lines_["threshold"].get_ydata(), 100 * accuracies)
        np.testing.assert_allclose(display.lines_["static"].get_ydata(), [100 * static.score(X, y)])
        assert display.ax_.get_xlabel() == "Mean cost (% of the plain network)"
        assert display.ax_.get_ylabel() == "Accuracy (%)"
        assert display.lines_["threshold"].get_marker() != display.lines_["static"].get_marker()
        assert display.bands_ == display.error_bars_ == display.hulls_ == {}
        assert display.oracle_ is None

    def test_a_pipeline_and_a_search_are_measured_as_their_policy(self, data, policy):
        X, y = data
        pipeline = Pipeline([("nothing", FunctionTransformer()), ("policy", ThresholdPolicy(budget=0.6))]).fit(X, y)
        alone = Pipeline([("policy", ThresholdPolicy(budget=0.6))]).fit(X, y)
        search = GridSearchCV(ThresholdPolicy(), {"budget": [0.6]}, cv=2).fit(X, y)
        display = AccuracyCostDisplay.from_estimators(
            {"policy": policy, "pipeline": [pipeline, alone], "search": search}, X, y
        )
        expected = [policy.mean_cost(X)], [policy.score(X, y)]
        np.testing.assert_allclose(display.curves["policy"], expected)
        np.testing.assert_allclose(display.curves["pipeline"], np.repeat(expected, 2, axis=1))
        np.testing.assert_allclose(display.curves["search"], expected)

    def test_a_policy_behind_heads_gets_what_the_heads_give(self):
        X, y = make_exits(n_samples=200, n_exits=2, n_classes=3, random_state=0)
        features = stack_exits(features=[X.features(k) for k in range(2)])
        pipeline = Pipeline([("heads", ExitHeads(random_state=0)), ("policy", ThresholdPolicy(budget=0.7))])
        heads, policy = pipeline.fit(features, y)
        logits = heads.transform(features)
        display = AccuracyCostDisplay.from_estimators({"a": pipeline}, features, y)
        np.testing.assert_allclose(display.curves["a"], [[policy.mean_cost(logits)], [policy.score(logits, y)]])

    def test_intervals_are_those_of_the_point_that_they_are_drawn_at(self):
        rng = np.random.default_rng(0)
        y = rng.integers(2, size=400)
        y_pred = np.where(rng.random((400, 3)) < [0.9, 0.6, 0.75], y[:, None], 1 - y[:, None])
        costs = np.tile([0.9, 0.3, 0.5], (400, 1))
        predictions = {"three": (y_pred, costs), "one": (y_pred[:, :1], costs[:, :1])}
        display = AccuracyCostDisplay.from_predictions(y, predictions, n_resamples=300, random_state=0)

        low, high = display.intervals["three"]
        accuracies = (y_pred == y[:, None]).mean(axis=0)[[1, 2, 0]]
        np.testing.assert_allclose(display.curves["three"][1], accuracies)
        # The normal approximation of a 95 % interval of a share.
        half = 1.96 * np.sqrt(accuracies * (1 - accuracies) / 400)
        np.testing.assert_allclose(low, accuracies - half, atol=0.01)
        np.testing.assert_allclose(high, accuracies + half, atol=0.01)
        corners = display.bands_["three"].get_paths()[0].vertices
        for cost, lowest, highest in zip([30, 50, 90], 100 * low, 100 * high, strict=True):
            for corner in ([cost, lowest], [cost, highest]):
                assert np.isclose(corners, corner).all(axis=1).any()
        ((bottom, top),) = display.bands_["one"].get_segments()
        np.testing.assert_allclose([bottom[1], top[1]], 100 * np.ravel(display.intervals["one"]))

    def test_the_interval_widens_with_the_confidence_level(self, data, policy):
        X, y = data
        intervals = [
            AccuracyCostDisplay.from_estimators(
                {"a": policy}, X, y, n_resamples=200, confidence_level=level, random_state=0
            ).intervals["a"]
            for level in (0.5, 0.99)
        ]
        assert intervals[1][0] < intervals[0][0] < intervals[0][1] < intervals[1][1]

    def test_oracle_and_hull(self, data):
        X, y = data
        curves = {"a": ([0.2, 0.5, 0.8, 1.0], [0.5, 0.55, 0.9, 0.85])}
        bound = oracle(X, y)
        display = AccuracyCostDisplay(curves, oracle=bound).plot(hull=True)
        np.testing.assert_allclose(display.oracle_.get_xydata(), [[100 * bound.mean_cost, 100 * bound.accuracy]])
        np.testing.assert_allclose(display.hulls_["a"].get_xydata(), [[20, 50], [80, 90]])
        assert display.lines_["a"].get_linestyle() == "None"
        assert len(display.lines_["a"].get_xdata()) == 4

    def test_from_cv_results(self, data):
        X, y = data
        pipeline = Pipeline([("heads", ExitHeads(random_state=0)), ("policy", ThresholdPolicy())])
        grid = {"policy": [ThresholdPolicy(), ThresholdPolicy("entropy")], "policy__budget": [0.8, 0.5]}
        search = GridSearchCV(pipeline, grid, cv=3, scoring=accuracy_and_cost(), refit=best_within(0.9)).fit(X, y)
        results = search.cv_results_
        display = AccuracyCostDisplay.from_cv_results(results, by="policy")
        assert list(display.curves) == ["ThresholdPolicy()", "ThresholdPolicy(criterion='entropy')"]
        for name, settings in (("ThresholdPolicy()", [1, 0]), ("ThresholdPolicy(criterion='entropy')", [3, 2])):
            accuracies = np.mean([results[f"split{fold}_test_accuracy"] for fold in range(3)], axis=0)
            costs = np.array([results[f"split{fold}_test_mean_cost"] for fold in range(3)])
            np.testing.assert_allclose(display.curves[name][0], costs.mean(axis=0)[settings])
            np.testing.assert_allclose(display.curves[name][1], accuracies[settings])
            np.testing.assert_allclose(display.deviations[name][0], costs.std(axis=0)[settings])
            np.testing.assert_allclose(display.deviations[name][1], results["std_test_accuracy"][settings])
            _, _, (across, upright) = display.error_bars_[name].lines
            spans = [segment[1, 0] - segment[0, 0] for segment in across.get_segments()]
            np.testing.assert_allclose(spans, 200 * display.deviations[name][0])
            spans = [segment[1, 1] - segment[0, 1] for segment in upright.get_segments()]
            np.testing.assert_allclose(spans, 200 * display.deviations[name][1])

        by_number = AccuracyCostDisplay.from_cv_results(results, by="policy__budget")
        assert list(by_number.curves) == ["0.8", "0.5"]
        together = AccuracyCostDisplay.from_cv_results(results)
        np.testing.assert_allclose(together.curves["settings"][0], np.sort(results["mean_test_mean_cost"]))

    def test_cv_results_of_several_classes_have_short_names_and_no_failed_settings(self):
        results = {
            "params": [{"policy": ThresholdPolicy()}, {"policy": StaticExit(0)}, {"policy": StaticExit(0)}, {}],
            "param_policy": [],
            "mean_test_mean_cost": np.array([0.5, 0.2, np.nan, 0.7]),
            "mean_test_accuracy": np.array([0.8, 0.6, np.nan, 0.9]),
            "std_test_mean_cost": np.zeros(4),
            "std_test_accuracy": np.zeros(4),
        }
        display = AccuracyCostDisplay.from_cv_results(results, by="policy")
        assert list(display.curves) == ["ThresholdPolicy()", "StaticExit(exit=0)", "not set"]
        np.testing.assert_allclose(display.curves["StaticExit(exit=0)"], [[0.2], [0.6]])
        three = {key: values[:3] for key, values in results.items()}
        assert list(AccuracyCostDisplay.from_cv_results(three, by="policy").curves) == ["ThresholdPolicy", "StaticExit"]

    def test_bad_input(self, data):
        X, y = data
        search = GridSearchCV(ThresholdPolicy(), {"budget": [0.5, 0.9]}, cv=2).fit(X, y)
        with pytest.raises(
            ValueError, match=r"cv_results has no 'mean_test_mean_cost': search with scoring=accuracy_and"
        ):
            AccuracyCostDisplay.from_cv_results(search.cv_results_)
        search = GridSearchCV(ThresholdPolicy(), {"budget": [0.5]}, cv=2, scoring=accuracy_and_cost(), refit=False)
        with pytest.raises(
            ValueError, match=r"by='lam' is not a parameter of the search, which has the parameters \['budget'\]\."
        ):
            AccuracyCostDisplay.from_cv_results(search.fit(X, y).cv_results_, by="lam")
        with pytest.raises(ValueError, match="curves is empty"):
            AccuracyCostDisplay({})
        with pytest.raises(ValueError, match=r"curves\['a'\] has costs of shape \(2,\) and accuracies of shape \(1,\)"):
            AccuracyCostDisplay({"a": ([0.1, 0.2], [0.5])})
        with pytest.raises(ValueError, match=r"predictions\['a'\] has classes of shape \(300,\)"):
            AccuracyCostDisplay.from_predictions(y, {"a": (y, y)})
        with pytest.raises(ValueError, match=r"estimators\['a'\] is empty"):
            AccuracyCostDisplay.from_estimators({"a": []}, X, y)
        with pytest.raises(ValueError, match="LogisticRegression is not an exit policy; pass a fitted policy"):
            AccuracyCostDisplay.from_estimators({"a": LogisticRegression()}, X, y)

    def test_names_stand_beside_the_lines(self):
        curves = {"upper": ([0.2, 0.9], [0.8, 0.9]), "lower": ([0.1, 0.3, 1.0], [0.5, 0.7, 0.9])}
        display = AccuracyCostDisplay(curves, network_accuracy=0.92).plot(direct_labels=True)
        assert display.ax_.get_legend() is None
        assert list(display.network_.get_ydata()) == [92, 92]
        texts = {text.get_text(): text for text in display.ax_.texts}
        assert set(texts) == {"upper", "lower", "plain network"}
        # Each name has the colour of its line, and stands at one of its points.
        for name, line in display.lines_.items():
            assert texts[name].get_color() == line.get_color()
            assert tuple(texts[name].xy) in set(zip(*line.get_data(), strict=True))
        assert texts["upper"].xyann[1] > 0 > texts["lower"].xyann[1]

    def test_the_network_is_in_the_legend(self):
        display = AccuracyCostDisplay({"a": ([0.5], [0.9])}, network_accuracy=0.92).plot()
        assert [text.get_text() for text in display.ax_.get_legend().texts] == ["a", "plain network"]

    def test_draws_on_given_axes(self):
        figure, ax = plt.subplots()
        display = AccuracyCostDisplay({"a": ([0.5], [0.9])}).plot(ax=ax)
        assert display.ax_ is ax
        assert display.figure_ is figure


def test_the_axis_tells_what_heads_cost():
    X, y = make_exits(100, 2, 3, random_state=0)
    X = stack_exits(features=[X.features(k) for k in range(2)], costs=[100, 1000], cost_unit="FLOPs")
    policies = [ThresholdPolicy(budget=budget).fit(X, y) for budget in (0.5, 0.9)]
    display = AccuracyCostDisplay.from_estimators({"a": policies}, X, y)
    # Two heads of 4 features and 3 classes: 48 FLOPs.
    assert display.ax_.get_xlabel() == "Mean cost (% of the plain network, with heads of up to 4.8 %)"


class TestExitDistribution:
    def test_a_bar_a_policy(self, data, policy):
        X, _ = data
        policies = {"cheap": policy.with_budget(0.4), "dear": Pipeline([("policy", policy.with_budget(0.9))])}
        display = ExitDistributionDisplay.from_estimators(policies, X)
        assert display.names == ["cheap", "dear"]
        for shares, budget in zip(display.shares, (0.4, 0.9), strict=True):
            exits = policy.with_budget(budget).predict_exit(X)
            np.testing.assert_allclose(shares, [np.mean(exits == k) for k in range(3)])
        for k, bars in enumerate(display.bars_):
            np.testing.assert_allclose(bar_widths(bars), 100 * display.shares[:, k])
            starts = 100 * display.shares[:, :k].sum(axis=1)
            np.testing.assert_allclose([bar.get_x() for bar in bars], starts, atol=1e-9)
        assert display.ax_.get_xlabel() == "Samples that leave (%)"
        assert [label.get_text() for label in display.ax_.get_yticklabels()] == ["cheap", "dear"]

    def test_a_bar_a_class(self, data, policy):
        X, y = data
        exits = policy.predict_exit(X)
        display = ExitDistributionDisplay.from_estimator(policy, X, y)
        assert display.names == ["all", "0", "1", "2"]
        np.testing.assert_allclose(display.shares[0], np.bincount(exits, minlength=3) / 300)
        for label in range(3):
            expected = np.bincount(exits[y == label], minlength=3) / np.sum(y == label)
            np.testing.assert_allclose(display.shares[1 + label], expected)

    def test_one_policy_and_many_bars(self):
        display = ExitDistributionDisplay.from_predictions([0, 1, 1, 1], n_exits=2)
        np.testing.assert_array_equal(display.shares, [[0.25, 0.75]])
        assert display.names == ["all"]
        many = ExitDistributionDisplay(np.full((100, 2), 0.5), list(range(100))).plot()
        assert [label.get_text() for label in many.ax_.get_yticklabels()][:2] == ["0", "4"]
        assert len(many.ax_.texts) == 0

    @pytest.mark.parametrize("n_exits", [1, 2, 6, 9, 12])
    @pytest.mark.parametrize("name", ["all", "cascaded heads, optimal stopping at 50 %"])
    def test_legend_is_whole(self, n_exits, name):
        display = ExitDistributionDisplay(np.full((2, n_exits), 1 / n_exits), [name, "b"]).plot()
        display.figure_.canvas.draw()
        legend, figure = display.ax_.get_legend().get_window_extent(), display.figure_.bbox
        assert figure.x0 <= legend.x0 <= legend.x1 <= figure.x1
        assert legend.y1 <= figure.y1

    def test_bad_input(self):
        with pytest.raises(ValueError, match="y_true adds bars for the exits of one policy, but exits is a dict"):
            ExitDistributionDisplay.from_predictions({"a": [0]}, n_exits=1, y_true=[0])
        with pytest.raises(ValueError, match="exits has the exit 2, but there are 2 exits"):
            ExitDistributionDisplay.from_predictions([0, 2], n_exits=2)
        with pytest.raises(ValueError, match=r"shares has shape \(1, 2\) and names 2 entries"):
            ExitDistributionDisplay([[0.5, 0.5]], ["a", "b"])
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            ExitDistributionDisplay.from_predictions([0, 1], n_exits=2, y_true=[0])


class TestReliability:
    def test_bins_of_those_who_leave(self, data, policy):
        X, y = data
        display = ReliabilityDisplay.from_estimator(policy, X, y, n_bins=5)
        exits, probabilities = policy.predict_exit(X), policy.predict_proba(X)
        confidence, right = probabilities.max(axis=1), policy.predict(X) == y
        for k in range(3):
            leaves = exits == k
            assert display.counts[k].sum() == leaves.sum()
            for b in range(5):
                own = leaves & (confidence > b / 5) & (confidence <= (b + 1) / 5)
                assert display.counts[k, b] == own.sum()
                if own.any():
                    assert display.confidences[k, b] == pytest.approx(confidence[own].mean())
                    assert display.accuracies[k, b] == pytest.approx(right[own].mean())
                else:
                    assert np.isnan(display.confidences[k, b])
            expected = expected_calibration_error(y[leaves], probabilities[leaves], n_bins=5, strategy="uniform")
            assert display.errors[k] == pytest.approx(expected)
            filled = display.counts[k] > 0
            np.testing.assert_allclose(display.lines_[k].get_xdata(), 100 * display.confidences[k, filled])
            np.testing.assert_allclose(display.lines_[k].get_ydata(), 100 * display.accuracies[k, filled])
            heights = [bar.get_height() for bar in display.bars_[k]]
            np.testing.assert_allclose(heights, 100 * display.counts[k] / leaves.sum())
            assert f"ECE {100 * expected:.1f} %" in display.axes_[k].get_title()

    def test_labels_and_an_exit_where_nobody_leaves(self):
        y_prob = [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]]
        display = ReliabilityDisplay.from_predictions(
            ["b", "a", "b"], y_prob, [0, 0, 2], n_exits=3, labels=["b", "a"], n_bins=1
        )
        np.testing.assert_allclose(display.accuracies, [[1], [np.nan], [0]])
        np.testing.assert_allclose(display.confidences, [[0.85], [np.nan], [0.7]])
        np.testing.assert_allclose(display.errors, [0.15, np.nan, 0.7])
        assert "no sample leaves" in display.axes_[1].get_title()
        display.plot(n_columns=2).figure_.draw_without_rendering()  # would warn if there were no room

    def test_a_bin_holds_its_upper_edge(self):
        display = ReliabilityDisplay.from_predictions([0, 1], [[0.5, 0.5], [0.4, 0.6]], [0, 0], n_exits=1, n_bins=2)
        np.testing.assert_array_equal(display.counts, [[1, 1]])

    def test_axes(self):
        arguments = [0, 1], [[0.9, 0.1], [0.4, 0.6]], [0, 1]
        figure, axes = plt.subplots(1, 2)
        display = ReliabilityDisplay.from_predictions(*arguments, n_exits=2, axes=axes)
        assert display.figure_ is figure
        assert axes[1].get_xlabel() == "Confidence (%)"
        with pytest.raises(ValueError, match="axes has 2 Axes, but there are 3 exits; give one per exit"):
            ReliabilityDisplay.from_predictions(*arguments, n_exits=3, axes=axes)
        five = ReliabilityDisplay.from_predictions(*arguments, n_exits=5, n_columns=3)
        assert len(five.axes_) == len(five.figure_.axes) == 5

    def test_bad_input(self):
        with pytest.raises(ValueError, match="exits has the exit 4, but there are 2 exits"):
            ReliabilityDisplay.from_predictions([0, 1], [[0.9, 0.1], [0.4, 0.6]], [0, 4], n_exits=2)


class TestExitScores:
    def test_scores_right_answers_and_thresholds(self, data, policy):
        X, y = data
        display = ExitScoreDisplay.from_estimator(policy, X, y)
        np.testing.assert_array_equal(display.exits, policy.predict_exit(X))
        np.testing.assert_allclose(display.scores, policy.exit_scores(X))
        for k in range(3):
            correct = np.argmax(X.logits(k), axis=1) == y
            np.testing.assert_array_equal(display.correct[:, k], correct)
            for points, chosen in zip(display.points_[k], (correct, ~correct), strict=True):
                np.testing.assert_allclose(points.get_offsets()[:, 1], policy.exit_scores(X)[chosen, k])
                assert (abs(points.get_offsets()[:, 0] - y[chosen]) <= 0.35).all()
                faded = points.get_facecolors()[:, 3] < 0.3
                np.testing.assert_array_equal(faded, policy.predict_exit(X)[chosen] < k)
            assert f"{100 * np.mean(policy.predict_exit(X) == k):.1f} % leave" in display.axes_[k].get_title()
        for k in range(2):
            np.testing.assert_allclose(display.lines_[k].get_ydata(), policy.thresholds_[k])
        assert display.lines_[2] is None

    def test_an_unused_exit_has_no_threshold_and_classes_have_names(self):
        y = np.array(["cat", "dog", "cat"])
        figure, axes = plt.subplots(1, 2)
        display = ExitScoreDisplay.from_predictions(
            y, [["cat", "dog"]] * 3, np.zeros((3, 2)), thresholds=[np.inf, -np.inf], axes=axes
        )
        assert display.lines_ == [None, None]
        assert display.figure_ is figure
        np.testing.assert_array_equal(display.exits, [1, 1, 1])
        assert [label.get_text() for label in axes[0].get_xticklabels()] == ["cat", "dog"]

    def test_a_sample_leaves_at_the_threshold_and_at_the_latest_at_the_last_exit(self):
        display = ExitScoreDisplay([0, 1], [[0.5, 0.2], [0.4, 0.2]], np.ones((2, 2)), [0.5, 0.9])
        np.testing.assert_array_equal(display.exits, [0, 1])

    def test_only_some_of_many_classes_are_named(self):
        y = np.arange(35)
        display = ExitScoreDisplay(y, np.zeros((35, 1)), np.ones((35, 1)), [-np.inf]).plot()
        assert [label.get_text() for label in display.axes_[0].get_xticklabels()][:2] == ["0", "4"]

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"scores has shape \(2, 2\), correct \(2, 1\) and thresholds \(2,\)"):
            ExitScoreDisplay([0, 1], np.zeros((2, 2)), np.ones((2, 1)), [0, 0])
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            ExitScoreDisplay([0], np.zeros((2, 2)), np.ones((2, 2)), [0, 0])


class TestCoverage:
    def test_coverage_and_size_of_each_method(self, data):
        X, y = data
        policy = ThresholdPolicy(budget=0.6).fit(X[:100], y[:100]).calibrate(X[100:200], y[100:200])
        alphas = [0.05, 0.2]
        display = CoverageDisplay.from_estimator(policy, X[200:], y[200:], alphas=alphas, methods=["ims", "gated"])
        for method in ("ims", "gated"):
            sets = [policy.predict_set(X[200:], alpha, method) for alpha in alphas]
            coverages = [coverage_score(y[200:], own) for own in sets]
            sizes = [own.sum() / 100 for own in sets]
            np.testing.assert_allclose(display.coverages[method], coverages)
            np.testing.assert_allclose(display.sizes[method], sizes)
            np.testing.assert_allclose(
                display.coverage_lines_[method].get_xydata(), np.column_stack([[95, 80], 100 * np.array(coverages)])
            )
            np.testing.assert_allclose(display.size_lines_[method].get_xydata(), np.column_stack([[95, 80], sizes]))
        assert len(display.axes_) == 2

    def test_a_class_may_be_absent(self, data):
        X, y = data
        policy = ThresholdPolicy(budget=0.6).fit(X, y).calibrate(X, y)
        rows = np.flatnonzero(y > 0)
        display = CoverageDisplay.from_estimator(policy, X[rows], y[rows], alphas=[0.3], methods=["general"])
        sets = policy.predict_set(X[rows], 0.3, "general")
        assert display.coverages["general"] == np.mean([own[label] for own, label in zip(sets, y[rows], strict=True)])

    def test_bad_input(self, data, policy):
        X, y = data
        with pytest.raises(NotFittedError, match="is not calibrated"):
            CoverageDisplay.from_estimator(policy, X, y)
        with pytest.raises(ValueError, match=r"y_sets\['gated'\] has 1 arrays; give 2, one per alpha"):
            CoverageDisplay.from_predictions([0], {"gated": [[[True, False]]]}, alphas=[0.1, 0.2])
        _, axes = plt.subplots(1, 3)
        display = CoverageDisplay([0.1], {"a": [0.9]}, {"a": [1.2]})
        with pytest.raises(ValueError, match="axes has 3 Axes; give two, for coverages and for sizes"):
            display.plot(axes=axes)


DISPLAYS = [
    AccuracyCostDisplay({"a": ([0.5], [0.9])}),
    ExitDistributionDisplay([[0.5, 0.5]], ["a"]),
    ReliabilityDisplay(confidences=[[0.9]], accuracies=[[0.8]], counts=[[5]], errors=[0.1]),
    ExitScoreDisplay([0, 1], [[0.1], [0.2]], [[True], [False]], [-np.inf]),
    CoverageDisplay([0.1], {"a": [0.9]}, {"a": [1.2]}),
]


@pytest.mark.parametrize("display", DISPLAYS, ids=lambda display: type(display).__name__)
def test_without_matplotlib_the_error_names_the_extra(display, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(
        ImportError, match=r"^plots need matplotlib, which is not installed: pip install 'skexit\[plot\]'$"
    ):
        display.plot()


@pytest.mark.parametrize("display", DISPLAYS, ids=lambda display: type(display).__name__)
def test_plot_gives_the_display_and_can_be_called_again(display):
    assert display.plot() is display
    first = display.figure_
    assert display.plot().figure_ is not first
