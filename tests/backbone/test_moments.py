"""Second moments of channels, compared with NumPy, from the pooling to the live network and the ONNX file."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from skexit import ExitHeads, ThresholdPolicy
from skexit.backbone import exit_costs
from skexit.backbone._pooling import check_pool, pool_output, prepared_pool
from skexit.extraction import ExitExtractor
from skexit.pipeline import make_exit_pipeline
from skexit.runtime import EarlyExitModel, OnnxEarlyExit, export_onnx

EXITS = ["0", "2", "4"]
RNG = np.random.default_rng(0)


def moments(places):
    """Of an array of shape (n_places, n_channels)."""
    products = places.T @ places / len(places)
    kept = products[np.triu_indices(len(products))]
    return kept / np.sqrt(np.abs(kept) + 1e-4)


@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    channels=st.sampled_from(["first", "last"]),
    seed=st.integers(0, 9),
)
def test_moments_are_those_of_numpy(sizes, channels, seed):
    last = np.random.default_rng(seed).normal(size=(3, *sizes))
    tensor = torch.from_numpy(last if channels == "last" else np.moveaxis(last, -1, 1))
    expected = [moments(row.reshape(-1, sizes[-1])) for row in last]
    for name in ("cov", f"cov{sizes[-1]}", f"cov{sizes[-1] + 1}"):
        np.testing.assert_allclose(pool_output(tensor, name, channels=channels), expected, atol=1e-10)
        np.testing.assert_allclose(prepared_pool(name, tensor.ndim, channels)(tensor, None), expected, atol=1e-10)


def test_moments_are_joined_with_other_pools():
    maps = torch.from_numpy(RNG.normal(size=(3, 5, 4, 6)))
    parts = [pool_output(maps, name) for name in ("cov", "avg", "cov2", "max")]
    torch.testing.assert_close(pool_output(maps, ("cov", "avg", "cov2", "max")), torch.cat(parts, dim=1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_tokens_do_not_count(side):
    tokens = torch.from_numpy(RNG.normal(size=(3, 6, 80)))
    mask = torch.tensor([[1] * n + [0] * (6 - n) for n in (6, 2, 1)])
    mask = mask.flip(1) if side == "left" else mask
    padded = tokens.masked_fill(~mask.bool().unsqueeze(2), torch.nan)
    for name in ("cov", "cov3"):
        alone = [pool_output(row[keep.bool()][None], name) for row, keep in zip(tokens, mask, strict=True)]
        torch.testing.assert_close(pool_output(padded, name, mask), torch.cat(alone))


def test_many_channels_are_projected():
    maps = torch.from_numpy(RNG.normal(size=(4, 200, 3, 3)))
    assert pool_output(maps, "cov").shape == (4, 64 * 65 // 2)
    torch.testing.assert_close(pool_output(maps, "cov"), pool_output(maps, "cov64"))
    assert pool_output(maps, "cov32").shape == (4, 32 * 33 // 2)
    # A projection: what the same channels add to each other is the same sum of signs, whatever the places.
    torch.testing.assert_close(pool_output(maps.flip(2), "cov32"), pool_output(maps, "cov32"))
    traces = [pool_output(maps, name)[:, np.cumsum([0, *range(n, 1, -1)])].square().sum(1) / n
              for name, n in (("cov32", 32), ("cov200", 200))]  # fmt: skip
    np.testing.assert_allclose(traces[0], traces[1], rtol=0.3, err_msg="the mean square of channels stays")


def test_half_precision_is_summed_in_single():
    maps = torch.full((2, 4, 64, 64), 300.0, dtype=torch.float16)
    pooled = pool_output(maps, "cov")
    assert pooled.dtype == torch.float32
    np.testing.assert_allclose(pooled, 300, rtol=1e-5)


def test_channels_that_are_zero_have_gradients():
    maps = torch.zeros(2, 3, 4, 4, requires_grad=True)
    pool_output(maps, "cov").sum().backward()
    assert maps.grad.isfinite().all()


@pytest.mark.parametrize("name", ["cov0", "cov-1", "cov1.5", "covariance", "cov 3"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=r"is not one of .*'cov'"):
        check_pool(("avg", name))


def _network(kind):
    torch.manual_seed(0)
    make = (lambda n: nn.Conv2d(n, 6, 3, padding=1)) if kind == "maps" else (lambda n: nn.Linear(n, 6))
    end = [nn.Flatten(), nn.Linear(6 * 25, 3)]
    return nn.Sequential(make(3), nn.ReLU(), make(6), nn.ReLU(), make(6), nn.ReLU(), *end).eval()


def _extracted(kind, pool, folder):
    model = _network(kind)
    x = torch.from_numpy(RNG.normal(size=(90, 3, 5, 5) if kind == "maps" else (90, 25, 3)).astype(np.float32))
    y = (x.flatten(1).square().mean(1) * 9).long() % 3
    return model, x, ExitExtractor(model, EXITS, pool=pool).extract([(x, y)], folder)


@pytest.mark.parametrize("kind", ["maps", "tokens"])
@pytest.mark.parametrize(
    ("pool", "multiply_adds"), [("cov", 25 * 36), (("avg", "max", "cov4", "cov"), 25 * (24 + 16 + 36))]
)
def test_costs_of_moments_are_in_the_layout(kind, pool, multiply_adds, tmp_path):
    pool = tuple("first" if name == "avg" and kind == "tokens" else name for name in pool) if pool != "cov" else pool
    model, x, cache = _extracted(kind, pool, tmp_path)
    plain = exit_costs(model, EXITS, x[:1])
    added = 2 * multiply_adds * np.array([1, 2, 2])  # the last exit has logits
    np.testing.assert_array_equal(cache.layout.head_costs, added)
    np.testing.assert_array_equal(cache.layout.costs, plain.costs + added)
    assert cache.layout.network_cost == plain.network
    again = ExitExtractor(model, EXITS, pool=pool, example_input=x).extract([(x, cache.y)], tmp_path)
    assert len(again) == len(cache)


def _live(kind, folder):
    pool = ("max", "cov", "cov4")
    model, x, cache = _extracted(kind, pool, folder)
    # Pooling and heads of so small a network cost as much as itself.
    policy = ThresholdPolicy(budget=0.9 if kind == "maps" else 1.0)
    pipeline = make_exit_pipeline(ExitHeads(random_state=0), policy).fit(cache.X, cache.y)
    return EarlyExitModel(model, EXITS, pipeline, pool=pool, example_input=x[:2]), x, cache, pipeline


@pytest.mark.parametrize("kind", ["maps", "tokens"])
def test_live_network_and_its_parts_answer_as_the_cache_does(kind, tmp_path):
    live, x, cache, pipeline = _live(kind, tmp_path)
    output, parts = live(x), live.truncate(1)(x)
    assert len(set(output.exits.tolist())) > 1
    assert np.mean(output.exits.numpy() == pipeline.predict_exit(cache.X)) >= 0.95
    torch.testing.assert_close(parts.probabilities, output.probabilities[parts.rows], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["maps", "tokens"])
def test_the_onnx_file_answers_as_the_live_network_does(kind, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    live, x, _, _ = _live(kind, tmp_path / "cache")
    in_file, output = OnnxEarlyExit(export_onnx(live, tmp_path / "network.onnx")).predict(x.numpy()), live(x)
    same = in_file.exits == output.exits.numpy()
    assert np.mean(same) >= 0.95
    np.testing.assert_allclose(in_file.probabilities[same], output.probabilities.numpy()[same], atol=1e-3)
