"""jobs/convert.py: any network file becomes a .safetensors or a plain .pt, and nothing is lost unsaid."""

import pytest
import safetensors.torch
import torch

from jobs.convert import ConvertConfig, editing_advice, main
from passersby.errors import InputError
from passersby.stylegan3 import Generator, GeneratorConfig
from passersby.stylegan3.checkpoint import load_network, save_network
from passersby.stylegan3.generator import reference_generator_config


def equal_states(a, b) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_pickle_to_safetensors_to_pt_and_back(tiny, tmp_path, capsys):
    averaged, training, critic = tiny.networks()
    pickled, ours, plain, back = (tmp_path / name for name in ("a.pkl", "b.safetensors", "c.pt", "d.safetensors"))
    pickled.write_bytes(tiny.reference_file())
    main(ConvertConfig(pickled, ours))
    main(ConvertConfig(ours, plain))
    main(ConvertConfig(plain, back))
    network = load_network(ours)
    assert equal_states(network.training_generator, training)
    assert equal_states(network.discriminator, critic)
    assert network.record["trained_on"] == "unknown"
    source = {"file": "a.pkl", "sha256": load_network(pickled).sha256, "format": "pickle"}
    assert network.record["converted_from"] == source
    for path in (ours, plain, back):
        assert equal_states(load_network(path).generator, averaged)
    # What other programs read: a bare state dict with the reference's names.
    averaged.load_state_dict(torch.load(plain, weights_only=True), strict=True)
    printed = capsys.readouterr().out
    for part in ("reference pickle", "StyleGAN3-T, 16 x 16", network.sha256, "trained_on: unknown", "no record, no G"):
        assert part in printed


def test_tall_network_to_pt_says_that_its_width_is_lost(tiny, tmp_path, capsys):
    generator = tiny.generator(height=32, width=16)
    save_network(tmp_path / "a.safetensors", generator, record={"trained_on": "toy"})
    main(ConvertConfig(tmp_path / "a.safetensors", tmp_path / "b.pt"))
    assert "give --width 16" in capsys.readouterr().out
    main(ConvertConfig(tmp_path / "b.pt", tmp_path / "c.safetensors", width=16))
    assert load_network(tmp_path / "c.safetensors").generator.config == generator.config


def test_half(tiny, tmp_path):
    save_network(tmp_path / "a.safetensors", tiny.generator(), record={"trained_on": "toy"})
    main(ConvertConfig(tmp_path / "a.safetensors", tmp_path / "b.safetensors", half=True))
    tensors = safetensors.torch.load_file(tmp_path / "b.safetensors")
    assert tensors["G_ema.mapping.fc0.weight"].dtype == torch.float16
    assert tensors["G_ema.mapping.w_avg"].dtype == torch.float32
    assert load_network(tmp_path / "b.safetensors").record["trained_on"] == "toy"


def test_long_records_are_printed_in_brief(tiny, tmp_path, capsys):
    record = {"trained_on": "toy", "transferred_from": {"record": {"command": "x" * 10_000}}}
    save_network(tmp_path / "a.safetensors", tiny.generator(), record=record)
    main(ConvertConfig(tmp_path / "a.safetensors", tmp_path / "b.safetensors"))
    assert len(max(capsys.readouterr().out.splitlines(), key=len)) < 400
    assert load_network(tmp_path / "b.safetensors").record["transferred_from"] == record["transferred_from"]


def test_outputs_that_cannot_be_meant(tiny, tmp_path):
    network = tmp_path / "a.safetensors"
    save_network(network, tiny.generator(), record={})
    other = tmp_path / "b.pt"
    other.write_bytes(b"precious")
    for out, reason in (
        (tmp_path / "b.onnx", "end with .safetensors or .pt"),
        (tmp_path / "nowhere" / "b.pt", "no folder"),
        (network, "the network itself"),
        (other, "--overwrite"),
    ):
        with pytest.raises(InputError, match=reason):
            main(ConvertConfig(network, out))
    assert other.read_bytes() == b"precious"
    main(ConvertConfig(network, other, overwrite=True))
    assert load_network(other).format == "state_dict"


def test_a_refused_network_writes_nothing(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"cos\nsystem\n(X\x04\x00\x00\x00exittR.")
    with pytest.raises(InputError, match=r"refers to `os\.system`, .* is refused"):
        main(ConvertConfig(tmp_path / "a.pkl", tmp_path / "b.pt"))
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04cos\nsystem\n(X\x04\x00\x00\x00exittR.")
    with pytest.raises(InputError, match=r"os\.system"):
        main(ConvertConfig(tmp_path / "a.pkl", tmp_path / "b.pt"))
    assert not (tmp_path / "b.pt").exists()


# ---- for stylegan3-editing, which builds two kinds of networks for a .pt and fills only what fits by name


def test_for_stylegan3_editing(tmp_path, capsys):
    generator = Generator(GeneratorConfig.config_r(16, 16)).eval()
    save_network(tmp_path / "a.safetensors", generator, record={})
    main(ConvertConfig(tmp_path / "a.safetensors", tmp_path / "b.pt", for_="stylegan3-editing"))
    assert "first give its two calls of SG3Generator in inversion/models/psp3.py res=16\n" in capsys.readouterr().out
    # What that tool builds with res=16, by the reference's keywords that are written in it.
    keywords = {"z_dim": 512, "c_dim": 0, "w_dim": 512, "img_resolution": 16, "img_channels": 3}
    keywords |= {"channel_base": 65536, "channel_max": 1024, "conv_kernel": 1, "filter_size": 6, "output_scale": 0.25}
    keywords |= {"magnitude_ema_beta": 0.9988915792636801, "use_radial_filters": True}
    theirs = Generator(reference_generator_config(**keywords))
    theirs.load_state_dict(torch.load(tmp_path / "b.pt", weights_only=True), strict=True)
    assert equal_states(theirs, generator)


def test_what_stylegan3_editing_is_to_be_told():
    assert "takes it as it is" in editing_advice(GeneratorConfig.config_r(1024, 1024))[0]
    # Another base that leads to the same channels is the same network; so are training's own settings.
    assert "as it is" in editing_advice(GeneratorConfig.config_r(1024, 1024, magnitude_ema_beta=0.99))[0]
    assert editing_advice(GeneratorConfig.config_r(64, 64, channel_base=2**16))[0].endswith("res=64")
    landscape = editing_advice(GeneratorConfig.config_t(256, 256))[0]
    assert landscape.endswith('res=256, config="landscape"')


@pytest.mark.parametrize(
    "config",
    [
        GeneratorConfig.config_r(1024, 512),
        GeneratorConfig.config_r(1024, 1024, channel_base=16384),
        GeneratorConfig.config_r(1024, 1024, mapping_layers=8),
        GeneratorConfig.config_t(256, 256, c_dim=3),
        GeneratorConfig.config_t(1024, 1024, w_dim=256),
        GeneratorConfig.config_t(256, 256, output_scale=1.0),
        GeneratorConfig.config_t(256, 256, use_radial_filters=True),
    ],
)
def test_networks_that_stylegan3_editing_would_leave_random(config):
    with pytest.raises(InputError, match=f"cannot build this generator .*{config.height} x {config.width}"):
        editing_advice(config)


def test_a_network_that_stylegan3_editing_cannot_take_writes_nothing(tiny, tmp_path):
    save_network(tmp_path / "a.safetensors", tiny.generator(), record={})
    with pytest.raises(InputError, match="stylegan3-editing cannot build this generator"):
        main(ConvertConfig(tmp_path / "a.safetensors", tmp_path / "b.pt", for_="stylegan3-editing"))
    with pytest.raises(InputError, match="its name has to end with .pt"):
        main(ConvertConfig(tmp_path / "a.safetensors", tmp_path / "b.safetensors", for_="stylegan3-editing"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
