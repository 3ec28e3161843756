"""Training is tested on one thread: equal bits need equal thread counts, and tiny networks gain nothing from more."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    # More threads would also spin and wait for each other on a busy machine.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
