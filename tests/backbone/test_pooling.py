from functools import partial

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from skexit.backbone._pooling import check_pool, pool_name, pool_output


@pytest.fixture
def maps():
    return torch.from_numpy(np.random.default_rng(0).normal(size=(3, 5, 8, 12)))


@pytest.fixture
def tokens():
    return torch.from_numpy(np.random.default_rng(1).normal(size=(3, 6, 4)))


def grid(maps, size):
    """Averages on a grid, cell by cell; neighbouring cells share a row where it does not divide."""
    n_samples, n_channels, height, width = maps.shape
    out = np.empty((n_samples, n_channels, size, size))
    for i in range(size):
        for j in range(size):
            rows = slice(i * height // size, -(-(i + 1) * height // size))
            columns = slice(j * width // size, -(-(j + 1) * width // size))
            out[:, :, i, j] = maps[:, :, rows, columns].mean(axis=(2, 3))
    return out.reshape(n_samples, -1)


@pytest.mark.parametrize("shape", [(8, 12), (7, 7), (2, 2), (1, 1), (6, 5), (3, 8)])
def test_pools_of_feature_maps(shape):
    maps = np.random.default_rng(0).normal(size=(3, 5, *shape))
    expected = {
        "avg": maps.mean(axis=(2, 3)),
        "max": maps.max(axis=(2, 3)),
        "grid2": grid(maps, 2),
        "grid4": grid(maps, 4),
    }
    for names in ("avg", "max", "grid2", "grid4", ("max", "avg"), ("grid4", "grid2", "max", "avg"), ("avg", "grid2")):
        joined = np.hstack([expected[name] for name in ([names] if isinstance(names, str) else names)])
        np.testing.assert_allclose(pool_output(torch.from_numpy(maps), names), joined, atol=1e-12)


def test_pools_of_token_sequences(tokens):
    expected = np.hstack([tokens.numpy().max(axis=1), tokens[:, 0], tokens.numpy().mean(axis=1)])
    np.testing.assert_allclose(pool_output(tokens, ("max", "first", "mean")), expected)


def test_masked_tokens_do_not_count(tokens):
    lengths = [6, 2, 1]
    mask = torch.tensor([[1] * length + [0] * (6 - length) for length in lengths])
    for name, function in (("mean", np.mean), ("max", np.max)):
        expected = [function(row[:length].numpy(), axis=0) for row, length in zip(tokens, lengths, strict=True)]
        np.testing.assert_allclose(pool_output(tokens, name, mask), expected)
        padded = tokens.masked_fill(~mask.bool().unsqueeze(2), torch.nan)
        np.testing.assert_allclose(pool_output(padded, name, mask), expected)


def test_automatic_pools(maps, tokens):
    torch.testing.assert_close(pool_output(maps), pool_output(maps, ("avg", "max", "grid2")))
    torch.testing.assert_close(pool_output(tokens), pool_output(tokens, ("first", "mean")))


@pytest.mark.parametrize("pool", ["auto", "avg", "first", ("avg", "max")])
def test_two_dimensional_outputs_are_kept(pool):
    features = torch.arange(6.0).reshape(2, 3)
    pooled = pool_output(features, pool)
    torch.testing.assert_close(pooled, features)
    features.zero_()
    assert pooled.sum() == 15, "the pooled features must not change when the network works in place"


def test_the_first_tensor_of_an_output_is_pooled(tokens):
    expected = pool_output(tokens)
    for output in ((tokens, None), [None, tokens], {"hidden": tokens}, BaseModelOutput(last_hidden_state=tokens)):
        torch.testing.assert_close(pool_output(output), expected)


def test_an_output_without_a_tensor_is_refused():
    for output in ((None,), "text", None, {}):
        with pytest.raises(ValueError, match="has no tensor"):
            pool_output(output)


def test_a_callable_pools_as_it_likes(maps):
    torch.testing.assert_close(pool_output(maps, lambda maps: maps[:, :, 0, 0]), maps[:, :, 0, 0])
    with pytest.raises(ValueError, match=r"gave shape \(3, 5, 8\).*must give \(n_samples, n_features\)"):
        pool_output(maps, lambda maps: maps[..., 0])
    with pytest.raises(ValueError, match="gave shape"):
        pool_output(maps, lambda maps: maps[:2, :, 0, 0])


@pytest.mark.parametrize(
    ("pool", "shape", "width"),
    [
        ("auto", (1, 64, 16, 16), 384),
        ("grid4", (1, 64, 16, 16), 1024),
        (("avg", "max"), (2, 3, 5, 5), 6),
        ("auto", (1, 7, 32), 64),
        ("auto", (1, 10), 10),
        (lambda maps: maps.flatten(1), (1, 2, 3, 3), 18),
    ],
)
def test_width_without_computing(pool, shape, width):
    assert pool_output(torch.empty(shape, device="meta"), pool).shape[1] == width
    assert pool_output(torch.zeros(shape), pool).shape[1] == width


def test_a_pool_that_does_not_fit_the_output_is_refused(maps, tokens):
    with pytest.raises(ValueError, match=r"'first' does not fit feature maps.*'avg', 'max', 'grid2', 'grid4'"):
        pool_output(maps, ("avg", "first"))
    with pytest.raises(ValueError, match=r"'grid2' does not fit token sequences.*'first', 'mean', 'max'"):
        pool_output(tokens, "grid2")
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4, 5, 6\).*callable"):
        pool_output(torch.zeros(2, 3, 4, 5, 6))
    with pytest.raises(ValueError, match=r"attention_mask has shape \(3, 5\)"):
        pool_output(tokens, "mean", torch.ones(3, 5))


def test_pools_are_checked_before_the_network_runs():
    for pool in ("auto", "avg", ("max", "mean"), torch.flatten):
        check_pool(pool)
    with pytest.raises(ValueError, match=r"'median' is not one of \['avg', 'max', 'grid2', 'grid4', 'first', 'mean'\]"):
        check_pool(("avg", "median"))
    with pytest.raises(ValueError, match="is empty"):
        check_pool(())


def test_names_of_pools():
    assert pool_name("auto") == "auto"
    assert pool_name(("avg", "max")) == "avg+max"
    assert pool_name(grid) == f"{__name__}.grid"
    assert pool_name(partial(torch.flatten, start_dim=1)) == "functools.partial"
