"""Expectation-maximisation against the paper's formulas row by row, and the routers that learn it."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import make_exits
from scipy.special import expit, logit
from sklearn.base import clone

from skexit import EMExitAssigner, ExitArray, ThresholdPolicy, stack_exits
from skexit.data._walk import correct_exits
from skexit.exceptions import RoutersUnusedWarning, UnusedParameterWarning
from skexit.policies.em._assignment import expectation, fit_exit_prior, group_patterns

FAST = {"max_epochs": 2, "router_hidden_layer_sizes": (), "random_state": 0}
ON_FEATURES = {"router_hidden_layer_sizes": (), "router_input": "features", "random_state": 0}


@pytest.fixture(scope="module")
def data():
    return make_exits(n_samples=400, n_exits=4, n_classes=3, random_state=0)


@st.composite
def patterns(draw, max_exits=6):
    """Which exits are right, costs as fractions, and weights of the rows."""
    n_exits = draw(st.integers(1, max_exits))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_rows = draw(st.integers(1, 30))
    correct = rng.uniform(size=(n_rows, n_exits)) < rng.uniform(size=n_exits)
    costs = np.cumsum(rng.uniform(0.05, 1, size=n_exits))
    return correct, costs / costs[-1], rng.uniform(0.1, 3, size=n_rows)


LAM = st.floats(-10, 30)
NOISE = st.sampled_from([1e-6, 1e-3, 0.1, 0.9])


def slow_em(correct, costs, weight, lam, noise, max_iter):
    """The paper's phase 2: r_ik ∝ π_k 1[right] exp(-λ c_k), π_k = mean_i r_ik, one row at a time."""
    n_exits = len(costs)
    prior = [1 / n_exits] * n_exits

    def e_step():
        posterior, log_likelihood = [], 0.0
        for row, mass in zip(correct, weight, strict=True):
            joint = [prior[k] * (1 if row[k] else noise) * math.exp(-lam * costs[k]) for k in range(n_exits)]
            posterior.append([value / sum(joint) for value in joint])
            log_likelihood += mass * math.log(sum(joint))
        return posterior, log_likelihood / sum(weight)

    history = []
    for _ in range(max_iter):
        posterior, log_likelihood = e_step()
        history.append(log_likelihood)
        prior = [
            sum(mass * row[k] for row, mass in zip(posterior, weight, strict=True)) / sum(weight)
            for k in range(n_exits)
        ]
    posterior, log_likelihood = e_step()
    return np.array(posterior), np.array(prior), np.array([*history, log_likelihood])


class TestAssignment:
    @given(patterns(), LAM, NOISE, st.integers(1, 12))
    def test_equals_the_formulas(self, problem, lam, noise, max_iter):
        correct, costs, weight = problem
        posterior, prior, history = slow_em(correct, costs, weight, lam, noise, max_iter)
        found_prior, found_history = fit_exit_prior(correct, weight, lam, costs, noise, max_iter)
        np.testing.assert_allclose(found_prior, prior, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(found_history, history, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(expectation(correct, prior, lam, costs, noise)[0], posterior, rtol=1e-7, atol=1e-12)

    @given(patterns(), LAM, NOISE)
    def test_posteriors_and_priors_are_distributions(self, problem, lam, noise):
        correct, costs, weight = problem
        prior, _ = fit_exit_prior(correct, weight, lam, costs, noise, 10)
        posterior, _ = expectation(correct, prior, lam, costs, noise)
        for distribution in (prior[None], posterior):
            assert distribution.min() >= 0
            np.testing.assert_allclose(distribution.sum(axis=1), 1)

    @given(patterns(), LAM, NOISE)
    def test_log_likelihood_never_falls(self, problem, lam, noise):
        correct, costs, weight = problem
        _, log_likelihood = fit_exit_prior(correct, weight, lam, costs, noise, 25)
        assert np.diff(log_likelihood).min() >= -1e-10

    @given(patterns(), NOISE, st.lists(LAM, min_size=2, max_size=6))
    def test_a_larger_price_means_earlier_exits(self, problem, noise, prices):
        correct, costs, weight = problem
        mean_costs = []
        for lam in sorted(prices):
            prior, _ = fit_exit_prior(correct, weight, lam, costs, noise, 10)
            mean_costs.append(np.average(expectation(correct, prior, lam, costs, noise)[0] @ costs, weights=weight))
        assert np.diff(mean_costs).max() <= 1e-9

    @given(patterns())
    def test_extreme_prices_give_the_outermost_exits(self, problem):
        correct, costs, weight = problem
        for lam, exit in ((4096, 0), (-4096, -1)):
            prior, log_likelihood = fit_exit_prior(correct, weight, lam, costs, 1e-3, 10)
            assert prior[exit] == pytest.approx(1)
            assert np.isfinite(log_likelihood).all()

    def test_a_row_that_no_exit_gets_right_follows_prior_and_price(self):
        prior, costs, lam = np.array([0.2, 0.3, 0.5]), np.array([0.2, 0.6, 1]), 2.0
        posterior, evidence = expectation(np.zeros((1, 3), dtype=bool), prior, lam, costs, 1e-3)
        joint = prior * np.exp(-lam * costs)
        np.testing.assert_allclose(posterior[0], joint / joint.sum())
        assert evidence[0] == pytest.approx(np.log(1e-3 * joint.sum()))


class TestGrouping:
    @pytest.mark.parametrize("n_exits", [1, 3, 9, 20, 21, 25])
    def test_rows_share_their_patterns(self, n_exits):
        rng = np.random.default_rng(0)
        correct = rng.uniform(size=(300, n_exits)) < 0.8
        weight = rng.uniform(0.1, 2, size=300)
        found, mass, index = group_patterns(correct, weight)
        np.testing.assert_array_equal(found[index], correct)
        assert len(np.unique(found, axis=0)) == len(found)
        np.testing.assert_allclose(mass, [weight[(correct == pattern).all(axis=1)].sum() for pattern in found])

    @pytest.mark.parametrize("n_exits", [4, 22])
    def test_changes_nothing(self, n_exits):
        rng = np.random.default_rng(0)
        correct = rng.uniform(size=(300, n_exits)) < np.linspace(0.3, 0.9, n_exits)
        weight = rng.uniform(0.1, 2, size=300)
        costs = np.arange(1, n_exits + 1) / n_exits
        found, mass, _ = group_patterns(correct, weight)
        for one, other in zip(
            fit_exit_prior(found, mass, 3.0, costs, 1e-3, 10),
            fit_exit_prior(correct, weight, 3.0, costs, 1e-3, 10),
            strict=True,
        ):
            np.testing.assert_allclose(one, other)


class TestFittedAssignment:
    @pytest.mark.parametrize("lam", [0.0, 1.0, 5.0])
    @pytest.mark.parametrize("noise", [1e-3, 0.2])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_attributes_follow_the_formulas(self, data, lam, noise, weighted):
        X, y = data
        weight = np.random.default_rng(0).uniform(0.5, 2, size=len(y)) if weighted else np.ones(len(y))
        policy = EMExitAssigner(lam, noise=noise, max_iter=7, **FAST).fit(
            X, y, sample_weight=weight if weighted else None
        )
        posterior, prior, history = slow_em(correct_exits(X, y), policy.costs_, weight, lam, noise, 7)
        np.testing.assert_allclose(policy.exit_prior_, prior)
        np.testing.assert_allclose(policy.log_likelihood_, history)
        np.testing.assert_allclose(policy.assignments(X, y), posterior)
        assert policy.n_iter_ == 7
        assert policy.lam_ == lam

    def test_assignments_of_new_rows(self, data):
        policy = EMExitAssigner(**FAST).fit(*data)
        new, y = make_exits(50, 4, 3, 1)
        expected, _ = expectation(correct_exits(new, y), policy.exit_prior_, policy.lam_, policy.costs_, policy.noise)
        np.testing.assert_array_equal(policy.assignments(new, y), expected)

    @pytest.mark.parametrize("budget", [0.3, 0.5, 0.8, 0.97])
    def test_mean_cost_of_the_assignments_is_the_budget(self, data, budget):
        X, y = data
        policy = EMExitAssigner(budget=budget, confidence_weight=0, **FAST).fit(X, y)
        assert (policy.assignments(X, y) @ policy.costs_).mean() == pytest.approx(budget, abs=1e-3)

    def test_a_smaller_budget_has_a_higher_price(self, data):
        policy = EMExitAssigner(budget=0.5, **FAST).fit(*data)
        prices = [policy.with_budget(budget).lam_ for budget in (0.3, 0.5, 0.7, 0.9)]
        assert (np.diff(prices) < 0).all()


class TestRouters:
    @pytest.mark.parametrize("assignment", ["soft", "hard"])
    def test_targets(self, data, assignment, monkeypatch):
        """P(z <= k), or whether the most probable exit is k or earlier."""
        X, y = data
        seen = {}
        train_routers = EMExitAssigner._train_routers

        def spy(self, X, targets, *rest):
            seen["targets"] = targets
            return train_routers(self, X, targets, *rest)

        monkeypatch.setattr(EMExitAssigner, "_train_routers", spy)
        policy = EMExitAssigner(2.0, assignment=assignment, **FAST).fit(X, y)
        posterior = policy.assignments(X, y)
        if assignment == "soft":
            expected = [[sum(row[: k + 1]) for k in range(4)] for row in posterior]
        else:
            expected = [[float(row.argmax() <= k) for k in range(4)] for row in posterior]
        np.testing.assert_allclose(seen["targets"], expected)

    def test_learn_the_assignments(self, data):
        """Routers rank the samples that were assigned to an exit before those that were not."""
        from sklearn.metrics import roc_auc_score

        X, y = make_exits(1500, 4, 3, 0)
        policy = EMExitAssigner(3.0, assignment="hard", random_state=0).fit(X, y)
        new, new_y = make_exits(1500, 4, 3, 1)
        assigned = policy.assignments(new, new_y).argmax(axis=1)
        probability = policy.exit_scores(new)
        assert min(roc_auc_score(assigned <= k, probability[:, k]) for k in range(3)) > 0.7

    @pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
    def test_without_a_budget_the_probability_is_held_against_the_threshold(self, data, threshold):
        X, y = data
        policy = EMExitAssigner(2.0, threshold=threshold, router_input="features", **FAST).fit(X, y)
        probability = [1 / (1 + np.exp(-policy.routers_[k](X.features(k))[:, 0])) for k in range(3)]
        expected = [next((k for k in range(3) if probability[k][i] >= threshold), 3) for i in range(len(X))]
        assert policy.predict_exit(X).tolist() == expected
        assert policy.confidence_weight_ == 0
        assert policy.thresholds_.tolist() == [logit(threshold)] * 3 + [-np.inf]
        np.testing.assert_allclose(expit(policy.exit_scores(X)[:, :3].T), probability, rtol=1e-3)

    @pytest.mark.parametrize(
        ("router_input", "width"), [("features", 4), ("probabilities", 3 + 3), ("both", 4 + 3 + 3)]
    )
    def test_inputs(self, data, router_input, width):
        policy = EMExitAssigner(router_input=router_input, **FAST).fit(*data)
        assert [router.weights[0].shape[0] for router in policy.routers_] == [width] * 3

    @pytest.mark.parametrize("router_hidden_layer_sizes", [(), (5,), (6, 4)])
    def test_hidden_layers(self, data, router_hidden_layer_sizes):
        policy = EMExitAssigner(**FAST | {"router_hidden_layer_sizes": router_hidden_layer_sizes}).fit(*data)
        assert [weight.shape[1] for weight in policy.routers_[0].weights] == [*router_hidden_layer_sizes, 1]

    def test_features_that_are_not_there_are_refused(self):
        X = stack_exits(np.random.default_rng(0).normal(size=(30, 3, 2)))
        y = np.arange(30) % 2
        with pytest.raises(
            ValueError, match=r"router_input='features', but exit 0 has no features\. Use router_input="
        ):
            EMExitAssigner(router_input="features", **FAST).fit(X, y)
        assert EMExitAssigner(router_input="both", **FAST).fit(X, y).routers_[0].weights[0].shape[0] == 2 + 3

    @pytest.mark.parametrize("parameters", [{"noise": 0}, {"noise": 1}, {"threshold": 2}, {"max_iter": 0}], ids=str)
    def test_parameters(self, data, parameters):
        with pytest.raises(ValueError, match=rf"The '{next(iter(parameters))}' parameter of EMExitAssigner must be"):
            EMExitAssigner(**parameters).fit(*data)


class TestBudget:
    @pytest.mark.parametrize("assignment", ["soft", "hard"])
    @pytest.mark.parametrize("confidence_weight", ["auto", 0, 2.5])
    def test_is_met_on_the_fitting_rows(self, data, assignment, confidence_weight):
        X, y = data
        policy = EMExitAssigner(budget=0.6, assignment=assignment, confidence_weight=confidence_weight, **FAST)
        policy.fit(X, y)
        for budget in (0.6, 0.3, 0.25, 0.9, 1.0):
            cost = policy.with_budget(budget).mean_cost(X)
            assert budget - 1 / len(X) - 1e-9 <= cost <= budget + 1e-9

    def test_with_budget_finds_what_fitting_finds(self, data):
        """Price, prior, assignments and quotas; only the routers are those of the first budget."""
        X, y = data
        first = EMExitAssigner(budget=0.5, confidence_weight=0, **FAST).fit(X, y)
        moved, fitted = first.with_budget(0.8), clone(first).set_params(budget=0.8).fit(X, y)
        assert moved.lam_ == fitted.lam_
        np.testing.assert_array_equal(moved.exit_prior_, fitted.exit_prior_)
        np.testing.assert_array_equal(moved.log_likelihood_, fitted.log_likelihood_)
        assert moved.routers_ is first.routers_

    def test_thresholds_of_with_budget_split_the_scores_of_the_running_samples(self, data):
        X, y = data
        policy = EMExitAssigner(budget=0.5, confidence_weight=0, **FAST).fit(X, y).with_budget(0.7)
        scores, exits = policy.exit_scores(X), policy.predict_exit(X)
        for k in range(3):
            running = exits >= k
            leaves, stays = scores[running & (exits == k), k], scores[running & (exits > k), k]
            assert leaves.min() >= policy.thresholds_[k] > stays.max()
            assert policy.thresholds_[k] == pytest.approx((leaves.min() + stays.max()) / 2)

    def test_score_is_the_weighted_product_of_router_and_confidence(self, data):
        X, y = data
        scores = {
            weight: EMExitAssigner(budget=0.5, confidence_weight=weight, **FAST).fit(X, y).exit_scores(X)
            for weight in (0, 3)
        }
        confidence = ThresholdPolicy().fit(X, y).exit_scores(X)
        ties = 1e-6 * confidence
        router = expit(scores[0] - ties)
        np.testing.assert_allclose(expit(scores[3] - ties), router * expit(confidence) ** 3)

    @pytest.mark.parametrize("weight", [0, 1, 2.5])
    def test_threshold_is_that_of_the_geometric_mean(self, data, weight):
        X, y = data
        policy = EMExitAssigner(2.0, threshold=0.6, confidence_weight=weight, **FAST).fit(X, y)
        confidence = ThresholdPolicy().fit(X, y).exit_scores(X)
        routers = EMExitAssigner(2.0, confidence_weight=0, **FAST).fit(X, y).exit_scores(X)
        mean = (expit(routers) * expit(confidence) ** weight) ** (1 / (1 + weight))
        mean[:, -1] = 1
        assert (np.abs(mean - 0.6) > 1e-5).all()  # else, the confidence that breaks ties would count
        np.testing.assert_array_equal(policy.predict_exit(X), (mean >= 0.6).argmax(axis=1))

    def test_a_budget_added_later(self, data):
        X, y = data
        policy = EMExitAssigner(2.0, **FAST).fit(X, y)
        assert policy.with_budget(0.5).mean_cost(X) == pytest.approx(0.5, abs=1 / len(X))

    @pytest.mark.slow
    @pytest.mark.parametrize("n_features", [0, 4])
    def test_default_is_no_worse_than_maximum_probability(self, n_features):
        """Mean over seeds and budgets; the standard error of the difference is about 0.002."""
        differences = []
        for seed in range(3):
            X, y = make_exits(3000, 5, 4, seed)
            new, new_y = make_exits(3000, 5, 4, 100 + seed)
            if n_features == 0:
                X, new = (stack_exits([Z.logits(k) for k in range(5)]) for Z in (X, new))
            em = EMExitAssigner(budget=0.5, random_state=seed, max_epochs=8).fit(X, y)
            confident = ThresholdPolicy(budget=0.5).fit(X, y)
            for budget in (0.35, 0.5, 0.7):
                one, other = em.with_budget(budget), confident.with_budget(budget)
                assert one.mean_cost(new) == pytest.approx(other.mean_cost(new), abs=0.03)
                differences.append(one.score(new, new_y) - other.score(new, new_y))
        assert np.mean(differences) > -0.003


def make_two_exits(n_samples, seed, *, features_tell):
    """The last of two exits is always right. Either features or the confidence tell where the first is."""
    rng = np.random.default_rng(seed)
    y, right = rng.integers(2, size=n_samples), rng.uniform(size=n_samples) < 0.5
    margin = rng.uniform(0.1, 2, size=n_samples) + 4 * (right & (not features_tell))
    first = np.where(right, 2 * y - 1, 1 - 2 * y) * margin
    logits = [np.stack([-first, first], axis=1), 5 * np.eye(2)[y]]
    features = rng.normal(size=(n_samples, 1)) + 4 * (right & features_tell)[:, None]
    return stack_exits(logits, [features, features]), y


class LogitsOnly:
    """Rows whose features must not be read."""

    def __init__(self, X):
        self.X, self.n_rows, self.dtype = X, len(X), X.dtype

    def read(self, layout, k, part, rows):
        assert part == "logits"
        return self.X.source.read(layout, k, part, rows)


@pytest.fixture(scope="module")
def told_by_confidence():
    return make_two_exits(400, 0, features_tell=False)


@pytest.fixture(scope="module")
def told_by_features():
    return make_two_exits(400, 0, features_tell=True)


class TestUnusedRouters:
    def test_where_the_confidence_tells(self, told_by_confidence):
        """It decides as ThresholdPolicy does, and says so."""
        X, y = told_by_confidence
        with pytest.warns(RoutersUnusedWarning, match=r"at budget=0\.7.* Use ThresholdPolicy") as warned:
            policy = EMExitAssigner(budget=0.7, **ON_FEATURES).fit(X, y)
        assert warned[0].filename == __file__
        assert policy.uses_routers_ is False
        assert policy.confidence_weight_ == np.inf
        for budget in (0.6, 0.7, 0.9):
            other, same = policy.with_budget(budget), ThresholdPolicy(budget=budget).fit(X, y)
            np.testing.assert_array_equal(other.thresholds_, same.thresholds_)
            np.testing.assert_array_equal(other.predict_exit(X), same.predict_exit(X))
            np.testing.assert_array_equal(other.exit_scores(X), same.exit_scores(X))

    def test_where_features_tell(self, told_by_features):
        X, y = told_by_features
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            policy = EMExitAssigner(budget=0.7, **ON_FEATURES).fit(X, y)
        assert policy.uses_routers_ is True
        assert policy.score(X, y) > ThresholdPolicy(budget=0.7).fit(X, y).score(X, y) + 0.1

    def test_neither_features_are_read_nor_routers_run(self, told_by_confidence):
        X, y = told_by_confidence
        policy = EMExitAssigner(budget=0.7, **ON_FEATURES).fit(X, y)
        expected = policy.predict_exit(X)
        policy.routers_ = [None]  # cannot be called
        logits_only = ExitArray(LogitsOnly(X), X.layout)
        np.testing.assert_array_equal(policy.predict_exit(logits_only), expected)
        for method in ("predict_proba", "exit_scores", "predict_at_exits"):
            getattr(policy, method)(logits_only)

    def test_a_copy_for_another_budget_says_what_it_uses(self, told_by_features):
        """At a budget of 1, all samples may go to the last exit, which is always right."""
        X, y = told_by_features
        logits_only = ExitArray(LogitsOnly(X), X.layout)
        policy = EMExitAssigner(budget=0.7, **ON_FEATURES).fit(X, y)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            whole = policy.with_budget(1.0)
        assert policy.uses_routers_
        with pytest.raises(AssertionError):
            policy.predict_exit(logits_only)
        assert not whole.uses_routers_
        assert (whole.predict_exit(logits_only) == 1).all()
        assert whole.with_budget(0.7).uses_routers_

    def test_nobody_is_warned_of_what_was_asked_for(self, told_by_features):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", UnusedParameterWarning)  # settings of routers
            policy = EMExitAssigner(budget=0.7, confidence_weight=np.inf, **ON_FEATURES).fit(*told_by_features)
            one_exit = EMExitAssigner(budget=1.0, **ON_FEATURES).fit(*make_exits(30, 1, 2, 0))
        assert not policy.uses_routers_
        assert not one_exit.uses_routers_
        assert not hasattr(EMExitAssigner(), "uses_routers_")


@settings(max_examples=8)
@given(seed=st.integers(0, 999), n_exits=st.integers(1, 3), n_classes=st.integers(2, 3))
def test_small_problems(seed, n_exits, n_classes):
    """Ten rows, any number of exits: fits, meets its budget, predicts known classes."""
    X, y = make_exits(10, n_exits, n_classes, seed)
    budget = 1.0 if n_exits == 1 else (1 / n_exits + 1) / 2
    policy = EMExitAssigner(budget=budget, **FAST).fit(X, y)
    assert policy.mean_cost(X) <= budget + 1e-9
    assert set(policy.predict(X)) <= set(range(n_classes))
