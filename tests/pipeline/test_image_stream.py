"""Images streamed through Ray Data are, byte for byte and in order, those that memory would give."""

import itertools
import os
import zipfile

import cv2
import numpy as np
import pytest

from datasets.people.decoding import Target
from datasets.people.image_source import load_images, open_images
from datasets.people.labels import colour_features
from passersby.errors import InputError
from pipeline.image_stream import ImageStream, survey_images

COUNT, BATCH, TARGET = 50, 8, Target(16, 8)


def order(images_seen: int, count: int) -> np.ndarray:
    """Places of a whole batch, a new permutation each epoch."""
    positions = np.arange(images_seen, images_seen + BATCH)
    return np.array([np.random.default_rng(p // count).permutation(count)[p % count] for p in positions])


def encoded(number: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 255, (32, 16, 3), np.uint8)
    return cv2.imencode(".jpg", noise)[1].tobytes()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same images as a folder and as an archive, with two that cannot be read, one of them set aside."""
    root = tmp_path_factory.mktemp("sources")
    (root / "folder").mkdir()
    with zipfile.ZipFile(root / "set.zip", "w") as archive:
        for number in range(COUNT + 4):
            data = b"damaged" if number in (7, COUNT + 2) else encoded(number)
            archive.writestr(f"{number:03d}.jpg", data)
            (root / "folder" / f"{number:03d}.jpg").write_bytes(data)
    return [open_images(root / name, validation_people=3) for name in ("folder", "set.zip")]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    # Several tasks at once, so that an order kept by chance would show.
    monkeypatch.setattr("pipeline.image_stream._PIECE_IMAGES", 8)


@pytest.fixture(scope="module")
def loaded(sources):
    return load_images(sources[0], TARGET)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.slow
def test_a_survey_finds_what_decoding_would(ray_cluster, sources, loaded, place):
    surveyed = survey_images(sources[place], TARGET, features=True)
    assert surveyed.unreadable == loaded.unreadable == ("007.jpg", f"{COUNT + 2:03d}.jpg")
    assert surveyed.source.training.names == loaded.source.training.names
    assert np.array_equal(surveyed.validation, loaded.validation)
    assert np.array_equal(surveyed.features, colour_features(loaded.training))
    with pytest.raises(InputError, match="52 of 54 images, the first is 000.jpg .32x16., are smaller than 64x32"):
        survey_images(sources[place], Target(64, 32))


@pytest.mark.parametrize(("place", "images_seen", "world_size"), [(0, 0, 1), (1, 0, 2), (0, 3 * BATCH, 2)])
def test_streamed_batches_are_those_in_memory(ray_cluster, loaded, sources, place, images_seen, world_size):
    usable = sources[place].without(loaded.unreadable)
    count = len(usable.training)

    def streamed(rank):
        stream = ImageStream(
            usable, TARGET, lambda seen: order(seen, count), BATCH, rank=rank, world_size=world_size, stretch_images=32
        )
        batches = stream.batches(images_seen)
        taken = list(itertools.islice(batches, 9))  # beyond two stretches and the first epoch
        batches.close()
        return taken

    for rank in range(world_size):
        for number, images in enumerate(streamed(rank)):
            expected = loaded.training[order(images_seen + number * BATCH, count)[rank::world_size]]
            assert np.array_equal(images, expected)
            assert images.flags.writeable  # the caller mirrors in place


def test_an_image_that_went_away_is_named(ray_cluster, tmp_path):
    folder = tmp_path / "folder"  # which is compared with the trees beside it
    folder.mkdir()
    for number in range(BATCH):
        (folder / f"{number}.jpg").write_bytes(encoded(number))
    source = open_images(folder, 0)
    (folder / "5.jpg").unlink()
    stream = ImageStream(source, TARGET, lambda seen: np.arange(BATCH), BATCH, stretch_images=BATCH)
    with pytest.raises(InputError, match=r"5\.jpg of .* no longer can: restore it"):
        next(stream.batches(0))


def test_a_name_that_is_not_utf_8_is_streamed(ray_cluster, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(BATCH):
        try:
            (folder / os.fsdecode(b"%d\xe9.jpg" % number)).write_bytes(encoded(number))
        except OSError:
            pytest.skip("this file system takes UTF-8 only")
    source = open_images(folder, 0)
    images = load_images(source, TARGET)
    assert len(images.training) == BATCH
    stream = ImageStream(source, TARGET, lambda seen: np.arange(BATCH), BATCH, stretch_images=BATCH)
    batches = stream.batches(0)
    assert np.array_equal(next(batches), images.training)
    batches.close()
