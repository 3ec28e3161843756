"""The StyleGAN2 generator and its discriminator against the public code, square and tall."""

import numpy as np
import pytest
import torch

from passersby import stylegan2
from passersby.errors import InputError
from passersby.stylegan2 import Generator, GeneratorConfig
from passersby.stylegan3.mapping import set_precision
from tests.helpers.stylegan2_reference import REFERENCE, codes, discriminator, generator

KINDS = ("square", "tall")
# 1e-5 of values of about 1: float32, other orders of summation.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def reference():
    return np.load(REFERENCE)


def labels(c_dim: int) -> torch.Tensor | None:
    return torch.eye(3)[[0, 2, 1, 0]] if c_dim else None


def close(value: torch.Tensor, expected: np.ndarray, **tolerance) -> None:
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(value.detach().numpy() / scale, expected / scale, **(CLOSE | tolerance))


@pytest.mark.parametrize("c_dim", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_mapping_and_truncation_equal_the_reference(reference, kind, c_dim):
    network = generator(kind, c_dim)
    close(network.mapping(codes(4), labels(c_dim))[:, 0], reference[f"{kind}_{c_dim}_ws"])
    ws = network.mapping(codes(4), labels(c_dim), truncation_psi=0.7, truncation_cutoff=3)
    close(ws[:, 2:4], reference[f"{kind}_{c_dim}_ws_truncated"])


@pytest.mark.parametrize("c_dim", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_images_equal_the_reference(reference, kind, c_dim):
    network = generator(kind, c_dim)
    c = None if c_dim == 0 else labels(c_dim)[:2]
    images = network(codes(2), c, truncation_psi=0.7)
    assert images.dtype == torch.float32
    close(images, reference[f"{kind}_{c_dim}_images"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [0, 1, 2, 3])
def test_mixing_equals_the_reference_with_and_without_a_shared_trunk(reference, kind, shared):
    network = generator(kind)
    ws = network.mapping(codes(2))
    mixed = ws[:1].repeat(3, 1, 1)
    mixed[:, 3:7] = ws[1:, 3:7]
    images = network.synthesis(mixed, shared=shared)
    for image in images:
        close(image[None], reference[f"{kind}_0_mixed"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", range(9))
def test_a_shared_trunk_changes_no_image(kind, shared):
    network = generator(kind)
    ws = network.mapping(codes(3))
    ws[:, :shared] = ws[:1, :shared]
    alone = network.synthesis(ws)
    images = network.synthesis(ws, shared=shared)
    assert images.shape == alone.shape
    torch.testing.assert_close(images, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_the_reference(reference, kind):
    network = generator(kind).requires_grad_(True)
    ws = network.mapping(codes(2)).detach().requires_grad_(True)
    images = network.synthesis(ws)
    random = np.random.RandomState(7).standard_normal(tuple(images.shape))
    (images * torch.from_numpy(random.astype(np.float32))).sum().backward()
    close(ws.grad, reference[f"{kind}_0_grad_ws"])
    norms = dict(zip(reference[f"{kind}_0_grad_names"], reference[f"{kind}_0_grad_norms"], strict=True))
    gradients = {n: p.grad for n, p in network.synthesis.named_parameters() if p.grad is not None}
    assert gradients.keys() == norms.keys()
    for name, norm in norms.items():
        assert gradients[name].double().norm().item() == pytest.approx(norm, rel=1e-5), name


@pytest.mark.parametrize("c_dim", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_discriminator_equals_the_reference(reference, kind, c_dim):
    network, critic = generator(kind, c_dim), discriminator(kind, c_dim)
    if kind == "tall":
        assert critic.config.last_size == (4, 2)
    without_noise = lambda layer, size: torch.zeros(4, *size)  # noqa: E731
    images = network.synthesis(network.mapping(codes(4), labels(c_dim)), noise=without_noise).clamp(-1, 1)
    close(critic(images, labels(c_dim)), reference[f"{kind}_{c_dim}_logits"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_discriminators_gradient_equals_the_reference(reference, kind):
    images = generator(kind).synthesis(generator(kind).mapping(codes(2))).clamp(-1, 1)
    images = images.repeat(2, 1, 1, 1).requires_grad_(True)
    discriminator(kind)(images).sum().backward()
    close(images.grad[:1], reference[f"{kind}_0_D_grad"])


# ---- Shapes, noise, numbers of style inputs.


@pytest.mark.parametrize(("height", "num_ws"), [(16, 6), (32, 8), (64, 10), (128, 12), (256, 14), (1024, 18)])
def test_the_height_gives_the_number_of_style_inputs(height, num_ws):
    assert GeneratorConfig(height, height // 2).num_ws == num_ws


@pytest.mark.parametrize(("size", "const"), [((32, 32), (4, 4)), ((32, 16), (4, 2)), ((32, 8), (4, 1))])
def test_constant_and_noise_have_the_shape_of_the_image(size, const):
    network = Generator(GeneratorConfig(*size, z_dim=8, w_dim=8, channel_base=64, channel_max=4)).eval()
    state = network.state_dict()
    assert state["synthesis.b4.const"].shape == (4, *const)
    assert state["synthesis.b32.conv0.noise_const"].shape == size
    assert network(torch.randn(2, 8)).shape == (2, 3, *size)


@pytest.mark.parametrize("size", [(16, 2), (64, 8), (24, 12), (16, 32), (8, 8)])
def test_sizes_that_cannot_be_are_refused(size):
    with pytest.raises(InputError, match=str(size[1])):
        GeneratorConfig(*size)


def test_images_are_a_function_of_the_code_alone():
    network = generator("tall")
    with torch.no_grad():
        for parameter in (p for n, p in network.named_parameters() if n.endswith("noise_strength")):
            parameter.fill_(1.0)
    first = network.images([3, 4], truncation_psi=0.7)
    torch.manual_seed(99)
    network.train()
    assert np.array_equal(first, network.images([3, 4], truncation_psi=0.7))


def test_drawn_noise_changes_the_image_by_its_strength():
    network = generator("tall")
    ws = network.mapping(codes(1))
    draw = lambda layer, size: torch.full((1, *size), float(layer + 1))  # noqa: E731
    assert (network.synthesis(ws, noise=draw) - network.synthesis(ws)).abs().max() > 0.01
    for name, parameter in network.named_parameters():
        if name.endswith("noise_strength"):
            parameter.zero_()
    assert torch.equal(network.synthesis(ws, noise=draw), network.synthesis(ws))


def test_every_layer_has_its_own_draw():
    network, asked = generator("tall"), []
    network.synthesis(network.mapping(codes(1)), noise=lambda *what: asked.append(what) or torch.zeros(1, *what[1]))
    sizes = [(4, 2)] + [(h, h // 2) for h in (8, 8, 16, 16, 32, 32)]
    assert asked == list(enumerate(sizes))


def test_second_derivatives_are_right():
    """Of each layer, by finite differences in float64: the path lengths' penalty needs them."""
    network = generator("tall", conv_clamp=None, channel_base=32, channel_max=2).double().requires_grad_(True)
    torch.manual_seed(0)
    x = torch.randn(2, 2, 4, 2, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    for layer in (network.synthesis.b8.conv0, network.synthesis.b8.conv1, network.synthesis.b8.torgb):
        noise = [torch.randn(2, 1, *((8, 4) if layer.up else (4, 2))).double()] if hasattr(layer, "up") else []

        def output(x, w, weight, layer=layer, noise=noise):
            return torch.func.functional_call(layer, {"weight": weight}, (x, w, *noise))

        assert torch.autograd.gradgradcheck(output, (x, w, layer.weight), atol=1e-6)


def test_reduced_precision_gives_the_same_picture():
    network = generator("tall")
    exact = network.synthesis(network.mapping(codes(2)))
    set_precision(network, torch.bfloat16, on_cpu=True)
    reduced = network.synthesis(network.mapping(codes(2)))
    assert not torch.equal(reduced, exact)
    assert (reduced - exact).abs().max() < 0.05 * exact.abs().max()  # bfloat16 has 8 binary digits


def test_float16_holds_weights_and_styles_of_any_size():
    layer = generator("tall").synthesis.b8.conv1
    x, w, noise = torch.randn(1, 6, 8, 4), torch.randn(1, 12), torch.zeros(8, 4)
    with torch.no_grad():
        expected = layer(x, w, noise)
        layer.weight.mul_(1e4)
        layer.affine.weight.mul_(300)
        layer.affine.bias.mul_(300)
        assert (layer(x.half(), w, noise) - expected).abs().max() < 0.02 * expected.abs().max()


def test_the_names_of_the_package():
    assert stylegan2.Generator is Generator
    assert Generator(GeneratorConfig(16, 8, z_dim=8, channel_base=64, channel_max=4)).synthesis.kernel_names == [
        "b4.conv1.weight",
        *(f"b{height}.{part}.weight" for height in (8, 16) for part in ("conv0", "conv1")),
    ]
