"""Transfer between networks that differ in one respect at a time: what arrives, what it does, what is reported."""

import json

import pytest
import torch

from passersby.errors import InputError
from passersby.stylegan3 import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig, load_network
from passersby.stylegan3.checkpoint import save_network
from passersby.stylegan3.schedule import LayerSpec
from passersby.stylegan3.transfer import freeze_discriminator_layers, transfer
from passersby.stylegan3.transfer.discriminator import dead_leaves
from passersby.stylegan3.transfer.generator import fit_kernel
from passersby.stylegan3.transfer.report import learned_tensors

ROUNDING = 1e-5  # float32, another order of summation, values of about 1
R = {"conv_kernel": 1, "use_radial_filters": True}
WIDE = {"channel_base": 10**6}  # every layer has channel_max channels


def taken_share(report):
    return sum(row.sourced for row in report.rows) / report.parameters


def generator(seed=0, height=32, width=32, **options) -> Generator:
    """A small generator with everything moved that starts at 0 or 1."""
    torch.manual_seed(seed)
    options = {"z_dim": 16, "w_dim": 16, "channel_base": 256, "channel_max": 12} | options
    network = Generator(GeneratorConfig(height, width, **options)).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    network.mapping.w_avg.normal_(std=0.3)
    for name, buffer in network.named_buffers():
        if name.endswith("magnitude_ema"):
            buffer.uniform_(0.8, 1.2)
    return network


def discriminator(seed=1, height=32, width=32, **options) -> Discriminator:
    torch.manual_seed(seed)
    options = {"channel_base": 256, "channel_max": 12} | options
    network = Discriminator(DiscriminatorConfig(height, width, **options)).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return network


def pair(make, source: dict, target: dict):
    old, new = make(**source), make(seed=99, **target)
    return old, new, transfer(old, new)


def codes(network: Generator, count=3) -> torch.Tensor:
    return torch.randn(count, network.z_dim, generator=torch.Generator().manual_seed(5))


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


GENERATORS = {
    "smaller": ({}, {"height": 16, "width": 16}),
    "larger": ({}, {"height": 64, "width": 64}),
    "tall": ({}, {"width": 16}),
    "square": ({"width": 16}, {}),
    "T to R": ({}, R),
    "R to T": (R, {}),
    "narrower": ({}, {"channel_base": 128, "channel_max": 6}),
    "wider": ({}, {"channel_base": 512, "channel_max": 20}),
    "labels come": ({}, {"c_dim": 3}),
    "labels go": ({"c_dim": 3}, {}),
    "other labels": ({"c_dim": 3}, {"c_dim": 5}),
    "deeper mapping": ({}, {"mapping_layers": 4}),
    "shallower mapping": ({"mapping_layers": 4}, {}),
    "more layers": ({"num_layers": 10}, {"num_layers": 13}),
    "fewer layers": ({}, {"num_layers": 10}),
    "all at once": ({"c_dim": 2}, {"height": 64, "channel_base": 512, "channel_max": 9, "c_dim": 3, **R}),
}
DISCRIMINATORS = {
    "smaller": ({}, {"height": 16, "width": 16}),
    "larger": ({}, {"height": 128, "width": 128}),
    "tall": ({}, {"width": 16}),
    "square": ({"width": 16}, {}),
    "larger and tall": ({}, {"height": 64}),
    "narrower": ({}, {"channel_base": 128, "channel_max": 6}),
    "wider": ({}, {"channel_base": 512, "channel_max": 20}),
    "labels come": ({}, {"c_dim": 3}),
    "labels go": ({"c_dim": 3}, {}),
    "other labels": ({"c_dim": 3}, {"c_dim": 5}),
    "labels and narrower": ({"c_dim": 3}, {"c_dim": 3, "channel_max": 6}),
    "no minibatch deviation": ({}, {"mbstd_num_channels": 0}),
}
CASES = [(generator, *case) for case in GENERATORS.values()] + [(discriminator, *c) for c in DISCRIMINATORS.values()]
NAMES = [f"G {name}" for name in GENERATORS] + [f"D {name}" for name in DISCRIMINATORS]


@pytest.mark.parametrize(("make", "source", "target"), CASES, ids=NAMES)
def test_every_parameter_is_reported_once_and_counts_sum_up(make, source, target):
    before = {k: v.clone() for k, v in make(seed=99, **target).state_dict().items()}
    old, new = make(**source), make(seed=99, **target)
    random = torch.random.get_rng_state()
    report = transfer(old, new)
    assert torch.equal(torch.random.get_rng_state(), random)
    names = [row.name for row in report.rows]
    assert len(names) == len(set(names))
    assert set(dict(new.named_parameters())) <= set(names)
    assert names == list(learned_tensors(new))
    tensors = new.state_dict()
    assert all(row.parameters == tensors[row.name].numel() for row in report.rows)
    assert all(0 <= row.sourced <= row.parameters for row in report.rows)
    for row in report.rows:
        if row.state == "taken":
            assert row.sourced == row.parameters
        if row.how == "" and row.state == "new":
            assert torch.equal(tensors[row.name], before[row.name])
    record = json.loads(json.dumps(report.as_record()))
    assert record["taken"] + record["adapted"] + record["new"] == record["parameters"]
    assert record["taken"] + record["adapted"] == sum(row.sourced for row in report.rows)
    assert f"{record['parameters']:,}" in report.lines()[-1]
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


@pytest.mark.parametrize(("make", "source", "target"), CASES, ids=NAMES)
def test_filters_are_those_of_the_targets_schedule(make, source, target):
    _, new, _ = pair(make, source, target)
    constants = make(seed=3, **target).state_dict()
    for name, tensor in new.state_dict().items():
        if name.endswith(("_filter", "transform")):
            assert torch.equal(tensor, constants[name]), name


@pytest.mark.parametrize("options", [{}, {"width": 16, "c_dim": 2}, R])
def test_equal_configurations_are_taken_bit_for_bit(options):
    old, new, report = pair(generator, options, options)
    assert taken_share(report) == 1
    assert {row.state for row in report.rows} == {"taken"}
    z, c = codes(old), torch.eye(2)[[0, 1, 0]] if old.c_dim else None
    assert torch.equal(old(z, c), new(z, c))


def test_equal_discriminators_are_taken_bit_for_bit():
    old, new, report = pair(discriminator, {"c_dim": 2}, {"c_dim": 2})
    assert {row.state for row in report.rows} == {"taken"}
    images, labels = dead_leaves(32, 32, 4), torch.eye(2)[[0, 1, 1, 0]]
    assert torch.equal(old(images, labels), new(images, labels))


def test_another_margin_takes_everything():
    _, _, report = pair(generator, {}, {"margin_size": 4})
    assert {row.state for row in report.rows} == {"taken"}


def test_a_tall_generators_image_is_the_middle_of_the_square_ones():
    old, new, report = pair(generator, {"height": 64, "width": 64, **R}, {"height": 64, "width": 32, **R})
    assert {row.state for row in report.rows} == {"taken"}
    whole, part = old(codes(old)), new(codes(old))
    difference = whole[..., 16:48] - part
    # The margin of 10 samples keeps what lies beyond it (zeros instead of picture) out, all but a little at the edges:
    # 5e-5 of the contrast here, where high frequencies are weak; 6e-3 for a trained network.
    assert difference.square().mean().sqrt() < 1e-3 * whole.std()
    assert difference[..., 8:24].square().mean().sqrt() < 1e-4 * whole.std()


@pytest.mark.parametrize("height", [16, 64])
def test_config_r_gives_the_same_images_at_another_resolution(height):
    old, new, _ = pair(generator, {**R, **WIDE}, {"height": height, "width": height, **R, **WIDE})
    size = min(height, 32)
    images = [torch.nn.functional.interpolate(network(codes(old)), size, mode="area") for network in (old, new)]
    # 1x1 convolutions work on points: only what the filters let through differs (0.997 and 3% are seen). A new network
    # correlates by 0.1 and less.
    assert correlation(*images) > 0.99
    assert float(images[1].std()) == pytest.approx(float(images[0].std()), rel=0.1)


@pytest.mark.parametrize("height", [16, 64])
def test_config_t_gives_images_like_the_sources_at_another_resolution(height):
    old, new, _ = pair(generator, WIDE, {"height": height, "width": height, **WIDE})
    size = min(height, 32)
    images = [torch.nn.functional.interpolate(network(codes(old)), size, mode="area") for network in (old, new)]
    # Three samples of another rate cannot do all that the old three did; 0.97 and 5% are seen.
    assert correlation(*images) > 0.95
    assert float(images[1].std()) == pytest.approx(float(images[0].std()), rel=0.15)


def test_kernels_for_another_rate_respond_like_the_old_ones_to_low_frequencies():
    fine, coarse = GeneratorConfig.config_t(64, 64).layers()[9], GeneratorConfig.config_t(32, 32).layers()[9]
    assert (fine.in_rate, coarse.in_rate) == (64, 32)
    weight = torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    fitted, _ = fit_kernel(weight, fine, coarse)

    def response(kernel: torch.Tensor, spec: LayerSpec, frequency: float) -> torch.Tensor:
        waves = torch.exp(2j * torch.pi * frequency / spec.in_rate * torch.arange(-1, 2))
        return torch.einsum("ocyx,y,x->oc", kernel.to(waves.dtype), waves, waves)

    for frequency in (0.5, 2.0):  # cycles per height; the layer's band ends at 10
        wanted = response(weight, fine, frequency)
        # The small term that keeps taps moderate costs a few percent.
        assert (response(fitted, coarse, frequency) - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_one_by_one_kernels_become_the_centre_of_three_by_three():
    old, new, report = pair(generator, R, {})
    assert any("centre of 3x3" in row.how for row in report.rows)
    for old_name, new_name in zip(old.synthesis.layer_names, new.synthesis.layer_names, strict=True):
        weights = [getattr(network.synthesis, name).weight for network, name in ((old, old_name), (new, new_name))]
        assert torch.equal(weights[1].sum((2, 3)), weights[0].sum((2, 3)))
    assert correlation(old(codes(old)), new(codes(old))) > 0.999  # radial and separable filters differ a little


def test_three_by_three_kernels_become_their_sums():
    old, new, report = pair(generator, {}, R)
    first = old.synthesis.layer_names[0]
    assert torch.equal(getattr(new.synthesis, first).weight, getattr(old.synthesis, first).weight.sum((2, 3), True))
    assert taken_share(report) == 1


def test_channels_are_kept_consistently_through_the_generator():
    # Channels that nothing reads can go without a trace, wherever they are: every layer must leave out the same ones
    # as its neighbours.
    narrow = {"channel_base": 10**6, "channel_max": 6}
    old = generator(**WIDE)
    random = torch.Generator().manual_seed(2)
    old.synthesis.input.weight[:, torch.randperm(12, generator=random)[:6]] = 0
    for name in old.synthesis.layer_names:
        getattr(old.synthesis, name).weight[:, torch.randperm(12, generator=random)[:6]] = 0
    new = generator(seed=99, **narrow)
    transfer(old, new)
    torch.testing.assert_close(new(codes(old)), old(codes(old)), atol=ROUNDING, rtol=ROUNDING)


def test_channels_are_kept_consistently_through_the_discriminator():
    old, random = discriminator(**WIDE, mbstd_num_channels=1), torch.Generator().manual_seed(2)
    for height in old.heights[:-1]:
        block, dead = getattr(old, f"b{height}"), torch.randperm(12, generator=random)
        block.conv0.weight[:, dead[:6]] = 0
        block.skip.weight[:, dead[:6]] = 0
        block.conv1.weight[:, dead[3:9]] = 0
    epilogue, dead = old.b4, torch.randperm(12, generator=random)
    epilogue.conv.weight[:, dead[:6]] = 0
    epilogue.conv.weight[:, 12] = 0  # the deviation is a mean over all channels, so it cannot stay
    epilogue.fc.weight.view(12, 12, 16)[:, dead[2:8]] = 0
    epilogue.out.weight[:, dead[4:10]] = 0
    new = discriminator(seed=99, channel_base=10**6, channel_max=6)
    transfer(old, new)
    images = dead_leaves(32, 32, 4)
    torch.testing.assert_close(new(images), old(images), atol=ROUNDING, rtol=ROUNDING)


def test_a_wider_generator_starts_with_the_same_images():
    old, new, report = pair(generator, {}, {"channel_base": 512, "channel_max": 20})
    torch.testing.assert_close(new(codes(old)), old(codes(old)), atol=ROUNDING, rtol=ROUNDING)
    assert 0.2 < taken_share(report) < 0.9  # of wider layers only the old part counts
    new.requires_grad_(True)
    new(codes(old)).square().sum().backward()
    last = getattr(new.synthesis, new.synthesis.layer_names[-1]).weight
    assert (last.grad[:, -1] != 0).all()  # the new channels can be learned


def test_labels_come_without_changing_the_images_and_go_on_average():
    old, new, _ = pair(generator, {}, {"c_dim": 3})
    for label in torch.eye(3):
        torch.testing.assert_close(new(codes(old), label.expand(3, -1)), old(codes(old)), atol=ROUNDING, rtol=ROUNDING)
    old, new, _ = pair(generator, {"c_dim": 1}, {})
    torch.testing.assert_close(new(codes(old)), old(codes(old), torch.ones(3, 1)), atol=ROUNDING, rtol=ROUNDING)


def test_labels_of_a_discriminator_go_on_average():
    old, new, _ = pair(discriminator, {"c_dim": 2}, {})
    images = dead_leaves(32, 32, 4)
    scores = [old(images, label.expand(4, -1)) for label in torch.eye(2)]
    torch.testing.assert_close(new(images), (scores[0] + scores[1]) / 2, atol=ROUNDING, rtol=ROUNDING)


def test_a_deeper_mapping_gives_nearly_the_same_codes():
    old, new, _ = pair(generator, {}, {"mapping_layers": 5})
    # Each layer that passes on lets the negative part of a leaky ReLU fade: 4% of the variance in all.
    assert correlation(new.mapping(codes(old))[:, 0], old.mapping(codes(old))[:, 0]) > 0.93


def test_more_layers_pass_on_what_they_get():
    old, new, report = pair(generator, {"num_layers": 10, **R}, {"num_layers": 13, **R})
    ws = old.mapping(codes(old))[:, :1]
    images = [network.synthesis(ws.repeat(1, network.num_ws, 1)) for network in (old, new)]
    assert correlation(*images) > 0.9  # what is negative fades in them; new layers would leave nothing
    assert sum(row.how == "passes on what it gets" and row.name.endswith("bias") for row in report.rows) == 6


def test_a_larger_discriminator_scores_enlarged_images_like_the_source():
    old, new, report = pair(discriminator, {}, {"height": 64, "width": 64})
    images = torch.nn.functional.interpolate(dead_leaves(32, 32, 32), scale_factor=4, mode="bicubic")
    small, large = (torch.nn.functional.interpolate(images, size, mode="area") for size in (32, 64))
    assert correlation(new(large), old(small)) > 0.95  # a new first block leaves less than 0.2
    assert taken_share(report) > 0.7


def test_a_smaller_discriminators_first_layer_stands_for_the_blocks_above():
    old, new, report = pair(discriminator, {}, {"height": 16, "width": 16})
    assert taken_share(report) == 1
    assert {r.name for r in report.rows if r.state == "adapted"} == {"b16.fromrgb.weight", "b16.fromrgb.bias"}
    images = dead_leaves(32, 32, 16)
    features = old.b32(images)
    mine = new.b16.fromrgb(torch.nn.functional.avg_pool2d(images, 2))
    untouched = discriminator(seed=99, height=16, width=16).b16.fromrgb(torch.nn.functional.avg_pool2d(images, 2))
    # One layer cannot be two, but the share of the variance left open is that of a fit, not of another network.
    errors = [(f - features).square().mean() / features.var() for f in (mine, untouched)]
    assert errors[0] < 0.4
    assert errors[1] > 1


def test_images_improve_that_fit_for_what_they_show():
    old = discriminator()
    images = dead_leaves(32, 32, 8) * 0.1 + 0.6
    errors = []
    for given in (images, None):
        new = discriminator(seed=99, height=16, width=16)
        transfer(old, new, given)
        fitted = new.b16.fromrgb(torch.nn.functional.avg_pool2d(images, 2))
        errors.append(float((fitted - old.b32(images)).square().mean()))
    assert errors[0] < 0.8 * errors[1]


def test_a_tall_discriminator_takes_all_blocks_by_height_and_stretches_the_last_map():
    old, new, report = pair(discriminator, {}, {"width": 16})
    states = {row.name: row.state for row in report.rows}
    assert {state for name, state in states.items() if name.startswith(("b32", "b16"))} == {"taken"}
    assert states["b8.fc.weight"] == "adapted"
    assert taken_share(report) == 1
    x = torch.randn(2, 12, 4, 4, generator=torch.Generator().manual_seed(0))
    stretched = x.repeat_interleave(2, 2)
    torch.testing.assert_close(new.b8.fc(stretched.flatten(1)), old.b4.fc(x.flatten(1)), atol=1e-5, rtol=1e-5)


def test_a_network_comes_from_a_reference_file(tmp_path, tiny):
    averaged, training, critic = tiny.networks()
    path = tmp_path / "network.pkl"
    path.write_bytes(tiny.reference_bytes(averaged, training, critic))
    loaded = load_network(path)
    target = generator(height=32, width=16, z_dim=8, w_dim=12, **R)
    report = transfer(loaded.training_generator, target)
    assert taken_share(transfer(loaded.discriminator, discriminator(height=32, width=16).requires_grad_(True))) > 0.1
    assert taken_share(report) > 0.2
    save_network(tmp_path / "target.safetensors", target, record={"transfer": report.as_record()})
    again = load_network(tmp_path / "target.safetensors")
    assert again.record["transfer"]["parameters"] == report.parameters


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (generator(), discriminator(), "two generators"),
        (generator(z_dim=8), generator(), "z_dim 8"),
        (generator(w_dim=8), generator(), "w_dim 8"),
        (generator(img_channels=1), generator(), "img_channels 1"),
        (discriminator(img_channels=1), discriminator(), "1 image channels"),
        (discriminator(height=16, width=16), discriminator(height=128, width=8), "16 x 16"),
    ],
)
def test_what_cannot_be_transferred_is_refused_before_anything_is_written(source, target, words):
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(InputError, match=words) as error:
        transfer(source, target)
    assert "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_frozen_layers_are_counted_from_the_image():
    network = discriminator()
    assert freeze_discriminator_layers(network, 0) == []
    assert freeze_discriminator_layers(network, 3) == [
        f"b32.{layer}.{part}" for layer in ("fromrgb", "conv0", "conv1") for part in ("weight", "bias")
    ]
    five = freeze_discriminator_layers(network, 5)
    assert five[6:] == ["b32.skip.weight", "b16.conv0.weight", "b16.conv0.bias"]
    every = freeze_discriminator_layers(network, 10)
    assert {name.split(".")[0] for name in every} == {"b32", "b16", "b8"}
    for count in (-1, 11):
        with pytest.raises(InputError, match="has 10"):
            freeze_discriminator_layers(network, count)
