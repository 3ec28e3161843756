"""Transfer of StyleGAN2 generators, and of discriminators whose maps end in another shape."""

import pytest
import torch
import torch.nn.functional as F

from passersby.errors import InputError
from passersby.stylegan2 import Generator, GeneratorConfig
from passersby.stylegan3 import Discriminator, DiscriminatorConfig
from passersby.stylegan3 import Generator as StyleGan3
from passersby.stylegan3 import GeneratorConfig as StyleGan3Config
from passersby.stylegan3.ops.convolution import upsample2d
from passersby.stylegan3.transfer import freeze_discriminator_layers, transfer
from passersby.stylegan3.transfer.report import learned_tensors

ROUNDING = 1e-5  # float32, another order of summation


def generator(seed=0, height=32, width=16, **options) -> Generator:
    """A small generator with everything moved that starts at 0 or 1."""
    torch.manual_seed(seed)
    options = {"z_dim": 16, "w_dim": 16, "channel_base": 256, "channel_max": 12} | options
    network = Generator(GeneratorConfig(height, width, **options)).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    network.mapping.w_avg.normal_(std=0.3)
    return network


def discriminator(seed=1, height=32, width=16, **options) -> Discriminator:
    torch.manual_seed(seed)
    options = {"channel_base": 256, "channel_max": 12} | options
    network = Discriminator(DiscriminatorConfig(height, width, **options)).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return network


def codes(network: Generator, count=3) -> torch.Tensor:
    return torch.randn(count, network.z_dim, generator=torch.Generator().manual_seed(5))


def images(network: Generator) -> torch.Tensor:
    return network(codes(network), torch.eye(network.c_dim)[[0] * 3] if network.c_dim else None)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


CASES = {
    "smaller": ({}, {"height": 16, "width": 8}),
    "larger": ({}, {"height": 64, "width": 32}),
    "tall": ({"width": 32}, {}),
    "square": ({}, {"width": 32}),
    "narrower": ({}, {"channel_base": 128, "channel_max": 6}),
    "wider": ({}, {"channel_base": 512, "channel_max": 20}),
    "labels come": ({}, {"c_dim": 3}),
    "labels go": ({"c_dim": 3}, {}),
    "deeper mapping": ({"mapping_layers": 2}, {"mapping_layers": 8}),
    "all at once": ({"c_dim": 2}, {"height": 64, "width": 64, "channel_base": 512, "channel_max": 9, "c_dim": 3}),
}


def test_equal_configurations_give_equal_networks():
    old, new = generator(), generator(99)
    report = transfer(old, new)
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items())
    assert {row.state for row in report.rows} == {"taken"}


@pytest.mark.parametrize("case", CASES)
def test_every_learned_tensor_is_reported_and_images_are_finite(case):
    source, target = CASES[case]
    old, new = generator(**source), generator(99, **target)
    before = {name: value.clone() for name, value in old.state_dict().items()}
    report = transfer(old, new)
    assert [row.name for row in report.rows] == list(learned_tensors(new))
    assert images(new).isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in old.state_dict().items())
    assert report.lines()


def test_a_smaller_network_makes_the_larger_ones_image_at_its_size():
    old, new = generator(height=64, width=32), generator(99, height=16, width=8)
    transfer(old, new)
    ws = new.mapping(codes(new))
    # The larger network's image before its last blocks add to it.
    maps = {}
    for height in (4, 8, 16):
        block = getattr(old.synthesis, f"b{height}")
        block.torgb.register_forward_hook(lambda module, _, out, height=height: maps.update({height: out}))
    old.synthesis(old.mapping(codes(old)))
    expected = maps[4]
    for height in (8, 16):
        expected = upsample2d(expected, old.synthesis.b8.resample_filter) + maps[height]
    torch.testing.assert_close(new.synthesis(ws), expected, rtol=ROUNDING, atol=ROUNDING)


def test_a_larger_network_starts_with_the_smaller_ones_image_enlarged():
    old, new = generator(), generator(99, height=64, width=32)
    transfer(old, new)
    bias = new.synthesis.b64.torgb.bias
    bias.zero_()
    expected = upsample2d(images(old), old.synthesis.b8.resample_filter)
    torch.testing.assert_close(images(new), expected, rtol=ROUNDING, atol=ROUNDING)


def test_a_wider_network_makes_the_same_image():
    old, new = generator(), generator(99, channel_base=512, channel_max=20)
    transfer(old, new)
    torch.testing.assert_close(images(new), images(old), rtol=1e-4, atol=1e-4)


def test_a_narrower_network_keeps_the_channels_that_matter():
    old, new = generator(), generator(99, channel_base=256, channel_max=9)
    transfer(old, new)
    assert correlation(images(new), images(old)) > 0.6
    assert abs(correlation(images(generator(99)), images(old))) < 0.5


def test_a_tall_network_of_a_square_one_has_its_constant_input_narrowed():
    old, new = generator(width=32), generator(99)
    transfer(old, new)
    expected = F.interpolate(old.synthesis.b4.const[None], (4, 2), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(new.synthesis.b4.const, expected)


def test_stylegan2_and_stylegan3_do_not_fit_each_other():
    second = generator()
    third = StyleGan3(StyleGan3Config.config_t(32, 16, z_dim=16, w_dim=16, channel_base=64, channel_max=4))
    for pair in ((second, third), (third, second)):
        before = pair[1].state_dict()["mapping.fc0.weight"].clone()
        with pytest.raises(InputError, match="StyleGAN2.*StyleGAN3|StyleGAN3.*StyleGAN2"):
            transfer(*pair)
        assert torch.equal(pair[1].state_dict()["mapping.fc0.weight"], before)


@pytest.mark.parametrize("name", ["z_dim", "w_dim", "img_channels"])
def test_other_codes_are_refused(name):
    with pytest.raises(InputError, match=name):
        transfer(generator(), generator(99, **{name: 5}))


# ---- Discriminators whose maps end as 4 x 2 and as 8 x 4.

ENDS = {"to 4 x 2": (None, 4), "to 8 x 4": (4, None)}


@pytest.mark.parametrize("case", ENDS)
@pytest.mark.parametrize("channels", [12, 7])
def test_the_last_maps_of_a_discriminator_may_change_their_shape(case, channels):
    first, second = ENDS[case]
    old = discriminator(last_height=first)
    new = discriminator(99, last_height=second, channel_max=channels)
    fresh = discriminator(99, last_height=second, channel_max=channels)
    report = transfer(old, new)
    assert [row.name for row in report.rows] == list(learned_tensors(new))
    pictures = torch.randn(64, 3, 32, 16, generator=torch.Generator().manual_seed(3)).cumsum(2).cumsum(3).div(20)
    pictures = pictures - pictures.mean((2, 3), keepdim=True)
    gained = correlation(new(pictures), old(pictures))
    if channels == 12:  # with nearly half of the channels gone little is left in so small a network
        assert gained > correlation(fresh(pictures), old(pictures)) + 0.1


def test_equal_discriminators_of_the_tall_layout_are_taken_whole():
    old, new = discriminator(last_height=4), discriminator(99, last_height=4)
    assert {row.state for row in transfer(old, new).rows} == {"taken"}
    pictures = torch.randn(4, 3, 32, 16)
    assert torch.equal(old(pictures), new(pictures))


def test_freeze_d_counts_the_layers_of_the_tall_layout():
    network = discriminator(last_height=4)
    assert freeze_discriminator_layers(network, 1) == ["b32.fromrgb.weight", "b32.fromrgb.bias"]
    every = freeze_discriminator_layers(network, 10)
    assert not any(name.startswith("b4.") for name in every)
    with pytest.raises(InputError, match="10"):
        freeze_discriminator_layers(network, 11)
