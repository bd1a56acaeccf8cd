from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import make_exits
from scipy.special import log_softmax
from sklearn.linear_model import PoissonRegressor
from sklearn.tree import DecisionTreeRegressor

from skexit import OptimalStoppingPolicy, ThresholdPolicy, stack_exits
from skexit.policies._evidence import exit_evidence
from skexit.policies._log_linear import fit_log_linear
from skexit.uncertainty import fit_mixture, mix

#: First beliefs in a class. Each stays as it is from one exit to the next, or becomes nearly certain.
LEVELS = np.linspace(0.5, 0.98, 13)
COSTS = np.array([0.25, 0.5, 0.75, 1.0])


def belief_walk(n_samples, moves, seed):
    """Beliefs in class 1 that are martingales, at four exits, and labels drawn from the last."""
    rng = np.random.default_rng(seed)
    beliefs = [rng.choice(LEVELS, size=n_samples)]
    for probability in moves:
        beliefs.append(_next_belief(beliefs[-1], probability, rng))
    beliefs = np.stack(beliefs, axis=1)
    labels = (rng.random(n_samples) < beliefs[:, -1]).astype(int)
    return beliefs, labels


def _next_belief(belief, probability, rng):
    """As it was, or nearly certain, with the probabilities that keep the mean."""
    moves = rng.random(len(belief)) < probability
    rises = rng.random(len(belief)) < (belief - 0.02) / 0.96
    return np.where(moves, np.where(rises, 0.98, 0.02), belief)


def best_value(price, moves):
    """Mean value of optimal stopping at a price, by dynamic programming."""
    grid = np.append(0.02, LEVELS)
    certain = np.maximum(grid, 1 - grid)
    value = certain - price * COSTS[-1]
    for cost, probability in zip(COSTS[-2::-1], moves[::-1], strict=True):
        rises = (grid - 0.02) / 0.96
        continued = (1 - probability) * value + probability * (rises * value[-1] + (1 - rises) * value[0])
        value = np.maximum(certain - price * cost, continued)
    return value[1:].mean()


def exits_of(beliefs):
    return stack_exits(np.log(np.stack([1 - beliefs, beliefs], axis=2)), costs=COSTS)


@pytest.mark.filterwarnings("ignore:the mean cost on the fitting data")  # equal beliefs leave together
@pytest.mark.parametrize("moves", [(0.5, 0.5, 0.5), (0.0, 0.0, 0.9)])  # the second needs more than one step's foresight
@pytest.mark.parametrize("outcome", ["expected", "realised"])
@pytest.mark.parametrize("budget", [0.35, 0.5, 0.7])
def test_reaches_the_value_of_dynamic_programming(moves, outcome, budget):
    fitted, y = belief_walk(20_000, moves, 0)
    X = exits_of(fitted)
    beliefs, _ = belief_walk(200_000, moves, 1)
    tree = DecisionTreeRegressor(min_samples_leaf=200, random_state=0)
    policy = OptimalStoppingPolicy(budget, estimator=tree, outcome=outcome, random_state=0).fit(X, y)
    stops = policy.predict_exit(exits_of(beliefs))
    reached = np.maximum(beliefs, 1 - beliefs)[np.arange(len(stops)), stops]
    value = (reached - policy.lam_ * COSTS[stops]).mean()
    best = best_value(policy.lam_, moves)
    assert value <= best + 0.002
    assert value >= best - 0.004


def test_beats_the_confidence_where_it_misleads():
    # Of the unsure samples, those whose exits disagree gain from going on, and the others never do.
    rng = np.random.default_rng(0)
    n_samples = 6000
    y = rng.integers(2, size=n_samples)
    hopeless = rng.random(n_samples) < 0.5
    guess = np.where(rng.random(n_samples) < 0.6, y, 1 - y)
    other = np.where(hopeless, guess, 1 - guess)
    sure = 0.4 * np.eye(2)
    logits = np.stack([sure[guess], sure[other], np.where(hopeless[:, None], sure[guess], 6 * np.eye(2)[y])], axis=1)
    X = stack_exits(logits + 1e-3 * rng.normal(size=logits.shape))
    fitted, new = np.arange(3000), np.arange(3000, 6000)
    stopping = OptimalStoppingPolicy(0.83, random_state=0).fit(X[fitted], y[fitted])
    thresholds = ThresholdPolicy(budget=0.83).fit(X[fitted], y[fitted])
    assert stopping.score(X[new], y[new]) > thresholds.score(X[new], y[new]) + 0.05


def test_other_regressors():
    X, y = make_exits(300, 3, 3, 0)
    for estimator in (PoissonRegressor(), DecisionTreeRegressor(max_depth=2)):
        # Realised gains can be negative, which a Poisson regression refuses.
        policy = OptimalStoppingPolicy(0.6, estimator=estimator, random_state=0)
        if isinstance(estimator, PoissonRegressor):
            with pytest.raises(ValueError, match="out of the valid range"):
                policy.set_params(outcome="realised").fit(X, y)
        else:
            assert policy.fit(X, y).mean_cost(X) == pytest.approx(0.6, abs=0.02)


def test_features_tell_what_logits_do_not():
    """The first exit guesses; its feature tells of which rows the second will know more."""
    rng = np.random.default_rng(0)
    y, is_easy = rng.integers(2, size=2000), rng.uniform(size=2000) < 0.5
    first = rng.normal(size=(2000, 2))
    right = np.where(is_easy | (rng.uniform(size=2000) < 0.5), y, 1 - y)
    logits = [first, 4 * np.eye(2)[right]]
    X = stack_exits(logits, [is_easy[:, None].astype(float), np.empty((2000, 0))], costs=[0.2, 1])
    accuracies = [
        OptimalStoppingPolicy(0.6, outcome="realised", use_features=use, random_state=0)
        .fit(X[:1000], y[:1000])
        .score(X[1000:], y[1000:])
        for use in (False, True)
    ]
    assert accuracies[1] > accuracies[0] + 0.05


def test_features_that_are_not_there():
    X, y = make_exits(60, 3, 3, 0)
    X = stack_exits([X.logits(k) for k in range(3)])
    with pytest.raises(ValueError, match=r"use_features=True, but no exit has features\. Set use_features=False"):
        OptimalStoppingPolicy(use_features=True).fit(X, y)


def test_price_is_that_of_the_threshold():
    X, y = make_exits(400, 3, 4, 0)
    policy = OptimalStoppingPolicy(0.6, random_state=0).fit(X, y)
    assert np.exp(-policy.thresholds_[0]) == pytest.approx(policy.lam_)
    prices = [policy.with_budget(budget).lam_ for budget in (0.4, 0.6, 0.8)]
    assert prices == sorted(prices, reverse=True)


def test_later_budgets_never_stop_a_sample_earlier():
    X, y = make_exits(400, 4, 3, 1)
    policy = OptimalStoppingPolicy(0.5, random_state=0).fit(X, y)
    stops = [policy.with_budget(budget).predict_exit(X) for budget in (0.3, 0.5, 0.7, 0.9)]
    assert all((earlier <= later).all() for earlier, later in pairwise(stops))


def overthinking(n_samples, seed):
    """Two classes and three exits: the second is best, and the last often turns what was right to wrong."""
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=n_samples)
    signs = 2 * y[:, None] - 1
    evidence = signs * [0.8, 1.6, 0.4] + rng.normal(size=(n_samples, 3))
    return stack_exits(np.stack([-evidence, evidence], axis=2), costs=[0.2, 0.6, 1]), y


@pytest.mark.parametrize("outcome", ["expected", "realised"])
def test_spends_no_more_where_later_exits_do_harm(outcome):
    X, y = overthinking(4000, 0)
    new, labels = overthinking(20_000, 1)
    policy = OptimalStoppingPolicy(outcome=outcome, random_state=0).fit(X, y)
    quotas = ThresholdPolicy().fit(X, y)
    scores = []
    for budget in (0.3, 0.4, 0.5, 0.6, 0.8, 1.0):
        stopping = policy.with_budget(budget)
        assert stopping.mean_cost(X) <= budget + 1e-9
        scores.append(stopping.score(new, labels))
        assert scores[-1] >= quotas.with_budget(budget).score(new, labels) - 0.01
    assert all(later >= earlier - 0.002 for earlier, later in pairwise(scores))
    assert scores[-1] > (new.logits(2).argmax(1) == labels).mean() + 0.1


def test_unspent_budget_is_warned_of():
    X, y = overthinking(1000, 0)
    with pytest.warns(
        UserWarning, match=r"some of the budget is left unspent: on the fitting data, spending it lowers the accuracy"
    ):
        OptimalStoppingPolicy(0.9, random_state=0).fit(X, y)


def test_log_linear_recovers_its_own_coefficients():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(20_000, 2))
    mean = np.exp(inputs @ [0.5, -0.3] - 1)
    model = fit_log_linear(inputs, mean + rng.normal(size=len(mean)), np.ones(len(mean)), 3.0)
    np.testing.assert_allclose([*model.coefficients, model.intercept], [0.5, -0.3, -1], atol=0.05)


def test_log_linear_equals_poisson_regression():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(500, 3))
    outcomes, weight = rng.poisson(np.exp(inputs[:, 0])), rng.uniform(0.5, 2, size=500)
    ours = fit_log_linear(inputs, outcomes, weight, 3.0)
    theirs = PoissonRegressor(alpha=0, max_iter=1000, tol=1e-8).fit(inputs, outcomes, sample_weight=weight)
    np.testing.assert_allclose(ours.predict(inputs), theirs.predict(inputs), rtol=0.03)


def test_log_linear_where_nothing_is_gained():
    assert (fit_log_linear(np.ones((4, 2)), np.full(4, -1.0), np.ones(4), 3.0).predict(np.ones((3, 2))) < 1e-11).all()


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), n_classes=st.integers(2, 5), n_exits=st.integers(1, 4))
def test_mixture_is_no_worse_than_any_classifier(seed, n_classes, n_exits):
    rng = np.random.default_rng(seed)
    log_probabilities = log_softmax(2 * rng.normal(size=(80, n_exits, n_classes)), axis=2)
    labels = rng.integers(n_classes, size=80)
    weight = rng.uniform(0.1, 2, size=80)
    weights, biases = fit_mixture(log_probabilities, labels, weight)

    def loss(logits):
        return -np.average(log_softmax(logits, axis=1)[np.arange(80), labels], weights=weight)

    assert (weights >= 0).all()
    mixed = loss(mix(log_probabilities, weights, biases))
    assert all(mixed <= loss(log_probabilities[:, k]) + 1e-5 for k in range(n_exits))


def test_mixture_repeats_rows_by_weight():
    rng = np.random.default_rng(0)
    log_probabilities = log_softmax(rng.normal(size=(60, 2, 3)), axis=2)
    labels = rng.integers(3, size=60)
    repeats = rng.integers(1, 4, size=60)
    weighted = fit_mixture(log_probabilities, labels, repeats.astype(float))
    repeated = fit_mixture(np.repeat(log_probabilities, repeats, axis=0), np.repeat(labels, repeats))
    for ours, theirs in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_evidence_by_hand():
    first, second = np.array([[0.7, 0.2, 0.1]]), np.array([[0.1, 0.6, 0.3]])
    memory = {}
    exit_evidence(0, np.log(first), memory)
    evidence = exit_evidence(1, np.log(second), memory)[0]
    entropy = -(second * np.log(second)).sum() / np.log(3)
    expected = [np.log(0.4), np.log(entropy), np.log(0.3), np.log(0.8), np.log(0.8), np.log(0.3), 0.6, 0.3, 0.0]
    np.testing.assert_allclose(evidence, expected)


@given(seed=st.integers(0, 999), n_exits=st.integers(2, 5), n_classes=st.sampled_from([2, 3, 40]))
def test_evidence_is_what_it_says(seed, n_exits, n_classes):
    """Row by row, at the last exit, from the probabilities of all exits."""
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(n_classes), size=(n_exits, 7))
    memory = {}
    for k in range(n_exits):
        found = exit_evidence(k, np.log(probabilities[k]), memory)
    for row in range(7):
        *earlier, last = probabilities[:, row]
        second, largest = np.sort(last)[-2:]
        predicted = last.argmax()
        chances = [
            1 - largest,
            -(last * np.log(last)).sum() / np.log(n_classes),
            second,
            1 - earlier[-1][predicted],
            1 - np.mean([of_exit[predicted] for of_exit in earlier]),
            1 - earlier[-1].max(),
        ]
        agreeing = np.mean([of_exit.argmax() == predicted for of_exit in earlier])
        expected = [*np.log(np.maximum(chances, 1e-6)), largest, largest - second, agreeing]
        np.testing.assert_allclose(found[row], expected, rtol=1e-6, atol=1e-9)


def test_bad_estimator():
    X, y = make_exits(50, 2, 2, 0)
    with pytest.raises(ValueError, match="The 'estimator' parameter of OptimalStoppingPolicy must be"):
        OptimalStoppingPolicy(estimator="ridge").fit(X, y)


@pytest.mark.parametrize("factor", [1e-3, 1 / 400, 7.0])
def test_multiplying_all_weights_changes_nothing(factor):
    X, y = make_exits(400, 3, 3, random_state=0)
    weight = np.random.default_rng(0).uniform(0.5, 2, size=400)
    policy, scaled = (OptimalStoppingPolicy(0.6, random_state=0).fit(X, y, w) for w in (weight, factor * weight))
    np.testing.assert_allclose(scaled.exit_scores(X), policy.exit_scores(X), rtol=1e-6)
    np.testing.assert_array_equal(scaled.predict_exit(X), policy.predict_exit(X))
