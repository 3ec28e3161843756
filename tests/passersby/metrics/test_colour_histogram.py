"""Colour histograms: what they see and what they do not."""

import cv2
import numpy as np
import pytest

from passersby.errors import InputError
from passersby.metrics.variants import BINS, COLUMNS, SIZE, STRIPES, colour_histograms, nearest


def dressed(head, trunk, legs, height=48, width=24):
    """A picture [height, width, 3] of three bands of colour."""
    bands = np.array([head, trunk, legs], np.uint8).repeat(height // 3, 0)
    return np.repeat(bands[:, None], width, 1)


PICTURES = np.random.default_rng(0).integers(0, 256, (6, 40, 20, 3), dtype=np.uint8)


def test_histograms_are_unit_vectors_alike_only_to_themselves():
    found = colour_histograms(PICTURES)
    assert found.shape == (6, SIZE)
    assert found.dtype == np.float32
    assert (found >= 0).all()
    # float32 sums of 768 squares
    np.testing.assert_allclose((found**2).sum(1), 1, atol=1e-5)
    assert nearest(found, found).tolist() == list(range(6))


def test_a_colour_halfway_between_bins_is_shared_among_them():
    # Grey of lightness 50 lies in the middle of bins 1 and 2 of 4, and of bins 3 and 4 of 8 on a and b: eight bins
    # take an eighth each, in every stripe a third.
    grey = np.full((3, 3, 3), 119, np.uint8)  # lightness 50.03
    found = colour_histograms(grey.repeat(10, 0).repeat(10, 1)[None])[0] ** 2
    stripes = found.reshape(STRIPES, *BINS)
    # off by 0.03 of bins of 33 (lightness) and, as OpenCV rounds, by up to 0.1 of bins of 18 (a, b)
    np.testing.assert_allclose(stripes[:, 1:3, 3:5, 3:5], 1 / 24, rtol=0.02)
    assert stripes[:, 1:3, 3:5, 3:5].sum() == pytest.approx(1, abs=1e-5)  # nothing elsewhere, float32 sums


def test_a_small_change_of_light_is_a_small_change_of_the_histogram():
    dark = np.full((1, 30, 20, 3), 120, np.uint8)
    found = colour_histograms(np.concatenate([dark, dark + 3, dark + 80]))
    near, far = found[0] @ found[1], found[0] @ found[2]
    assert near > 0.99
    assert far < 0.8


def test_the_stripes_tell_trousers_from_shirts():
    blue, red, skin = (30, 40, 160), (170, 30, 30), (200, 160, 130)
    pictures = np.stack([dressed(skin, blue, red), dressed(skin, red, blue), dressed(skin, blue, red)])
    found = colour_histograms(pictures)
    assert found[0] @ found[1] < 0.5  # the same colours in all
    # equal pictures: one in float32
    assert found[0] @ found[2] == pytest.approx(1, abs=1e-6)


def test_the_background_at_the_sides_does_not_count():
    plain = dressed((200, 160, 130), (30, 40, 160), (90, 90, 90))
    other = plain.copy()
    left, right = (round(plain.shape[1] * column) for column in COLUMNS)
    other[:, :left], other[:, right:] = (0, 255, 0), (255, 0, 255)
    np.testing.assert_array_equal(*colour_histograms(np.stack([plain, other])))


def test_a_pose_does_not_count_but_colours_do():
    # The same pixels of each stripe in another order.
    random = np.random.default_rng(1)
    left, right = (round(20 * column) for column in COLUMNS)
    picture = cv2.resize(PICTURES[0, ::8, ::8], (20, 42))
    moved = picture.copy()
    for top in (0, 14, 28):
        part = picture[top : top + 14, left:right].reshape(-1, 3)
        moved[top : top + 14, left:right] = random.permutation(part).reshape(14, right - left, 3)
    found = colour_histograms(np.stack([picture, moved, picture[:, :, ::-1]]))
    # sums of the same terms in another order
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert found[0] @ found[2] < 0.95


def test_extreme_colours_stay_inside():
    corners = np.array(np.meshgrid(*[(0, 255)] * 3)).reshape(3, 8).T.astype(np.uint8)
    found = colour_histograms(corners[:, None, None].repeat(6, 1).repeat(6, 2))
    assert np.isfinite(found).all()
    assert nearest(found, found).tolist() == list(range(8))


def test_none_is_none():
    assert colour_histograms(np.zeros((0, 8, 8, 3), np.uint8)).shape == (0, SIZE)


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 4), np.uint8)],
)
def test_other_arrays_are_refused(images):
    with pytest.raises(InputError, match="uint8"):
        colour_histograms(images)


def test_too_small_images_are_refused():
    with pytest.raises(InputError, match="not 2 x 8 pixels"):
        colour_histograms(np.zeros((1, 2, 8, 3), np.uint8))
    assert colour_histograms(np.zeros((1, 3, 1, 3), np.uint8)).shape == (1, SIZE)
