"""Identity features: the two kinds of network against torchvision and the re-ID network itself, and other files."""

import pickle

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision
from torch import nn

from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.reid.checkpoint import save_reid
from passersby.reid.identity_features import load_identity
from passersby.reid.network import FeatureNetwork, ReidConfig, ReidNetwork


def varied(network: nn.Module) -> nn.Module:
    """In eval mode, with batch normalisations that change values."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module", params=["embedding", "bnneck"])
def reid(request, tmp_path_factory):
    """A small re-ID network and its file."""
    torch.manual_seed(0)
    config = ReidConfig(classes=3, backbone="resnet10", neck=request.param, height=64, width=32, embedding=16)
    network = varied(ReidNetwork(config))
    path = tmp_path_factory.mktemp("reid") / f"{request.param}.safetensors"
    save_reid(path, network, class_names=["a", "b", "c"], record={})
    return network, path


@pytest.fixture(scope="module")
def moco_state():
    """A MoCo-v2 checkpoint's contents, with random weights and small stand-ins for what is not used."""
    torch.manual_seed(0)
    network = varied(torchvision.models.resnet50())
    state = {f"module.encoder_q.{name}": value for name, value in network.state_dict().items() if "fc." not in name}
    state |= {"module.encoder_q.fc.0.weight": torch.ones(2, 2), "module.encoder_q.fc.2.bias": torch.ones(2)}
    state |= {"module.encoder_k.conv1.weight": torch.ones(2), "module.queue": torch.ones(2, 2)}
    network.fc = nn.Identity()
    return network, state


@pytest.fixture(scope="module")
def moco(moco_state, tmp_path_factory):
    path = tmp_path_factory.mktemp("moco") / "moco_v2_800ep_pretrain.pth.tar"
    torch.save({"epoch": 800, "arch": "resnet50", "state_dict": moco_state[1], "optimizer": {"state": {}}}, path)
    return moco_state[0], path


def test_a_reid_network_sees_what_it_was_trained_on(reid):
    network, path = reid
    identity = load_identity(path)
    images = noise(2, 3, 64, 32)
    with torch.no_grad():
        expected = network.feature((images + 1) / 2)
    found = identity(images)
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True), rtol=0, atol=1e-6)
    assert found.dtype == torch.float32
    assert identity.sha256 == file_sha256(path)
    assert identity.name == f"re-ID resnet10 {network.config.neck} 64x32 (passersby)"


def test_the_same_features_as_of_stored_pixels(reid):
    """Those of image and mirror image add up to what the re-ID stages compare by."""
    network, path = reid
    pixels = torch.randint(0, 256, (2, 64, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    identity = load_identity(path)
    with torch.no_grad():
        lengths = [network.feature((x + 1) / 2).norm(dim=1, keepdim=True) for x in (images, images.flip(3))]
        both = identity(images) * lengths[0] + identity(images.flip(3)) * lengths[1]
    stored = torch.from_numpy(FeatureNetwork(network, "")(pixels.numpy()))
    torch.testing.assert_close(both / both.norm(dim=1, keepdim=True), stored, rtol=0, atol=1e-5)


def test_moco_sees_the_whole_image_without_imagenets_colours(moco):
    network, path = moco
    identity = load_identity(path)
    images = noise(1, 3, 32, 16)
    resized = nn.functional.interpolate(images, (224, 224), mode="bilinear", align_corners=False)
    with torch.no_grad():
        expected = network(resized)
    found = identity(images)
    assert found.shape == (1, 2048)
    torch.testing.assert_close(found, expected / expected.norm(), rtol=0, atol=1e-6)
    assert (identity.name, identity.sha256) == ("MoCo-v2 resnet50", file_sha256(path))


def test_reduced_images_are_averaged(reid):
    _, path = reid
    identity = load_identity(path)
    image = noise(1, 3, 200, 150)
    bands = [PIL.Image.fromarray(band.numpy()).resize((32, 64), PIL.Image.Resampling.BILINEAR) for band in image[0]]
    reduced = torch.from_numpy(np.stack(bands))[None]
    torch.testing.assert_close(identity(image), identity(reduced), rtol=0, atol=1e-5)


def test_frozen_in_eval_mode_and_differentiable(reid):
    _, path = reid
    state = torch.get_rng_state()
    identity = load_identity(path).train()
    assert torch.equal(torch.get_rng_state(), state)  # a training's seed still gives what it gave
    assert not any(module.training for module in identity.modules())
    assert not any(parameter.requires_grad for parameter in identity.parameters())
    images = noise(3, 3, 128, 64)
    alone = torch.cat([identity(image[None]) for image in images])
    torch.testing.assert_close(identity(images), alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(pickle.loads(pickle.dumps(identity))(images), identity(images), rtol=0, atol=0)
    a, b = images[:1].clone().requires_grad_(), identity(images[1:2])
    (gradient,) = torch.autograd.grad((identity(a) * b).sum(), a)
    steepest = gradient / gradient.norm()
    with torch.no_grad():
        step = 0.1  # over all pixels; cosines are known to 1e-7
        ends = [(identity(a + sign * step * steepest) * b).sum() for sign in (1, -1)]
    assert gradient.norm().item() == pytest.approx(((ends[0] - ends[1]) / (2 * step)).item(), rel=0.03)


def test_other_files_are_refused(moco_state, tmp_path):
    with pytest.raises(InputError, match="identity network .*missing.pth: No such file"):
        load_identity(tmp_path / "missing.pth")
    path = tmp_path / "other.pth"
    torch.save({"conv1.weight": torch.ones(1), "fc.weight": torch.ones(1)}, path)
    with pytest.raises(InputError, match="other.pth: ImageNet weights, no re-identification network"):
        load_identity(path)
    torch.save({"module.encoder_q.conv1.weight": nn.Linear(1, 1)}, path)
    with pytest.raises(InputError, match="identity network .*other.pth: no plain state dict, nothing of it was run"):
        load_identity(path)
    name = "module.encoder_q.layer1.0.conv1.weight"
    small = {"module.encoder_q.conv1.weight": torch.ones(64, 3, 3, 3)}
    few = {key: value for key, value in moco_state[1].items() if ".layer" not in key}
    first = {key: value for key, value in moco_state[1].items() if ".layer" not in key or ".layer1.0.conv1." in key}
    for state, said in (
        (small, r"encoder_q.conv1.weight has shape \(64, 3, 3, 3\), that of .* \(64, 3, 7, 7\)"),
        (few, "encoder_q.layer1.0.conv1.weight is missing, which a MoCo-v2 checkpoint of a ResNet-50 has"),
        (
            first | {name: torch.full((64, 64, 1, 1), torch.nan)},
            "encoder_q.layer1.0.conv1.weight holds values that are",
        ),
    ):
        torch.save({"state_dict": state}, path)
        with pytest.raises(InputError, match=f"identity network {path}: tensor {said}"):
            load_identity(path)
    torch.save({"state_dict": moco_state[1] | {"module.encoder_q.layer9.weight": torch.ones(1)}}, path)
    with pytest.raises(InputError, match="tensor encoder_q.layer9.weight is not one of a MoCo-v2 checkpoint"):
        load_identity(path)
