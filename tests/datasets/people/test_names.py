"""Names of files: the published data sets' own quirks, what Windows and macOS do to names, bytes that are no UTF-8."""

import errno
import os

import pytest

from datasets.people.image_sets import folder_images
from datasets.people.names import (
    entry_of,
    files_below,
    is_clutter,
    is_image,
    normal_name,
    parse_cuhk03_tree_name,
    parse_duke_name,
    parse_name,
    parse_tree_name,
    person_key,
    printable_name,
)
from passersby.errors import InputError


@pytest.mark.parametrize(
    ("name", "identity", "camera"),
    [
        ("1488_c1s3_060226_00.jpg.jpg", 1488, 1),  # 24 of the official Market-1501
        ("0000_c2s2_000142_00.jpg.jpg", 0, 2),
        ("-1_c6s1_000026_00.jpg.jpg", -1, 6),
        ("0002_c1s1_000451_03.JPG.jpg", 2, 1),
        ("0002_c1s1_000451_03.png.jpeg", 2, 1),
    ],
)
def test_endings_that_stand_twice_belong_to_the_same_picture(name, identity, camera):
    image = parse_name(f"query/{name}")
    assert (image.identity, image.camera) == (identity, camera) == parse_tree_name(name)
    assert is_image(name)


@pytest.mark.parametrize("name", ["0002_c1s1_000451_03.jpg.txt", "0002_c1s1_000451_03..jpg", "0002_c1s1_000451_03jpg"])
def test_other_endings_stay_foreign(name):
    assert parse_name(name) is None


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("0001_c2_f0046182.jpg", (1, 2)),  # DukeMTMC-reID
        ("0001_c2_f0046182.jpg.jpg", (1, 2)),
        ("0003_c1_21.png", (3, 1)),  # CUHK03-NP
        ("0002_c3_000451_03.jpg", (2, 3)),  # torchreid and fast-reid ask no more than PPPP_cC
        ("0031_c012_00016450_0.jpg", (31, 12)),
        ("-1_c1_x.png", (-1, 1)),
        ("somebody.jpg", None),
        ("x0002_c3s1_1_1.jpg", None),
        ("0002_cam3.jpg", None),
        ("0002_c3s1_000451_03.txt", None),
        (f"{10**18}_c1s1_1_1.jpg", None),
    ],
)
def test_names_in_a_tree_need_person_and_camera_at_their_start(name, numbers):
    assert parse_tree_name(name) == numbers


def test_each_form_is_that_of_one_data_set():
    names = {
        "0002_c1s1_000451_03.jpg.jpg": ("Market-1501", 2),
        "0002_c1_f0000451.jpg": ("DukeMTMC-reID", 2),
        "0002_c1_45.png": ("CUHK03-NP", 2),
        "0002/0002_001_05_0303afternoon_0211_1_ex.jpg": ("MSMT17", "0002_001_05_0303afternoon_0211_1_ex"),
        "1_002_1_01.png": ("CUHK03", "1_002"),
        "-1_c1s1_000451_03.jpg": None,
        "0000_c1s1_000451_03.jpg": None,
        "1_c2.jpg": None,  # image 1 of a person in a folder, by camera 2
        "holiday.jpg": None,
    }
    assert {name: person_key(name) for name in names} == names
    assert parse_duke_name("0002_c1s1_000451_03.jpg") is None
    assert parse_cuhk03_tree_name("0002_c1_f0000451.jpg") is None


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("query\\0002.jpg", "query/0002.jpg"),
        (".\\query\\0002.jpg", "query/0002.jpg"),
        ("./query/0002.jpg", "query/0002.jpg"),
        ("././a.jpg", "a.jpg"),
        ("a//b/./c.jpg", "a/b/c.jpg"),
        ("/data/a.jpg", "data/a.jpg"),
        ("\\\\server\\a.jpg", "server/a.jpg"),
        ("x/../a.jpg", "a.jpg"),
        ("../a.jpg", "../a.jpg"),
        ("a.jpg", "a.jpg"),
    ],
)
def test_one_way_to_write_a_name(name, normal):
    assert normal_name(name) == normal


@pytest.mark.parametrize(
    "name",
    ["._a.jpg", ".DS_Store", "Thumbs.db", "THUMBS.DB", "desktop.ini", "__MACOSX/a.jpg", "x/@eaDir/a.jpg/b.jpg",
     ".x/a.jpg", "$RECYCLE.BIN/a.jpg", "ehthumbs.db"],
)  # fmt: skip
def test_what_operating_systems_leave_is_no_image(name):
    assert is_clutter(name)
    assert not is_image(name)


def test_people_s_own_names_are_no_clutter():
    for name in ("a.jpg", "../a.jpg", "thumbs/a.jpg", "x.db/a.png", "MACOSX/a.jpg", "desktop.jpg"):
        assert not is_clutter(name), name
        assert is_image(name), name


def test_bytes_that_are_no_utf_8_are_written_as_numbers():
    assert printable_name("Méndez/é.jpg") == "Méndez/é.jpg"
    assert printable_name("a\\b.jpg") == "a\\b.jpg"
    shown = printable_name(os.fsdecode("Zoë/".encode() + b"caf\xe9.jpg"))
    assert shown == "Zoë/caf\\xe9.jpg"
    assert shown.encode("utf-8")


def test_a_name_in_other_letter_case_is_the_same_entry(tmp_path):
    (tmp_path / "QUERY").mkdir()
    assert entry_of(tmp_path, "query") == tmp_path / "QUERY"
    (tmp_path / "Query").mkdir()
    assert entry_of(tmp_path, "query") == tmp_path / "query"  # which of two is meant, nobody knows
    (tmp_path / "query").mkdir()
    assert entry_of(tmp_path, "query") == tmp_path / "query"
    assert entry_of(tmp_path / "nowhere", "query") == tmp_path / "nowhere/query"


def test_a_folder_that_may_not_be_listed_is_an_error_and_not_an_empty_folder(tmp_path, monkeypatch):
    for name in ("a", "b/c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.png").touch()
    assert sorted(names for _, names in files_below(tmp_path)) == [[], [], ["1.png"], ["1.png"]]
    scandir = os.scandir

    def refused(path):
        if os.fspath(path).endswith("c"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(InputError, match="cannot read .*/b/c: Permission denied: check the path"):
        list(files_below(tmp_path))
    with pytest.raises(InputError, match="cannot read .*/b/c: Permission denied"):
        folder_images(tmp_path, 10)
