"""What is measured of variants, on pictures whose measures are known."""

import numpy as np
import pytest
import torch

from passersby.errors import InputError
from passersby.metrics.ssim import ssim
from passersby.metrics.variants import (
    by_person,
    colour_histograms,
    colour_spread,
    measure_filter,
    measure_mixing,
    measure_pose,
    measure_variants,
    other_people,
    others_edge_distance,
    region_colours,
    share,
)

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


def test_the_colours_of_edges_and_torso_are_those_of_their_pixels():
    image = np.zeros((2, 120, 60, 3), np.uint8)
    image[:, :40, :10], image[:, :40, 50:] = (255, 0, 0), (0, 0, 255)  # the top third, a sixth on each side
    image[:, 34:58, 23:37] = (0, 102, 0)  # 28% and 48% of 120; 38% and 62% of 60, rounded
    np.testing.assert_allclose(region_colours(image, "edges"), [[0.5, 0, 0.5]] * 2)
    np.testing.assert_allclose(region_colours(image, "torso"), [[0, 0.4, 0]] * 2)
    inverse = image.copy()
    inverse[:, :40, :10] = inverse[:, :40, 50:] = inverse[:, 34:58, 23:37] = 7
    for region in ("edges", "torso"):
        np.testing.assert_allclose(region_colours(inverse, region), 7 / 255)  # every pixel of it, and no other


def test_regions_of_a_tiny_picture_have_a_pixel():
    assert region_colours(np.full((1, 2, 2, 3), 51, np.uint8), "edges").tolist() == [[0.2] * 3]
    assert region_colours(np.full((1, 2, 2, 3), 51, np.uint8), "torso").tolist() == [[0.2] * 3]


@pytest.mark.parametrize("images", [np.zeros((2, 8, 4, 3)), np.zeros((8, 4), np.uint8), np.zeros((2, 8, 4), np.uint8)])
def test_regions_of_other_arrays_are_refused(images):
    with pytest.raises(InputError, match="colours of regions need uint8"):
        region_colours(images, "torso")


def test_the_spread_of_colours_within_and_between_people():
    # Two people, two pictures each, one channel moves: person 0 has 0.0 and 0.2, person 1 has 0.6 and 0.6.
    colours = np.zeros((2, 2, 3))
    colours[:, :, 0] = [[0.0, 0.2], [0.6, 0.6]]
    spread = colour_spread(colours)
    assert spread["within"] == pytest.approx((0.1 + 0) / 2 / 3)
    assert spread["between"] == pytest.approx(0.25 / 3)  # of the means 0.1 and 0.6
    assert spread["ratio"] == pytest.approx(0.2)
    assert colour_spread(np.full((2, 3, 3), 0.5)) == {"within": 0, "between": 0, "ratio": 0}


def test_what_variants_keep_and_change_whatever_made_them():
    gallery = colour_histograms(MADE[:, 0])
    same = measure_variants(MADE[:, [0, 0, 0]], gallery)
    assert same["nearest_own"]["value"] == 1
    assert [same["edge_distance"], same["edges"]["within"], same["torso"]["within"]] == pytest.approx([0, 0, 0])
    kept, taken = (measure_variants(images, gallery) for images in (MADE, DONORS))
    assert (kept["nearest_own"]["value"], taken["nearest_own"]["value"]) == (1, 0)
    assert (kept["nearest_own"]["people"], kept["nearest_own"]["images"]) == (4, 8)
    assert kept["edge_distance"] == pytest.approx(
        measure_mixing(MADE, SCORES, MADE[:, 0], DONORS, 0.6)["edge_distance"]
    )
    assert taken["torso"]["ratio"] > 1 > 0.5 > kept["torso"]["ratio"]
    assert measure_variants(MADE, gallery[::-1].copy())["nearest_own"]["value"] == 0  # people in a wrong order


def test_the_edge_distance_of_other_people_alone_is_the_same():
    for count in (2, 4):
        assert others_edge_distance(MADE[:count, 0]) == pytest.approx(other_people(MADE[:count, 0])["edge_distance"])
