"""People's own pictures: folders, tables and runs; with and without cameras and splits."""

import os
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.people import folders
from datasets.people.decoding import decode_listing
from datasets.people.listing import UNKNOWN_CAMERA
from datasets.people.readers import read_split
from passersby.errors import InputError
from tests.helpers import export_runs


def picture(path: Path, value: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((32, 16, 3), value, np.uint8))


def write_table(path: Path, columns: dict, delimiter: str = ",") -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return path
    lines = [delimiter.join(columns), *(delimiter.join(row) for row in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_folder_with_one_folder_a_person(tmp_path):
    for person in ("Ana Méndez", "b", "c"):
        for index in range(3 if person != "c" else 1):
            picture(tmp_path / "own" / person / f"{index}.jpg")
    listing = read_split(tmp_path / "own", "train")
    assert listing.people == {1: "Ana Méndez", 2: "b", 3: "c"}
    assert listing.notes == ()
    assert not listing.has_cameras
    query, gallery = (read_split(tmp_path / "own", split) for split in ("query", "gallery"))
    assert query.names == ("Ana Méndez/0.jpg", "b/0.jpg")
    assert len(gallery) == 5
    assert not set(query.names) & set(gallery.names)
    assert "the first image of each of 2 people is a query and the other 5 images are the gallery" in query.notes[0]
    with pytest.raises(InputError, match="no split multi-query"):
        read_split(tmp_path / "own", "multi-query")


def test_derived_queries_have_no_camera_rule(tmp_path):
    for index in range(2):
        picture(tmp_path / "p" / f"{index}_c1.jpg")  # one camera: its rule would leave the query without a match
    assert read_split(tmp_path, "train").has_cameras
    assert not read_split(tmp_path, "query").has_cameras
    assert not read_split(tmp_path, "gallery").has_cameras


def test_nobody_with_two_images_is_one_line(tmp_path):
    for person in "ab":
        picture(tmp_path / person / "1.jpg")
    with pytest.raises(InputError, match="nobody of 2 people has two images"):
        read_split(tmp_path, "query")


def test_links_out_of_a_folder_are_not_followed(tmp_path):
    picture(tmp_path / "own/a/1.jpg")
    picture(tmp_path / "outside/x.jpg")
    (tmp_path / "own/linked").symlink_to(tmp_path / "outside")
    (tmp_path / "own/a/2.jpg").symlink_to(tmp_path / "outside/x.jpg")
    (tmp_path / "own/a/3.jpg").symlink_to(tmp_path / "own/a/1.jpg")
    (tmp_path / "own/a/sub").symlink_to(tmp_path / "own/a")  # a circle
    listing = read_split(tmp_path / "own", "train")
    assert listing.names == ("a/1.jpg", "a/3.jpg")
    assert listing.people == {1: "a"}
    assert "2 links to folders, or out of the folder, are not followed" in listing.notes[0]


def test_what_is_odd_in_a_folder_is_one_line(tmp_path):
    picture(tmp_path / "a/deep/1_c2.jpg")
    picture(tmp_path / "a/2.jpg")
    picture(tmp_path / "loose.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a/._1.jpg").write_bytes(b"what macOS leaves")
    (tmp_path / "a/3.gif").write_bytes(b"")
    listing = read_split(tmp_path, "train")
    assert listing.names == ("a/2.jpg", "a/deep/1_c2.jpg")
    odd, clutter, cameras = listing.notes
    assert "1 files of operating systems" in clutter
    assert "1 sub-folders hold no images; 1 images lie in no sub-folder" in odd
    assert "1 images are not JPEG, PNG, WebP, BMP or TIFF: left out" in odd
    assert "the camera of 1 of 2 images is known, so no camera rule is applied" in cameras


@pytest.mark.parametrize(
    ("name", "camera"),
    [("x_c3.jpg", 3), ("C12_a.jpg", 12), ("0002_c1s1_000451_03.jpg", 1), ("0001_c2_f0046182.jpg", 2), ("a_c3-1.png", 3),
     ("a_c4ab.jpg", UNKNOWN_CAMERA), ("abc5_1.jpg", UNKNOWN_CAMERA), ("x_cam3.jpg", UNKNOWN_CAMERA)],
)  # fmt: skip
def test_cameras_in_names(tmp_path, name, camera):
    picture(tmp_path / "p" / name)
    assert read_split(tmp_path, "train").cameras.tolist() == [camera]


def test_folders_for_splits(tmp_path):
    """Identities are the same in all splits; -1 is junk, Market-named 0000 distractors, as layumi has them."""
    for split, camera in (("query", 5), ("gallery", 7), ("train", 1)):
        picture(tmp_path / split / "7" / f"a_c{camera}_1.jpg")
    picture(tmp_path / "train/3/a_c1_1.jpg")
    picture(tmp_path / "gallery/-1/-1_c1s1_000001_00.jpg")
    picture(tmp_path / "gallery/0000/0000_c1s1_000001_00.jpg")
    query, gallery, train = (read_split(tmp_path, split) for split in ("query", "gallery", "train"))
    assert gallery.cameras.tolist() == [1, 1, 7]
    assert query.identities[0] == gallery.identities[2] > 0
    assert sorted(gallery.identities[:2].tolist()) == [-1, 0]
    assert sorted(train.people.values()) == ["3", "7"]
    assert query.notes == ()
    picture(tmp_path / "train_all/9/a_c1_1.jpg")
    assert sorted(read_split(tmp_path, "train").people.values()) == ["9"]
    with pytest.raises(InputError, match="no people for multi-query"):
        read_split(tmp_path, "multi-query")


def test_query_and_gallery_beside_people(tmp_path):
    for folder in ("query/x", "gallery/x", "y"):
        picture(tmp_path / folder / "1.jpg")
    assert list(read_split(tmp_path, "train").people.values()) == ["y"]
    assert list(read_split(tmp_path, "query").people.values()) == ["x"]
    (tmp_path / "y/1.jpg").unlink()
    (tmp_path / "y").rmdir()
    with pytest.raises(InputError, match="has no people for train"):
        read_split(tmp_path, "train")


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        read_split(tmp_path / "empty", "train")
    picture(tmp_path / "flat/a.jpg")
    with pytest.raises(InputError, match="1 images lie directly in it: make one sub-folder a person"):
        read_split(tmp_path / "flat", "train")
    (tmp_path / "file.zip").touch()
    with pytest.raises(InputError, match="is a file, and no table"):
        read_split(tmp_path / "file.zip", "train")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table(tmp_path, suffix):
    for name in "abc":
        picture(tmp_path / f"{name}.jpg")
    columns = {
        "path": ["a.jpg", "b.jpg", str(tmp_path / "c.jpg")], "identity": ["007", "7", "x"], "camera": ["1", "", "3"],
        "split": ["train", "query", "test"],
    }  # fmt: skip
    path = write_table(tmp_path / f"t.{suffix}", columns)
    assert list(read_split(path, "train").people.values()) == ["007"]  # not 7: zeros are kept
    gallery = read_split(path, "gallery")
    assert gallery.contents == (tmp_path / "c.jpg",)
    assert gallery.cameras.tolist() == [3]
    query = read_split(path, "query")
    assert query.cameras.tolist() == [UNKNOWN_CAMERA]
    assert query.contents == (tmp_path / "b.jpg",)
    assert "1 of 1 people are not in the gallery, the first is '7'" in query.notes[-1]
    with pytest.raises(InputError, match="no row.s split is .multi-query"):
        read_split(path, "multi-query")


def test_a_table_as_spreadsheets_and_pandas_write_it(tmp_path):
    for index in range(3):
        picture(tmp_path / f"{index}.jpg")
    path = tmp_path / "t.csv"
    path.write_text('Path;Identity;camera;other\n0.jpg;"Zoë; Q";1.0;9\n1.jpg;"Zoë; Q";;9\n2.jpg;-1;2;\n', "utf-8-sig")
    listing = read_split(path, "train")
    assert list(listing.people.values()) == ["Zoë; Q"]
    assert listing.cameras.tolist() == [1, UNKNOWN_CAMERA]
    assert "1 junk images" in listing.notes[-1]
    columns = {"path": ["0.jpg", "1.jpg"], "identity": [4, 12], "camera": [1.0, float("nan")]}
    listing = read_split(write_table(tmp_path / "t.parquet", columns), "train")
    assert listing.people == {1: "4", 2: "12"}
    assert listing.cameras.tolist() == [1, UNKNOWN_CAMERA]
    words = pa.array(["p", "p"]).dictionary_encode()
    assert len(read_split(write_table(tmp_path / "d.parquet", columns | {"identity": words}), "query")) == 1


@pytest.mark.parametrize(
    "ways", [("p.jpg", "./p.jpg"), ("p.jpg", "../x/p.jpg"), (".\\p.jpg", "p.jpg"), ("a\\q.jpg", "a/q.jpg"),
             ("..\\x\\p.jpg", "a/../p.jpg", "{root}/p.jpg", "{root}/./p.jpg")],
)  # fmt: skip
def test_one_file_written_in_several_ways_counts_once(tmp_path, ways):
    for name in ("p.jpg", "a/q.jpg", "r.jpg"):
        picture(tmp_path / "x" / name)
    paths = [way.format(root=tmp_path / "x") for way in ways]
    columns = {"path": [*paths, "r.jpg"], "identity": ["1"] * len(paths) + ["2"]}
    listing = read_split(write_table(tmp_path / "x/t.csv", columns), "train")
    assert len(listing) == 2
    assert f"{len(ways) - 1} rows repeat an earlier one" in listing.notes[0]
    assert decode_listing(listing, 8, 4)[2] == ()
    columns["identity"][0] = "other"
    with pytest.raises(InputError, match="rows 1 and 2 say different things"):
        read_split(write_table(tmp_path / "x/t.csv", columns), "train")


def test_a_backslash_that_is_a_file_s_own_stays(tmp_path):
    picture(tmp_path / "a\\b.jpg")
    listing = read_split(write_table(tmp_path / "t.csv", {"path": ["a\\b.jpg"], "identity": ["1"]}), "train")
    assert decode_listing(listing, 8, 4)[2] == ()


def test_rows_of_files_that_operating_systems_leave_are_left_out_and_counted(tmp_path):
    picture(tmp_path / "a.jpg")
    columns = {"path": ["a.jpg", "._a.jpg", "Thumbs.db", "__MACOSX/a.jpg"], "identity": ["1"] * 4}
    listing = read_split(write_table(tmp_path / "t.csv", columns), "train")
    assert listing.names == ("a.jpg",)
    assert listing.notes == ("t.csv: 3 files of operating systems (._*, Thumbs.db and the like) are left out",)


def not_utf_8(folder: Path, name: bytes) -> Path:
    """A picture whose name has these bytes."""
    path = folder / os.fsdecode(name)
    try:
        folder.mkdir(parents=True)
        # OpenCV itself crashes on such a path.
        path.write_bytes(cv2.imencode(".jpg", np.full((32, 16, 3), 128, np.uint8))[1].tobytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    return path


def test_names_that_are_not_utf_8_are_carried_and_shown_as_numbers(tmp_path):
    path = not_utf_8(tmp_path / "p" / "a", b"caf\xe9_c1.jpg")
    picture(tmp_path / "p/a/z_c2.jpg")
    listing = read_split(tmp_path / "p", "train")
    assert listing.names == ("a/caf\\xe9_c1.jpg", "a/z_c2.jpg")
    assert listing.contents[0] == path
    assert decode_listing(listing, 8, 4)[2] == ()
    assert listing.file_names == ("a/caf\udce9_c1.jpg", "a/z_c2.jpg")  # those of older fingerprints
    assert "\n".join((*listing.names, *listing.people.values(), *listing.notes)).encode()


def test_people_whose_names_are_not_utf_8_are_carried_too(tmp_path):
    not_utf_8(tmp_path / "p" / os.fsdecode(b"M\xe9ndez"), b"1.jpg")
    listing = read_split(tmp_path / "p", "train")
    assert listing.people == {1: "M\\xe9ndez"}
    assert decode_listing(listing, 8, 4)[2] == ()


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    picture(tmp_path / "p/a/1.jpg")

    def scandir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(folders.os, "scandir", scandir)
    with pytest.raises(InputError, match="cannot read .*: Permission denied: check the path"):
        read_split(tmp_path / "p", "train")


def test_splits_in_any_letter_case_and_beside_other_folders(tmp_path):
    for name in ("Train/ann/1_c1.jpg", "TEST/bob/1_c1.jpg", "scripts/x/1.jpg", "__MACOSX/train/._1.jpg"):
        picture(tmp_path / name)
    listing = read_split(tmp_path, "train")
    assert listing.people == {1: "ann"}
    with pytest.raises(InputError, match="has no people for query"):
        read_split(tmp_path, "query")


def test_rows_that_repeat_and_files_that_are_missing_are_said(tmp_path):
    picture(tmp_path / "a.jpg")
    columns = {"path": ["a.jpg", "a.jpg", "b.jpg"], "identity": ["1", "1", "2"]}
    listing = read_split(write_table(tmp_path / "t.csv", columns), "train")
    assert listing.names == ("a.jpg", "b.jpg")
    repeated, missing = listing.notes
    assert "1 rows repeat an earlier one" in repeated
    assert "1 of 2 files listed are not there, the first is 'b.jpg'" in missing
    assert decode_listing(listing, 8, 4)[2] == ("b.jpg",)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["a.jpg"], "person": ["1"]}, "no column 'identity', but path, person"),
        ({"path": ["a.jpg"], "identity": ["1"], "camera": ["front"]}, "row 1: camera 'front' is no whole number"),
        ({"path": ["a.jpg"], "identity": ["1"], "camera": ["1.5"]}, "row 1: camera '1.5' is no whole number"),
        ({"path": ["a.jpg"], "identity": ["1"], "camera": ["-2"]}, "row 1: camera '-2' is no whole number"),
        ({"path": ["a.jpg", "b.jpg"], "identity": ["1", ""]}, "row 2: identity is empty"),
        ({"path": ["a.jpg", ""], "identity": ["1", "1"]}, "row 2: path is empty"),
        ({"path": ["a.jpg", "a.jpg"], "identity": ["1", "2"]}, "rows 1 and 2 say different things of 'a.jpg'"),
        ({"path": ["a.jpg"], "identity": ["1"], "split": ["testing"]}, "the column split says testing"),
        ({"path": [], "identity": []}, "has no rows"),
        ({"path": ["a.jpg"], "identity": ["1"], "IDENTITY": ["2"]}, "two columns of one name"),
        ({"path": ["nowhere.jpg"], "identity": ["1"]}, "none of the 1 files listed"),
    ],
)
def test_tables_that_cannot_be_used_are_one_clear_line(tmp_path, columns, message):
    write_table(tmp_path / "t.csv", columns)
    with pytest.raises(InputError) as caught:
        read_split(tmp_path / "t.csv", "train")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.csv", b""), ("t.csv", b"path,identity\na.jpg\n"), ("t.csv", b"path,identity\na.jpg,\xff\n"),
     ("t.csv", b"\xff\xfe\0"), ("t.parquet", b"PAR1"), ("t.parquet", b"")],
)  # fmt: skip
def test_files_that_are_no_tables_are_one_clear_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_split(tmp_path / name, "train")
    assert "\n" not in str(caught.value)


def test_rows_of_other_splits_are_counted(tmp_path):
    columns = {"path": ["a.jpg", "b.jpg"], "identity": ["1", "2"], "split": ["train", "val"]}
    picture(tmp_path / "a.jpg")
    listing = read_split(write_table(tmp_path / "t.csv", columns), "train")
    assert listing.notes == ("t.csv: 1 rows are not used, their split is 'val'",)


def test_a_run(tmp_path):
    run = export_runs.make_run(str(tmp_path / "run"), people=4, variants=4, camera=lambda variant: variant + 1)
    everything = read_split(tmp_path / "run", "train")
    expected = [(p, v) for p in range(4) for v in range(4) if export_runs.kept(p, v)]
    assert everything.names == tuple(f"{p}/{v}" for p, v in expected)
    assert everything.contents == tuple(export_runs.picture(p, v) for p, v in expected)
    assert everything.identities.tolist() == [p + 1 for p, _ in expected]
    assert everything.people == {1: "0", 2: "1", 4: "3"}
    assert everything.cameras.tolist() == [v + 1 for _, v in expected]
    assert read_split(tmp_path / "run", "query").names == ("0/0", "1/0", "3/0")
    assert len(read_split(f"file://{tmp_path}/run", "train")) == len(expected)
    run.remove("manifest.parquet")
    with pytest.raises(InputError, match="no manifest.parquet says which images are kept"):
        read_split(tmp_path / "run", "train")
