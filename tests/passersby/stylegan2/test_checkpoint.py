"""StyleGAN2 networks in files: pickles of three repositories, our own files, plain state dicts; and refusals."""

import pytest
import torch

from passersby import stylegan2
from passersby.errors import InputError
from passersby.stylegan2.generator import reference_generator_config
from passersby.stylegan3 import Generator, GeneratorConfig
from passersby.stylegan3.checkpoint import load_config, load_network, save_network, save_state_dict
from passersby.stylegan3.config_limits import as_mapping, config_from_mapping, weight_count
from passersby.stylegan3.discriminator import DiscriminatorConfig, reference_discriminator_config
from passersby.stylegan3.state_dict import infer_discriminator_config, infer_stylegan2_config
from tests.helpers import reference_format
from tests.helpers.stylegan2_reference import discriminator, generator


def equal_states(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def check_equal(network, averaged, critic) -> None:
    assert type(network.generator) is stylegan2.Generator
    assert network.generator.config == averaged.config
    assert equal_states(network.generator, averaged)
    assert network.discriminator.config == critic.config
    assert equal_states(network.discriminator, critic)


@pytest.mark.parametrize("c_dim", [0, 3])
@pytest.mark.parametrize(
    ("style", "kind"),
    [
        ("stylegan3", "square"),
        ("stylegan2-ada-pytorch", "square"),
        ("StyleGAN-Human", "square"),
        ("StyleGAN-Human", "tall"),
    ],
)
def test_pickles_of_three_repositories_give_the_networks_that_went_in(tmp_path, style, kind, c_dim):
    averaged, critic = generator(kind, c_dim), discriminator(kind, c_dim)
    path = tmp_path / "network.pkl"
    path.write_bytes(reference_format.reference_bytes(averaged, averaged, critic, style=style))
    network = load_network(path)
    assert network.format == "pickle"
    check_equal(network, averaged, critic)
    assert equal_states(network.training_generator, averaged)
    assert load_config(path) == averaged.config


def test_a_pickle_with_frozen_layers_is_read(tmp_path):
    """Freeze-D of the reference keeps the weights of frozen layers as buffers."""
    averaged, critic = generator("square"), discriminator("square")
    for module in (critic.b32.fromrgb, critic.b32.conv0):
        for name in ("weight", "bias"):
            value = getattr(module, name).data
            delattr(module, name)
            module.register_buffer(name, value)
    path = tmp_path / "network.pkl"
    path.write_bytes(reference_format.reference_bytes(averaged, critic=critic, style="stylegan3"))
    assert equal_states(load_network(path).discriminator, discriminator("square"))


@pytest.mark.parametrize("kind", ["square", "tall"])
def test_our_files_keep_networks_and_configuration(tmp_path, kind):
    averaged, critic, training = generator(kind, 3), discriminator(kind, 3), generator(kind, 3)
    training.synthesis.b4.const.add_(1.0)
    path = tmp_path / "network.safetensors"
    save_network(path, averaged, discriminator=critic, training_generator=training, record={"trained_on": "x"})
    network = load_network(path)
    assert equal_states(network.training_generator, training)
    check_equal(network, averaged, critic)
    assert network.record == {"trained_on": "x"}
    assert load_config(path) == averaged.config


@pytest.mark.parametrize("kind", ["square", "tall"])
def test_plain_state_dicts_say_their_shape(tmp_path, kind):
    averaged = generator(kind)
    path = tmp_path / "network.pt"
    save_state_dict(path, averaged)
    network = load_network(path)
    assert equal_states(network.generator, averaged)
    images = [n.synthesis(n.mapping(torch.ones(1, 16))) for n in (network.generator, averaged)]
    assert torch.equal(*images)
    torch.save({"G_ema": averaged.state_dict(), "D": discriminator(kind).state_dict()}, path)
    check_sizes = load_network(path)
    assert equal_states(check_sizes.discriminator, discriminator(kind))
    assert check_sizes.discriminator.config.last_size == ((4, 4) if kind == "square" else (4, 2))


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (64, 16)])
@pytest.mark.parametrize("channels", [(128, 6), (200, 512), (999, 17)])
def test_configurations_follow_from_state_dicts(size, channels):
    config = stylegan2.GeneratorConfig(*size, z_dim=8, w_dim=8, channel_base=channels[0], channel_max=channels[1])
    inferred = infer_stylegan2_config(stylegan2.Generator(config).state_dict())
    assert (inferred.height, inferred.width, inferred.mapping_layers) == (*size, 8)
    assert [inferred.channels(h) for h in config.heights] == [config.channels(h) for h in config.heights]


def test_weights_are_counted_closely():
    for kind in ("square", "tall"):
        for network in (generator(kind, 3), discriminator(kind, 3)):
            total = sum(value.numel() for value in network.state_dict().values())
            assert 0.3 * total < weight_count(network.config) <= total


# ---- StyleGAN3's files stay as they are.


def test_configurations_of_stylegan3_are_stored_as_before():
    config = GeneratorConfig.config_t(64, 32)
    assert "architecture" not in as_mapping(config)
    critic = DiscriminatorConfig(64, 32)
    assert "last_height" not in as_mapping(critic)
    assert config_from_mapping(DiscriminatorConfig, as_mapping(critic)) == critic
    tall = DiscriminatorConfig(64, 32, last_height=4)
    assert config_from_mapping(DiscriminatorConfig, as_mapping(tall)) == tall


def test_a_discriminator_of_stylegan3_is_inferred_as_before():
    from passersby.stylegan3 import Discriminator

    config = DiscriminatorConfig(64, 32, channel_base=256, channel_max=8)
    inferred = infer_discriminator_config(Discriminator(config).state_dict())
    assert inferred.last_height is None
    assert inferred.heights == config.heights


# ---- What is refused, in one line that names it.


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"synthesis_kwargs": {"architecture": "resnet"}}, "architecture is resnet"),
        ({"synthesis_kwargs": {"resample_filter": [1, 2, 1]}}, "resample_filter"),
        ({"synthesis_kwargs": {"use_noise": False}}, "use_noise"),
        ({"mapping_kwargs": {"lr_multiplier": 1}}, "lr_multiplier"),
        ({"surprise": 1}, "surprise"),
        ({"img_resolution": 24}, "24"),
        ({"img_resolution": 64}, "tensor"),
        ({"square": False}, "tensor"),
    ],
)
def test_other_generators_are_refused(tmp_path, keywords, message):
    path = tmp_path / "network.pkl"
    path.write_bytes(reference_format.reference_bytes(generator("square"), keywords=keywords))
    with pytest.raises(InputError, match=message) as error:
        load_network(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_defaults_are_those_of_the_repository_that_wrote_the_file():
    plain = reference_generator_config(img_resolution=32)
    assert (plain.conv_clamp, plain.num_fp16_res, plain.mapping_layers) == (256.0, 4, 8)
    older = reference_generator_config(img_resolution=32, synthesis_kwargs={"channel_base": 16384})
    assert (older.conv_clamp, older.num_fp16_res, older.channel_base) == (None, 0, 16384)


def test_a_discriminator_of_another_architecture_is_refused():
    for keywords in (
        {"architecture": "orig"},
        {"block_kwargs": {"resample_filter": [1, 1]}},
        {"epilogue_kwargs": {"x": 1}},
    ):
        with pytest.raises(InputError):
            reference_discriminator_config(img_resolution=32, c_dim=0, img_channels=3, **keywords)
    converted = {"mapping_kwargs": {"num_layers": 0}, "epilogue_kwargs": {"mbstd_group_size": None}}
    assert reference_discriminator_config(img_resolution=32, c_dim=0, **converted).mapping_layers == 8


@pytest.mark.parametrize("change", [{"last_height": 3}, {"last_height": 64}, {"last_height": 2}])
def test_impossible_epilogues_are_refused(change):
    with pytest.raises(InputError, match="last_height"):
        DiscriminatorConfig(64, 32, **change)


def test_a_state_dict_without_a_generator_is_named(tmp_path):
    path = tmp_path / "network.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="no StyleGAN2 generator"):
        load_network(path)


def test_a_large_configuration_in_a_small_file_is_refused(tmp_path):
    import json

    import safetensors.torch

    path, network = tmp_path / "network.safetensors", generator("square")
    save_network(path, network, record={})
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["passersby"])
    metadata["generator"] |= {"channel_base": 2**21, "channel_max": 8192}
    tensors = {f"G_ema.{name}": value for name, value in network.state_dict().items()}
    path.write_bytes(safetensors.torch.save(tensors, {"passersby": json.dumps(metadata)}))
    with pytest.raises(InputError, match="bytes of weights"):
        load_network(path)


def test_stylegan3_files_still_give_stylegan3(tiny, tmp_path):
    path = tmp_path / "network.pkl"
    path.write_bytes(tiny.reference_file())
    assert type(load_network(path).generator) is Generator
