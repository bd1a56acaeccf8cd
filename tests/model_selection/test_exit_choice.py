"""Choosing exits: against all subsets, with useless exits, and bad input."""

from itertools import combinations

import numpy as np
import pytest
from caches import LAYOUT, write_cache
from hypothesis import given
from hypothesis import strategies as st
from rows import make_rows
from sklearn.model_selection import KFold
from sklearn.utils._param_validation import InvalidParameterError

from skexit import ExitHeads, ExitLayout, FeatureCache, ThresholdPolicy, stack_exits
from skexit.cache import CacheWriter
from skexit.model_selection import ExitChoice, choose_exits
from skexit.model_selection._subset_search import best_subsets
from skexit.runtime import ExitLatency

FOLDS = KFold(3, shuffle=True, random_state=0)


def rows_with_noise(noisy, n=900, seed=0, n_exits=5, **options):
    """Exits that grow better, of which some see noise alone."""
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    hardness = rng.exponential(size=(n, 1))
    scales = [0 if k in noisy else 1 + k for k in range(n_exits)]
    logits = [scale * np.eye(3)[y] + (0.3 + hardness) * rng.normal(size=(n, 3)) for scale in scales]
    return stack_exits(logits, **options), y


def accuracies_by_policy(X, y, exits, budget, folds):
    """Accuracies of a policy that knows no other exits, fold by fold."""
    X = X.select_exits(exits)
    policies = [ThresholdPolicy(budget=budget).fit(X[train], y[train]) for train, _ in folds]
    return np.array([policy.score(X[test], y[test]) for policy, (_, test) in zip(policies, folds, strict=True)])


class TestAgainstAllSubsets:
    @pytest.mark.parametrize("budget", [0.45, 0.6, 0.8])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_table(self, budget, seed):
        X, y = rows_with_noise([], seed=seed, n=400)
        folds = list(FOLDS.split(y, y))
        choice = choose_exits(X, y, budget=budget, cv=FOLDS)
        for n_exits, row in choice.table.iterrows():
            subsets = [(*early, 4) for early in combinations(range(4), n_exits - 1)]
            feasible = [exits for exits in subsets if X.layout.cost_fractions[exits[0]] <= budget]
            if not feasible:
                assert np.isnan(row["accuracy"])
                assert row["exits"] == (4,)
                continue
            accuracies = {exits: accuracies_by_policy(X, y, exits, budget, folds) for exits in feasible}
            best = max(values.mean() for values in accuracies.values())
            assert row["accuracy"] == pytest.approx(best)
            own = accuracies[row["exits"]]
            assert row["accuracy"] == pytest.approx(own.mean())
            assert row["standard_error"] == pytest.approx(own.std(ddof=1) / np.sqrt(3))

    @given(st.integers(0, 10_000), st.integers(2, 6))
    def test_floating_search_is_exact_where_gains_add_up(self, seed, n_candidates):
        gains = np.random.default_rng(seed).normal(size=n_candidates)
        found = best_subsets(
            lambda subset: gains[list(subset)].sum(), range(n_candidates - 1), n_candidates - 1, n_candidates
        )
        assert list(found) == list(range(1, n_candidates + 1))
        for size, subset in found.items():
            others = np.sort(gains[:-1])[::-1][: size - 1]
            assert gains[list(subset)].sum() == pytest.approx(others.sum() + gains[-1])

    def test_floating_search_takes_back(self):
        """Zero is the best alone, one and two together; so zero is left out again."""
        worth = {(0, 3): 3, (1, 3): 2, (2, 3): 1, (0, 1, 3): 4, (0, 2, 3): 3, (1, 2, 3): 9, (0, 1, 2, 3): 8, (3,): 0}
        found = best_subsets(worth.__getitem__, range(3), 3, 4)
        assert found == {1: (3,), 2: (0, 3), 3: (1, 2, 3), 4: (0, 1, 2, 3)}


class TestChoice:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("noisy", [(1,), (0, 2)])
    def test_noise_is_not_chosen(self, noisy, seed):
        X, y = rows_with_noise(noisy, seed=seed)
        for n_exits in (None, 5 - len(noisy)):
            choice = choose_exits(X, y, n_exits, budget=0.7, random_state=0)
            assert not set(choice.exits) & set(noisy)
            assert choice.exits[-1] == 4

    def test_number_and_order(self):
        X, y = make_rows()
        for n_exits in (2, 3, 4):
            choice = choose_exits(X, y, n_exits, random_state=0)
            assert len(choice.exits) == n_exits
            assert (np.diff(choice.exits) > 0).all()
            assert choice.table.index.tolist() == list(range(1, n_exits + 1))
            assert choice.table.loc[n_exits, "exits"] == tuple(choice.exits)

    def test_one_standard_error(self):
        X, y = rows_with_noise([], n=300)
        choice = choose_exits(X, y, budget=0.6, random_state=0)
        table = choice.table.dropna()
        best = table.loc[table["accuracy"].idxmax()]
        fewest = table.index[table["accuracy"] >= best["accuracy"] - best["standard_error"]].min()
        assert tuple(choice.exits) == table.loc[fewest, "exits"]

    def test_whole_budget_needs_one_exit(self):
        """Heads cost nothing here, and the last exit is by far the best."""
        X, y = make_rows()
        assert choose_exits(X, y, n_exits=1, budget=1.0, random_state=0).exits.tolist() == [3]

    def test_random_state(self):
        X, y = rows_with_noise([1], n=300)
        one, other = (choose_exits(X, y, random_state=3) for _ in range(2))
        assert one.exits.tolist() == other.exits.tolist()
        assert one.table.equals(other.table)
        assert not one.table.equals(choose_exits(X, y, random_state=4).table)

    def test_rows_without_a_label_are_left_out(self):
        X, y = make_rows(300)
        labelled = np.arange(300) % 3 > 0
        one = choose_exits(X, np.where(labelled, y, -1), random_state=0)
        assert one.table.equals(choose_exits(X[labelled], y[labelled], random_state=0).table)

    def test_groups_stay_together(self):
        """Copies of a row in other folds would make a head that knows its rows look good."""
        rng = np.random.default_rng(0)
        y = np.repeat(rng.integers(2, size=60), 4)
        features = np.repeat(rng.normal(size=(60, 80)), 4, axis=0)
        X = stack_exits([None, 9 * np.eye(2)[y]], [features, features])
        heads = ExitHeads(distillation=0, random_state=0)
        parted = choose_exits(X, y, budget=0.6, heads=heads, random_state=0)
        together = choose_exits(X, y, budget=0.6, heads=heads, random_state=0, groups=np.arange(240) // 4)
        assert together.table.loc[2, "accuracy"] < parted.table.loc[2, "accuracy"] - 0.1


class TestCosts:
    def test_heads_that_are_left_out_cost_nothing(self):
        X, y = rows_with_noise([], n_exits=3)
        X = stack_exits(features=[X.logits(k) for k in range(3)], costs=[1e3, 2e3, 4e3], cost_unit="MACs")
        with_logits = ExitHeads(random_state=0).fit_transform(X, y)
        alone = ExitHeads(random_state=0).fit_transform(X.select_exits([0, 2]), y)
        np.testing.assert_allclose(with_logits.select_exits([0, 2]).layout.costs, alone.layout.costs)
        np.testing.assert_allclose(with_logits.select_exits([0, 2]).layout.head_costs, alone.layout.head_costs)

    def test_decisions_that_take_long_are_chosen_less(self):
        """Times that were measured count where they are the costs of the layout."""
        X, y = rows_with_noise([])
        stages, quick = np.full((1, 5), 2.0), np.full((1, 5), 0.01)
        slow = np.array([[0.01, 0.01, 0.01, 1.9, 0.01]])
        chosen = []
        for decisions in (quick, slow):
            latency = ExitLatency(np.array([1]), stages, decisions, 0 * stages, 0 * stages, np.array([10.0]))
            X_ms = X.with_layout(latency.layout(X.layout, batch_size=1))
            chosen.append(choose_exits(X_ms, y, n_exits=3, budget=0.7, random_state=0))
        assert 3 in chosen[0].exits
        assert 3 not in chosen[1].exits


class TestNames:
    def test_of_a_cache(self, tmp_path):
        X, y = make_rows(60)
        names = ["layer1", "layer2", "layer3", "layer4"]
        with CacheWriter(tmp_path, ExitLayout([3] * 4, exit_names=names), origin={"model": "a"}) as writer:
            writer.append([X.logits(k) for k in range(4)], [None] * 4)
        cache = FeatureCache(tmp_path)
        assert cache.exit_names == cache.X[10:].exit_names == names
        assert cache.X.select_exits([0, 2]).exit_names == ["layer1", "layer3"]
        choice = choose_exits(cache.X, y, 2, random_state=0)
        assert isinstance(choice, ExitChoice)
        assert choice.names == [names[k] for k in choice.exits]

    def test_unknown(self, tmp_path):
        X, y = make_rows(60)
        assert choose_exits(X, y, 2, random_state=0).names is None
        assert write_cache(tmp_path, layout=LAYOUT.replace(exit_names=None)).exit_names is None


class TestErrors:
    @pytest.mark.parametrize("n_exits", [0, 5, 2.0, "all"])
    def test_number(self, n_exits):
        X, y = make_rows(60)
        with pytest.raises(ValueError, match=rf"n_exits={n_exits!r} must be from 1 to 4"):
            choose_exits(X, y, n_exits)

    def test_one_exit_that_is_too_expensive(self):
        X, y = make_rows(60)
        with pytest.raises(ValueError, match=r"n_exits=1 is the last exit alone, which costs 1 .* Choose 2 exits"):
            choose_exits(X, y, 1)
        assert len(choose_exits(X, y, 2, cv=2, random_state=0).exits) == 2

    def test_budget(self):
        X, y = make_rows(60)
        with pytest.raises(ValueError, match=r"budget=0.1 is below the cost of the first exit, 0.2 .*Raise it to 0.2"):
            choose_exits(X, y, budget=0.1)
        assert choose_exits(X, y, budget=0.2, cv=2, random_state=0).exits[0] == 0

    @pytest.mark.parametrize("heads", ["auto", 3])
    def test_heads(self, heads):
        X, y = make_rows(60)
        with pytest.raises(InvalidParameterError, match="The 'heads' parameter"):
            choose_exits(X, y, heads=heads)
