"""The training job: refusals in seconds, presets, Ray Train workers that learn what one process learns and may die."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from jobs.common import preset_defaults, run_job
from jobs.train_gan import main
from passersby.errors import InputError
from passersby.stylegan3.checkpoint import load_network
from training.checkpoints import last_checkpoint
from training.gan import images as gan_images
from training.gan.config import GanTraining
from training.gan.presets import PRESETS, preset
from training.gan.start import NETWORK, last_snapshot

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
        ({"batch": 0}, "--batch 0"),
        ({"batch_gpu": 3}, "--batch-gpu 3 does not divide each worker's 8 images"),
        ({"batch": 12, "batch_gpu": 6}, "--batch-gpu 6 gives each worker 6 images"),
        ({"height": 100}, "--height 100"),
        ({"height": 16, "width": 32}, "--width 32"),
        ({"width": 4}, "--width 4"),
        ({"height": 16, "width": 16}, "12 of 12 images"),
        ({"height": 32, "width": 16}, "smaller than 32x16"),
        ({"gamma": -1.0}, "--gamma -1.0"),
        ({"gamma": float("nan")}, "--gamma"),
        ({"kimg": float("inf")}, "--kimg"),
        ({"generator_lr": 0.0}, "--generator-lr 0.0"),
        ({"style_mixing_probability": 1.5}, "--style-mixing-probability 1.5"),
        ({"augment_set": "upside"}, "--augment-set upside is not known: give one of upright"),
        ({"augment_p": 2.0}, "--augment-p 2.0"),
        ({"validation_people": 3}, "--validation-people 3"),
        ({"transfer": Path("nowhere.pkl")}, "nowhere.pkl"),
        ({"freeze_d": 40}, "40 discriminator layers to freeze"),
        ({"gpus": 3, "workers": 1}, "--gpus 3 with --workers 1"),
        ({"seed": -1}, "--seed -1"),
        ({"condition": "dataset"}, "dataset"),
    ],
)
def test_impossible_values_are_named(tree, tmp_path, changes, message):
    with pytest.raises(InputError) as caught:
        main(GanTraining(data=tree, out=tmp_path / "out", **TINY | {"workers": 0} | changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not last_snapshot(tmp_path / "out")


def test_a_missing_tree_and_an_output_that_cannot_be_written(tree, tmp_path):
    with pytest.raises(InputError, match="no images|bounding_box_train"):
        main(GanTraining(data=tmp_path, out=tmp_path / "out", workers=0, **TINY))
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder is needed")
    with pytest.raises(InputError, match="cannot write --out"):
        main(GanTraining(data=tree, out=blocked / "out", workers=0, **TINY))


def test_presets_are_defaults_that_options_override():
    assert list(PRESETS) == [
        "person-128x64-t", "person-128x64-r", "person-128x64-2", "study", "tiny", "tiny-2", "tiny-pairs"
    ]  # fmt: skip
    study = preset_defaults(["--data", "x", "--preset", "study"], PRESETS, preset)
    assert (study.config, study.batch, study.gamma, study.kimg, study.fid_images) == ("r", 16, 2.0, 5000.0, 50_000)
    assert preset_defaults(["--preset=tiny"], PRESETS, preset).workers == 0
    assert preset_defaults([], PRESETS, preset) == preset_defaults(["--preset", "person-128x64-t"], PRESETS, preset)
    for name in PRESETS:
        config = preset_defaults(["--preset", name], PRESETS, preset)
        GanTraining(**vars(config) | {"data": Path("a"), "out": Path("b")}).check()


@pytest.mark.slow
def test_two_ray_workers_learn_what_one_process_learns(ray_cluster, tree, tmp_path, capsys):
    settings = TINY | {"kimg": 0.016, "gamma": 1.0, "augment": "fixed", "augment_p": 0.5}
    main(GanTraining(data=tree, out=tmp_path / "one", workers=0, **settings))
    main(GanTraining(data=tree, out=tmp_path / "two", workers=2, **settings))
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


@pytest.mark.slow
def test_a_worker_that_dies_is_started_again_and_nothing_changes(ray_cluster, tree, tmp_path, capsys):
    settings = TINY | {"gamma": 1.0, "status_seconds": 0.001, "checkpoint_minutes": 1e-6, "threads": 1}
    killed = []

    def kill_when_it_works() -> None:
        deadline = time.monotonic() + 300
        while not killed and time.monotonic() < deadline:
            folder = last_checkpoint(tmp_path / "two")
            if folder and int(folder.name) >= 128:  # every 16 iterations a checkpoint is due
                for worker in train_workers():  # those of trainings before may still be about to end
                    os.kill(worker, signal.SIGKILL)
                    killed.append(folder.name)
            time.sleep(0.02)

    killer = threading.Thread(target=kill_when_it_works)
    killer.start()
    main(GanTraining(data=tree, out=tmp_path / "two", workers=1, kimg=0.256, **settings))
    killer.join()
    assert killed
    assert "going on at kimg" in capsys.readouterr().out
    main(GanTraining(data=tree, out=tmp_path / "one", workers=0, kimg=0.256, **settings))
    one, two = (load_network(last_snapshot(tmp_path / name) / NETWORK) for name in ("one", "two"))
    for part in ("generator", "training_generator", "discriminator"):
        other = getattr(two, part).state_dict()
        assert all((value == other[name]).all() for name, value in getattr(one, part).state_dict().items()), part


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"condition": "cluster", "clusters": 2}, {"pairs": True}])
def test_images_that_do_not_fit_are_streamed_and_train_the_same_network(
    ray_cluster, tree, tmp_path, monkeypatch, capsys, options
):
    settings = TINY | {"kimg": 0.024, "gamma": 1.0, "workers": 1, "threads": 1} | options
    main(GanTraining(data=tree, out=tmp_path / "memory", **settings | {"workers": 0}))
    monkeypatch.setattr(gan_images, "fits", lambda *sizes: False)
    main(GanTraining(data=tree, out=tmp_path / "stream", **settings))
    assert "they are streamed through Ray Data" in capsys.readouterr().out
    one, two = (load_network(last_snapshot(tmp_path / name) / NETWORK) for name in ("memory", "stream"))
    assert one.record["trained_on"] == two.record["trained_on"]
    for part in ("generator", "training_generator", "discriminator"):
        other = getattr(two, part).state_dict()
        assert all((value == other[name]).all() for name, value in getattr(one, part).state_dict().items()), part
    with pytest.raises(InputError, match="do not fit in this machine's memory: give --workers 1"):
        main(GanTraining(data=tree, out=tmp_path / "none", **settings | {"workers": 0}))


def train_workers() -> list[int]:
    """Process ids of Ray Train's workers below this process."""
    parents, workers = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if b"RayTrainWorker" in (path / "cmdline").read_bytes():
                workers.append(int(path.name))

    def is_ours(process: int) -> bool:
        return process == os.getpid() or (process in parents and is_ours(parents[process]))

    return [worker for worker in workers if is_ours(worker)]


def test_more_gpus_than_there_are_is_refused(ray_cluster, tree, tmp_path):
    with pytest.raises(InputError, match="the cluster has 0; give --gpus 0"):
        main(GanTraining(data=tree, out=tmp_path / "out", workers=1, gpus=1, **TINY))
    with pytest.raises(InputError, match="--workers 8 with 2 CPUs each: the cluster has 8"):
        main(GanTraining(data=tree, out=tmp_path / "out", workers=8, **TINY | {"threads": 2}))


@pytest.mark.slow
def test_bad_input_inside_a_worker_is_one_line_and_not_tried_again(ray_cluster, tree, tmp_path, capsys):
    settings = TINY | {"workers": 1, "kimg": 0.016}
    main(GanTraining(data=tree, out=tmp_path / "out", **settings | {"workers": 0}))
    (last_checkpoint(tmp_path / "out") / "training_state.pt").write_bytes(b"no state")
    with pytest.raises(InputError, match="cannot go on from .*000000016"):
        main(GanTraining(data=tree, out=tmp_path / "out", **settings | {"kimg": 0.032}))
    unreadable = tmp_path / "tree" / "bounding_box_train"
    unreadable.mkdir(parents=True)
    for index in range(8):
        (unreadable / f"0001_c1s1_{index:06d}_00.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="8 of 8 images cannot be read"):
        main(GanTraining(data=tmp_path / "tree", out=tmp_path / "other", workers=1, **TINY))


@pytest.mark.slow
def test_the_command_line_trains_without_ray(call, tree, tmp_path):
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
    assert loaded.record["configuration"]["gamma"] == 0.1  # the preset's
    assert str(tmp_path) not in loaded.record["command"]
    # The same networks go on as the start of a conditional training at half the size: the transfer is reported.
    again = [*command_line(tree, tmp_path / "next"), "--transfer", str(last_snapshot(tmp_path / "out") / NETWORK)]
    code, said, wrong = call("train_gan", *again, "--channel-max", 8, "--freeze-d", 1)
    assert code == 0, wrong
    assert "Generator" in said
    assert "stay as they are" in said
    origin = load_network(last_snapshot(tmp_path / "next") / NETWORK).record["transferred_from"]
    assert origin["record"]["kimg"] == 0.008
    assert origin["generator"]["taken"] + origin["generator"]["adapted"] > origin["generator"]["new"]


def test_bad_input_is_one_line_and_exit_code_2(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_gan", *command_line(tree, tmp_path / "out"), "--gamma", "-2"])
    with pytest.raises(SystemExit) as stop:
        run_job(main, GanTraining, default=preset_defaults(sys.argv, PRESETS, preset))
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: --gamma -2.0: must be 0 or more\n"


def command_line(tree: Path, out: Path) -> list[str]:
    values = {"preset": "tiny", "data": tree, "out": out, "kimg": 0.008, **TINY}
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]
