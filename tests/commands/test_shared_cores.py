"""Which cores the arithmetic has beside threads that write."""

import time

import pytest
import torch

from deconv_cli.commands.shared_cores import SharedCores


@pytest.fixture
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_cores")
def test_writers_have_a_core_as_long_as_they_are_busy():
    cores, seen = SharedCores(1), []
    for busy, waiting in [(0.01, 0.0), (0.0, 0.1), (0.0, 0.0)]:  # to wait for the disk takes no core
        with cores.shared():
            seen.append(torch.get_num_threads())
            time.sleep(0.02)
        assert cores.timed(lambda busy=busy, waiting=waiting: _written(busy, waiting)) == "written"
    assert seen == [2, 1, 2]
    cores.shared().__enter__()
    cores.give_back()
    assert torch.get_num_threads() == 2


def _written(busy, waiting):
    end = time.thread_time() + busy
    while time.thread_time() < end:
        pass
    time.sleep(waiting)
    return "written"
