"""Random numbers that follow from a sample: uniform, independent between exits, the same everywhere."""

import numpy as np
import pytest
from scipy.stats import kstest, spearmanr

from skexit.policies._draws import SampleDraws

N_EXITS = 4


def draws_of(logits, seed=0):
    draws = SampleDraws.from_seed(logits.shape[1], N_EXITS, np.random.RandomState(seed))
    projected = draws.project(logits)
    return np.column_stack([draws(k, projected) for k in range(N_EXITS)])


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(0).normal(scale=3, size=(20_000, 5))


@pytest.mark.parametrize("seed", range(3))
def test_are_uniform(logits, seed):
    numbers = draws_of(logits, seed)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert min(kstest(column, "uniform").pvalue for column in numbers.T) > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_are_independent_between_exits_and_of_the_logits(logits, seed):
    numbers = draws_of(logits, seed)
    beyond_chance = 4.5 / np.sqrt(len(numbers))
    for columns in (numbers, abs(numbers - 0.5)):
        correlations = spearmanr(np.column_stack([columns, logits.max(axis=1)])).statistic
        assert abs(correlations - np.eye(N_EXITS + 1)).max() < beyond_chance


def test_a_sample_has_the_same_draws_alone_or_in_a_batch(logits):
    whole = draws_of(logits[:20])
    for row in range(20):
        np.testing.assert_allclose(draws_of(logits[row : row + 1])[0], whole[row], atol=1e-8)


def test_seeds_give_other_draws(logits):
    assert abs(np.corrcoef(draws_of(logits, 0)[:, 0], draws_of(logits, 1)[:, 0])[0, 1]) < 0.03
    np.testing.assert_array_equal(draws_of(logits, 3), draws_of(logits, 3))


def test_are_the_same_in_numpy_and_torch(logits):
    import torch

    draws = SampleDraws.from_seed(5, N_EXITS, np.random.RandomState(0))
    for k in range(N_EXITS):
        found = draws(k, draws.project(torch.as_tensor(logits)))
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), draws(k, draws.project(logits)), atol=1e-8)
