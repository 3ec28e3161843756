"""Nearest pictures, near-copies and doubles, against slow obvious implementations and cases by hand."""

import itertools

import numpy as np
import pytest

from passersby.errors import InputError
from passersby.metrics import identity
from passersby.metrics.identity import (
    NOBODY,
    doubles,
    near_copies,
    near_copy_threshold,
    nearest_pictures,
    same_person_threshold,
)


def unit_rows(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def at_angle(*degrees: float) -> np.ndarray:
    """Rows of length 1 in the plane: cosines are those of the angles between."""
    angles = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.mark.parametrize("rows", [7, 1000])
def test_nearest_pictures_are_those_of_a_search_one_by_one(monkeypatch, rows):
    monkeypatch.setattr(identity, "ROWS", rows)  # blocks that do and do not end within people
    rng = np.random.default_rng(0)
    real, identities = unit_rows(rng, 40, 6), rng.integers(1, 9, 40)
    images, persons = unit_rows(rng, 25, 6), rng.integers(0, 12, 25)  # some of nobody, some of people without pictures
    found = nearest_pictures(images, real, identities, persons)
    for place, (image, person) in enumerate(zip(images, persons, strict=True)):
        cosines = [float(np.dot(image.astype(np.float64), other)) for other in real]
        own = [c for c, whose in zip(cosines, identities, strict=True) if whose == person]
        others = [c for c, whose in zip(cosines, identities, strict=True) if whose != person]
        assert found.picture[place] == int(np.argmax(cosines))
        assert found.cosine[place] == pytest.approx(max(cosines), abs=1e-6)  # float32 sums of 6 products
        assert found.others_cosine[place] == pytest.approx(max(others), abs=1e-6)
        if own:
            assert found.person_cosine[place] == pytest.approx(max(own), abs=1e-6)
        else:
            assert np.isnan(found.person_cosine[place])
    assert found.person_cosine.dtype == np.float32


def test_a_single_real_person_leaves_no_others_and_a_picture_is_not_compared_with_itself():
    real = at_angle(0, 60)
    found = nearest_pictures(at_angle(0), real, np.array([3, 3]), np.array([3]))
    assert (found.person_cosine[0], np.isnan(found.others_cosine[0])) == (1, True)
    found = nearest_pictures(real, real, np.array([3, 3]), np.array([3, 3]), own_pictures=np.array([0, 1]))
    np.testing.assert_allclose(found.person_cosine, [0.5, 0.5], atol=1e-6)
    np.testing.assert_array_equal(found.picture, [1, 0])


@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_cosines_do_not_leave_their_range_and_the_first_of_equal_pictures_counts(monkeypatch, rows):
    monkeypatch.setattr(identity, "ROWS", rows)
    real = np.repeat(unit_rows(np.random.default_rng(1), 1, 2000), 3, axis=0)
    found = nearest_pictures(real[:1] * np.float32(1.000001), real, np.array([4, 5, 6]), np.array([NOBODY]))
    assert found.cosine[0] == 1
    assert found.picture[0] == 0
    with pytest.raises(InputError, match="no pictures of real people"):
        nearest_pictures(real, real[:0], np.array([], np.int64), np.zeros(3, np.int64))


def test_the_threshold_of_near_copies_is_what_one_percent_of_real_pictures_reach():
    rng = np.random.default_rng(2)
    real, identities = unit_rows(rng, 300, 5), np.repeat(np.arange(1, 61), 5)
    for of_same_person in (True, False):
        best = []
        for a in range(300):
            pairs = (
                real[a] @ real[b] for b in range(300) if a != b and (identities[a] == identities[b]) == of_same_person
            )
            best.append(max(pairs))
        threshold = near_copy_threshold(real, identities, of_same_person)
        # Two pictures that are nearest to each other share a value, so a fourth may reach that of the third.
        assert 3 <= sum(value >= threshold - 1e-6 for value in best) <= 4
        assert threshold == pytest.approx(sorted(best)[-3], abs=1e-6)


def test_without_a_second_picture_there_is_no_threshold():
    real = at_angle(0, 90)
    assert near_copy_threshold(real, np.array([1, 2]), of_same_person=True) is None
    assert near_copy_threshold(real, np.array([1, 1]), of_same_person=False) is None
    assert near_copy_threshold(real, np.array([1, 2]), of_same_person=False) == pytest.approx(0, abs=1e-6)
    assert same_person_threshold(real, np.array([1, 1])) is None


def test_the_threshold_of_the_same_person_accepts_one_percent_of_pairs_of_different_people():
    rng = np.random.default_rng(3)
    real, identities = unit_rows(rng, 120, 8), np.repeat(np.arange(1, 41), 3)
    different = [real[a] @ real[b] for a, b in itertools.combinations(range(120), 2) if identities[a] != identities[b]]
    threshold = same_person_threshold(real, identities)
    assert 0.009 < np.mean(np.array(different) >= threshold) <= 0.01


def test_near_copies_are_counted_among_the_scored():
    found = near_copies(np.array([0.9, 0.8, np.nan, 0.7]), 0.8)
    assert found == {"count": 2, "scored": 3, "share": pytest.approx(2 / 3)}
    assert near_copies(np.array([np.nan]), 0.8) == {"count": 0, "scored": 0, "share": None}


@pytest.mark.parametrize("block", [4, 7, 1000])
def test_doubles_are_those_of_all_pairs(monkeypatch, block):
    monkeypatch.setattr(identity, "BLOCK", block)
    features = unit_rows(np.random.default_rng(4), 23, 4)
    pairs = sorted(
        ((float(features[a] @ features[b]), a, b) for a, b in itertools.combinations(range(23), 2)), reverse=True
    )
    threshold = (pairs[16][0] + pairs[17][0]) / 2
    found = doubles(features, threshold, most=10)
    assert (found.count, found.pairs) == (17, 23 * 22 // 2)
    assert found.first.tolist() == [[a, b] for _, a, b in pairs[:10]]
    np.testing.assert_allclose(found.cosines, [cosine for cosine, *_ in pairs[:10]], atol=1e-6)
    assert len(doubles(features, threshold).first) == 17
    assert doubles(features, 1.1).count == 0


@pytest.mark.parametrize("people", [0, 1])
def test_nobody_has_a_double_alone(people):
    found = doubles(np.ones((people, 3), np.float32), 0.5)
    assert (found.count, found.pairs, len(found.first)) == (0, 0, 0)
