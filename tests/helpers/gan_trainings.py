"""Tiny GAN trainings for tests: their images, their options, and the comparison of two of them."""

from pathlib import Path

import cv2
import numpy as np
import torch

from passersby.stylegan3.checkpoint import load_network
from reporting.curves import read_history
from training.checkpoints import STATE, last_checkpoint
from training.gan.config import GanTraining
from training.gan.run import train
from training.gan.start import NETWORK, claim_folder
from training.log import HISTORY

CPU = torch.device("cpu")


def make_tree(root: Path) -> Path:
    """20 training images of 5 people and 4 of a sixth, set aside; a query image that must never be read."""
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (root / folder).mkdir()
    random = np.random.default_rng(0)
    for index in range(24):
        identity = index % 5 + 1 if index < 20 else 6
        image = random.integers(0, 255, (32, 16, 3), np.uint8)
        cv2.imwrite(str(root / f"bounding_box_train/{identity:04d}_c{index % 2 + 1}s1_{index:06d}_00.png"), image)
    (root / "query/0009_c1s1_000001_00.jpg").write_bytes(b"opening this one is the mistake")
    (root / "toy_crowd.json").write_text('{"version": "1", "content_hash": "abc", "options": {"people": 5}}')
    return root


def tiny(tree: Path, out: Path, **changes) -> GanTraining:
    values = {"height": 16, "width": 8, "channel_base": 128, "channel_max": 16, "batch": 8, "kimg": 0.048, "gamma": 1.0}
    # ADA that moves by a fifth every four iterations, so that p and its counts matter within these few.
    values |= {"snapshot_kimg": 0.024, "validation_kimg": 0.016, "validation_people": 1, "ada_kimg": 0.16, "workers": 0}
    values |= {"augment_p": 0.4, "status_seconds": 0.001, "fid_images": 0}
    return GanTraining(data=tree, out=out, **values | changes)


def run(config: GanTraining) -> Path:
    config.check()
    claim_folder(config)
    return train(config, CPU)


def check_equal_trainings(one: Path, two: Path, histories: bool = True) -> None:
    """Networks, optimisers, adaptation, counters, histories: bit for bit."""
    assert one.name == two.name
    networks = [load_network(folder / NETWORK) for folder in (one, two)]
    for part in ("generator", "training_generator", "discriminator"):
        state = getattr(networks[1], part).state_dict()
        for name, value in getattr(networks[0], part).state_dict().items():
            assert torch.equal(value, state[name]), (part, name)
    outs = [folder.parent.parent for folder in (one, two)]
    states = [torch.load(last_checkpoint(out) / STATE, weights_only=True) for out in outs]
    keys = ("iteration", "images_seen", "ada", "real_signs", "path_length", "generator_optimizer")
    for key in (*keys, "discriminator_optimizer"):
        assert same(states[0][key], states[1][key]), key
    if histories:
        assert same(states[0]["extra"]["means"], states[1]["extra"]["means"])
        assert read_history(outs[0] / HISTORY) == read_history(outs[1] / HISTORY)


def same(one, two) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two
