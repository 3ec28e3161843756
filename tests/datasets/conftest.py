"""Each test's folder has nothing beside it: a folder of images is compared with the trees around and beside it."""

from pathlib import Path

import pytest


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """pytest's own, one level deeper: other tests' folders are no neighbours."""
    folder = tmp_path / "alone"
    folder.mkdir()
    return folder
