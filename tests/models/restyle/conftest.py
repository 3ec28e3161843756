"""The published encoder written plainly: the module tests/models/restyle/plain_encoder.py."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def plain():
    spec = importlib.util.spec_from_file_location("plain_encoder", Path(__file__).with_name("plain_encoder.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
