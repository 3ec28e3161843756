"""The re-ID training job: refusals in seconds, presets, Ray Train workers that finish, die and go on."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from jobs.common import preset_defaults
from jobs.train_reid import main
from passersby.errors import InputError
from passersby.reid.checkpoint import load_reid
from reporting.curves import read_history
from training.checkpoints import last_checkpoint
from training.log import HISTORY
from training.reid.config import ReidTraining
from training.reid.presets import PRESETS, preset
from training.reid.start import NETWORK

TINY = PRESETS["tiny"] | {"batch": 8, "epochs": 3.0, "threads": 1, "status_seconds": 0.01}


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """A folder with one folder a person, without cameras: 5 people with 6 pictures each."""
    root, random = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    for person in range(5):
        (root / f"person {person}").mkdir()
        for index in range(6):
            image = np.clip(random.integers(-40, 40, (32, 16, 3)) + 50 * person, 0, 255).astype(np.uint8)
            cv2.imwrite(str(root / f"person {person}/{index}.png"), image)
    return root


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 8, "workers": 3}, "--batch 8 cannot be split over --workers 3"),
        ({"batch": 64}, "25 images do not fill the 64 places"),
        ({"teacher": Path("nowhere")}, "--teacher"),
        ({"people": (Path("nowhere"),)}, "nowhere"),
        ({"precision": "float16"}, "--precision float16: CPUs have none"),
        ({"pretrained": True, "backbone": "resnet18", "weights": Path("nowhere.pth")}, "nowhere.pth"),
    ],
)
def test_impossible_values_are_named(people, tmp_path, changes, message):
    with pytest.raises(InputError) as caught:
        main(ReidTraining(data=people, out=tmp_path / "out", **TINY | {"workers": 0} | changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / NETWORK).exists()


def test_presets_are_defaults_that_options_override():
    assert preset_defaults(["--data", "x", "--preset", "study"], PRESETS, preset).batch == 16
    assert preset_defaults(["--preset=tiny"], PRESETS, preset).workers == 0
    assert preset_defaults([], PRESETS, preset) == preset_defaults(["--preset", "strong"], PRESETS, preset)


@pytest.mark.slow
def test_two_ray_workers_train_one_network(ray_cluster, people, tmp_path, capsys):
    """A folder without cameras, in 0 or 2 workers: same steps, same classes, and both have learnt."""
    for name, workers in (("one", 0), ("two", 2)):
        main(
            ReidTraining(
                data=people,
                out=tmp_path / name,
                **TINY | {"workers": workers, "dropout": 0.0, "epochs": 8.0, "milestones": (7.0,)},
            )
        )
    said = capsys.readouterr().out
    assert "2 x {'CPU': 1} of 8 CPUs, 0 GPUs" in said
    assert "2 workers on the CPU" in said  # the first worker's log reaches the terminal
    one, two = (load_reid(tmp_path / name / NETWORK) for name in ("one", "two"))
    assert one.class_names == two.class_names == tuple(f"person {index}" for index in range(5))
    assert one.record["steps"] == two.record["steps"] == 24
    for name in ("one", "two"):
        losses = [record["loss/real"] for record in read_history(tmp_path / name / HISTORY)]
        assert losses[-1] < losses[0] - 0.1  # ln 5 = 1.6 at the start


@pytest.mark.slow
def test_the_command_line_goes_on_where_it_stopped(call, people, tmp_path):
    out = tmp_path / "out"
    words = ["--preset", "tiny", "--data", people, "--out", out, "--batch", 8, "--epochs", 3, "--threads", 1]
    code, said, wrong = call("train_reid", *words, "--max-minutes", 0.000001)
    assert code == 0, wrong
    assert "the same command goes on" in said
    code, said, wrong = call("train_reid", *words)
    assert code == 0, wrong
    assert f"network: {out / NETWORK}" in said
    assert last_checkpoint(out).name == "000000009"
