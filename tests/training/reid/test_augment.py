"""Augmentation against torchvision, one image at a time, and the draws against what the papers say."""

import dataclasses
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from passersby.errors import InputError
from training.reid.augment import IMAGENET_MEAN, AugmentConfig, Draws, augment, draw

ERASING = AugmentConfig(pad=3, erase=0.7)


def pictures(n: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), np.uint8)


def by_torchvision(images: np.ndarray, draws: Draws) -> torch.Tensor:
    """As the study: pad a PIL image, crop, mirror, to a tensor; then erase."""
    height, width = images.shape[1:3]
    results = []
    for image, flip, (top, left), erase in zip(images, draws.flips, draws.offsets, draws.erase, strict=True):
        padded = functional.pad(Image.fromarray(image), [draws.pad] * 4)
        cropped = functional.crop(padded, int(top), int(left), height, width)
        tensor = functional.to_tensor(functional.hflip(cropped) if flip else cropped)
        if erase[2]:
            tensor = functional.erase(tensor, *erase.tolist(), torch.tensor(IMAGENET_MEAN)[:, None, None])
        results.append(tensor)
    return torch.stack(results)


@pytest.mark.parametrize("config", [ERASING, AugmentConfig(), AugmentConfig(pad=0, erase=1.0), AugmentConfig(flip=0.0)])
@pytest.mark.parametrize("layout", ["last", "first", "view"])
def test_images_come_out_as_torchvision_makes_them(config, layout):
    images = pictures(24, 20, 12)
    draws = draw(config, 24, 20, 12, np.random.default_rng(5))
    tensor = torch.from_numpy(images)
    if layout != "last":
        tensor = tensor.permute(0, 3, 1, 2)
    if layout == "first":
        tensor = tensor.contiguous()
    result = augment(tensor, draws)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result, by_torchvision(images, draws))


def test_corners_of_the_padding():
    images = pictures(4, 8, 6)
    offsets = np.array([[0, 0], [0, 20], [20, 0], [20, 20]])
    draws = Draws(np.array([False, True, False, True]), offsets, np.zeros((4, 4), np.int64), 10)
    assert torch.equal(augment(torch.from_numpy(images), draws), by_torchvision(images, draws))
    assert not augment(torch.from_numpy(images), draws).any()  # shifted out of view: black


def test_without_any_change_only_the_range_is_another():
    images = pictures(3, 8, 6)
    expected = torch.stack([functional.to_tensor(image) for image in images])
    draws = draw(AugmentConfig(flip=0.0, pad=0), 3, 8, 6, np.random.default_rng(0))
    for tensor in (torch.from_numpy(images), torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()):
        assert torch.equal(augment(tensor, draws), expected)
        assert augment(tensor, draws).is_contiguous(memory_format=torch.channels_last)


def test_a_share_of_the_batch_is_changed_as_in_the_batch():
    images = torch.from_numpy(pictures(8, 20, 12))
    draws = draw(ERASING, 8, 20, 12, np.random.default_rng(0))
    whole = augment(images, draws)
    for part in (slice(0, 4), slice(4, 8)):
        assert torch.equal(augment(images[part], draws.share(part)), whole[part])


def test_shifts_and_mirrors_are_even():
    draws = draw(AugmentConfig(), 20_000, 256, 128, np.random.default_rng(0))
    assert abs(draws.flips.mean() - 0.5) < 0.02
    for axis in range(2):
        values, counts = np.unique(draws.offsets[:, axis], return_counts=True)
        assert values.tolist() == list(range(21))  # both ends, as torchvision's RandomCrop
        assert abs(counts / 20_000 * 21 - 1).max() < 0.15  # 952 each, 4.5 standard deviations
    assert not draws.erase.any()


def test_what_is_erased():
    draws = draw(AugmentConfig(erase=0.5), 20_000, 256, 128, np.random.default_rng(0))
    top, left, height, width = draws.erase[draws.erase[:, 2] > 0].T
    assert abs(len(top) / 20_000 - 0.5) < 0.02
    assert (top.min(), left.min()) == (0, 0)
    assert (top + height).max() == 256
    assert (left + width).max() == 128
    area, aspect = height * width / (256 * 128), height / width
    assert 0.0195 < area.min() < 0.022  # rounding to pixels moves both by a little
    assert 0.38 < area.max() < 0.405
    assert 0.28 < aspect.min() < 0.35
    assert 3.2 < aspect.max() < 3.5
    assert abs((top / (256 - height)).mean() - 0.5) < 0.02


def test_rectangles_follow_the_papers_loop():
    """Area and shape of accepted rectangles: the same distribution as trying one after the other."""
    rng = np.random.default_rng(1)
    slow = []
    while len(slow) < 4000:
        area, aspect = rng.uniform(0.02, 0.4) * 64 * 32, rng.uniform(0.3, 3.3)
        height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if height < 64 and width < 32:
            slow.append((height, width))
    sizes = draw(AugmentConfig(erase=1.0), 4000, 64, 32, np.random.default_rng(2)).erase[:, 2:]
    assert np.allclose(sizes.mean(0), np.mean(slow, 0), rtol=0.03)
    assert np.allclose(sizes.std(0), np.std(slow, 0), rtol=0.05)


def test_settings_do_not_move_the_numbers_of_each_other():
    plain, erasing = (
        draw(dataclasses.replace(AugmentConfig(), erase=p), 50, 64, 32, np.random.default_rng(3)) for p in (0.0, 1.0)
    )
    assert (plain.flips == erasing.flips).all()
    assert (plain.offsets == erasing.offsets).all()
    again = draw(AugmentConfig(erase=1.0), 50, 64, 32, np.random.default_rng(3))
    assert (again.erase == erasing.erase).all()


def test_an_image_too_small_for_any_rectangle_stays_whole():
    draws = draw(AugmentConfig(erase=1.0), 5, 1, 1, np.random.default_rng(0))
    assert not draws.erase.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"flip": 1.5}, "flip 1.5"),
        ({"erase": -1.0}, "erase -1.0"),
        ({"pad": -1}, "pad -1"),
        ({"erase_area": (0.4, 0.02)}, "erase_area 0.4, 0.02"),
        ({"erase_aspect": (0.0, 3.3)}, "erase_aspect 0.0"),
    ],
)
def test_bad_settings(wrong, message):
    with pytest.raises(InputError, match=message):
        AugmentConfig(**wrong)


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 8, 6, 4\)"):
        augment(torch.zeros(2, 8, 6, 4, dtype=torch.uint8), draw(ERASING, 2, 8, 6, np.random.default_rng(0)))


def test_a_batch_costs_little():
    images = torch.from_numpy(pictures(32, 64, 32))
    seconds = []
    for step in range(7):
        begin = time.perf_counter()
        augment(images, draw(AugmentConfig(erase=0.5), 32, 64, 32, np.random.default_rng(step)))
        seconds.append(time.perf_counter() - begin)
    print(f"{1000 * min(seconds):.2f} ms")
    assert min(seconds) < 0.02  # 0.9 ms alone on a core; a training step of the smallest network takes 70 ms
