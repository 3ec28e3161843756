"""Archives in the reference's form: labels, limits, nothing unpacked."""

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.people import archives as gan_archive
from datasets.people.archives import parse_labels
from datasets.people.decoding import Reader, Target
from datasets.people.image_source import load_images, open_images
from passersby.errors import InputError
from tests.helpers.listings import known_labels


def png(value: int) -> bytes:
    return cv2.imencode(".png", np.full((16, 8, 3), value, np.uint8))[1].tobytes()


def archive(path: Path, members: dict[str, bytes], method=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def reference_style(labels) -> dict[str, bytes]:
    images = {f"{n // 2:05d}/img{n:08d}.png": png(n) for n in range(4)}
    return images | {"dataset.json": json.dumps({"labels": labels}).encode(), "notes.txt": b"not read"}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_is_read_in_place_with_its_labels(tmp_path, method):
    names = [f"{n // 2:05d}/img{n:08d}.png" for n in range(4)]
    members = reference_style([[name, n % 3] for n, name in enumerate(names)])
    source = open_images(archive(tmp_path / "set.zip", members, method), validation_people=1)
    assert source.kind == "zip"
    assert list(source.training.names) == names[:3]
    assert source.training.labels == (0, 1, 2)
    assert set(known_labels(source.training)) == {(None, None)}  # folders say nothing here
    loaded = load_images(source, Target(16, 8), threads=2)
    assert loaded.training[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert loaded.validation[:, 0, 0, 0].tolist() == [3]
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


def test_a_folder_with_a_dataset_json_is_the_same(tmp_path):
    members = reference_style([["00000\\img00000000.png", [0.5, 2]], ["00001/img00000003.png", [1, 0]]])
    for name, data in members.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    folder = open_images(tmp_path / "set", 0)
    packed = open_images(archive(tmp_path / "set.zip", members), 0)
    assert folder.training.names == packed.training.names
    assert folder.training.sizes.tolist() == packed.training.sizes.tolist()
    assert folder.training.labels == packed.training.labels == ((0.5, 2.0), None, None, (1.0, 0.0))
    assert folder.fingerprint == packed.fingerprint


def test_names_of_market_1501_say_identity_and_camera_in_archives_too(tmp_path):
    members = {f"{name}_c2s1_000001_00.png": png(1) for name in ("0004", "0005", "-1", "0000")}
    source = open_images(archive(tmp_path / "a.zip", members), 0)
    assert known_labels(source.training) == [(4, 2), (5, 2)]
    assert source.record["left_out"] == {"distractors": 1, "junk": 1}
    (tmp_path / "market/bounding_box_train").mkdir(parents=True)
    (tmp_path / "market/query").mkdir()
    (tmp_path / "market/query/0005_c1s1_000001_00.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="the first is 0005"):
        open_images(tmp_path / "a.zip", 0)


@pytest.mark.parametrize("folder", ["query", "m/bounding_box_test", "bounding_box_train"])
def test_an_archive_of_a_tree_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match="give the data set's own folder"):
        open_images(archive(tmp_path / "a.zip", {f"{folder}/0001_c1s1_000001_00.png": png(1)}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is not"),
        ("{", "is not"),
        ("[" * 100_000, "is not"),
        ('{"labels": [["a.png"]]}', "is not"),
        ('{"labels": [[1, 2]]}', "is not"),
        ('{"labels": [["a.png", 1], ["a.png", 2]]}', "'a.png' twice"),
        ('{"labels": [["a.png", -1]]}', "'a.png' -1: give a class number"),
        ('{"labels": [["a.png", 1000000000]]}', "'a.png' 1000000000: give a class number"),
        ('{"labels": [["a.png", true]]}', "'a.png' True"),
        ('{"labels": [["a.png", [1, NaN]]]}', "finite"),
        ('{"labels": [["a.png", [1, 1e999]]]}', "finite"),
        ('{"labels": [["a.png", []]]}', "'a.png'"),
        ('{"labels": [["a.png", 1], ["b.png", [1]]]}', "'b.png'.*unlike those before it"),
        ('{"labels": [["a.png", [1, 2]], ["b.png", [1]]]}', "'b.png'.*unlike those before it"),
    ],
)
def test_damaged_labels_are_named(text, message):
    with pytest.raises(InputError, match=message):
        parse_labels(text.encode(), Path("set.zip"))


def test_null_means_no_labels():
    assert parse_labels(b'{"labels": null}', Path("set.zip")) == {}


def test_bombs_and_foreign_packing_are_refused_unread(tmp_path, monkeypatch):
    many = archive(tmp_path / "total.zip", {"a.png": bytes(200_000), "b.png": png(1)}, zipfile.ZIP_DEFLATED)
    assert len(open_images(many, 0).training) == 2
    monkeypatch.setattr(gan_archive, "MOST_TOTAL_BYTES", 10_000)
    with pytest.raises(InputError, match="pictures do not shrink so"):
        open_images(many)
    monkeypatch.setattr(gan_archive, "MOST_MEMBERS", 1)
    with pytest.raises(InputError, match="2 members"):
        open_images(many)
    large = archive(tmp_path / "large.zip", {"a.png": bytes((64 << 20) + 1)}, zipfile.ZIP_DEFLATED)
    monkeypatch.undo()
    with pytest.raises(InputError, match="'a.png' is 67108865 bytes unpacked"):
        open_images(large)
    with pytest.raises(InputError, match="'a.png' is packed by method 14"):
        open_images(archive(tmp_path / "lzma.zip", {"a.png": png(1)}, zipfile.ZIP_LZMA))
    with pytest.raises(InputError, match="no images"):
        open_images(archive(tmp_path / "none.zip", {"a.txt": b"", "__MACOSX/b.png": b""}))


def test_names_that_stand_twice_are_refused(tmp_path):
    path = archive(tmp_path / "a.zip", {"a.png": png(1), "b.png": png(2)})
    path.write_bytes(path.read_bytes().replace(b"b.png", b"a.png"))
    with pytest.raises(InputError, match="'a.png' stands in it twice"):
        open_images(tmp_path / "a.zip")


def test_a_member_that_lies_about_itself_is_unreadable(tmp_path):
    path = archive(tmp_path / "a.zip", {"a.png": png(1), "b.png": png(2)})
    data = bytearray(path.read_bytes())
    data[40] ^= 255  # inside the first member: its checksum no longer holds
    path.write_bytes(data)
    read = Reader(path)
    assert read("a.png") is None
    assert read("b.png") == png(2)
    assert read("c.png") is None


def test_a_damaged_archive_is_an_input_error_or_unreadable_never_a_crash(tmp_path):
    path = archive(tmp_path / "a.zip", reference_style([["00000/img00000000.png", 1]]), zipfile.ZIP_DEFLATED)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for place in random.integers(len(whole) // 2, len(whole), 3):  # where the list of members lies
            data[place] = random.integers(256)
        path.write_bytes(data)
        try:
            source = open_images(path, 0)
            for content in source.training.contents:
                Reader(path)(content)
        except InputError:
            pass


def packed(path: Path, members: dict[str, bytes]) -> Path:
    """A zip file with exactly these names, whatever separators they have."""
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            member = zipfile.ZipInfo("x")
            member.filename = name
            file.writestr(member, data)
    return path


@pytest.mark.parametrize("top", ["", "./", ".\\", "set/", "set\\", "./deep\\set/"])
@pytest.mark.parametrize("separator", ["/", "\\"])
@pytest.mark.parametrize("written", ["{}", "./{}", "set/{}"])
def test_labels_of_an_archive_of_windows_or_below_a_top_folder_are_not_lost(tmp_path, top, separator, written):
    if written == "set/{}" and top not in ("set/", "set\\"):
        pytest.skip("these names would be those of no image")
    names = [f"{n // 2:05d}/img{n:08d}.png" for n in range(4)]
    labels = [[written.format(name).replace("/", separator), n % 3] for n, name in enumerate(names)]
    members = {top + name.replace("/", separator): png(n) for n, name in enumerate(names)}
    members[f"{top}dataset.json"] = json.dumps({"labels": labels}).encode("utf-8-sig")
    members[f"{top}00000{separator}"] = b""
    source = open_images(packed(tmp_path / "a.zip", members), 0)
    prefix = top.replace("\\", "/").removeprefix("./")
    assert source.training.names == tuple(prefix + name for name in names)
    assert source.training.labels == (0, 1, 2, 0)
    loaded = load_images(source, Target(16, 8))
    assert loaded.training[:, 0, 0, 0].tolist() == [0, 1, 2, 3]  # members are found under their own names


def test_labels_in_another_letter_case_belong_to_the_one_image_that_has_the_name(tmp_path):
    labels = json.dumps({"labels": [["A/IMG.PNG", 1], ["b/x.png", 2], ["b/y.png", 3]]}).encode()
    members = {"a/img.png": png(1), "B/x.png": png(2), "b/X.png": png(3), "b/y.png": png(4), "dataset.json": labels}
    training = open_images(packed(tmp_path / "a.zip", members), 0).training
    assert dict(zip(training.names, training.labels, strict=True)) == {
        "a/img.png": 1, "B/x.png": None, "b/X.png": None, "b/y.png": 3,
    }  # fmt: skip
    (tmp_path / "set/a").mkdir(parents=True)
    (tmp_path / "set/a/img.png").write_bytes(png(1))
    (tmp_path / "set/dataset.json").write_bytes(labels)
    assert open_images(tmp_path / "set", 0).training.labels == (1,)


def test_one_name_written_in_two_ways_stands_twice(tmp_path):
    for other in ("./a/b.png", "a\\b.png", "a//b.png"):
        with pytest.raises(InputError, match="'a/b.png' stands in it twice"):
            open_images(packed(tmp_path / "a.zip", {"a/b.png": png(1), other: png(2)}), 0)


def test_what_operating_systems_leave_in_an_archive_is_left_out_and_counted(tmp_path):
    members = {"set/a.png": png(1), "set/b.png": png(2), "set/._a.png": b"x", "set/Thumbs.db": b"x",
               "__MACOSX/set/._a.png": b"x", "set/.DS_Store": b"x", "set/desktop.ini": b"x"}  # fmt: skip
    members |= {"__MACOSX/set/._dataset.json": b"x", "set/dataset.json": b'{"labels": [["a.png", 1], ["b.png", 0]]}'}
    source = open_images(packed(tmp_path / "a.zip", members), 0)
    assert (source.training.names, source.training.labels) == (("set/a.png", "set/b.png"), (1, 0))
    assert source.record["left_out"] == {"system_files": 6}
    assert "6 files of operating systems" in source.training.notes[0]
