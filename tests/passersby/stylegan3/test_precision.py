"""The number format of the highest resolutions: what it reaches, and bfloat16 against float32 on a CPU."""

import pytest
import torch
import torch.nn.functional as F

from passersby.errors import InputError
from passersby.stylegan3 import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig
from passersby.stylegan3.generator import set_scaled_kernels
from passersby.stylegan3.mapping import FLOAT16_LOSS_SCALE, Precision, full_precision, loss_scale, set_precision
from tests.helpers.gpu_path import go_the_way_of_a_gpu


def networks(name="r", **config):
    torch.manual_seed(0)
    generator = Generator(getattr(GeneratorConfig, f"config_{name}")(32, 16, 256, 16, **config))
    return generator, Discriminator(DiscriminatorConfig(32, 16, channel_base=256, channel_max=16, **config))


def one_pass(generator, discriminator):
    """Images, logits and the gradients of all parameters of both networks, R1's of the discriminator last."""
    z = torch.randn(4, 512, generator=torch.Generator().manual_seed(1))
    images = generator(z)
    logits = discriminator(images)
    F.softplus(-logits).mean().backward()
    results = [images.detach(), logits.detach()]
    for network in (generator, discriminator):
        results.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
        network.zero_grad(set_to_none=True)
    reals = images.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(reals).sum(), reals, create_graph=True)
    gradient.square().sum().backward()
    results.append(torch.cat([p.grad.flatten() for p in discriminator.parameters() if p.grad is not None]))
    discriminator.zero_grad(set_to_none=True)
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r", "t"])
def test_bfloat16_stays_near_float32(name):
    both = networks(name)
    exact = one_pass(*both)
    for network in both:
        set_precision(network, torch.bfloat16, on_cpu=True)
    # bfloat16 rounds to 2^-9: images differ by 1% of their norm after some 15 layers. Logits of random weights are
    # small sums of large terms, and backward, rounding moves leaky ReLUs over their kink: 2 to 10% seen.
    for got, expected, tolerance in zip(one_pass(*both), exact, [0.03, 0.2, 0.2, 0.2, 0.2], strict=True):
        assert got.dtype == torch.float32
        assert 0 < (got - expected).norm() / expected.norm() < tolerance


def test_only_the_highest_resolutions_change():
    generator, discriminator = networks(num_fp16_res=1)
    for network in (generator, discriminator):
        set_precision(network, torch.bfloat16, on_cpu=True)
    x = torch.zeros(1)
    formats = {name: getattr(generator.synthesis, name).precision.of(x) for name in generator.synthesis.layer_names}
    low = [name for name, dtype in formats.items() if dtype == torch.bfloat16]
    assert 0 < len(low) < len(formats)
    assert low == generator.synthesis.layer_names[-len(low) :]
    assert discriminator.b32.precision.of(x) == torch.bfloat16
    assert discriminator.b16.precision.of(x) == torch.float32


def test_a_cpu_is_exact_unless_told_otherwise():
    generator, _ = networks()
    last = getattr(generator.synthesis, generator.synthesis.layer_names[-1])
    assert last.precision.dtype == torch.float16  # what a GPU would use
    assert last.precision.of(torch.zeros(1)) == torch.float32


def test_impossible_formats_are_named():
    generator, _ = networks()
    with pytest.raises(InputError, match="float64.*float16 or bfloat16 or float32"):
        set_precision(generator, torch.float64)
    with pytest.raises(InputError, match="float16 cannot be used on a CPU"):
        set_precision(generator, torch.float16, on_cpu=True)


# ---- float16 as on a GPU, and what keeps its gradients


def formats(network):
    return [layer.precision for layer in network.modules() if hasattr(layer, "precision")]


def test_full_precision_ends_with_its_context():
    generator, _ = networks()
    before = formats(generator)
    assert Precision(torch.float16) in before
    for error in (None, RuntimeError("in the middle")):
        try:
            with full_precision(generator.synthesis):
                assert set(formats(generator)) == {Precision()}
                if error:
                    raise error
        except RuntimeError:
            pass
        assert formats(generator) == before


def test_only_float16_needs_a_loss_scale(monkeypatch):
    generator, discriminator = networks()
    assert loss_scale(generator) == loss_scale(discriminator) == 1  # a CPU computes in float32
    set_precision(generator, torch.bfloat16, on_cpu=True)
    assert loss_scale(generator) == 1
    go_the_way_of_a_gpu(monkeypatch, generator)
    assert loss_scale(generator) == loss_scale(generator.synthesis) == FLOAT16_LOSS_SCALE == 2**10
    with full_precision(generator):
        assert loss_scale(generator) == 1
    assert loss_scale(torch.nn.Linear(2, 2)) == 1


def wide_layer():
    """A generator's layer of 128 channels whose first output responds to the signs of its kernel in every place."""
    torch.manual_seed(0)
    network = Generator(GeneratorConfig.config_t(32, 16, 4096, 128))
    name = next(n for n in reversed(network.synthesis.layer_names) if getattr(network.synthesis, n).spec.kernel == 3)
    layer = getattr(network.synthesis, name)
    with torch.no_grad():
        layer.affine.weight.zero_()
        layer.weight.copy_(layer.weight[..., :1, :1].expand_as(layer.weight))
    x = layer.weight[:1, :, :1, :1].detach().sign().expand(1, -1, *layer.spec.in_size)
    return network, layer, x


@pytest.mark.parametrize("size", [15, 120])
def test_a_large_map_in_float16_is_that_in_float32(monkeypatch, size):
    network, layer, x = wide_layer()
    w = torch.zeros(1, 512)
    with torch.no_grad():
        exact = layer(size * x, w)
        go_the_way_of_a_gpu(monkeypatch, network)
        found = layer(size * x, w)
        assert found.dtype == torch.float16
        torch.testing.assert_close(found.float(), exact, rtol=0, atol=2**-7 * exact.abs().max().item())
        set_scaled_kernels(network, False)  # as runs of recipe 1: filters turn infinity into nan
        assert layer(size * x, w).isfinite().all() == (size == 15)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_training_scales_kernels_in_short_formats(monkeypatch, dtype):
    generator, discriminator = networks("t")
    exact = one_pass(generator, discriminator)
    convolutions = go_the_way_of_a_gpu(monkeypatch, generator, dtype)
    found = one_pass(generator, discriminator)
    assert {scaled for _, scaled in convolutions} == {True}
    assert dtype in {kind for kind, _ in convolutions}
    for got, wanted, tolerance in zip(found, exact, [0.03, 0.2, 0.2, 0.2, 0.2], strict=True):
        assert got.isfinite().all()
        assert (got - wanted).norm() / wanted.norm() < tolerance
