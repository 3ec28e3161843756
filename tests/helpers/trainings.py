"""Helpers for tests of trainings in steps (re-ID, encoder): stop or kill a training, compare two of them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from reporting.curves import read_history
from training import trainer
from training.checkpoints import STATE
from training.log import HISTORY

ROOT = Path(__file__).parents[2]

# A training that kills itself when half of the state of a step's checkpoint is on the disk.
KILLED = """
import importlib, json, os, signal, sys
import torch
kind, name, step, values = sys.argv[1:]
torch.set_num_threads(1)
checkpoints, trainer = (importlib.import_module(f"training.{part}") for part in ("checkpoints", "trainer"))
run, start, config = (importlib.import_module(f"training.{kind}.{part}") for part in ("run", "start", "config"))
training = getattr(config, name).from_json(json.loads(values))
trainer.ASK_EVERY = 1
write = checkpoints.write_synced
def half(path, content):
    if path.parent.name.startswith("." + step):
        path.write_bytes(bytes(content)[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)
checkpoints.write_synced = half
start.claim_folder(training)
run.train(training, torch.device("cpu"))
"""


def kill_while_it_writes_a_checkpoint(kind: str, training, step: int) -> None:
    """Run a training of a kind (the folder's name below training/) until it writes the checkpoint of `step`."""
    words = [sys.executable, "-c", KILLED, kind, type(training).__name__, f"{step:09d}", json.dumps(training.as_json())]
    process = subprocess.run(words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()


def stop_before_step(monkeypatch: pytest.MonkeyPatch, loop: ModuleType, number: int, run) -> None:
    """Call `run` and interrupt it before that step, as Ctrl-C does. The training asks at every step whether to save."""
    step = loop.train_step

    def stop_at(state, *arguments):
        if state.step == number:
            raise KeyboardInterrupt
        return step(state, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "ASK_EVERY", 1)
        patched.setattr(loop, "train_step", stop_at)
        with pytest.raises(KeyboardInterrupt):
            run()


def check_float32(
    monkeypatch: pytest.MonkeyPatch, kind: type[trainer.Trainer], train: Callable[[bool], object]
) -> None:
    """Check that a training computes float32 in float32, unless it is asked for TF32.

    kind: its trainer. train: runs a training; the argument is its option tf32.
    """
    rules, backends = [], torch.backends
    monkeypatch.setattr(
        kind, "to_the_end", lambda *_: rules.append((backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32))
    )
    for tf32 in (False, True):
        train(tf32)
    assert rules == [(False, False), (True, True)]


def newest_checkpoint(out: Path) -> Path:
    """The folder of the last checkpoint."""
    return max((out / "checkpoints").glob("[0-9]*"))


def check_equal_states(first: Path, second: Path) -> list[dict]:
    """Check that counters, optimiser and history of two trainings are equal, bit for bit; returns their states."""
    states = [torch.load(newest_checkpoint(out) / STATE, weights_only=True) for out in (first, second)]
    assert states[0]["step"] == states[1]["step"]
    moments = [state["optimizer"]["state"] for state in states]
    assert moments[0].keys() == moments[1].keys()
    assert all(
        torch.equal(value, moments[1][key][name]) for key in moments[0] for name, value in moments[0][key].items()
    )
    assert read_history(first / HISTORY) == read_history(second / HISTORY)
    return states


def check_equal_networks(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Check that two networks have the same tensors, bit for bit."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
