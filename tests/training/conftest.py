"""Training is tested on one thread: equal bits need equal thread counts, and tiny networks gain nothing from more."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    # More threads would also spin and wait for each other on a busy machine.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """pytest's own, one level deeper: a folder of images is compared with the trees beside it, other tests' too."""
    folder = tmp_path / "alone"
    folder.mkdir()
    return folder
