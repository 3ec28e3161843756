"""jobs/convert.py: any network file becomes a .safetensors or a plain .pt, and nothing is lost unsaid."""

import pytest
import safetensors.torch
import torch

from jobs.convert import ConvertConfig, main
from models.errors import InputError
from models.stylegan3.checkpoint import load_network, save_network


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
    with pytest.raises(InputError, match="starts with"):
        main(ConvertConfig(tmp_path / "a.pkl", tmp_path / "b.pt"))
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04cos\nsystem\n(X\x04\x00\x00\x00exittR.")
    with pytest.raises(InputError, match=r"os\.system"):
        main(ConvertConfig(tmp_path / "a.pkl", tmp_path / "b.pt"))
    assert not (tmp_path / "b.pt").exists()
