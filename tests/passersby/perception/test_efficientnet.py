"""EfficientNet-Lite0 with its published weights: it knows a cat; its maps are those of timm's blocks."""

import pytest
import skimage.data
import torch

from passersby import weights
from passersby.checkpoints import read_tensors
from passersby.errors import InputError
from passersby.perception.efficientnet import CHANNELS, STRIDES, WEIGHT, filled, load_efficientnet, resized

CATS, ESPRESSO = range(281, 286), 967  # classes of ImageNet


@pytest.fixture(scope="module")
def whole():
    return filled(read_tensors(weights.get(WEIGHT)))


def square(picture) -> torch.Tensor:
    """The left square of a picture [H, W, 3] uint8 as [1, 3, 224, 224], -1..1."""
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    return torch.nn.functional.interpolate(image[..., : image.shape[2]], (224, 224), mode="bilinear", antialias=True)


def test_the_weights_are_in_their_places(whole):
    with torch.no_grad():
        cat = whole(square(skimage.data.chelsea())).argmax().item()
        coffee = whole(square(skimage.data.coffee())).argmax().item()
    assert cat in CATS
    assert coffee == ESPRESSO


def test_maps_are_those_of_the_blocks_with_their_normalisations_folded(whole):
    network = load_efficientnet()
    images = torch.rand(2, 3, 128, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        x, expected = whole.bn1(whole.conv_stem(images)), []
        for index, block in enumerate(whole.blocks):
            x = block(x)
            if index in (1, 2, 4, 6):
                expected.append(x)
        found = network(images)
    assert [tuple(each.shape) for each in found] == [
        (2, channels, 128 // stride, 64 // stride) for channels, stride in zip(CHANNELS, STRIDES, strict=True)
    ]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert not network.train().training  # it stays frozen
    leaf = images.requires_grad_(True)
    sum(each.sum() for each in network(leaf)).backward()
    assert leaf.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_loading_draws_no_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_efficientnet()
    assert torch.equal(torch.rand(1), expected)


def test_low_images_are_enlarged_and_high_ones_stay():
    assert resized(torch.zeros(1, 3, 64, 32), 128).shape == (1, 3, 128, 64)
    for size in ((128, 64), (256, 128)):
        assert resized(torch.zeros(1, 3, *size), 128).shape == (1, 3, *size)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "efficientnet-lite0-57934424.pth"
    path.write_bytes(b"no network")
    with pytest.raises(InputError, match="efficientnet-lite0"):
        load_efficientnet(path)
