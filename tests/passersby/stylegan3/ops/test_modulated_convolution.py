"""Both ways of the modulated convolution against its definition, and that they agree in every gradient."""

import pytest
import torch
import torch.nn.functional as F

from passersby.stylegan3.ops.convolution import modulated_conv2d, sample_by_sample, whole_batch


def arguments(kernel, maps, styles, outputs=5):
    generator = torch.Generator().manual_seed(0)
    shapes = (maps, 4, 6, 5), (outputs, 4, kernel, kernel), (styles, 4), (styles, outputs), (outputs,)
    # float64: what differs is only the order of summation
    return [torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("way", [sample_by_sample, whole_batch])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("maps", "styles"), [(3, 3), (1, 3), (3, 1)])
def test_both_ways_follow_the_definition(way, kernel, maps, styles):
    x, weight, style, demodulation, bias = values = arguments(kernel, maps, styles)
    scaled = x * style[:, :, None, None]
    expected = F.conv2d(scaled, weight, padding=kernel - 1) * demodulation[:, :, None, None] + bias[:, None, None]
    y = way(*values)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last) or way is whole_batch
    found = torch.autograd.grad(y.square().sum(), values)
    for got, wanted in zip(found, torch.autograd.grad(expected.square().sum(), values), strict=True):
        torch.testing.assert_close(got, wanted)


def test_few_outputs_go_as_a_batch():
    # The same numbers either way; a layer with three outputs must not be lost between them.
    for outputs in (3, 16):
        values = arguments(1, 2, 2, outputs)
        torch.testing.assert_close(modulated_conv2d(*values), whole_batch(*values))
