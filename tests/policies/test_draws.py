"""Random numbers that follow from a sample: uniform, independent between exits, the same everywhere."""

import numpy as np
import pytest
import torch
from instances import make_exits
from scipy.stats import kstest, spearmanr

from skexit import JEIGatedEnsemble, RandomExit, stack_exits
from skexit.policies._draws import SampleDraws

N_EXITS, N_ROWS = 4, 20_000


def make_logits(kind):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(N_ROWS, 5))
    return {
        "normal": 3 * noise,
        "with outliers": noise / rng.uniform(1e-3, 1, size=(N_ROWS, 1)),
        "in groups": 15 * np.eye(5)[rng.integers(5, size=N_ROWS)] + noise,
        "on a line": 4 * noise[:, :1] * [1, -1],
        "far from zero": 100 + noise,
        "huge": 1e300 * noise,
    }[kind]


KINDS = ["normal", "with outliers", "in groups", "on a line", "far from zero", "huge"]


def fit_draws(logits, seed=0, weight=None):
    X = stack_exits(np.stack([logits] * N_EXITS, axis=1))
    return SampleDraws.fit(X, np.ones(len(X)) if weight is None else weight, np.random.RandomState(seed))


@pytest.fixture(scope="module")
def logits():
    return make_logits("normal")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_are_uniform(kind, seed):
    """On the fitting rows and on others."""
    logits = make_logits(kind)
    draws = fit_draws(logits[::2], seed)
    for rows in (logits[::2], logits[1::2]):
        numbers = draws(rows)
        assert numbers.min() >= 0
        assert numbers.max() <= 1
        assert min(kstest(column, "uniform").pvalue for column in numbers.T) > 1e-3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_are_independent_between_exits_and_of_the_logits(kind, seed):
    logits = make_logits(kind)
    numbers = fit_draws(logits, seed)(logits)
    beyond_chance = 4.5 / np.sqrt(len(numbers))
    for columns in (numbers, abs(numbers - 0.5)):
        correlations = spearmanr(np.column_stack([columns, logits.max(axis=1)])).statistic
        assert abs(correlations - np.eye(N_EXITS + 1)).max() < beyond_chance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_change_by_few_times_what_the_logits_do(kind, seed):
    logits = make_logits(kind)
    draws = fit_draws(logits, seed)
    change = 1 + 1e-6 * np.random.default_rng(seed).uniform(-1, 1, size=logits.shape)
    size = np.mean(abs(logits - np.median(logits, axis=0))) / np.mean(abs(logits))
    assert np.mean(abs(draws(logits * change) - draws(logits))) < 1e-4 / size


def test_logits_that_differ_by_rounding_only_share_their_draws():
    """An exit that is dead, or says the same of all samples."""
    noise = 1e-7 * np.random.default_rng(0).normal(size=(500, 3))
    for logits in (np.zeros((500, 3)), [7.0, -1.0, 2.0] * (1 + noise), 5.0 * (1 + noise)):
        numbers = fit_draws(logits)(logits)
        assert np.ptp(numbers, axis=0).max() < 0.1


def test_weights_count():
    """Rows that weigh nothing are as absent, and those that weigh twice as repeated."""
    logits = np.concatenate([make_logits("normal")[:100], 50 * make_logits("in groups")[:50]])
    weight = np.repeat([1.0, 2.0, 0.0], 50)
    expected = fit_draws(np.repeat(logits, weight.astype(int), axis=0))
    for found in (fit_draws(logits, weight=weight), fit_draws(logits[::-1], weight=3 * weight[::-1])):
        np.testing.assert_array_equal(found.projections, expected.projections)


def test_a_sample_has_the_same_draws_alone_or_in_a_batch(logits):
    draws = fit_draws(logits)
    whole = draws(logits[:20])
    for row in range(20):
        np.testing.assert_allclose(draws(logits[row : row + 1])[0], whole[row], atol=1e-12)


def test_seeds_give_other_draws(logits):
    first, second, again = (fit_draws(logits, seed)(logits) for seed in (0, 1, 0))
    assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 0.03
    np.testing.assert_array_equal(first, again)


def test_are_the_same_in_numpy_and_torch(logits):
    draws = fit_draws(logits)
    found = draws(torch.as_tensor(logits))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), draws(logits), atol=1e-12)


@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize(
    "policy",
    [RandomExit, lambda random_state: JEIGatedEnsemble(decision="sampled", random_state=random_state)],
    ids=["random", "sampled"],
)
def test_samples_leave_where_they_did_with_other_rounding(policy, n_classes):
    """As another processor or another batch gives it: one part in a million of each logit."""
    X, y = make_exits(7000, N_EXITS, n_classes, 0)
    logits = np.stack([X.logits(k) for k in range(N_EXITS)], axis=1)
    new = logits[2000:]
    moved, rng = [], np.random.default_rng(0)
    for seed in range(10):
        fitted = policy(random_state=seed).fit(stack_exits(logits[:2000]), y[:2000])
        expected = fitted.predict_exit(stack_exits(new))
        for rounded in (new.astype(np.float32), new * (1 + 1e-6 * rng.uniform(-1, 1, size=new.shape))):
            moved.append(np.mean(fitted.predict_exit(stack_exits(rounded)) != expected))
    assert max(moved) < 1e-3
    assert np.mean(moved) < 1e-4
