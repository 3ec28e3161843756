"""What is measured of variants, on pictures whose measures are known."""

import numpy as np
import pytest
import torch

from passersby.metrics.ssim import ssim
from passersby.metrics.variants import by_person, measure_filter, measure_mixing, measure_pose, other_people, share

COLOURS = np.array([(200, 30, 30), (30, 160, 40), (40, 40, 190), (220, 200, 60)], np.uint8)
RANDOM = np.random.default_rng(0)


def picture(colour, texture) -> np.ndarray:
    """[32, 16, 3] uint8 of one colour, lighter and darker by a texture [32, 16] of -1..1."""
    return (colour * (1 + 0.15 * texture[..., None])).clip(0, 255).astype(np.uint8)


TEXTURES = RANDOM.uniform(-1, 1, (4, 3, 32, 16))  # of 4 people, 3 pictures
MADE = np.stack([[picture(COLOURS[p], TEXTURES[p, v]) for v in range(3)] for p in range(4)])
DONORS = np.stack([[picture(COLOURS[(p + v) % 4], TEXTURES[p, v]) for v in range(3)] for p in range(4)])
SCORES = np.array([[0.9, 0.2, 0.3], [0.6, 0.7, 0.1], [0.5, 0.4, 0.3], [0.8, 0.9, 0.7]])


def test_the_filters_shares():
    found = measure_filter(SCORES, 0.6)
    assert found["all"]["value"] == pytest.approx(6 / 12)
    assert found["base"]["value"] == pytest.approx(3 / 4)  # 0.6 passes
    assert found["all"]["images"] == 12
    assert found["base"]["images"] == found["base"]["people"] == 4
    assert found["by_person"]["median"] == pytest.approx(0.5)  # of 1/3, 2/3, 0, 1
    assert found["by_person"]["at_least_half"]["value"] == 0.5
    assert found["by_person"]["none"]["value"] == 0.25
    assert found["median_score"] == pytest.approx(0.55)


def test_variants_that_keep_their_colours_are_nearest_to_their_person():
    found = measure_mixing(MADE, SCORES, MADE[:, 0], DONORS, 0.6)
    assert found["nearest_own"]["value"] == 1
    assert found["own_before_donor"]["value"] == 1
    assert found["nearest_donor"]["value"] == 0
    assert found["filter"]["value"] == pytest.approx(3 / 8)
    # by person: 0 - 1, 1/2 - 1, 0 - 0, 1 - 1
    assert found["filter_minus_base"]["value"] == pytest.approx(-1.5 / 4)


def test_variants_that_take_the_donors_colours_are_nearest_to_the_donor():
    taken = MADE.copy()
    taken[:, 1:] = DONORS[:, 1:]
    found = measure_mixing(taken, SCORES, MADE[:, 0], DONORS, 0.6)
    assert found["nearest_own"]["value"] == 0
    assert found["own_before_donor"]["value"] == 0
    assert found["nearest_donor"]["value"] == 1


def test_donors_and_compared_people_may_be_fewer_than_all():
    few = measure_mixing(MADE[:3], SCORES[:3], MADE[:, 0], DONORS[:2], 0.6)
    assert few["nearest_own"]["people"] == few["people"] == 3
    assert few["nearest_donor"]["people"] == 2
    assert few["nearest_own"]["value"] == 1
    swapped = measure_mixing(MADE[:3], SCORES[:3], MADE[::-1, 0], DONORS[:2], 0.6)  # bases in a wrong order
    assert swapped["nearest_own"]["value"] == 0


def test_the_pose_is_measured_against_the_base_image():
    found = measure_mixing(MADE, SCORES, MADE[:, 0], DONORS, 0.6)
    a, b = MADE[:, [0, 0]].reshape(-1, 32, 16, 3), MADE[:, 1:].reshape(-1, 32, 16, 3)
    direct = ssim(torch.from_numpy(a), torch.from_numpy(b), 255.0).mean().item()
    assert found["ssim_255"] == pytest.approx(direct, abs=1e-12)  # the same numbers summed in parts
    assert found["ssim_255"] < found["ssim_4095"] < 1
    assert found["absolute_difference"] == pytest.approx(np.abs(a.astype(int) - b).mean())
    # every texture is another: the edges are as far as other people's
    assert found["edge_distance"] == pytest.approx(other_people(MADE[:, 0])["edge_distance"], rel=0.2)


def test_the_same_picture_is_no_distance_away(monkeypatch):
    monkeypatch.setattr("passersby.metrics.variants._PAIRS", 3)  # several parts, the last of one pair
    same = measure_pose(MADE[:, 0], MADE[:, 0])
    assert same["ssim_255"] == pytest.approx(1)
    assert same["absolute_difference"] == 0
    assert same["edge_distance"] == 0


def test_other_people_are_never_compared_with_themselves():
    twins = np.stack([MADE[0, 0], MADE[1, 0]])
    assert other_people(twins) == pytest.approx(measure_pose(twins, twins[::-1].copy()))


def test_means_by_person():
    person = np.array([7, 3, 7, 7])
    assert by_person(person, np.array([1.0, 0.5, 0.0, 0.5])).tolist() == [0.5, 0.5]
    assert by_person(person, np.array([True, False, False, False])) == pytest.approx([0, 1 / 3])


def test_a_share_counts_people_not_images():
    found = share(np.array([[True, True], [True, False]]))
    assert (found["value"], found["people"], found["images"]) == (0.75, 2, 4)
    assert found["low"] == 0.5
    assert found["high"] == 1.0
