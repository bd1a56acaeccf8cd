"""What is measured or fitted where some rows have no label: the same as on the others alone."""

import json

import numpy as np
import pytest
from rows import make_rows
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectFromModel, SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier

from skexit import (
    ExitEnsemble,
    ExitHeads,
    ExitTransformer,
    OptimalStoppingPolicy,
    ThresholdPolicy,
    make_exit_pipeline,
    oracle,
    stack_exits,
)
from skexit.metrics import (
    accuracy_at_budget,
    accuracy_cost_curve,
    area_under_accuracy_cost,
    cost_at_accuracy,
    exit_distribution_by_class,
    exit_report,
    oracle_regret,
)
from skexit.model_selection import accuracy_and_cost, budget_curve, utility_scorer
from skexit.monitoring import ExitMonitor
from skexit.plotting import (
    AccuracyCostDisplay,
    CoverageDisplay,
    ExitDistributionDisplay,
    ExitScoreDisplay,
    ReliabilityDisplay,
)
from skexit.uncertainty import coverage_score, expected_calibration_error

X, truth = make_rows(400)
LABELLED = np.arange(400) % 3 > 0
Y = np.where(LABELLED, truth, -1)
FIT, NEW = slice(0, 200), slice(200, 400)
NO_LABELS = r"y is -1 in every row, which marks rows without a label\..* Give the labels of some rows"


def with_names(y):
    """Names of the classes, -1 among them in an array of objects."""
    names = np.array(["ant", "bee", "cat"], dtype=object)
    return np.where(y < 0, -1, names[y])


def same(one, other):
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture(scope="module")
def policy():
    return ThresholdPolicy(budget=0.6).fit(X[FIT], truth[FIT])


@pytest.fixture(scope="module")
def answers(policy):
    new = X[NEW]
    settings = [policy.with_budget(budget) for budget in (0.4, 0.6, 0.8)]
    y_pred = np.column_stack([setting.predict(new) for setting in settings])
    costs = np.column_stack([setting.costs_[setting.predict_exit(new)] for setting in settings])
    return y_pred, costs


class TestScore:
    @pytest.mark.parametrize("names", [False, True])
    def test_policies(self, names):
        classes = ["ant", "bee", "cat"] if names else [0, 1, 2]
        rows = X.with_layout(X.layout.replace(classes=classes))
        y = with_names(Y) if names else Y
        policy = ThresholdPolicy(budget=0.6).fit(rows[FIT], y[FIT])
        kept = LABELLED[NEW]
        assert policy.score(rows[NEW], y[NEW]) == policy.score(rows[NEW][kept], y[NEW][kept])
        weight = np.random.default_rng(0).random(200)
        assert policy.score(rows[NEW], y[NEW], weight) == policy.score(rows[NEW][kept], y[NEW][kept], weight[kept])

    def test_share_of_right_answers(self, policy):
        right = policy.predict(X[NEW]) == truth[NEW]
        assert policy.score(X[NEW], Y[NEW]) == pytest.approx(right[LABELLED[NEW]].mean())

    @pytest.mark.parametrize("container", [np.asarray, lambda rows: rows.to_frame()], ids=["array", "frame"])
    def test_containers(self, policy, container):
        other = ThresholdPolicy(budget=0.6, layout=X.layout).fit(container(X[FIT]), truth[FIT])
        assert other.score(container(X[NEW]), Y[NEW]) == policy.score(X[NEW], Y[NEW])

    def test_pipelines_and_searches(self):
        pipeline = make_exit_pipeline(ExitEnsemble(), OptimalStoppingPolicy(0.6, random_state=0)).fit(X[FIT], Y[FIT])
        kept = LABELLED[NEW]
        assert pipeline.score(X[NEW], Y[NEW]) == pipeline.score(X[NEW][kept], Y[NEW][kept])
        search = GridSearchCV(ThresholdPolicy(), {"budget": [0.4, 0.8]}, cv=2).fit(X[FIT], Y[FIT])
        assert search.best_params_ == {"budget": 0.8}
        assert search.score(X[NEW], Y[NEW]) == search.score(X[NEW][kept], Y[NEW][kept]) > 0.7

    def test_minus_one_may_be_a_class(self):
        signs = 2 * (truth > 0) - 1
        logits = [np.stack([0 * signs, signs + scale], axis=1) for scale in (0.3, -0.2)]
        rows = stack_exits(logits, classes=[-1, 1])
        policy = ThresholdPolicy(budget=1.0).fit(rows, signs)
        assert policy.score(rows, -np.ones(400, dtype=int)) == np.mean(policy.predict(rows) == -1)

    def test_none(self, policy):
        with pytest.raises(ValueError, match=NO_LABELS):
            policy.score(X[NEW], np.full(200, -1))


class TestModelSelection:
    def test_scorers(self, policy):
        kept = LABELLED[NEW]
        scores = accuracy_and_cost(lam=0.2)(policy, X[NEW], Y[NEW])
        assert scores["accuracy"] == policy.score(X[NEW][kept], Y[NEW][kept])
        assert scores["mean_cost"] == policy.mean_cost(X[NEW])
        assert utility_scorer(0.2)(policy, X[NEW], Y[NEW]) == scores["utility"]

    def test_cross_validation_and_curve(self):
        assert cross_val_score(ThresholdPolicy(budget=0.8), X, Y, cv=3).min() > 0.7
        curve = budget_curve(ThresholdPolicy(), X, Y, [0.8], cv=3)
        assert curve.accuracies.min() > 0.7


class TestMetrics:
    @pytest.mark.parametrize(
        "metric",
        [
            lambda y, answers, costs: accuracy_cost_curve(y, answers, costs).accuracies,
            lambda y, answers, costs: accuracy_cost_curve(y, answers, costs).costs,
            lambda y, answers, costs: accuracy_at_budget(y, answers, costs, budget=0.7),
            lambda y, answers, costs: cost_at_accuracy(y, answers, costs, accuracy=0.5),
            lambda y, answers, costs: area_under_accuracy_cost(y, answers, costs),
        ],
        ids=["accuracies", "costs", "at budget", "at accuracy", "area"],
    )
    @pytest.mark.parametrize("names", [False, True])
    def test_of_settings(self, metric, names, answers):
        y_pred, costs = answers
        y, kept = Y[NEW], LABELLED[NEW]
        if names:
            y, y_pred = with_names(y), with_names(y_pred)
        np.testing.assert_allclose(metric(y, y_pred, costs), metric(y[kept], y_pred[kept], costs[kept]))

    def test_of_exits(self, policy):
        y, kept = Y[NEW], LABELLED[NEW]
        y_pred, exits = policy.predict_at_exits(X[NEW]), policy.predict_exit(X[NEW])
        for metric in (oracle_regret, exit_report):
            assert metric(y, y_pred, exits, policy.costs_) == metric(y[kept], y_pred[kept], exits[kept], policy.costs_)
        by_class = [
            exit_distribution_by_class(labels, stops, n_exits=4, labels=policy.classes_)
            for labels, stops in ((y, exits), (y[kept], exits[kept]))
        ]
        same(*by_class)

    def test_of_probabilities(self, policy):
        y, kept, y_prob = Y[NEW], LABELLED[NEW], policy.predict_proba(X[NEW])
        labels = policy.classes_
        one = expected_calibration_error(y, y_prob, labels=labels)
        assert one == expected_calibration_error(y[kept], y_prob[kept], labels=labels)
        sets = y_prob > 0.2
        assert coverage_score(y, sets, labels=labels) == coverage_score(y[kept], sets[kept], labels=labels)

    def test_minus_one_is_a_class_of_two_signs(self):
        """Also where it is never the answer."""
        assert accuracy_cost_curve([-1, -1, 1], [1, 1, 1], [0.5] * 3).accuracies == pytest.approx([1 / 3])

    def test_minus_one_is_a_class_where_it_is_an_answer(self):
        assert accuracy_cost_curve([-1, -1, 0, 1], [1, -1, 0, 1], [0.5] * 4).accuracies == pytest.approx([3 / 4])

    def test_none(self):
        for call in (
            lambda: accuracy_cost_curve([-1, -1], [0, 1], [0.5, 0.5]),
            lambda: oracle_regret([-1, -1], [[0, 1], [1, 0]], [0, 1], [0.5, 1.0]),
            lambda: coverage_score([-1, -1], [[True, False], [True, True]], labels=[0, 1]),
            lambda: oracle(X[:2], [-1, -1]),
        ):
            with pytest.raises(ValueError, match=NO_LABELS):
                call()

    def test_oracle(self):
        one, other = oracle(X, Y), oracle(X[LABELLED], Y[LABELLED])
        same(one.exits, other.exits)
        assert (one.accuracy, one.mean_cost) == (other.accuracy, other.mean_cost)


class TestCalibrationAndPages:
    def test_calibrate(self, policy):
        kept = LABELLED[NEW]
        one = policy.with_budget(0.7).calibrate(X[NEW], Y[NEW])
        other = policy.with_budget(0.7).calibrate(X[NEW][kept], Y[NEW][kept])
        same(one.temperatures_, other.temperatures_)
        same(one.predict_set(X[FIT], 0.1), other.predict_set(X[FIT], 0.1))

    def test_displays(self, policy):
        kept = LABELLED[NEW]
        calibrated = policy.with_budget(0.7).calibrate(X[FIT], truth[FIT])
        draw = {
            "accuracies": lambda rows, y: AccuracyCostDisplay.from_estimators({"a": calibrated}, rows, y).curves["a"][
                1
            ],
            "errors": lambda rows, y: ReliabilityDisplay.from_estimator(calibrated, rows, y).errors,
            "coverages": lambda rows, y: CoverageDisplay.from_estimator(calibrated, rows, y).coverages["general"],
            "correct": lambda rows, y: ExitScoreDisplay.from_estimator(calibrated, rows, y).correct,
            "shares": lambda rows, y: ExitDistributionDisplay.from_estimator(calibrated, rows, y).shares,
        }
        for measured in draw.values():
            same(measured(X[NEW], Y[NEW]), measured(X[NEW][kept], Y[NEW][kept]))
        import matplotlib.pyplot as plt

        plt.close("all")

    def test_monitor(self, policy):
        monitor = ExitMonitor(policy, X[NEW], Y[NEW])
        shares = np.stack([row for row in monitor._intervals if not np.isnan(row).any()])
        kept = LABELLED[NEW]
        other = ExitMonitor(policy, X[NEW][kept], Y[NEW][kept])
        same(shares[-1], other._intervals[-1])
        monitor.update(correct=[True, False])

    def test_report(self, policy, tmp_path):
        from skexit.report import write_report

        kept = LABELLED[NEW]
        pages = [
            write_report(rows, y, {"thresholds": policy}, tmp_path / "page.html").read_text()
            for rows, y in ((X[NEW], Y[NEW]), (X[NEW][kept], Y[NEW][kept]))
        ]
        assert f"{kept.sum()}, with labels" in pages[0]
        tables = [page.split("<svg")[0].split("<img")[0] for page in pages]
        assert tables[0] == tables[1]

    def test_evaluate(self, policy, tmp_path, capsys):
        import joblib

        from skexit.cache import CacheWriter
        from skexit.cli import main

        facts = []
        for name, rows in (("all", np.arange(200, 400)), ("some", np.arange(200, 400)[LABELLED[NEW]])):
            with CacheWriter(tmp_path / name, X.layout, origin={}) as writer:
                writer.append([X.logits(k, rows) for k in range(4)], [None] * 4, y=Y[rows])
            joblib.dump(policy, tmp_path / "policy.joblib")
            arguments = ["evaluate", str(tmp_path / name), str(tmp_path / "policy.joblib"), "--json"]
            assert main(arguments) == 0
            facts.append(json.loads(capsys.readouterr().out))
        assert facts[0]["rows"] == LABELLED[NEW].sum()
        assert facts[0]["accuracy"] == pytest.approx(facts[1]["accuracy"])


class TakesWhatItGets(TransformerMixin, BaseEstimator):
    """Keeps what it was fitted on."""

    def fit(self, X, y=None):
        self.X_, self.y_ = X, y
        return self

    def transform(self, X):
        return X


FEATURES = stack_exits([None, None, None, X.logits(3)], [X.logits(k) for k in range(4)], classes=[0, 1, 2])


class TestTransformers:
    @pytest.mark.parametrize(
        "transformer",
        [
            LinearDiscriminantAnalysis(n_components=2),
            SelectKBest(k=2),
            make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(n_components=2)),
            make_pipeline(LinearDiscriminantAnalysis(n_components=2), StandardScaler()),
            SelectFromModel(LogisticRegression()),
        ],
        ids=["LDA", "selection", "at the end", "at the start", "inside"],
    )
    def test_that_need_labels_get_the_labelled_rows(self, transformer):
        one = ExitTransformer(transformer).fit(FEATURES, Y)
        other = ExitTransformer(transformer).fit(FEATURES[LABELLED], Y[LABELLED])
        same(one.transform(FEATURES), other.transform(FEATURES))

    def test_classes_of_lda(self):
        fitted = ExitTransformer(LinearDiscriminantAnalysis(n_components=2)).fit(FEATURES, Y)
        assert fitted.transformers_[0].classes_.tolist() == [0, 1, 2]

    def test_that_need_none_get_all_rows(self):
        same(
            ExitTransformer(PCA(2)).fit(FEATURES, Y).transform(FEATURES),
            ExitTransformer(PCA(2)).fit(FEATURES).transform(FEATURES),
        )
        kept = ExitTransformer(TakesWhatItGets()).fit(FEATURES, Y).transformers_[0]
        assert len(kept.X_) == 400
        assert kept.y_ is None
        same(ExitTransformer(TakesWhatItGets()).fit(FEATURES, truth).transformers_[0].y_, truth)

    def test_semi_supervised_ones_get_all(self):
        class FromSelfTraining(TakesWhatItGets):
            def __init__(self, estimator):
                self.estimator = estimator

        learner = FromSelfTraining(SelfTrainingClassifier(LogisticRegression()))
        same(ExitTransformer(learner).fit(FEATURES, Y).transformers_[0].y_, Y)

    def test_in_a_pipeline(self):
        steps = (
            ExitTransformer(LinearDiscriminantAnalysis(n_components=2)),
            ExitHeads(random_state=0),
            ThresholdPolicy(budget=0.8),
        )
        pipeline = make_exit_pipeline(*steps).fit(FEATURES, Y)
        assert pipeline.score(FEATURES, Y) > 0.7

    def test_none(self):
        with pytest.raises(ValueError, match=r"y is -1 in every row.*LinearDiscriminantAnalysis\(\) needs labels"):
            ExitTransformer(LinearDiscriminantAnalysis()).fit(FEATURES, np.full(400, -1))
        assert ExitTransformer(PCA(1)).fit(FEATURES, np.full(400, -1)).transform(FEATURES).shape[1] == 7


def test_metrics_leave_out_rows_without_a_name():
    names = np.array(["oak", "ash", "elm"])
    y, stops = names[np.arange(30) % 3], np.arange(30) % 2
    probabilities = np.eye(3)[np.searchsorted(np.sort(names), y)] * 0.7 + 0.1
    partly = y.astype(object)
    partly[:12] = -1
    assert expected_calibration_error(partly, probabilities) == expected_calibration_error(y[12:], probabilities[12:])
    assert coverage_score(partly, probabilities > 0.5) == 1.0
    of_classes = exit_distribution_by_class(partly, stops, n_exits=2)
    np.testing.assert_array_equal(of_classes, exit_distribution_by_class(y[12:], stops[12:], n_exits=2))
