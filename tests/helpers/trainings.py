"""What tests of trainings in steps (re-ID, encoder) share: stopping, killing, and comparing what two of them left."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from reporting.curves import read_history
from training import trainer
from training.log import HISTORY

ROOT = Path(__file__).parents[2]
STATE = "training_state.pt"

# A training that ends itself while the state of the checkpoint of a step is half on the disk.
KILLED = """
import importlib, json, os, signal, sys
import torch
kind, name, step, values = sys.argv[1:]
torch.set_num_threads(1)
trainer = importlib.import_module("training.trainer")
run, start, config = (importlib.import_module(f"training.{kind}.{part}") for part in ("run", "start", "config"))
training = getattr(config, name).from_json(json.loads(values))
trainer.ASK_EVERY = 1
write = start.write_synced
def half(path, content):
    if path.parent.name.startswith("." + step):
        path.write_bytes(bytes(content)[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)
start.write_synced = half
start.claim_folder(training)
run.train(training, torch.device("cpu"))
"""


def kill_while_it_writes_a_checkpoint(kind: str, training, step: int) -> None:
    """Run a training of a kind (the folder's name below training/) until it writes the checkpoint of `step`."""
    words = [sys.executable, "-c", KILLED, kind, type(training).__name__, f"{step:09d}", json.dumps(training.as_json())]
    ended = subprocess.run(words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


def stop_before_step(monkeypatch: pytest.MonkeyPatch, loop: ModuleType, number: int, run) -> None:
    """Call `run` and interrupt it, as Ctrl-C does, before that step; it asks for its checkpoint at every step."""
    step = loop.train_step

    def stop_at(state, *others):
        if state.step == number:
            raise KeyboardInterrupt
        return step(state, *others)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "ASK_EVERY", 1)
        patched.setattr(loop, "train_step", stop_at)
        with pytest.raises(KeyboardInterrupt):
            run()


def newest_checkpoint(out: Path) -> Path:
    """The folder of the last checkpoint."""
    return max((out / "checkpoints").glob("[0-9]*"))


def check_equal_states(one: Path, two: Path) -> list[dict]:
    """Counters, optimiser and history of two trainings are the same, bit for bit; returns their states."""
    states = [torch.load(newest_checkpoint(out) / STATE, weights_only=True) for out in (one, two)]
    assert states[0]["step"] == states[1]["step"]
    moments = [state["optimizer"]["state"] for state in states]
    assert moments[0].keys() == moments[1].keys()
    assert all(
        torch.equal(value, moments[1][key][name]) for key in moments[0] for name, value in moments[0][key].items()
    )
    assert read_history(one / HISTORY) == read_history(two / HISTORY)
    return states


def check_equal_networks(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    """Two networks have the same tensors, bit for bit."""
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
