"""RiskControlledPolicy: the share of calibration sets that mislead is at most delta."""

import itertools
import warnings
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
from instances import make_exits
from scipy.stats import binomtest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitEnsemble,
    ExitHeads,
    ExitLayout,
    ExitTransformer,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RiskControlledPolicy,
    StaticExit,
    ThresholdPolicy,
    make_exit_pipeline,
    stack_exits,
)
from skexit.runtime import policy_from_json, policy_to_json
from skexit.uncertainty import betting_p_value, binomial_p_value

DELTA = 0.1


def at_most(share, n_trials):
    """A share plus three standard errors."""
    return share + 3 * np.sqrt(share * (1 - share) / n_trials)


def slow_betting_p_value(losses, alpha, delta):
    """The capital process of Waudby-Smith and Ramdas as it is written down, bet by bet."""
    capital, highest = 1.0, 1.0
    seen, squares, variance = 0.0, 0.0, 0.25
    for i, loss in enumerate(losses, start=1):
        stake = min(np.sqrt(2 * np.log(1 / delta) / (len(losses) * variance)), 0.5 / (1 - alpha))
        capital *= 1 - stake * (loss - alpha)
        highest = max(highest, capital)
        seen += loss
        mean = (0.5 + seen) / (1 + i)
        squares += (loss - mean) ** 2
        variance = (0.25 + squares) / (1 + i)
    return 1 / highest


class TestPValues:
    @pytest.mark.parametrize("alpha", [0.01, 0.2, 0.5])
    @pytest.mark.parametrize("seed", range(4))
    def test_betting_is_the_formula(self, alpha, seed):
        losses = np.random.default_rng(seed).uniform(size=150) ** (1 + 3 * seed)
        assert betting_p_value(losses, alpha, 0.07) == pytest.approx(slow_betting_p_value(losses, alpha, 0.07))

    @pytest.mark.parametrize("n_wrong", [0, 3, 40])
    def test_binomial_is_scipys_test(self, n_wrong):
        losses = np.r_[np.ones(n_wrong), np.zeros(100 - n_wrong)]
        expected = binomtest(n_wrong, 100, 0.1, alternative="less").pvalue
        assert binomial_p_value(losses, 0.1) == pytest.approx(expected)

    @pytest.mark.parametrize("alpha", [0.02, 0.1, 0.5])
    @pytest.mark.parametrize("kind", ["two values", "three values", "uniform"])
    def test_are_valid_where_the_risk_is_alpha(self, alpha, kind):
        """P(p <= u) <= u, for losses whose mean is alpha: the least favourable case."""
        rng = np.random.default_rng(0)
        n_trials, n_rows = 2000, 200
        if kind == "two values":
            losses = rng.uniform(size=(n_trials, n_rows)) < alpha
        elif kind == "three values":  # 0, 1/2 and 1
            losses = (rng.uniform(size=(2, n_trials, n_rows)) < alpha).mean(axis=0)
        else:
            losses = 2 * alpha * rng.uniform(size=(n_trials, n_rows)) if alpha <= 0.5 else None
        p_values = np.array([betting_p_value(row, alpha) for row in losses])
        for level in (0.01, 0.05, 0.1, 0.3):
            assert np.mean(p_values <= level) <= at_most(level, n_trials)
        if kind == "two values":
            p_values = np.array([binomial_p_value(row, alpha) for row in losses])
            for level in (0.01, 0.05, 0.1, 0.3):
                assert np.mean(p_values <= level) <= at_most(level, n_trials)

    def test_have_power(self):
        rng = np.random.default_rng(0)
        p_values = [
            [value(rng.uniform(size=500) < 0.02, 0.06) for _ in range(200)]
            for value in (betting_p_value, binomial_p_value)
        ]
        assert np.mean(np.array(p_values[0]) <= 0.1) > 0.8
        assert np.mean(np.array(p_values[1]) <= 0.1) > 0.95


def simulate(n_rows, quality, rng):
    """Logits of three exits; `quality` 0 gives an exit's confidence no relation to whether it is right."""
    y = rng.integers(2, size=n_rows)
    logits = np.empty((n_rows, 3, 2))
    for k, accuracy in enumerate((0.75, 0.85, 0.92)):
        right = rng.uniform(size=n_rows) < accuracy
        answer = np.where(right, y, 1 - y)
        confidence = rng.uniform(size=n_rows) + quality * right
        logits[np.arange(n_rows), k, answer] = confidence
        logits[np.arange(n_rows), k, 1 - answer] = -confidence
    return stack_exits(logits, costs=[0.3, 0.6, 1.0]), y


class UncorrectedPolicy(RiskControlledPolicy):
    """What people do: the cheapest budget whose empirical risk is small enough."""

    def _p_value(self, losses):
        return 0.0 if losses.mean() <= self.alpha else 1.0


@pytest.mark.slow
@pytest.mark.parametrize("quality", [2.0, 0.0], ids=["good scores", "useless scores"])
@pytest.mark.parametrize("loss", ["accuracy_drop", "error", "disagreement"])
def test_the_share_of_violations(quality, loss):
    """1,000 calibration sets of 300 rows, 200 for a bound that does not hold by far; true risks are those of 200,000 rows."""
    rng = np.random.default_rng(0)
    fitted = ThresholdPolicy().fit(*simulate(1000, quality, rng))
    budgets = np.linspace(1, 0.3, 40)
    X, y = simulate(200_000, quality, rng)
    answers, scores = fitted.predict_at_exits(X), fitted.exit_scores(X)
    stops = [np.argmax(scores >= fitted.with_budget(budget).thresholds_, axis=1) for budget in budgets]
    settings = {"loss": loss, "delta": DELTA, "budgets": budgets}
    losses = RiskControlledPolicy(**settings)
    losses = np.stack([losses._losses(y, answers[np.arange(len(y)), exits], answers[:, -1]) for exits in stops], axis=1)
    true_risks = losses.mean(axis=0)
    # A budget is only just too cheap: the hardest case. Good scores make the cheapest dozen better than the network.
    alpha = true_risks[36 if quality else 25] - 1e-3
    assert alpha > 0
    violations = {}
    for kind, n_sets in ((RiskControlledPolicy, 1000), (UncorrectedPolicy, 200)):
        policy, chosen = kind(alpha=alpha, **settings), []
        for _ in range(n_sets):
            rows = rng.integers(len(y), size=300)
            p_values = (policy._p_value(losses[rows, index]) for index in range(40))
            chosen.append(sum(1 for _ in itertools.takewhile(lambda p_value: p_value <= DELTA, p_values)) - 1)
        violations[kind] = np.mean([index >= 0 and true_risks[index] > alpha for index in chosen])
        assert np.mean(np.array(chosen) >= 0) > 0.1
    assert violations[RiskControlledPolicy] <= at_most(DELTA, 1000)
    assert violations[UncorrectedPolicy] > at_most(DELTA, 200)


@pytest.mark.slow
@pytest.mark.parametrize("quality", [2.0, 0.0], ids=["good scores", "useless scores"])
def test_the_share_of_violations_of_the_estimator(quality):
    """As above, through fit, 100 times."""
    rng = np.random.default_rng(1)
    fitted = ThresholdPolicy().fit(*simulate(1000, quality, rng))
    X, y = simulate(50_000, quality, rng)
    answers = fitted.predict_at_exits(X)
    accuracy = (answers[:, -1] == y).mean()
    n_violations = 0
    for seed in range(100):
        policy = RiskControlledPolicy(
            FrozenEstimator(fitted), 0.04, DELTA, budgets=np.linspace(1, 0.3, 15), random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            policy.fit(*simulate(300, quality, rng))
        n_violations += accuracy - policy.score(X, y) > 0.04
    assert n_violations / 100 <= at_most(DELTA, 100)


def test_the_cheapest_of_nine_policies():
    """2,000 calibration sets of 300 rows for nine policies, each with one budget that is just too cheap.

    Losses of the policies are independent given the rows, as of nine scores that say nothing.
    """
    rng = np.random.default_rng(0)
    alpha, n_policies, n_rows, n_sets = 0.1, 9, 300, 2000
    losses = rng.uniform(size=(n_sets, n_policies, n_rows)) < alpha + 1e-3
    alone = RiskControlledPolicy(alpha=alpha, delta=DELTA, loss="error")
    together = RiskControlledPolicy([None] * n_policies, alpha=alpha, delta=DELTA, loss="error")
    p_values = np.array([[alone._p_value(policy) for policy in one_set] for one_set in losses])
    # A policy that passes by mistake is the cheapest, and is served.
    assert (p_values <= alone._level()).any(axis=1).mean() > 3 * DELTA
    assert (p_values <= together._level()).any(axis=1).mean() <= at_most(DELTA, n_sets)
    together.loss = "accuracy_drop"
    bets = np.array([[together._p_value(policy.astype(float)) for policy in one_set] for one_set in losses[:300]])
    assert (bets <= together._level()).any(axis=1).mean() <= at_most(DELTA, 300)


@pytest.fixture(scope="module")
def data():
    return make_exits(1200, 3, 3, 0)


class TestChoice:
    def test_is_the_last_rejection_before_the_first_that_fails(self, data):
        X, y = data
        policy = RiskControlledPolicy(alpha=0.05, random_state=0).fit(X, y)
        tested = ~np.isnan(policy.p_values_)
        n_tested = tested.sum()
        assert tested[:n_tested].all()
        assert (policy.p_values_[: n_tested - 1] <= policy.delta).all()
        assert policy.p_values_[n_tested - 1] > policy.delta
        assert policy.budget_ == policy.budgets_[n_tested - 2]
        assert (np.diff(policy.budgets_) < 0).all()
        assert policy.policy_.budget == policy.budget_

    def test_p_values_and_risks_are_those_of_the_calibration_rows(self, data):
        X, y = data
        fitted = ThresholdPolicy().fit(X[:600], y[:600])
        budgets = [0.5, 0.9, 0.7]
        policy = RiskControlledPolicy(FrozenEstimator(fitted), 0.4, loss="error", budgets=budgets).fit(X[600:], y[600:])
        assert policy.budgets_.tolist() == [0.9, 0.7, 0.5]
        for budget, risk, p_value in zip(policy.budgets_, policy.risks_, policy.p_values_, strict=True):
            n_wrong = (fitted.with_budget(budget).predict(X[600:]) != y[600:]).sum()
            assert risk == pytest.approx(n_wrong / 600)
            assert p_value == pytest.approx(binomtest(n_wrong, 600, 0.4, alternative="less").pvalue)

    def test_is_the_policy_for_that_budget(self, data):
        X, y = data
        fitted = OptimalStoppingPolicy(random_state=0).fit(X[:600], y[:600])
        policy = RiskControlledPolicy(FrozenEstimator(fitted), 0.05, random_state=0).fit(X[600:], y[600:])
        expected = fitted.with_budget(policy.budget_)
        np.testing.assert_array_equal(policy.predict_exit(X), expected.predict_exit(X))
        np.testing.assert_array_equal(policy.predict_proba(X), expected.predict_proba(X))
        np.testing.assert_array_equal(policy.exit_scores(X), expected.exit_scores(X))
        assert policy.mean_cost(X) == expected.mean_cost(X)
        assert policy.exit_distribution_ @ policy.costs_ == pytest.approx(expected.mean_cost(X[600:]))

    @pytest.mark.parametrize(
        "inner",
        [
            ThresholdPolicy("entropy", use_most_confident=True),
            EENetPolicy(random_state=0, max_epochs=2),
            EMExitAssigner(budget=0.6, random_state=0, max_epochs=2),
            JEIGatedEnsemble(budget=0.6, random_state=0, max_epochs=2),
        ],
        ids=lambda policy: type(policy).__name__,
    )
    def test_with_every_policy(self, inner, data):
        X, y = data
        policy = RiskControlledPolicy(inner, alpha=0.2, random_state=0, budgets=[1.0, 0.8, 0.6]).fit(X, y)
        fitting, testing = train_test_split(np.arange(len(X)), test_size=0.5, random_state=0)
        expected = clone(inner).fit(X[fitting], y[fitting]).with_budget(policy.budget_)
        np.testing.assert_array_equal(policy.predict(X), expected.predict(X))
        np.testing.assert_array_equal(policy.predict_at_exits(X), expected.predict_at_exits(X))
        assert policy.n_calibration_ == len(testing)

    def test_a_loss_of_ones_own(self, data):
        X, y = data

        def confused(true, answers, last):
            return (answers == 2) & (true == 0)

        policy = RiskControlledPolicy(alpha=0.2, loss=confused, random_state=0).fit(X, y)
        assert policy.risks_[0] < 0.2
        with pytest.raises(
            ValueError, match=r"loss returned an array of shape \(600,\), values 0 to 3; it must return one value"
        ):
            RiskControlledPolicy(loss=lambda true, answers, last: 3.0 * (answers != true), random_state=0).fit(X, y)
        with pytest.raises(ValueError, match=r"loss returned an array of shape \(0,\); it must return one value"):
            RiskControlledPolicy(loss=lambda true, answers, last: [], random_state=0).fit(X, y)

    def test_where_none_qualifies_all_go_to_the_last_exit(self, data):
        X, y = data
        message = (
            r"no budget qualifies, so all samples go to the last exit: at budget 1, the mean loss of 600 calibration "
            r"rows is 0\.\d+, and the p-value of an expected loss above alpha=0\.001 is 1, which is more than "
            r"delta=0\.1\. Use a larger alpha, or a policy that loses less\."
        )
        with pytest.warns(UserWarning, match=message):
            policy = RiskControlledPolicy(alpha=0.001, loss="error", random_state=0).fit(X, y)
        assert policy.budget_ is None
        assert (policy.predict_exit(X) == 2).all()
        assert np.isfinite(policy.exit_scores(X)).all()

    def test_more_rows_are_advised_only_if_the_mean_loss_is_below_alpha(self, data):
        with pytest.warns(UserWarning, match=r"Use more calibration rows, or a larger alpha or delta\.$"):
            policy = RiskControlledPolicy(alpha=0.13, loss="error", random_state=0).fit(*data)
        assert policy.risks_[0] < 0.13

    def test_more_rows_and_a_larger_alpha_are_cheaper(self):
        X, y = make_exits(8000, 3, 3, 0)
        fitted = FrozenEstimator(ThresholdPolicy().fit(X[:1000], y[:1000]))
        budgets = [
            RiskControlledPolicy(fitted, alpha, random_state=0).fit(X[1000:n_rows], y[1000:n_rows]).budget_
            for alpha, n_rows in ((0.02, 2000), (0.02, 8000), (0.1, 8000))
        ]
        assert budgets[0] > budgets[1] > budgets[2]


class ChecksFilters(ThresholdPolicy):
    """Says whether the filters of warnings, which all threads share, are those that were there before."""

    def with_budget(self, budget):
        assert warnings.filters is type(self).expected
        return super().with_budget(budget)


def tied_exits():
    """Exits whose answers are all alike, so that every budget between two costs is missed, and labels."""
    return stack_exits(np.zeros((90, 2, 3)), costs=[0.3, 1.0]), np.arange(90) % 3


def test_warnings_of_other_threads_are_not_filtered():
    X, y = tied_exits()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ChecksFilters.expected = warnings.filters
        RiskControlledPolicy(ChecksFilters(budget=1.0), alpha=0.9, loss="error").fit(X, y)
        assert caught == []
        ThresholdPolicy(budget=0.75).fit(X, y)
    assert len(caught) == 1


def test_fits_in_threads_leave_filters_and_warnings_alone():
    X, y = tied_exits()
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as threads:
        list(
            threads.map(
                lambda seed: RiskControlledPolicy(alpha=0.9, loss="error", random_state=seed).fit(X, y), range(12)
            )
        )
    assert warnings.filters == before
    with pytest.warns(UserWarning, match="tied scores"):
        ThresholdPolicy(budget=0.75).fit(X, y)


class TestSeveralPolicies:
    def test_each_is_tested_at_its_share_of_delta(self, data):
        X, y = data
        given = [ThresholdPolicy("margin"), ThresholdPolicy("entropy"), ThresholdPolicy(schedule="shared")]
        policy = RiskControlledPolicy(given, alpha=0.2, delta=0.3, loss="error", random_state=0).fit(X, y)
        assert policy.budgets_.shape == policy.p_values_.shape == policy.risks_.shape == (3, 100)
        fitting, testing = train_test_split(np.arange(len(X)), test_size=0.5, random_state=0)
        costs = []
        for inner, budgets, p_values in zip(given, policy.budgets_, policy.p_values_, strict=True):
            alone = RiskControlledPolicy(
                FrozenEstimator(clone(inner).fit(X[fitting], y[fitting])), alpha=0.2, delta=0.1, loss="error"
            ).fit(X[testing], y[testing])
            np.testing.assert_array_equal(budgets, alone.budgets_)
            np.testing.assert_allclose(p_values, alone.p_values_)
            costs.append(alone.mean_cost(X[testing]))
            if costs[-1] == min(costs):
                cheapest = alone
        assert policy.mean_cost(X[testing]) == pytest.approx(min(costs))
        assert policy.budget_ == cheapest.budget_
        np.testing.assert_array_equal(policy.predict_exit(X), cheapest.predict_exit(X))

    def test_one_in_a_list_is_as_alone(self, data):
        X, y = data
        alone = RiskControlledPolicy(ThresholdPolicy(), alpha=0.05, random_state=0).fit(X, y)
        listed = RiskControlledPolicy([ThresholdPolicy()], alpha=0.05, random_state=0).fit(X, y)
        np.testing.assert_array_equal(listed.p_values_, alone.p_values_[None])
        np.testing.assert_array_equal(listed.predict_exit(X), alone.predict_exit(X))

    def test_all_rows_test_where_all_are_frozen(self, data):
        X, y = data
        frozen = [FrozenEstimator(ThresholdPolicy(name).fit(X[:600], y[:600])) for name in ("margin", "entropy")]
        assert RiskControlledPolicy(frozen, alpha=0.1).fit(X[600:], y[600:]).n_calibration_ == 600
        mixed = RiskControlledPolicy([*frozen, ThresholdPolicy()], alpha=0.1).fit(X[600:], y[600:])
        assert mixed.n_calibration_ == 300

    def test_where_none_qualifies(self, data):
        with pytest.warns(
            UserWarning, match=r"more than delta=0.1 / 2 policies. Use a larger alpha, or a policy that loses less"
        ):
            policy = RiskControlledPolicy([ThresholdPolicy()] * 2, alpha=0.001, loss="error").fit(*data)
        assert policy.budget_ is None
        assert (policy.predict_exit(data[0]) == 2).all()

    def test_clone_json_and_joblib(self, data, tmp_path):
        X, y = data
        policy = clone(RiskControlledPolicy([ThresholdPolicy(), ThresholdPolicy("entropy")], alpha=0.1)).fit(X, y)
        joblib.dump(policy, tmp_path / "policy.joblib")
        read = policy_from_json(policy_to_json(policy.without_fit_state()))
        for again in (joblib.load(tmp_path / "policy.joblib"), read):
            np.testing.assert_array_equal(again.predict_exit(X), policy.predict_exit(X))

    @pytest.mark.parametrize(
        ("policies", "message"),
        [([], r"policy=\[\] has no policy"), ([ThresholdPolicy(), StaticExit()], r"StaticExit\(\) has no budget")],
    )
    def test_bad_lists(self, policies, message, data):
        with pytest.raises(ValueError, match=message):
            RiskControlledPolicy(policies).fit(*data)


class TestExpensiveFirstExit:
    @pytest.mark.parametrize("policy", [None, ThresholdPolicy("margin"), EENetPolicy(max_epochs=2, random_state=0)])
    @pytest.mark.parametrize("first_cost", [0.5, 0.6, 0.9])
    def test_starts_at_a_budget_that_can_be_met(self, policy, first_cost, data):
        X, y = data
        X = X.with_layout(X.layout.replace(costs=[first_cost, (1 + first_cost) / 2, 1.0]))
        controlled = RiskControlledPolicy(policy, alpha=0.5, random_state=0).fit(X, y)
        assert controlled.budgets_[0] == 1
        assert controlled.budgets_[-1] == controlled.costs_[0]
        assert controlled.budget_ == controlled.costs_[0]

    def test_with_heads(self):
        X, y = load_digits(return_X_y=True)
        layout = ExitLayout(n_logits=[0, 0], n_features=[32, 32], costs=[1005, 2000], cost_unit="MACs")
        assert RiskControlledPolicy(alpha=0.5, layout=layout, random_state=0).fit(X, y).costs_[0] > 0.5


class TestComposition:
    def test_heads_pipeline_search_and_joblib(self, data, tmp_path):
        X, y = data
        X = stack_exits([None, None, X.logits(2)], [X.features(k) for k in range(3)])
        policy = RiskControlledPolicy(
            ThresholdPolicy(heads=ExitHeads(random_state=0, cv=2)), 0.1, random_state=0, budgets=[1.0, 0.7]
        )
        within = clone(policy).fit(X, y)
        assert within.heads_ is within.policy_.heads_
        pipeline = make_pipeline(ExitHeads(random_state=0, cv=2), clone(policy).set_params(policy=None)).fit(X, y)
        assert pipeline.predict(X).shape == y.shape
        grid = {"alpha": [0.05, 0.3], "policy__criterion": ["margin", "entropy"]}
        search = GridSearchCV(policy, grid, cv=2).fit(X, y)
        assert set(search.best_params_) == {"alpha", "policy__criterion"}
        joblib.dump(within, tmp_path / "policy.joblib")
        np.testing.assert_array_equal(joblib.load(tmp_path / "policy.joblib").predict(X), within.predict(X))

    def test_calibrate_and_sets(self, data):
        X, y = data
        policy = RiskControlledPolicy(alpha=0.1, random_state=0).fit(X[:900], y[:900]).calibrate(X[900:], y[900:])
        assert policy.predict_set(X, alpha=0.1)[np.arange(len(y)), y].mean() > 0.8

    def test_names_as_classes_and_a_calibration_set_that_lacks_one(self, data):
        X, y = data
        names = np.array(["cat", "dog", "owl"])[y]
        X = stack_exits(features=[X.features(k) for k in range(3)])
        fitted = ThresholdPolicy().fit(X[:600], names[:600])
        few = np.flatnonzero(names[600:] != "owl") + 600
        policy = RiskControlledPolicy(FrozenEstimator(fitted), 0.2, random_state=0).fit(X[few], names[few])
        assert policy.classes_.tolist() == ["cat", "dog", "owl"]
        np.testing.assert_array_equal(policy.predict(X), fitted.with_budget(policy.budget_).predict(X))


class TestPipelines:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "heads", [ExitHeads(random_state=0), ExitEnsemble(ExitHeads((8,), max_epochs=3, random_state=0))]
    )
    def test_are_policies_with_heads(self, heads, tmp_path):
        X, y = make_exits(300, 3, 3, 0)
        X = stack_exits(features=[X.features(k) for k in range(3)])
        pipeline = make_exit_pipeline("passthrough", heads, ThresholdPolicy(budget=0.7))
        controlled = RiskControlledPolicy(pipeline, alpha=0.2, random_state=0).fit(X, y)
        expected = RiskControlledPolicy(ThresholdPolicy(budget=0.7, heads=heads), alpha=0.2, random_state=0).fit(X, y)
        assert controlled.budget_ == expected.budget_ is not None
        np.testing.assert_array_equal(controlled.predict_proba(X), expected.predict_proba(X))
        joblib.dump(controlled, tmp_path / "policy.joblib")
        loaded = joblib.load(tmp_path / "policy.joblib")
        np.testing.assert_array_equal(loaded.predict_exit(X), expected.predict_exit(X))
        assert pipeline[-1].heads is None

    def test_frozen(self):
        X, y = make_exits(600, 3, 3, 0)
        X = stack_exits(features=[X.features(k) for k in range(3)])
        pipeline = make_exit_pipeline(ExitHeads(random_state=0), OptimalStoppingPolicy(0.7)).fit(X[:300], y[:300])
        controlled = RiskControlledPolicy(FrozenEstimator(pipeline), alpha=0.2).fit(X[300:], y[300:])
        assert controlled.n_calibration_ == 300
        served = pipeline.with_budget(controlled.budget_)
        np.testing.assert_array_equal(controlled.predict_exit(X), served.predict_exit(X))
        np.testing.assert_array_equal(controlled.predict_proba(X), served.predict_proba(X))
        np.testing.assert_array_equal(controlled.without_fit_state().predict(X), served.predict(X))
        assert pipeline[-1].heads is pipeline[-1].heads_ is None

    @pytest.mark.parametrize("frozen", [False, True])
    def test_of_several_steps_are_refused(self, frozen):
        X, y = make_exits(100, 3, 3, 0)
        steps = [ExitTransformer(StandardScaler()), ExitHeads(random_state=0)]
        pipeline = make_exit_pipeline(*steps, ThresholdPolicy())
        policy = FrozenEstimator(pipeline.fit(X, y)) if frozen else pipeline
        with pytest.raises(ValueError, match=r"Put other steps before this estimator, in a pipeline"):
            RiskControlledPolicy(policy).fit(X, y)
        cure = make_exit_pipeline(*steps, RiskControlledPolicy(ThresholdPolicy(), alpha=0.2)).fit(X, y)
        assert cure.mean_cost(X) <= 1


class TestBadInput:
    def test_a_policy_without_budget(self, data):
        with pytest.raises(
            ValueError, match=r"policy=StaticExit\(\) has no budget to choose. Pass a policy with a `with_budget`"
        ):
            RiskControlledPolicy(StaticExit()).fit(*data)

    def test_a_frozen_policy_that_is_not_fitted(self, data):
        with pytest.raises(ValueError, match="This ThresholdPolicy instance is not fitted yet"):
            RiskControlledPolicy(FrozenEstimator(ThresholdPolicy())).fit(*data)

    def test_an_unknown_class(self, data):
        X, y = data
        X = stack_exits(features=[X.features(k) for k in range(3)])
        fitted = FrozenEstimator(ThresholdPolicy().fit(X, y))
        with pytest.raises(ValueError, match="y has the class 3, which is none of those known"):
            RiskControlledPolicy(fitted).fit(X, np.where(y == 2, 3, y))

    @pytest.mark.parametrize("budgets", [[0.5, 1.2], [0.1]])
    def test_budgets_that_cannot_be_met(self, data, budgets):
        with pytest.raises(
            ValueError, match=r"budget=1\.2 must be in|budgets=0\.1 is below the cost of the first exit"
        ):
            RiskControlledPolicy(budgets=budgets).fit(*data)

    def test_no_budgets(self, data):
        with pytest.raises(
            ValueError, match=r"budgets=\[\] has no budget; pass fractions of the network's cost, or None"
        ):
            RiskControlledPolicy(budgets=[]).fit(*data)

    @pytest.mark.parametrize(
        "parameters",
        [{"alpha": -0.1}, {"alpha": 1}, {"delta": 0.0}, {"loss": "zero_one"}, {"calibration_size": 1.0}, {"policy": 3}],
        ids=str,
    )
    def test_parameters(self, data, parameters):
        with pytest.raises(
            ValueError, match=rf"The '{next(iter(parameters))}' parameter of RiskControlledPolicy must be"
        ):
            RiskControlledPolicy(**parameters).fit(*data)
