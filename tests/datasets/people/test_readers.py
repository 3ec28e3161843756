"""Readers of the field's data sets: small stand-ins with the published names and lists; what is odd is one line."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io

from datasets.people.decoding import decode_listing
from datasets.people.readers import address, read_split
from datasets.people.splits import PUBLISHED, published_note
from passersby.errors import InputError


def picture(path: Path, value: int = 128, height: int = 32, width: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), value, np.uint8))


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture
def market(tmp_path):
    for name in ("0002_c1s1_000451_03.jpg", "0007_c6s3_000001_01.jpg"):
        picture(tmp_path / "m/bounding_box_train" / name)
    for name in ("-1_c1s1_000401_03.jpg", "0000_c2s1_000001_00.jpg", "1501_c6s4_001877_01.jpg"):
        picture(tmp_path / "m/bounding_box_test" / name)
    picture(tmp_path / "m/query/1501_c1s1_000001_00.jpg")
    picture(tmp_path / "m/gt_bbox/1501_c1s1_000001_00.jpg")
    return tmp_path / "m"


def test_market_tree(market):
    train = read_split(market, "train")
    assert train.identities.tolist() == [2, 7]
    assert train.cameras.tolist() == [1, 6]
    assert train.people == {2: "0002", 7: "0007"}
    (note,) = train.notes
    assert "2 images of 2 people, Market-1501 has 12,936 of 751 people" in note
    gallery = read_split(market, "gallery")
    assert sorted(gallery.identities.tolist()) == [-1, 0, 1501]
    assert gallery.people == {1501: "1501"}
    assert len(read_split(market, "multi-query")) == 1
    (market / "toy_crowd.json").write_text("{}")
    assert all(read_split(market, split).notes == () for split in ("train", "query", "gallery"))  # a toy has any size
    picture(market / "query/somebody.jpg")
    with pytest.raises(InputError, match=r"1 of 2 images .* the first is 'somebody.jpg'"):
        read_split(market, "query")


def test_the_official_market_1501_with_names_that_end_twice_and_files_of_windows(market):
    """Six pictures of its query and 18 of its gallery end in .jpg.jpg, all of persons 1488, 0000 and -1."""
    for name in ("query/1488_c1s3_060226_00.jpg.jpg", "bounding_box_test/1488_c2s3_060001_00.jpg.jpg",
                 "bounding_box_test/0000_c4s6_025091_09.jpg.jpg", "bounding_box_test/-1_c1s1_025091_09.jpg.jpg",
                 "bounding_box_train/1001_c1s1_000001_00.JPG.jpg"):  # fmt: skip
        picture(market / "new.jpg")
        (market / "new.jpg").rename(market / name)
    for folder in ("query", "bounding_box_test", "bounding_box_train"):
        touch(market / folder / "Thumbs.db")
    query, gallery, train = (read_split(market, split) for split in ("query", "gallery", "train"))
    assert query.identities.tolist() == [1488, 1501]
    assert query.names[0] == "1488_c1s3_060226_00.jpg.jpg"
    assert sorted(gallery.identities.tolist()) == [-1, -1, 0, 0, 1488, 1501]
    assert gallery.cameras[gallery.identities == 1488].tolist() == [2]
    assert train.identities.tolist() == [2, 7, 1001]
    assert len(decode_listing(gallery, 8, 4)[1]) == 6
    for listing in (query, gallery, train):
        assert listing.left_out.get("system_files") == 1
        assert (
            sum("1 files of operating systems (._*, Thumbs.db and the like) are left out" in n for n in listing.notes)
            == 1
        )


def test_trees_whose_names_say_only_person_and_camera(tmp_path):
    """As torchreid and fast-reid read them: CUHK03-NP, and data sets that only took the layout over."""
    for split, person in (("bounding_box_train", 3), ("query", 1), ("bounding_box_test", 1)):
        picture(tmp_path / "cuhk03-np/detected" / split / f"{person:04d}_c1_21.png")
        picture(tmp_path / "other" / split / f"{person:04d}_c12s3_somewhere-else.jpg")
    train = read_split(tmp_path / "cuhk03-np/detected", "train")
    assert (train.identities.tolist(), train.cameras.tolist()) == ([3], [1])
    assert "CUHK03-NP detected has 7,365 of 767 people" in train.notes[0]
    other = read_split(tmp_path / "other", "gallery")
    assert (other.identities.tolist(), other.cameras.tolist(), other.notes) == ([1], [12], ())
    with pytest.raises(InputError, match="holds the data set detected: give"):
        read_split(tmp_path / "cuhk03-np", "train")


@pytest.mark.parametrize("name", ["Market-1501-v15.09.15", "market-1501-v15.09.15", "DukeMTMC-reID", "MSMT17_V1"])
def test_the_folder_that_an_archive_unpacks_to_may_lie_in_the_data_set_s_own(market, tmp_path, name):
    (tmp_path / "data").mkdir()
    market.rename(tmp_path / "data" / name)
    train = read_split(tmp_path / "data", "train")
    assert train.identities.tolist() == [2, 7]
    assert train.contents[0].parent == tmp_path / "data" / name / "bounding_box_train"


def test_splits_that_are_not_there(market, tmp_path):
    assert len(read_split(market, "multi-query"))
    (market / "gt_bbox/1501_c1s1_000001_00.jpg").unlink()
    with pytest.raises(InputError, match="no images"):  # an empty folder is no split
        read_split(market, "multi-query")
    with pytest.raises(InputError, match="no split 'test'"):
        read_split(market, "test")
    with pytest.raises(InputError, match="there is no such folder or table"):
        read_split(tmp_path / "nowhere", "train")


def test_query_people_whom_the_gallery_does_not_show_are_named(market):
    (market / "toy_crowd.json").write_text("{}")
    picture(market / "query/0031_c1s1_000001_00.jpg")
    picture(market / "query/0032_c2s1_000001_00.jpg")
    picture(market / "bounding_box_test/0032_c2s1_000009_00.jpg")  # by the query's own camera only
    picture(market / "query/-1_c1s1_000001_00.jpg")
    query = read_split(market, "query")
    assert query.identities.tolist() == [31, 32, 1501]
    left_out, lost = query.notes
    assert "1 junk images and distractors are left out" in left_out
    assert "2 of 3 people have a query that the gallery shows by no other camera, the first is '0031'" in lost


def test_what_macos_packs_beside_a_data_set_is_no_data_set(market):
    for name in ("__MACOSX/m/query/._1501_c1s1_000001_00.jpg", "__MACOSX/bounding_box_train/._0002_c1s1_000451_03.jpg"):
        touch(market.parent / "people" / name)
    for person in "ab":
        picture(market.parent / "people" / person / "1.jpg")
    listing = read_split(market.parent / "people", "train")
    assert list(listing.people.values()) == ["a", "b"]
    assert "1 files of operating systems" in " ".join(listing.notes)


def test_one_level_off(market, tmp_path):
    with pytest.raises(InputError, match=r"query is one split of a data set: give .*/m$"):
        read_split(market / "query", "query")
    with pytest.raises(InputError, match=r"holds the data set m: give .*/m$"):
        read_split(tmp_path, "train")


def test_a_split_of_junk_only_is_one_line(tmp_path):
    picture(tmp_path / "bounding_box_train/-1_c1s1_000001_00.jpg")
    with pytest.raises(InputError, match="there is nobody"):
        read_split(tmp_path, "train")


@pytest.mark.parametrize("data_set", sorted(PUBLISHED))
def test_published_counts_are_silent_and_one_image_less_is_said(tmp_path, market, data_set):
    listing = read_split(market, "gallery")
    for split, (images, people) in PUBLISHED[data_set].items():
        whole = listing.take([2] * images)
        object.__setattr__(whole, "identities", np.arange(images) % (people or 9) + 1)
        assert published_note(whole, data_set, split) == ""
        assert published_note(whole.take(range(1, images)), data_set, split).endswith(": 1 missing")
    assert published_note(listing, data_set, "unheard of") == "" if split == "multi-query" else True


def test_duke_tree(tmp_path):
    picture(tmp_path / "bounding_box_train/0001_c2_f0046182.jpg")
    listing = read_split(tmp_path, "train")
    assert (listing.identities.tolist(), listing.cameras.tolist()) == ([1], [2])
    assert "DukeMTMC-reID has 16,522 of 702 people" in listing.notes[0]
    with pytest.raises(InputError, match="no folder .*query"):
        read_split(tmp_path, "query")
    touch(tmp_path / "bounding_box_train/0002_c2_f0000001.jpg")
    touch(tmp_path / "bounding_box_train/0001_c2s1_000001_00.jpg")
    with pytest.raises(InputError, match=r"1 of 3 images .* not named PPPP_cC_fFFFFFFF.jpg"):
        read_split(tmp_path, "train")


def test_a_tree_without_cameras_is_told_which_other_forms_there_are(tmp_path):
    touch(tmp_path / "bounding_box_train/0001_1_000001_00.jpg")
    with pytest.raises(InputError, match="1 of 1 images .* a folder with a sub-folder for each person, or a table"):
        read_split(tmp_path, "train")
    touch(tmp_path / "bounding_box_train/0001_c2s1_000001_00.jpg")
    with pytest.raises(InputError, match="1 of 2 images .* rename or remove them$"):
        read_split(tmp_path, "train")


def test_msmt17(tmp_path):
    """Its identities start at 0; a validation list belongs to training; V2's folders are masked ones."""
    for name in ("0000/0000_000_01_0303morning_0008_0.jpg", "0001/0001_000_07_a_b_0.jpg"):
        picture(tmp_path / "mask_train_v2" / name)
    (tmp_path / "list_train.txt").write_text("0000/0000_000_01_0303morning_0008_0.jpg 0\n")
    (tmp_path / "list_val.txt").write_text("0001/0001_000_07_a_b_0.jpg 1\n\n")
    listing = read_split(tmp_path, "train")
    assert listing.identities.tolist() == [1, 2]
    assert listing.people == {1: "0000", 2: "0001"}
    assert listing.cameras.tolist() == [1, 7]
    assert len(decode_listing(listing, 32, 16)[1]) == 2
    with pytest.raises(InputError, match="has no folder mask_test_v2 or test"):
        read_split(tmp_path, "query")
    for line in ("../../outside_000_01_x.jpg 1", "0001/0001_000_07_a_b_0.jpg", "0001/0001_000_x_a.jpg 1"):
        (tmp_path / "list_val.txt").write_text(f"\n{line}\n")
        with pytest.raises(InputError, match="list_val.txt, line 2"):
            read_split(tmp_path, "train")
    (tmp_path / "list_query.txt").write_text("0000/0000_000_01_x.jpg 0\n")
    with pytest.raises(InputError, match="no folder mask_test_v2 or test"):
        read_split(tmp_path, "query")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("form", ["{}/{}", "{}\\{}", "./{}/{}", ".\\{}\\{}"])
def test_lists_of_msmt17_that_have_been_through_windows(tmp_path, encoding, ending, form):
    name = "0000_000_01_0303morning_0008_0.jpg"
    picture(tmp_path / "MSMT17_V2/MSMT17_V2/mask_train_v2/0000" / name)  # an archive that holds its folder twice
    line = f"{form.format('0000', name)} 0{ending}"
    (tmp_path / "MSMT17_V2/MSMT17_V2/list_train.txt").write_bytes(line.encode(encoding))
    listing = read_split(tmp_path, "train")
    assert listing.names == (f"0000/{name}",)
    assert (listing.identities.tolist(), listing.cameras.tolist()) == ([1], [1])
    assert len(decode_listing(listing, 8, 4)[1]) == 1


def test_a_list_of_msmt17_may_not_lead_out_of_its_folder(tmp_path):
    touch(tmp_path / "mask_train_v2/x")
    for line in ("..\\0000_000_01_x_0.jpg 0", "a/../../0000_000_01_x_0.jpg 0", "\\0000_000_01_x_0.jpg 0"):
        (tmp_path / "list_train.txt").write_text(line)
        with pytest.raises(InputError, match="list_train.txt, line 1"):
            read_split(tmp_path, "train")


def test_msmt17_with_images_missing(tmp_path):
    picture(tmp_path / "test/0003/0003_000_14_x.jpg")
    (tmp_path / "list_query.txt").write_text("0003/0003_000_14_x.jpg 3\n0003/0003_001_15_x.jpg 3\n")
    query = read_split(tmp_path, "query")
    assert query.cameras.tolist() == [14, 15]
    assert query.notes[-1].endswith("1 of 2 files listed are not there, the first is '0003/0003_001_15_x.jpg'")
    (tmp_path / "list_query.txt").write_text("0004/0004_000_14_x.jpg 4\n")
    with pytest.raises(InputError, match="none of the 1 files listed"):
        read_split(tmp_path, "query")


def make_cuhk03(root: Path, boxes: str) -> list[str]:
    names = ["1_001_1_01.png", "1_001_2_06.png", "1_002_1_01.png", "1_002_2_01.png"]
    for name in names:
        picture(root / f"images_{boxes}" / name)
    values = {
        "labels": [[1], [1], [2], [2]],
        "camId": [[1], [2], [1], [2]],
        "filelist": np.array(names, object)[:, None],
        "train_idx": [[1], [2]], "query_idx": [[3]], "gallery_idx": [[4]],
    }  # fmt: skip
    scipy.io.savemat(root / f"cuhk03_new_protocol_config_{boxes}.mat", values)
    return names


def test_cuhk03_new_protocol(tmp_path):
    names = make_cuhk03(tmp_path, "labeled")
    train = read_split(tmp_path, "train")
    assert train.names == tuple(names[:2])
    assert train.identities.tolist() == [1, 1]
    assert train.cameras.tolist() == [1, 2]
    assert "CUHK03-NP labeled has 7,368 of 767 people" in train.notes[0]
    assert read_split(tmp_path, "query").names == (names[2],)
    assert read_split(tmp_path, "gallery").names == (names[3],)
    make_cuhk03(tmp_path, "detected")
    assert "for the detected ones give" in read_split(tmp_path, "train").notes[-1]
    detected = read_split(tmp_path / "images_detected", "train")
    assert detected.contents[0] == tmp_path / "images_detected" / names[0]
    assert "CUHK03-NP detected has 7,365" in detected.notes[0]


@pytest.mark.parametrize(
    "changed",
    [{"train_idx": [[9]]}, {"train_idx": [[0]]}, {"labels": [[1]]}, {"filelist": np.array(["../x.png"] * 4, object)}],
)
def test_cuhk03_with_another_protocol_file(tmp_path, changed):
    make_cuhk03(tmp_path, "labeled")
    path = tmp_path / "cuhk03_new_protocol_config_labeled.mat"
    values = {key: value for key, value in scipy.io.loadmat(path).items() if not key.startswith("__")}
    scipy.io.savemat(path, values | changed)
    with pytest.raises(InputError, match=r"download it again"):
        read_split(tmp_path, "train")
    path.write_bytes(b"no MAT-file")
    with pytest.raises(InputError, match="is not the protocol of CUHK03"):
        read_split(tmp_path, "train")
    path.unlink()
    with pytest.raises(InputError, match="no cuhk03_new_protocol_config_labeled.mat"):
        read_split(tmp_path, "train")


def test_cuhk03_that_is_still_packed(tmp_path):
    touch(tmp_path / "c/cuhk03_release/cuhk-03.mat")
    for root in (tmp_path / "c", tmp_path / "c/cuhk03_release", tmp_path / "c/cuhk03_release/cuhk-03.mat"):
        with pytest.raises(InputError, match="images are still in cuhk-03.mat: extract") as caught:
            read_split(root, "train")
        assert "\n" not in str(caught.value)


def test_addresses_of_stores_survive_pathlib():
    assert address(Path("s3://bucket/run")) == address("s3://bucket/run") == "s3://bucket/run"
    assert address("some/folder") == Path("some/folder")
