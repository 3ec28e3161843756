"""The encoder training job: refusals in seconds, Ray Train workers that finish, a command that goes on."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from jobs.train_encoder import main
from passersby.errors import InputError
from passersby.restyle.checkpoint import load_encoder
from passersby.stylegan3 import Generator, GeneratorConfig
from passersby.stylegan3.checkpoint import save_network
from training.encoder.config import EncoderTraining
from training.encoder.presets import PRESETS
from training.encoder.start import ENCODER

TINY = PRESETS["tiny"] | {"width_factor": 0.1, "head_channels": 16, "height": 32, "width": 16, "batch": 4, "steps": 2}
TINY |= {"refinements": 1, "validation_images": 2, "validation_refinements": 1, "shown_refine_steps": 0, "threads": 1}
TINY |= {"lpips_weight": 0.0, "identity_weight": 0.0}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder of 3 people with 3 pictures each, and a tiny generator."""
    root, random = tmp_path_factory.mktemp("encoder"), np.random.default_rng(0)
    for person in range(3):
        (root / f"people/{person}").mkdir(parents=True)
        for index in range(3):
            image = random.integers(0, 256, (32, 16, 3)).astype(np.uint8)
            cv2.imwrite(str(root / f"people/{person}/{index}.png"), image)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(GeneratorConfig.config_t(32, 16, channel_base=128, channel_max=8))
        labelled = Generator(GeneratorConfig.config_t(32, 16, channel_base=128, channel_max=8, c_dim=2))
    save_network(root / "generator.safetensors", generator, record={})
    save_network(root / "labelled.safetensors", labelled, record={})
    return root


def config(files: Path, out: Path, **changes) -> EncoderTraining:
    values = TINY | {"data": files / "people", "network": files / "generator.safetensors"}
    return EncoderTraining(out=out, **values | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": Path("nowhere.pkl")}, "nowhere.pkl: there is no such file"),
        ({"network": "labelled"}, "has 2 labels and 3 channels"),
        ({"data": Path("nowhere")}, "nowhere"),
        ({"identity_weight": 0.1}, "needs --identity-network FILE"),
        ({"identity_network": "labelled", "identity_weight": 0.1}, "labelled.safetensors"),
        ({"batch": 4, "workers": 3}, "--batch 4 cannot be split over --workers 3"),
    ],
)
def test_impossible_values_are_named(files, tmp_path, changes, message):
    changes = {key: files / f"{value}.safetensors" if value == "labelled" else value for key, value in changes.items()}
    with pytest.raises(InputError) as caught:
        main(config(files, tmp_path / "out", **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / ENCODER).exists()


@pytest.mark.slow
def test_two_ray_workers_train_one_encoder(ray_cluster, files, tmp_path, capsys):
    main(config(files, tmp_path, workers=2))
    said = capsys.readouterr().out
    assert "2 workers on the CPU" in said  # the first worker's log reaches the terminal
    assert f"encoder: {tmp_path / ENCODER}" in said
    assert load_encoder(tmp_path / ENCODER).record["steps"] == 2
    main(config(files, tmp_path, workers=2))
    assert "is finished: nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_line_trains(call, files, tmp_path):
    words = ["--preset", "tiny", "--data", files / "people", "--out", tmp_path]
    words += ["--network", files / "generator.safetensors"]
    for name in TINY.keys() - {"backbone", "lr", "final_lr", "validation_steps"}:
        words += [f"--{name.replace('_', '-')}", TINY[name]]
    code, said, wrong = call("train_encoder", *words)
    assert code == 0, wrong
    assert f"encoder: {tmp_path / ENCODER}" in said
