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


# ---- Short number formats: the maps between convolution and demodulation must have the range of the outputs.


def aligned(size, inputs=512, outputs=4):
    """Arguments in float32 whose first kernel has its largest response: every |x| is `size`, with the kernel's signs.

    The kernels have a mean square of 1 and the demodulation is theirs, as in a generator.
    """
    weight = torch.randn(outputs, inputs, 3, 3, generator=torch.Generator().manual_seed(0))
    weight = weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
    style = torch.ones(1, inputs)
    demodulation = (style.square() @ weight.square().sum((2, 3)).t() + 1e-8).rsqrt()
    return size * weight[:1].sign(), weight, style, demodulation, torch.zeros(outputs)


def definition(x, weight, style, demodulation, bias):
    y = F.conv2d(x * style[:, :, None, None], weight, padding=weight.shape[2] - 1)
    return y * demodulation[:, :, None, None] + bias[:, None, None]


@pytest.mark.parametrize("inputs", [1, 3, 16, 100, 512, 683])
@pytest.mark.parametrize("size", [0.05, 5, 14, 15, 20, 40, 256])  # 256 is the clamp of every layer
def test_a_float16_map_holds_every_output_that_float16_holds(size, inputs):
    x, *others = aligned(size, inputs)
    exact, found = definition(x, *others), whole_batch(x.half(), *others).float()
    if (size, inputs) == (20, 512):
        assert exact[0, 0, 2, 2].item() == pytest.approx(1075, abs=1)
    assert found.isfinite().all()
    # float16 rounds to 2^-11 of the largest term of a sum: kernels, the map, the output
    torch.testing.assert_close(found, exact, rtol=0, atol=2**-9 * exact.abs().max().item())


@pytest.mark.parametrize("size", [14, 15, 20, 256])
def test_a_bfloat16_map_holds_them_too(size):
    x, *others = aligned(size)
    exact, found = definition(x, *others), whole_batch(x.bfloat16(), *others).float()
    torch.testing.assert_close(found, exact, rtol=0, atol=2**-6 * exact.abs().max().item())  # 2^-8 each


@pytest.mark.gpu
@pytest.mark.parametrize("size", [14, 15, 20, 256])
def test_a_gpu_holds_them(size):
    values = aligned(size)
    exact, found = definition(*values), modulated_conv2d(values[0].half().cuda(), *(v.cuda() for v in values[1:]))
    torch.testing.assert_close(found.cpu().float(), exact, rtol=0, atol=2**-9 * exact.abs().max().item())


def test_only_runs_of_recipe_1_overflow():
    x, *others = aligned(20)
    assert whole_batch(x.half(), *others, scaled=False)[0, 0, 2, 2].isinf()
    assert whole_batch(x.half(), *others)[0, 0, 2, 2].isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_large_maps_are_those_of_float32(dtype):
    values = [value.requires_grad_() for value in aligned(20)]
    gradients = []
    for kind in (torch.float32, dtype):
        y = whole_batch(values[0].to(kind), *values[1:]) if kind == dtype else definition(*values)
        gradients.append(torch.autograd.grad(y.float().clamp(-2000, 2000).square().mean() / 1e3, values))
    for exact, found in zip(*gradients, strict=True):
        assert found.isfinite().all()
        assert found.dtype == torch.float32
        assert F.cosine_similarity(exact.flatten(), found.flatten(), 0) > 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("outputs", [3, 5, 16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_other_formats_keep_their_bits(kernel, outputs, dtype):
    """Also of runs of recipe 1: the two ways are one, and 3x3 kernels are the operations of before, written out."""
    of_weights = torch.float64 if dtype == torch.float64 else torch.float32
    values = [value.detach().to(of_weights) for value in arguments(kernel, 2, 2, outputs)]
    x, weight, style, demodulation, bias = values = [values[0].to(dtype), *values[1:]]
    new, old = whole_batch(*values), whole_batch(*values, scaled=False)
    assert new.dtype == dtype
    assert torch.equal(new, old)
    if kernel == 3:
        style, demodulation, bias = (part.to(dtype) for part in (style, demodulation, bias))
        y = F.conv2d(x * style[:, :, None, None], weight.to(dtype), padding=2)
        assert torch.equal(new, torch.addcmul(bias[:, None, None], y, demodulation[:, :, None, None]))
    torch.testing.assert_close(modulated_conv2d(*values, scaled=False), modulated_conv2d(*values), rtol=0, atol=0)


def test_scaled_kernels_round_nothing_but_the_smallest_values():
    x, weight, style, demodulation, bias = aligned(1.0, 64)
    x = torch.randn(2, 64, 6, 5, generator=torch.Generator().manual_seed(1)).half()
    new, old = (whole_batch(x, weight, style, demodulation, bias, scaled).float() for scaled in (True, False))
    assert (new - old).abs().max() <= 2**-9 * old.abs().max()
    assert (new == old).float().mean() > 0.9
