"""Scores of a network, a folder, a run and a tree against held-out people; without Ray, and once on it."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.people import image_sets
from datasets.people.image_sets import run_images
from datasets.runs.card import pose_layers
from datasets.storage.output import Output
from jobs.score import Config, main, reference_set, scored_set
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.weights import WEIGHTS
from tests.helpers import export_runs as runs


@pytest.fixture(autouse=True)
def own_features(tmp_path, monkeypatch):
    """A feature cache for each test; the downloaded networks stay where they are."""
    from passersby import weights

    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "inception-2015").symlink_to(weights.get("inception-2015").parent)
    monkeypatch.setenv("PASSERSBY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def tree(tmp_path) -> Path:
    """6 training pictures of 3 people, 7 held-out ones of 2, and junk and distractors that must not be looked at."""
    root = tmp_path / "crowd"
    names = {
        "bounding_box_train": [f"{person:04}_c{camera}s1_000001_01.jpg" for person in (1, 2, 3) for camera in (1, 2)],
        "query": ["0010_c1s1_000001_01.jpg", "0011_c1s1_000001_01.jpg"],
        "bounding_box_test": [f"0010_c2s1_00000{i}_01.jpg" for i in range(5)]
        + ["-1_c1s1_000001_01.jpg", "0000_c1s1_000001_01.jpg"],
    }
    for folder, files in names.items():
        (root / folder).mkdir(parents=True)
        for number, name in enumerate(files):
            size = (16, 32)  # 32 high: twice that of the runs below
            picked = cv2.resize(cv2.imdecode(np.frombuffer(runs.picture(len(folder), number), np.uint8), 1), size)
            cv2.imwrite(str(root / folder / name), picked)
    return root


@pytest.fixture
def config(tmp_path, tree) -> Config:
    return Config(out=str(tmp_path / "out"), reference=tree, workers=0)


def scored(config: Config, **changes) -> dict:
    config = dataclasses.replace(config, **changes)
    main(config)
    return json.loads((Path(config.out) / "score.json").read_text())


@pytest.mark.slow
def test_a_network_against_held_out_people(config, network, capsys, own_features):
    record = scored(config, network=str(network), people=8, seed=3)
    assert list(record["scores"]) == ["fid", "kid", "kid_std", "precision", "recall", "density", "coverage"]
    assert record["scores"]["fid"] > 1
    assert record["compared_at"] == {"height": 64, "width": 32}
    assert (record["scored"]["images"], record["reference"]["images"], record["reference"]["people"]) == (8, 7, 2)
    assert record["inception"]["sha256"] == WEIGHTS["inception-2015"].files[0].sha256
    out = capsys.readouterr().out
    assert "seeds 3 to 10, truncation 1" in out
    assert "7 images of 2 held-out people" in out
    assert "reference images are brought from 32x16 to 64x32 by enlarging" in out
    assert "FID of 8 against 7 images is biased upwards" in out
    assert f"FID                {record['scores']['fid']:8.2f}" in out
    assert (Path(config.out) / "fid.md").read_text().count("| StyleGAN3 of the study | 9.29 |") == 1
    assert len(list(own_features.iterdir())) == 1  # of the reference alone
    again = scored(config, network=str(network), people=8, seed=3)
    assert again["scores"] == record["scores"]
    assert len(list(own_features.iterdir())) == 1
    other, _ = scored_set(dataclasses.replace(config, network=str(network), people=8, seed=4))
    assert other.sha256 != record["scored"]["sha256"]


@pytest.mark.slow
def test_real_images_of_the_same_people_are_nearest(config, tree):
    same = scored(config, tree=tree, split="held-out")
    assert same["scores"]["fid"] < 1e-3
    assert same["compared_at"] == {"height": 32, "width": 16}
    other = scored(config, tree=tree)
    assert other["scores"]["fid"] > 1
    assert other["scored"]["description"] == "crowd: 6 images of 3 training people"
    assert scored(config, tree=tree, reference_split="train")["scores"]["fid"] < 1e-3


@pytest.mark.slow
def test_a_run_is_scored_by_its_kept_images_or_by_all(config, tmp_path, capsys):
    runs.make_run(str(tmp_path / "run"), people=3, variants=6)
    record = scored(config, run=str(tmp_path / "run"))
    count = sum(runs.kept(person, variant) for person in range(3) for variant in range(6))
    assert record["scored"]["images"] == count == 8
    assert record["compared_at"] == {"height": 16, "width": 8}
    assert "reference images are brought from 32x16 to 16x8 by averaging areas" in record["notes"]
    everything, _ = scored_set(dataclasses.replace(config, run=str(tmp_path / "run"), verdict="all"))
    assert everything.count == 18
    chosen = run_images(Output(str(tmp_path / "run")), "kept", None, 50)
    expected = [runs.picture(p, v) for p in range(3) for v in range(6) if runs.kept(p, v)]
    assert [content for row in chosen.rows for content in row["image"]] == expected


@pytest.mark.slow
def test_a_folder_flat_or_of_people_with_a_limit(config, tmp_path):
    folder = tmp_path / "images"
    for number in range(9):
        path = folder / ("" if number % 2 else "person") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(runs.picture(1, number, ".png"))
    (folder / "broken.jpg").write_bytes(b"nothing")
    (folder / "notes.txt").write_text("no image")
    record = scored(config, folder=folder)
    assert (record["scored"]["images"], record["scored"]["unreadable"]) == (9, 1)
    few = reference_set(dataclasses.replace(config, images=6))
    assert few.count == 6
    assert few == reference_set(dataclasses.replace(config, images=6))
    assert few != reference_set(dataclasses.replace(config, images=6, seed=1))
    (folder / "other.png").write_bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    with pytest.raises(InputError, match="no one size .9 of 16x8, 1 of 8x8.: give --height and --width"):
        scored(config, folder=folder)
    main(dataclasses.replace(config, folder=folder, height=8, width=8, dry_run=True))


def test_a_dry_run_computes_and_writes_nothing(config, network, capsys, own_features):
    main(dataclasses.replace(config, network=str(network), dry_run=True))
    assert "reference  crowd: 7 images" in capsys.readouterr().out
    assert not Path(config.out).exists()
    assert not own_features.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_on_ray_the_scores_are_the_same(config, network, monkeypatch):
    monkeypatch.setattr("pipeline.features.ROW_IMAGES", 4)  # three units, which may come in any order
    here = scored(config, network=str(network), people=10)
    there = scored(config, network=str(network), people=10, workers=2, generators=1)
    # Other numbers of threads sum in other orders.
    assert there["scores"] == pytest.approx(here["scores"], abs=1e-3)
    assert there["scored"] == here["scored"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "nothing to score: give one of --network"),
        ({"network": "n", "folder": Path("f")}, "--network and --folder to score: give one"),
        ({"folder": Path("/nonexistent")}, "/nonexistent is not a folder"),
        ({"network": "/nonexistent.pkl"}, "--network /nonexistent.pkl: no such file"),
        ({"run": "/nonexistent"}, "--run /nonexistent: no plan.json there"),
        ({"tree": Path("/nonexistent")}, "/nonexistent: there is no such folder or table"),
        ({"people": 5, "network": "n"}, "--people 5: must be 6 or more"),
        ({"images": 0, "network": "n"}, "--images 0: must be 6 or more"),
        ({"height": 32, "network": "n"}, "--height 32 --width None: give both"),
        ({"seed": -1, "network": "n"}, "--seed -1: must be 0 or more"),
        ({"network": "n", "out": None}, "--out is missing: give a folder for the scores"),
        ({"network": "n", "reference": None}, "--reference is missing: give a data set of real people"),
        ({"network": "n", "identity": "reid"}, "--identity reid: it belongs to --card"),
        ({"network": "n", "layers": "pose"}, "--layers pose: it belongs to --card"),
        ({"network": "n", "quick": True}, "--quick True: it belongs to --card"),
        ({"network": "n", "fid_images": 9}, "--fid-images 9: it belongs to --card"),
        ({"network": "n", "card_train": 9}, "--card-train 9: it belongs to --card"),
        ({"network": "n", "truncation_psi": (0.7, 1.0)}, "--truncation-psi 0.7 1: several belong to --card; give one"),
        ({"card": True, "out": None, "workers": None, "fid_images": 5}, "--fid-images 5: must be 6 or more"),
        ({"card": True}, "has no meaning with --card: leave it out"),
        ({"card": True, "out": None, "run": "r"}, "--run r: it has no meaning with --card"),
        (
            {"card": True, "out": None, "workers": None, "folder": Path("f")},
            "--folder f: it has no meaning with --card",
        ),
        ({"card": True, "out": None, "workers": None, "network": "/nonexistent.pkl"}, "/nonexistent.pkl: no such file"),
        ({"card": True, "out": None, "workers": None, "people": 5}, "--people 5: must be 6 or more"),
    ],
)
def test_bad_input_is_refused(config, changes, message):
    with pytest.raises(InputError) as caught:
        main(dataclasses.replace(config, **changes))
    assert message in str(caught.value)


def test_references_that_cannot_be_used_are_refused(config, network, tmp_path):
    with pytest.raises(InputError, match="is no data set with training and test people"):
        main(dataclasses.replace(config, network=str(network), reference=tmp_path, reference_split="train"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images .jpg, png, webp, bmp, tif. in .*empty"):
        main(dataclasses.replace(config, network=str(network), reference=tmp_path / "empty"))
    other = tmp_path / "other.pt"
    other.write_bytes(b"other")
    with pytest.raises(InputError, match="other.pt is not inception-2015.pt: .*--inception"):
        main(dataclasses.replace(config, network=str(network), inception=str(other)))
    runs.make_run(str(tmp_path / "run"), people=2, variants=2)
    (tmp_path / "run" / "manifest.parquet").unlink()
    with pytest.raises(InputError, match="no manifest.parquet says which images are kept: .*--verdict all"):
        main(dataclasses.replace(config, run=str(tmp_path / "run")))


@pytest.mark.slow
def test_a_card_is_written_beside_the_network_and_the_network_stays(config, network, tmp_path, capsys):
    path = tmp_path / "net.safetensors"
    path.write_bytes(network.read_bytes())
    alone = dataclasses.replace(config, card=True, out=None, reference=None, workers=None, network=str(path), people=6)
    threads = torch.get_num_threads()
    main(dataclasses.replace(alone, dry_run=True))
    assert not (tmp_path / "net.card.json").exists()
    main(alone)
    torch.set_num_threads(threads)
    card = json.loads((tmp_path / "net.card.json").read_text())
    assert card["network"]["sha256"] == file_sha256(path) == file_sha256(network)
    assert (card["layers"]["sample"]["people"], card["layers"]["sample"]["gallery"]) == (6, 24)
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == str(tmp_path / "net.card.json")
    assert "images/s" in said.err  # progress
    assert pose_layers(path, file_sha256(path)).layers == tuple(card["layers"]["pose"])


def test_from_the_command_line_bad_input_is_one_line_and_exit_code_2(call, tmp_path):
    code, _, wrong = call("score", "--reference", "/nonexistent", "--out", tmp_path)
    assert code == 2
    assert wrong == "error: nothing to score: give one of --network, --folder, --run, --tree\n"


def test_a_data_set_as_folder_is_listed_by_its_reader_and_not_with_its_test_people(config, tree, tmp_path):
    images, _ = scored_set(dataclasses.replace(config, folder=tree))
    assert (images.kind, images.count, images.people) == ("tree", 6, 3)
    assert "6 images of 3 training people" in images.description
    images, _ = scored_set(dataclasses.replace(config, folder=tree, split="held-out"))
    assert (images.count, images.people) == (7, 2)
    for split, folders in (("train_all", "bounding_box_train"), ("query", "query"), ("gallery", "bounding_box_test")):
        for path in (tree / folders).iterdir():
            target = tmp_path / "pytorch" / split / path.name.partition("_")[0] / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    layumi = dataclasses.replace(config, reference=tmp_path / "pytorch")
    assert reference_set(layumi).count == 7
    assert reference_set(dataclasses.replace(layumi, reference_split="train")).count == 6


def test_what_operating_systems_leave_is_counted_in_a_score(config, tree, tmp_path):
    for name in ("Thumbs.db", "._0010_c2s1_000000_01.jpg"):
        (tree / "bounding_box_test" / name).write_bytes(b"x")
    images = reference_set(config)
    assert images.count == 7
    assert images.notes == ("crowd (Market-1501) query and crowd (Market-1501) gallery: 2 files of operating systems "
                            "(._*, Thumbs.db and the like) are left out",)  # fmt: skip
    assert len(image_sets.folder_images(tree / "bounding_box_test", 99).notes) == 1
