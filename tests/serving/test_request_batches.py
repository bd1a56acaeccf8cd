"""Requests that run in one batch have the answers that they have alone."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from live_networks import make_live, make_token_live, policies

from skexit import ExitHeads, ThresholdPolicy
from skexit.serving._batches import (
    complete,
    divide,
    join_arrays,
    join_rests,
    kind_of_arrays,
    kind_of_rest,
    run_together,
)


@functools.cache
def live_and_inputs(name):
    return make_live(policies()[name])


def answer(first, second, requests):
    """Answers of requests by both parts, each in one batch, as replicas give them."""

    def run_first(requests):
        arrays = join_arrays(requests)
        named = isinstance(arrays, dict)
        output = first(**{name: torch.as_tensor(array) for name, array in arrays.items()}) if named else first(
            torch.as_tensor(arrays)
        )  # fmt: skip
        return divide(output, [len(next(iter(r.values())) if named else r) for r in requests])

    def run_second(rests):
        return divide(second(join_rests(rests)), [len(rest) for rest in rests])

    begun = run_together(run_first, requests, kind_of_arrays)
    waiting = [one for one in begun if one.rest is not None]
    later = iter(run_together(run_second, [one.rest for one in waiting], kind_of_rest))
    for one in begun:
        if one.rest is None:
            yield one.answers
        else:
            yield complete(one, next(later)._replace(rows=one.rest.rows.numpy()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["threshold", "ensemble", "stopping"])
@settings(max_examples=20)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8), at_exit=st.integers(0, 2))
def test_requests_have_the_answers_of_the_whole_network(name, lengths, at_exit):
    live, x = live_and_inputs(name)
    requests = [rows.numpy() for rows in x[: sum(lengths)].split(lengths)]
    expected = live(x[: sum(lengths)])
    given = list(answer(live.truncate(at_exit), live.resume(at_exit), requests))
    assert [len(output.exits) for output in given] == lengths
    labels, probabilities, exits = map(np.concatenate, zip(*given, strict=True))
    assert np.array_equal(labels, expected.labels)
    assert np.array_equal(exits, expected.exits)
    np.testing.assert_allclose(probabilities, expected.probabilities, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_sequences_of_different_lengths_come_together():
    live, draw = make_token_live(ThresholdPolicy(budget=0.75, heads=ExitHeads(max_epochs=5, random_state=0)))
    requests = [draw(3, length) for length in (7, 4, 7, 5)]
    sent = [{name: tensor.numpy() for name, tensor in request.items()} for request in requests]
    for output, request in zip(answer(live.truncate(0), live.resume(0), sent), requests, strict=True):
        assert np.array_equal(output.exits, live(**request).exits)
        assert np.array_equal(output.labels, live(**request).labels)


def test_only_the_request_at_fault_fails():
    calls = []

    def run(requests):
        calls.append(requests)
        if 0 in requests:
            raise ZeroDivisionError("it is zero")
        return [1 / request for request in requests]

    answers = run_together(run, [1, 0, 2, -4], kind_of=lambda request: request < 0)
    assert calls == [[1, 0, 2], [1], [0], [2], [-4]]
    assert (answers[0], answers[2], answers[3]) == (1, 0.5, -0.25)
    assert isinstance(answers[1], ZeroDivisionError)
