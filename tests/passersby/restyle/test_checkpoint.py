"""passersby/restyle/checkpoint.py and published.py: nothing is lost, and what is no encoder is refused in one line."""

import argparse
import hashlib
import json
import pathlib

import pytest
import safetensors
import safetensors.torch
import torch

from passersby.errors import InputError
from passersby.reid.checkpoint import load_reid
from passersby.restyle.checkpoint import check_pair, load_encoder, save_encoder
from passersby.restyle.encoder import EncoderConfig, RestyleEncoder
from passersby.stylegan3 import load_network, save_network

KEY = "passersby-encoder"
GENERATOR = {"file": "people.safetensors", "sha256": "ab" * 32}


def encoder(**settings) -> RestyleEncoder:
    torch.manual_seed(0)
    small = {"height": 64, "width": 32, "w_dim": 12, "head_channels": 16, "backbone": "resnet10", "width_factor": 0.125}
    return RestyleEncoder(EncoderConfig(**small | settings))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, encoder(), torch.randn(16, 12), generator=GENERATOR, record={"trained_on": "toy"})
    return path


def rewritten(path, change=None, **metadata):
    """The file with other metadata, or other tensors."""
    with safetensors.safe_open(path, framework="pt") as file:
        known = json.loads(file.metadata()[KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if change is not None:
        change(tensors)
    safetensors.torch.save_file(tensors, path, {KEY: json.dumps(known | metadata)})
    return path


# ---- our own files


def test_everything_comes_back(plain, tmp_path):
    made, average = plain.lively(encoder()), torch.randn(16, 12)
    record = {"trained_on": "toy", "steps": 5}
    save_encoder(tmp_path / "a.safetensors", made, average, generator=GENERATOR, record=record)
    torch.manual_seed(5)
    loaded = load_encoder(tmp_path / "a.safetensors")
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))  # loading does not change what a seed gives
    assert loaded.encoder.config == made.config
    ours, theirs = made.state_dict(), loaded.encoder.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    x = torch.rand(2, 6, 64, 32)
    assert torch.equal(loaded.encoder(x), made(x))
    assert not loaded.encoder.training
    assert not any(parameter.requires_grad for parameter in loaded.encoder.parameters())
    assert torch.equal(loaded.average, average)
    assert (loaded.generator, loaded.record) == (GENERATOR, record)
    assert (loaded.kind, loaded.decoder, loaded.notes) == ("passersby", None, ())
    assert loaded.sha256 == hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    loaded.encoder.train().requires_grad_(True)(x).sum().backward()  # what was loaded can be trained on


def test_an_average_of_another_shape_is_not_saved(tmp_path):
    with pytest.raises(InputError, match=r"average of shape \(12,\): \[16, 12\] is needed"):
        save_encoder(tmp_path / "a.safetensors", encoder(), torch.zeros(12), generator={}, record={})
    assert not list(tmp_path.iterdir())


def test_damaged_files(saved, tmp_path):
    content = saved.read_bytes()
    with safetensors.safe_open(saved, framework="pt") as file:
        config = json.loads(file.metadata()[KEY])["config"]
    for change, metadata, message in (
        (None, {"format_version": 2}, "format version 2; this program reads version 1"),
        (None, {"config": config | {"w_dim": 13}}, r"shape \(192, 16\), that of such a network \(208, 16\)"),
        (None, {"config": config | {"more": 1}}, "configuration and this version's differ in 'more'"),
        (
            None,
            {"config": config | {"backbone": "resnet18"}},
            r"tensor body\.1\.downsample\.0\.weight is not one of such a network",
        ),
        (None, {"config": config | {"head_channels": -1}}, "head_channels -1: a whole number"),
        (None, {"generator": {"sha256": 5}}, "of the generator what is no text"),
        (None, {"record": None}, "lacks the configuration, the generator or the record"),
        (lambda t: t.pop("average"), {}, "average code is missing"),
        (lambda t: t.update(average=torch.zeros(12)), {}, r"not \[16, 12\]"),
        (lambda t: t.update(average=torch.full((16, 12), torch.nan)), {}, "average code holds"),
        (lambda t: t.pop("encoder.bn1.weight"), {}, "tensor bn1.weight is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), {}, "tensor extra is not one of such a network"),
        (lambda t: t["encoder.conv1.weight"].fill_(torch.inf), {}, "conv1.weight holds values that are no finite"),
    ):
        saved.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            load_encoder(rewritten(saved, change, **metadata))
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"encoder {saved}: ")
    for data, message in (
        (content[:-100], "damaged .safetensors"),
        (b"", "starts with b''"),
        (b"\x89PNG\r\n", "a PNG image: encoders are .safetensors, or .pt of stylegan3-editing"),
        (b"\x80\x04cos\nsystem\n.", "a plain pickle, whose code could do anything"),
    ):
        saved.write_bytes(data)
        with pytest.raises(InputError, match=message):
            load_encoder(saved)
    with pytest.raises(InputError, match="nowhere: No such file"):
        load_encoder(tmp_path / "nowhere")


def test_networks_of_other_kinds_are_told_apart(tiny, saved, tmp_path):
    for load in (load_network, load_reid):
        with pytest.raises(InputError, match="safetensors file that is no"):
            load(saved)
    save_network(tmp_path / "g.safetensors", tiny.generator(), record={})
    with pytest.raises(InputError, match="no encoder: a generator network of this program"):
        load_encoder(tmp_path / "g.safetensors")
    safetensors.torch.save_file({"weight": torch.zeros(1)}, tmp_path / "o.safetensors")
    with pytest.raises(InputError, match=r"no encoder: another program's \(weight\)"):
        load_encoder(tmp_path / "o.safetensors")
    torch.save(tiny.generator().state_dict(), tmp_path / "g.pt")
    with pytest.raises(InputError, match="no stylegan3-editing checkpoint"):
        load_encoder(tmp_path / "g.pt")


def test_an_encoder_belongs_to_its_generator(tiny, saved):
    loaded, config = load_encoder(saved), tiny.generator().config
    check_pair(loaded, config, GENERATOR["sha256"])
    with pytest.raises(
        InputError, match=r"trained for the generator people.safetensors \(sha256 abab.*not for sha256 00"
    ):
        check_pair(loaded, config, "00")
    with pytest.raises(InputError, match=r"the encoder makes \(16, 12\) codes \(num_ws, w_dim\), the generator takes"):
        check_pair(loaded, tiny.generator(w_dim=10).config, GENERATOR["sha256"])


# ---- files of stylegan3-editing, written from what is known of them


class Published:
    """A small checkpoint as the tool saves it, its encoder, and where a test may change it."""

    def __init__(self, plain, generator):
        torch.manual_seed(7)
        resnet = plain.narrow_resnet((8, 16, 32, 64))
        self.encoder = plain.lively(plain.PlainEncoder(64, 64, w_dim=12, head_channels=16, resnet=resnet))
        self.generator = generator
        state = {f"encoder.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        state |= {f"decoder.{name}": tensor for name, tensor in generator.state_dict().items()}
        state["decoder.synthesis.input.transform"] = torch.eye(3).repeat(2, 1, 1)  # of its last batch
        options = {
            "exp_dir": pathlib.PurePosixPath("/home/somebody/experiment"),
            "stylegan_weights": pathlib.PosixPath("/home/somebody/weights/people.pt"),
            "encoder_type": "ResNetBackboneEncoder",
            "n_iters_per_batch": 3,
            "lpips_lambda": 0.8,
            "checkpoint_path": None,
        }
        self.content = {"state_dict": state, "latent_avg": generator.mapping.w_avg, "opts": options}


@pytest.fixture
def published(plain, tiny):
    return Published(plain, tiny.generator())


def save(content, path):
    torch.save(content, path)
    return path


def test_a_published_file_is_read_whole(published, tmp_path):
    path = save(published.content, tmp_path / "best_model.pt")
    torch.manual_seed(5)
    loaded = load_encoder(path)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    config = EncoderConfig(height=64, width=64, w_dim=12, backbone="resnet10", width_factor=0.125, head_channels=16)
    assert loaded.encoder.config == config
    x = torch.rand(2, 6, 64, 64) * 2 - 1
    expected = published.encoder(x).detach()
    torch.testing.assert_close(loaded.encoder(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    ws = torch.randn(2, 16, 12)
    assert torch.equal(loaded.decoder.synthesis(ws), published.generator.synthesis(ws))
    assert torch.equal(loaded.average, published.generator.mapping.w_avg.expand(16, -1))
    assert (loaded.kind, loaded.generator, loaded.notes) == ("stylegan3-editing", {}, ())
    assert loaded.record == {
        "trained_on": "unknown",
        "options": {
            "checkpoint_path": None,
            "encoder_type": "ResNetBackboneEncoder",
            "exp_dir": "experiment",
            "lpips_lambda": 0.8,
            "n_iters_per_batch": 3,
            "stylegan_weights": "people.pt",
        },
    }
    json.dumps(loaded.record)
    # What was read can be kept as our own.
    save_encoder(tmp_path / "a.safetensors", loaded.encoder, loaded.average, generator={}, record=loaded.record)
    assert torch.equal(load_encoder(tmp_path / "a.safetensors").encoder(x), loaded.encoder(x))


def test_options_as_a_namespace_are_values_and_nothing_else(published, tmp_path):
    options = argparse.Namespace(encoder_type="ResNetBackboneEncoder", odd=object, batch_size=2)
    options.odd = pathlib.PosixPath("/a/b")
    loaded = load_encoder(save(published.content | {"opts": options}, tmp_path / "a.pt"))
    assert loaded.record["options"] == {"batch_size": 2, "encoder_type": "ResNetBackboneEncoder", "odd": "b"}


def test_what_the_file_does_not_say_is_noted(published, tmp_path):
    content = dict(published.content)
    del content["opts"], content["latent_avg"]
    loaded = load_encoder(save(content, tmp_path / "a.pt"))
    assert torch.equal(loaded.average, published.generator.mapping.w_avg.expand(16, -1))
    assert loaded.notes == (
        "taken for the encoder ResNetBackboneEncoder: the file does not say it",
        "no latent_avg in the file: the generator's average w is taken",
    )
    state = {name: tensor for name, tensor in content["state_dict"].items() if name.startswith("encoder.")}
    with pytest.raises(InputError, match="neither latent_avg nor a generator"):
        load_encoder(save({"state_dict": state}, tmp_path / "a.pt"))
    loaded = load_encoder(save({"state_dict": state, "latent_avg": torch.ones(16, 12)}, tmp_path / "a.pt"))
    assert loaded.decoder is None
    assert "the file holds no generator" in loaded.notes
    content["state_dict"]["decoder.synthesis.input.transform"] = torch.full((2, 3, 3), 0.5)
    loaded = load_encoder(save(content, tmp_path / "a.pt"))
    assert torch.equal(loaded.decoder.synthesis.input.transform, torch.eye(3))
    assert "its generator's own transform is left out, as the published tool does" in loaded.notes


class Hostile:
    def __reduce__(self):
        return exec, ("print('this must never be printed')",)  # not `print` itself, which Ray exchanges


def test_published_files_that_are_refused(published, tmp_path, capsys):
    whole = published.content
    state = whole["state_dict"]
    options = whole["opts"]

    def without(*names):
        return {"state_dict": {name: tensor for name, tensor in state.items() if name not in names}}

    def having(**tensors):
        return {"state_dict": state | {name.replace("__", "."): tensor for name, tensor in tensors.items()}}

    # The progressive encoder has the same tensors and means other things by them.
    other = {"opts": options | {"encoder_type": "ResNetProgressiveBackboneEncoder"}}
    for change, message in (
        (other, "its encoder is ResNetProgressiveBackboneEncoder: of stylegan3-editing's"),
        (having(encoder__input_layer__0__weight=torch.zeros(1)), "an IR-SE-50 backbone, made for faces"),
        (having(face_pool__weight=torch.zeros(1)), "face_pool.weight belongs to neither encoder nor decoder"),
        (having(encoder__fc__weight=torch.zeros(1)), "encoder: tensor fc.weight is not one of such a network"),
        (having(decoder__more=torch.zeros(1)), "decoder: tensor more is not one of such a network"),
        (having(encoder__conv1__weight=torch.zeros(8, 3, 7, 7)), "its encoder takes 3 channels"),
        (having(encoder__styles__3__convs__0__bias=torch.zeros(5)), "convs.0.bias have different shapes"),
        (having(encoder__conv1__weight=5), "its encoder.conv1.weight is a int, not a tensor"),
        (without("encoder.styles.4.linear.bias"), "encoder.styles.4.linear.bias is missing"),
        (without("encoder.body.3.bn2.weight"), "encoder: tensor body.3.bn2.weight is missing"),
        (without("decoder.mapping.fc1.bias"), "decoder: tensor mapping.fc1.bias is missing"),
        ({"latent_avg": torch.zeros(11)}, r"its latent_avg has shape \(11,\), not \[16, 12\]"),
        ({"latent_avg": torch.full((12,), torch.nan)}, "latent_avg holds values that are no finite"),
        ({"latent_avg": "zero"}, "latent_avg is a str, not a float tensor"),
        ({"latent_avg": torch.zeros(12, device="meta")}, "its latent_avg is on the device 'meta'"),
        ({"latent_avg": torch.zeros(16, 12).to_sparse()}, "its latent_avg is sparse: save plain tensors"),
        ({"state_dict": None}, "no stylegan3-editing checkpoint"),
        ({"opts": Hostile()}, r"nothing of it was run \(it refers to exec"),
        (having(encoder__bn1__bias=torch.zeros(1).expand(10**9)), "bytes of weights are more than the whole file"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load_encoder(save(whole | change, tmp_path / "a.pt"))
        assert "\n" not in str(caught.value)
    assert "never" not in capsys.readouterr().out


def test_a_published_encoder_belongs_to_the_generator_that_it_carries(tiny, published, tmp_path):
    loaded, own = load_encoder(save(published.content, tmp_path / "a.pt")), published.generator
    check_pair(loaded, own.config, "any hash", own)
    save_network(tmp_path / "half.safetensors", own, record={}, half=True)
    check_pair(loaded, own.config, "any hash", load_network(tmp_path / "half.safetensors").generator)
    with pytest.raises(InputError, match="a generator with other weights"):
        check_pair(loaded, own.config, "any hash", tiny.generator(seed=3))
    with pytest.raises(InputError, match=r"carries another generator \(16 x 16, the one given 32 x 16"):
        check_pair(loaded, tiny.generator(height=32).config, "any hash")
