"""The discriminator against the reference implementation's logits, and its tall form."""

import pytest
import torch

from passersby.errors import InputError
from passersby.stylegan3 import Discriminator, DiscriminatorConfig
from passersby.stylegan3.discriminator import minibatch_std

LOGIT_TOLERANCE = 1e-5  # float32, another order of summation; 1e-6 is what is seen


def test_logits_equal_the_reference(oracle):
    network = oracle.discriminator()
    images = oracle.tensor("D_real_u8").float() / 127.5 - 1
    for batch in (1, 4, 8):
        expected = oracle.tensor(f"D_logits_real_b{batch}")
        torch.testing.assert_close(network(images[:batch]), expected, atol=LOGIT_TOLERANCE, rtol=0)
    fake = network(oracle.tensor("img_psi1"))
    torch.testing.assert_close(fake, oracle.tensor("D_logits_fake"), atol=LOGIT_TOLERANCE, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 32), (64, 16), (16, 16)])
def test_blocks_halve_until_the_shorter_side_is_4(height, width):
    network = Discriminator(DiscriminatorConfig(height, width, channel_base=256, channel_max=16))
    last = 4 * height // width
    assert network.heights[-1] == last
    assert getattr(network, f"b{last}").fc.weight.shape == (16, 16 * last * 4)
    assert network(torch.randn(4, 3, height, width)).shape == (4, 1)


def test_float16_blocks_follow_the_height():
    config = DiscriminatorConfig(256, 128)
    assert [h for h in config.heights if config.half_on_cuda(h)] == [256, 128, 64, 32]


def test_minibatch_std_groups_with_a_stride():
    x = torch.zeros(4, 2, 1, 1)
    x[0] = 1.0  # grouped with sample 2 when the group size is 2
    y = minibatch_std(x, 2, 1)[:, 2].flatten()
    torch.testing.assert_close(y, torch.tensor([0.5, 1e-4, 0.5, 1e-4]), atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="batch 3"):
        minibatch_std(torch.zeros(3, 2, 1, 1), 2, 1)


def test_labels_are_projected():
    torch.manual_seed(0)
    network = Discriminator(DiscriminatorConfig(32, 16, c_dim=3, channel_base=256, channel_max=16))
    images = torch.randn(1, 3, 32, 16).repeat(3, 1, 1, 1)
    logits = network(images, torch.eye(3))
    assert logits.shape == (3, 1)
    assert logits.std() > 0


def test_gradient_penalty_is_twice_differentiable():
    torch.manual_seed(0)
    network = Discriminator(DiscriminatorConfig(16, 8, channel_base=64, channel_max=8))
    images = torch.randn(2, 3, 16, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(images).sum(), images, create_graph=True)
    gradient.square().sum().backward()
    assert network.b16.fromrgb.weight.grad.abs().sum() > 0


def test_wrong_image_size_is_named():
    network = Discriminator(DiscriminatorConfig(32, 16, channel_base=64, channel_max=8))
    with pytest.raises(InputError, match="32, 16"):
        network(torch.randn(1, 3, 16, 16))
