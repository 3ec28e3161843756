"""Perceptual distances against the packages that publish them, and the blurred convolution against both its parts."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from passersby import weights as registry
from passersby.errors import InputError
from passersby.perception.perceptual import Blur, BlurredConvolution, Perceptual, load_perceptual, shift_tolerant_stages

SIZES = [(128, 64), (64, 64), (65, 67), (127, 66)]  # even and odd: the last blurred place differs
LAYERS = {"slice1.0": 0, "slice2.3": 3, "slice3.6": 6, "slice4.8": 8, "slice5.10": 10}  # the package's -> torchvision's


def picture(height: int, width: int, phase: float = 0.0) -> torch.Tensor:
    """Waves of three colours, [3, H, W] float32, -1..1."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [np.sin(7 * x / width + 3 * c + phase) * np.cos(5 * y / height - c) for c in range(3)]
    return torch.from_numpy(np.stack(waves)).float()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def shift_tolerant():
    return load_perceptual()


@pytest.fixture(scope="module")
def published():
    """The package `lpips`, its AlexNet with random weights."""
    import lpips

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it calls torchvision in an older way
        return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)


@pytest.fixture(scope="module")
def alexnet(published, tmp_path_factory):
    """A file with that AlexNet under torchvision's names, and some of the classifier that is not used."""
    state = {"classifier.1.weight": torch.ones(4, 4)}
    for name, number in LAYERS.items():
        for part in ("weight", "bias"):
            state[f"features.{number}.{part}"] = published.net.state_dict()[f"{name}.{part}"]
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.save(state, path)
    return path


@pytest.mark.parametrize("size", SIZES)
def test_lpips_is_that_of_its_package(published, alexnet, size):
    network = load_perceptual(alexnet)
    a, b = noise(2, 3, *size), noise(2, 3, *size, seed=1)
    theirs, ours = a.clone().requires_grad_(), a.clone().requires_grad_()
    expected, found = published(theirs, b).flatten(), network(ours, b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.min() > 0.05
    expected.sum().backward()
    found.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-5 * theirs.grad.abs().max().item())
    assert network.short == "lpips"
    assert network.name.startswith("LPIPS 0.1 alex (AlexNet ")


# Of the wheel's own code, run in float64: to the picture with another phase, its negative, and itself 2 pixels away.
GOLDEN = {
    (128, 64): [0.055845, 0.911841, 0.031746],
    (64, 64): [0.046946, 0.842411, 0.028146],
    (65, 67): [0.052320, 0.844067, 0.029996],
    (127, 66): [0.060977, 0.920140, 0.032414],
}


@pytest.mark.parametrize("size", SIZES)
def test_the_shift_tolerant_distance_is_that_of_the_wheel(shift_tolerant, size):
    image = picture(*size)
    others = torch.stack([picture(*size, 0.3), -image, image.roll(2, 2)])
    found = shift_tolerant(image.expand_as(others), others)
    torch.testing.assert_close(found, torch.tensor(GOLDEN[size]), rtol=0, atol=1e-5)
    assert shift_tolerant.short == "st-lpips"
    assert shift_tolerant.name == "ST-LPIPS alex (stlpips-pytorch 0.0.2)"


@pytest.mark.parametrize("size", [(12, 14), (13, 14), (13, 15), (16, 13), (9, 10)])
def test_the_blur_is_that_of_a_loop(size):
    x = noise(1, 2, *size).numpy()
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    found = Blur(2)(torch.from_numpy(x)).numpy()
    height, width = ((length + 1) // 2 + 1 for length in size)
    assert found.shape == (1, 2, height, width)
    kernel = np.array([1, 2, 1]) / 4
    for row in range(height):
        for column in range(width):
            window = padded[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            expected = np.einsum("ncij,i,j->nc", window, kernel, kernel)
            np.testing.assert_allclose(found[:, :, row, column], expected, atol=1e-6)


@pytest.mark.parametrize("size", [(20, 22), (21, 22), (22, 21), (23, 25), (64, 64)])
def test_the_blurred_convolution_is_both_its_parts(size):
    weight, bias = noise(64, 3, 11, 11) / 20, noise(64, seed=1)
    x = noise(2, 3, *size, seed=2).requires_grad_()
    parts = Blur(64)(nn.functional.conv2d(x, weight, bias, padding=2))
    found = BlurredConvolution(weight, bias)(x)
    torch.testing.assert_close(found, parts, rtol=0, atol=1e-5)  # 363 products, summed in another order
    factors = noise(*parts.shape, seed=3)
    (expected,) = torch.autograd.grad((parts * factors).sum(), x)
    (gradient,) = torch.autograd.grad((found * factors).sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5)


def test_gradients_are_those_of_finite_differences(shift_tolerant):
    a, b = picture(64, 64)[None].requires_grad_(), picture(64, 64, 0.3)[None]
    direction = noise(1, 3, 64, 64)
    (gradient,) = torch.autograd.grad(shift_tolerant(a, b).sum(), a)
    with torch.no_grad():
        step = 0.01  # distances are known to 1e-8, and curve
        slope = (shift_tolerant(a + step * direction, b) - shift_tolerant(a - step * direction, b)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=0.02)


def test_small_images_are_enlarged_by_whole_factors(shift_tolerant):
    a, b = picture(48, 24)[None], picture(48, 24, 0.3)[None]
    enlarged = [torch.from_numpy(np.kron(image.numpy(), np.ones((1, 1, 3, 3), np.float32))) for image in (a, b)]
    torch.testing.assert_close(shift_tolerant(a, b), shift_tolerant(*enlarged), rtol=0, atol=1e-7)
    tiny = noise(1, 3, 5, 4).requires_grad_()
    shift_tolerant(tiny, -tiny.detach()).sum().backward()
    assert tiny.grad.abs().min() > 0


def test_an_image_alone_is_as_in_a_batch(shift_tolerant):
    a, b = noise(3, 3, 64, 64), noise(3, 3, 64, 64, seed=1)
    alone = torch.cat([shift_tolerant(a[i : i + 1], b[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(shift_tolerant(a, b), alone, rtol=0, atol=1e-7)
    assert (shift_tolerant(a, a) == 0).all()


def test_places_without_any_feature_have_no_gradient():
    """The published code gives nan there: the root's slope at 0 is not finite."""
    shapes = [(64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3)]
    layers = [(torch.zeros(shape), torch.full(shape[:1], -1.0)) for shape in shapes]
    dead = Perceptual("", "", shift_tolerant_stages(layers), [torch.ones(shape[0]) for shape in shapes])
    image = noise(1, 3, 64, 64).requires_grad_()
    distance = dead(image, -image.detach())
    distance.sum().backward()
    assert distance.item() == 0
    assert (image.grad == 0).all()


def test_frozen_copied_and_without_drawing_random_numbers(shift_tolerant):
    state = torch.get_rng_state()
    network = load_perceptual()
    assert torch.equal(torch.get_rng_state(), state)  # a training's seed still gives what it gave
    assert not any(parameter.requires_grad for parameter in network.parameters())
    a, b = noise(1, 3, 64, 64), noise(1, 3, 64, 64, seed=1)
    copy = pickle.loads(pickle.dumps(network)).train()
    assert torch.equal(copy(a, b), shift_tolerant(a, b))
    assert copy.name == network.name


def test_the_wheels_own_file_can_be_given(shift_tolerant, tmp_path):
    path = registry.get("st-lpips-alex")
    assert load_perceptual(path).name == shift_tolerant.name
    state = torch.load(path, map_location="cpu", weights_only=True)
    state["lin0.model.1.weight"] *= 2
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other.pth is not alex_shift_tolerant.pth: .*--alexnet"):
        load_perceptual(tmp_path / "other.pth")


def changed(name: str, value: torch.Tensor | None):
    def change(state: dict) -> None:
        del state[name]
        if value is not None:
            state[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed("features.3.bias", None), "tensor features.3.bias is missing"),
        (
            changed("features.6.weight", torch.zeros(2, 3)),
            r"features.6.weight has shape \(2, 3\), that of this network \(384, 192, 3, 3\)",
        ),
        (changed("features.8.bias", torch.full((256,), np.nan)), "features.8.bias holds values that are no finite"),
        (changed("features.8.bias", torch.zeros(256, dtype=torch.int64)), "features.8.bias holds values that are no"),
        (
            changed("features.0.weight", None),
            r"not torchvision's AlexNet \(classifier.1.weight, .*\): give alexnet",
        ),
    ],
)
def test_other_files_are_refused(alexnet, tmp_path, change, said):
    state = torch.load(alexnet, weights_only=True)
    change(state)
    path = tmp_path / "changed.pth"
    torch.save(state, path)
    with pytest.raises(InputError, match=f"perceptual network {path}: .*{said}"):
        load_perceptual(path)


def test_files_that_are_no_networks_are_refused(tmp_path):
    with pytest.raises(InputError, match="missing.pth: No such file"):
        load_perceptual(tmp_path / "missing.pth")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(InputError, match="page.pth: an HTML or XML page"):
        load_perceptual(tmp_path / "page.pth")
    torch.save({"features.0.weight": nn.Linear(1, 1)}, tmp_path / "code.pth")
    with pytest.raises(InputError, match="code.pth: no plain state dict, nothing of it was run"):
        load_perceptual(tmp_path / "code.pth")
