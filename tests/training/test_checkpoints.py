"""Folders of trainings: whose a folder is."""

import json

import pytest

from passersby.errors import InputError
from training.checkpoints import claim


def test_a_begun_folder_goes_on_with_the_same_options_only(tmp_path):
    claim(tmp_path, {"batch": 8, "out": "a"}, {"out"}, begun=False)
    claim(tmp_path, {"batch": 16, "out": "b"}, {"out"}, begun=False)  # nothing could be lost
    claim(tmp_path, {"batch": 16, "out": "c"}, {"out"}, begun=True)
    with pytest.raises(InputError, match=r"holds a training with --batch 16, not 8"):
        claim(tmp_path, {"batch": 8, "out": "c"}, {"out"}, begun=True)
    assert json.loads((tmp_path / "config.json").read_text()) == {"batch": 16, "out": "c"}


@pytest.mark.parametrize("off", [None, [], False, 0])
def test_an_option_that_came_later_is_off_in_trainings_of_before(tmp_path, off):
    claim(tmp_path, {"batch": 8}, set(), begun=False)
    with pytest.raises(InputError, match=r"holds a training with --new-way None, not on"):
        claim(tmp_path, {"batch": 8, "new_way": "on"}, set(), begun=True)
    claim(tmp_path, {"batch": 8, "new_way": off}, set(), begun=True)
