"""Applying augmentations: equal to the reference, differentiable twice, the same whoever does it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from passersby.errors import InputError
from training.gan.augment import AUGMENTATIONS, apply, draw


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def smooth(count: int, height: int, width: int) -> torch.Tensor:
    """[N, 3, H, W] float32 in -1..1 without much detail, as photographs are."""
    noise = torch.from_numpy(random(7).standard_normal((count, 3, height, width), np.float32))
    return F.avg_pool2d(noise, 5, stride=1, padding=2).clamp(-1, 1)


@pytest.mark.parametrize("size", ["sq64", "tall128x64"])
@pytest.mark.parametrize("percentile", [0.2, 0.5, 0.7, 0.9])
def test_bgc_equals_the_reference(shared_dir, size, percentile):
    with np.load(shared_dir / "oracles" / "augment_bgc_debug_percentile.npz") as oracle:
        images, expected = (torch.from_numpy(oracle[f"{size}_{key}"]) for key in ("in", f"dp{percentile}"))
    draws = draw("bgc", 1.0, len(images), *images.shape[2:], random(), percentile)
    # Sampling positions in float32 are good to 3e-5 of a pixel.
    torch.testing.assert_close(apply(images, draws), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("augmentation", "percentile"),
    [("bgc", 0.2), ("bgc", 0.7), ("bgc", 0.9), ("filter", 0.2), ("filter", 0.7), ("cutout", 0.3)],
)
def test_small_images_equal_the_reference(augmentation, percentile):
    with np.load(Path(__file__).parents[2] / "data" / "augment_reference.npz") as oracle:
        image, expected = oracle["image"], torch.from_numpy(oracle[f"{augmentation}_{percentile}"])
    images = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    result = apply(images, draw(augmentation, 1.0, 1, *image.shape[:2], random(), percentile))
    assert (images[0] - expected).abs().max() > 0.03  # something happens
    torch.testing.assert_close(result[0], expected, rtol=0, atol=1e-4)  # as above


@pytest.mark.parametrize("augmentation", ["upright", "bg"])
def test_samples_that_nothing_happens_to_come_out_unchanged(augmentation):
    images = smooth(64, 32, 16)
    draws = draw(augmentation, 0.05, 64, 32, 16, random())
    change = (apply(images, draws) - images).abs().amax(dim=(1, 2, 3))
    # 0.95 ** 5..8 transforms leave most as they are, though these go through the wavelets too; nothing lies between.
    assert 32 < (change < 1e-4).sum() < 64
    assert ((change < 1e-4) | (change > 1e-2)).all()


def test_nothing_drawn_returns_the_images_themselves():
    images = smooth(2, 16, 8)
    stream = random()
    assert apply(images, draw("bgcfnc", 0.0, 2, 16, 8, stream)) is images
    assert stream.random() == random().random()  # and no numbers were used up
    assert apply(images, draw("upright", 1e-9, 2, 16, 8, random())) is images


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_rows_and_columns_give_what_the_grid_gives(memory_format):
    images = smooth(8, 48, 20).to(memory_format=memory_format)
    draws = draw("upright", 0.8, 8, 48, 20, random(3))
    assert draws.separable
    on_the_grid = apply(images, dataclasses.replace(draws, separable=False))
    # float32 positions, as above; colours amplify the difference by their gain, here up to 5.
    torch.testing.assert_close(apply(images, draws), on_the_grid, rtol=0, atol=3e-4)


@pytest.mark.parametrize(("percentile", "degrees"), [(0.75, 90), (0.625, 45), (0.4, -36)])
def test_tall_images_are_turned_in_pixels_without_shear(monkeypatch, percentile, degrees):
    monkeypatch.setitem(AUGMENTATIONS, "rotate", ("rotate",))
    y, x = (torch.arange(side, dtype=torch.float32) - (side - 1) / 2 for side in (64, 32))

    def picture(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Waves 16 and 25 pixels long, around the centre: [64, 32]."""
        return torch.sin(y / 16 * 2 * torch.pi) + torch.cos(x / 25 * 2 * torch.pi + 1)

    images = picture(y[:, None], x[None, :]).expand(1, 3, -1, -1)
    turned = apply(images, draw("rotate", 1.0, 1, 64, 32, random(), percentile))
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    expected = picture(sin * x[None, :] + cos * y[:, None], cos * x[None, :] - sin * y[:, None])
    # Inside the circle that no reflected edge turns into. The wavelets change such waves by up to 0.03;
    # turned in units of the sides instead of pixels they would differ by more than 1.
    inside = (x[None, :] ** 2 + y[:, None] ** 2) < 11**2
    torch.testing.assert_close(turned[0, 0][inside], expected[inside], rtol=0, atol=0.04)


@pytest.mark.slow
@pytest.mark.parametrize(("augmentation", "seed"), [("upright", 1), ("bgcfnc", 2)])
def test_gradients_of_gradients_are_right(augmentation, seed):
    images = torch.rand(2, 3, 7, 5, dtype=torch.float64, requires_grad=True)
    draws = draw(augmentation, 0.9, 2, 7, 5, random(seed))
    assert torch.autograd.gradcheck(lambda x: apply(x, draws), images)
    assert torch.autograd.gradgradcheck(lambda x: apply(x, draws).sin(), images)


@pytest.mark.parametrize("augmentation", ["upright", "bgc"])
def test_r1_equals_that_of_the_dense_linear_map(augmentation):
    torch.manual_seed(0)
    count, height, width = 2, 10, 6
    size = 3 * height * width
    draws = draw(augmentation, 0.8, count, height, width, random(5))
    # One image for each pixel, for every sample: the map itself, column by column.
    basis = torch.eye(size, dtype=torch.float64).reshape(size, 3, height, width)
    offset = apply(torch.zeros(count, 3, height, width, dtype=torch.float64), draws)
    columns = torch.stack([apply(unit.expand(count, -1, -1, -1), draws) - offset for unit in basis])
    matrices = columns.flatten(2).permute(1, 2, 0)  # [N, out, in]

    discriminator = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Softplus(), torch.nn.Flatten(), torch.nn.LazyLinear(1)
    ).double()
    images = torch.rand(count, 3, height, width, dtype=torch.float64, requires_grad=True)
    discriminator(images)  # sizes the last layer

    def gradients(augmented: torch.Tensor) -> list[torch.Tensor]:
        (of_images,) = torch.autograd.grad(discriminator(augmented).sum(), images, create_graph=True)
        of_weights = [p for name, p in discriminator.named_parameters() if name != "3.bias"]
        return torch.autograd.grad(of_images.square().sum(), of_weights)

    by_hand = (matrices @ images.flatten(1)[:, :, None]).reshape(images.shape) + offset
    for ours, expected in zip(gradients(apply(images, draws)), gradients(by_hand), strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)  # float64, some hundred terms


@pytest.mark.parametrize("augmentation", ["upright", "bgcfnc"])
def test_workers_get_what_one_worker_gets(augmentation):
    images = smooth(6, 32, 16)
    draws = draw(augmentation, 0.5, 6, 32, 16, random(2))
    whole = apply(images, draws)
    for rank in range(3):
        share = slice(rank, None, 3)
        # Products of matrices may be summed up in another order for another number of samples.
        torch.testing.assert_close(apply(images[share], draws.share(share)), whole[share], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2**-9), (torch.bfloat16, 2**-6)])
def test_half_precision_images_are_worked_on_in_float32(dtype, tolerance):
    images = smooth(4, 32, 16).to(dtype)
    draws = draw("bgcfnc", 0.5, 4, 32, 16, random())
    result = apply(images, draws)
    assert result.dtype == dtype
    # Only the result is rounded; colours reach about 4.
    torch.testing.assert_close(result.float(), apply(images.float(), draws), rtol=tolerance, atol=tolerance)


def test_filters_kept_from_a_call_without_gradients_serve_a_training():
    draws = draw("bgcfnc", 0.9, 2, 22, 14, random())  # a size that no other test has: nothing is kept for it
    with torch.inference_mode():
        apply(smooth(2, 22, 14), draws)
    images = smooth(2, 22, 14).requires_grad_(True)
    apply(images, draws).square().sum().backward()
    assert images.grad.abs().max() > 0


def test_images_of_another_shape_are_refused():
    draws = draw("bgc", 1.0, 2, 16, 8, random())
    for shape in ([3, 3, 16, 8], [2, 3, 8, 16], [2, 1, 16, 8]):
        with pytest.raises(InputError, match="draw again"):
            apply(torch.zeros(shape), draws)


@pytest.mark.gpu
@pytest.mark.parametrize("augmentation", ["upright", "bgcfnc"])
def test_gpu_gives_what_the_cpu_gives_without_being_waited_for(augmentation):
    draws = draw(augmentation, 0.6, 8, 32, 16, random())
    expected = apply(smooth(8, 32, 16), draws)
    images = smooth(8, 32, 16).cuda().requires_grad_(True)
    apply(images, draws.to("cuda"))  # the filters are copied once
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = apply(images, draws.to("cuda"))
        (gradient,) = torch.autograd.grad(result.square().sum(), images, create_graph=True)
        torch.autograd.grad(gradient.square().sum(), images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(result.cpu(), expected, rtol=0, atol=5e-4)  # float32 positions, colours' gain
