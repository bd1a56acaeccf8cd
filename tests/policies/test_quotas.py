"""Thresholds by quota keep to the budget, for any scores, costs, weights and priors."""

import warnings

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import entropy

from skexit.policies._quotas import (
    equal_thresholds,
    exits_from_scores,
    quota_thresholds,
    rewarding_threshold,
    shared_threshold,
    tilted_distribution,
)


@st.composite
def problems(draw, min_exits=2, max_exits=6, max_samples=40):
    """Costs as fractions of the last, a feasible budget, and scores without ties."""
    n_exits = draw(st.integers(min_exits, max_exits))
    n_samples = draw(st.integers(1, max_samples))
    costs = np.cumsum(draw(st.lists(st.integers(1, 50), min_size=n_exits, max_size=n_exits)))
    costs = costs / costs[-1]
    budget = costs[0] + draw(st.floats(0, 1)) * (1 - costs[0])
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = rng.permutation(n_samples * n_exits).reshape(n_samples, n_exits) / (n_samples * n_exits)
    return scores, costs, budget


@st.composite
def priors(draw, n_exits, switched_off=False):
    """Log-probabilities, with some exits but not the last switched off."""
    log_prior = np.array(draw(st.lists(st.floats(-5, 2), min_size=n_exits, max_size=n_exits)))
    if switched_off:
        used = draw(st.lists(st.booleans(), min_size=n_exits - 1, max_size=n_exits - 1))
        log_prior[~np.array([*used, True])] = -np.inf
    return log_prior


def mean_cost(scores, costs, thresholds, weight=None):
    return np.average(costs[exits_from_scores(scores, thresholds)], weights=weight)


def assert_thresholds(thresholds, n_exits):
    assert thresholds.shape == (n_exits,)
    assert thresholds[-1] == -np.inf
    assert not np.isnan(thresholds).any()


class TestBudget:
    @given(problems())
    def test_is_met_to_one_sample(self, problem):
        scores, costs, budget = problem
        thresholds = quota_thresholds(scores, costs, budget)
        assert_thresholds(thresholds, len(costs))
        assert budget - 1 / len(scores) - 1e-9 <= mean_cost(scores, costs, thresholds) <= budget + 1e-9

    @given(problems(), st.data())
    def test_is_met_with_any_prior(self, problem, data):
        scores, costs, budget = problem
        log_prior = data.draw(priors(len(costs), switched_off=True))
        assume(budget >= costs[np.isfinite(log_prior)][0])
        thresholds = quota_thresholds(scores, costs, budget, log_prior=log_prior, direction=costs)
        assert budget - 1 / len(scores) - 1e-9 <= mean_cost(scores, costs, thresholds) <= budget + 1e-9

    @given(problems(), st.integers(0, 2**32 - 1))
    def test_is_met_with_weights(self, problem, seed):
        scores, costs, budget = problem
        weight = np.random.default_rng(seed).exponential(size=len(scores)) + 1e-3
        thresholds = quota_thresholds(scores, costs, budget, sample_weight=weight)
        one_sample = weight.max() / weight.sum()
        assert budget - one_sample - 1e-9 <= mean_cost(scores, costs, thresholds, weight) <= budget + 1e-9

    @given(problems(), st.integers(1, 4))
    @pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")
    def test_is_never_exceeded_with_ties(self, problem, n_values):
        scores, costs, budget = problem
        tied = np.floor(scores * n_values)
        for thresholds in (quota_thresholds(tied, costs, budget), shared_threshold(tied, costs, budget)):
            assert_thresholds(thresholds, len(costs))
            assert mean_cost(tied, costs, thresholds) <= budget + 1e-9

    def test_a_shortfall_by_ties_is_warned_of(self):
        costs = np.array([0.5, 1.0])
        for choose in (quota_thresholds, shared_threshold):
            with pytest.warns(
                UserWarning, match=r"the mean cost on the fitting data is 0\.5000, below the budget 0\.7500"
            ):
                choose(np.zeros((8, 2)), costs, 0.75)

    @given(problems())
    def test_no_warning_without_ties(self, problem):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            quota_thresholds(*problem)

    @given(problems())
    def test_extreme_budgets_use_one_exit(self, problem):
        scores, costs, _ = problem
        assert (exits_from_scores(scores, quota_thresholds(scores, costs, costs[0])) == 0).all()
        assert (exits_from_scores(scores, quota_thresholds(scores, costs, 1.0)) == len(costs) - 1).all()

    @given(problems(min_exits=3), st.floats(0, 1))
    @pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")
    def test_ties_at_one_exit_are_made_good_by_later_ones(self, problem, share):
        """All are tied at the first exit: where they stay, the rest meets the budget."""
        scores, costs, _ = problem
        budget = costs[1] + share * (1 - costs[1])
        scores = scores.copy()
        scores[:, 0] = 0.5
        thresholds = quota_thresholds(scores, costs, budget)
        assume(thresholds[0] == np.inf)
        assert budget - 1 / len(scores) - 1e-9 <= mean_cost(scores, costs, thresholds) <= budget + 1e-9


def algorithm_1(scores, distribution):
    """EENet, Algorithm 1, with its two errata: descending order, and the break inside the quota test."""
    n_samples, n_exits = scores.shape
    exited = np.zeros(n_samples, dtype=bool)
    thresholds = np.full(n_exits, 1e8)
    for k in range(n_exits):
        count = 0
        for n in np.argsort(-scores[:, k]):
            if not exited[n]:
                if round(n_samples * distribution[k]) == 0:
                    break
                count += 1
                exited[n] = True
                if count == round(n_samples * distribution[k]):
                    thresholds[k] = scores[n, k]
                    break
    thresholds[-1] = -1e8
    return thresholds


@st.composite
def whole_quotas(draw):
    counts = draw(st.lists(st.integers(1, 12), min_size=2, max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_samples, n_exits = sum(counts), len(counts)
    scores = rng.permutation(n_samples * n_exits).reshape(n_samples, n_exits) / (n_samples * n_exits)
    costs = np.cumsum(rng.uniform(0.1, 1, size=n_exits))
    return scores, np.array(counts), costs / costs[-1]


class TestAlgorithm1:
    @given(whole_quotas())
    def test_same_exits_where_quotas_are_whole_numbers(self, problem):
        scores, counts, costs = problem
        distribution = counts / counts.sum()
        thresholds = quota_thresholds(scores, costs, distribution @ costs, log_prior=np.log(distribution))
        exits = exits_from_scores(scores, thresholds)
        np.testing.assert_array_equal(np.bincount(exits), counts)
        np.testing.assert_array_equal(exits_from_scores(scores, algorithm_1(scores, distribution)), exits)

    @given(whole_quotas(), st.integers(0, 2**32 - 1))
    def test_thresholds_lie_halfway(self, problem, seed):
        """Scores may change by almost half of their smallest distance."""
        scores, counts, costs = problem
        distribution = counts / counts.sum()
        thresholds = quota_thresholds(scores, costs, distribution @ costs, log_prior=np.log(distribution))
        change = np.random.default_rng(seed).choice([-0.49, 0.49], size=scores.shape) / scores.size
        np.testing.assert_array_equal(
            exits_from_scores(scores + change, thresholds), exits_from_scores(scores, thresholds)
        )

    def test_who_leaves(self):
        """At each exit the highest scores among those still running leave."""
        scores = np.array([[0.9, 0.1, 0], [0.8, 0.9, 0], [0.1, 0.8, 0], [0.2, 0.3, 0]])
        costs = np.array([0.25, 0.5, 1.0])
        thresholds = quota_thresholds(scores, costs, 0.5, log_prior=np.log([0.5, 0.25, 0.25]))
        assert exits_from_scores(scores, thresholds).tolist() == [0, 0, 1, 2]


class TestSwitchedOffExits:
    @given(problems(min_exits=3), st.data())
    def test_nobody_leaves_there(self, problem, data):
        scores, costs, budget = problem
        log_prior = data.draw(priors(len(costs), switched_off=True))
        thresholds = quota_thresholds(scores, costs, budget, log_prior=log_prior)
        assert (thresholds[:-1][np.isinf(log_prior[:-1])] == np.inf).all()

    @given(problems(min_exits=3), st.data())
    def test_same_as_without_the_exits(self, problem, data):
        scores, costs, budget = problem
        log_prior = data.draw(priors(len(costs), switched_off=True))
        direction = np.arange(len(costs), dtype=float)
        used = np.isfinite(log_prior)
        thresholds = quota_thresholds(scores, costs, budget, log_prior=log_prior, direction=direction)
        expected = quota_thresholds(
            scores[:, used], costs[used], budget, log_prior=log_prior[used], direction=direction[used]
        )
        np.testing.assert_allclose(thresholds[used], expected)

    def test_the_last_exit(self):
        scores = np.random.default_rng(0).uniform(size=(20, 3))
        costs = np.array([0.2, 0.6, 1.0])
        thresholds = quota_thresholds(scores, costs, 0.4, log_prior=np.array([0, 0, -np.inf]))
        assert np.bincount(exits_from_scores(scores, thresholds)).tolist() == [10, 10]


@given(problems(), st.sampled_from([lambda s: 2 * s + 1, np.exp, np.cbrt, lambda s: s**3 - 5]))
def test_monotone_rescaling_leaves_the_exits(problem, rescale):
    scores, costs, budget = problem
    expected = exits_from_scores(scores, quota_thresholds(scores, costs, budget))
    # Rounding may tie what is very close, as cubes of small numbers are.
    rescaled = rescale(scores)
    assume(len(np.unique(rescaled)) == scores.size)
    np.testing.assert_array_equal(exits_from_scores(rescaled, quota_thresholds(rescaled, costs, budget)), expected)


@given(problems(), st.integers(0, 2**32 - 1))
def test_order_of_samples_does_not_matter(problem, seed):
    scores, costs, budget = problem
    shuffled = np.random.default_rng(seed).permutation(scores)
    np.testing.assert_array_equal(quota_thresholds(shuffled, costs, budget), quota_thresholds(scores, costs, budget))


@given(problems(max_samples=12), st.integers(1, 3), st.data())
@pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")
def test_whole_weights_are_repeated_samples(problem, factor, data):
    """Repeated samples are tied, and leave together."""
    scores, costs, budget = problem
    weight = np.array(data.draw(st.lists(st.integers(1, 3), min_size=len(scores), max_size=len(scores)))) * factor
    for choose in (quota_thresholds, shared_threshold):
        repeated = choose(np.repeat(scores, weight, axis=0), costs, budget)
        np.testing.assert_allclose(choose(scores, costs, budget, sample_weight=weight.astype(float)), repeated)


@given(problems(min_exits=3), st.integers(2, 4), st.integers(0, 2**32 - 1))
@pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")
def test_samples_that_differ_by_rounding_leave_together(problem, n_copies, seed):
    scores, costs, budget = problem
    copies = np.repeat(scores, n_copies, axis=0)
    copies *= 1 + 2e-16 * np.random.default_rng(seed).integers(-2, 3, size=copies.shape)
    for choose in (quota_thresholds, shared_threshold):
        exits = exits_from_scores(copies, choose(copies, costs, budget)).reshape(-1, n_copies)
        assert (exits == exits[:, :1]).all()


def test_scores_that_differ_from_zero_by_rounding_are_tied():
    scores = np.column_stack([np.repeat([0.0, -1.0], 20), np.zeros(40)])
    scores[:20, 0] = 1e-16 * np.random.default_rng(0).normal(size=20)
    costs = np.array([0.5, 1.0])
    for choose in (quota_thresholds, shared_threshold):
        with pytest.warns(UserWarning, match="tied"):
            exits = exits_from_scores(scores, choose(scores, costs, 0.85))
        np.testing.assert_array_equal(exits, np.repeat([0, 1], 20))


def test_confident_samples_are_not_tied():
    """Probabilities near 1 lie close together, and still meet the budget."""
    rng = np.random.default_rng(0)
    scores = 1 - np.exp(-rng.uniform(20, 28, size=(2_000, 3)))
    costs = np.array([0.2, 0.5, 1.0])
    for choose in (quota_thresholds, shared_threshold):
        stops = exits_from_scores(scores, choose(scores, costs, 0.6))
        assert costs[stops].mean() == pytest.approx(0.6, abs=2e-3)


@given(problems(), st.data())
def test_rows_of_zero_weight_are_as_absent(problem, data):
    scores, costs, budget = problem
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores))))
    assume(kept.any())
    for choose in (quota_thresholds, shared_threshold):
        np.testing.assert_array_equal(
            choose(scores, costs, budget, sample_weight=kept.astype(float)), choose(scores[kept], costs, budget)
        )


class TestSharedThreshold:
    @given(problems(max_samples=12), st.integers(2, 1000))
    @pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")
    def test_is_the_best_of_all_candidates(self, problem, n_values):
        scores, costs, budget = problem
        scores = np.floor(scores * n_values) / n_values
        candidates = [np.append(np.full(len(costs) - 1, value), -np.inf) for value in [*np.unique(scores), np.inf]]
        reachable = [mean_cost(scores, costs, candidate) for candidate in candidates]
        best = max(cost for cost in [costs[0], *reachable] if cost <= budget + 1e-12)
        thresholds = shared_threshold(scores, costs, budget)
        assert mean_cost(scores, costs, thresholds) == pytest.approx(best)
        assert len(set(thresholds[:-1])) == 1


class TestRewardingThreshold:
    @given(problems(max_samples=12), st.integers(2, 1000), st.integers(0, 10**6))
    def test_is_the_best_of_all_candidates(self, problem, n_values, seed):
        scores, costs, _ = problem
        scores = np.floor(scores * n_values) / n_values
        rng = np.random.default_rng(seed)
        rewards, weight = rng.uniform(size=scores.shape), rng.uniform(0.1, 2, size=len(scores))
        rewards[:, -1] -= 1  # clearly worse, unless there are few samples
        candidates = [equal_thresholds(value, len(costs)) for value in [*np.unique(scores), np.inf]]

        def earned(thresholds):
            return rewards[np.arange(len(scores)), exits_from_scores(scores, thresholds)]

        best = max(np.average(earned(candidate), weights=weight) for candidate in candidates)
        threshold = rewarding_threshold(scores, rewards, weight)
        reached = earned(equal_thresholds(threshold, len(costs)))
        if np.isinf(threshold) and threshold > 0:
            harm = max((earned(c) - rewards[:, -1] for c in candidates), key=lambda h: np.average(h, weights=weight))
            variance = np.average(
                (harm - np.average(harm, weights=weight)) ** 2 * weight / weight.sum(), weights=weight
            )
            assert np.average(harm, weights=weight) <= 2 * np.sqrt(variance) + 1e-12
        else:
            assert np.average(reached, weights=weight) == pytest.approx(best)

    def test_chance_is_not_harm(self):
        """Exits that are equally good: the best mean is above the last's by chance, and seldom clearly so."""
        rng = np.random.default_rng(0)
        finite = 0
        for _ in range(200):
            scores, rewards = rng.uniform(size=(100, 3)), rng.integers(2, size=(100, 3)).astype(float)
            finite += np.isfinite(rewarding_threshold(scores, rewards))
        assert finite < 30


class TestTiltedDistribution:
    @given(problems(), st.data())
    def test_meets_the_budget(self, problem, data):
        _, costs, budget = problem
        log_prior = data.draw(priors(len(costs), switched_off=True))
        assume(costs[np.isfinite(log_prior)][0] <= budget)
        distribution = tilted_distribution(log_prior, costs, costs, budget)
        assert distribution.sum() == pytest.approx(1)
        assert distribution.min() >= 0
        assert (distribution[np.isinf(log_prior)] == 0).all()
        assert distribution @ costs == pytest.approx(budget, abs=1e-9)

    @given(problems(min_exits=3))
    def test_flat_prior_gives_the_geometric_distribution(self, problem):
        _, costs, budget = problem
        assume(costs[0] + 0.01 < budget < 0.99)
        distribution = tilted_distribution(np.zeros(len(costs)), np.arange(len(costs), dtype=float), costs, budget)
        ratios = distribution[1:] / distribution[:-1]
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-6)
        assert distribution @ costs == pytest.approx(budget, abs=1e-9)

    @given(problems(min_exits=3), st.data())
    def test_the_tilt_by_costs_is_nearest_to_the_prior(self, problem, data):
        """Of all distributions that meet the budget, p_k ∝ prior_k exp(t c_k) has the least KL divergence."""
        _, costs, budget = problem
        assume(costs[0] + 0.02 < budget < 0.98)
        log_prior = data.draw(priors(len(costs)))
        distribution = tilted_distribution(log_prior, costs, costs, budget)
        # A direction that changes neither the sum nor the mean cost.
        change = np.linalg.svd(np.stack([np.ones_like(costs), costs]))[2][2]
        change *= 0.1 * distribution.min() / np.abs(change).max()
        assume(distribution.min() > 1e-4)
        prior = np.exp(log_prior)
        least = entropy(distribution, prior)
        assert least <= entropy(distribution + change, prior)
        assert least <= entropy(distribution - change, prior)

    @pytest.mark.parametrize(("budget", "expected"), [(0.1, [0, 1, 0, 0]), (0.2, [0, 1, 0, 0]), (0.9, [0, 0, 1, 0])])
    def test_a_budget_outside_the_usable_exits_gives_the_nearest(self, budget, expected):
        log_prior = np.array([-np.inf, 0, 0, -np.inf])
        costs = np.array([0.1, 0.2, 0.5, 1])
        assert tilted_distribution(log_prior, costs, costs, budget).tolist() == expected


@given(problems())
def test_exits_are_the_first_that_pass(problem):
    scores, costs, _ = problem
    thresholds = np.append(np.linspace(0.9, 0.1, len(costs) - 1), -np.inf)
    expected = [next(k for k, value in enumerate(row) if value >= thresholds[k]) for row in scores]
    assert exits_from_scores(scores, thresholds).tolist() == expected
