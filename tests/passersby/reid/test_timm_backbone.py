"""Backbones of timm by name: against timm itself, and every line about names, sizes and weights."""

import dataclasses

import numpy as np
import pytest
import timm
import torch
from torch import nn

from passersby.errors import InputError
from passersby.reid import timm_backbone
from passersby.reid.checkpoint import load_imagenet, load_reid, load_timm, save_reid
from passersby.reid.layers import DomainBatchNorm
from passersby.reid.network import ReidConfig, ReidNetwork
from passersby.reid.timm_backbone import about, make_timm, pooled_width
from training.reid.config import ReidTraining

# Small networks that timm has for tests: one with a fixed size and position embeddings, one with batch normalisation.
VIT, RESNET = "timm:test_vit", "timm:test_resnet"


def network(name: str, **settings) -> ReidNetwork:
    torch.manual_seed(0)
    stated = about(name)
    settings = {"neck": "bnneck", "height": 64, "width": 32, "mean": stated.mean} | settings
    return ReidNetwork(ReidConfig(3, name, deviation=stated.deviation, **settings)).eval()


def written(path, name: str, classes: int = 7, **settings):
    """The state dict of one of timm's own networks, and that network."""
    torch.manual_seed(1)
    made = timm.create_model(name.removeprefix("timm:"), num_classes=classes, **settings).eval()
    torch.save({"state_dict": made.state_dict(), "arch": name}, path)
    return path, made


@pytest.mark.parametrize(("name", "size"), [(VIT, {"img_size": (64, 32)}), (RESNET, {})])
@torch.inference_mode()
def test_features_are_timms(name, size, tmp_path):
    path, theirs = written(tmp_path / "w.pth", name, **size)
    made, images = network(name, neck="none", last_stride=2), torch.rand(2, 3, 64, 32)
    (note,), record = load_timm(made, path)
    assert note.startswith(f"backbone {name}.r160_in1k starts from timm's weights: w.pth, sha256 ")
    assert record["name"] == f"{name}.r160_in1k"
    assert record["licence"] == "not known; timm's own: apache-2.0"
    stated = about(name)
    inputs = (images - torch.tensor(stated.mean).view(3, 1, 1)) / torch.tensor(stated.deviation).view(3, 1, 1)
    theirs.reset_classifier(0)
    torch.testing.assert_close(made.feature(images), theirs(inputs))
    assert made.feature(images).shape[1] == pooled_width(name, 64, 32) == made.config.feature_width


def test_our_file_holds_everything(tmp_path):
    made, images = network(VIT), torch.rand(2, 3, 64, 32)
    save_reid(tmp_path / "a.safetensors", made, class_names=list("abc"), record={})
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    loaded = load_reid(tmp_path / "a.safetensors")
    assert torch.equal(torch.rand(1), expected)  # loading draws nothing from PyTorch's stream
    assert loaded.network.config == made.config
    assert made.config.mean == (0.5, 0.5, 0.5)
    assert torch.equal(loaded.network.feature(images), made.feature(images))
    larger = load_reid(tmp_path / "a.safetensors", height=96)
    assert larger.notes == ("images of 96 x 32: it was made for 64 x 32",)
    assert larger.features(np.zeros((1, 96, 32, 3), np.uint8)).shape == (1, 64)


def test_weights_for_another_size_are_interpolated(tmp_path):
    path, theirs = written(tmp_path / "w.pth", VIT)  # 160 x 160
    made = network(VIT)
    load_imagenet(made, path)
    theirs.set_input_size((64, 32))
    torch.testing.assert_close(made.backbone.state_dict()["pos_embed"], theirs.state_dict()["pos_embed"])


def test_last_stride_of_a_resnet_and_a_norm_for_each_domain(tmp_path):
    for name, factor in ((RESNET, 2), ("timm:resnet10t", 2), ("timm:test_efficientnet", 1)):
        maps = [
            make_timm(name, 64, 32, stride).eval().forward_features(torch.zeros(1, 3, 64, 32)).shape[2]
            for stride in (2, 1)
        ]
        assert maps[1] == factor * maps[0], name
    path, theirs = written(tmp_path / "w.pth", "timm:test_efficientnet")
    made = network("timm:test_efficientnet", domains=2).train()
    load_timm(made, path)
    norms = [module for module in made.backbone.modules() if isinstance(module, DomainBatchNorm)]
    assert len(norms) == sum(isinstance(module, nn.BatchNorm2d) for module in theirs.modules()) > 5
    before = [norm.norms[0].running_mean.clone() for norm in norms]
    made(torch.rand(4, 3, 64, 32), domain=1)
    assert all(torch.equal(norm.norms[0].running_mean, old) for norm, old in zip(norms, before, strict=True))
    assert any(not torch.equal(norm.norms[1].running_mean, old) for norm, old in zip(norms, before, strict=True))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: s.pop("blocks.0.attn.qkv.bias"), 'Missing key.* "blocks.0.attn.qkv.bias"'),
        (lambda s: s.update({"part.weight": torch.ones(1)}), 'Unexpected key.* "part.weight"'),
        (lambda s: s.update({"norm.weight": torch.ones(3)}), "size mismatch for norm.weight"),
        (lambda s: s.update({"norm.weight": torch.full((64,), torch.nan)}), "no finite numbers"),
    ],
)
def test_weights_of_another_network_are_one_line(change, problem, tmp_path):
    _, theirs = written(tmp_path / "w.pth", VIT)
    state = theirs.state_dict()
    change(state)
    torch.save(state, tmp_path / "w.pth")
    made = network(VIT)
    before = made.backbone.state_dict()["norm.weight"].clone()
    with pytest.raises(InputError, match=problem) as caught:
        load_timm(made, tmp_path / "w.pth")
    assert "\n" not in str(caught.value)
    assert torch.equal(made.backbone.state_dict()["norm.weight"], before)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("timm:resnet5", "has no network of this name: take one like timm:resnet50"),
        ("timm:", "has no network of this name"),
        ("timm:hf_hub:timm/resnet50", "has no network of this name"),
        ("timm:local-dir:/etc", "has no network of this name"),
        ("timm:resnet50.nothing", "has no such weights, only timm:resnet50.a1_in1k"),
    ],
)
def test_an_unknown_name_is_one_line(name, problem, tmp_path):
    with pytest.raises(InputError, match=problem) as caught:
        ReidTraining(tmp_path, tmp_path, backbone=name).check()
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=problem):  # a file may hold any name: nothing is fetched or run
        ReidNetwork(ReidConfig(3, name))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"stem": "small"}, "--stem small with --backbone timm:test_vit: give imagenet"),
        ({"width_factor": 0.5, "pretrained": False}, "--width-factor 0.5 with --backbone timm:test_vit"),
    ],
)
def test_options_that_timm_does_not_have(settings, problem, tmp_path):
    with pytest.raises(InputError, match=problem):
        ReidTraining(tmp_path, tmp_path, backbone=VIT, **settings).check()


def test_a_size_that_the_network_does_not_take(monkeypatch):
    def refusing(*arguments, **settings):
        raise AssertionError("Input height (65) should be divisible")

    monkeypatch.setattr(timm, "create_model", refusing)
    with pytest.raises(InputError, match=r"takes no images of 65 x 33 \(Input height \(65\) should be.* 160 x 160"):
        pooled_width(VIT, 65, 33)


def test_the_hub_is_tried_once(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    asked = []

    def unreachable(request, timeout):
        asked.append((request.full_url, timeout))
        raise OSError("no route")

    monkeypatch.setattr(timm_backbone.urllib.request, "urlopen", unreachable)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *arguments, **settings: None)
    with pytest.raises(InputError, match=r"cannot fetch the weights timm/test_vit.r160_in1k/model.safetensors \(OSErr"):
        load_timm(network(VIT))
    ((url, timeout),) = asked
    assert url.endswith("timm/test_vit.r160_in1k/resolve/main/model.safetensors")
    assert timeout <= 10


def test_weights_from_the_hubs_cache(monkeypatch, tmp_path):
    path, _ = written(tmp_path / "model.pth", RESNET)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *arguments, **settings: str(path))
    (note,), record = load_timm(network(RESNET))
    assert "timm/test_resnet.r160_in1k/model.safetensors, licence apache-2.0" in note
    assert (record["licence"], record["source"]) == ("apache-2.0", "timm/test_resnet.r160_in1k/model.safetensors")
    unpublished = dataclasses.replace(network("timm:mixer_s16_224", height=224, width=224).config)
    with pytest.raises(InputError, match="timm:mixer_s16_224: no weights that can be fetched"):
        load_timm(ReidNetwork(unpublished))
