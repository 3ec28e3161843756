"""All kernels of the filtered leaky ReLU against the plain one, which has the definition as its oracle."""

import copy
import gc

import numpy as np
import pytest
import torch

from passersby.errors import InputError
from passersby.stylegan3 import Generator, GeneratorConfig
from passersby.stylegan3.generator import set_kernel
from passersby.stylegan3.ops.filtered_lrelu import FilterPlan, filtered_lrelu, fused, kernel_on, matmul
from passersby.stylegan3.schedule import lowpass_filter

SIZES = [(64, 64), (128, 64), (256, 256)]


def layers(config_name: str, height: int, width: int) -> list[tuple]:
    """(name, up filter, down filter, input size, plan) of every filtered layer; a clamp that many values reach."""
    config = getattr(GeneratorConfig, f"config_{config_name}")(height, width)
    layers = []
    for spec in config.layers()[:-1]:
        radial = config.use_radial_filters and not spec.critically_sampled
        up = lowpass_filter(spec.up_taps, spec.in_cutoff, spec.in_half_width, spec.rate)
        down = lowpass_filter(spec.down_taps, spec.out_cutoff, spec.out_half_width, spec.rate, radial)
        size = tuple(n + spec.kernel - 1 for n in spec.in_size)
        plan = FilterPlan.of_layer(spec, clamp=1.5)
        layers.append((spec.name, torch.from_numpy(up), torch.from_numpy(down), size, plan))
    return layers


def with_gradient(kernel, x, up, down, plan):
    """The map, and the gradient at x of its sum with fixed weights."""
    x = x.detach().requires_grad_()
    y = filtered_lrelu(x, up, down, plan, kernel)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    (gradient,) = torch.autograd.grad(y, x, weights)
    return y.detach(), gradient


@pytest.mark.parametrize("config_name", "tr")
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_matrix_products_equal_the_plain_kernel_in_every_layer(config_name, height, width):
    for name, up, down, size, plan in layers(config_name, height, width):
        x = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))
        for ours, expected in zip(*(with_gradient(k, x, up, down, plan) for k in ("matmul", "plain")), strict=True):
            assert ours.dtype == expected.dtype
            assert ours.shape == expected.shape
            # Sums of some hundred products around 1 in float32, and a radial filter's separable parts to 1e-6.
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("config_name", "tr")
def test_matrix_products_of_several_samples_and_channels(config_name):
    _, up, down, size, plan = layers(config_name, 64, 32)[9]
    x = torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(0))
    y, gradient = with_gradient("matmul", x, up, down, plan)
    expected, expected_gradient = with_gradient("plain", x, up, down, plan)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=0)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.004), (torch.bfloat16, 0.03)])
def test_matrix_products_in_half_precision(dtype, tolerance):
    # The tolerance is four roundings of values up to 2 in this format.
    _, up, down, size, plan = layers("r", 64, 32)[9]
    x = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = filtered_lrelu(x.float(), up, down, plan)
    y = filtered_lrelu(x, up, down, plan, "matmul")
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, atol=tolerance, rtol=0)


def test_blocks_of_long_axes_change_nothing(monkeypatch):
    _, up, down, size, plan = layers("r", 64, 32)[9]
    x = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0))
    whole = with_gradient("matmul", x, up, down, plan)
    matmul._products.cache_clear()
    monkeypatch.setattr(matmul, "LONG_AXIS", 30)
    monkeypatch.setattr(matmul, "BLOCK", 16)
    for part, expected in zip(with_gradient("matmul", x, up, down, plan), whole, strict=True):
        torch.testing.assert_close(part, expected, atol=2e-6, rtol=0)
    matmul._products.cache_clear()


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-9])
def test_separable_parts_add_up_to_the_radial_filter(tolerance):
    ranks = []
    for _, _, down, _, _ in layers("r", 128, 64)[:-2]:
        taps = matmul.taps_of(down)
        vertical, horizontal = matmul.separable_parts(taps, tolerance)
        assert np.abs(vertical.T @ horizontal - down.double().numpy()).sum() <= tolerance
        ranks.append(len(vertical))
    assert max(ranks) <= {1e-4: 4, 1e-6: 5, 1e-9: 6}[tolerance]


def test_taps_follow_their_filter():
    first = torch.ones(4)
    assert matmul.taps_of(first).values.tolist() == [1, 1, 1, 1]
    first.mul_(2)  # as load_state_dict writes them
    assert matmul.taps_of(first).values.tolist() == [2, 2, 2, 2]
    count = len(matmul._known_taps)
    del first
    gc.collect()
    assert len(matmul._known_taps) < count
    with torch.inference_mode():
        assert matmul.taps_of(torch.ones(2, 2)).radial


@pytest.mark.parametrize("make", [GeneratorConfig.config_t, GeneratorConfig.config_r])
def test_a_network_makes_the_same_images_with_every_kernel(make):
    torch.manual_seed(0)
    network = Generator(make(64, 32, channel_base=256, channel_max=8)).eval()
    ws = network.mapping(torch.randn(2, 512))
    images = {}
    for kernel in ("auto", "plain", "matmul"):
        set_kernel(network, kernel)
        images[kernel] = copy.deepcopy(network).synthesis(ws)
    assert torch.equal(images["auto"], images["plain"])  # on a CPU
    assert not torch.equal(images["matmul"], images["plain"])
    torch.testing.assert_close(images["matmul"], images["plain"], atol=2e-5, rtol=0)


def test_the_device_chooses_the_kernel():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert kernel_on(cpu) == "plain"
    assert {kernel_on(device, "plain") for device in (cpu, gpu)} == {"plain"}
    with pytest.raises(InputError, match="kernel fast is not known: give one of auto, plain, matmul, triton"):
        kernel_on(cpu, "fast")
    with pytest.raises(InputError, match="triton cannot run on cpu: .*; give auto, plain or matmul"):
        kernel_on(cpu, "triton")


@pytest.mark.parametrize("reason", [None, "Triton is not installed", "it failed in a test with OSError: no compiler"])
def test_a_gpu_computes_matrix_products_and_triton_where_it_is_asked_for_and_runs(reason, monkeypatch):
    monkeypatch.setattr(fused, "reason_against", lambda device: reason)
    gpu = torch.device("cuda", 7)
    assert kernel_on(gpu) == "matmul"
    if reason is None:
        assert kernel_on(gpu, "triton") == "triton"
    else:
        with pytest.raises(InputError, match=f"triton cannot run on cuda:7: {reason}; give auto, plain or matmul"):
            kernel_on(gpu, "triton")
