"""Helpers for tests of GAN trainings: a tree of noise, tiny trainings, killing one, comparing two."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
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
ROOT = Path(__file__).resolve().parents[2]


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
    assert states[0].keys() == states[1].keys()
    for key in states[0].keys() - {"extra"}:
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


# A training that kills itself at a moment, with a checkpoint after every iteration.
KILLED = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from training import checkpoints, trainer
from training.gan import run as gan_loop
from training.gan.config import GanTraining
from training.gan.start import claim_folder

config, moment = GanTraining.from_json(json.loads(sys.argv[1])), sys.argv[2]
trainer.ASK_EVERY = 1  # a checkpoint after every iteration
claim_folder(config)
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
if moment.startswith("iteration"):
    step = gan_loop.train_iteration
    def counted(state, *others):
        if state.step == int(moment.split()[1]):
            kill()
        return step(state, *others)
    gan_loop.train_iteration = counted
elif moment == "writing":  # the state is half on the disk
    write = checkpoints.write_state
    def half(path, values):
        write(path, values)
        if values["iteration"] == 4:
            os.truncate(path, path.stat().st_size // 2)
            kill()
    checkpoints.write_state = half
elif moment == "snapshot":  # between the snapshot and the checkpoint of the same moment
    save = gan_loop.save_snapshot
    def then(out, state, record):
        folder = save(out, state, record)
        kill()
    gan_loop.save_snapshot = then
gan_loop.train(config, torch.device("cpu"))
"""


def kill_at(moment: str, config: GanTraining) -> None:
    """Run a training in a process until it kills itself.

    moment: "iteration N", "writing" (half of the fourth checkpoint lies there), "snapshot" (the first one is there).
    """
    values = json.dumps(dataclasses.replace(config, checkpoint_minutes=1e-6).as_json())
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", KILLED, values, moment]
    died = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert died.returncode == -signal.SIGKILL, died.stderr
