"""The oracle bounds every policy; one exit for all; chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from instances import make_exits
from scipy.stats import chisquare

from skexit import ExitLayout, RandomExit, StaticExit, ThresholdPolicy, oracle, stack_exits


@pytest.fixture(scope="module")
def data():
    return make_exits(n_samples=400, n_exits=4, n_classes=3, random_state=0)


def slow_oracle(X, y):
    exits, right = [], 0
    for row, label in enumerate(y):
        exit = 0
        for k in range(X.layout.n_exits):
            if X.logits(k, [row])[0].argmax() == label:
                exit, right = k, right + 1
                break
        exits.append(exit)
    return exits, right / len(y), np.mean([X.layout.costs[k] / X.layout.costs[-1] for k in exits])


class TestOracle:
    @given(seed=st.integers(0, 999), n_exits=st.integers(1, 5), n_classes=st.integers(2, 4))
    def test_brute_force(self, seed, n_exits, n_classes):
        X, y = make_exits(15, n_exits, n_classes, seed)
        found, (exits, accuracy, mean_cost) = oracle(X, y), slow_oracle(X, y)
        assert found.exits.tolist() == exits
        assert found.accuracy == pytest.approx(accuracy)
        assert found.mean_cost == pytest.approx(mean_cost)

    @pytest.mark.parametrize("seed", range(3))
    def test_bounds_every_policy(self, seed):
        X, y = make_exits(300, 4, 3, seed)
        best = oracle(X, y)
        policies = [StaticExit(k) for k in range(4)]
        policies += [ThresholdPolicy(budget=budget) for budget in (0.3, best.mean_cost, 0.9)]
        policies += [RandomExit(random_state=seed)]
        for policy in policies:
            policy.fit(X, y)
            assert policy.score(X, y) <= best.accuracy
            # Where some exit is right, the oracle takes the first: who is right there spends no less.
            right = policy.predict(X) == y
            assert (policy.predict_exit(X)[right] >= best.exits[right]).all()

    def test_labels_by_name(self):
        logits = np.array([[[2.0, 0], [0, 1]], [[0, 1], [0, 1]], [[1, 0], [2, 0]]])
        X = stack_exits(logits, classes=["yes", "no"], costs=[1, 4])
        found = oracle(X, ["no", "no", "no"])
        assert found.exits.tolist() == [1, 0, 0]
        assert found.accuracy == pytest.approx(2 / 3)
        assert found.mean_cost == pytest.approx((1 + 0.25 + 0.25) / 3)

    def test_plain_arrays_with_a_layout(self, data):
        X, y = data
        assert oracle(np.asarray(X), y, layout=X.layout).accuracy == oracle(X, y).accuracy

    def test_an_exit_without_logits_is_refused(self):
        X = stack_exits([None, np.zeros((2, 2))], [np.zeros((2, 1)), None])
        with pytest.raises(ValueError, match=r"exit 0 has no logits; add them with ExitHeads\(\)\.fit_transform"):
            oracle(X, [0, 1])

    def test_an_unknown_class_is_refused(self, data):
        X, _ = data
        layout = X.layout.replace(classes=["a", "b", "c"])
        with pytest.raises(ValueError, match=r"y has the class 'd', which is none of those known, \['a', 'b', 'c'\]"):
            oracle(np.asarray(X), ["d"] * len(X), layout=layout)


class TestStaticExit:
    @pytest.mark.parametrize("exit", [-4, -1, 0, 2, 3])
    def test_everybody_stops_there(self, data, exit):
        X, y = data
        policy = StaticExit(exit).fit(X, y)
        assert (policy.predict_exit(X) == exit % 4).all()
        np.testing.assert_array_equal(policy.predict(X), X.logits(exit % 4).argmax(axis=1))
        assert policy.mean_cost(X) == X.layout.cost_fractions[exit]
        np.testing.assert_array_equal(policy.exit_distribution_, np.eye(4)[exit])

    @pytest.mark.parametrize("exit", [-5, 4])
    def test_an_exit_that_does_not_exist_is_refused(self, data, exit):
        with pytest.raises(ValueError, match=rf"exit={exit} does not exist: X has 4 exits. Give a number from 0 to 3"):
            StaticExit(exit).fit(*data)


class TestRandomExit:
    @pytest.mark.parametrize("n_exits", [1, 2, 5])
    def test_uniform_by_default(self, n_exits):
        """Chi-square over new rows and several seeds; the test would fail by chance once in a million runs."""
        counts = np.zeros(n_exits)
        for seed in range(10):
            X, y = make_exits(500, n_exits, 3, seed)
            policy = RandomExit(random_state=seed).fit(X, y)
            counts += np.bincount(policy.predict_exit(make_exits(500, n_exits, 3, 100 + seed)[0]), minlength=n_exits)
        assert n_exits == 1 or chisquare(counts).pvalue > 1e-6

    def test_draws_of_a_sample_are_independent(self, data):
        scores = np.concatenate([RandomExit(random_state=seed).fit(*data).exit_scores(data[0]) for seed in range(20)])
        correlation = np.corrcoef(scores.T)[np.triu_indices(4, 1)]
        # Standard error 1 / sqrt(8000).
        assert np.abs(correlation).max() < 5 / np.sqrt(len(scores))

    def test_draws_do_not_tell_the_class(self, data):
        X, y = make_exits(4000, 2, 3, 1)
        exits = RandomExit(random_state=0).fit(X, y).predict_exit(X)
        table = np.array([np.bincount(exits[y == label], minlength=2) for label in range(3)])
        expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / len(y)
        assert ((table - expected) ** 2 / expected).sum() < 30

    def test_seeds_differ(self, data):
        X, y = data
        exits = [RandomExit(random_state=seed).fit(X, y).predict_exit(X) for seed in (0, 1)]
        # Two independent uniform draws from four exits agree in a quarter of the rows.
        assert np.mean(exits[0] == exits[1]) == pytest.approx(0.25, abs=0.12)

    @pytest.mark.parametrize("budget", [0.25, 0.4, 0.7, 1.0])
    def test_meets_its_budget(self, data, budget):
        X, y = data
        policy = RandomExit(budget=budget, random_state=0).fit(X, y)
        assert budget - 1 / len(X) <= policy.mean_cost(X) <= budget + 1e-9

    def test_meets_its_budget_on_new_rows_with_other_costs(self):
        X, y = make_exits(3000, 4, 3, 0)
        layout = ExitLayout(X.layout.n_logits, X.layout.n_features, costs=[1, 2, 5, 20], cost_unit="ms")
        policy = RandomExit(budget=0.3, random_state=0, layout=layout).fit(X, y)
        new = make_exits(3000, 4, 3, 1)[0]
        # Two standard deviations of about 0.35, each over 3000 rows.
        assert policy.mean_cost(new) == pytest.approx(0.3, abs=5 * 0.35 * np.sqrt(2 / 3000))
        ratios = policy.exit_distribution_[1:] / policy.exit_distribution_[:-1]
        np.testing.assert_allclose(ratios, ratios[0], rtol=0.05)
