"""The pictures to invert: who is listed, who is refused, and the rows of units."""

import os
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from datasets.latents.pictures import list_pictures
from datasets.latents.plan import InversionUnit
from passersby.errors import InputError

PNG = cv2.imencode(".png", np.full((16, 8, 3), 90, np.uint8))[1].tobytes()
TRAIN = ["0002_c1s1_000001_00.jpg", "0002_c2s1_000002_00.jpg", "0007_c3s1_000001_00.jpg", "-1_c1s1_000009_00.jpg"]
QUERY = ["0005_c1s1_000001_00.jpg"]
GALLERY = ["0005_c2s1_000001_00.jpg", "0000_c1s1_000001_00.jpg", "-1_c1s1_000001_00.jpg", "0006_c2s1_000001_00.jpg"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "tree"
    for folder, names in (("bounding_box_train", TRAIN), ("query", QUERY), ("bounding_box_test", GALLERY)):
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).write_bytes(PNG)
    return root


def test_training_people_in_the_order_of_their_identities_without_junk(tree):
    pictures = list_pictures(tree, ["train"])
    assert pictures.name == "tree"
    assert pictures.counts == (2, 1)
    assert pictures.names(2) == ["0002", "0007"]
    assert pictures.listing.names == tuple(f"bounding_box_train/{name}" for name in TRAIN[:3])
    assert any("1 junk images and distractors are left out" in note for note in pictures.listing.notes)
    row = pictures.row(InversionUnit(unit=4, first_person=0, people=2, pictures=3))
    assert row == {
        "unit": 4,
        "person": [0, 0, 1],
        "identity": [2, 2, 7],
        "name": ["0002", "0002", "0007"],
        "path": [f"bounding_box_train/{name}" for name in TRAIN[:3]],
        "camera": [1, 2, 3],
        "split": ["train"] * 3,
        "file": [os.fsencode(tree / "bounding_box_train" / name) for name in TRAIN[:3]],
    }
    assert pictures.row(InversionUnit(1, 1, 1, 1))["person"] == [1]


def test_test_people_only_where_asked_for_and_apart_from_training_people(tree):
    with pytest.raises(InputError, match=r"^--splits query: query shows people .* --allow-test-people"):
        list_pictures(tree, ["query"])
    with pytest.raises(InputError, match="two --out folders"):
        list_pictures(tree, ["train", "gallery"], allow_test_people=True)
    pictures = list_pictures(tree, ["query", "gallery"], allow_test_people=True)
    assert pictures.counts == (2, 1)  # without junk and distractors
    assert pictures.listing.splits == ("query", "gallery", "gallery")
    assert pictures.listing.identities.tolist() == [5, 5, 6]
    assert pictures.listing.names[0] == "query/0005_c1s1_000001_00.jpg"


@pytest.mark.parametrize("splits", [[], ["train", "train"], ["nowhere"]])
def test_splits_that_are_none_are_refused(tree, splits):
    with pytest.raises(InputError, match="--splits"):
        list_pictures(tree, splits, allow_test_people=True)


def test_most_pictures_of_one_person_are_spread_and_the_fingerprint_is_of_all(tmp_path):
    for index in range(7):
        (tmp_path / "crowd" / "anna").mkdir(parents=True, exist_ok=True)
        (tmp_path / "crowd" / "anna" / f"{index}.png").write_bytes(PNG)
    (tmp_path / "crowd" / "bob").mkdir()
    (tmp_path / "crowd" / "bob" / "0.png").write_bytes(PNG)
    everything = list_pictures(tmp_path / "crowd", ["train"])
    assert everything.counts == (7, 1)
    assert everything.names(2) == ["anna", "bob"]
    some = list_pictures(tmp_path / "crowd", ["train"], most=3)
    assert some.listing.names == ("anna/0.png", "anna/3.png", "anna/6.png", "bob/0.png")
    assert some.fingerprint == everything.fingerprint
    (tmp_path / "crowd" / "bob" / "0.png").write_bytes(PNG + b"more")
    assert list_pictures(tmp_path / "crowd", ["train"]).fingerprint != everything.fingerprint


def test_a_table_and_a_relative_path_work(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "table.csv").write_text("path,identity,camera\na.png,anna,2\n")
    monkeypatch.chdir(tmp_path)
    pictures = list_pictures("table.csv", ["train"])
    row = pictures.row(InversionUnit(0, 0, 1, 1))
    assert (row["file"], row["path"], row["name"], row["camera"]) == (
        [os.fsencode(tmp_path / "a.png")], ["a.png"], ["anna"], [2],
    )  # fmt: skip


def test_names_that_are_not_utf_8_are_inverted_as_well(tmp_path):
    folder = tmp_path / "crowd" / "anna"
    folder.mkdir(parents=True)
    try:
        (folder / "\udcff.png").write_bytes(PNG)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    row = list_pictures(tmp_path / "crowd", ["train"]).row(InversionUnit(0, 0, 1, 1))
    assert (row["file"], row["path"]) == ([os.fsencode(folder) + b"/\xff.png"], ["anna/\\xff.png"])
    table = pa.table({name: [value] for name, value in row.items()})  # as it travels to workers
    assert table["file"][0].as_py() == row["file"]
