"""Thresholds that are chosen together, for a price of compute or for a budget."""

import itertools

import joblib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from instances import make_bad_exit, make_exits
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from skexit import EENetPolicy, ExitHeads, JEIGatedEnsemble, OptimalStoppingPolicy, ThresholdPolicy, stack_exits
from skexit.policies.lagrangian import ThresholdSearch, upper_hull
from skexit.policies.lagrangian_schedule import LagrangianSchedule
from skexit.policies.quotas import exits_from_scores
from skexit.policies.randomized import RandomizedThresholds

COSTS = {2: [0.4, 1.0], 3: [0.3, 0.5, 1.0], 4: [0.2, 0.5, 0.6, 1.0]}


def make_search(seed, n_exits, n_samples=12, n_values=None, weighted=True):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(size=(n_samples, n_exits))
    if n_values:
        scores = np.round(scores * n_values) / n_values
    # The more confident, the more often right; later exits a little more often.
    rewards = (rng.uniform(size=scores.shape) < 0.2 + 0.5 * scores + 0.3 * np.arange(n_exits) / n_exits).astype(float)
    weight = rng.exponential(size=n_samples) if weighted else np.ones(n_samples)
    return ThresholdSearch(scores, rewards, np.array(COSTS[n_exits]), weight)


def all_thresholds(search):
    """Every set of thresholds that makes a difference."""
    columns = [np.append(np.unique(search.scores[:, k]), np.inf) for k in range(search.n_exits - 1)]
    return [np.append(values, -np.inf) for values in itertools.product(*columns)]


def slow_objective(search, price, thresholds):
    total = 0.0
    for row, share in enumerate(search.share):
        stop = next(k for k in range(search.n_exits) if search.scores[row, k] >= thresholds[k])
        total += share * (search.rewards[row, stop] - price * search.costs[stop])
    return total


class TestSearch:
    @given(
        seed=st.integers(0, 10**6),
        price=st.floats(0, 3),
        n_values=st.sampled_from([None, 4]),
    )
    def test_two_exits_are_searched_exactly(self, seed, price, n_values):
        search = make_search(seed, 2, n_values=n_values)
        best = max(slow_objective(search, price, thresholds) for thresholds in all_thresholds(search))
        for start in (-np.inf, 0.5, np.inf):
            found = search.best(price, np.array([start, -np.inf]))
            assert slow_objective(search, price, found) == pytest.approx(best, abs=1e-12)

    @given(seed=st.integers(0, 10**6), price=st.floats(0, 3), n_exits=st.sampled_from([3, 4]))
    def test_no_single_threshold_can_be_improved(self, seed, price, n_exits):
        search = make_search(seed, n_exits)
        rng = np.random.default_rng(seed)
        start = np.append(rng.uniform(size=n_exits - 1), -np.inf)
        found = search.best(price, start)
        reached = slow_objective(search, price, found)
        assert reached >= slow_objective(search, price, start) - 1e-12
        assert reached == pytest.approx(search.objective(price, found))
        for k in range(n_exits - 1):
            for value in [*search.scores[:, k], np.inf]:
                other = found.copy()
                other[k] = value
                assert slow_objective(search, price, other) <= reached + 1e-9

    @pytest.mark.parametrize(("n_exits", "n_samples", "mean_gap"), [(2, 30, 1e-12), (3, 14, 0.002), (4, 8, 0.001)])
    def test_the_gap_to_all_thresholds_is_small(self, n_exits, n_samples, mean_gap):
        """Objective of the path against exhaustive search, over prices and random problems.

        Measured: none with two exits; 0.0009 on average with three (95 % of 100 problems solved
        exactly, the largest gap 0.043 on 14 rows), and 0.0002 with four (98 %, 0.008 on 8 rows).
        """
        gaps = []
        for seed in range(25):
            search = make_search(seed, n_exits, n_samples=n_samples)
            path = search.path()
            everything = np.array([search.outcome(thresholds) for thresholds in all_thresholds(search)])
            for price in (0.05, 0.2, 0.5, 1.0):
                best = (everything[:, 1] - price * everything[:, 0]).max()
                gaps.append(best - (path.rewards - price * path.costs).max())
        assert min(gaps) > -1e-12
        assert np.mean(gaps) <= mean_gap

    def test_rows_with_equal_scores_leave_together(self):
        search = ThresholdSearch(
            np.array([[0.5, 0], [0.5, 0], [0.1, 0]]),
            np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]),
            np.array([0.5, 1.0]),
            np.ones(3),
        )
        # The first row gains 1.05 by leaving, the second loses 0.95.
        assert search.best(0.1, np.array([np.inf, -np.inf]))[0] == pytest.approx(0.5)
        weighted = ThresholdSearch(search.scores, search.rewards, search.costs, np.array([1.0, 5.0, 1.0]))
        assert weighted.best(0.1, np.array([-np.inf, -np.inf]))[0] == np.inf

    def test_an_exit_that_does_not_pay_is_switched_off(self):
        """The second exit is sure and wrong."""
        rng = np.random.default_rng(0)
        scores = rng.uniform(size=(300, 3))
        rewards = (rng.uniform(size=(300, 3)) < np.column_stack([scores[:, 0], np.zeros(300), np.ones(300)])).astype(
            float
        )
        search = ThresholdSearch(scores, rewards, np.array(COSTS[3]), np.ones(300))
        path = search.path()
        between = (path.costs > path.costs[0]) & (path.costs < path.costs[-1])
        assert between.sum() > 5
        assert (path.thresholds[between, 1] == np.inf).all()

    def test_a_row_of_weight_two_is_two_rows(self):
        one = make_search(3, 3, n_samples=40, weighted=False)
        twice = np.r_[np.arange(40), np.arange(10)]
        doubled = ThresholdSearch(one.scores[twice], one.rewards[twice], one.costs, np.ones(50))
        weighted = ThresholdSearch(one.scores, one.rewards, one.costs, np.r_[np.full(10, 2.0), np.ones(30)])
        for found, expected in (
            (weighted.path().costs, doubled.path().costs),
            (weighted.path().rewards, doubled.path().rewards),
        ):
            np.testing.assert_allclose(found, expected)


class TestHull:
    @given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
    def test_is_what_prices_find(self, points):
        costs, rewards = np.array(points, dtype=float).T
        hull = upper_hull(costs, rewards)
        assert (np.diff(costs[hull]) > 0).all()
        assert (np.diff(rewards[hull]) > 0).all()
        assert rewards[hull[-1]] == rewards.max()
        assert costs[hull[0]] == costs.min()
        # No point is above the lines between neighbours, and slopes fall.
        for cost, reward in points:
            if cost <= costs[hull[-1]]:
                assert reward <= np.interp(cost, costs[hull], rewards[hull]) + 1e-9
        slopes = np.diff(rewards[hull]) / np.diff(costs[hull])
        assert (np.diff(slopes) < 1e-12).all()


THRESHOLD = st.one_of(st.floats(0, 1), st.sampled_from([-np.inf, np.inf]))


class TestRandomized:
    @given(st.lists(st.tuples(THRESHOLD, THRESHOLD), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 1000))
    def test_each_sample_follows_its_own_thresholds(self, pairs, cut, seed):
        cheap, dear = (np.append(values, -np.inf) for values in zip(*pairs, strict=True))
        rng = np.random.default_rng(seed)
        scores, draws = rng.uniform(size=(50, len(cheap))), rng.uniform(size=50)
        mixed = RandomizedThresholds(cheap, dear, cut)
        shifted = np.stack([mixed.shifted(k, scores[:, k], draws) for k in range(len(cheap))], axis=1)
        found = exits_from_scores(shifted, mixed.thresholds)
        expected = np.where(draws >= cut, exits_from_scores(scores, dear), exits_from_scores(scores, cheap))
        np.testing.assert_array_equal(found, expected)

    @given(st.integers(0, 10**6), st.floats(0.01, 0.99))
    def test_the_budget_is_met_to_one_sample(self, seed, share):
        rng = np.random.default_rng(seed)
        scores, draws, weight = rng.uniform(size=(80, 3)), rng.uniform(size=80), rng.exponential(size=80)
        costs = np.array(COSTS[3])
        cheap, dear = np.array([0.3, 0.2, -np.inf]), np.array([0.8, np.inf, -np.inf])
        mean = [np.average(costs[exits_from_scores(scores, t)], weights=weight) for t in (cheap, dear)]
        budget = mean[0] + share * (mean[1] - mean[0])
        mixed = RandomizedThresholds.for_budget(cheap, dear, scores, draws, costs, weight, budget)
        stops = np.where(draws >= mixed.cut, exits_from_scores(scores, dear), exits_from_scores(scores, cheap))
        spent = np.average(costs[stops], weights=weight)
        assert budget - weight.max() / weight.sum() <= spent <= budget + 1e-9


class TestPolicy:
    @pytest.mark.parametrize("budget", [0.4, 0.6, 0.8])
    def test_beats_quotas_where_an_exit_is_bad(self, budget):
        X, y = make_bad_exit(1500, 0)
        new, labels = make_bad_exit(4000, 1)
        policy = ThresholdPolicy(schedule="lagrangian", budget=budget).fit(X, y)
        quotas = ThresholdPolicy(budget=budget).fit(X, y)
        assert policy.schedule_ == "lagrangian"
        assert policy.exit_distribution_[1] == 0
        assert policy.score(new, labels) > quotas.score(new, labels) + 0.05
        assert policy.mean_cost(X) == pytest.approx(budget, abs=1 / 1500)
        assert policy.mean_cost(new) == pytest.approx(budget, abs=0.03)

    def test_is_not_worse_than_quotas_where_there_is_nothing_to_choose(self):
        """The exits get better as they should: on other rows the path is used at a gain, or not used."""
        differences = []
        for seed in range(20):
            X, y = make_exits(400, 4, 3, seed)
            new, labels = make_exits(4000, 4, 3, 1000 + seed)
            path, quotas = (ThresholdPolicy(schedule=s, budget=0.6).fit(X, y) for s in ("lagrangian", "geometric"))
            differences.append(path.score(new, labels) - quotas.score(new, labels))
        assert np.mean(differences) > -0.002

    def test_a_path_of_chance_is_not_used(self):
        """Exits that all answer alike: whatever a path finds is chance, and about one in six looks like a gain."""
        used = 0
        for seed in range(40):
            rng = np.random.default_rng(seed)
            y = rng.integers(2, size=200)
            answers = (np.eye(2)[y] + rng.normal(size=(200, 2)))[:, None, :]
            X = stack_exits(answers * rng.uniform(1, 2, size=(200, 4, 1)))
            used += ThresholdPolicy(schedule="lagrangian", budget=0.6).fit(X, y).schedule_ == "lagrangian"
        assert used <= 14  # 40 trials at 16 %: 6.3, plus three standard errors

    @pytest.mark.parametrize("randomize", [True, False])
    def test_another_budget_is_as_if_fitted_for_it(self, randomize):
        X, y = make_bad_exit(600, 0)
        new, _ = make_bad_exit(300, 1)
        policy = ThresholdPolicy(schedule="lagrangian", randomize=randomize, budget=0.5).fit(X, y)
        for budget in (0.25, 0.45, 0.75, 1.0):
            fresh = clone(policy).set_params(budget=budget).fit(X, y)
            again = policy.with_budget(budget)
            np.testing.assert_array_equal(again.thresholds_, fresh.thresholds_)
            np.testing.assert_array_equal(again.predict_exit(new), fresh.predict_exit(new))
            np.testing.assert_array_equal(again.exit_distribution_, fresh.exit_distribution_)

    def test_without_randomizing_the_budget_is_kept(self):
        X, y = make_bad_exit(1500, 0)
        for budget in (0.3, 0.5, 0.7, 0.9):
            policy = ThresholdPolicy(schedule="lagrangian", randomize=False, budget=budget).fit(X, y)
            assert policy.schedule_ == "lagrangian"
            assert budget - 0.15 < policy.mean_cost(X) <= budget + 1e-9
            assert np.isfinite(policy.exit_scores(X)).all()

    def test_the_same_sample_always_follows_the_same_thresholds(self):
        X, y = make_bad_exit(600, 0)
        policy = ThresholdPolicy(schedule="lagrangian", budget=0.53).fit(X, y)
        exits = policy.predict_exit(X)
        for rows in (slice(0, 1), slice(100, 300), np.arange(600)[::-1]):
            np.testing.assert_array_equal(policy.predict_exit(X[rows]), exits[rows])

    def test_weights(self):
        X, y = make_bad_exit(800, 0)
        weight = np.random.default_rng(0).exponential(size=800)
        policy = ThresholdPolicy(schedule="lagrangian", budget=0.6).fit(X, y, sample_weight=weight)
        assert policy.mean_cost(X, sample_weight=weight) == pytest.approx(0.6, abs=weight.max() / weight.sum())

    def test_joblib(self, tmp_path):
        X, y = make_bad_exit(600, 0)
        policy = ThresholdPolicy(schedule="lagrangian", budget=0.53).fit(X, y)
        joblib.dump(policy, tmp_path / "policy.joblib")
        loaded = joblib.load(tmp_path / "policy.joblib")
        np.testing.assert_array_equal(loaded.predict_exit(X), policy.predict_exit(X))
        np.testing.assert_array_equal(loaded.with_budget(0.7).predict_exit(X), policy.with_budget(0.7).predict_exit(X))

    @pytest.mark.parametrize("n_samples", [2, 3, 5])
    def test_few_rows(self, n_samples):
        X, y = make_exits(n_samples, 3, 2, 0)
        assert len(ThresholdPolicy(schedule="lagrangian").fit(X, y).predict(X)) == n_samples

    def test_bad_input(self):
        X, y = make_bad_exit(50, 0)
        for parameters in ({"schedule": "greedy"}, {"randomize": 3}, {"score": "certainty"}, {"score": 3}):
            with pytest.raises(
                ValueError, match=rf"The '{next(iter(parameters))}' parameter of ThresholdPolicy must be"
            ):
                ThresholdPolicy(**parameters).fit(X, y)


class TestScoresOfPolicies:
    @pytest.mark.parametrize(
        "inner",
        [
            OptimalStoppingPolicy(0.5, random_state=0),
            EENetPolicy(0.5, random_state=0, max_epochs=2),
            JEIGatedEnsemble(budget=0.5, random_state=0, max_epochs=2),
        ],
        ids=lambda policy: type(policy).__name__,
    )
    @pytest.mark.parametrize("frozen", [False, True])
    def test_are_those_of_the_policy(self, inner, frozen):
        X, y = make_exits(300, 4, 3, 0)
        new, _ = make_exits(100, 4, 3, 1)
        fitted = clone(inner).fit(X, y)
        policy = ThresholdPolicy(FrozenEstimator(fitted) if frozen else inner, budget=0.6).fit(X, y)
        np.testing.assert_allclose(policy.exit_scores(new), fitted.exit_scores(new))
        assert policy.mean_cost(X) == pytest.approx(0.6, abs=1 / 300)
        assert (policy.policy_ is fitted) == frozen
        stops = policy.predict_exit(new)
        np.testing.assert_array_equal(stops, exits_from_scores(policy.exit_scores(new), policy.thresholds_))

    def test_with_heads(self):
        X, y = make_exits(300, 3, 3, 0)
        X = stack_exits([None, None, X.logits(2)], [X.features(k) for k in range(3)])
        policy = ThresholdPolicy(
            OptimalStoppingPolicy(random_state=0), budget=0.6, heads=ExitHeads(random_state=0)
        ).fit(X, y)
        expected = ThresholdPolicy(OptimalStoppingPolicy(random_state=0), budget=0.6)
        expected.fit(ExitHeads(random_state=0).fit_transform(X, y), y)
        np.testing.assert_allclose(policy.exit_scores(X), expected.exit_scores(policy.heads_.transform(X)))

    def test_their_parameters_can_be_set(self):
        policy = ThresholdPolicy(OptimalStoppingPolicy())
        assert policy.get_params()["score__outcome"] == "expected"
        policy.set_params(score__outcome="realised", schedule="shared")
        assert policy.get_params()["score"].outcome == "realised"

    def test_of_other_exits_are_refused(self):
        X, y = make_exits(100, 4, 3, 0)
        fitted = OptimalStoppingPolicy(random_state=0).fit(*make_exits(100, 3, 3, 0))
        with pytest.raises(
            ValueError, match=r"score is a OptimalStoppingPolicy fitted with .* Fit it on the same exits"
        ):
            ThresholdPolicy(FrozenEstimator(fitted)).fit(X, y)


def test_a_half_without_rows_leaves_quotas():
    schedule = LagrangianSchedule.fit(
        np.ones((3, 2)),
        np.ones((3, 2)),
        np.ones((3, 2), bool),
        np.zeros(3),
        np.zeros(3, bool),
        np.array([0.5, 1]),
        np.ones(3),
    )
    assert not schedule.pays(np.ones((3, 2)), 0.7)
