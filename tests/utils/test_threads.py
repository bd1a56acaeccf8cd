"""Limits of the number of threads hold in every thread, and are gone when the last has left."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from skexit.utils._threads import one_blas_thread, one_torch_thread, run_side_by_side
from skexit.utils._warnings import silenced, warn


def blas_threads():
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def torch_threads():
    import torch

    return {torch.get_num_threads()}


@pytest.fixture(params=["blas", "torch"])
def limit(request):
    """The limit, and what gives the numbers of threads, which are 2 at first."""
    if request.param == "blas":
        with threadpool_limits(2, user_api="blas"):
            yield one_blas_thread, blas_threads
        return
    torch = pytest.importorskip("torch")
    found = torch.get_num_threads()
    torch.set_num_threads(2)
    yield one_torch_thread, torch_threads
    torch.set_num_threads(found)


def test_holds_and_is_restored(limit):
    one_thread, numbers = limit
    with one_thread():
        with one_thread():
            assert numbers() == {1}
        assert numbers() == {1}
    assert numbers() == {2}
    with pytest.raises(ZeroDivisionError), one_thread():
        1 / 0  # noqa: B018
    assert numbers() == {2}


def test_threads_that_overlap(limit):
    """The first leaves while the second is inside."""
    one_thread, numbers = limit
    second_is_in, first_is_out = threading.Event(), threading.Event()

    def first():
        with one_thread():
            second_is_in.wait(10)
        first_is_out.set()
        return numbers()

    def second():
        with one_thread():
            second_is_in.set()
            first_is_out.wait(10)
        return numbers()

    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(first)]
        futures.append(threads.submit(second))
        assert futures[1].result() == {2}
        futures[0].result()
    assert numbers() == {2}


@pytest.fixture
def two_torch_threads():
    torch = pytest.importorskip("torch")
    found = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(found)


class Task:
    """Waits a moment for another task, and returns its number, whether the other came, and the threads of torch."""

    def __init__(self, number, meeting):
        self.number, self.meeting = number, meeting

    def __call__(self):
        warn("a task warns")
        try:
            self.meeting.wait(0.1 if self.meeting.broken else 2)
        except threading.BrokenBarrierError:
            return self.number, False, torch_threads()
        return self.number, True, torch_threads()


def run_tasks(**limits):
    meeting = threading.Barrier(2)
    with silenced():
        return run_side_by_side([Task(number, meeting) for number in range(4)], **limits)


def test_tasks_run_at_the_same_time(two_torch_threads):
    assert run_tasks() == [(number, True, {1}) for number in range(4)]
    assert torch_threads() == {2}


@pytest.mark.slow
def test_tasks_run_one_after_another(two_torch_threads):
    assert run_tasks(at_most=1) == [(number, False, {2}) for number in range(4)]
    with one_torch_thread():
        assert run_tasks() == [(number, False, {1}) for number in range(4)]


def test_error_of_a_task(two_torch_threads):
    with pytest.raises(ZeroDivisionError):
        run_side_by_side([lambda: 1, lambda: 1 / 0])
    assert torch_threads() == {2}
