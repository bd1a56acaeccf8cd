"""A queue gives samples in the order in which they came, from memory of its own."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skexit.data._walk import Memories, Memory
from skexit.runtime._batch import Batch
from skexit.runtime._queues import SampleQueue

CHANNELS_LAST = torch.channels_last


def make_batch(start, stop, layout=torch.contiguous_format):
    """Samples whose tensors tell their row."""
    rows = torch.arange(start, stop)
    maps = (rows[:, None, None, None] + torch.zeros(1, 3, 2, 2)).to(memory_format=layout)
    return Batch([maps], [rows[:, None] * 2], rows, Memories([Memory(), Memory(seen=rows.double())]))


def assert_is_of(batch, rows):
    assert batch.rows.tolist() == rows
    assert batch.tensors[0][:, 1, 1, 1].tolist() == rows
    assert batch.side[0][:, 0].tolist() == [2 * row for row in rows]
    assert batch.notes[1]["seen"].tolist() == rows


steps = st.one_of(
    st.tuples(st.just("put all"), st.integers(1, 9)),
    st.tuples(st.just("put some"), st.integers(2, 9)),
    st.tuples(st.just("take"), st.integers(1, 6)),
    st.tuples(st.just("drop"), st.tuples(st.integers(0, 30), st.integers(0, 10))),
)


@given(st.lists(steps, max_size=12), st.sampled_from([torch.contiguous_format, CHANNELS_LAST]))
@settings(max_examples=200, deadline=None)
def test_a_queue_is_a_list(steps, layout):
    queue, expected, start, time = SampleQueue(4), [], 0, 0.0
    for action, value in steps:
        if action.startswith("put"):
            batch, time = make_batch(start, start + value, layout), time + 1
            kept = slice(None) if action == "put all" else torch.arange(0, value, 2)
            queue.put(batch, kept, time)
            expected += [(row, time) for row in batch.rows[kept].tolist()]
            start += value
        elif expected and action == "take":
            assert_is_of(queue.first(value), [row for row, _ in expected[:value]])
            queue.remove(min(value, len(expected)))
            expected = expected[value:]
        elif expected:
            dropped = range(value[0], sum(value))
            queue.drop(dropped)
            expected = [(row, time) for row, time in expected if row not in dropped]
        assert len(queue) == len(expected)
        if expected:
            assert queue.waiting_since == expected[0][1]
            assert_is_of(queue.first(100), [row for row, _ in expected])


@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST])
def test_samples_lie_in_memory_as_they_came(layout):
    queue = SampleQueue(4)
    queue.put(make_batch(0, 4, layout), torch.tensor([0, 2]), 0.0)
    assert queue.first(2).tensors[0].is_contiguous(memory_format=layout)


def test_a_batch_is_not_kept():
    batch = make_batch(0, 8)
    queue = SampleQueue(4)
    queue.put(batch, slice(None), 0.0)
    reference = weakref.ref(batch.tensors[0])
    del batch
    gc.collect()
    assert reference() is None


def test_memory_is_used_again():
    queue = SampleQueue(4)
    addresses = set()
    for start in range(0, 40, 4):
        queue.put(make_batch(start, start + 4), slice(None), 0.0)
        addresses.add(queue.first(4).tensors[0].data_ptr())
        queue.remove(4)
    assert len(addresses) == 1
