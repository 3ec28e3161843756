"""The training job: refusals in seconds, and two Ray Train workers that learn what one process learns."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from jobs.common import run_job
from jobs.train_gan import main
from models.errors import InputError
from models.stylegan3.checkpoint import load_network
from training.gan_config import GanConfig
from training.gan_snapshot import NETWORK, last_snapshot

TINY = {"height": 16, "width": 8, "channel_base": 128, "channel_max": 16, "batch": 8, "threads": 1}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("market")
    (root / "bounding_box_train").mkdir()
    random = np.random.default_rng(0)
    for index in range(12):
        image = random.integers(0, 255, (16, 8, 3), np.uint8)
        cv2.imwrite(str(root / f"bounding_box_train/{index % 3 + 1:04d}_c1s1_{index:06d}_00.png"), image)
    return root


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 8, "workers": 3}, "--batch 8 cannot be split over --workers 3"),
        ({"batch": 12, "workers": 2}, "gives each worker 6 images"),
        ({"batch": 16}, "--batch 16 is more than the 12 training images"),
        ({"batch": 0}, "--batch is 0"),
        ({"height": 100}, "--height 100"),
        ({"height": 16, "width": 32}, "--width 32"),
        ({"width": 4}, "--width 4"),
        ({"gamma": -1.0}, "--gamma is -1.0"),
        ({"gamma": float("nan")}, "--gamma"),
        ({"kimg": float("inf")}, "--kimg"),
        ({"generator_lr": 0.0}, "--generator-lr is 0.0"),
        ({"style_mixing_probability": 1.5}, "--style-mixing-probability is 1.5"),
        ({"gpus": 3, "workers": 1}, "--gpus 3 with --workers 1"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_impossible_values_are_named(tree, tmp_path, changes, message):
    with pytest.raises(InputError) as caught:
        main(GanConfig(data=tree, out=tmp_path / "out", **TINY | changes))
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_tree_and_an_output_that_cannot_be_written(tree, tmp_path):
    with pytest.raises(InputError, match="bounding_box_train"):
        main(GanConfig(data=tmp_path, out=tmp_path / "out", workers=0, **TINY))
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder is needed")
    with pytest.raises(InputError, match="cannot write --out"):
        main(GanConfig(data=tree, out=blocked / "out", workers=0, **TINY))


def test_two_ray_workers_learn_what_one_process_learns(ray_cluster, tree, tmp_path, capsys):
    settings = TINY | {"kimg": 0.016, "gamma": 1.0}
    main(GanConfig(data=tree, out=tmp_path / "one", workers=0, **settings))
    main(GanConfig(data=tree, out=tmp_path / "two", workers=2, **settings))
    said = capsys.readouterr().out
    assert "2 x {'CPU': 1} of 8 CPUs, 0 GPUs" in said
    assert "2 workers on the CPU" in said  # the first worker's log reaches the terminal
    one, two = (load_network(last_snapshot(tmp_path / name) / NETWORK) for name in ("one", "two"))
    for part, rate in (("training_generator", 0.0025), ("discriminator", 0.002)):
        other = getattr(two, part).state_dict()
        for name, value in getattr(one, part).state_dict().items():
            # Sums in another order differ in the last bits; Adam makes a whole step of a gradient that is only
            # rounding, so single weights may differ by a few steps. Unshared gradients would move nearly all.
            difference = (value - other[name]).abs()
            assert difference.max() <= 6 * rate + 1e-5 * value.abs().max(), (part, name)
            close = difference <= 0.03 * rate + 2e-6 * value.abs()
            assert close.float().mean() > 0.98 or (~close).sum() <= 1, (part, name)


def test_more_gpus_than_there_are_is_refused(ray_cluster, tree, tmp_path):
    with pytest.raises(InputError, match="the cluster has 0; give --gpus 0"):
        main(GanConfig(data=tree, out=tmp_path / "out", workers=1, gpus=1, **TINY))
    with pytest.raises(InputError, match="--workers 8 with 2 CPUs each: the cluster has 8"):
        main(GanConfig(data=tree, out=tmp_path / "out", workers=8, **TINY | {"threads": 2}))


def test_bad_input_inside_a_worker_is_one_line(ray_cluster, tmp_path):
    folder = tmp_path / "tree" / "bounding_box_train"
    folder.mkdir(parents=True)
    for index in range(8):
        (folder / f"0001_c1s1_{index:06d}_00.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="none of 8 images can be read"):
        main(GanConfig(data=tmp_path / "tree", out=tmp_path / "out", workers=1, **TINY))


def test_the_command_line_trains_without_ray(tree, tmp_path):
    # In its own process, without the variables for which the job starts itself again.
    command = [sys.executable, "-m", "jobs.train_gan", *command_line(tree, tmp_path / "out")]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "last snapshot" in done.stdout
    loaded = load_network(last_snapshot(tmp_path / "out") / NETWORK)
    assert loaded.record["kimg"] == 0.008
    assert "--kimg 0.008" in loaded.record["command"]
    assert str(tmp_path) not in loaded.record["command"]


def test_bad_input_is_one_line_and_exit_code_2(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_gan", *command_line(tree, tmp_path / "out"), "--gamma", "-2"])
    with pytest.raises(SystemExit) as stop:
        run_job(main, GanConfig)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: --gamma is -2.0: it must not be negative\n"


def command_line(tree: Path, out: Path) -> list[str]:
    values = {"data": tree, "out": out, "workers": 0, "kimg": 0.008, **TINY}
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]
