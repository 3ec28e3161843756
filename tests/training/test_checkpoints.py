"""Folders of trainings: whose a folder is."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from passersby.errors import InputError
from training.checkpoints import STATE, claim, damage_named, read_state, write_state
from training.encoder import start as encoder_snapshot
from training.encoder.config import EncoderTraining
from training.gan import start as gan_snapshot
from training.gan.config import GanTraining
from training.reid import start as reid_snapshot
from training.reid.config import ReidTraining


def test_a_begun_folder_goes_on_with_the_same_options_only(tmp_path):
    claim(tmp_path, {"batch": 8, "out": "a"}, {}, {"out"}, in_use=False)
    claim(tmp_path, {"batch": 16, "out": "b"}, {}, {"out"}, in_use=False)  # nothing could be lost
    claim(tmp_path, {"batch": 16, "out": "c"}, {}, {"out"}, in_use=True)
    with pytest.raises(InputError, match=r"holds a training with --batch 16, not 8"):
        claim(tmp_path, {"batch": 8, "out": "c"}, {}, {"out"}, in_use=True)
    assert json.loads((tmp_path / "config.json").read_text()) == {"batch": 16, "out": "c"}


@pytest.mark.parametrize("off", [None, [], False, 0, 0.25])
def test_an_option_that_came_later_is_at_its_default_in_trainings_of_before(tmp_path, off):
    default = {"batch": 64, "new_way": off}
    claim(tmp_path, {"batch": 8}, {}, set(), in_use=False)
    with pytest.raises(InputError, match=re.escape(f"holds a training with --new-way {off}, not on")):
        claim(tmp_path, {"batch": 8, "new_way": "on"}, default, set(), in_use=True)
    claim(tmp_path, {"batch": 8, "new_way": off}, default, set(), in_use=True)


def test_an_option_that_is_gone_is_refused_unless_it_was_free_to_change(tmp_path):
    claim(tmp_path, {"batch": 8, "old_way": None, "minutes": 5}, {}, set(), in_use=False)
    with pytest.raises(InputError, match=r"holds a training with --old-way None, which this program does not have"):
        claim(tmp_path, {"batch": 8}, {}, {"minutes"}, in_use=True)
    claim(tmp_path, {"batch": 8}, {}, {"minutes", "old_way"}, in_use=True)


KNOWN_OLD = (
    (GanTraining, gan_snapshot, f"checkpoints/1/{STATE}", ()),
    (ReidTraining, reid_snapshot, reid_snapshot.NETWORK, ("draw_seed", "filters")),
    (EncoderTraining, encoder_snapshot, encoder_snapshot.ENCODER, ()),
)


@pytest.mark.parametrize(("kind", "snapshots", "left", "later"), KNOWN_OLD)
def test_trainings_of_every_earlier_version_go_on(tmp_path, kind, snapshots, left, later):
    """later: the options that the program has gained since it first wrote checkpoints."""
    config = kind(data=tmp_path, out=tmp_path)
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).touch()
    old = {name: value for name, value in config.as_json().items() if name not in later}
    (tmp_path / "config.json").write_text(json.dumps(old))
    snapshots.claim_folder(config)
    assert json.loads((tmp_path / "config.json").read_text()) == config.as_json()
    with pytest.raises(InputError, match=r"--seed 0, not 1"):
        snapshots.claim_folder(dataclasses.replace(config, seed=1))


@pytest.mark.parametrize("augment", ["ada", "none"])
def test_gan_trainings_of_before_augmentation_are_refused(tmp_path, augment):
    config = GanTraining(data=tmp_path, out=tmp_path, augment=augment)
    (tmp_path / "snapshots/1").mkdir(parents=True)
    (tmp_path / "snapshots/1" / gan_snapshot.NETWORK).touch()
    old = {name: value for name, value in config.as_json().items() if name != "augment"}
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match=f"--augment None, not {augment}"):
        gan_snapshot.claim_folder(config)


def test_the_state_of_a_checkpoint_comes_back_as_it_was(tmp_path):
    optimizer = torch.optim.AdamW(torch.nn.Linear(3, 2).parameters())
    values = {"optimizer": optimizer.state_dict(), "step": 7, "half": torch.ones(2, dtype=torch.bfloat16), "left": None}
    write_state(tmp_path / STATE, values)
    read = read_state(tmp_path)
    assert torch.equal(read.pop("half"), values.pop("half"))
    assert read == values


class Touch:
    """Pickles as a call that creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_the_state_of_a_checkpoint_that_is_no_plain_data_is_one_line_and_runs_nothing(tmp_path):
    write_state(tmp_path / STATE, {"step": torch.arange(1000)})
    whole = (tmp_path / STATE).read_bytes()
    torch.save({"step": Touch(tmp_path / "ran")}, tmp_path / "hostile")
    torch.save([1, 2], tmp_path / "list")
    contents = {
        b"": "is damaged",
        b"no state": "is damaged",
        whole[:1000]: "is damaged",
        whole.replace(b"PK", b"KP"): "is damaged",
        (tmp_path / "hostile").read_bytes(): "is damaged .it refers to ",
        (tmp_path / "list").read_bytes(): "holds a list",
    }
    for content, line in contents.items():
        (tmp_path / STATE).write_bytes(content)
        with (
            pytest.raises(InputError, match=rf"cannot go on from .*{STATE} {line}.*: remove that folder") as caught,
            damage_named(tmp_path),
        ):
            read_state(tmp_path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_options_that_are_not_utf8_are_one_line(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"data": "caf\xe9"}')
    with pytest.raises(InputError, match="config.json is no JSON: remove it"):
        claim(tmp_path, {"data": "x"}, {}, (), True)
