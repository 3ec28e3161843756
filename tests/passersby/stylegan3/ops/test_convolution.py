"""Convolutions with their own derivatives against PyTorch's, to the second order."""

import pytest
import torch
import torch.nn.functional as F

from passersby.stylegan3.discriminator import binomial_filter
from passersby.stylegan3.ops.convolution import conv2d, filter2d, sample_conv2d, weight_gradient

# kernel, stride, padding, height, width: those of the discriminator, and a stride that leaves samples over
SHAPES = [(3, 1, 1, 6, 5), (3, 2, 0, 9, 7), (3, 2, 0, 8, 6), (1, 1, 0, 5, 4)]


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


@pytest.mark.parametrize(("kernel", "stride", "padding", "height", "width"), SHAPES)
def test_convolution_equals_pytorch(kernel, stride, padding, height, width):
    x, weight, bias = random(2, 3, height, width), random(4, 3, kernel, kernel, seed=1), random(4, seed=2)
    ours = conv2d(x, weight, bias, stride, padding)
    torch.testing.assert_close(ours, F.conv2d(x, weight, bias, stride, padding))
    arguments = x, weight, bias
    assert torch.autograd.gradcheck(lambda *a: conv2d(*a, stride, padding), arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *a: conv2d(*a, stride, padding), arguments, fast_mode=True)


@pytest.mark.parametrize(("stride", "padding"), [(1, 2), (2, 1)])
def test_filter_equals_a_depthwise_convolution(stride, padding):
    # An asymmetric kernel: the transpose must be flipped where it is done as a filter.
    kernel = binomial_filter().double() + torch.arange(16.0, dtype=torch.float64).view(4, 4) / 100
    x = random(2, 3, 8, 6)
    expected = F.conv2d(x, kernel.expand(3, 1, 4, 4), stride=stride, padding=padding, groups=3)
    torch.testing.assert_close(filter2d(x, kernel, stride, padding), expected)
    assert torch.autograd.gradcheck(lambda a: filter2d(a, kernel, stride, padding), x, fast_mode=True)
    # Linear, so the second derivative is zero but that at the incoming gradient, which gradgradcheck tries.
    assert torch.autograd.gradgradcheck(lambda a: filter2d(a, kernel, stride, padding), x, fast_mode=True)


def test_nothing_is_kept_for_a_gradient_nobody_asks_for():
    # The generator's phase: the discriminator is frozen, its maps would otherwise be kept for weight gradients.
    x, weight = random(1, 3, 6, 6), random(4, 3, 3, 3, seed=1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        conv2d(x, weight.detach(), padding=1)
        assert kept == [weight.data_ptr()]
        conv2d(x, weight, padding=1)
    assert x.data_ptr() in kept


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("maps", "kernels"), [(3, 3), (1, 3), (3, 1), (1, 1)])
def test_every_sample_has_its_own_kernel(kernel, maps, kernels):
    x, weights, bias = random(maps, 2, 4, 5), random(kernels, 3, 2, kernel, kernel, seed=1), random(3, seed=2)
    padding = kernel - 1
    y = sample_conv2d(x, weights, bias, padding)
    samples = range(max(maps, kernels))
    expected = [F.conv2d(x[min(i, maps - 1)], weights[min(i, kernels - 1)], bias, padding=padding) for i in samples]
    torch.testing.assert_close(y, torch.stack(expected))
    arguments = x, weights, bias
    assert torch.autograd.gradcheck(lambda *a: sample_conv2d(*a, padding), arguments, fast_mode=True)


def test_weight_gradient_of_a_wide_padding_in_float32():
    # Done with a padded map and padding 1 on a CPU; float32 sums of 72 products of numbers around 1.
    x, grad = random(2, 3, 4, 4).float().detach(), random(2, 5, 6, 6, seed=1).float().detach()
    weight = torch.zeros(5, 3, 3, 3, requires_grad=True)
    F.conv2d(x, weight, padding=2).backward(grad)
    torch.testing.assert_close(weight_gradient(grad, x, 3, padding=2), weight.grad, atol=1e-5, rtol=1e-5)
