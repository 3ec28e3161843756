"""Listings of images of people, and their pixels."""

import dataclasses
import struct
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.people.decoding import close_gaps, decode_at, decode_bicubic, decode_listing
from datasets.people.listing import UNKNOWN_CAMERA, UNKNOWN_PERSON, Listing, joined
from passersby.errors import InputError
from tests.helpers.listings import training_listing


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image[..., ::-1])[1].tobytes()


def listing_of(contents, identities=None, cameras=None) -> Listing:
    count = len(contents)
    identities = range(1, count + 1) if identities is None else identities
    return Listing(
        "some", tuple(contents), np.array(list(identities)), np.array(cameras or [1] * count),
        tuple(f"{i}.png" for i in range(count)), {i: str(i) for i in identities if i > 0},
    )  # fmt: skip


def flat(value: int, height: int = 8, width: int = 4) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_corrupt_images_in_the_middle_are_listed_not_fatal(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 16, 3), np.uint8)
    contents: list[Path | bytes] = [encoded(flat(10)), encoded(noise, ".jpg")[:40], b"", tmp_path / "missing.jpg"]
    (tmp_path / "good.png").write_bytes(encoded(flat(200)))
    contents += [tmp_path / "good.png", tmp_path, encoded(flat(30))]
    images, places, unreadable = decode_listing(listing_of(contents), 8, 4, threads=3)
    assert places.tolist() == [0, 4, 6]
    assert unreadable == ("1.png", "2.png", "3.png", "5.png")
    assert images[:, 0, 0, 0].tolist() == [10, 200, 30]
    assert images.shape == (3, 8, 4, 3)
    with pytest.raises(InputError, match="none of 2 images can be read, the first is '0.png'"):
        decode_listing(listing_of([b"x", b"y"]), 8, 4)
    with pytest.raises(InputError, match="none of 0 images"):
        decode_listing(listing_of([]), 8, 4)


def test_colours_are_rgb():
    image = np.zeros((8, 4, 3), np.uint8)
    image[:] = (200, 20, 90)
    assert decode_listing(listing_of([encoded(image)]), 8, 4)[0][0, 0, 0].tolist() == [200, 20, 90]


def test_an_image_that_promises_gigabytes_is_not_decoded():
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    _, places, unreadable = decode_listing(listing_of([bomb, encoded(flat(1))]), 8, 4)
    assert (places.tolist(), unreadable) == ([1], ("0.png",))


def test_enlarging_is_bicubic_and_shrinking_averages():
    noise = np.random.default_rng(1).integers(0, 256, (128, 64, 3), np.uint8)
    large = decode_bicubic(encoded(noise), 256, 128).astype(np.float32)
    planes = torch.from_numpy(noise).permute(2, 0, 1)[None].float()
    bicubic = torch.nn.functional.interpolate(planes, (256, 128), mode="bicubic").clamp(0, 255)[0].permute(1, 2, 0)
    assert np.abs(large - bicubic.numpy()).max() <= 1  # rounded to whole values
    stripes = np.zeros((64, 32, 3), np.uint8)
    stripes[:, ::2] = 200
    assert (decode_bicubic(encoded(stripes), 32, 16) == 100).all()
    # Wide and low: averaged where it shrinks, although it grows in the other direction.
    assert (decode_bicubic(encoded(stripes[:8]), 16, 16) == 100).all()


def test_take_keeps_fields_together():
    listing = listing_of([b"a", b"bb", b"ccc", b"d"], [5, -1, 0, 7], [1, 2, 3, UNKNOWN_CAMERA])
    part = listing.take([3, 0])
    assert (part.contents, part.names, part.people) == ((b"d", b"a"), ("3.png", "0.png"), {5: "5", 7: "7"})
    assert part.identities.tolist() == [7, 5]
    assert listing.take(listing.identities <= 0).contents == (b"bb", b"ccc")
    assert len(listing.take([])) == 0
    assert listing.take([0, 1]).has_cameras
    assert not listing.has_cameras
    with pytest.raises(ValueError, match="different lengths"):
        Listing("x", (b"a",), np.array([1, 2]), np.array([1]), ("a",), {})


def test_fingerprints_see_every_field_and_the_order(tmp_path):
    path = tmp_path / "é.png"
    path.write_bytes(b"12345")
    listing = listing_of([path, b"bb"], [1, 2])
    same = listing_of([b"54321", b"bb"], [1, 2])  # as long: bytes are not read
    assert listing.fingerprint() == same.fingerprint()
    others = [
        listing_of([b"123456", b"bb"], [1, 2]), listing_of([path, b"bb"], [1, 3]),
        listing_of([path, b"bb"], [1, 2], [1, 2]), listing.take([1, 0]), listing.take([0]),
        listing_of([tmp_path / "missing.png", b"bb"], [1, 2]),
    ]  # fmt: skip
    assert len({other.fingerprint() for other in [*others, listing]}) == len(others) + 1


def test_only_people_of_the_training_split_may_be_trained_on():
    listing = listing_of([b"a", b"bb", b"ccc", b"d"], [5, -1, 0, UNKNOWN_PERSON])
    kept = listing.of_split("train").training()
    assert kept.names == ("0.png", "3.png")  # who nobody knows is somebody
    assert (kept.left_out, kept.people) == ({"distractors": 1, "junk": 1}, {5: "5"})
    assert kept.notes == ("some: 2 junk images and distractors are left out",)
    assert kept.training() is kept
    for split in ("query", "gallery", "multi-query", ""):
        with pytest.raises(InputError, match=f"4 of 4 images are not of the split train, but of {split!r}"):
            listing.of_split(split).training()
    mixed = joined([listing.of_split("train"), listing.take([0]).of_split("query")])
    with pytest.raises(InputError, match="1 of 5 images are not of the split train, but of 'query'"):
        mixed.training()


def test_networks_that_make_people_are_guarded_by_names_too(tmp_path):
    (tmp_path / "query").mkdir()
    (tmp_path / "bounding_box_train").mkdir()
    (tmp_path / "query/0007_c1s1_000001_00.jpg").write_bytes(b"")
    listing = training_listing(["bounding_box_train/0007_c2s1_000001_00.jpg"], [7])
    assert len(listing.training()) == 1  # a re-ID network's data decide by their split
    with pytest.raises(InputError, match="1 identities of .* also stand in query or bounding_box_test"):
        listing.training(generator_data=tmp_path)


def test_listings_are_joined_and_named_below_a_folder(tmp_path):
    inside, outside = tmp_path / "set/train/a.png", tmp_path / "b.png"
    one = listing_of([inside], [3], [2]).of_split("train")
    two = listing_of([outside, b"x"], [3, 4], [1, UNKNOWN_CAMERA]).of_split("query")
    both = joined([one, two]).below(tmp_path / "set")
    assert both.names == ("train/a.png", "0.png", "1.png")
    assert (both.contents, both.splits) == ((inside, outside, b"x"), ("train", "query", "query"))
    assert (both.identities.tolist(), both.cameras.tolist()) == ([3, 3, 4], [2, 1, UNKNOWN_CAMERA])
    assert both.people == {3: "3", 4: "4"}
    assert both.of_people([4]).names == ("1.png",)
    assert both.known_people == [3, 4]
    assert training_listing("ab").known_people is None
    with pytest.raises(ValueError, match="different archives"):
        joined([one, dataclasses.replace(one, archive=tmp_path / "a.zip")])


def test_images_of_an_archive_are_members_and_no_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x/./a.png", encoded(flat(7)))
    packed = dataclasses.replace(listing_of(["x/./a.png", "gone.png"]), archive=tmp_path / "a.zip")
    assert decode_at(packed, 0)[0, 0, 0] == 7
    assert decode_at(packed, 1) is None
    assert decode_listing(packed, 8, 4)[1].tolist() == [0]
    assert packed.without({"0.png"}).names == ("1.png",)
    with pytest.raises(ValueError, match="its images lie in"):
        _ = packed.files
    assert listing_of([b"x", tmp_path]).files == (b"x", tmp_path)


def test_gaps_are_closed_in_place():
    images = np.arange(6)[:, None]
    close_gaps(images, np.array([0, 2, 5]))
    assert images[:3, 0].tolist() == [0, 2, 5]


# ---- people whom a seed draws


def people_listing(identities, name=str) -> Listing:
    listing = listing_of([b""] * len(identities), identities)
    return dataclasses.replace(listing, people={i: name(i) for i in identities if i > 0})


def test_a_draw_of_people_is_nested_and_the_same_for_ever():
    listing = people_listing(range(1, 101))
    assert listing.drawn_people(6, 0) == sorted([41, 72, 9, 49, 78, 99])
    assert listing.drawn_people(6, 1) == sorted([44, 62, 54, 6, 64, 8])
    draws = [listing.drawn_people(count, 5) for count in range(1, 101)]
    assert all(set(a) < set(b) for a, b in zip(draws, draws[1:], strict=False))
    assert draws[-1] == list(range(1, 101))


def test_a_draw_of_people_depends_on_their_names_alone():
    expected = people_listing(range(1, 101)).drawn_people(20, 3)
    assert people_listing(range(1, 101), "{:04d}".format).drawn_people(20, 3) == expected  # another reader's names
    shuffled = np.random.default_rng(0).permutation(np.repeat(range(1, 101), 3)).tolist()
    assert people_listing(shuffled).drawn_people(20, 3) == expected  # any order, any number of pictures
    renumbered = people_listing(range(101, 201), lambda identity: str(identity - 100)).drawn_people(20, 3)
    assert [identity - 100 for identity in renumbered] == expected  # the names, not a reader's numbers
    fewer = people_listing([i for i in range(1, 101) if i in expected or i > 50])
    assert fewer.drawn_people(20, 3) == expected  # other people do not move it
    words = people_listing(range(1, 6), lambda identity: "abcde"[identity - 1])
    assert len(set(map(tuple, (words.drawn_people(2, draw) for draw in range(20))))) > 5


def test_people_who_share_a_number_are_two_people():
    listing = people_listing([1, 2], lambda identity: ("7", "007")[identity - 1])
    assert listing.drawn_people(2, 0) == [1, 2]
    assert listing.drawn_people(1, 0) == people_listing([2, 1], lambda i: ("7", "007")[i - 1]).drawn_people(1, 0)


def test_nobody_is_drawn_who_is_not_known():
    listing = people_listing([-1, 0, 3, 4, UNKNOWN_PERSON])
    assert listing.drawn_people(2, 0) == [3, 4]
    for count in (0, 3):
        with pytest.raises(InputError, match=f"--labelled-people {count}: some has 2 people of known identity"):
            listing.drawn_people(count, 0)
