"""Only ratios of weights count, equal weights are as none, and a weight of two is a row twice where nothing is drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import CONV_HEADS, EXACT_HEADS, HEADS, POLICIES, make_exits
from sklearn.base import clone

from skexit import (
    ExitEnsemble,
    ExitHeads,
    JEIGatedEnsemble,
    RiskControlledPolicy,
    StaticExit,
    ThresholdPolicy,
    stack_exits,
)
from skexit.policies import quota_thresholds, shared_threshold
from skexit.uncertainty import fit_mixture, fit_temperature

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

TRANSFORMERS = [
    ExitHeads(random_state=0),
    ExitHeads(cascade=True, l2=0.1, temperature_scaling=True, cv=2, random_state=0),
    ExitHeads(solver="adam", max_epochs=2, random_state=0),
    *HEADS,
    *CONV_HEADS,
    ExitEnsemble(),
    ExitEnsemble(ExitHeads((4,), cascade=True, max_epochs=2, random_state=0)),
]
SCALES = [1e-6, 1e-3, 7.0, 1e6, 1 / 150, 1e-300, 1e300]


@pytest.fixture(scope="module")
def data():
    X, y = make_exits(n_samples=150, n_exits=3, n_classes=3, random_state=0)
    weight = np.random.default_rng(0).uniform(0.2, 3, len(y))
    weight[::9] = 0
    maps = [X.features(k).reshape(-1, 1, 2, 2) for k in range(3)]  # as maps where heads look for such
    return stack_exits(features=maps), y, weight


def assert_same_transformer(transformer, X, y, weight, reference_weight):
    scaled, expected = (clone(transformer) for _ in range(2))
    cross_fitted = scaled.fit_transform(X, y, sample_weight=weight)
    np.testing.assert_allclose(cross_fitted, expected.fit_transform(X, y, sample_weight=reference_weight), atol=1e-6)
    np.testing.assert_allclose(scaled.transform(X), expected.transform(X), atol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=repr)
def test_weights_of_transformers_have_no_unit(transformer, data, scale):
    X, y, weight = data
    assert_same_transformer(transformer, X, y, scale * weight, weight)


@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=repr)
def test_equal_weights_of_transformers_are_as_none(transformer, data):
    X, y, _ = data
    assert_same_transformer(transformer, X, y, np.full(len(y), 0.1), None)


@pytest.mark.parametrize("scale", [1e-6, 7.0, 1 / 150])
def test_weights_of_calls_have_no_unit(data, scale):
    X, y, weight = data
    fitted = []
    for factor in (1.0, scale):
        heads = ExitHeads((4,), solver="adam", random_state=0)
        for part in (slice(0, 80), slice(80, 150)):
            heads.partial_fit(X[part], y[part], sample_weight=factor * weight[part])
        fitted.append(np.asarray(heads.transform(X)))
    np.testing.assert_allclose(*fitted, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-300, 1e-6, 1e300])
@pytest.mark.parametrize(
    "policy", [policy for policy in POLICIES if not isinstance(policy, RiskControlledPolicy)], ids=repr
)
def test_weights_of_policies_have_no_unit(policy, scale):
    X, y = make_exits(n_samples=150, n_exits=4, n_classes=3, random_state=1)
    weight = np.random.default_rng(0).uniform(0.2, 3, len(y))
    expected, scaled = clone(policy).fit(X, y, weight), clone(policy).fit(X, y, scale * weight)
    np.testing.assert_allclose(scaled.exit_scores(X), expected.exit_scores(X), rtol=1e-6)
    np.testing.assert_allclose(scaled.thresholds_, expected.thresholds_, rtol=1e-6)
    np.testing.assert_array_equal(scaled.predict_exit(X), expected.predict_exit(X))
    np.testing.assert_allclose(scaled.exit_distribution_, expected.exit_distribution_)
    if hasattr(policy, "with_budget"):
        np.testing.assert_allclose(
            scaled.with_budget(0.8).thresholds_, expected.with_budget(0.8).thresholds_, rtol=1e-6
        )


def test_weights_of_a_path_of_prices_have_no_unit(data):
    X, y, weight = data
    policy = JEIGatedEnsemble(max_epochs=1, warm_up_epochs=1, random_state=0)
    expected, scaled = (policy.lambda_path(X, y, [0.1, 1.0], scale * weight) for scale in (1, 1e-6))
    np.testing.assert_allclose(scaled.costs, expected.costs)
    np.testing.assert_allclose(scaled.accuracies, expected.accuracies)


@settings(deadline=None)
@given(
    scale=st.sampled_from([0.1, 1e-3, 1 / 3, 1e5 / 7, 1e-9]),
    budget=st.sampled_from([0.3, 0.45, 0.5, 0.6, 0.625, 0.75, 0.9]),
    n_samples=st.integers(5, 60),
    seed=st.integers(0, 9),
)
def test_rounding_of_weights_moves_no_threshold(scale, budget, n_samples, seed):
    """Where a quota or a budget is met exactly, the last bits of a sum must not choose."""
    rng = np.random.default_rng(seed)
    scores, costs = rng.normal(size=(n_samples, 4)), np.array([0.25, 0.5, 0.75, 1.0])
    weight = rng.integers(1, 3, size=n_samples).astype(float)
    for choose in (quota_thresholds, shared_threshold):
        expected = choose(scores, costs, budget, sample_weight=weight)
        np.testing.assert_array_equal(choose(scores, costs, budget, sample_weight=scale * weight), expected)


@pytest.mark.parametrize("scale", SCALES)
def test_weights_of_temperatures_and_mixtures_have_no_unit(data, scale):
    X, y = make_exits(n_samples=100, n_exits=2, n_classes=3, random_state=0)
    weight = np.random.default_rng(0).uniform(0, 3, 100)
    assert fit_temperature(X.logits(0), y, scale * weight) == pytest.approx(fit_temperature(X.logits(0), y, weight))
    seen = np.stack([X.logits(k) for k in range(2)], axis=1)
    for mixture, expected in zip(fit_mixture(seen, y, scale * weight), fit_mixture(seen, y, weight), strict=True):
        np.testing.assert_allclose(mixture, expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1, 1e-6, 1e6])
def test_costs_and_scores_are_weighted_means(data, scale):
    X, y = make_exits(n_samples=100, n_exits=3, n_classes=3, random_state=0)
    weight = np.random.default_rng(0).uniform(0, 3, 100)
    policy = ThresholdPolicy(budget=0.7).fit(X, y)
    costs = policy.costs_[policy.predict_exit(X)]
    assert policy.mean_cost(X, scale * weight) == pytest.approx(weight @ costs / weight.sum())
    assert policy.score(X, y, scale * weight) == pytest.approx(weight @ (policy.predict(X) == y) / weight.sum())


@pytest.mark.parametrize("transformer", [ExitHeads(), ExitHeads(cascade=True), *EXACT_HEADS, ExitEnsemble()], ids=repr)
def test_a_weight_of_two_is_a_row_twice_in_transformers(transformer, data):
    F, y, _ = data
    X, _ = make_exits(n_samples=150, n_exits=3, n_classes=3, random_state=0)
    if isinstance(transformer, ExitEnsemble):
        transformer = clone(transformer)
    else:  # a deepest head that teaches is cross-fitted, for which the copies of a row count as different rows
        X, transformer = F, clone(transformer).set_params(distillation=0)
    weight = np.random.default_rng(1).integers(0, 3, len(y))
    rows = np.repeat(np.arange(len(y)), weight)
    weighted, repeated = transformer.fit(X, y, weight), clone(transformer).fit(X[rows], y[rows])
    np.testing.assert_allclose(weighted.transform(X), repeated.transform(X), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("policy", [ThresholdPolicy(budget=0.6), ThresholdPolicy("entropy"), StaticExit(1)], ids=repr)
def test_a_weight_of_two_is_a_row_twice_in_policies(policy):
    X, y = make_exits(n_samples=150, n_exits=3, n_classes=3, random_state=0)
    weight = np.random.default_rng(1).integers(1, 3, len(y))
    rows = np.repeat(np.arange(len(y)), weight)
    weighted, repeated = clone(policy).fit(X, y, weight), clone(policy).fit(X[rows], y[rows])
    np.testing.assert_allclose(weighted.thresholds_, repeated.thresholds_)
    np.testing.assert_allclose(weighted.exit_distribution_, repeated.exit_distribution_)
