"""Threads that score or learn side by side have their share of the cores, and hand out results as they come."""

import threading

import pytest
import torch

from students.cpu.workers import each_done, worker_pool

pytestmark = pytest.mark.test_all


@pytest.fixture
def six_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("number", "share"), [(1, 6), (2, 3), (4, 1), (8, 1)])
@pytest.mark.usefixtures("six_cores")
def test_each_thread_has_its_share_of_the_cores_and_the_caller_keeps_its_own(number, share):
    """torch gives a thread the caller's count at its first operation in parallel, over what was set there before."""
    gate = threading.Barrier(number)

    def work(_):
        gate.wait()  # so that every thread has one
        torch.ones(1_000_000).exp_()
        return torch.get_num_threads()

    with worker_pool(number, "test") as threads:
        assert torch.get_num_threads() == 6
        assert list(threads.map(work, range(number))) == [share] * number
    assert torch.get_num_threads() == 6


def test_an_error_ends_what_has_not_begun():
    begun = []

    def work(item):
        begun.append(item)
        if item == 3:
            raise ValueError("third")
        return item

    with worker_pool(1, "test") as threads, pytest.raises(ValueError, match="third"):
        for _ in each_done(threads, work, range(10_000)):
            pass
    assert len(begun) < 10_000
