"""Networks of other programs get one line that says what they are."""

import argparse
import pickle
import sys
import types

import pytest
import torch

from passersby.errors import InputError
from passersby.stylegan3.checkpoint import load_network, save_state_dict


def refusal(path) -> str:
    with pytest.raises(InputError) as error:
        load_network(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    assert "only StyleGAN2 and StyleGAN3 networks in the format of NVlabs' PyTorch programs are read" in message
    return message


def pickled_class(monkeypatch, module: str, name: str):
    """A class that pickles under this name; its module exists only for this test."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        part = ".".join(parts[:end])
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    kind = type(name, (), {"__module__": module, "__getstate__": lambda self: {"static_kwargs": {"resolution": 128}}})
    setattr(sys.modules[module], name, kind)
    return kind


@pytest.mark.parametrize("blocks", [("b4", "b8", "b16"), ()])
def test_a_stylegan2_ada_generator_without_its_tensors(tiny, tmp_path, blocks):
    path = tmp_path / "network.pkl"
    kwargs = {} if blocks else {"synthesis_kwargs": {"channel_base": 16384, "num_fp16_res": 4}}
    path.write_bytes(tiny.foreign_bytes("Generator", blocks, img_resolution=16, z_dim=8, **kwargs))
    with pytest.raises(InputError, match="bytes of weights|synthesis_kwargs|missing") as error:
        load_network(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("SuperresGenerator", {"img_resolution": 128, "path_stem": "stem.pkl", "head_layers": [7], "up_factor": 2}),
        ("Generator", {"img_resolution": 16, "mapping_kwargs": {"rand_embedding": False}}),
    ],
)
def test_a_stylegan_xl_generator(tiny, tmp_path, name, keywords):
    path = tmp_path / "network.pkl"
    path.write_bytes(tiny.foreign_bytes(name, ("input", "L0_36_8"), **keywords))
    assert "it is a StyleGAN-XL or Projected GAN network" in refusal(path)


@pytest.mark.parametrize("protocol", range(6))
def test_a_projected_discriminator(tmp_path, monkeypatch, protocol):
    kind = pickled_class(monkeypatch, "pg_modules.discriminator", "ProjectedDiscriminator")
    path = tmp_path / "network.pkl"
    path.write_bytes(pickle.dumps({"D": kind()}, protocol))
    message = refusal(path)
    assert "it is a StyleGAN-XL or Projected GAN network" in message
    assert "`pg_modules.discriminator.ProjectedDiscriminator`" in message


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("module", ["dnnlib.tflib.network", "tfutil"])
def test_a_tensorflow_stylegan(tmp_path, monkeypatch, protocol, module):
    kind = pickled_class(monkeypatch, module, "Network")
    path = tmp_path / "network.pkl"
    for content in ((kind(), kind(), kind()), kind()):
        path.write_bytes(pickle.dumps(content, protocol))
        assert "it is a TensorFlow network (StyleGAN, StyleGAN2 or Progressive GAN)" in refusal(path)


def test_a_pt_of_rosinality(tmp_path):
    names = ["style.1.weight", "input.input", "conv1.conv.weight", "conv1.conv.modulation.weight", "noises.noise_0"]
    networks = {name: torch.zeros(1) for name in names}
    path = tmp_path / "010000.pt"
    content = {
        "g": networks,
        "d": {"convs.0.0.weight": torch.zeros(1)},
        "g_ema": networks,
        "latent_avg": torch.zeros(2),
    }
    for extra in ({}, {"args": argparse.Namespace(size=256, path="/somewhere")}):
        torch.save(content | extra, path)
        assert "it is a StyleGAN2 network of rosinality's stylegan2-pytorch" in refusal(path)
    torch.save({f"decoder.{name}": value for name, value in networks.items()}, path)  # as encoders hold it
    assert "rosinality" in refusal(path)


def test_a_part_of_a_stylegan2(tmp_path):
    path = tmp_path / "network.pt"
    torch.save({"mapping.w_avg": torch.zeros(8), "synthesis.b4.const": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="synthesis.b4.const is of shape .1,."):
        load_network(path)


def test_the_options_of_a_training_beside_a_stylegan3_do_not_matter(tiny, tmp_path):
    path = tmp_path / "network.pt"
    generator = tiny.generator()
    save_state_dict(path, generator)
    state = torch.load(path, weights_only=True)
    torch.save({"g_ema": state, "args": argparse.Namespace(size=16)}, path)
    assert load_network(path).generator.config.height == 16
