"""Scores from camera to camera: counted by hand, and against the whole ranking of a data set of two cameras."""

import numpy as np
import pytest

from passersby.metrics.ranking import evaluate_ranking
from passersby.metrics.verification import camera_pairs


def at(*angles: float) -> np.ndarray:
    """Features of length 1 by their angle in degrees: nearer angles are more alike."""
    return np.stack([np.cos(np.deg2rad(angles)), np.sin(np.deg2rad(angles))], 1).astype(np.float32)


def test_pairs_that_can_be_counted_by_hand():
    # Person 1 at 0 degrees by cameras 1, 2 and 3, person 2 at 90; a distractor (0) of camera 3 stands before person 1.
    query, gallery = at(0, 90), at(5, 80, 10, 3, 1)
    pairs = camera_pairs(
        query, gallery,
        np.array([1, 2]), np.array([1, 2, 1, 0, 1]),
        np.array([1, 1]), np.array([2, 2, 3, 3, 1]),
    )  # fmt: skip
    found = [(pair.query_camera, pair.gallery_camera, pair.queries, pair.rank1, pair.mAP) for pair in pairs]
    # To camera 2: both are found first. To camera 3: only person 1 is there, second behind the distractor.
    assert found == [(1, 2, 2, 1.0, 1.0), (1, 3, 1, 0.0, 0.5)]


def test_between_two_cameras_it_is_the_whole_ranking():
    random = np.random.default_rng(0)
    query, gallery = random.normal(size=(12, 6)).astype(np.float32), random.normal(size=(80, 6)).astype(np.float32)
    query_ids, gallery_ids = np.arange(12) % 5 + 1, random.integers(0, 6, 80)
    cameras = np.full(12, 4), np.full(80, 9)
    for metric in ("cosine", "euclidean"):
        (pair,) = camera_pairs(query, gallery, query_ids, gallery_ids, *cameras, metric)
        whole = evaluate_ranking(query, gallery, query_ids, gallery_ids, *cameras, metric=metric)
        assert (pair.query_camera, pair.gallery_camera, pair.queries) == (4, 9, 12)
        assert (pair.rank1, pair.mAP) == (pytest.approx(whole.rank1), pytest.approx(whole.mAP))
    assert camera_pairs(query, gallery, query_ids, gallery_ids, np.full(12, 9), cameras[1]) == []
