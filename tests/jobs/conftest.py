"""Shared by the tests of jobs: a tiny network, as a file."""

from pathlib import Path

import pytest
import torch

from passersby.stylegan3 import Generator, GeneratorConfig
from passersby.stylegan3.checkpoint import save_network


@pytest.fixture(scope="session")
def network(tmp_path_factory) -> Path:
    """An untrained config T of 64 x 32 with few channels; it is only ever read."""
    path = tmp_path_factory.mktemp("network") / "tiny.safetensors"
    torch.manual_seed(0)
    tiny = GeneratorConfig.config_t(64, 32, channel_base=512, channel_max=16, output_scale=4.0)
    save_network(path, Generator(tiny), record={"trained_on": "nothing, a test"})
    return path
