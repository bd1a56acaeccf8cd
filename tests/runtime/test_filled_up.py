"""Batches that are filled up to a few sizes, as on a GPU, are answered as they are."""

import functools
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from live_networks import make_live, policies
from torch.testing import assert_close

from skexit.runtime import _runner as runner
from skexit.runtime import join_outputs
from skexit.runtime._rows import fill_up, size_to_run

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@contextmanager
def as_on_a_gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "size_to_run", lambda n_rows, device: size_to_run(n_rows, GPU))
        yield


@given(n_rows=st.integers(1, 10**6))
def test_sizes(n_rows):
    size = size_to_run(n_rows, GPU)
    assert n_rows <= size <= n_rows * 9 / 8
    assert size_to_run(size, GPU) == size
    assert size <= size_to_run(n_rows + 1, GPU)
    assert size_to_run(n_rows, CPU) == n_rows


def test_sizes_are_few():
    for power in (16, 32, 256, 4096):
        assert len({size_to_run(n_rows, GPU) for n_rows in range(power + 1, 2 * power + 1)}) == 8


@given(n_rows=st.integers(1, 20), n_added=st.integers(0, 20))
def test_rows_are_filled_up(n_rows, n_added):
    rows = torch.arange(5, 5 + n_rows)
    filled, added = fill_up(rows, n_rows + n_added)
    assert_close(filled[~added], rows)
    assert added.sum() == n_added
    assert (filled[added] == rows[-1]).all()


@functools.cache
def live_and_inputs(name):
    return make_live(policies()[name])


@pytest.mark.parametrize("n_samples", [1, 17, 61, 300])
@pytest.mark.parametrize("name", policies())
def test_answers_are_the_same(name, n_samples):
    live, x = live_and_inputs(name)
    expected = live(x[:n_samples])
    with as_on_a_gpu():
        output = live(x[:n_samples])
    assert_close(output.labels, expected.labels)
    assert_close(output.exits, expected.exits)
    assert_close(output.probabilities, expected.probabilities, rtol=0, atol=1e-5)


def test_stages_see_a_few_sizes():
    live, x = live_and_inputs("threshold")
    sizes = set()
    hooks = [
        block.register_forward_hook(lambda module, args, output: sizes.add(len(args[0])))
        for block in live.model.blocks[1:]
    ]
    with as_on_a_gpu():
        for n_samples in range(17, 301):
            live(x[:n_samples])
    for hook in hooks:
        hook.remove()
    assert len(sizes) > 16
    assert sizes == {size_to_run(size, GPU) for size in sizes}


@pytest.mark.parametrize("at_exit", range(3))
@pytest.mark.parametrize("name", policies())
def test_nobody_is_answered_in_both_parts(name, at_exit):
    live, x = live_and_inputs(name)
    expected = live(x)
    with as_on_a_gpu():
        answered = live.truncate(at_exit)(x)
        outputs = [answered] if answered.rest is None else [answered, live.resume(at_exit)(answered.rest)]
    output = join_outputs(outputs)
    assert_close(output.exits, expected.exits)
    assert_close(output.probabilities, expected.probabilities, rtol=0, atol=1e-5)
