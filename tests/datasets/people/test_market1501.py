"""Market-1501 trees: names, splits, decoding."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.people.decoding import decode_listing, decode_scaled
from datasets.people.listing import identities_sha256
from datasets.people.market1501 import list_split
from datasets.people.names import is_image, parse_name
from passersby.errors import InputError


def write(path: Path, rgb: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    return path


def flat(colour, height=32, width=16):
    return np.full((height, width, 3), colour, np.uint8)


def test_names_say_identity_camera_sequence_frame_and_box():
    image = parse_name(Path("x/0002_c3s1_000451_03.jpg"))
    assert (image.identity, image.camera, image.sequence, image.frame, image.box) == (2, 3, 1, 451, 3)
    assert parse_name(Path("-1_c6s3_000001_00.png")).identity == -1
    assert parse_name(Path("0000_c6s3_000001_00.JPG")).identity == 0


def test_images_are_told_by_their_names_and_hidden_ones_are_none():
    for name in ("a.jpg", "A.JPEG", "x/y z/b.Png", "0002_c3s1_000451_03.jpg.jpg"):
        assert is_image(name), name
    for name in ("a.gif", "jpg", "._a.jpg", ".jpg", "x/.y/b.png", "__MACOSX/b.png", "a.jpg/Thumbs.db"):
        assert not is_image(name), name


@pytest.mark.parametrize(
    "name", ["Thumbs.db", "0002_c3_000451_03.jpg", "0002_c3s1_000451_03.jpg.txt", "a.jpg", f"{10**18}_c1s1_1_1.jpg"]
)
def test_other_names_are_not_guessed(name):
    assert parse_name(Path(name)) is None


def test_a_split_is_listed_by_name_without_junk_or_distractors_among_its_people(tmp_path):
    folder = tmp_path / "bounding_box_test"
    for name in ["0007_c1s1_000002_00.jpg", "0003_c2s1_000001_00.jpg", "-1_c1s1_000001_00.jpg"]:
        write(folder / name, flat(9))
    write(folder / "0000_c1s1_000009_00.jpg", flat(9))
    (folder / "Thumbs.db").write_bytes(b"not an image")
    (folder / "._0003_c2s1_000001_00.jpg").write_bytes(b"of macOS")
    listing = list_split(tmp_path, "gallery")
    assert listing.identities.tolist() == [-1, 0, 3, 7]
    assert listing.people_only().known_people == list(listing.people) == [3, 7]
    # The hash names the set, however it is ordered; it is that of the text "3\n7\n".
    assert identities_sha256([7, 3]) == identities_sha256([3, 7])
    assert identities_sha256([3, 7]) == "2d65ba73dd83363826d117438319b05674f16d55faef1e57f780964edae7bba1"


def test_missing_empty_and_foreign_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="bounding_box_train"):
        list_split(tmp_path, "train")
    (tmp_path / "bounding_box_train").mkdir()
    with pytest.raises(InputError, match="no images"):
        list_split(tmp_path, "train")
    write(tmp_path / "bounding_box_train" / "holiday.jpg", flat(9))
    with pytest.raises(InputError, match="'holiday.jpg'"):
        list_split(tmp_path, "train")


def test_images_come_as_rgb_in_the_listing_s_order(tmp_path):
    colours = {"0001_c1s1_000001_00.png": (200, 20, 90), "0002_c1s1_000001_00.png": (5, 150, 250)}
    for name, colour in colours.items():
        write(tmp_path / "query" / name, flat(colour))
    images, _, _ = decode_listing(list_split(tmp_path, "query"), 32, 16)
    assert images.dtype == np.uint8
    assert images.shape == (2, 32, 16, 3)
    assert [tuple(image[0, 0]) for image in images] == list(colours.values())


def test_shrinking_averages_areas(tmp_path):
    # Stripes one pixel wide, 0 and 200: point sampling would give one of the two, areas give their mean.
    stripes = np.zeros((64, 32, 3), np.uint8)
    stripes[:, ::2] = 200
    image = decode_scaled(write(tmp_path / "stripes.png", stripes).read_bytes(), 32, 16)
    assert image.shape == (32, 16, 3)
    assert (image == 100).all()


def test_unreadable_images_are_listed_and_only_fatal_when_all_are(tmp_path):
    good = write(tmp_path / "query" / "0001_c1s1_000001_00.jpg", flat((10, 20, 30)))
    cut = tmp_path / "query" / "0002_c1s1_000001_00.jpg"
    cut.write_bytes(good.read_bytes()[:100])
    (tmp_path / "query" / "0003_c1s1_000001_00.jpg").write_bytes(b"")
    images, places, unreadable = decode_listing(list_split(tmp_path, "query"), 32, 16, decode_one=decode_scaled)
    assert len(images) == 1
    assert places.tolist() == [0]
    assert [parse_name(name).identity for name in unreadable] == [2, 3]
    good.unlink()
    with pytest.raises(InputError, match="none of 2 images"):
        decode_listing(list_split(tmp_path, "query"), 32, 16, decode_one=decode_scaled)
