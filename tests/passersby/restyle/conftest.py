"""The published encoder written plainly: the module tests/helpers/plain_encoder.py."""

import pytest

from tests.helpers import plain_encoder


@pytest.fixture(scope="session")
def plain():
    return plain_encoder
