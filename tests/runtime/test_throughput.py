"""Throughput mode answers as the live network does, with full stages, and survives batches that fail."""

import functools
import gc
import itertools
import weakref

import numpy as np
import pytest
import torch
from live_networks import Network, NothingPays, make_live, make_token_live, policies
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from skexit import ExitHeads, StaticExit, ThresholdPolicy
from skexit.runtime import EarlyExitModel


@functools.cache
def live_and_inputs(name):
    return make_live(policies()[name])


@pytest.fixture
def fresh():
    """A network of its own, for tests that hook into it."""
    return make_live(ThresholdPolicy(budget=0.6))


def assert_same_answers(output, expected, kept=slice(None)):
    labels = expected.labels[kept]
    assert np.array_equal(np.asarray(output.labels), np.asarray(labels))
    torch.testing.assert_close(output.exits, expected.exits[kept])
    torch.testing.assert_close(output.probabilities, expected.probabilities[kept], rtol=0, atol=1e-5)


def record_calls(live):
    """Numbers of rows with which each block is called, in order."""
    calls = [[] for _ in live.model.blocks]
    for k, block in enumerate(live.model.blocks):
        block.register_forward_hook(lambda module, args, output, k=k: calls[k].append(len(args[0])))
    return calls


def raise_at(live, k, bad):
    """Let a block raise for inputs that have one of some rows."""

    def check(module, args):
        if (torch.cdist(args[0].double(), bad.double()) < 1e-5).any():
            raise ArithmeticError("a bad row")

    live.model.blocks[k].register_forward_pre_hook(check)


@pytest.mark.parametrize("name", policies())
def test_answers_as_the_live_network(name):
    live, x = live_and_inputs(name)
    x = x[:100]
    expected = live(x)
    rng = np.random.default_rng(0)
    for batch_size in (1, 7, 40, 1000):
        lengths = rng.multinomial(len(x), rng.dirichlet(np.ones(rng.integers(1, 9)))).tolist()
        for max_wait in (None, 0):
            output = live.predict_loader(x.split(lengths), batch_size=batch_size, max_wait=max_wait)
            assert_same_answers(output, expected)
            assert torch.equal(output.batches, torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)))
            assert output.failures == []


def test_samples_that_left_are_not_taken_along():
    plain, x = live_and_inputs("ensemble")
    expected = plain(x)
    live, _ = make_live(policies()["ensemble"], latency=NothingPays())
    calls = record_calls(live)
    assert_same_answers(live.predict_loader(x.split(40), batch_size=64), expected)
    assert [sum(n_rows) for n_rows in calls] == [int((expected.exits >= k).sum()) for k in range(4)]


def test_answers_where_exits_are_unused():
    live, x = make_live(ThresholdPolicy(budget=0.6), thresholds={0: np.inf, 2: np.inf})
    calls = record_calls(live)
    assert_same_answers(live.predict_loader(x.split(40), batch_size=64), live(x))
    # Without a queue between them, the stages before and after an unused exit run in step.
    assert calls[0][:-1] == calls[1][:-1] == [64, 64, 64, 64, 44]
    assert calls[2] == calls[3]


@pytest.mark.parametrize("n_loaded", [10, 64, 299])
def test_stages_run_with_full_batches(fresh, n_loaded):
    live, x = fresh
    n_reaching = [int((live(x).exits >= k).sum()) for k in range(4)]
    calls = record_calls(live)
    live.predict_loader(x.split(n_loaded), batch_size=32)
    for k, n_rows in enumerate(n_reaching):
        n_full, n_last = divmod(n_rows, 32)
        assert calls[k] == [32] * n_full + [n_last] * (n_last > 0)


def test_few_samples_wait():
    live, x = make_live(ThresholdPolicy(budget=0.6), thresholds={0: 2, 1: 2, 2: 2})
    calls = record_calls(live)
    n_loaded = 0

    def load():
        nonlocal n_loaded
        for batch in x.split(50):
            n_through = [n_loaded, *map(sum, calls)]
            assert all(before - after < 16 for before, after in itertools.pairwise(n_through))
            yield batch
            n_loaded += len(batch)

    live.predict_loader(load(), batch_size=16)
    assert n_loaded == len(x)


def test_samples_that_came_far_go_first():
    live, x = make_live(ThresholdPolicy(budget=0.6), thresholds={0: 2, 1: 2, 2: 2})
    order = []
    for k, block in enumerate(live.model.blocks):
        block.register_forward_hook(lambda module, args, output, k=k: order.append(k))
    live.predict_loader([x[:64]], batch_size=16)
    assert order == [0, 1, 2, 3] * 4


def test_samples_wait_no_longer_than_they_may(fresh, monkeypatch):
    live, x = fresh
    calls = record_calls(live)
    clock = 0.0
    monkeypatch.setattr("skexit.runtime._throughput.time.monotonic", lambda: clock)

    def load():
        nonlocal clock
        for batch in x.split(10):
            yield batch
            clock += 1.0

    live.predict_loader(load(), batch_size=1000, max_wait=1.5)
    assert calls[0] == [30] * 10  # what came at 0, 1 and 2 runs at 2


def test_classes_with_names():
    live, x = make_live(ThresholdPolicy(budget=0.6), classes=["ant", "bee", "cow"])
    loader = [*x[:90].split(40), torch.zeros(2, 5), x[90:]]
    output = live.predict_loader(loader, batch_size=64)
    assert_same_answers(output, live(x))
    assert output.labels.dtype.kind == "U"


@pytest.mark.parametrize("max_wait", [None, 0])
def test_sequences_of_different_lengths(max_wait):
    policy = ThresholdPolicy(budget=0.75, heads=ExitHeads(max_epochs=5, random_state=0))
    live, draw = make_token_live(policy)
    loader = [draw(n_samples, length) for n_samples, length in ((5, 7), (9, 4), (8, 7), (1, 4), (7, 2), (6, 7))]
    expected = [live(batch) for batch in loader]
    for batch_size in (1, 4, 100):
        with_labels = [batch | {"labels": torch.zeros(len(batch["input_ids"]))} for batch in loader]
        output = live.predict_loader(with_labels, batch_size=batch_size, max_wait=max_wait)
        for number, answers in enumerate(expected):
            mine = output.batches == number
            torch.testing.assert_close(output.exits[mine], answers.exits)
            torch.testing.assert_close(output.probabilities[mine], answers.probabilities, rtol=0, atol=1e-5)
    assert output.batches.tolist() == sorted(output.batches.tolist())
    assert len(output.exits.unique()) == 2


def test_labels_of_the_loader_are_ignored():
    live, x = live_and_inputs("threshold")
    loader = DataLoader(TensorDataset(x, torch.full((len(x),), torch.nan)), batch_size=70)
    assert_same_answers(live.predict_loader(loader), live(x))


@pytest.mark.parametrize(
    "item",
    [torch.zeros(3, 5), torch.zeros(3, 6, 1), torch.zeros(3, 6).double(), "text", (1, 2, 3), {}, torch.tensor(1.0)],
    ids=["shape", "dimensions", "type", "text", "parts", "nothing", "number"],
)
def test_malformed_batches_are_reported(item):
    live, x = live_and_inputs("threshold")
    output = live.predict_loader([x[:50], item, x[50:]], batch_size=64)
    assert_same_answers(output, live(x))
    assert output.batches.unique().tolist() == [0, 2]
    ((number, error),) = output.failures
    assert number == 1
    assert isinstance(error, ValueError)


def test_batches_without_rows_are_passed_over():
    live, x = live_and_inputs("threshold")
    output = live.predict_loader([x[:50], x[:0], x[50:]])
    assert_same_answers(output, live(x))
    assert output.batches.unique().tolist() == [0, 2]
    assert output.failures == []


class RaisingDataset(Dataset):
    def __init__(self, x, bad):
        self.x, self.bad = x, bad

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        if i in self.bad:
            raise OSError(f"row {i} is lost")
        return self.x[i]


def test_a_loader_that_raises_goes_on():
    live, x = live_and_inputs("threshold")
    output = live.predict_loader(DataLoader(RaisingDataset(x, {3, 120}), batch_size=50), batch_size=64)
    kept = torch.arange(len(x)).div(50, rounding_mode="floor")
    kept = (kept != 0) & (kept != 2)
    assert_same_answers(output, live(x), kept)
    assert [(number, str(error)) for number, error in output.failures] == [(0, "row 3 is lost"), (2, "row 120 is lost")]


def test_a_generator_that_raises_ends():
    live, x = live_and_inputs("threshold")

    def load():
        yield x[:50]
        raise OSError

    output = live.predict_loader(load())
    assert_same_answers(output, live(x), slice(50))
    assert [number for number, _ in output.failures] == [1]


def test_a_loader_that_only_raises_is_given_up():
    class Broken:
        n_calls = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.n_calls += 1
            if self.n_calls > 1:
                raise OSError("no disk")
            return x

    live, x = live_and_inputs("threshold")
    with pytest.raises(OSError, match="no disk"):
        live.predict_loader(Broken())


@pytest.mark.parametrize("batch_size", [1, 32, 1000])
@pytest.mark.parametrize("k", range(4))
def test_a_batch_for_which_the_network_raises_is_lost_alone(fresh, k, batch_size):
    live, x = fresh
    expected = live(x)
    reaching = torch.nonzero(expected.exits >= k).flatten()
    bad = reaching[[len(reaching) // 3, -1]]
    raise_at(live, k, nn.Sequential(*live.model.blocks[:k])(x[bad]).detach())
    batches = torch.arange(len(x)) // 20
    output = live.predict_loader(x.split(20), batch_size=batch_size)
    kept = ~torch.isin(batches, batches[bad])
    assert_same_answers(output, expected, kept)
    assert torch.equal(output.batches, batches[kept])
    assert [number for number, _ in output.failures] == batches[bad].tolist()
    assert all(isinstance(error, ArithmeticError) for _, error in output.failures)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_a_failure(value):
    live, x = live_and_inputs("threshold")
    broken = x.clone()
    broken[130] = value
    output = live.predict_loader(broken.split(20), batch_size=64)
    batches = torch.arange(len(x)) // 20
    assert_same_answers(output, live(x), batches != 6)
    ((number, error),) = output.failures
    assert number == 6
    assert "exit 'blocks.0' has logits that are infinite or NaN" in str(error)


def test_too_many_samples_at_once_are_no_failure(fresh):
    live, x = fresh

    def check(module, args):
        if len(args[0]) > 20:
            raise torch.OutOfMemoryError

    expected = live(x)
    live.model.blocks[2].register_forward_pre_hook(check)
    output = live.predict_loader(x.split(20), batch_size=64)
    assert_same_answers(output, expected)
    assert output.failures == []


class InPlace(nn.Module):
    def forward(self, x):
        return x.add_(1)


class InPlaceNetwork(Network):
    def __init__(self):
        super().__init__()
        for block in self.blocks[1:]:
            block.insert(0, InPlace())


@pytest.mark.parametrize("thresholds", [{}, {0: 2, 1: 2, 2: 2}], ids=["some leave", "all stay"])
@pytest.mark.parametrize("batch_size", [16, 64])
def test_samples_run_again_are_as_they_were(batch_size, thresholds):
    live, x = make_live(ThresholdPolicy(budget=0.6), network=InPlaceNetwork, thresholds=thresholds)
    expected = live(x)
    bad = torch.nonzero(expected.exits == 3)[0, 0]
    inputs = nn.Sequential(*live.model.blocks[:3])(x[bad : bad + 1]).detach() + 1

    def check(module, args):
        if (torch.cdist(args[0].double(), inputs.double()) < 1e-5).any():
            raise ArithmeticError

    live.model.blocks[3][1].register_forward_pre_hook(check)
    output = live.predict_loader(x.split(20), batch_size=batch_size)
    assert [number for number, _ in output.failures] == [int(bad) // 20]
    assert_same_answers(output, expected, torch.arange(len(x)) // 20 != bad // 20)


def test_failures_do_not_keep_their_batch_in_memory(fresh):
    live, x = fresh
    raise_at(live, 0, x[30:31])
    loaded = []

    def load():
        for batch in x.split(20):
            batch = batch.clone()
            loaded.append(weakref.ref(batch))
            yield batch

    output = live.predict_loader(load(), batch_size=64)
    gc.collect()
    assert len(output.failures) == 1
    assert all(batch() is None for batch in loaded)


def test_if_every_batch_fails_the_first_error_is_raised(fresh):
    live, x = fresh
    with pytest.raises(ValueError, match="has the shape"):
        live.predict_loader([x[:, 1:], x.double()])
    raise_at(live, 0, x)
    with pytest.raises(ArithmeticError, match="a bad row") as caught:
        live.predict_loader([x, x[:, 1:]])
    assert "in check" in caught.value.__notes__[0]


def test_a_network_that_cannot_be_cut_is_reported_at_once():
    live, x = live_and_inputs("static")

    class Mixing(Network):
        def forward(self, x):
            total, outputs = x.sum(0), []
            for block, head in zip(self.blocks, self.heads, strict=True):
                x = block(x) + total
                outputs.append(head(x))
            return outputs

    loader = iter(x.split(20))
    with pytest.raises(ValueError, match="cannot be divided at exit"):
        EarlyExitModel(Mixing(), Network.exits, live.policy).predict_loader(loader)
    assert len(list(loader)) == 14


def test_the_first_batch_is_what_the_network_is_prepared_for():
    live, x = live_and_inputs("static")
    uncut = EarlyExitModel(live.model, Network.exits, live.policy)
    output = uncut.predict_loader(["text", *x.split(40), x[:, 1:]])
    assert_same_answers(output, live(x))
    assert [number for number, _ in output.failures] == [0, 9]


def test_no_batches():
    live, _ = live_and_inputs("static")
    with pytest.raises(ValueError, match="loader is empty"):
        live.predict_loader([])


@pytest.mark.parametrize("limits", [{"batch_size": 0}, {"max_wait": -1}, {"max_wait": float("nan")}])
def test_limits_out_of_range(limits):
    live, x = live_and_inputs("static")
    with pytest.raises(ValueError, match=next(iter(limits))):
        live.predict_loader([x], **limits)


def test_a_network_in_training_mode():
    live, x = make_live(StaticExit(1))
    live.model.train()
    with pytest.raises(RuntimeError, match="training mode"):
        live.predict_loader([x])
