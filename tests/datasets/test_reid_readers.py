"""Readers of re-ID data sets: small stand-ins with the published names and lists; what is odd is said in one line."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io

from datasets.reid_images import UNKNOWN_CAMERA, decode_listing
from datasets.reid_readers import has_split, read_split
from models.errors import InputError


def picture(path: Path, value: int = 128, height: int = 32, width: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), value, np.uint8))


def test_market_tree(tmp_path):
    for name in ("0002_c1s1_000451_03.jpg", "0007_c6s3_000001_01.jpg"):
        picture(tmp_path / "bounding_box_train" / name)
    for name in ("-1_c1s1_000401_03.jpg", "0000_c2s1_000001_00.jpg", "1501_c6s4_001877_01.jpg"):
        picture(tmp_path / "bounding_box_test" / name)
    picture(tmp_path / "query/1501_c1s1_000001_00.jpg")
    picture(tmp_path / "gt_bbox/1501_c1s1_000001_00.jpg")
    train = read_split(tmp_path, "train")
    assert train.identities.tolist() == [2, 7]
    assert train.cameras.tolist() == [1, 6]
    assert train.people == {2: "0002", 7: "0007"}
    (note,) = train.notes
    assert "2 images of 2 people, Market-1501 has 12,936 of 751 people" in note
    gallery = read_split(tmp_path, "gallery")
    assert sorted(gallery.identities.tolist()) == [-1, 0, 1501]
    assert gallery.people == {1501: "1501"}
    assert len(read_split(tmp_path, "multi-query")) == 1
    (tmp_path / "toy_crowd.json").write_text("{}")
    assert read_split(tmp_path, "train").notes == ()  # a toy crowd has any size
    picture(tmp_path / "query/somebody.jpg")
    with pytest.raises(InputError, match=r"1 of 2 images .* the first is 'somebody.jpg'"):
        read_split(tmp_path, "query")
    (tmp_path / "gt_bbox").rename(tmp_path / "elsewhere")
    assert [has_split(tmp_path, split) for split in ("train", "gallery", "multi-query")] == [True, True, False]


def test_duke_tree(tmp_path):
    picture(tmp_path / "bounding_box_train/0001_c2_f0046182.jpg")
    listing = read_split(tmp_path, "train")
    assert (listing.identities.tolist(), listing.cameras.tolist()) == ([1], [2])
    assert "DukeMTMC-reID has 16,522 of 702 people" in listing.notes[0]
    with pytest.raises(InputError, match="query: this data set has no such split"):
        read_split(tmp_path, "query")


def test_msmt17(tmp_path):
    """Its identities start at 0; a validation list belongs to training; V2's folders are masked ones."""
    for folder, name in (("train", "0000/0000_000_01_0303morning_0008_0.jpg"), ("train", "0001/0001_000_07_a_b_0.jpg")):
        picture(tmp_path / ("mask_train_v2" if folder == "train" else folder) / name)
    (tmp_path / "list_train.txt").write_text("0000/0000_000_01_0303morning_0008_0.jpg 0\n")
    (tmp_path / "list_val.txt").write_text("0001/0001_000_07_a_b_0.jpg 1\n")
    listing = read_split(tmp_path, "train")
    assert listing.identities.tolist() == [1, 2]
    assert listing.people == {1: "0000", 2: "0001"}
    assert listing.cameras.tolist() == [1, 7]
    assert len(decode_listing(listing, 32, 16)[1]) == 2
    (tmp_path / "list_val.txt").write_text("../../outside_000_01_x.jpg 1\n")
    with pytest.raises(InputError, match="list_val.txt, line 1"):
        read_split(tmp_path, "train")
    (tmp_path / "list_query.txt").write_text("0000/0000_000_01_x.jpg 0\n")
    with pytest.raises(InputError, match="has no folder mask_test_v2 or test"):
        read_split(tmp_path, "query")


def test_cuhk03_new_protocol(tmp_path):
    names = ["1_001_1_01.png", "1_001_2_06.png", "1_002_1_01.png", "2_001_2_01.png"]
    for name in names:
        picture(tmp_path / "images_labeled" / name)
    values = {
        "labels": [[1], [1], [2], [3]],
        "camId": [[1], [2], [1], [2]],
        "filelist": np.array(names, object)[:, None],
    }
    values |= {"train_idx": [[1], [2]], "query_idx": [[3]], "gallery_idx": [[4]]}
    scipy.io.savemat(tmp_path / "cuhk03_new_protocol_config_labeled.mat", values)
    train = read_split(tmp_path, "train")
    assert train.names == tuple(names[:2])
    assert train.identities.tolist() == [1, 1]
    assert train.cameras.tolist() == [1, 2]
    assert "CUHK03-NP labeled has 7,368 of 767 people" in train.notes[0]
    assert read_split(tmp_path, "gallery").names == (names[3],)


def test_cuhk03_that_is_still_packed(tmp_path):
    (tmp_path / "cuhk-03.mat").write_bytes(b"")
    with pytest.raises(InputError, match="the images are still in cuhk-03.mat: extract its images once"):
        read_split(tmp_path, "train")


def test_a_folder_with_one_folder_a_person(tmp_path):
    for person in ("Ana Méndez", "b", "c"):
        for index in range(3 if person != "c" else 1):
            picture(tmp_path / "own" / person / f"{index}.jpg")
    outside = tmp_path / "outside"
    picture(outside / "x.jpg")
    (tmp_path / "own/linked").symlink_to(outside)
    listing = read_split(tmp_path / "own", "train")
    assert listing.people == {1: "Ana Méndez", 2: "b", 3: "c"}  # links are not followed
    assert not listing.has_cameras
    query, gallery = (read_split(tmp_path / "own", split) for split in ("query", "gallery"))
    assert query.names == ("Ana Méndez/0.jpg", "b/0.jpg")
    assert len(gallery) == 5
    assert not set(query.names) & set(gallery.names)
    assert (
        "so the first image of each of 2 people is a query and the other 5 images are the gallery; no camera rule"
        in query.notes[0]
    )


def test_a_folder_with_cameras_in_its_names_and_splits(tmp_path):
    for split in ("query", "gallery", "train"):
        picture(tmp_path / split / "7" / f"a_c{len(split)}_1.jpg")
    assert read_split(tmp_path, "gallery").cameras.tolist() == [7]
    assert read_split(tmp_path, "query").cameras.tolist() == [5]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        read_split(tmp_path / "empty", "train")
    with pytest.raises(InputError, match="no file or folder .*nowhere: check the path"):
        read_split(tmp_path / "nowhere", "train")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table(tmp_path, suffix):
    columns = {
        "path": ["a.jpg", "b.jpg", str(tmp_path / "c.jpg")], "identity": ["007", "7", "x"], "camera": ["1", "", "3"],
        "split": ["train", "query", "gallery"],
    }  # fmt: skip
    write_table(tmp_path / f"t.{suffix}", columns)
    for name in "abc":
        picture(tmp_path / f"{name}.jpg")
    assert read_split(tmp_path / f"t.{suffix}", "train").people == {1: "007"}  # not 7: zeros are kept
    gallery = read_split(tmp_path / f"t.{suffix}", "gallery")
    assert gallery.contents == (tmp_path / "c.jpg",)
    assert gallery.cameras.tolist() == [3]
    query = read_split(tmp_path / f"t.{suffix}", "query")
    assert query.cameras.tolist() == [UNKNOWN_CAMERA]
    assert query.contents == (tmp_path / "b.jpg",)


def write_table(path: Path, columns: dict) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return
    lines = [",".join(columns), *(",".join(row) for row in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["a.jpg"], "person": ["1"]}, "no column 'identity', it has path, person"),
        (
            {"path": ["a.jpg"], "identity": ["1"], "camera": ["front"]},
            "row 1 has the camera 'front': give a whole number",
        ),
        ({"path": ["a.jpg", "b.jpg"], "identity": ["1", ""]}, "row 2 has no identity: fill it in"),
        ({"path": ["a.jpg", "a.jpg"], "identity": ["1", "2"]}, "rows 1 and 2 say different things of 'a.jpg'"),
        (
            {"path": ["a.jpg"], "identity": ["1"], "split": ["testing"]},
            "no row's split is 'train'; the column split says testing",
        ),
        ({"path": [], "identity": []}, "has no rows"),
    ],
)
def test_tables_that_cannot_be_used_are_one_clear_line(tmp_path, columns, message):
    write_table(tmp_path / "t.csv", columns)
    with pytest.raises(InputError) as caught:
        read_split(tmp_path / "t.csv", "train")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_corrupt_image_in_the_middle_is_listed_not_fatal(tmp_path):
    for index in range(5):
        picture(tmp_path / "p" / f"{index}.jpg", 20 * index)
    (tmp_path / "p/2.jpg").write_bytes((tmp_path / "p/2.jpg").read_bytes()[:40])
    (tmp_path / "p/3.jpg").write_bytes(b"")
    images, places, unreadable = decode_listing(read_split(tmp_path, "train"), 16, 8)
    assert places.tolist() == [0, 1, 4]
    assert unreadable == ("p/2.jpg", "p/3.jpg")
    assert images.shape == (3, 16, 8, 3)
    assert abs(images.mean((1, 2, 3)) - [0, 20, 80]).max() < 2
    for index in range(5):
        (tmp_path / f"p/{index}.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="none of 5 images can be read, the first is 'p/0.jpg'"):
        decode_listing(read_split(tmp_path, "train"), 16, 8)
