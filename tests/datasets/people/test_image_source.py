"""What a GAN may be trained on: listing, the guard against people of a test, people set aside, sizes."""

import io
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.people.decoding import MOST_PIXELS, Problem, Reader, Target, decode_bytes
from datasets.people.image_source import default_validation, load_images, open_images
from datasets.people.listing import identities_sha256
from datasets.people.readers import read_split
from passersby.errors import InputError
from tests.helpers.listings import known_labels, training_listing


def picture(height=32, width=16, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def write(path: Path, rgb: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = picture() if rgb is None else rgb
    assert cv2.imwrite(str(path), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    return path


def market(root: Path, train, query=(), gallery=()) -> Path:
    for folder, people in (("bounding_box_train", train), ("query", query), ("bounding_box_test", gallery)):
        (root / folder).mkdir(parents=True)
        for person in people:
            write(root / folder / f"{person if person == -1 else f'{person:04d}'}_c{person % 6 + 1}s1_000001_00.png")
    return root


def test_of_a_tree_only_training_people_are_listed(tmp_path):
    root = market(tmp_path / "m", train=[3, 2, -1, 0], query=[7], gallery=[7, 8, 0, -1])
    (root / "toy_crowd.json").write_text('{"version": "1", "content_hash": "abc", "options": {"people": 5}}')
    for path in (root, root / "bounding_box_train"):  # the one folder means the tree, and stays under its guard
        source = open_images(path, validation_people=0)
        assert known_labels(source.training) == [(2, 3), (3, 4)]
        assert all(name.startswith("bounding_box_train/") for name in source.training.names)
        assert len(source.validation) == 0
    record = source.record
    assert (record["name"], record["kind"], record["split"], record["images"]) == ("m", "tree", "train", 2)
    assert record["identities"] == {"count": 2, "sha256": identities_sha256([2, 3])}
    assert record["left_out"] == {"distractors": 1, "junk": 1}
    assert record["toy_crowd"] == {"version": "1", "content_hash": "abc"}
    assert json.loads(json.dumps(record)) == record
    assert str(tmp_path) not in str(record)  # folders of this machine are nobody's business


@pytest.mark.parametrize("folder", ["query", "gallery"])
def test_a_tree_whose_training_people_stand_in_its_test_is_refused(tmp_path, folder):
    root = market(tmp_path / "m", train=[2, 3, 5], **{folder: [3, 5, 9]})
    with pytest.raises(InputError, match="2 identities.*the first is 0003"):
        open_images(root)


@pytest.mark.parametrize("place", ["query", "bounding_box_test", "gt_bbox", "query/deeper"])
def test_held_out_folders_are_refused_wherever_they_are_entered(tmp_path, place):
    root = market(tmp_path / "m", train=[2], query=[7], gallery=[8])
    write(root / place / "a.png")
    with pytest.raises(InputError, match="people of a test"):
        open_images(root / place)
    (tmp_path / "link").symlink_to(root / place)
    with pytest.raises(InputError, match="people of a test"):
        open_images(tmp_path / "link")


def test_a_folder_around_a_tree_is_refused_with_the_way_out(tmp_path):
    market(tmp_path / "all/market", train=[2], query=[7], gallery=[8])
    with pytest.raises(InputError, match="give the data set's own folder"):
        open_images(tmp_path / "all")
    shutil.rmtree(tmp_path / "all/market/bounding_box_train")  # a tree for measuring only
    with pytest.raises(InputError, match="no folder .*bounding_box_train: give"):
        open_images(tmp_path / "all/market")


@pytest.mark.parametrize("place", ["copies", "market/copies", "copies/nested/more"])
def test_a_folder_that_repeats_held_out_people_of_a_tree_near_it_is_refused(tmp_path, place):
    market(tmp_path / "market", train=[2], query=[7], gallery=[8])
    write(tmp_path / place / "0002_c1s1_000001_00.png")
    folder = tmp_path / place.split("/nested")[0]
    assert len(open_images(folder).training) == 1
    write(tmp_path / place / "0008_c1s1_000001_00.png")
    write(folder / "holiday.png")  # one foreign name must not switch the guard off
    with pytest.raises(InputError, match="1 identities also stand in .*the first is 0008"):
        open_images(folder)


def test_links_do_not_lead_around_the_guard(tmp_path):
    root = market(tmp_path / "m", train=[2], query=[7], gallery=[8])
    folder = tmp_path / "mine"
    write(folder / "a.png")
    (folder / "b.png").symlink_to(next((root / "query").iterdir()))
    with pytest.raises(InputError, match="people of a test"):
        open_images(folder)
    (folder / "b.png").unlink()
    (folder / "more").symlink_to(root / "query")
    with pytest.raises(InputError, match="is a link to a folder"):
        open_images(folder)


def test_identities_of_a_folder_come_from_names_or_sub_folders_or_are_unknown(tmp_path):
    market_like, by_person, by_number, plain = (tmp_path / name for name in ("a", "b", "c", "d"))
    # Market names win over sub-folders, which may as well be cameras.
    for name in ("cam1/0005_c1s1_000001_00.png", "cam2/0005_c2s1_000001_00.png", "-1_c2s1_000001_00.png"):
        write(market_like / name)
    for name in ("ann/1.png", "ann/deep/2.png", "bob/1.png"):
        write(by_person / name)
    for name in ("7/1.png", "12/1.png", "0000/1.png", "-1/1.png", "12/0000_c1s1_000001_00.png"):
        write(by_number / name)
    for name in ("ann/1.png", "2.png", ".hidden.png", "__MACOSX/3.png", "notes.txt"):
        write(plain / name) if name.endswith("png") else (plain / name).write_text("")
    listed = {folder.name: open_images(folder, 0).training for folder in (market_like, by_person, by_number, plain)}
    said = {name: known_labels(listing) for name, listing in listed.items()}
    assert said["a"] == [(5, 1), (5, 2)]
    assert said["b"] == [(1, None), (1, None), (2, None)]
    assert said["c"] == [(12, None), (7, None)]  # by name; junk and distractors never enter
    assert said["d"] == [(None, None), (None, None)]
    assert open_images(plain, 0).record["identities"] is None
    assert str(open_images(by_person, 1)) == "2 images of 1 person; set aside for validation: 1 image of 1 person"


def test_unusable_paths_are_named_with_the_way_out(tmp_path):
    with pytest.raises(InputError, match="no folder or zip file"):
        open_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        open_images(tmp_path / "empty")
    with pytest.raises(InputError, match="only junk"):
        open_images(market(tmp_path / "junk", train=[-1, 0]))
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(InputError, match="as a zip file"):
        open_images(tmp_path / "text.zip")
    toy = market(tmp_path / "toy", train=[1])
    (toy / "toy_crowd.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="no JSON object"):
        open_images(toy)


def test_the_last_people_are_set_aside_and_are_nobody_that_is_trained_on(tmp_path):
    root = tmp_path / "m"
    for person in range(1, 41):
        for frame in range(2):
            path = root / f"bounding_box_train/{person:04d}_c1s1_{frame:06d}_00.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"not opened by listing")
    source = open_images(root)
    assert set(source.validation.identities.tolist()) == {39, 40}  # one in twenty
    assert set(source.training.identities.tolist()) == set(range(1, 39))
    assert source.record["validation"] == {
        "images": 4,
        "identities": {"count": 2, "sha256": identities_sha256([39, 40])},
    }
    assert set(open_images(root, 5).validation.identities.tolist()) == set(range(36, 41))
    assert len(open_images(root, 0).validation) == 0
    for count in (-1, 40):
        with pytest.raises(InputError, match=f"--validation-people {count}: the data hold 40; give 0 to 39"):
            open_images(root, count)


def test_how_many_are_set_aside_where_nobody_says():
    def known(people):
        return training_listing([str(number) for number in range(people)], range(1, people + 1))

    def unknown(count):
        return training_listing([str(number) for number in range(count)])

    assert [default_validation(known(people)) for people in (19, 20, 840, 5000)] == [0, 1, 42, 50]
    assert [default_validation(unknown(count)) for count in (19, 40, 50_000)] == [0, 2, 500]


def test_the_fingerprint_tells_altered_data_and_another_split(tmp_path):
    folder = tmp_path / "a"
    for number in range(4):
        write(folder / f"{number}.png", picture(seed=number))
    first = open_images(folder, 1)
    shutil.copytree(folder, tmp_path / "b")
    assert open_images(tmp_path / "b", 1).fingerprint == first.fingerprint  # the place does not matter
    assert first.without([first.training.names[0]]).fingerprint == first.fingerprint
    prints = {first.fingerprint, open_images(folder, 2).fingerprint}
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes() + b"\0")
    prints.add(open_images(folder, 1).fingerprint)
    os.rename(folder / "0.png", folder / "9.png")
    prints.add(open_images(folder, 1).fingerprint)
    assert len(prints) == 4


def encoded(rgb: np.ndarray, suffix=".png") -> bytes:
    return cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()


def test_shrinking_averages_areas_and_nothing_is_stretched():
    image = picture(128, 64)  # at a quarter, bilinear sampling would skip pixels
    means = image.reshape(32, 4, 16, 4, 3).mean((1, 3))
    shrunk = decode_bytes(encoded(image), Target(32, 16))
    assert np.abs(shrunk - means).max() <= 0.5  # rounding to whole numbers
    assert np.array_equal(decode_bytes(encoded(image), Target(128, 64)), image)
    # One pixel of rounding is the same aspect ratio, two are not.
    assert decode_bytes(encoded(picture(64, 33)), Target(32, 16)).shape == (32, 16, 3)
    assert decode_bytes(encoded(picture(64, 34)), Target(32, 16)) == Problem("aspect", 64, 34)
    assert decode_bytes(encoded(picture(16, 8)), Target(32, 16)) == Problem("small", 16, 8)
    assert decode_bytes(encoded(picture(16, 8)), Target(32, 16, enlarge=True)).shape == (32, 16, 3)


@pytest.mark.parametrize(("height", "width"), [(32, 30), (50, 16)])
def test_crop_takes_the_middle_and_pad_repeats_the_edge(height, width):
    image = picture(height, width)
    top, left = (height - 32) // 2, (width - 16) // 2
    cropped = decode_bytes(encoded(image), Target(32, 16, fit="crop"))
    assert np.array_equal(cropped, image[top : top + 32, left : left + 16])
    wide = width * 2 > height
    margin = (2 * width - height) // 2 if wide else (height // 2 - width) // 2
    pad = ((margin, 2 * width - height - margin), (0, 0)) if wide else ((0, 0), (margin, height // 2 - width - margin))
    padded = np.pad(image, (*pad, (0, 0)), "edge")
    assert padded.shape[0] == 2 * padded.shape[1]
    assert np.array_equal(decode_bytes(encoded(image), Target(*padded.shape[:2], fit="pad")), padded)
    stretched = decode_bytes(encoded(image), Target(32, 16, fit="stretch"))
    assert np.array_equal(stretched, cv2.resize(image, (16, 32), interpolation=cv2.INTER_AREA))


def test_files_that_are_no_modest_picture_are_problems_not_crashes():
    good = encoded(picture(), ".jpg")
    bomb = io.BytesIO()
    Image.new("1", (MOST_PIXELS // 8192, 8193)).save(bomb, "PNG")  # 8 MB of black: 16 KB, and 200 MB as RGB
    gif = io.BytesIO()
    Image.new("P", (16, 32)).save(gif, "GIF")
    half = good[: len(good) // 2]
    for data in (None, b"", gif.getvalue(), half, bomb.getvalue()):
        assert decode_bytes(data, Target(32, 16)) == Problem("unreadable")
    line = Target(2, 1, fit="pad")
    assert decode_bytes(encoded(picture(1, 20_000)), line) == Problem("aspect", 1, 20_000)
    random = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(good)
        for place in random.integers(0, 200, 4):
            data[place] = random.integers(256)
        result = decode_bytes(bytes(data), Target(32, 16, "pad", enlarge=True))
        assert isinstance(result, Problem) or result.shape == (32, 16, 3)


def test_sizes_that_do_not_fit_stop_the_training_with_one_line(tmp_path):
    for number in range(4):
        write(tmp_path / f"{number}.png", picture(64, 32) if number < 2 else picture(64, 48))
    source = open_images(tmp_path, 1)
    with pytest.raises(InputError, match=r"2 of 4 images, the first is 2.png \(64x48\), .*--fit crop"):
        load_images(source, Target(32, 16))
    with pytest.raises(InputError, match=r"4 of 4 images, the first is 0.png \(64x32\), .*smaller --height"):
        load_images(source, Target(128, 64, fit="crop"))
    loaded = load_images(source, Target(32, 16, fit="crop"))
    assert loaded.training.shape == (3, 32, 16, 3)
    assert loaded.validation.shape == (1, 32, 16, 3)


def test_decoding_keeps_the_listing_s_order_and_leaves_unreadable_files_out(tmp_path):
    for number in range(30):
        write(tmp_path / f"{number:02d}.png", np.full((32, 16, 3), number, np.uint8))
    (tmp_path / "04.png").write_bytes(b"damaged")
    (tmp_path / "29.png").write_bytes(b"damaged")
    source = open_images(tmp_path, 3)
    loaded = load_images(source, Target(32, 16), threads=3)
    assert loaded.unreadable == ("04.png", "29.png")
    assert loaded.training[:, 0, 0, 0].tolist() == [n for n in range(27) if n != 4]
    assert loaded.validation[:, 5, 5, 1].tolist() == [27, 28]
    assert loaded.source.training.names == tuple(f"{n:02d}.png" for n in range(27) if n != 4)
    record = loaded.source.record
    assert (record["images"], record["validation"]["images"]) == (26, 2)
    assert record["left_out"] == {"unreadable": 2}
    for number in (7, 8):
        (tmp_path / f"{number:02d}.png").write_bytes(b"damaged")
    with pytest.raises(InputError, match="4 of 30 images cannot be read, the first is 04.png: more than one in ten"):
        load_images(open_images(tmp_path, 3), Target(32, 16))


def test_a_reader_gives_nothing_for_a_file_that_went_away(tmp_path):
    write(tmp_path / "a.png")
    assert Reader()(tmp_path / "a.png") == (tmp_path / "a.png").read_bytes()
    assert Reader()(tmp_path / "b.png") is None


# ---- identity labels that a training uses


def test_labelled_people_are_never_set_aside(tmp_path):
    root = market(tmp_path / "m", train=range(1, 41))
    for count in (2, 5, 30):
        source = open_images(root, validation_people=6, labelled=(count, 0))
        labelled = source.labelled.identities
        assert (len(labelled), source.labelled.draw) == (count, 0)
        assert set(labelled) <= set(source.training.known_people)
        others = sorted(set(range(1, 41)) - set(labelled))
        assert source.validation.known_people == others[-6:]
        assert source.training.known_people == sorted({*labelled, *others[:-6]})
        record = source.record
        assert record["labelled"] == {
            "count": count, "sha256": identities_sha256(labelled), "draw": 0, "images": count,
        }  # fmt: skip
        assert json.loads(json.dumps(record)) == record
    with pytest.raises(InputError, match="--validation-people 6: the data hold 5 without a label; give 0 to 5"):
        open_images(root, validation_people=6, labelled=(35, 0))
    with pytest.raises(
        InputError, match="--labelled-people 41: m .Market-1501. train has 40 people of known identity: give fewer"
    ):
        open_images(root, labelled=(41, 0))


def test_one_draw_labels_the_same_people_of_a_tree_a_folder_and_a_reid_training(tmp_path):
    root = market(tmp_path / "tree" / "m", train=range(1, 21))
    drawn = open_images(root, labelled=(4, 9)).labelled.identities
    assert read_split(root, "train").drawn_people(4, 9) == list(drawn)
    for person in range(1, 21):
        write(tmp_path / "folder" / "f" / f"{person}" / "a.png")
    assert open_images(tmp_path / "folder" / "f", labelled=(4, 9)).labelled.identities == drawn
    assert set(drawn) < set(open_images(root, labelled=(6, 9)).labelled.identities)


def test_without_a_number_all_training_people_are_labelled_and_without_use_nobody(tmp_path):
    root = market(tmp_path / "m", train=range(1, 41))
    source = open_images(root, validation_people=3, labelled=(None, 0))
    assert (source.labelled.identities, source.labelled.draw) == (tuple(range(1, 38)), None)
    assert source.validation.known_people == [38, 39, 40]
    plain = open_images(root, validation_people=3)
    assert plain.labelled is None
    assert "labelled" not in plain.record
    assert plain.fingerprint == source.fingerprint


def test_everybody_may_be_labelled(tmp_path):
    root = market(tmp_path / "m", train=range(1, 41))
    source = open_images(root, labelled=(40, 0))  # by default 2 of 40 are set aside, here nobody is left for that
    assert len(source.validation) == 0
    assert source.labelled.identities == tuple(range(1, 41))
