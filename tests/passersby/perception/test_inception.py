"""The 2015 Inception network against the TorchScript of its weights, and its resize against a plain loop."""

import pickle
import warnings

import numpy as np
import pytest
import torch

from passersby import weights
from passersby.devices import exact_numbers
from passersby.errors import InputError
from passersby.perception.inception import INPUT_SIZE, Inception, load_inception, stretched
from tests.helpers.gpu_path import float_rules


@pytest.fixture(scope="module")
def path():
    return weights.get("inception-2015")


@pytest.fixture(scope="module")
def inception(path):
    return load_inception(path)


def picture(height: int, width: int) -> np.ndarray:
    """Waves of three colours: smooth, so that features are those of something, and other in every corner."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(7 * x / width + 3 * c) * np.cos(5 * y / height - c) for c in range(3)]
    return np.rint(127.5 + 120 * np.stack(waves, -1)).astype(np.uint8)


@pytest.mark.slow
def test_features_are_those_of_the_script(path, inception):
    images = np.stack([picture(128, 64), picture(128, 64)[::-1]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        script = torch.jit.load(str(path)).eval()
    with torch.inference_mode():
        expected = script(stretched(torch.from_numpy(images)).contiguous()).numpy()
    found = inception(images)
    assert found.dtype == np.float32
    assert found.shape == (2, 2048)
    # 95 layers in float32, summed in other orders: both are this far from the float64 features.
    np.testing.assert_allclose(found, expected, atol=5e-5)
    assert expected.max() > 1
    assert np.abs(expected[0] - expected[1]).max() > 0.1


def test_features_by_value(inception):
    """Kept from the first run: a change of the resize, the range or the colour order shows here."""
    features = inception(picture(64, 32)[None])[0]
    # Other CPUs sum in other orders.
    np.testing.assert_allclose(features[[0, 100, 1000, 2047]], [1.55491, 0.06802, 0.76195, 1.25554], atol=5e-4)
    assert features.mean() == pytest.approx(0.27769, abs=5e-4)


@pytest.mark.parametrize(("height", "width"), [(128, 64), (1, 1), (299, 299), (350, 400)])
def test_the_stretch_is_that_of_tensorflow_1(height, width):
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = stretched(torch.from_numpy(image)[None])[0].permute(1, 2, 0).numpy()
    assert found.shape == (INPUT_SIZE, INPUT_SIZE, 3)
    for row, column in [(0, 0), (1, 298), (150, 77), (298, 3), (298, 298)]:
        y, x = row * height / INPUT_SIZE, column * width / INPUT_SIZE
        top, left = int(y + 1e-6), int(x + 1e-6)
        below, right = min(top + 1, height - 1), min(left + 1, width - 1)
        v, u = y - top, x - left
        corners = [[image[top, left], image[top, right]], [image[below, left], image[below, right]]]
        (a, b), (c, d) = [[pixel.astype(float) for pixel in line] for line in corners]
        expected = ((1 - v) * ((1 - u) * a + u * b) + v * ((1 - u) * c + u * d) - 128) / 128
        np.testing.assert_allclose(found[row, column], expected, atol=1e-4)  # places are float32, as there


def test_features_are_float32_in_a_training_with_tf32_too(monkeypatch):
    network = torch.nn.AdaptiveAvgPool3d((2048, 1, 1))  # any module with features of this size
    rules = float_rules(monkeypatch, network)
    with exact_numbers(tf32=True):
        Inception(network, "abc")(picture(8, 4)[None])
    assert rules == [(False, False, False)]


def test_a_copy_for_workers_gives_the_same(inception):
    image = picture(64, 32)[None]
    copy = pickle.loads(pickle.dumps(inception))
    np.testing.assert_array_equal(copy(image), inception(image))
    assert copy.sha256 == weights.WEIGHTS["inception-2015"].files[0].sha256


def test_bytes_of_the_file_serve_as_well_and_no_others(path, tmp_path):
    content = path.read_bytes()
    state = torch.get_rng_state()
    load_inception(content)
    assert torch.equal(torch.get_rng_state(), state)  # a training's seed still gives what it gave
    with pytest.raises(InputError, match="the bytes given are not inception-2015.pt: expected sha256 7ff4"):
        load_inception(content[:-1])
    other = tmp_path / "other.pt"
    other.write_bytes(b"something else")
    with pytest.raises(InputError, match="other.pt are not inception-2015.pt"):
        load_inception(other)
    with pytest.raises(InputError, match="missing.pt: No such file"):
        load_inception(tmp_path / "missing.pt")


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((1, 3, 8, 8), np.uint8),
        np.zeros((1, 0, 8, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(inception, images):
    with pytest.raises(InputError, match="are not uint8"):
        inception(images)


def test_no_image_has_no_features(inception):
    assert inception(np.zeros((0, 8, 8, 3), np.uint8)).shape == (0, 2048)
