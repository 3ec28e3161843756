"""Labels that condition a GAN: what the columns are, and that clusters are the same each time."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.people.decoding import Target
from datasets.people.image_source import ImageSource, load_images, open_images
from datasets.people.labels import FEATURES, cluster, colour_features, labels
from datasets.people.listing import UNKNOWN_CAMERA, Listing
from passersby.errors import InputError
from tests.helpers.listings import training_listing


def source(training: Listing, validation: Listing | None = None) -> ImageSource:
    return ImageSource(Path("set"), "folder", training, validation or training_listing([]), {}, None, "")


def test_none_has_no_columns():
    made = labels(source(training_listing(["a.png", "b.png"])), "none")
    assert (made.rows.shape, made.rows.dtype) == ((2, 0), np.float32)
    assert made.meaning == {"kind": "none"}


def test_cameras_become_columns_in_ascending_order():
    made = labels(source(training_listing("abc", [1, 1, 2], [6, 2, 6])), "camera")
    assert made.rows.tolist() == [[0, 1], [1, 0], [0, 1]]
    assert made.rows.dtype == np.float32
    assert made.meaning == {"kind": "camera", "cameras": [2, 6], "images": [1, 2]}
    with pytest.raises(InputError, match="1 of 2 images of set say no camera, the first is b"):
        labels(source(training_listing("ab", [1, 1], [6, UNKNOWN_CAMERA])), "camera")


def test_labels_of_dataset_json_are_classes_or_vectors():
    classes = source(training_listing("ab", labels=[2, 0]), training_listing("c", labels=[3]))
    made = labels(classes, "dataset")
    assert made.rows.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]  # the class of a person set aside keeps its column
    assert json.loads(json.dumps(made.meaning)) == {"kind": "dataset", "classes": 4, "images": [1, 0, 1, 0]}
    vectors = labels(source(training_listing("ab", labels=[(0.5, 2.0), (1.0, 0.0)])), "dataset")
    assert vectors.rows.tolist() == [[0.5, 2], [1, 0]]
    assert vectors.meaning == {"kind": "dataset", "vectors": 2}
    with pytest.raises(InputError, match="1 of 2 images of set have no label in a dataset.json, the first is b"):
        labels(source(training_listing("ab", labels=[2, None])), "dataset")


def dressed(top, bottom, seed) -> np.ndarray:
    """A noisy person of two colours [32, 16, 3] before a background that says nothing."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 255, (32, 16, 3)).astype(np.float64)
    image[:16, 4:12], image[16:, 4:12] = top, bottom
    image[:, 4:12] += random.normal(0, 4, (32, 8, 3))
    return image.clip(0, 255).astype(np.uint8)


RED, BLUE, GREEN = (200, 30, 30), (30, 30, 200), (30, 160, 30)


def test_features_see_colours_and_where_they_are_but_not_the_background():
    images = [dressed(RED, BLUE, 0), dressed(RED, BLUE, 1), dressed(BLUE, RED, 2)]
    features = colour_features(np.stack(images))
    assert (features.shape, features.dtype) == ((3, FEATURES), np.float32)
    # Squares are shares of a stripe's pixels: 3 stripes with 3 channels each.
    assert np.allclose((features**2).sum(1), 9, atol=1e-5)  # sums of float32
    same, swapped = (np.linalg.norm(features[0] - other) for other in features[1:])
    assert same < 0.5 * swapped
    elsewhere = images[0].copy()
    elsewhere[:, :4] = elsewhere[:, 12:] = 0
    assert np.array_equal(colour_features(elsewhere[None])[0], features[0])


def test_people_of_alike_colours_share_a_cluster_and_a_person_is_never_divided(tmp_path):
    clothes = [(RED, BLUE), (GREEN, RED), (BLUE, GREEN)]
    for person in range(1, 13):
        for frame in range(2):
            image = dressed(*clothes[person % 3], seed=person * 2 + frame)
            path = tmp_path / f"{person:04d}_c1s1_{frame:06d}_00.png"
            assert cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    loaded = load_images(open_images(tmp_path, 0), Target(32, 16))
    features = colour_features(loaded.training)
    made = labels(loaded.source, "cluster", features=features, clusters=3, seed=5)
    assert made.rows.shape == (24, 3)
    places = made.rows.argmax(1)
    # Person 1 wears the second clothes: clusters are numbered by their first member.
    assert places.tolist() == [(person - 1) % 3 for person in range(1, 13) for _ in range(2)]
    assert made.meaning == {"kind": "cluster", "of": "people", "seed": 5, "sizes": [4, 4, 4], "images": [8, 8, 8]}
    assert np.array_equal(made.rows, labels(loaded.source, "cluster", features=features, clusters=3, seed=5).rows)
    unknown = source(training_listing([str(number) for number in range(24)]))
    by_image = labels(unknown, "cluster", features=features, clusters=3)
    assert by_image.meaning["of"] == "images"
    assert np.array_equal(by_image.rows, made.rows)


def test_no_cluster_is_empty_and_too_many_are_refused():
    points = np.random.default_rng(0).normal(size=(40, 3))
    for clusters in (1, 7, 30, 40):
        places = cluster(points, clusters, seed=1)
        assert sorted(set(places.tolist())) == list(range(clusters))
        assert np.array_equal(places, cluster(points, clusters, seed=1))
    with pytest.raises(InputError, match="3 clusters of 2 people of distinct colours: give 1 to 2"):
        cluster(np.array([[0.0], [0.0], [1.0]]), 3, seed=0)
    with pytest.raises(InputError, match="0 clusters"):
        cluster(points, 0, seed=0)
