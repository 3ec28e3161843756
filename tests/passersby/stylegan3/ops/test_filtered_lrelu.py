"""The filtered non-linearity against zero-insertion and plain convolution by SciPy, forward and backward."""

import math

import numpy as np
import pytest
import scipy.signal
import torch

from passersby.stylegan3 import GeneratorConfig
from passersby.stylegan3.ops.filtered_lrelu import FilterPlan, filtered_lrelu
from passersby.stylegan3.ops.filtered_lrelu import plain as module
from passersby.stylegan3.schedule import lowpass_filter


def by_definition(x, up_filter, down_filter, layer, clamp):
    """x [H, W] float64: insert zeros, pad or crop, filter, activate, filter, decimate; nothing clever."""
    up, (pad_h, pad_w) = layer.up, layer.padding
    stuffed = np.zeros((x.shape[0] * up, x.shape[1] * up))
    stuffed[::up, ::up] = x
    for axis, (low, high) in enumerate((pad_h, pad_w)):
        widths = [(0, 0), (0, 0)]
        widths[axis] = (max(low, 0), max(high, 0))
        stuffed = np.pad(stuffed, widths)
        stop = stuffed.shape[axis] + min(high, 0)
        stuffed = np.take(stuffed, range(-min(low, 0), stop), axis=axis)
    z = scipy.signal.convolve2d(stuffed, np.outer(up_filter, up_filter) * up**2, mode="valid")
    z = np.clip(np.where(z > 0, z, 0.2 * z) * math.sqrt(2), -clamp, clamp)
    down = down_filter if down_filter.ndim == 2 else np.outer(down_filter, down_filter)
    return scipy.signal.convolve2d(z, down, mode="valid")[:: layer.down, :: layer.down]


def make(config_name, index, clamp, height=64, width=32):
    config = getattr(GeneratorConfig, f"config_{config_name}")(height, width, 256, 8)
    layer = config.layers()[index]
    radial = config.use_radial_filters and not layer.critically_sampled
    up = lowpass_filter(layer.up_taps, layer.in_cutoff, layer.in_half_width, layer.rate)
    down = lowpass_filter(layer.down_taps, layer.out_cutoff, layer.out_half_width, layer.rate, radial)
    size = [n + layer.kernel - 1 for n in layer.in_size]
    return layer, torch.from_numpy(up), torch.from_numpy(down), size, FilterPlan.of_layer(layer, clamp)


# Up by 2 and by 4, radial and separable filters, and layer 13, whose padding crops.
CASES = [("r", 2), ("r", 4), ("r", 13), ("t", 0), ("t", 8), ("t", 12), ("t", 13)]


@pytest.mark.parametrize(("config_name", "index"), CASES)
def test_filtered_lrelu_equals_its_definition(config_name, index):
    layer, up, down, size, plan = make(config_name, index, clamp=1.5)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(index))
    y = filtered_lrelu(x, up, down, plan)
    assert y.shape[2:] == layer.out_size
    for image, result in zip(x.flatten(0, 1), y.flatten(0, 1), strict=True):
        expected = by_definition(image.double().numpy(), up.double().numpy(), down.double().numpy(), layer, 1.5)
        # float32 sums of at most 144 products of numbers around 1
        np.testing.assert_allclose(result.numpy(), expected, atol=3e-6)


@pytest.mark.parametrize(("config_name", "index"), [("r", 2), ("r", 13), ("t", 4), ("t", 12)])
def test_gradient_is_the_derivative(config_name, index):
    _, up, down, size, plan = make(config_name, index, clamp=0.8, height=16, width=16)
    x = torch.randn(1, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    # Finite differences of 1e-6 meet a kink of the activation about never; the default tolerances are tight.
    assert torch.autograd.gradcheck(lambda a: filtered_lrelu(a, up.double(), down.double(), plan), x, fast_mode=True)


@pytest.mark.parametrize("tile_bytes", [1, 200_000])
def test_parts_change_nothing(tile_bytes, monkeypatch):
    _, up, down, size, plan = make("r", 10, clamp=256.0)
    x = torch.randn(3, 40, *size, generator=torch.Generator().manual_seed(1), requires_grad=True)
    whole = filtered_lrelu(x, up, down, plan)
    (gradient,) = torch.autograd.grad(whole.square().sum(), x)
    monkeypatch.setattr(module, "TILE_BYTES", tile_bytes)
    parts = filtered_lrelu(x, up, down, plan)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-6)
    (again,) = torch.autograd.grad(parts.square().sum(), x)
    torch.testing.assert_close(again, gradient, atol=1e-5, rtol=1e-5)


def test_filters_pass_the_mean():
    for radial in (False, True):
        kernel = lowpass_filter(12, 4.0, 4.0, 32.0, radial)
        assert kernel.dtype == np.float32
        assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert lowpass_filter(1, 4.0, 4.0, 32.0) is None


def test_filters_are_scipys_to_the_bit():
    random = np.random.default_rng(0)
    for _ in range(200):
        taps, rate = int(random.choice([2, 6, 12, 24])), float(2 ** random.integers(4, 12))
        cutoff, half_width = rate * random.uniform(0.01, 0.45), rate * random.uniform(0.01, 0.4)
        expected = scipy.signal.firwin(taps, cutoff, width=half_width * 2, fs=rate).astype(np.float32)
        np.testing.assert_array_equal(lowpass_filter(taps, cutoff, half_width, rate), expected)


def test_what_cannot_be_clamped_is_not_looked_at_again():
    # The bound must be safe: inputs just below it, with the signs that add up worst, stay below the clamp.
    _, up, down, size, plan = make("r", 4, clamp=256.0)
    gained = up * plan.up_gain
    limit = module._unclamped(gained, plan)
    assert 50 < limit < 256
    for phase in range(plan.up):
        signs = gained[phase :: plan.up].sign().flip(0)
        x = torch.zeros(1, 1, *size)
        x[0, 0, 10 : 10 + len(signs), 10 : 10 + len(signs)] = 0.999 * limit * torch.outer(signs, signs)
        assert module._within(x, limit)
        z = module._up(x, gained, plan.up, plan.crop, plan.size)
        assert z.abs().max() < plan.clamp
        assert not module._within(x * 1.01, limit)
    # A small clamp is reached, and then values are cut.
    _, up, down, size, plan = make("r", 4, clamp=0.1)
    y = filtered_lrelu(torch.full((1, 1, *size), 5.0), up, down, plan)
    torch.testing.assert_close(y, torch.full_like(y, 0.1), atol=1e-6, rtol=0)
