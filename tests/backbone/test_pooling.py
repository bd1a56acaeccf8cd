from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from skexit.backbone._masks import count_tokens, fit_mask
from skexit.backbone._pooling import check_pool, pool_name, pool_output, pooled_map, prepared_pool


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


@given(
    sides=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    seed=st.integers(0, 9),
)
@example(sides=(4, 8), sizes=[3, 4], seed=0)  # a cell of 3 x 3 is no union of cells of 4 x 4
def test_grids_of_any_size(sides, sizes, seed):
    maps = np.random.default_rng(seed).normal(size=(2, 3, *sides))
    found = pool_output(torch.from_numpy(maps), [f"grid{size}" for size in sizes])
    np.testing.assert_allclose(found, np.hstack([grid(maps, size) for size in sizes]), atol=1e-12)


def test_grids_of_volumes():
    volumes = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 4, 8, 4)))
    cells = volumes.reshape(2, 3, 4, 1, 4, 2, 4, 1).mean(dim=(3, 5, 7))
    torch.testing.assert_close(pool_output(volumes, "grid4"), cells.flatten(1))


@given(
    n_channels=st.integers(1, 80),
    names=st.lists(st.sampled_from(["avg", "max", "grid2", "grid3", "grid5", "cov", "cov4"]), min_size=1, max_size=4),
    channels=st.sampled_from(["first", "last"]),
)
def test_where_the_map_is_among_the_features(n_channels, names, channels):
    maps = torch.rand(2, n_channels, 6, 7)
    output = maps.movedim(1, -1) if channels == "last" else maps
    features = pool_output(output, names, channels=channels)
    place = pooled_map(names, output.shape, channels)
    sizes = [int(name[4:]) for name in names if name.startswith("grid")]
    if not sizes:
        assert place is None
        return
    first, *shape = place
    assert shape == [n_channels, max(sizes), max(sizes)]
    found = features[:, first : first + n_channels * max(sizes) ** 2]
    torch.testing.assert_close(found, pool_output(maps, f"grid{max(sizes)}"))


def test_what_has_no_map():
    assert pooled_map("auto", (1, 5, 8, 8)) == (10, 5, 2, 2)
    for shape in ((1, 7, 32), (1, 5, 8, 8, 8), (1, 10)):
        assert pooled_map("auto", shape) is None
    assert pooled_map(lambda maps: maps.flatten(1), (1, 5, 8, 8)) is None


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


@pytest.mark.parametrize("shape", [(2, 4, 6), (1, 1, 1), (3, 5, 2), (4, 4, 4)])
def test_pools_of_volumes(shape):
    volumes = np.random.default_rng(0).normal(size=(3, 5, *shape))
    flat = volumes.reshape(3, 5, -1)
    cells = [[slice(i * n // 2, -(-(i + 1) * n // 2)) for i in range(2)] for n in shape]
    grid2 = np.stack([volumes[:, :, a, b, c].mean(axis=(2, 3, 4)) for a, b, c in product(*cells)], axis=2)
    expected = np.hstack([flat.mean(axis=2), flat.max(axis=2), grid2.reshape(3, -1)])
    np.testing.assert_allclose(pool_output(torch.from_numpy(volumes), ("avg", "max", "grid2")), expected, atol=1e-12)
    np.testing.assert_allclose(pool_output(torch.from_numpy(volumes)), expected, atol=1e-12)


@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4), seed=st.integers(0, 9), contiguous=st.booleans())
def test_channels_last_gives_what_channels_first_gives_of_the_permuted_tensor(sizes, seed, contiguous):
    last = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, *sizes)))
    first = last.movedim(-1, 1)
    first, last = (first, last) if contiguous else (first.contiguous(), first.contiguous().movedim(1, -1))
    names = {3: ("first", "last", "mean", "max"), 4: ("avg", "max", "grid2", "grid4"), 5: ("avg", "max", "grid2")}
    for pool in ("auto", names[last.ndim], *names[last.ndim]):
        features = pool_output(last, pool, channels="last")
        torch.testing.assert_close(pool_output(first, pool, channels="first"), features)
        torch.testing.assert_close(prepared_pool(pool, last.ndim, "last")(last, None), features)
        assert features.shape[1] % sizes[-1] == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_first_and_last_tokens_are_those_that_count(tokens, side):
    lengths = [6, 2, 1]
    mask = torch.tensor([[1] * length + [0] * (6 - length) for length in lengths])
    mask = mask.flip(1) if side == "left" else mask
    counted = [row[keep.bool()] for row, keep in zip(tokens, mask, strict=True)]
    expected = torch.stack([torch.cat([row[0], row[-1]]) for row in counted])
    for kind in (mask, mask.bool(), mask.float()):
        torch.testing.assert_close(pool_output(tokens, ("first", "last"), kind), expected)
        torch.testing.assert_close(pool_output(tokens.transpose(1, 2), ("first", "last"), kind, "first"), expected)
    torch.testing.assert_close(pool_output(tokens, ("first", "last")), torch.cat([tokens[:, 0], tokens[:, -1]], dim=1))


@given(n_tokens=st.integers(1, 9), n_positions=st.integers(1, 60), seed=st.integers(0, 9))
def test_a_token_counts_where_one_of_its_positions_does(n_tokens, n_positions, seed):
    n_positions = max(n_tokens, n_positions)
    mask = torch.from_numpy(np.random.default_rng(seed).integers(2, size=(3, n_positions)))
    fitted = fit_mask(mask, torch.zeros(3, n_tokens, 2))
    for j in range(n_tokens):
        share = mask[:, j * n_positions // n_tokens : -(-(j + 1) * n_positions // n_tokens)]
        assert fitted[:, j].tolist() == share.any(dim=1).tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_masks_of_samples_become_masks_of_frames(side):
    lengths, positions = torch.tensor([1600, 801, 800, 3]), torch.arange(1600)
    mask = (positions < lengths[:, None]).long()
    mask = mask.flip(1) if side == "left" else mask
    fitted = fit_mask(mask, torch.zeros(4, 80, 2))
    expected = torch.arange(80) < torch.tensor([80, 41, 40, 1])[:, None]
    assert torch.equal(fitted, expected.flip(1) if side == "left" else expected)


def test_a_network_says_how_many_tokens_a_sample_has():
    class Audio(nn.Module):
        def _get_feat_extract_output_lengths(self, lengths):
            return (lengths - 400) // 320 + 1

    lengths = torch.tensor([16000, 8000, 100])
    mask = (torch.arange(16000) < lengths[:, None]).long()
    counts = count_tokens(nn.Sequential(Audio()), mask)
    assert fit_mask(mask, torch.zeros(3, 49, 2), counts).sum(1).tolist() == [49, 24, 1]
    assert fit_mask(mask, torch.zeros(3, 100, 2), counts).sum(1).tolist() == [100, 50, 1], "of an earlier layer"
    assert count_tokens(nn.Linear(2, 2), mask) is None
    assert count_tokens(Audio(), None) is None


def test_a_mask_that_says_nothing_of_some_tokens_is_refused(tokens):
    for mask in (torch.ones(3, 5), torch.ones(2, 6), torch.ones(3, 1, 6, 6)):
        for use in (pool_output, lambda tokens, pool, mask: prepared_pool(pool, 3)(tokens, mask)):
            with pytest.raises(ValueError, match=r"attention_mask has shape .* 6 tokens .* callable as pool="):
                use(tokens, "mean", mask)
        torch.testing.assert_close(pool_output(tokens, lambda tokens: tokens[:, 0], mask), tokens[:, 0])


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
    with pytest.raises(
        ValueError, match=r"'first' does not fit feature maps.*'avg', 'max', 'grid2', 'grid4', 'grid8', 'cov'"
    ):
        pool_output(maps, ("avg", "first"))
    with pytest.raises(ValueError, match=r"'grid2' does not fit token sequences.*'first', 'mean', 'max'"):
        pool_output(tokens, "grid2")
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4, 5, 6, 7\).*callable"):
        pool_output(torch.zeros(2, 3, 4, 5, 6, 7))
    with pytest.raises(ValueError, match=r"'first' does not fit volumes.*'avg', 'max', 'grid2', 'cov'\]"):
        pool_output(torch.zeros(2, 3, 4, 4, 4), "first")
    with pytest.raises(ValueError, match=r"attention_mask has shape \(3, 5\)"):
        pool_output(tokens, "mean", torch.ones(3, 5))


def test_pools_are_checked_before_the_network_runs():
    for pool in ("auto", "avg", "last", ("max", "mean"), torch.flatten):
        check_pool(pool)
    with pytest.raises(
        ValueError,
        match=r"'median' is not one of \['avg', 'max', 'grid2', 'grid4', 'grid8', 'cov', 'first', 'mean', 'last'\]",
    ):
        check_pool(("avg", "median"))
    for name in ("grid", "grid0", "grid-2", "grid08", "grid1000", "grid2x2"):
        with pytest.raises(ValueError, match=f"'{name}' is not one of"):
            check_pool(name)
    with pytest.raises(ValueError, match="is empty"):
        check_pool(())


def test_names_of_pools():
    assert pool_name("auto") == "auto"
    assert pool_name(("avg", "max")) == "avg+max"
    assert pool_name(grid) == f"{__name__}.grid"
    assert pool_name(partial(torch.flatten, start_dim=1)) == "functools.partial"
