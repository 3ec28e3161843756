"""SSIM against scikit-image, which the study's similarity filter calls."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from passersby.errors import InputError
from passersby.metrics.ssim import ssim

# Both sides compute in float64 (ours on exact integers): what is left is scikit-image's running-sum filter.
TOLERANCE = 1e-9


def reference(a: np.ndarray, b: np.ndarray, data_range: float) -> float:
    return structural_similarity(a, b, data_range=data_range, channel_axis=2)


def ours(a: np.ndarray, b: np.ndarray, data_range: float) -> float:
    return ssim(torch.from_numpy(a)[None], torch.from_numpy(b)[None], data_range).item()


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(7, 24),
    width=st.integers(7, 24),
    channels=st.sampled_from([1, 3]),
    data_range=st.sampled_from([1, 10, 255, 4095]),
    seed=st.integers(0, 2**31),
    contrast=st.integers(0, 255),
    noise=st.integers(0, 255),
)
def test_equals_scikit_image(height, width, channels, data_range, seed, contrast, noise):
    random = np.random.default_rng(seed)
    a = random.integers(0, contrast, (height, width, channels), endpoint=True, dtype=np.uint8)
    change = random.integers(-noise, noise, a.shape, endpoint=True)
    b = np.clip(a + change, 0, 255).astype(np.uint8)
    assert ours(a, b, data_range) == pytest.approx(reference(a, b, data_range), abs=TOLERANCE)


@pytest.mark.parametrize("data_range", [1, 255, 4095])
@pytest.mark.parametrize("values", [(0, 0), (255, 255), (0, 255), (254, 255)])
def test_flat_images_and_extremes(values, data_range):
    a, b = (np.full((32, 16, 3), value, np.uint8) for value in values)
    b[::2, ::2] = 0  # the largest sums of squares beside flat windows
    assert ours(a, b, data_range) == pytest.approx(reference(a, b, data_range), abs=TOLERANCE)


def test_a_batch_is_its_images_and_one_reference_serves_many():
    random = np.random.default_rng(0)
    a, b = (torch.from_numpy(random.integers(0, 256, (4, 20, 12, 3), dtype=np.uint8)) for _ in range(2))
    pairs = ssim(a, b, 255)
    assert pairs.shape == (4,)
    assert pairs.dtype == torch.float64
    assert torch.equal(pairs, torch.cat([ssim(a[i : i + 1], b[i : i + 1], 255) for i in range(4)]))
    assert torch.equal(ssim(a[:1], b, 255), ssim(a[:1].expand(4, -1, -1, -1), b, 255))


def test_the_same_image_is_one_and_channel_order_does_not_matter():
    random = np.random.default_rng(1)
    a, b = (torch.from_numpy(random.integers(0, 256, (1, 20, 12, 3), dtype=np.uint8)) for _ in range(2))
    assert ssim(a, a, 4095).item() == 1.0
    assert ssim(a.flip(3), b.flip(3), 4095).item() == pytest.approx(ssim(a, b, 4095).item(), abs=1e-12)


def test_real_crops(shared_dir):
    import cv2

    paths = sorted((shared_dir / "images" / "pedestrian-crops").glob("*.jpg"))[:9]
    images = np.stack([cv2.imread(str(path)) for path in paths])
    for data_range in (1, 255, 4095):
        got = ssim(torch.from_numpy(images[:1]), torch.from_numpy(images[1:]), data_range).numpy()
        want = [reference(images[0], image, data_range) for image in images[1:]]
        np.testing.assert_allclose(got, want, atol=TOLERANCE)


def test_bad_input_names_the_value():
    image = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(InputError, match="6 x 8"):
        ssim(image[:, :6], image[:, :6], 255)
    with pytest.raises(InputError, match="float32"):
        ssim(image.float(), image, 255)
    with pytest.raises(InputError, match="one size"):
        ssim(image, torch.zeros(1, 8, 9, 3, dtype=torch.uint8), 255)
    with pytest.raises(InputError, match="above 0, not 0"):
        ssim(image, image, 0)
