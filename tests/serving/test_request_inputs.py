"""What requests hold is checked before it joins a batch."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skexit.serving._inputs import InputFormat, inputs_in

FLOATS = InputFormat(torch.zeros(1, 2, 3))
TOKENS = InputFormat({"input_ids": torch.zeros(1, 5, dtype=torch.int64), "attention_mask": torch.ones(1, 5).long()})


@given(
    arrays(
        np.float32,
        (4, 2, 3),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False),
    )
)
def test_json_gives_the_arrays_that_were_sent(x):
    sent = json.dumps({"inputs": x.tolist()}).encode()
    received = FLOATS.arrays(inputs_in(sent))
    assert received.dtype == np.float32
    assert np.array_equal(received, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int32, torch.bool])
def test_arrays_have_a_type_that_torch_can_convert(dtype):
    received = InputFormat(torch.zeros(1, 2, 3, dtype=dtype)).arrays(np.ones((4, 2, 3), dtype=int))
    assert torch.equal(torch.as_tensor(received).to(dtype), torch.ones(4, 2, 3, dtype=dtype))


def test_named_inputs_and_sequences_of_any_length():
    ids = [[1, 2, 3, 4, 5, 6, 7]]
    received = TOKENS.arrays({"attention_mask": [[1] * 7], "input_ids": ids})
    assert received["input_ids"].tolist() == ids
    assert received["input_ids"].dtype == np.int64


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b"[1]", 'the body has a list. Send {"inputs": [...]}, one row per sample.'),
        (b'{"input": 1}', "the body has the names ['input']. Send"),
        (b'{"inputs": 1, "more": 2}', "the body has the names ['inputs', 'more']. Send"),
    ],
)
def test_bodies_that_are_refused(body, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        inputs_in(body)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (1, "inputs has the shape (); pass numbers of shape (n_samples, 2, 3)."),
        ([[1, 2, 3]], "inputs has the shape (1, 3); pass numbers of shape (n_samples, 2, 3)."),
        ([[[1, 2], [1, 2]]], "inputs has the shape (1, 2, 2); pass numbers of shape (n_samples, 2, 3)."),
        ([[[1, 2], [1]]], "inputs has rows of different lengths; pass numbers of shape (n_samples, 2, 3)."),
        ([[["a"] * 3] * 2], "inputs holds values that are not numbers; pass numbers of shape (n_samples, 2, 3)."),
        ([[[None] * 3] * 2], "inputs holds values that are not numbers; pass numbers of shape (n_samples, 2, 3)."),
        ({"x": 1}, "inputs holds values that are not numbers; pass numbers of shape (n_samples, 2, 3)."),
        (np.zeros((0, 2, 3)), "inputs has no rows; pass at least one."),
        (np.full((1, 2, 3), np.nan), "inputs holds NaN, infinity or values beyond float32; leave such rows out."),
        (np.full((1, 2, 3), 1e300), "inputs holds NaN, infinity or values beyond float32; leave such rows out."),
    ],
)
def test_inputs_that_are_refused(inputs, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        FLOATS.arrays(inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([[1]], "inputs must have the names ['attention_mask', 'input_ids'], but got a list."),
        ({"input_ids": [[1]]}, "inputs must have the names ['attention_mask', 'input_ids'], but got ['input_ids']."),
        (
            {"input_ids": [[1.5]], "attention_mask": [[1]]},
            "inputs['input_ids'] holds values that are not of the type int64.",
        ),
        (
            {"input_ids": [1], "attention_mask": [[1]]},
            "inputs['input_ids'] has the shape (1,); pass numbers of shape (n_samples, length).",
        ),
        (
            {"input_ids": [[1], [2]], "attention_mask": [[1]]},
            "inputs have different numbers of rows: {'input_ids': 2, 'attention_mask': 1}. Pass the same samples in each.",
        ),
    ],
)
def test_named_inputs_that_are_refused(inputs, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TOKENS.arrays(inputs)


def test_inputs_by_position_are_refused():
    with pytest.raises(ValueError, match=r"live\.prepare\(\{'name': tensor, \.\.\.\}\)"):
        InputFormat((torch.zeros(1, 2), torch.zeros(1, 2)))
