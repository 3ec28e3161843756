"""The losses of inversion against plain formulas over the same networks, and by hand."""

import math

import numpy as np
import pytest
import torch

from passersby.errors import InputError
from passersby.perception.perceptual import load_perceptual
from passersby.reid.checkpoint import save_reid
from passersby.reid.identity_features import load_identity
from passersby.reid.network import ReidConfig, ReidNetwork
from passersby.restyle.losses import InversionLoss, Losses, LossWeights


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    torch.manual_seed(0)
    network = ReidNetwork(ReidConfig(classes=3, backbone="resnet10", height=64, width=32)).eval()
    path = tmp_path_factory.mktemp("losses") / "reid.safetensors"
    save_reid(path, network, class_names=["a", "b", "c"], record={})
    return load_perceptual(), load_identity(path)


@pytest.fixture(scope="module")
def loss(networks):
    return InversionLoss(LossWeights(), *networks)


def test_each_part_and_their_sum(networks, loss):
    perceptual, identity = networks
    images, reconstructions = noise(2, 3, 64, 32), noise(2, 3, 64, 32, seed=1)
    losses = loss.measure(reconstructions, loss.target(images))
    difference = images.double().numpy() - reconstructions.double().numpy()
    np.testing.assert_allclose(losses.l2, (difference**2).reshape(2, -1).mean(1), atol=1e-6)
    torch.testing.assert_close(losses.lpips, perceptual(reconstructions, images), rtol=0, atol=1e-7)
    cosine = torch.nn.functional.cosine_similarity(identity(reconstructions), identity(images))
    torch.testing.assert_close(losses.identity_cosine, cosine, rtol=0, atol=1e-6)
    expected = losses.l2 + 0.8 * losses.lpips + 0.1 * (1 - cosine)  # the study's weights
    torch.testing.assert_close(loss.total(losses), expected, rtol=0, atol=1e-6)
    assert all(part.shape == (2,) and part.dtype == torch.float32 for part in (*losses, loss.total(losses)))


def test_an_image_itself_loses_nothing(loss):
    images = noise(2, 3, 64, 32)
    losses = loss.measure(images, loss.target(images))
    assert (losses.l2 == 0).all()
    assert (losses.lpips == 0).all()
    torch.testing.assert_close(losses.identity_cosine, torch.ones(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(loss.total(losses), torch.zeros(2), rtol=0, atol=1e-6)


def test_gradients_reach_the_reconstructions_and_each_its_own(loss):
    images = noise(2, 3, 64, 32)
    target = loss.target(images.clone().requires_grad_())
    assert not any(layer.requires_grad for layer in (target.images, target.identity, *target.perceptual))
    start = noise(2, 3, 64, 32, seed=1).requires_grad_()
    losses = loss.measure(start, target)
    for part in losses:
        (gradient,) = torch.autograd.grad(part[0], start, retain_graph=True)
        assert gradient[0].abs().max() > 0
        assert (gradient[1] == 0).all()
    (gradient,) = torch.autograd.grad(loss.total(losses).sum(), start)
    with torch.no_grad():
        after = loss.total(loss.measure(start - 100 * gradient, target))
    assert (after < loss.total(losses)).all()


def test_a_part_of_a_target_is_that_of_its_images(loss):
    images, reconstructions = noise(4, 3, 64, 32), noise(4, 3, 64, 32, seed=1)
    target = loss.target(images)
    whole = loss.measure(reconstructions, target)
    for places in ([2, 0], torch.tensor([3]), torch.tensor([True, False, True, False]), slice(1, 3)):
        taken = target.take(places)
        assert torch.equal(taken.images, images[places])
        part = loss.measure(reconstructions[places], taken)
        for found, expected in zip(part, whole, strict=True):
            torch.testing.assert_close(found, expected[places], rtol=0, atol=1e-6)


def test_without_networks_only_pixels_count():
    loss = InversionLoss(LossWeights(lpips=0, identity=0), None, None)
    target = loss.target(noise(2, 3, 4, 4))
    assert target.perceptual is None
    assert target.identity is None
    losses = loss.measure(target.images + 0.5, target.take([0, 1]))
    np.testing.assert_allclose(losses.l2, [0.25, 0.25], rtol=1e-5)
    assert losses.lpips.isnan().all()
    assert losses.identity_cosine.isnan().all()
    np.testing.assert_allclose(loss.total(losses), [0.25, 0.25], rtol=1e-5)


def test_weights_by_hand(networks):
    losses = Losses(torch.tensor([0.5]), torch.tensor([0.25]), torch.tensor([0.75]))
    for weights, expected in (
        (LossWeights(), 0.725),
        (LossWeights(1, 1, 1), 1.0),  # equal weights are three parts, not one
        (LossWeights(2, 0, 4), 2.0),
        (LossWeights(0, 2, 0), 0.5),
        (LossWeights(0, 0, 0), 0.0),
    ):
        assert InversionLoss(weights, *networks).total(losses).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["l2", "lpips", "identity"])
def test_weights_that_are_none(name, value):
    with pytest.raises(InputError, match=f"weight of {name} "):
        LossWeights(**{name: value})


def test_a_weight_without_its_network_is_refused(networks):
    perceptual, identity = networks
    with pytest.raises(InputError, match="weight of lpips 0.8 without a perceptual network: give one, or weight 0"):
        InversionLoss(LossWeights(), None, identity)
    with pytest.raises(InputError, match=r"weight of identity 0\.1 without a network: give one, or weight 0"):
        InversionLoss(LossWeights(), perceptual, None)


def test_other_sizes_are_refused(loss):
    with pytest.raises(ValueError, match=r"reconstructions \(1, 3, 32, 32\), images \(1, 3, 64, 32\)"):
        loss.measure(noise(1, 3, 32, 32), loss.target(noise(1, 3, 64, 32)))
