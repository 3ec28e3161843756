"""The random numbers of augmentations have the distributions of the reference, and p is how often things happen."""

import numpy as np
import pytest
import scipy.stats
import torch

from passersby.errors import InputError
from training.gan.augment_draws import AUGMENTATIONS, GEOMETRY_PAD, Draws, draw, filter_bank

COUNT, HEIGHT, WIDTH = 4000, 128, 64
TRANSFORMS = AUGMENTATIONS["bgcfnc"]
# Chance of a false alarm of each seeded test, had the seed not been fixed.
SIGNIFICANCE = 1e-3


@pytest.fixture
def alone(monkeypatch):
    """Draws of one transform."""

    def draws(transform: str, p: float, count: int = COUNT, height: int = HEIGHT, width: int = WIDTH) -> Draws:
        monkeypatch.setitem(AUGMENTATIONS, "alone", (transform,))
        return draw("alone", p, count, height, width, np.random.default_rng(11))

    return draws


def inverse(draws: Draws) -> np.ndarray:
    """[N, 2, 3]: output pixel -> input pixel, both from the image's centre; `theta` without its units and margins."""
    theta = draws.theta.double().numpy()
    left, top, right, bottom = draws.margins
    source = np.array([draws.width + left + right, draws.height + top + bottom])
    target = np.array([draws.width, draws.height]) + 2 * GEOMETRY_PAD
    linear = theta[:, :, :2] * source[:, None] / target
    shift = theta[:, :, 2] * source / 2  # in pixels; the doubled grid lies a quarter of a pixel off
    shift = shift + 0.25 - linear.sum(axis=2) / 4 - np.array([left - right, top - bottom]) / 2
    return np.concatenate([linear, shift[:, :, None]], axis=2)


def assert_distributed(values: np.ndarray, distribution: str, *parameters: float) -> None:
    assert scipy.stats.kstest(values, distribution, parameters).pvalue > SIGNIFICANCE


def assert_frequency(happened: np.ndarray, expected: float) -> None:
    assert scipy.stats.binomtest(int(happened.sum()), len(happened), expected).pvalue > SIGNIFICANCE


def test_scalings_are_log_normal(alone):
    isotropic = inverse(alone("scale", 1.0))
    np.testing.assert_allclose(isotropic[:, 0, 0], isotropic[:, 1, 1], rtol=1e-5)  # float32
    assert_distributed(-np.log2(isotropic[:, 0, 0]), "norm", 0, 0.2)
    stretched = inverse(alone("aniso", 1.0))
    np.testing.assert_allclose(stretched[:, 0, 0] * stretched[:, 1, 1], 1, rtol=1e-5)
    assert_distributed(-np.log2(stretched[:, 0, 0]), "norm", 0, 0.2)


def test_translations_are_shares_of_height_and_width(alone):
    size = np.array([WIDTH, HEIGHT])
    slid = -inverse(alone("xfrac", 1.0))[:, :, 2] / size
    assert_distributed(slid[:, 0], "norm", 0, 0.125)
    assert_distributed(slid[:, 1], "norm", 0, 0.125)
    assert abs(scipy.stats.pearsonr(*slid.T).statistic) < 4 / COUNT**0.5  # 4 standard errors
    shifted = inverse(alone("xint", 1.0))[:, :, 2]
    np.testing.assert_allclose(shifted, np.round(shifted), atol=1e-3)  # float32, hundreds of pixels
    for axis, side in enumerate(size):
        pixels = np.round(shifted[:, axis]).astype(int)
        limit = side // 8
        counts = np.bincount(pixels + limit, minlength=2 * limit + 1)
        expected = np.full(2 * limit + 1, COUNT / (2 * limit))
        expected[[0, -1]] /= 2  # rounding leaves half a pixel's range to the ends
        assert scipy.stats.chisquare(counts, expected).pvalue > SIGNIFICANCE


def test_turns_are_uniform_and_rigid_in_pixels(alone):
    turned = inverse(alone("rotate", 1.0))[:, :, :2]
    np.testing.assert_allclose(turned @ turned.transpose(0, 2, 1), np.tile(np.eye(2), (COUNT, 1, 1)), atol=1e-4)
    assert_distributed(np.arctan2(turned[:, 1, 0], turned[:, 0, 0]), "uniform", -np.pi, 2 * np.pi)
    quarters = inverse(alone("rotate90", 1.0))[:, :, :2]
    angles = np.round(np.arctan2(quarters[:, 1, 0], quarters[:, 0, 0]) / (np.pi / 2)).astype(int) % 4
    assert scipy.stats.chisquare(np.bincount(angles, minlength=4)).pvalue > SIGNIFICANCE
    np.testing.assert_allclose(quarters, np.round(quarters), atol=1e-4)


def test_colours_have_the_distributions_of_the_reference(alone):
    grey = np.full((3, 3), 1 / 3)
    brightness = alone("brightness", 1.0).colour.double().numpy()
    assert_distributed(brightness[:, 0, 3], "norm", 0, 0.2)
    np.testing.assert_array_equal(brightness[:, :, :3], np.tile(np.eye(3), (COUNT, 1, 1)))
    contrast = alone("contrast", 1.0).colour.double().numpy()
    assert_distributed(np.log2(contrast[:, 1, 1]), "norm", 0, 0.5)
    saturation = alone("saturation", 1.0).colour.double().numpy()[:, :, :3]
    gain = (np.trace(saturation, axis1=1, axis2=2) - 1) / 2
    assert_distributed(np.log2(gain), "norm", 0, 1)
    np.testing.assert_allclose(saturation, grey + gain[:, None, None] * (np.eye(3) - grey), atol=1e-5)
    hue = alone("hue", 1.0).colour.double().numpy()[:, :, :3]
    angle = np.arctan2((hue[:, 1, 0] - hue[:, 0, 1]) * 3**0.5 / 2, (np.trace(hue, axis1=1, axis2=2) - 1) / 2)
    assert_distributed(angle, "uniform", -np.pi, 2 * np.pi)
    np.testing.assert_allclose(hue.sum(axis=2), 1, atol=1e-6)  # greys stay
    flipped = alone("lumaflip", 1.0).colour.double().numpy()[:, :, :3]
    assert_frequency(flipped.sum(axis=(1, 2)) < 0, 0.5)  # white turns black


def test_bands_noise_and_cutout_have_the_distributions_of_the_reference(alone):
    gains = alone("imgfilter", 1.0).gains.double().numpy()
    # A factor of band i is common to all others, so ratios of neighbours are ratios of two log-normal gains.
    assert_distributed(np.log2(gains[:, 1] / gains[:, 2]), "norm", 0, 2**0.5)
    np.testing.assert_allclose(filter_bank().sum(axis=0), np.eye(43)[21], atol=1e-12)  # bands add up to the image
    noise = alone("noise", 1.0, 400, 24, 16).noise.double().numpy()
    strength = noise.std(axis=(1, 2, 3))  # known to 2 percent
    assert_distributed(strength, "halfnorm", 0, 0.1)
    assert_distributed((noise / strength[:, None, None, None])[:20].ravel(), "norm", 0, 1)
    draws = alone("cutout", 1.0)
    rows, columns = draws.cut_rows.numpy(), draws.cut_columns.numpy()
    assert rows.sum(axis=1).max() == HEIGHT // 2
    assert columns.sum(axis=1).max() == WIDTH // 2
    # Centres are uniform over the image: a share of 1/2 of them cuts less than half a side, as the edge is near.
    assert_frequency(rows.sum(axis=1) < HEIGHT // 2, 0.5)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("p", [0.2, 0.7])
def test_p_is_how_often_a_transform_happens(alone, transform, p):
    draws = alone(transform, p, 1500)
    # Some values of a transform that happens change nothing.
    visible = {"xflip": 1 / 2, "rotate90": 3 / 4, "lumaflip": 1 / 2, "xint": 1 - 1 / 16 / 32, "imgfilter": 1}
    expected = p * visible.get(transform, 1)
    if transform == "imgfilter":
        expected = 1 - (1 - p) ** 4  # each band on its own
    assert_frequency(changed(draws), expected)


def changed(draws: Draws) -> np.ndarray:
    """Which samples something happens to, [N] bool."""
    marks = []
    if draws.theta is not None:
        marks.append((np.abs(inverse(draws) - np.eye(2, 3)) > 1e-4).any(axis=(1, 2)))
    if draws.colour is not None:
        marks.append((draws.colour != torch.eye(3, 4)).flatten(1).any(dim=1).numpy())
    if draws.gains is not None:
        marks.append((draws.gains != 1).any(dim=1).numpy())
    if draws.noise is not None:
        marks.append((draws.noise != 0).flatten(1).any(dim=1).numpy())
    if draws.cut_rows is not None:
        marks.append(draws.cut_rows.any(dim=1).numpy())
    return np.logical_or.reduce(marks)


def test_a_larger_p_makes_more_of_the_same():
    small, large = (draw("color", p, 500, 16, 8, np.random.default_rng(3)) for p in (0.1, 0.4))
    assert not (changed(small) & ~changed(large)).any()
    assert changed(small).sum() < changed(large).sum()
    same = np.isclose(small.colour, large.colour).all(axis=(1, 2)) & changed(small)
    assert same.sum() > 20  # 0.6 ** 4 of 200 samples with one transform have no other at the larger p: about 25


def test_upright_never_turns_mirrors_upside_down_or_changes_hues():
    draws = draw("upright", 1.0, COUNT, HEIGHT, WIDTH, np.random.default_rng(0))
    matrices = inverse(draws)
    assert draws.separable
    assert (matrices[:, [0, 1], [1, 0]] == 0).all()
    assert (matrices[:, 1, 1] > 0).all()
    assert_frequency(matrices[:, 0, 0] < 0, 0.5)
    colour = draws.colour.double().numpy()
    # Symmetric in the channels: one gain for all that is on the diagonal, one for all beside it.
    assert np.ptp(colour[:, range(3), range(3)], axis=1).max() < 1e-4
    assert np.ptp(colour[:, [0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]], axis=1).max() < 1e-4
    assert (colour[:, :, :3].sum(axis=2) > 0).all()  # white stays brighter than black
    assert (colour[:, 0, 0] > colour[:, 0, 1]).all()  # red stays redder than green


def test_sets_are_those_of_the_paper():
    named = "blit, geom, color, filter, noise, cutout, bg, bgc, bgcf, bgcfn, bgcfnc"
    assert set(AUGMENTATIONS) == {"upright", *named.split(", ")}
    assert len(TRANSFORMS) == 15
    assert set(AUGMENTATIONS["bgc"]) - set(AUGMENTATIONS["upright"]) == {"rotate90", "rotate", "lumaflip", "hue"}


def test_bad_input_is_refused_with_the_way_out():
    with pytest.raises(InputError, match="choose one of upright, blit"):
        draw("upside", 0.5, 2, 16, 8, np.random.default_rng(0))
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="outside 0..1"):
            draw("upright", p, 2, 16, 8, np.random.default_rng(0))
