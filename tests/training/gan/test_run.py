"""The training loop in this process: snapshots, checkpoints, going on exactly, what it notices. Tiny real networks."""

import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from passersby.devices import pick_device
from passersby.errors import InputError
from passersby.stylegan3.checkpoint import load_network
from reporting.curves import read_history
from tests.helpers.gan_trainings import CPU, check_equal_trainings, kill_at, make_tree, run, tiny
from tests.helpers.trainings import check_float32
from training import checkpoints
from training.checkpoints import CHECKPOINTS_KEPT, STATE, last_checkpoint
from training.gan import run as gan_loop
from training.gan.run import train
from training.gan.start import NETWORK, claim_folder, last_snapshot, start
from training.gan.validation import Validation
from training.log import HISTORY


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return make_tree(tmp_path_factory.mktemp("market"))


@pytest.fixture(scope="module")
def straight(tree, tmp_path_factory):
    """A training of six iterations in one go; its last snapshot."""
    out = tmp_path_factory.mktemp("straight")
    return run(tiny(tree, out))


def test_float32_is_float32_unless_tf32_is_asked_for(tree, tmp_path, monkeypatch):
    check_float32(monkeypatch, gan_loop.GanTrainer, lambda tf32: run(tiny(tree, tmp_path / str(tf32), tf32=tf32)))


@pytest.mark.slow
def test_snapshots_hold_networks_and_record(straight, tree):
    assert [path.name for path in sorted(straight.parent.iterdir())] == ["000000024", "000000048"]
    loaded = load_network(straight / NETWORK)
    assert (loaded.generator.config.height, loaded.generator.config.width) == (16, 8)
    assert loaded.discriminator is not None
    record = loaded.record
    assert record["kimg"] == 0.048
    data = record["trained_on"]
    assert (data["name"], data["split"], data["images"]) == (tree.name, "train", 20)
    assert data["identities"]["count"] == 5
    assert data["validation"]["identities"]["count"] == 1
    assert data["toy_crowd"] == {"version": "1", "content_hash": "abc"}
    assert record["configuration"]["gamma"] == 1.0
    assert str(tree.parent) not in str(record)  # folders of this machine are nobody's business
    assert record["figures"]["G/loss"] > 0
    out = straight.parent.parent
    names = {path.name for path in (out / "grids").iterdir()}
    assert names == {"reals.png", *(f"{kind}-0000000{n}.png" for kind in ("people", "mixes") for n in (24, 48))}
    assert cv2.imread(str(out / "grids/mixes-000000048.png")).shape == (7 * 18 - 2, 7 * 10 - 2, 3)
    assert list((out / "tensorboard").glob("events*"))
    log = (out / "log.txt").read_text()
    for word in ("s/kimg", "ETA", "augment 0.", "memory", "20 images of 5 people", "4 images of 1 person"):
        assert word in log, word
    assert cv2.imread(str(out / "curves.png")) is not None


def test_the_history_has_training_and_validation_losses(straight):
    history = read_history(straight.parent.parent / HISTORY)
    assert [record["kimg"] for record in history] == [0.016, 0.032, 0.048]
    for record in history:
        assert {"G/loss", "D/loss", "scores/real", "validation/D_loss", "validation/G_loss", "diversity"} < set(record)
        assert 0 <= record["augment/p"] <= 1
    assert len({record["augment/p"] for record in history}) > 1  # it adapts


def test_training_moves_every_weight_and_the_average_follows(straight):
    first = load_network(straight.parent / "000000024" / NETWORK)
    last = load_network(straight / NETWORK)
    for one, two in [
        (first.training_generator, last.training_generator),
        (first.discriminator, last.discriminator),
        (first.generator, last.generator),
    ]:
        after = dict(two.named_parameters())
        for name, before in one.named_parameters():
            assert not torch.equal(before, after[name]), name
    assert not torch.equal(last.generator.mapping.fc0.weight, last.training_generator.mapping.fc0.weight)
    assert torch.equal(last.generator.mapping.w_avg, last.training_generator.mapping.w_avg)


@pytest.mark.slow
@pytest.mark.parametrize("images", [8, 40])
def test_stopped_and_continued_equals_never_stopped(straight, tree, tmp_path, images):
    # In the middle of an adaptation's interval, between validations, and beside R1's; before the first adaptation and
    # after it. Killed trainings go on from 24. The shorter training has a record of its own end in its history, so the
    # histories differ.
    run(tiny(tree, tmp_path, kimg=images / 1000))
    folder = run(tiny(tree, tmp_path))
    assert f"going on at kimg {images / 1000:.1f}" in (tmp_path / "log.txt").read_text()
    check_equal_trainings(straight, folder, histories=False)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["iteration 3", "writing", "snapshot"])
def test_killed_at_any_moment_and_continued_equals_never_killed(straight, tree, tmp_path, moment):
    out = tmp_path / "out"
    kill_at(moment, tiny(tree, out))
    assert last_checkpoint(out) is not None
    folder = run(tiny(tree, out))
    assert "going on" in (out / "log.txt").read_text()
    check_equal_trainings(straight, folder)
    assert not list(out.glob("*/.*.tmp"))  # what the dead process left is gone


def test_a_finished_training_does_nothing_when_started_again(straight, tree):
    out = straight.parent.parent
    before = (straight / NETWORK).stat().st_mtime_ns
    assert train(tiny(tree, out), CPU) is None
    assert last_snapshot(out) == straight
    assert (straight / NETWORK).stat().st_mtime_ns == before


def test_max_minutes_stops_with_a_checkpoint(tree, tmp_path):
    folder = run(tiny(tree, tmp_path, kimg=1000.0, snapshot_kimg=1000.0, max_minutes=0.01))
    assert 8 <= int(folder.name) < 1_000_000
    assert last_snapshot(tmp_path) == folder
    assert last_checkpoint(tmp_path).name == folder.name


@pytest.mark.slow
def test_the_last_two_checkpoints_and_all_snapshots_are_kept(tree, tmp_path):
    run(tiny(tree, tmp_path, snapshot_kimg=0.008, kimg=0.04))
    assert sorted(path.name for path in tmp_path.glob("checkpoints/*")) == ["000000032", "000000040"]
    assert CHECKPOINTS_KEPT == 2
    assert len(list(tmp_path.glob(f"snapshots/*/{NETWORK}"))) == 5
    # A checkpoint and a snapshot of the same moment share one file.
    files = [tmp_path / kind / "000000040" / NETWORK for kind in ("snapshots", "checkpoints")]
    assert files[0].samefile(files[1])


def test_a_folder_of_another_training_is_refused(straight, tree):
    out = straight.parent.parent
    with pytest.raises(InputError, match="--gamma 1.0, not 3.0"):
        claim_folder(tiny(tree, out, gamma=3.0))
    claim_folder(tiny(tree, out, snapshot_kimg=5.0, max_minutes=1.0))


def test_other_data_are_refused(straight, tree, tmp_path):
    other = make_tree(tmp_path)
    next((other / "bounding_box_train").iterdir()).unlink()
    with pytest.raises(InputError, match="other images than this training began with"):
        train(tiny(other, straight.parent.parent, kimg=1.0), CPU)


def test_a_damaged_checkpoint_and_one_of_another_shape_are_named(straight, tree, tmp_path):
    folder = run(tiny(tree, tmp_path, kimg=0.008))
    state = last_checkpoint(tmp_path) / STATE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match="000000008"):
        train(tiny(tree, tmp_path), CPU)
    with pytest.raises(InputError, match="holds another network .16 x 8. than this training's .32 x 16."):
        train(tiny(tree, tmp_path, height=32, width=16), CPU)
    assert folder.exists()


@pytest.mark.slow
def test_a_full_disk_costs_no_training(tree, tmp_path, monkeypatch):
    """A checkpoint that cannot be written is said; the next one is; only the last one must be."""
    full, write = [True], checkpoints.write_state

    def sometimes(path, values):
        if full[0]:
            raise OSError(28, "No space left on device", str(path))
        write(path, values)

    monkeypatch.setattr(checkpoints, "write_state", sometimes)
    step = gan_loop.train_iteration

    def freed(state, *others):
        full[0] = state.step < 4
        return step(state, *others)

    monkeypatch.setattr(gan_loop, "train_iteration", freed)
    run(tiny(tree, tmp_path))
    log = (tmp_path / "log.txt").read_text()
    assert "warning: cannot write" in log
    assert "No space left on device; training goes on" in log
    assert last_checkpoint(tmp_path).name == "000000048"
    full[0] = True
    monkeypatch.setattr(gan_loop, "train_iteration", step)
    with pytest.raises(InputError, match="No space left on device"):
        train(tiny(tree, tmp_path, kimg=0.056), CPU)
    assert last_checkpoint(tmp_path).name == "000000048"  # what was there still is


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write to a file until its disk is full."""
    with open(path, "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        write_without_end(file)


def write_without_end(file) -> None:
    while True:
        file.write(bytes(1 << 12))


@pytest.mark.slow
def test_a_disk_that_is_really_full_for_a_while_changes_nothing(straight, tree, small_disk, monkeypatch, capsys):
    """Log, TensorBoard, history, curves, snapshot and checkpoint all meet it; from iteration 4 on there is room."""
    ballast, step = small_disk / "ballast", gan_loop.train_iteration

    def while_full(state, *others):
        if state.step == 1:
            fill(ballast)
        if state.step == 4:
            ballast.unlink()
        return step(state, *others)

    monkeypatch.setattr(gan_loop, "train_iteration", while_full)
    monkeypatch.setattr("training.log.DRAW_SECONDS", 0.0)
    folder = run(tiny(tree, small_disk / "out"))
    said = capsys.readouterr().out
    assert "the history is kept in memory until there is room" in said
    assert "training goes on, the last checkpoint is none" in said
    check_equal_trainings(straight, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["000000048"]  # that of iteration 3 had no room
    assert list((small_disk / "out/tensorboard").glob("events*"))


def test_a_first_command_that_failed_can_be_mended(tree, tmp_path):
    with pytest.raises(InputError, match="40 discriminator layers"):
        run(tiny(tree, tmp_path, freeze_d=40, kimg=0.008))
    run(tiny(tree, tmp_path, freeze_d=1, kimg=0.008))
    with pytest.raises(InputError, match="--freeze-d 1, not 2"):
        claim_folder(tiny(tree, tmp_path, freeze_d=2))


def test_people_set_aside_may_be_one_picture(tree, tmp_path):
    validation = Validation(np.zeros((1, 16, 8, 3), np.uint8), None, 512, CPU)
    figures = validation.measure(start(tiny(tree, tmp_path), CPU).state)
    assert "diversity" not in figures  # of one picture there is none, and NaN could not be stored
    assert all(np.isfinite(value) for value in figures.values())


@pytest.mark.slow
def test_divergence_stops_and_collapse_is_said(tree, tmp_path, monkeypatch):
    step = gan_loop.train_iteration

    def poisoned(state, *others):
        if state.step == 4:
            with torch.no_grad():
                state.generator.synthesis.input.weight.fill_(float("nan"))
        return step(state, *others)

    monkeypatch.setattr(gan_loop, "train_iteration", poisoned)
    with pytest.raises(InputError, match="diverged before kimg 0.0 .*--gamma"):
        run(tiny(tree, tmp_path, status_seconds=1000.0, validation_kimg=1000.0))  # noticed before anything is saved
    assert last_checkpoint(tmp_path).name == "000000024"  # of a network that is still sound

    def flat(state, *others):
        with torch.no_grad():
            for name, value in state.generator.named_parameters():
                if name.endswith("_3.weight"):  # ToRGB: every image is the same grey
                    value.zero_()
        return step(state, *others)

    monkeypatch.setattr(gan_loop, "train_iteration", flat)
    run(tiny(tree, tmp_path / "flat", generator_lr=1e-9, kimg=0.016))
    assert "warning: the generator seems to collapse" in (tmp_path / "flat/log.txt").read_text()


@pytest.mark.slow
def test_conditional_training_on_cameras(tree, tmp_path):
    folder = run(tiny(tree, tmp_path, condition="camera", kimg=0.016))
    loaded = load_network(folder / NETWORK)
    assert (loaded.generator.c_dim, loaded.discriminator.config.c_dim) == (2, 2)
    assert loaded.record["trained_on"]["labels"]["kind"] == "camera"


def test_no_silent_fallback_to_the_cpu():
    if torch.cuda.is_available():
        assert pick_device(None).type == "cuda"
    else:
        with pytest.raises(InputError, match="--gpus 1"):
            pick_device(1)
    assert pick_device(0).type == "cpu"
