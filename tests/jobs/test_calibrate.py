"""The job that proposes thresholds, on a few people of the toy crowd, without Ray."""

import dataclasses
import json
import os
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from datasets.people.listing import UNKNOWN_PERSON
from datasets.toy_crowd import tree as toy_tree
from jobs import refilter
from jobs.calibrate import Config, main, real_images
from passersby import weights
from passersby.errors import InputError
from passersby.yolo.pedestrian_filter import PedestrianFilter


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """6 training people of the toy crowd, with test people beside them."""
    root = tmp_path_factory.mktemp("calibrate") / "crowd"
    for name in (toy_tree.TRAIN, toy_tree.QUERY, toy_tree.GALLERY):
        (root / name).mkdir(parents=True)
    toy_tree.write_pictures(root, toy_tree.plan(toy_tree.TreeOptions(6, 2, 2, 2, 2, 2, 2)), 1, lambda done: None)
    return root


@pytest.fixture
def config(tmp_path, tree) -> Config:
    return Config(data=str(tree), out=str(tmp_path / "out"), workers=0, device="cpu")


def calibrated(config: Config, **changes) -> dict:
    config = dataclasses.replace(config, **changes)
    main(config)
    return json.loads((Path(config.out) / "calibration.json").read_text())


def pixels(path: Path) -> np.ndarray:
    return cv2.imread(str(path))[:, :, ::-1]


@pytest.mark.slow
def test_curve_and_similarities_are_those_of_the_files(config, tree, capsys):
    record = calibrated(config, reject=0.3, ssim_lost=0.1)
    files = sorted((tree / "bounding_box_train").iterdir())
    assert record["data"]["images"] == len(files)
    assert record["data"]["people"] == 6
    network = PedestrianFilter(weights.get("yolov4-tiny"), 128, 64)
    # one at a time: other orders of float32 sums than in batches of 16, so near a threshold one image may differ
    scores = np.array([network.scores(pixels(path)[None])[0] for path in files])
    curve = dict(record["detector"]["curve"])
    for threshold in (0.3, 0.6, 0.9):
        if (abs(scores - threshold) > 1e-4).all():
            assert curve[threshold] == pytest.approx((scores < threshold).mean())
    assert (scores < record["detector"]["threshold"]).mean() <= 0.3
    assert (scores < record["detector"]["threshold"] + 0.0011).mean() > 0.3
    people = [path.name[:4] for path in files]
    pairs = [(i, j) for i in range(len(files)) for j in range(i) if people[i] == people[j]]
    for part, data_range in zip(record["ssim"], (4095.0, 255.0), strict=True):
        expected = [
            structural_similarity(pixels(files[i]), pixels(files[j]), data_range=data_range, channel_axis=2)
            for i, j in pairs
        ]
        assert (part["data_range"], part["pairs"]) == (data_range, len(pairs))
        assert part["percentiles"]["50"] == pytest.approx(np.median(expected), abs=1e-9)
        assert (np.array(expected) < part["floor"]).mean() <= 0.1
        assert (np.array(expected) > part["ceiling"]).mean() <= 0.1
        assert sum(part["histogram"]["pairs"]) == len(pairs)
    printed = capsys.readouterr().out
    assert "in the study" in printed
    assert cv2.imread(str(Path(config.out) / "calibration.png")) is not None
    # the printed command is one that jobs/refilter.py takes
    line = next(line for line in printed.splitlines() if "refilter.py" in line)
    assert line == record["commands"][1]
    words = shlex.split(line)[2:]
    values = {name[2:].replace("-", "_"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    assert set(values) <= {field.name for field in dataclasses.fields(refilter.Config)}
    assert float(values["ssim_floor"]) == record["ssim"][0]["floor"]


def test_flat_folders_know_people_by_their_names_or_not_at_all(config, tree, tmp_path, capsys):
    flat = tmp_path / "flat"
    shutil.copytree(tree / "bounding_box_train", flat)
    (flat / "README.md").write_text("no image")
    assert set(real_images(str(flat), "train").identities.tolist()) == set(
        real_images(str(tree), "train").identities.tolist()
    )
    (flat / "holiday.jpg").write_bytes(b"broken")
    listing = real_images(str(flat), "train")
    assert set(listing.identities.tolist()) == {UNKNOWN_PERSON}  # nobody knows who they are
    record = calibrated(config, data=str(flat))
    assert record["data"]["unreadable"] == 1
    assert record["ssim"] == []
    assert "--ssim-floor" not in record["commands"][0]
    printed = capsys.readouterr().out
    assert "'holiday.jpg'" in printed
    assert "nobody knows who" in printed


def test_a_folder_of_people_and_fewer_images(config, tree, tmp_path):
    folder = tmp_path / "people"
    for path in (tree / "bounding_box_train").iterdir():
        target = folder / path.name[:4] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
    everything = real_images(str(folder), "train")
    assert len(everything.people) == 6
    record = calibrated(config, data=str(folder), most_images=5, height=64, width=32)
    assert record["data"]["images"] == 5
    assert record["size"] == {"height": 64, "width": 32}
    again = calibrated(config, data=str(folder), most_images=5, height=64, width=32)
    assert again["detector"] == record["detector"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reject": 1.0}, "--reject 1.0"),
        ({"reject": float("nan")}, "--reject nan"),
        ({"ssim_lost": 0.5}, "--ssim-lost 0.5"),
        ({"most_images": 0}, "--most-images 0"),
        ({"width": 4}, "--width 4"),
        ({"data": "/nowhere"}, "no such folder"),
        ({"yolo_weights": "/nowhere.weights"}, "--yolo-weights"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(config, changes, message):
    with pytest.raises(InputError, match=message):
        main(dataclasses.replace(config, **changes))
    assert not Path(config.out).exists()
