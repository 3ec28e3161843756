"""The log of a training: neither TensorBoard nor a picture for people ends a training. The means of its scalars."""

import builtins
import json

import pytest
import torch

from passersby.errors import InputError
from training import log as module
from training.log import HISTORY, LOG, Means, TrainingLog
from training.workers import Masked

CPU = torch.device("cpu")
BOARD = "torch.utils.tensorboard"


@pytest.fixture
def log(tmp_path):
    log = TrainingLog(tmp_path, CPU, 0, 60.0)
    yield log
    log.close()


def fill(log: TrainingLog) -> None:
    for step in range(1, 4):
        log.add({"D/loss": torch.ones(4)})
        log.record(1000 * step, {"fid": 9.0 - step})
    log.close()


def check(tmp_path) -> str:
    history = [json.loads(line) for line in (tmp_path / HISTORY).read_text().splitlines()]
    assert [record["fid"] for record in history] == [8.0, 7.0, 6.0]
    return (tmp_path / LOG).read_text("utf-8")


@pytest.mark.parametrize("error", [ImportError("no tensorboard"), TypeError("Descriptors cannot be created directly")])
def test_a_tensorboard_that_cannot_be_imported_is_one_line(log, tmp_path, monkeypatch, error):
    """It is not installed, or its protobuf is too new for it: both are common."""
    real = builtins.__import__

    def no_board(name, *others):
        if name == BOARD:
            raise error
        return real(name, *others)

    monkeypatch.setattr(builtins, "__import__", no_board)
    fill(log)
    said = check(tmp_path)
    assert said.count("warning: no values for TensorBoard") == 1
    assert f"({type(error).__name__}: {error}); training goes on" in said
    assert not (tmp_path / "tensorboard").exists()


def test_a_tensorboard_that_fails_while_it_writes_is_one_line(log, tmp_path, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    monkeypatch.setattr(SummaryWriter, "add_scalar", lambda *_: 1 / 0)
    fill(log)
    assert check(tmp_path).count("warning: no values for TensorBoard (ZeroDivisionError") == 1


@pytest.mark.parametrize(
    "error", [InputError("cannot write curves.png: No space left on device"), ValueError("no font")]
)
def test_curves_that_cannot_be_drawn_are_a_line(log, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(module, "save_curves", fail)
    monkeypatch.setattr(module, "DRAW_SECONDS", 0.0)
    fill(log)
    said = check(tmp_path)
    assert said.count(f"{error}") == 3
    assert said.count("training goes on") == 3


def test_curves_are_drawn_now_and_then_and_at_the_end(log, tmp_path, monkeypatch):
    seconds, drawn = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(module, "save_curves", lambda _, history, **__: drawn.append(len(history)))
    log.drawn = 0.0
    for number in range(1, 8):
        seconds[0] = 12.0 * number
        log.record(1000 * number, {"fid": 9.0})
    assert drawn == [3, 6]
    log.close()
    log.close()
    assert drawn == [3, 6, 7]


def test_a_line_with_any_letters_is_written_whatever_the_encoding_of_the_system(log, tmp_path, capsys):
    log.say("data: /data/José/夜 and caf\udce9")
    log.close()
    assert (tmp_path / LOG).read_bytes() == "data: /data/José/夜 and caf\\udce9\n".encode()


def test_masked_scalars_count_as_the_values_that_their_mask_chooses():
    values, mask = torch.tensor([1.0, float("nan"), 4.0]), torch.tensor([True, False, True])
    masked, chosen = Means(), Means()
    for _ in range(2):
        masked.add({"loss": Masked(values, mask), "none": Masked(values, mask & ~mask)})
        chosen.add({"loss": values[mask], "none": values[:0]})
    stored = masked.state_dict()
    assert stored == chosen.state_dict()
    assert {name: type(count) for name, count in stored["counts"].items()} == {"loss": int, "none": int}
    assert masked.take() == chosen.take() == {"loss": 2.5}
