"""The generator against the reference implementation's arrays, and what tall images and shared layers promise."""

import pytest
import torch

from passersby.errors import InputError
from passersby.stylegan3 import Generator, GeneratorConfig, generator, to_uint8
from passersby.stylegan3.generator import reference_generator_config, set_kernel

IMAGE_TOLERANCE = 1e-5  # float32, another order of summation; 2e-6 is what is seen


def small(config_name, height, width, **others):
    torch.manual_seed(0)
    config = getattr(GeneratorConfig, f"config_{config_name}")(height, width, 512, 16, **others)
    network = Generator(config).eval().requires_grad_(False)
    for parameter in network.parameters():  # biases and the input's transform start at 0 and 1: move them
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return network


def close(a, b, atol=IMAGE_TOLERANCE):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def test_layer_constants_are_the_references(oracle):
    network = oracle.generator()
    for ours, theirs in zip(network.config.layers(), oracle.config["layers"], strict=True):
        assert ours.name == theirs["name"]
        assert [*ours.padding[1], *ours.padding[0]] == theirs["padding"]
        assert (list(ours.in_size), list(ours.out_size)) == (theirs["in_size"], theirs["out_size"])
        assert (ours.up, ours.down, ours.rate) == (
            theirs["up_factor"],
            theirs["down_factor"],
            theirs["tmp_sampling_rate"],
        )
        assert ours.in_half_width == pytest.approx(theirs["in_half_width"], rel=1e-12)


def test_filters_are_the_references(oracle):
    designed = Generator(reference_generator_config(**oracle.config["G_init_kwargs"])).state_dict()
    for name, tensor in oracle.state("G_ema").items():
        if name.endswith("_filter"):
            close(designed[name], tensor, atol=1e-8)


def test_mapping_and_truncation_equal_the_reference(oracle):
    network, z = oracle.generator(), oracle.tensor("z")
    close(network.mapping(z), oracle.tensor("ws_psi1"))
    close(network.mapping(z, truncation_psi=0.7), oracle.tensor("ws_psi0.7"))
    close(network.mapping(z, truncation_psi=0.7, truncation_cutoff=8), oracle.tensor("ws_psi0.7_cut8"))


@pytest.mark.parametrize("kernel", ["plain", "matmul"])
def test_every_layer_equals_the_reference(oracle, kernel):
    network, seen = oracle.generator(), {}
    set_kernel(network, kernel)
    for name in ("input", *network.synthesis.layer_names):
        layer = getattr(network.synthesis, name)
        layer.register_forward_hook(lambda _module, _inputs, out, name=name: seen.update({name: out}))
    network.synthesis(oracle.tensor("ws_psi0.7")[:1])
    assert list(seen) == oracle.arrays["act_names"].tolist()
    for name, activation in seen.items():
        assert list(activation.shape) == oracle.arrays[f"act_{name}_shape"].tolist()
        step = max(activation.shape[1] // 8, 1)
        close(activation[:, ::step, ::4, ::4], oracle.tensor(f"act_{name}_sub"), atol=2e-5)
        mean, std, largest = oracle.arrays[f"act_{name}_stat"]
        found = activation.mean(), activation.std(), activation.abs().max()
        assert [float(v) for v in found] == pytest.approx([mean, std, largest], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("kernel", ["plain", "matmul"])
@pytest.mark.parametrize("psi", ["psi1", "psi0.7"])
def test_images_equal_the_reference(oracle, psi, kernel):
    network = oracle.generator()
    set_kernel(network, kernel)
    images = network.synthesis(oracle.tensor(f"ws_{psi}"))
    close(images, oracle.tensor(f"img_{psi}"))
    difference = to_uint8(images).int() - oracle.tensor(f"u8_{psi}").int()
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 1e-3  # values that lie on a step within 1e-5


@pytest.mark.slow
def test_an_image_does_not_depend_on_its_batch(oracle):
    network, ws = oracle.generator(), oracle.tensor("ws_psi0.7")
    alone = torch.cat([network.synthesis(w[None]) for w in ws])
    close(alone, oracle.tensor("img_psi0.7_b1"))
    close(alone, network.synthesis(ws), atol=2e-6)


@pytest.mark.parametrize(("name", "first", "last"), [("5_11", 5, 11), ("12_15", 12, 15), ("0_5", 0, 5), ("0_4", 0, 4)])
def test_style_mixes_equal_the_reference(oracle, name, first, last):
    network, ws = oracle.generator(), oracle.tensor("ws_psi0.7")
    mixed = ws[:1].clone()
    mixed[:, first : last + 1] = ws[1:2, first : last + 1]
    close(network.synthesis(mixed), oracle.tensor(f"mix_A0_B1_ws{name}"))
    # The same image again, made beside its base with the layers before `first` shared.
    close(network.synthesis(torch.cat([ws[:1], mixed]), shared=first)[1:], oracle.tensor(f"mix_A0_B1_ws{name}"))


def test_user_transform_equals_the_reference(oracle):
    network = oracle.generator()
    network.synthesis.input.transform.copy_(oracle.tensor("transform_inv"))
    close(network.synthesis(oracle.tensor("ws_psi0.7")[:1]), oracle.tensor("img_psi0.7_tr"))


@pytest.mark.parametrize("config_name", ["t", "r"])
@pytest.mark.parametrize("shared", [0, 1, 5, 12, 16])
def test_shared_layers_equal_the_plain_way(config_name, shared):
    network = small(config_name, 32, 16)
    ws = network.mapping(torch.randn(3, 512, generator=torch.Generator().manual_seed(1)))
    ws[:, :shared] = ws[:1, :shared]
    close(network.synthesis(ws, shared=shared), network.synthesis(ws))


def test_sizes_of_tall_networks():
    square, tall = GeneratorConfig.config_t(128, 128), GeneratorConfig.config_t(128, 64)
    for a, b in zip(square.layers(), tall.layers(), strict=True):
        assert (a.name, a.in_channels, a.rate, a.in_cutoff) == (b.name, b.in_channels, b.rate, b.in_cutoff)
        assert a.out_size[0] == b.out_size[0]
        margin = 0 if b.out_size == (128, 64) else 20
        assert b.out_size[1] - margin == (a.out_size[1] - margin) // 2
    assert [s.out_size[0] for s in GeneratorConfig.config_r(256, 256).layers()] == (
        [36] * 3 + [52] * 2 + [84] * 2 + [148] * 3 + [276] * 3 + [256] * 2
    )


@pytest.mark.parametrize("config_name", ["t", "r"])
def test_a_tall_network_sees_the_middle_of_the_square_one(config_name):
    """Same weights, half the width: its columns are the square one's middle, but for what reaches in from the sides."""
    square, tall = small(config_name, 64, 64), small(config_name, 64, 32)
    tall.load_state_dict(square.state_dict(), strict=True)
    z = torch.randn(2, 512, generator=torch.Generator().manual_seed(2))
    wide, narrow = square(z), tall(z)
    assert narrow.shape == (2, 3, 64, 32)
    difference = (wide[..., 28:36] - narrow[..., 12:20]).abs().mean()
    assert difference < 0.1 * wide.std()


def test_conditional_networks_need_a_label():
    network = small("t", 32, 16, c_dim=4)
    z, labels = torch.randn(4, 512), torch.eye(4)
    assert network(z, labels).shape == (4, 3, 32, 16)
    assert (network(z[:1].repeat(4, 1), labels).std(0) > 0).any()
    with pytest.raises(InputError, match="conditional"):
        network(z)


def test_update_emas_moves_the_averages_only():
    network = small("t", 32, 16)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network(torch.randn(4, 512), update_emas=True)
    moved = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {k for k in before if k.endswith("magnitude_ema") or k == "mapping.w_avg"}


@pytest.mark.parametrize("size", [(100, 50), (64, 128), (8, 8), (64, 2)])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(InputError, match=str(size[0])):
        GeneratorConfig.config_t(*size)


def test_foreign_keywords_are_refused():
    with pytest.raises(InputError, match="fused_modconv_default"):
        Generator(reference_generator_config(img_resolution=64, fused_modconv_default="inference_only"))


@pytest.mark.gpu
@pytest.mark.parametrize("config_name", ["t", "r"])
def test_float16_on_cuda_stays_near_float32(config_name):
    network = small(config_name, 128, 64)
    ws = network.mapping(torch.randn(4, 512))
    expected = network.synthesis(ws)
    found = network.cuda().synthesis(ws.cuda()).cpu()
    assert torch.isfinite(found).all()
    close(found, expected, atol=0.05)  # 10 bits of mantissa through 14 layers; 1/40 of the range


@pytest.mark.parametrize("config_name", ["t", "r"])
def test_channels_of_zeros_change_nothing(config_name, monkeypatch):
    torch.manual_seed(0)
    # Channels of 11, 9, 7 ... are no multiples of 8, and the input's are none either.
    network = Generator(getattr(GeneratorConfig, f"config_{config_name}")(32, 16, 150, 11))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    ws = network.mapping(torch.randn(2, 512))

    def results():
        network.zero_grad()
        buffers = {name: value.clone() for name, value in network.named_buffers()}
        images = network.synthesis(ws.detach(), update_emas=True)
        images.square().sum().backward()
        averages = {name: value.clone() for name, value in network.named_buffers() if name.endswith("_ema")}
        network.load_state_dict(buffers, strict=False)
        return images.detach(), {n: p.grad.clone() for n, p in network.synthesis.named_parameters()}, averages

    plain, channels = results(), []
    monkeypatch.setattr(generator, "channel_multiple", lambda _: 8)
    for name in network.synthesis.layer_names[:-1]:
        getattr(network.synthesis, name).register_forward_hook(lambda _, __, out: channels.append(out.shape[1]))
    padded = results()
    assert {count % 8 for count in channels} == {0}
    close(padded[0], plain[0])
    for one, two in zip(padded[1:], plain[1:], strict=True):
        for name, value in two.items():
            torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-5, msg=name)
    generator.set_padded_channels(network, False)
    channels.clear()
    torch.testing.assert_close(results()[0], plain[0], rtol=0, atol=0)
    assert {count % 8 for count in channels} != {0}
