"""Edge maps: blind to colour and contrast, not to outlines."""

import cv2
import numpy as np
import pytest

from passersby.errors import InputError
from passersby.metrics.variants import edge_distances, edge_maps


def figure(arm: int, ground=(120, 120, 120), clothes=(30, 30, 30)) -> np.ndarray:
    """A standing figure on a plain ground, [128, 64, 3], with an arm `arm` pixels away from the body."""
    image = np.full((128, 64, 3), ground, np.uint8)
    cv2.ellipse(image, (32, 16), (8, 11), 0, 0, 360, clothes, -1)
    cv2.rectangle(image, (24, 28), (40, 118), clothes, -1)
    cv2.line(image, (40, 34), (40 + arm, 70), clothes, 5)
    return image


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return edge_distances(*edge_maps(np.stack([a, b]))[:, None])[0]


def test_maps_are_shares_of_the_edges():
    maps = edge_maps(np.stack([figure(5), np.full((128, 64, 3), 9, np.uint8)]))
    assert maps.shape == (2, 128, 64)
    assert maps.dtype == np.float32
    # float32 sums of 8192 values
    np.testing.assert_allclose(maps.sum((1, 2)), 1, atol=1e-4)
    # an even picture has an even map
    np.testing.assert_allclose(maps[1], 1 / 8192, rtol=1e-3)


def test_a_colour_of_the_same_lightness_is_no_difference():
    # In CIELAB both grounds have lightness 50, both clothes lightness 20, within the rounding to 8 bits.
    lab = np.array([[[50, 0, 0], [20, 0, 0], [50, 30, -20], [20, -15, 10]]], np.float32)
    rgb = np.rint(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)[0] * 255).astype(int)
    grey, black, violet, green = (tuple(map(int, colour)) for colour in rgb)
    # rounding moves the lightness by 0.2 of the 30 between ground and clothes, the same along all edges
    assert distance(figure(5, grey, black), figure(5, violet, green)) < 0.01
    assert distance(figure(5, grey, black), figure(15, grey, black)) > 0.1


def test_contrast_and_its_sign_are_no_difference():
    # a quarter of the contrast: rounding to 8 bits and the floor under the map
    assert distance(figure(5), figure(5, (120,) * 3, (105,) * 3)) < 0.05
    assert distance(figure(5), figure(5, (30,) * 3, (120,) * 3)) < 0.05


def test_the_further_an_arm_moves_the_larger_is_the_distance():
    moved = [distance(figure(5), figure(5 + by)) for by in (0, 1, 4, 12)]
    assert moved[0] == 0
    assert moved == sorted(moved)
    assert moved[1] < moved[3] / 3  # a pixel is within the tolerance


def test_edges_without_a_common_place_are_one_apart():
    left, right = np.zeros((2, 128, 64, 3), np.uint8)
    left[20:40, 10:20], right[90:110, 44:54] = 255, 255
    # 1, but for the floor of 1e-4 under both maps
    assert distance(left, right) == pytest.approx(1, abs=0.02)


def test_other_arrays_are_refused():
    for images in (np.zeros((1, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(InputError, match="uint8"):
            edge_maps(images)
