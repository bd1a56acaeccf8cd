"""Choosing settings: scorers in the hands of scikit-learn, the choice under a budget, curves over budgets."""

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from instances import make_exits
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    ShuffleSplit,
    StratifiedKFold,
    cross_validate,
)
from sklearn.pipeline import Pipeline

from skexit import EENetPolicy, ExitHeads, RandomExit, StaticExit, ThresholdPolicy, stack_exits
from skexit.model_selection import (
    BudgetCurve,
    accuracy_and_cost,
    best_within,
    budget_curve,
    neg_mean_cost_scorer,
    utility_scorer,
)

BUDGETS = [0.4, 0.6, 0.8, 1.0]
FOLDS = StratifiedKFold(3)


@pytest.fixture(scope="module")
def data():
    return make_exits(n_samples=240, n_exits=4, n_classes=3, random_state=0)


@pytest.fixture(scope="module")
def features(data):
    X, y = data
    return stack_exits([None, None, None, X.logits(3)], [X.features(k) for k in range(4)]), y


def make_pipeline(budget=0.6):
    return Pipeline([("heads", ExitHeads(cv=2, random_state=0)), ("policy", ThresholdPolicy(budget=budget))])


def by_hand(estimator, X, y, folds=FOLDS):
    """Accuracy and mean cost on each fold, without a scorer."""
    accuracies, costs = [], []
    for train, test in folds.split(np.zeros(len(y)), y):
        fitted = clone(estimator).fit(X[train], y[train])
        policy, new = fitted, X[test]
        if isinstance(fitted, Pipeline):
            policy, new = fitted["policy"], fitted["heads"].transform(X[test])
        exits = policy.predict_exit(new)
        accuracies.append(np.mean(policy.predict_at_exits(new)[np.arange(len(test)), exits] == y[test]))
        costs.append(policy.costs_[exits].mean())
    return np.array(accuracies), np.array(costs)


class TestScorers:
    @pytest.mark.parametrize("make", [ThresholdPolicy, make_pipeline], ids=["policy", "pipeline"])
    def test_cross_validate(self, make, data, features):
        X, y = data if make is ThresholdPolicy else features
        estimator = make(budget=0.6)
        results = cross_validate(estimator, X, y, cv=FOLDS, scoring=accuracy_and_cost(lam=0.3), error_score="raise")
        accuracies, costs = by_hand(estimator, X, y)
        np.testing.assert_allclose(results["test_accuracy"], accuracies)
        np.testing.assert_allclose(results["test_mean_cost"], costs)
        np.testing.assert_allclose(results["test_utility"], accuracies - 0.3 * costs)

    def test_single_scorers_agree(self, features):
        X, y = features
        pipeline = make_pipeline().fit(X, y)
        scores = accuracy_and_cost(lam=2)(pipeline, X, y)
        assert all(type(score) is float for score in scores.values())
        assert utility_scorer(2)(pipeline, X, y) == scores["utility"] == scores["accuracy"] - 2 * scores["mean_cost"]
        assert neg_mean_cost_scorer(pipeline, X) == neg_mean_cost_scorer(pipeline, X, y) == -scores["mean_cost"]
        free = accuracy_and_cost()(pipeline, X, y)
        assert free["utility"] == free["accuracy"] == pipeline.score(X, y)

    def test_data_is_transformed_once(self, features, monkeypatch):
        X, y = features
        pipeline, calls = make_pipeline().fit(X, y), []
        transform = ExitHeads.transform
        monkeypatch.setattr(ExitHeads, "transform", lambda self, X: calls.append(1) or transform(self, X))
        accuracy_and_cost()(pipeline, X, y)
        assert calls == [1]

    def test_pipelines_in_pipelines_and_searches(self, data, features):
        X, y = features
        expected = accuracy_and_cost()(make_pipeline().fit(X, y), X, y)
        heads, policy = (step for _, step in make_pipeline().steps)
        nested = Pipeline([("heads", heads), ("rest", Pipeline([("policy", policy)]))])
        assert accuracy_and_cost()(nested.fit(X, y), X, y) == expected
        search = GridSearchCV(make_pipeline(), {"policy__budget": [0.6]}, cv=2)
        results = cross_validate(search, X, y, cv=FOLDS, scoring=accuracy_and_cost(), error_score="raise")
        np.testing.assert_allclose(results["test_mean_cost"], by_hand(make_pipeline(), X, y)[1])

    def test_frames(self, features):
        X, y = features
        pipeline = make_pipeline().set_output(transform="pandas").fit(X.to_frame(), pd.Series(y))
        expected = accuracy_and_cost()(make_pipeline().fit(X, y), X, y)
        assert accuracy_and_cost()(pipeline, X.to_frame(), pd.Series(y, index=np.arange(240) + 7)) == expected

    @pytest.mark.parametrize(
        "scorer",
        [accuracy_and_cost(0.5), utility_scorer(0.5), neg_mean_cost_scorer],
        ids=["all", "utility", "cost"],  # a repr with an address would differ between the processes of pytest-xdist
    )
    def test_pickled(self, scorer, data):
        X, y = data
        policy = StaticExit(1).fit(X, y)
        assert pickle.loads(pickle.dumps(scorer))(policy, X, y) == scorer(policy, X, y)

    def test_estimators_without_a_cost_are_refused(self, features):
        X, y = features
        values = np.asarray(X)
        message = r"^DummyClassifier is not an exit policy; pass a fitted policy, such as ThresholdPolicy, or a Pipeline that ends"
        dummy = DummyClassifier().fit(values, y)
        for estimator in (dummy, Pipeline([("dummy", dummy)])):
            for scorer in (accuracy_and_cost(), utility_scorer(1), neg_mean_cost_scorer):
                with pytest.raises(ValueError, match=message):
                    scorer(estimator, values, y)

    @pytest.mark.parametrize("lam", [-0.1, np.nan, np.inf, "1", None])
    def test_wrong_prices_are_refused(self, lam):
        for make in (accuracy_and_cost, utility_scorer):
            with pytest.raises(ValueError, match=rf"^lam={lam!r} must be a finite number, 0 or more"):
                make(lam)


class TestSearches:
    def test_grid_search_on_a_policy(self, data):
        X, y = data
        search = GridSearchCV(
            ThresholdPolicy(),
            {"criterion": ["max_prob", "entropy"], "budget": BUDGETS},
            cv=FOLDS,
            scoring=accuracy_and_cost(),
            refit=best_within(0.7),
            error_score="raise",
        ).fit(X, y)
        measured = [by_hand(ThresholdPolicy(**setting), X, y) for setting in search.cv_results_["params"]]
        means = [(accuracies.mean(), costs.mean()) for accuracies, costs in measured]
        best = max((accuracy, -cost) for accuracy, cost in means if cost <= 0.7)
        assert means[search.best_index_] == pytest.approx((best[0], -best[1]))
        assert search.best_estimator_.budget == search.best_params_["budget"]

    def test_grid_search_on_a_pipeline_in_two_processes(self, features):
        X, y = features
        search = GridSearchCV(
            make_pipeline(),
            {"policy__budget": BUDGETS},
            cv=FOLDS,
            scoring=accuracy_and_cost(0.1),
            refit=best_within(0.65),
            error_score="raise",
        )
        alone = clone(search).fit(X, y)
        together = search.set_params(n_jobs=2).fit(X, y)
        for name in ("accuracy", "mean_cost", "utility"):
            key = f"mean_test_{name}"
            np.testing.assert_array_equal(alone.cv_results_[key], together.cv_results_[key])
        assert alone.best_params_ == together.best_params_
        assert alone.cv_results_["mean_test_mean_cost"][alone.best_index_] <= 0.65
        costs = [by_hand(make_pipeline(budget), X, y)[1].mean() for budget in BUDGETS]
        np.testing.assert_allclose(alone.cv_results_["mean_test_mean_cost"], costs)

    def test_grid_search_by_utility(self, data):
        X, y = data
        search = GridSearchCV(
            ThresholdPolicy(), {"budget": BUDGETS}, cv=FOLDS, scoring=accuracy_and_cost(5), refit="utility"
        ).fit(X, y)
        assert search.best_params_ == {"budget": 0.4}  # at such a price, the cheapest

    def test_randomized_search(self, data):
        X, y = data
        search = RandomizedSearchCV(
            ThresholdPolicy(),
            {"budget": BUDGETS},
            n_iter=3,
            cv=FOLDS,
            scoring=accuracy_and_cost(),
            refit=best_within(0.9),
            random_state=0,
            error_score="raise",
        ).fit(X, y)
        assert search.cv_results_["mean_test_mean_cost"][search.best_index_] <= 0.9
        single = clone(search).set_params(scoring=neg_mean_cost_scorer, refit=True).fit(X, y)
        assert single.best_params_["budget"] == min(setting["budget"] for setting in single.cv_results_["params"])

    @pytest.mark.parametrize(
        ("scoring", "chosen"), [(utility_scorer(5), 0.4), (neg_mean_cost_scorer, 0.4)], ids=["utility", "cost"]
    )
    def test_halving(self, data, scoring, chosen):
        X, y = data
        search = HalvingGridSearchCV(
            ThresholdPolicy(), {"budget": BUDGETS}, cv=2, scoring=scoring, random_state=0, error_score="raise"
        ).fit(X, y)
        assert search.best_params_ == {"budget": chosen}

    def test_a_search_is_pickled(self, data, tmp_path):
        X, y = data
        search = GridSearchCV(
            ThresholdPolicy(), {"budget": BUDGETS}, cv=2, scoring=accuracy_and_cost(), refit=best_within(0.9)
        ).fit(X, y)
        joblib.dump(search, tmp_path / "search.joblib")
        loaded = joblib.load(tmp_path / "search.joblib")
        assert loaded.refit(search.cv_results_) == search.best_index_

    def test_a_budget_that_nothing_meets(self, data):
        X, y = data
        search = GridSearchCV(StaticExit(), {"exit": [1, 2]}, cv=2, scoring=accuracy_and_cost(), refit=best_within(0.3))
        message = (
            r"^budget=0\.3 is met by no setting: the cheapest costs 0\.5 of the network's cost\. Raise it to 0\.5 or more, or "
            r"search over cheaper settings\.$"
        )
        with pytest.raises(ValueError, match=message):
            search.fit(X, y)

    def test_other_scores_are_refused(self, data):
        X, y = data
        search = GridSearchCV(StaticExit(), {"exit": [1]}, cv=2, refit=best_within(0.6))
        message = r"^cv_results_ has no 'mean_test_accuracy'; its scores are \['score'\]\. Search with scoring=acc"
        with pytest.raises(ValueError, match=message):
            search.fit(X, y)
        with pytest.raises(ValueError, match="has no 'mean_test_mean_cost'"):
            best_within(0.5)({"mean_test_accuracy": [0.5]})


class TestOtherScores:
    def test_best_f1_within_a_budget(self, data):
        X, y = data
        scoring = {"f1": "f1_macro", "cost": neg_mean_cost_scorer}
        search = GridSearchCV(make_pipeline(), {"policy__budget": [0.5, 0.6, 0.9]}, scoring=scoring, cv=2)
        search.set_params(refit=best_within(0.7, score="f1", cost="cost")).fit(X, y)
        scores, costs = (search.cv_results_[f"mean_test_{name}"] for name in ("f1", "cost"))
        allowed = np.flatnonzero(-costs <= 0.7)
        assert len(allowed) < 3
        assert search.best_index_ == allowed[np.argmax(scores[allowed])]
        assert best_within(0.7, score="f1", cost="cost", one_standard_error=True)(search.cv_results_) in allowed

    def test_names_that_are_not_there(self, data):
        results = {"mean_test_f1": np.ones(1), "mean_test_cost": np.ones(1)}
        with pytest.raises(
            ValueError, match=r"no 'mean_test_accuracy'; its scores are \['f1', 'cost'\]\. .* by score="
        ):
            best_within(1.0)(results)
        assert best_within(1.0, score="f1", cost="cost")(results) == 0

    @pytest.mark.parametrize(
        "refit",
        [best_within(0.9), best_within(0.9, score="utility"), "utility"],
        ids=["accuracy", "utility", "by name"],
    )
    def test_score_of_a_search(self, refit, data):
        X, y = data
        search = GridSearchCV(make_pipeline(), {"policy__budget": [0.6]}, scoring=accuracy_and_cost(0.1), cv=2)
        search.set_params(refit=refit).fit(X, y)
        expected = accuracy_and_cost(0.1)(search.best_estimator_, X, y)
        name = refit if isinstance(refit, str) else refit.keywords["score"]
        assert search.score(X, y) == expected[name]


def results_of(accuracies, costs):
    """What a search notes of accuracies (n_settings, n_folds) and mean costs (n_settings,)."""
    results = {f"split{fold}_test_accuracy": column for fold, column in enumerate(accuracies.T)}
    return {**results, "mean_test_accuracy": accuracies.mean(axis=1), "mean_test_mean_cost": costs}


class TestBestWithin:
    @given(st.integers(0, 10_000), st.integers(1, 10), st.booleans())
    def test_equals_loops(self, seed, tenths, one_standard_error):
        rng = np.random.default_rng(seed)
        # Few distinct values, so that many settings tie; 11 folds, so that names have two digits.
        accuracies = rng.integers(6, 9, size=(7, 11 if seed % 2 else 3)) / 8
        costs = rng.integers(1, 11, size=7) / 10
        accuracies[rng.random(7) < 0.1] = np.nan
        budget, choose = tenths / 10, best_within(tenths / 10, one_standard_error=one_standard_error)
        results, means = results_of(accuracies, costs), accuracies.mean(axis=1)
        allowed = [i for i in range(7) if costs[i] <= budget + 1e-9 and not np.isnan(means[i])]
        if not allowed:
            with pytest.raises(ValueError, match=r"is met by no setting|no setting could be scored"):
                choose(results)
            return
        best = min(allowed, key=lambda i: (-means[i], costs[i], i))
        if one_standard_error:
            folds = accuracies[best].tolist()
            variance = sum((fold - means[best]) ** 2 for fold in folds) / (len(folds) - 1)
            least = means[best] - (variance / len(folds)) ** 0.5
            best = min((i for i in allowed if means[i] >= least), key=lambda i: (costs[i], -means[i], i))
        chosen = choose(results)
        assert chosen == best
        assert type(chosen) is int

    def test_one_standard_error_by_hand(self):
        accuracies = np.array([[0.75, 0.75, 0.75], [0.6, 0.6, 0.6], [0.7, 0.8, 0.9], [0.9, 0.9, 0.9]])
        results = results_of(accuracies, np.array([0.3, 0.2, 0.5, 0.9]))
        # The best within the budget has a standard error of 0.1 / sqrt(3) = 0.058.
        assert best_within(0.6)(results) == 2
        assert best_within(0.6, one_standard_error=True)(results) == 0
        assert best_within(1.0, one_standard_error=True)(results) == 3
        assert best_within(0.2)(results) == 1

    def test_a_cost_may_exceed_the_budget_by_a_rounding_error(self):
        results = results_of(np.array([[0.5], [0.9], [0.95]]), np.array([0.1, 0.1 + 0.2, 0.3 + 1e-6]))
        assert best_within(0.3)(results) == 1

    def test_nan(self):
        accuracies = np.array([[np.nan, 0.9], [0.5, 0.5]])
        assert best_within(1.0)(results_of(accuracies, np.array([0.2, 0.4]))) == 1
        assert best_within(1.0)(results_of(np.ones((2, 2)), np.array([np.nan, 0.4]))) == 1
        message = r"^no setting could be scored: all are nan\. Search with error_score='raise' to see why\.$"
        with pytest.raises(ValueError, match=message):
            best_within(1.0)(results_of(accuracies[:1], np.array([0.2])))
        with pytest.raises(ValueError, match=r"the cheapest costs 0\.4 of"):
            best_within(0.3)(results_of(accuracies, np.array([0.2, 0.4])))

    def test_one_setting_and_one_fold(self):
        results = results_of(np.array([[0.5]]), np.array([0.5]))
        assert best_within(0.5)(results) == 0
        message = r"^one_standard_error=True needs two folds or more; search with cv=2 or more folds\.$"
        with pytest.raises(ValueError, match=message):
            best_within(0.5, one_standard_error=True)(results)

    def test_pickled(self):
        results = results_of(np.array([[0.75, 0.75], [0.7, 0.9]]), np.array([0.3, 0.5]))
        for choose, expected in [(best_within(0.6), 1), (best_within(0.6, one_standard_error=True), 0)]:
            assert pickle.loads(pickle.dumps(choose))(results) == expected

    @pytest.mark.parametrize("budget", [0, -0.5, 1.1, np.nan, "0.5", None])
    def test_wrong_budgets_are_refused(self, budget):
        with pytest.raises(
            ValueError, match=rf"^budget={budget!r} must be in \(0, 1\]: it is a fraction of the network"
        ):
            best_within(budget)


class _Refitted(ThresholdPolicy):
    """A threshold policy that must be fitted for each budget."""

    fits = 0

    @property
    def with_budget(self):
        raise AttributeError("with_budget")

    def fit(self, X, y, sample_weight=None):
        _Refitted.fits += 1
        return super().fit(X, y, sample_weight)


class TestBudgetCurve:
    BUDGETS = (0.8, 0.4, 1.0)

    @pytest.mark.parametrize("kind", ["policy", "pipeline", "nested", "refitted"])
    def test_equals_separate_fits(self, data, features, kind):
        X, y = features if kind in ("pipeline", "nested") else data
        pipeline, policy = make_pipeline(), ThresholdPolicy(criterion="entropy")
        nested = Pipeline([("heads", pipeline["heads"]), ("rest", Pipeline([("policy", pipeline["policy"])]))])
        estimator = {"policy": policy, "pipeline": pipeline, "nested": nested, "refitted": _Refitted("entropy")}[kind]
        curve = budget_curve(estimator, X, y, self.BUDGETS, cv=FOLDS)
        assert isinstance(curve, BudgetCurve)
        assert curve.budgets.tolist() == list(self.BUDGETS)
        assert curve.accuracies.shape == curve.costs.shape == (3, 3)
        for budget, accuracies, costs in zip(self.BUDGETS, curve.accuracies, curve.costs, strict=True):
            alone = ThresholdPolicy(criterion="entropy", budget=budget)
            expected = by_hand(alone if X is data[0] else make_pipeline(budget), X, y)
            np.testing.assert_allclose(accuracies, expected[0])
            np.testing.assert_allclose(costs, expected[1])

    def test_number_of_fits(self, data, monkeypatch):
        X, y = data
        _Refitted.fits = 0
        budget_curve(_Refitted(), X, y, self.BUDGETS, cv=FOLDS)
        assert _Refitted.fits == 9
        budgets, fit = [], RandomExit.fit
        monkeypatch.setattr(RandomExit, "fit", lambda self, X, y: budgets.append(self.budget) or fit(self, X, y))
        policy = RandomExit(budget=0.3, random_state=0)
        budget_curve(policy, X, y, [*self.BUDGETS, 0.9, 0.95], cv=FOLDS)
        assert budgets == [0.9] * 3  # the middle one, once a fold
        assert policy.budget == 0.3
        assert not hasattr(policy, "thresholds_")

    def test_learned_policies_are_given_each_budget(self, data):
        X, y = data
        policy = EENetPolicy(random_state=0, max_epochs=2)
        curve = budget_curve(policy, X, y, [0.5, 0.9], cv=FOLDS)
        for fold, (train, test) in enumerate(FOLDS.split(np.zeros(240), y)):
            fitted = clone(policy).set_params(budget=0.9).fit(X[train], y[train])
            for row, budget in enumerate((0.5, 0.9)):
                at_budget = fitted.with_budget(budget)
                assert curve.costs[row, fold] == pytest.approx(at_budget.mean_cost(X[test]))
                assert curve.accuracies[row, fold] == pytest.approx(at_budget.score(X[test], y[test]))

    @pytest.mark.parametrize("policy", [ThresholdPolicy(), _Refitted()], ids=["once", "each"])
    def test_all_budgets_have_the_same_folds(self, data, policy):
        """Also where the splitter draws anew each time that it is asked."""
        X, y = data
        state = np.random.RandomState(0)
        curve = budget_curve(policy, X, y, [0.6, 0.6], cv=ShuffleSplit(2, random_state=state))
        np.testing.assert_array_equal(curve.costs[0], curve.costs[1])
        assert curve.costs[0, 0] != curve.costs[0, 1]

    def test_two_processes(self, features):
        X, y = features
        first, second = (budget_curve(make_pipeline(), X, y, self.BUDGETS, cv=2, n_jobs=jobs) for jobs in (None, 2))
        np.testing.assert_array_equal(first.costs, second.costs)
        np.testing.assert_array_equal(first.accuracies, second.accuracies)

    def test_five_stratified_folds_by_default(self, data):
        X, y = data
        curve = budget_curve(ThresholdPolicy(), X, y, [0.6])
        np.testing.assert_allclose(curve.costs[0], by_hand(ThresholdPolicy(budget=0.6), X, y, StratifiedKFold(5))[1])

    def test_errors(self, data):
        X, y = data
        for budgets in ([], 0.5, [[0.5]]):
            with pytest.raises(ValueError, match=r"^budgets has shape .* pass a list of one budget or more\.$"):
                budget_curve(ThresholdPolicy(), X, y, budgets)
        for wrong in (0.0, 1.5, np.nan):
            message = rf"^budgets has {wrong}; pass numbers in \(0, 1\], fractions of the network's cost\.$"
            with pytest.raises(ValueError, match=message):
                budget_curve(ThresholdPolicy(), X, y, [0.5, wrong])
        for policy in (ThresholdPolicy(), _Refitted()):
            with pytest.raises(ValueError, match=r"^budget=0\.1 is below the cost of the first exit, 0\.25 of"):
                budget_curve(policy, X, y, [0.1, 0.5, 0.6])
        message = r"^StaticExit has no parameter budget\. Pass a policy that has one, such as ThresholdPolicy, a Pi"
        for estimator in (StaticExit(), Pipeline([("policy", StaticExit())])):
            with pytest.raises(ValueError, match=message):
                budget_curve(estimator, X, y, [0.5])
