"""Other surroundings, other colours, jitter: each against OpenCV, scikit-image, SciPy or a formula written out."""

import colorsys
import dataclasses

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from passersby.errors import InputError
from training.reid.changes import (
    AMPLITUDES,
    ChangeDraws,
    Changes,
    blur,
    change,
    draw_changes,
    jitter_colours,
    lab_to_rgb,
    move_colours,
    noise_values,
    person_masks,
    rgb_to_lab,
    surround,
)

HEIGHT, WIDTH = 24, 12
FULL = Changes(surroundings=1.0, colours=0.7, jitter=0.7)
SAME = (1, 1, 1, 1, 1, 1, 1, 0, 0)  # a row of `jitter` that changes nothing


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    """Smooth pictures with some noise, uint8."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (n, 4, 2, 3)).astype(np.uint8)
    large = np.stack([cv2.resize(image, (WIDTH, HEIGHT)) for image in small]).astype(int)
    return torch.from_numpy((large + random.integers(-9, 10, large.shape)).clip(0, 255).astype(np.uint8))


def floats(images: torch.Tensor) -> torch.Tensor:
    return images.to(torch.float32) / 255


def draws(n: int, setting: Changes = FULL, seed: int = 0, donors: int = 50) -> ChangeDraws:
    return draw_changes((setting,), np.zeros(n, int), donors, np.random.default_rng(seed))


def test_lab_is_that_of_opencv_and_of_scikit_image():
    color = pytest.importorskip("skimage.color")
    images = pictures(4)
    values = floats(images)
    lab = rgb_to_lab(images)
    torch.testing.assert_close(lab, rgb_to_lab(values), atol=1e-3, rtol=0)
    by_opencv = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2LAB) for image in values.numpy()])
    assert np.abs(lab.numpy() - by_opencv).max() < 0.6  # OpenCV interpolates in tables
    assert np.abs(lab.numpy() - by_opencv).mean() < 0.1
    # scikit-image rounds the matrix and the white point in other digits.
    assert np.abs(lab.numpy() - color.rgb2lab(values.numpy())).max() < 0.06
    torch.testing.assert_close(lab_to_rgb(lab), values, atol=1e-4, rtol=0)


def test_colours_move_as_reinhard_s_do_in_opencv_s_lab():
    images, donors = pictures(5), pictures(5, 1)
    amounts = torch.tensor([0.0, 0.3, 0.7, 1.0, 1.0])
    moved = move_colours(images, donors, amounts)
    torch.testing.assert_close(moved[0], floats(images)[0], atol=1e-4, rtol=0)
    for index, amount in enumerate(amounts.tolist()):
        lab, other = (cv2.cvtColor(floats(x)[index].numpy(), cv2.COLOR_RGB2LAB) for x in (images, donors))
        aim = (lab - lab.mean((0, 1))) * (other.std((0, 1)) / lab.std((0, 1))) + other.mean((0, 1))
        expected = cv2.cvtColor((lab + amount * (aim - lab)).astype(np.float32), cv2.COLOR_LAB2RGB).clip(0, 1)
        assert np.abs(moved[index].numpy() - expected).max() < 0.02, amount
    # A picture that fits into the cube of colours has the donor's mean and deviation afterwards.
    soft = 0.4 + 0.2 * floats(images)
    lab, donor = rgb_to_lab(move_colours(soft, 0.45 + 0.1 * floats(donors), torch.ones(5))), None
    donor = rgb_to_lab(0.45 + 0.1 * floats(donors))
    torch.testing.assert_close(lab.mean((1, 2)), donor.mean((1, 2)), atol=0.05, rtol=0)


def test_a_picture_of_one_colour_neither_takes_nor_gives_infinite_contrast():
    grey, others = torch.full((2, HEIGHT, WIDTH, 3), 120, dtype=torch.uint8), pictures(2)
    for images, donors in ((grey, others), (others, grey)):
        assert torch.isfinite(move_colours(images, donors, torch.ones(2))).all()
    flat = move_colours(grey, others, torch.ones(2))
    assert float(flat.std((1, 2)).max()) < 1e-5  # noise of one level must not be stretched into a pattern


def test_masks_are_soft_persons_that_move_and_widen():
    masks = person_masks(torch.tensor([[0.0, 1.0], [0.06, 1.0], [0.0, 1.2]]), 64, 32)
    assert masks.shape == (3, 64, 32)
    assert float(masks.min()) >= 0
    assert float(masks.max()) <= 1
    torch.testing.assert_close(masks[0], masks[0].flip(1))
    assert float(masks[0, 26, 16]) > 0.99  # the trunk
    assert float(masks[0, :, 0].max()) < 0.05  # the edges of the picture
    assert float(masks[0, 0].max()) < 0.5  # above the head
    assert 0.3 < float(masks[0].mean()) < 0.6
    assert float(masks[2].sum()) > float(masks[0].sum())
    columns = torch.arange(32.0)
    middles = (masks * columns).sum((1, 2)) / masks.sum((1, 2))
    assert float(middles[1] - middles[0]) == pytest.approx(0.06 * 32, abs=0.2)


def test_surroundings_are_the_donor_s_and_the_person_stays():
    images, donors = floats(pictures(3)), floats(pictures(3, 1))
    masks = person_masks(torch.zeros(3, 2) + torch.tensor([0.0, 1.0]), HEIGHT, WIDTH)
    result = surround(images, donors, masks)
    torch.testing.assert_close(result, masks[..., None] * images + (1 - masks[..., None]) * donors)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (0, lambda x, f: x**f),
        (1, lambda x, f: x * f),
        (2, lambda x, f: x * np.array([f, 1, 1])),
        (4, lambda x, f: x * np.array([1, 1, f])),
        (5, lambda x, f: (x @ [0.299, 0.587, 0.114]).mean() * (1 - f) + x * f),
        (6, lambda x, f: (x @ [0.299, 0.587, 0.114])[..., None] * (1 - f) + x * f),
    ],
)
@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_each_factor_does_what_its_name_says(column, expected, factor):
    images = 0.3 + 0.2 * floats(pictures(2))  # nothing is cut off at 0 or 1
    factors = torch.ones(2, 7)
    factors[1, column] = factor
    result = jitter_colours(images, factors)
    torch.testing.assert_close(result[0], images[0], atol=1e-6, rtol=0)
    assert np.abs(result[1].numpy() - expected(images[1].numpy(), factor)).max() < 1e-5


def test_saturation_keeps_the_hue():
    image = 0.3 + 0.2 * floats(pictures(1))
    factors = torch.ones(1, 7)
    factors[0, 6] = 1.2
    before, after = (colorsys.rgb_to_hsv(*x[0, 3, 4].tolist()) for x in (image, jitter_colours(image, factors)))
    assert after[0] == pytest.approx(before[0], abs=1e-4)
    assert after[1] > before[1]


def test_blur_is_scipy_s():
    images = floats(pictures(3))
    deviations = np.array([0.0, 0.4, 1.1], np.float32)
    result = blur(images, deviations)
    assert torch.equal(blur(images, np.zeros(3, np.float32)), images)
    for index, sigma in enumerate(deviations.tolist()):
        sigmas = (sigma, sigma, 0)
        expected = ndimage.gaussian_filter(images[index].numpy(), sigmas, mode="nearest", radius=4)
        assert np.abs(result[index].numpy() - expected).max() < 1e-5, sigma


def test_noise_is_normal_and_has_the_deviation_that_was_drawn():
    values = noise_values()
    assert stats.kstest(values[:20_000], "norm").pvalue > 0.01
    grey = torch.full((2, 64, 32, 3), 128, dtype=torch.uint8)
    numbers = dataclasses.replace(draws(2), surround=np.zeros(2, bool), colours=np.zeros(2, np.float32))
    jitter = np.array([SAME, SAME], np.float32)
    jitter[1, 8] = 0.05
    result = change(grey, None, dataclasses.replace(numbers, jitter=jitter)).float() / 255
    assert torch.equal(result[0], grey[0].float() / 255)
    assert float(result[1].std()) == pytest.approx(0.05, rel=0.05)


def test_without_changes_a_picture_stays_as_it_is():
    images = pictures(6)
    assert torch.equal(change(images, None, draws(6, Changes())), images)
    assert torch.equal(change(images, pictures(6, 1), draws(6, Changes())), images)


def test_changes_are_those_of_the_parts_in_their_order():
    images, donors, numbers = pictures(6), pictures(6, 1), draws(6)
    values = move_colours(images, donors, torch.from_numpy(numbers.colours))
    values = surround(values, floats(donors), person_masks(torch.from_numpy(numbers.masks), HEIGHT, WIDTH))
    values = jitter_colours(values, torch.from_numpy(numbers.jitter[:, :7]))
    values = blur(values, numbers.jitter[:, 7] * WIDTH)
    size = HEIGHT * WIDTH * 3
    noise = np.stack([np.roll(noise_values(), -start)[:size] for start in numbers.noise_starts])
    values = values + torch.from_numpy(numbers.jitter[:, 8, None, None, None] * noise.reshape(images.shape))
    expected = (values * 255).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(change(images, donors, numbers), expected)


def test_a_part_of_a_batch_is_changed_as_in_the_whole_batch():
    images, donors, numbers = pictures(8), pictures(8, 1), draws(8)
    whole = change(images, donors, numbers)
    for part in (slice(0, 3), slice(3, 8)):
        piece = change(images[part], donors[part], numbers.share(part))
        # The widest blur of the part decides how far kernels reach: the last bits may differ.
        assert (piece.int() - whole[part].int()).abs().max() <= 1


def test_a_seed_fixes_the_draws_and_settings_do_not_shift_each_other():
    kinds = np.array([0, 1, 0, 1, 0])
    settings = (FULL, Changes())
    first, second = (draw_changes(settings, kinds, 9, np.random.default_rng(3)) for _ in range(2))
    for field in dataclasses.fields(ChangeDraws):
        assert np.array_equal(getattr(first, field.name), getattr(second, field.name)), field.name
    assert first.surround.tolist() == [True, False, True, False, True]
    assert first.colours.tolist() == pytest.approx([0.7, 0, 0.7, 0, 0.7])
    assert (first.jitter[kinds == 1] == SAME).all()
    other = draw_changes((dataclasses.replace(FULL, jitter=0.0), FULL), kinds, 9, np.random.default_rng(3))
    assert np.array_equal(first.donors, other.donors)
    assert np.array_equal(first.masks, other.masks)
    assert np.array_equal(first.noise_starts, other.noise_starts)


def test_draws_fill_their_ranges():
    numbers = draws(4000, Changes(surroundings=0.3, colours=0.5, jitter=0.5), donors=7)
    assert 0.26 < numbers.surround.mean() < 0.34
    assert set(numbers.donors.tolist()) == set(range(7))
    amplitudes = dataclasses.astuple(AMPLITUDES)
    doublings = [amplitudes[0], amplitudes[1], *[amplitudes[2]] * 3, amplitudes[3], amplitudes[4]]
    logs = np.log2(numbers.jitter[:, :7])
    assert np.abs(logs).max(0) == pytest.approx(np.array(doublings) / 2, rel=0.01)
    assert np.abs(logs.mean(0)).max() < 0.02
    assert numbers.jitter[:, 7:].max(0) == pytest.approx(np.array(amplitudes[5:]) / 2, rel=0.01)
    assert 0.45 < (numbers.jitter[:, 7:] == 0).mean() < 0.55


@pytest.mark.parametrize(
    "wrong", [{"surroundings": 1.1}, {"colours": -0.1}, {"jitter": -1.0}, {"jitter": float("inf")}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Changes(**wrong)
