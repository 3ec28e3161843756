"""Pairs and thresholds against a list of all pairs, and cases that can be counted by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passersby.errors import InputError
from passersby.metrics import verification
from passersby.metrics.verification import BINS, STEP, PairCounts, count_pairs, same_person_thresholds


def gallery_and_queries(seed: int, queries: int = 9, gallery: int = 40, cameras: bool = True) -> dict:
    random = np.random.default_rng(seed)
    query_ids, gallery_ids = random.integers(1, 5, queries), random.integers(-1, 5, gallery)
    centres = random.standard_normal((6, 8))
    features = [
        (centres[ids] + random.standard_normal((len(ids), 8)) * 0.7).astype(np.float32)
        for ids in (query_ids, gallery_ids)
    ]
    return {
        "query_features": features[0],
        "gallery_features": features[1],
        "query_ids": query_ids,
        "gallery_ids": gallery_ids,
        "query_cameras": random.integers(0, 3, queries) if cameras else None,
        "gallery_cameras": random.integers(0, 3, gallery) if cameras else None,
    }


def listed(query_features, gallery_features, query_ids, gallery_ids, query_cameras, gallery_cameras) -> tuple:
    """All pairs that count, one at a time, in float64: similarities of the same person, and of different people."""
    same, different = [], []
    for i, q in enumerate(query_features.astype(float)):
        for j, g in enumerate(gallery_features.astype(float)):
            if gallery_ids[j] == -1 or query_ids[i] == -1:
                continue
            if query_cameras is not None and query_cameras[i] == gallery_cameras[j]:
                continue
            alike = query_ids[i] == gallery_ids[j] and query_ids[i] > 0
            (same if alike else different).append(q @ g / np.linalg.norm(q) / np.linalg.norm(g))
    return np.array(same), np.array(different)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([1, 200, 1 << 20]))
def test_counts_and_thresholds_are_those_of_the_list_of_all_pairs(seed, cameras, chunk):
    case = gallery_and_queries(seed, cameras=cameras)
    same, different = listed(**case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "CHUNK_BYTES", chunk)  # one query at a time, and all at once
        counts = count_pairs(**case)
    assert (counts.same.sum(), counts.different.sum()) == (len(same), len(different))
    for values, counted in ((same, counts.same), (different, counts.different)):
        binned = np.repeat(np.arange(BINS) * STEP - 1, counted)
        np.testing.assert_allclose(binned, np.sort(values), atol=STEP * 0.51)  # half a bin, and float32

    thresholds = same_person_thresholds(counts)
    if len(same):
        found = thresholds.equal_error
        # Not one of all cuts between two pairs has both errors nearer to each other. A pair that lies on the edge of a
        # bin may be counted on either side.
        cuts = np.concatenate([[-2], np.sort(np.concatenate([same, different])) + 1e-9])
        apart = min(abs((different >= cut).mean() - (same < cut).mean()) for cut in cuts)
        edge = 1 / len(same) + 1 / len(different)
        assert abs(found.false_accepts - found.false_rejects) <= apart + edge
        assert found.false_accepts == pytest.approx((different >= found.similarity).mean(), abs=edge)
        assert found.false_rejects == pytest.approx((same < found.similarity).mean(), abs=edge)
    strict = thresholds.one_percent
    assert strict.false_accepts <= 0.01
    lower = strict.similarity - STEP  # and one bin lower there are too many
    assert strict.false_accepts == 0 or (different >= lower - 1e-5).mean() > 0.01


def pairs(same: dict, different: dict) -> PairCounts:
    made = []
    for counts in (same, different):
        made.append(np.zeros(BINS, np.int64))
        for similarity, count in counts.items():
            made[-1][round((similarity + 1) / STEP)] = count
    return PairCounts(*made)


def test_thresholds_that_can_be_counted_by_hand():
    # 10 same, 1000 different. At 0.5 and above: 9 of the same (1 rejected, 10%), 100 different (10% accepted).
    counts = pairs({0.2: 1, 0.6: 6, 0.9: 3}, {-0.3: 700, 0.4: 200, 0.55: 90, 0.7: 10})
    thresholds = same_person_thresholds(counts)
    assert thresholds.equal_error.false_accepts == 0.1
    assert thresholds.equal_error.false_rejects == pytest.approx(0.1)
    assert thresholds.equal_error.similarity == pytest.approx((0.4 + 0.55) / 2, abs=STEP)
    # 1% of 1000 are 10: those at 0.7 pass, those at 0.55 do not, so the lowest threshold is just above 0.55.
    assert thresholds.one_percent.false_accepts == 0.01
    assert thresholds.one_percent.similarity == pytest.approx(0.55 + STEP / 2)
    assert thresholds.one_percent.false_rejects == pytest.approx(0.1)
    assert same_person_thresholds(counts, accepts=0.005).one_percent.similarity == pytest.approx(0.7 + STEP / 2)


def test_a_gap_is_cut_in_its_middle():
    threshold = same_person_thresholds(pairs({0.8: 5}, {0.2: 50})).equal_error
    assert (threshold.false_accepts, threshold.false_rejects) == (0, 0)
    assert threshold.similarity == pytest.approx(0.5, abs=STEP)


def test_identical_images_cannot_be_told_apart():
    ones = np.ones((3, 4), np.float32)
    counts = count_pairs(ones, np.ones((6, 4), np.float32), np.array([1, 2, 3]), np.array([1, 2, 3, 1, 2, 3]))
    assert (counts.same[-1], counts.different[-1]) == (6, 12)
    threshold = same_person_thresholds(counts).equal_error
    assert threshold.false_accepts + threshold.false_rejects == 1


def test_what_is_undefined_is_none():
    nothing = same_person_thresholds(pairs({}, {}))
    assert (nothing.equal_error, nothing.one_percent) == (None, None)
    assert same_person_thresholds(pairs({0.5: 3}, {})).one_percent is None  # one person
    strangers = same_person_thresholds(pairs({}, {0.1: 99, 0.5: 1}))  # no match at all
    assert strangers.equal_error is None
    assert strangers.one_percent.similarity == pytest.approx(0.1 + STEP / 2)
    assert math.isnan(strangers.one_percent.false_rejects)


def test_bad_features_are_refused():
    case = gallery_and_queries(0)
    case["gallery_features"][3, 2] = np.nan
    with pytest.raises(InputError, match="1 of 40 gallery images have features that are not finite"):
        count_pairs(**case)
    with pytest.raises(InputError, match="8 features of queries and 5 of the gallery"):
        count_pairs(**{**gallery_and_queries(0), "gallery_features": np.ones((40, 5))})
    with pytest.raises(InputError, match="9 queries and 40 gallery images have 8 and 40 identities"):
        count_pairs(**{**gallery_and_queries(0), "query_ids": np.ones(8, int)})
