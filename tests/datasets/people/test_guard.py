"""The guard knows the split of every data set that the readers know, wherever its test people come from."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from datasets.people import image_sets
from datasets.people.image_source import open_images
from datasets.people.readers import read_split
from datasets.reid.sources import people_sha256
from passersby.errors import InputError
from tests.helpers.listings import known_labels

TRAIN_PICTURES = {  # the pictures that a network may be trained on, of each data set below
    "market": {"bounding_box_train/0002_c1s1_000451_03.jpg"},
    "duke": {"bounding_box_train/0001_c2_f0046182.jpg"},
    "cuhk03-np": {"bounding_box_train/0003_c1_21.png"},
    "msmt17 v1": {"train/0000/0000_000_01_0303morning_0008_0.jpg", "train/0001/0001_000_07_0303morning_0009_0.jpg"},
    "msmt17 v2": {
        "mask_train_v2/0000/0000_000_01_0303morning_0008_0.jpg",
        "mask_train_v2/0001/0001_000_07_0303morning_0009_0.jpg",
    },
    "layumi": {"train_all/0002/0002_c1s1_000451_03.jpg"},
    "own": {"train/ann/1.jpg"},
    "cuhk03": {"images_labeled/1_001_1_01.png", "images_labeled/1_001_2_06.png"},
}
TEST_PICTURES = {
    "market": (
        "query/1488_c1s3_060226_00.jpg.jpg", "bounding_box_test/1488_c2s3_060001_00.jpg.jpg",
        "bounding_box_test/0000_c1s1_000001_00.jpg.jpg", "bounding_box_test/-1_c1s1_000001_00.jpg.jpg",
        "gt_bbox/1488_c1s3_060226_00.jpg",
    ),
    "duke": ("query/0005_c2_f0046985.jpg", "bounding_box_test/0005_c5_f0046985.jpg"),
    "cuhk03-np": ("query/0001_c1_1.png", "bounding_box_test/0001_c2_2.png"),
    "msmt17 v1": ("test/0000/0000_000_02_0303noon_0001_0.jpg", "test/0000/0000_001_03_0303noon_0001_0.jpg"),
    "msmt17 v2": (
        "mask_test_v2/0000/0000_000_02_0303noon_0001_0.jpg", "mask_test_v2/0000/0000_001_03_0303noon_0001_0.jpg"
    ),
    "layumi": (
        "query/1488/1488_c1s3_060226_00.jpg.jpg", "gallery/1488/1488_c2s3_060001_00.jpg",
        "gallery/-1/-1_c1s1_000001_00.jpg", "gallery/0000/0000_c1s1_000001_00.jpg",
        "multi-query/1488/1488_c1s3_060226_00.jpg",
    ),
    "own": ("test/bob/1.jpg",),
    "cuhk03": ("images_labeled/1_002_1_01.png", "images_labeled/1_002_2_01.png"),
}  # fmt: skip
MORE = {"layumi": ("train/0002/0002_c1s1_000451_03.jpg", "val/0002/0002_c1s1_000452_03.jpg")}
DATA_SETS = sorted(TRAIN_PICTURES)


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def lay_out(root: Path, data_set: str) -> Path:
    """A data set of empty files with the published names and lists."""
    for name in (*TRAIN_PICTURES[data_set], *TEST_PICTURES[data_set], *MORE.get(data_set, ())):
        touch(root / name)
    if data_set.startswith("msmt17"):
        train, test = (sorted(path.partition("/")[2] for path in pictures[data_set])
                       for pictures in (TRAIN_PICTURES, TEST_PICTURES))  # fmt: skip
        lists = {"list_train": train[:1], "list_val": train[1:], "list_query": test[:1], "list_gallery": test[1:]}
        for name, lines in lists.items():
            (root / f"{name}.txt").write_text("".join(f"{line} {int(line[:4])}\n" for line in lines))
    if data_set == "cuhk03":
        names = sorted(path.partition("/")[2] for path in (*TRAIN_PICTURES[data_set], *TEST_PICTURES[data_set]))
        values = {
            "labels": [[1], [1], [2], [2]], "camId": [[1], [2], [1], [2]], "filelist": np.array(names, object)[:, None],
            "train_idx": [[1], [2]], "query_idx": [[3]], "gallery_idx": [[4]],
        }  # fmt: skip
        scipy.io.savemat(root / "cuhk03_new_protocol_config_labeled.mat", values)
    return root


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_of_every_data_set_a_generator_is_trained_on_the_training_people_alone(tmp_path, data_set):
    root = lay_out(tmp_path / "data", data_set)
    source = open_images(root, 0)
    assert set(source.training.names) == TRAIN_PICTURES[data_set]
    assert source.training.known_people is not None
    listing = read_split(root, "train")
    assert sorted(listing.contents) == sorted(source.training.contents)  # one reader for all
    identities = source.record["identities"]
    assert identities["sha256"] == people_sha256(listing.people.values())  # as a sweep compares them
    if data_set not in ("layumi", "own"):  # there cameras stand in some names
        assert None not in {camera for _, camera in known_labels(source.training)}


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_a_score_takes_the_people_of_one_split_of_every_data_set(tmp_path, data_set):
    root = lay_out(tmp_path / "data", data_set)
    assert image_sets.tree_images(root, "train", 99).count == len(TRAIN_PICTURES[data_set])
    splits = {"train"} if data_set == "own" else {"train", "held-out"}
    assert image_sets.splits_of(root) == splits
    if "held-out" in splits:
        people = [name for name in TEST_PICTURES[data_set] if "/-1" not in name and "/0000_c" not in name]
        people = [name for name in people if not name.startswith(("gt_bbox", "multi-query"))]
        assert image_sets.tree_images(root, "held-out", 99).count == len(people)


@pytest.mark.parametrize("data_set", [name for name in DATA_SETS if name != "cuhk03"])
def test_folders_of_test_people_are_refused_of_every_data_set(tmp_path, data_set):
    root = lay_out(tmp_path / "data", data_set)
    for folder in {name.partition("/")[0] for name in TEST_PICTURES[data_set]}:
        for place in (root / folder, next(iter(sorted((root / folder).iterdir())))):
            if place.is_dir():
                with pytest.raises(InputError, match=f"people of a test .*{folder}.*give {root}"):
                    open_images(place)
        with pytest.raises(InputError, match=f"give {root}"):
            read_split(root / folder, "train")


def test_of_cuhk03_the_folder_of_images_means_its_training_people(tmp_path):
    root = lay_out(tmp_path, "cuhk03")
    assert set(open_images(root / "images_labeled", 0).training.names) == {"1_001_1_01.png", "1_001_2_06.png"}
    (root / "cuhk03_new_protocol_config_labeled.mat").unlink()
    for path in (root, root / "images_labeled"):
        with pytest.raises(InputError, match="it says who is in which split"):
            open_images(path, 0)


def test_lists_say_who_is_trained_on_and_without_them_nobody_is(tmp_path):
    root = lay_out(tmp_path, "msmt17 v2")
    for path in root.glob("list_*.txt"):
        path.unlink()
    with pytest.raises(InputError, match="no file .*list_train.txt"):
        open_images(root, 0)


@pytest.mark.parametrize("data_set", ["market", "msmt17 v1", "msmt17 v2"])
def test_the_training_folder_means_the_data_set(tmp_path, data_set):
    root = lay_out(tmp_path, data_set)
    folder = next(iter(TRAIN_PICTURES[data_set])).partition("/")[0]
    assert set(open_images(root / folder, 0).training.names) == TRAIN_PICTURES[data_set]


@pytest.mark.parametrize("data_set", DATA_SETS)
@pytest.mark.parametrize("place", ["copies", "data/copies", "copies/deeper"])
def test_copies_of_test_pictures_are_known_near_their_data_set(tmp_path, data_set, place):
    if data_set == "own":
        pytest.skip("names like 1.jpg say of nobody who it is")
    lay_out(tmp_path / "data", data_set)
    folder = tmp_path / place.removesuffix("/deeper")
    training = sorted(TRAIN_PICTURES[data_set])[0].rpartition("/")[2]
    touch(tmp_path / place / training)
    assert len(open_images(folder, 0).training) == 1
    touch(tmp_path / place / "holiday.png")  # one foreign name must not switch the guard off
    touch(tmp_path / place / TEST_PICTURES[data_set][0].rpartition("/")[2])
    with pytest.raises(InputError, match="1 (identities|pictures) also stand in .*leave them out"):
        open_images(folder, 0)


def test_people_of_one_data_set_are_no_people_of_another(tmp_path):
    lay_out(tmp_path / "market", "market")
    touch(tmp_path / "mine/1488_c2_f0046182.jpg")  # Duke's 1488, not Market's
    assert len(open_images(tmp_path / "mine", 0).training) == 1


@pytest.mark.parametrize("data_set", ["market", "duke", "cuhk03-np"])
def test_a_tree_whose_training_people_are_in_its_test_is_refused_whatever_its_names(tmp_path, data_set):
    root = lay_out(tmp_path, data_set)
    name = TEST_PICTURES[data_set][0].rpartition("/")[2]
    touch(root / "bounding_box_train" / name)
    with pytest.raises(InputError, match=f"1 identities of .* stand in query .*first is {name[:4]}"):
        open_images(root, 0)


@pytest.mark.parametrize("data_set", DATA_SETS)
@pytest.mark.parametrize("form", ["{}", "./{}", "top/{}", "TOP/{}"])
@pytest.mark.parametrize("separator", ["/", "\\"])
def test_a_data_set_zipped_on_windows_or_elsewhere_is_refused(tmp_path, data_set, form, separator):
    lay_out(tmp_path / "data", data_set)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for folder, _, names in os.walk(tmp_path / "data"):
            for name in names:
                relative = (Path(folder) / name).relative_to(tmp_path / "data").as_posix()
                member = zipfile.ZipInfo("x")
                member.filename = form.format(relative.upper() if "TOP" in form else relative).replace("/", separator)
                archive.writestr(member, b"x")
    with pytest.raises(InputError, match="of a data set with people of a test .*give the data set's own folder"):
        open_images(tmp_path / "set.zip", 0)


@pytest.mark.parametrize("top", ["", "Market-1501-v15.09.15\\"])
def test_a_tree_unpacked_into_names_with_backslashes_is_refused(tmp_path, top):
    for name in (*TRAIN_PICTURES["market"], *TEST_PICTURES["market"]):
        touch(tmp_path / (top + name).replace("/", "\\"))
    with pytest.raises(InputError, match="of a data set with people of a test"):
        open_images(tmp_path, 0)
    for split in ("train", "query"):
        with pytest.raises(InputError, match="unpacked folders into names of files.*unpack the archive again"):
            read_split(tmp_path, split)


def test_backslashes_in_names_are_separators_and_the_files_are_read_as_they_are(tmp_path):
    for name in ("cam1\\0005_c1s1_000001_00.png", "cam2\\0006_c2s1_000001_00.png"):
        (tmp_path / name).write_bytes(b"x")
    training = open_images(tmp_path, 0).training
    assert training.names == ("cam1/0005_c1s1_000001_00.png", "cam2/0006_c2s1_000001_00.png")
    assert known_labels(training) == [(5, 1), (6, 2)]
    assert [path.read_bytes() for path in training.contents] == [b"x", b"x"]
    (tmp_path / "cam1").mkdir()
    (tmp_path / "cam1/0005_c1s1_000001_00.png").write_bytes(b"y")
    with pytest.raises(InputError, match="have one name, cam1/0005_c1s1_000001_00.png"):
        open_images(tmp_path, 0)


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_a_folder_around_a_data_set_is_refused_with_the_way_out(tmp_path, data_set):
    lay_out(tmp_path / "deep/data", data_set)
    touch(tmp_path / "more/1.png")
    with pytest.raises(InputError, match="of a data set with people of a test .* in deep/data: give"):
        open_images(tmp_path, 0)


def test_letter_case_of_folders_does_not_matter(tmp_path):
    for name in (*TRAIN_PICTURES["market"], *TEST_PICTURES["market"]):
        folder, _, file = name.partition("/")
        touch(tmp_path / folder.upper() / file)
    assert known_labels(open_images(tmp_path, 0).training) == [(2, 1)]
    assert read_split(tmp_path, "query").identities.tolist() == [1488]
    with pytest.raises(InputError, match="people of a test"):
        open_images(tmp_path / "QUERY")
    touch(tmp_path / "BOUNDING_BOX_TRAIN/1488_c4s1_000001_00.jpg")
    with pytest.raises(InputError, match="first is 1488"):
        open_images(tmp_path, 0)


def test_a_table_is_listed_by_its_reader_and_guarded_by_where_its_pictures_lie(tmp_path):
    lay_out(tmp_path / "market", "market")
    names = ["bounding_box_train/0002_c1s1_000451_03.jpg", "query/1488_c1s3_060226_00.jpg.jpg"]
    table = tmp_path / "table.csv"
    table.write_text(f"path,identity,split\nmarket/{names[0]},2,train\nmarket\\{names[1]},1488,query\n")
    assert open_images(table, 0).training.names == (f"market/{names[0]}",)
    table.write_text(f"path,identity,split\nmarket/{names[0]},2,train\nmarket/{names[1]},1488,train\n")
    with pytest.raises(InputError, match="query holds people of a test"):
        open_images(table, 0)


def test_folders_called_test_somewhere_above_are_nobody_s_test_people(tmp_path):
    touch(tmp_path / "project/train/main.py")
    touch(tmp_path / "project/test/fixtures/people/ann/1.png")
    assert len(open_images(tmp_path / "project/test/fixtures/people", 0).training) == 1
    assert len(read_split(tmp_path / "project/test/fixtures/people", "train")) == 1


def test_pictures_of_nobody_in_train_and_test_folders(tmp_path):
    for name in ("train/1.png", "train/2.png", "test/1.png"):
        touch(tmp_path / name)
    source = open_images(tmp_path, 0)
    assert source.training.names == ("train/1.png", "train/2.png")
    assert source.training.known_people is None
