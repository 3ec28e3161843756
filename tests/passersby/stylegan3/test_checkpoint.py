"""Network files: every kind that is read gives the same network; everything else is one clear line."""

import dataclasses
import hashlib
import io
import json
import os
import pickle
import zipfile

import pytest
import safetensors
import safetensors.torch
import torch

from passersby.checkpoints import file_kind
from passersby.errors import InputError
from passersby.stylegan3 import Generator, GeneratorConfig
from passersby.stylegan3.checkpoint import load_network, save_network, save_state_dict
from passersby.stylegan3.config_limits import weight_count
from passersby.stylegan3.generator import reference_generator_config
from passersby.stylegan3.state_dict import infer_generator_config


def equal_states(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two networks have the same tensors under the same names."""
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def refusal(path, *parts: str, **options) -> str:
    """The one-line message with which `path` is refused; it names the path and contains `parts`."""
    with pytest.raises(InputError) as error:
        load_network(path, **options)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    for part in parts:
        assert part in message
    return message


# ---- reference pickles


@pytest.mark.parametrize(
    "options", [{}, {"conv_kernel": 1, "use_radial_filters": True}, {"c_dim": 3}, {"height": 32, "width": 32}]
)
def test_reference_pickle_gives_the_networks_that_went_in(tiny, tmp_path, options):
    averaged, training = tiny.generator(0, **options), tiny.generator(1, **options)
    shape = {name: value for name, value in options.items() if name in ("c_dim", "height", "width")}
    critic = tiny.discriminator(**shape)
    path = tmp_path / "network.pkl"
    path.write_bytes(tiny.reference_bytes(averaged, training, critic))
    network = load_network(path)
    assert network.format == "pickle"
    assert equal_states(network.generator, averaged)
    assert equal_states(network.training_generator, training)
    assert equal_states(network.discriminator, critic)
    assert network.generator.config == averaged.config
    assert network.discriminator.config == critic.config
    assert not network.generator.training
    assert not any(parameter.requires_grad for parameter in network.generator.parameters())
    assert all(parameter.requires_grad for parameter in network.training_generator.parameters())
    assert network.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert network.record == {"trained_on": "unknown", "training_set": {"path": "people.zip", "resolution": 16}}


@pytest.mark.parametrize("protocol", range(6))
def test_reference_pickle_of_every_protocol(tiny, tmp_path, protocol):
    """Python 3.7 and older write protocol 3 by default, later ones 4 and 5; some people choose 0 to 2."""
    path = tmp_path / "network.pkl"
    path.write_bytes(tiny.reference_file(protocol))
    loaded = load_network(path)
    assert loaded.format == "pickle"
    networks = (loaded.generator, loaded.training_generator, loaded.discriminator)
    assert all(equal_states(a, b) for a, b in zip(networks, tiny.networks(), strict=True))
    assert loaded.record["training_set"] == {"path": "people.zip", "resolution": 16}


def test_reference_pickle_with_the_average_alone(tiny, tmp_path):
    path = tmp_path / "network.pkl"
    path.write_bytes(tiny.reference_bytes(tiny.generator()))
    network = load_network(path)
    assert network.training_generator is None
    assert network.discriminator is None


def test_loading_leaves_the_random_numbers_alone(tiny, tmp_path):
    path = tmp_path / "network.pkl"
    path.write_bytes(tiny.reference_file())
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load_network(path)
    assert torch.equal(torch.rand(3), wanted)


# ---- our own format


def test_safetensors_keeps_networks_configuration_and_record(tiny, tmp_path):
    path, record = tmp_path / "network.safetensors", {"trained_on": "toy crowd 1", "images": 1000}
    averaged = tiny.generator(height=32, width=16, c_dim=2, conv_clamp=None)
    critic = tiny.discriminator(height=32, width=16, c_dim=2)
    training = tiny.generator(3, height=32, width=16, c_dim=2, conv_clamp=None)
    save_network(path, averaged, discriminator=critic, training_generator=training, record=record)
    network = load_network(path)
    assert network.format == "safetensors"
    assert network.record == record
    assert network.generator.config == averaged.config
    assert network.discriminator.config == critic.config
    assert equal_states(network.generator, averaged)
    assert equal_states(network.training_generator, training)
    assert equal_states(network.discriminator, critic)


def test_half_stores_matrices_in_float16_and_the_rest_exactly(tiny, tmp_path):
    averaged = tiny.generator(channel_max=32, channel_base=1024)
    for half in (False, True):
        save_network(tmp_path / f"{half}.safetensors", averaged, record={}, half=half)
    sizes = [(tmp_path / f"{half}.safetensors").stat().st_size for half in (False, True)]
    assert sizes[1] < 0.65 * sizes[0]
    loaded = load_network(tmp_path / "True.safetensors").generator
    matrices = {name for name, parameter in averaged.named_parameters() if parameter.ndim > 1}
    for name, value in averaged.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == torch.float32
        if name in matrices:  # float16 has 11 significant bits; below 2^-14 its steps are 2^-24
            assert ((found - value).abs() <= value.abs() * 2**-11 + 2**-24).all()
        else:
            assert torch.equal(found, value)


def test_equal_networks_are_equal_files(tiny, tmp_path):
    for name in ("a", "b"):
        save_network(tmp_path / name, tiny.generator(), record={"b": 1, "a": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_writing_leaves_the_old_file_or_the_new_one(tiny, tmp_path):
    generator = tiny.generator()
    with pytest.raises(InputError, match="nowhere"):
        save_network(tmp_path / "nowhere" / "network.safetensors", generator, record={})
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder"):
        save_network(tmp_path / "folder", generator, record={})
    assert os.listdir(tmp_path) == ["folder"]


def _edited(metadata: dict, keys: str, value) -> dict:
    edited = json.loads(json.dumps(metadata))
    *way, last = keys.split(".")
    target = edited
    for key in way:
        target = target[key]
    if value is KeyError:
        del target[last]
    else:
        target[last] = value
    return edited


@pytest.mark.parametrize(
    ("keys", "value", "reason"),
    [
        ("format_version", 99, "version 99"),
        ("format_version", KeyError, "version None"),
        ("record", "text", "record"),
        ("generator", [1], "GeneratorConfig is a list"),
        ("generator.height", KeyError, "without ['height']"),
        ("generator.code", "import os", "unknown ['code']"),
        ("generator.height", 48, "48"),
        ("generator.height", "16", "height=a str"),
        ("generator.height", True, "wrong type"),
        ("generator.z_dim", 10**15, "z_dim=1000000000000000 is outside"),
        ("generator.z_dim", 10**400, "z_dim=1000"),
        ("generator.z_dim", 9, "mapping.fc0.weight has shape"),
        ("generator.num_layers", 10**6, "num_layers=1000000"),
        ("generator.num_critical", 14, "num_critical=14"),
        ("generator.use_radial_filters", 1, "wrong type"),
        ("generator.first_cutoff", float("nan"), "first_cutoff=nan"),
        ("generator.first_stopband", 0.01, "no such network"),
        ("generator.w_dim", 8192, "more than the whole file"),
        ("generator.filter_size", 32, "_filter has shape"),
        ("discriminator", {"height": 16}, "DiscriminatorConfig"),
    ],
)
def test_metadata_that_makes_no_sense(tiny, tmp_path, keys, value, reason):
    path = tmp_path / "network.safetensors"
    save_network(path, tiny.generator(), record={})
    with safetensors.safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["passersby"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    text = json.dumps(_edited(metadata, keys, value))
    safetensors.torch.save_file(tensors, path, {"passersby": text})
    message = refusal(path)
    assert any(part in message for part in reason.split("|"))


# ---- plain state dicts


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"conv_kernel": 1, "use_radial_filters": True},
        {"c_dim": 3, "mapping_layers": 4, "img_channels": 1},
        {"height": 64, "width": 64, "channel_base": 333, "channel_max": 17},
        {"height": 32, "width": 32, "channel_base": 4096, "channel_max": 9},
    ],
)
def test_state_dict_tells_its_configuration(tiny, tmp_path, options):
    generator = tiny.generator(**options)
    path = tmp_path / "network.pt"
    save_state_dict(path, generator)
    network = load_network(path)
    assert network.format == "state_dict"
    assert equal_states(network.generator, generator)
    z, c = torch.randn(2, 8), torch.eye(3)[:2] if "c_dim" in options else None
    assert torch.equal(network.generator(z, c), generator(z, c))
    # Several channel bases lead to the same channels: all else is found exactly.
    neutral = {"channel_base": 1, "channel_max": 1}
    found = dataclasses.replace(network.generator.config, **neutral)
    assert found == dataclasses.replace(generator.config, **neutral)


def test_state_dict_of_the_usual_channels_tells_them(tiny):
    for base, limit, size in ((32768, 512, 256), (65536, 1024, 128), (2048, 64, 64)):
        config = GeneratorConfig(size, size, channel_base=base, channel_max=limit)
        with torch.device("meta"):
            shapes = Generator(config).state_dict()
        assert infer_generator_config(shapes) == config


def test_state_dict_of_a_tall_network_needs_its_width(tiny, tmp_path):
    generator, path = tiny.generator(height=32, width=16), tmp_path / "tall.pt"
    save_state_dict(path, generator)
    assert load_network(path, width=16).generator.config == generator.config
    assert load_network(path).generator.config.width == 32
    refusal(path, "24", width=24)
    critic = tiny.discriminator(height=32, width=16)  # its last layer does tell
    torch.save({"G_ema": generator.state_dict(), "D": critic.state_dict()}, path)
    network = load_network(path)
    assert network.generator.config == generator.config
    assert network.discriminator.config == critic.config


def test_width_that_contradicts_the_file_is_refused(tiny, tmp_path):
    path = tmp_path / "network.safetensors"
    save_network(path, tiny.generator(), record={})
    refusal(path, "width 8", "16 x 16", width=8)


def test_state_dicts_come_nested_and_prefixed(tiny, tmp_path):
    averaged, training, critic = tiny.networks()
    path = tmp_path / "network.pt"
    nested = {"G_ema": averaged.state_dict(), "G": training.state_dict(), "D": critic.state_dict(), "step": 7}
    flat = {f"{name}.{key}": value for name in ("G_ema", "G", "D") for key, value in nested[name].items()}
    for state in (nested, flat, {"state": nested}):
        torch.save(state, path)
        network = load_network(path)
        assert equal_states(network.generator, averaged)
        assert equal_states(network.training_generator, training)
        assert equal_states(network.discriminator, critic)
    torch.save({f"module.{key}": value for key, value in averaged.state_dict().items()}, path)
    assert equal_states(load_network(path).generator, averaged)
    torch.save(averaged.state_dict(), path, _use_new_zipfile_serialization=False)
    assert equal_states(load_network(path).generator, averaged)
    torch.save({"one": averaged.state_dict(), "two": training.state_dict()}, path)
    refusal(path, "several networks", "one.", "two.")


def test_state_dict_of_the_reference_tells_its_configuration(shared_dir, tmp_path):
    import numpy as np

    folder = shared_dir / "oracles" / "stylegan3-r64"
    keywords = json.loads((folder / "config.json").read_text())["G_init_kwargs"]
    states = {
        name: {key: torch.from_numpy(value) for key, value in np.load(folder / f"state_{name}.npz").items()}
        for name in ("G_ema", "D")
    }
    torch.save(states, tmp_path / "network.pt")
    network = load_network(tmp_path / "network.pt")
    wanted = reference_generator_config(**keywords)
    # The decay of the averages leaves no trace in a state dict.
    assert dataclasses.replace(network.generator.config, magnitude_ema_beta=wanted.magnitude_ema_beta) == wanted
    assert network.discriminator.config.channel_base == 2048


def test_state_dicts_that_do_not_tell_are_refused(tiny, tmp_path):
    path = tmp_path / "network.pt"
    other_filters = tiny.generator(first_cutoff=2.5, channel_base=10**6, channel_max=4)
    save_state_dict(path, other_filters)
    refusal(path, "filter")
    save_state_dict(path, tiny.generator(num_layers=13, num_critical=1, margin_size=8))
    refusal(path, "not StyleGAN3's schedule")
    state = tiny.generator().state_dict()
    for missing, part in (("mapping.w_avg", "mapping.w_avg"), ("synthesis.input.phases", "phases is missing")):
        torch.save({key: value for key, value in state.items() if key != missing}, path)
        refusal(path, part)
    torch.save({**state, "mapping.extra": torch.zeros(1)}, path)
    refusal(path, "mapping.extra is not one of such a network")
    torch.save({**state, "mapping.w_avg": torch.full([12], float("nan"))}, path)
    refusal(path, "mapping.w_avg holds values that are no finite numbers")
    for change in (lambda tensor: tensor.to("meta"), lambda tensor: tensor.to_sparse()):
        torch.save({**state, "mapping.w_avg": change(state["mapping.w_avg"])}, path)
        with pytest.raises(InputError, match="its mapping.w_avg is (on the device 'meta'|sparse): save plain tensors"):
            load_network(path)
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    refusal(path, "no StyleGAN3 generator", "weight")


@pytest.mark.parametrize("options", [{}, {"c_dim": 3}, {"conv_kernel": 1}, {"height": 32, "width": 16}])
def test_weight_count_is_a_lower_bound_and_close(tiny, options):
    """It decides whether a network of that configuration may be built: never more than there are."""
    shape = {name: value for name, value in options.items() if name != "conv_kernel"}
    for network in (tiny.generator(**options), tiny.discriminator(**shape)):
        elements = sum(parameter.numel() for parameter in network.parameters())
        assert 0.75 * elements < weight_count(network.config) <= elements


def test_tensors_that_pretend_to_be_large_are_refused(tiny, tmp_path):
    """One element, shown 8192 x 8192 times by strides of 0: a kilobyte that would become gigabytes."""
    state = tiny.generator().state_dict()
    with torch.device("meta"):
        shapes = Generator(GeneratorConfig(16, 16, channel_base=2**21, channel_max=8192)).state_dict()
    state = {name: torch.zeros([]).expand(value.shape) for name, value in shapes.items()}
    state |= {name: value for name, value in shapes.items() if name.endswith("_filter")}
    path = tmp_path / "network.pt"
    torch.save(state, path)
    assert path.stat().st_size < 500_000
    refusal(path, "more than the whole file")


class Touch:
    """A call of os.system, for any unpickler that would make it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("modern", [False, True])
def test_hostile_pt_files_are_refused_by_name_and_nothing_runs(tiny, tmp_path, modern):
    marker, path = tmp_path / "ran", tmp_path / "network.pt"
    content = {**tiny.generator().state_dict(), "extra": Touch(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=modern)
    refusal(path, "system", "nothing of it was run")
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the attack is a real one


# ---- what people mistake for a network


def _zip_of(name: str, compression=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(name, b"0" * 1000)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "a JPEG image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git-lfs pointer"),
        (b"just some text\n", "starts with b'just som'"),
        (bytes(1000), "starts with"),
        (_zip_of("pictures/a.png"), "no .pt file"),
        (_zip_of("x/data.pkl", zipfile.ZIP_DEFLATED), "compressed"),
        (_zip_of("x/data.pkl"), "no plain state dict"),
        (_zip_of("x/data.pkl")[:-10], "truncated .pt"),
        (pickle.dumps({"a": 1}), "without a network G_ema"),
        (pickle.dumps([1]), "a list instead"),
        (pickle.dumps(Touch("/nonexistent/marker")), "`posix.system`"),
        (safetensors.torch.save({"conv.weight": torch.zeros(2)}), "conv.weight"),
        (safetensors.torch.save({"a": torch.zeros(2)}, {"passersby": "{"}), "no JSON"),
        (safetensors.torch.save({"a": torch.zeros(2)}, {"passersby": "[" * 100_000}), "no JSON"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, data, reason):
    path = tmp_path / "network.bin"
    path.write_bytes(data)
    refusal(path, reason)


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_safetensors_whose_length_looks_like_a_pickles_protocol(tiny, tmp_path, length):
    """The first two bytes of such a file are those of the protocols 2 to 5."""
    header = b'{"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    data = length.to_bytes(8, "little") + header + bytes(4)
    assert data[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    path = tmp_path / "network.safetensors"
    path.write_bytes(data)
    refusal(path, "a .safetensors file that is no generator network", "weight")


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_are_known_as_pickles(tmp_path, protocol):
    for value, reason in (({"a": 1}, "without a network G_ema"), ([1], "a list instead"), ({}, "its keys: none")):
        path = tmp_path / "network.pkl"
        path.write_bytes(pickle.dumps(value, protocol))
        refusal(path, reason)
        with path.open("rb") as file, pytest.raises(InputError, match="a plain pickle, whose code could do anything"):
            file_kind(file)


@pytest.mark.parametrize("protocol", range(6))
def test_hostile_pickles_of_every_protocol_are_refused_and_nothing_runs(tmp_path, protocol):
    path, marker = tmp_path / "network.pkl", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"G_ema": Touch(marker)}, protocol))
    refusal(path, "`posix.system`")
    assert not marker.exists()


def test_missing_files_and_folders(tmp_path):
    refusal(tmp_path / "nothing.pkl", "No such file")
    refusal(tmp_path, "directory")


@pytest.mark.parametrize("kind", ["pickle", "safetensors", "state_dict"])
def test_truncated_files_are_refused(tiny, tmp_path, kind):
    path = tmp_path / "network"
    if kind == "pickle":
        path.write_bytes(tiny.reference_file())
    elif kind == "safetensors":
        save_network(path, tiny.generator(), record={})
    else:
        save_state_dict(path, tiny.generator())
    data = path.read_bytes()
    for end in (1, 7, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        refusal(path)


@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"synthesis_kwargs": {"channel_base": 1}}, "synthesis_kwargs"),
        ({"img_resolution": 10**9}, "1000000000"),
        ({"img_resolution": "16"}, "16"),
        ({"channel_max": None}, "channel_max|make no sense"),
        ({"conv_kernel": 10**6}, "conv_kernel"),
        ({"mapping_kwargs": {"num_layers": 10**9}}, "mapping_layers"),
        ({"filter_size": 10**9}, "filter_size"),
        ({"channel_max": 8192, "channel_base": 2**21}, "more than the whole file"),
    ],
)
def test_reference_keywords_that_make_no_sense(tiny, tmp_path, keywords, reason):
    path, data = tmp_path / "network.pkl", tiny.reference_bytes(tiny.generator(), keywords=keywords)
    path.write_bytes(data)
    message = refusal(path)
    assert any(part in message for part in reason.split("|"))
