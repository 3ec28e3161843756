"""Proposed thresholds, pairs, table and picture of a calibration."""

import cv2
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from reporting.calibration import (
    STUDY_REJECTED,
    THRESHOLDS,
    calibration_lines,
    calibration_notes,
    calibration_plot,
    chosen_pairs,
    detector_record,
    greatest_threshold,
    least_threshold,
    share_rejected,
    similarities,
    similarity_record,
    threshold_options,
)


def test_the_curve_is_the_share_of_scores_below_each_threshold():
    scores = np.random.default_rng(0).random(200).astype(np.float32)
    scores[:3] = 0.0, 0.5, 1.0
    expected = [sum(score < threshold for score in scores.tolist()) / 200 for threshold in THRESHOLDS.tolist()]
    assert share_rejected(scores, THRESHOLDS).tolist() == expected
    assert expected[0] == 0


@pytest.mark.parametrize("lost", [0.0, 0.01, 0.0645, 0.29, 0.5, 0.999])
def test_no_more_than_wanted_is_lost_and_a_higher_threshold_would_lose_more(lost):
    scores = np.random.default_rng(1).beta(4, 1, 100).astype(np.float32)
    low, high = least_threshold(scores, lost), greatest_threshold(scores, lost)
    assert (scores < low).mean() <= lost
    assert (scores > high).mean() <= lost
    # the next thousandth loses more, or all that may be lost lies between
    assert (scores < low + 0.001).mean() > lost or lost > 0.99
    assert (scores > high - 0.001).mean() > lost or lost > 0.99
    assert round(low * 1000) == pytest.approx(low * 1000)


def test_thresholds_by_hand():
    scores = np.array([0.2, 0.3004, 0.55, 0.9])
    assert least_threshold(scores, 0.25) == 0.3
    assert least_threshold(scores, 0.24) == 0.2
    assert greatest_threshold(scores, 0.25) == 0.55
    assert greatest_threshold(scores, 0.5) == 0.301
    assert least_threshold(np.array([0.0, 0.0, 0.9]), 0.5) == 0  # nobody is seen in two of three


def test_pairs_are_of_one_person_or_two_and_everybody_gives_as_many():
    identities = np.array([5] * 40 + [7] * 4 + [9] * 4 + [3] + [0] * 5 + [-1] * 5)
    identities = identities[np.random.default_rng(0).permutation(len(identities))]
    same, different = chosen_pairs(identities, 18, seed=1)
    assert len({tuple(sorted(pair)) for pair in same.tolist()}) == len(same) == 18
    assert (same[:, 0] != same[:, 1]).all()
    whose = identities[same]
    assert (whose[:, 0] == whose[:, 1]).all()
    assert np.unique(whose[:, 0], return_counts=True)[1].tolist() == [6, 6, 6]
    assert (identities[different] > 0).all()
    assert (identities[different[:, 0]] != identities[different[:, 1]]).all()
    everything, _ = chosen_pairs(identities, 10_000, seed=1)
    assert len(everything) == 40 * 39 // 2 + 6 + 6
    again, _ = chosen_pairs(identities, 18, seed=1)
    assert (again == same).all()
    none, nobody = chosen_pairs(np.array([0, 0, -1, 4]), 10, seed=0)
    assert (none.shape, nobody.shape) == ((0, 2), (0, 2))


def test_similarities_are_those_of_scikit_image():
    images = np.random.default_rng(2).integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)
    images = np.stack([cv2.blur(image, (3, 3)) for image in images])
    pairs = np.array([[i, j] for i in range(5) for j in range(i)])
    for data_range in (255.0, 4095.0):
        expected = [
            structural_similarity(images[i], images[j], data_range=data_range, channel_axis=2) for i, j in pairs
        ]
        assert similarities(images, pairs, data_range) == pytest.approx(expected, abs=1e-9)
    assert similarities(images, pairs[:0], 255.0).shape == (0,)


@pytest.fixture(scope="module")
def measured():
    random = np.random.default_rng(4)
    scores = random.beta(6, 1, 500).astype(np.float32)
    pairs = [(random.beta(8, 2, 300), random.beta(6, 3, 300)), (random.beta(2, 4, 300), random.beta(2, 8, 300))]
    records = [
        similarity_record(*both, data_range, 0.01) for both, data_range in zip(pairs, (4095.0, 255.0), strict=True)
    ]
    return detector_record(scores, 0.0645), records, pairs


def test_the_table_names_the_studys_shares_and_the_proposal(measured):
    detector, records, _ = measured
    lines = calibration_lines(detector, records)
    assert len(lines) == 1 + len(STUDY_REJECTED) + 1 + 1 + 2
    at = next(line for line in lines if line.strip().startswith("0.6 "))
    assert at.split()[-1] == "6.46%"
    assert float(at.split()[1].rstrip("%")) == pytest.approx(100 * dict(detector["curve"])[0.6], abs=0.006)
    assert f"{detector['threshold']:.3f}" in lines[7]
    assert detector["rejected"] <= 0.0645
    assert "at most 6.45%" in lines[7]
    assert lines[-2].split()[0] == "4095"


def test_options_are_those_of_the_data_range_that_generation_uses(measured):
    detector, records, _ = measured
    floor, ceiling = f"{records[0]['floor']:.3f}", f"{records[0]['ceiling']:.3f}"
    expected = [
        "--detector-threshold",
        f"{detector['threshold']:.3f}",
        "--ssim-floor",
        floor,
        "--ssim-ceiling",
        ceiling,
    ]
    assert threshold_options(detector, records) == expected
    assert threshold_options(detector, []) == expected[:2]


def test_the_picture_has_a_panel_for_the_curve_and_one_for_each_data_range(measured):
    detector, records, pairs = measured
    both = [(record, *values) for record, values in zip(records, pairs, strict=True)]

    def size(png: bytes) -> tuple[int, ...]:
        return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).shape

    one, three = calibration_plot(detector, []), calibration_plot(detector, both)
    assert size(three)[1] == pytest.approx(3 * size(one)[1], abs=3)
    alone = (both[0][0], both[0][1], np.empty(0))  # a single person: there are no two people
    assert size(calibration_plot(detector, [alone], "mine"))[0] > size(one)[0]


def test_notes_say_what_is_missing(measured):
    detector, _, _ = measured
    assert calibration_notes(detector, (), 5, 9) == []
    assert "nobody knows who" in calibration_notes(detector, (), 0, 0)[0]
    assert "nobody has two images" in calibration_notes(detector, (), 3, 0)[0]
    assert "'a.jpg'" in calibration_notes(detector, ("a.jpg",), 3, 1)[0]
    few = detector_record(np.array([0, 0, 0.9, 0.8], np.float32), 0.1)
    notes = calibration_notes(few, (), 3, 1)
    assert "only 0 images decide" in notes[0]
    assert "sees nobody" in notes[1]
