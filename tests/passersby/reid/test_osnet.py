"""passersby/reid/osnet.py and the files of torchreid's OSNets, against torchreid's own code (tests/data/osnet.npz)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from passersby.errors import InputError
from passersby.reid.checkpoint import load_imagenet, load_reid, save_reid
from passersby.reid.identity_features import load_identity
from passersby.reid.layers import DomainBatchNorm
from passersby.reid.network import ReidConfig, ReidNetwork
from passersby.reid.osnet import OSNETS
from tests.helpers import osnet_files
from training.reid.config import ReidTraining

ORACLE = Path(__file__).parents[2] / "data" / "osnet.npz"
SMALL = "osnet_x0_25"


def written(path, name, wrapper="", change=None, **more):
    state = osnet_files.state(name)
    if change:
        change(state)
    torch.save({"state_dict": {wrapper + key: value for key, value in state.items()}} | more, path)
    return path


def small(**settings) -> ReidNetwork:
    torch.manual_seed(0)
    return ReidNetwork(ReidConfig(**({"classes": 3, "backbone": SMALL, "height": 64, "width": 32} | settings)))


def test_every_network_of_torchreid_is_here():
    assert set(OSNETS) == {*osnet_files.ALONE, *osnet_files.AIN} == set(np.load(ORACLE).files)


@pytest.mark.parametrize("name", OSNETS)
@torch.inference_mode()
def test_features_are_those_of_torchreids_code(name, tmp_path):
    path = written(tmp_path / "model.pth.tar-60", name, "module.", epoch=60, rank1=np.float32(0.9))
    loaded = load_reid(path)
    config, images = loaded.network.config, osnet_files.images(2)
    assert (loaded.kind, config.backbone, config.classes, config.feature_width) == ("torchreid", name, 7, 512)
    assert (config.height, config.width) == (256, 128)
    feature = loaded.network.feature(images)
    # Values of about 1, which other processors add up in another order.
    torch.testing.assert_close(feature[:, ::16], torch.from_numpy(np.load(ORACLE)[name]), rtol=1e-5, atol=1e-5)
    state = osnet_files.state(name)
    logits = feature @ state["classifier.weight"].T + state["classifier.bias"]
    torch.testing.assert_close(loaded.network(images).logits, logits, rtol=1e-5, atol=1e-5)


# torchreid's own counter (utils/model_complexity.py), convolutions and linear layers at 256 x 128. Its numbers of
# parameters are larger, 203,568 for x0.25: it counts the gate that four streams share four times.
@pytest.mark.parametrize(
    ("name", "parameters", "operations"),
    [
        ("osnet_x1_0", 2_169_508, 978_878_352),
        ("osnet_x0_25", 201_864, 82_316_000),
        ("osnet_ibn_x1_0", 2_170_532, 978_878_352),
        ("osnet_ain_x0_5", 630_034, 272_901_064),
    ],
)
def test_parameters_and_operations_are_torchreids(name, parameters, operations):
    made = ReidNetwork(ReidConfig(7, name)).eval()
    counted = sum(v.numel() for key, v in made.named_parameters() if not key.startswith("classifier."))
    assert counted == parameters
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        made.feature(torch.zeros(1, 3, 256, 128))
    # PyTorch counts a multiplication and an addition as two, and leaves biases out.
    biases = 512 + 2 * 4 * sum(v.numel() for key, v in made.named_parameters() if ".fc" in key and key.endswith("bias"))
    assert counter.get_total_flops() / 2 == pytest.approx(operations, abs=biases)


def test_new_weights_are_drawn_as_torchreids():
    convolutions = {k: m for k, m in small(backbone="osnet_x1_0").backbone.named_modules() if isinstance(m, nn.Conv2d)}
    weight = convolutions["conv5.conv"].weight  # 512 x 512 numbers: their spread is known to 0.2%
    assert weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.01)
    light = convolutions["conv4.0.conv2.0.layers.0.conv2"].weight  # 128 channels, each alone, with 9 values
    assert light.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.1)
    assert not any(module.bias.any() for module in convolutions.values() if module.bias is not None)


@pytest.mark.parametrize("settings", [{}, {"neck": "bnneck"}, {"neck": "none", "stem": "small"}, {"domains": 2}])
def test_networks_learn_and_come_back_from_their_file(settings, tmp_path):
    made = small(**settings).train()
    images = torch.rand(6, 3, 64, 32)
    optimizer = torch.optim.SGD(made.parameters(), 0.01)
    for domain in range(made.config.domains):
        made(images, domain).logits.logsumexp(1).sum().backward()
    assert all(value.grad is not None for value in made.backbone_parameters())
    optimizer.step()
    save_reid(tmp_path / "a.safetensors", made, class_names=("a", "b", "c"), record={})
    loaded = load_reid(tmp_path / "a.safetensors")
    assert loaded.network.config == made.config
    with torch.inference_mode():
        assert torch.equal(loaded.network.feature(images), made.eval().feature(images))
    assert loaded.features(np.zeros((2, 64, 32, 3), np.uint8)).shape == (2, made.config.feature_width)


@pytest.mark.parametrize(("stem", "size"), [("imagenet", (4, 2)), ("small", (8, 4))])
def test_sizes_of_the_last_stage(stem, size):
    made, seen = small(stem=stem).eval(), []
    made.backbone.get_submodule("conv5").register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    made.feature(osnet_files.images(2))
    assert seen == [(2, 128, *size)]


def test_torchreids_file_is_a_start(tmp_path):
    path = written(tmp_path / "osnet_x0_25_msmt17.pth", SMALL)
    expected = load_reid(path).network.state_dict()
    for settings in ({}, {"neck": "bnneck"}, {"embedding": 256}, {"domains": 2}):
        made = small(**settings)
        classifier = made.classifier.weight.clone()
        (note,) = load_imagenet(made, path)
        filled = made.state_dict()
        for domain in range(made.config.domains):
            place = f"backbone.conv5.bn.norms.{domain}.running_var" if made.config.domains > 1 else ""
            place = place or "backbone.conv5.bn.running_var"
            assert torch.equal(filled[place], expected["backbone.conv5.bn.running_var"])
        assert torch.equal(filled["backbone.conv1.conv.weight"], expected["backbone.conv1.conv.weight"])
        assert torch.equal(made.classifier.weight, classifier)
        whole = made.config.neck == "embedding" and made.config.embedding == 512
        assert note.endswith("its classifier is unused" if whole else "its embedding and its classifier are unused")
        if whole:
            assert torch.equal(made.embed.weight, expected["embed.weight"])
    assert any(isinstance(module, DomainBatchNorm) for module in made.modules())
    with torch.inference_mode():
        torch.testing.assert_close(
            made.eval().feature(osnet_files.images(2)), load_reid(path).network.feature(osnet_files.images(2))
        )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backbone": "osnet_x0_5"}, "the file's network is osnet_x0_25, not osnet_x0_5: give --backbone osnet_x0_25"),
        ({"backbone": "osnet_ain_x0_25"}, "the file's network is osnet_x0_25, not osnet_ain_x0_25"),
        ({"stem": "small"}, "stem small: there are no ImageNet weights"),
        ({"backbone": "resnet18"}, "is not one of torchvision's resnet18"),
    ],
)
def test_start_that_does_not_fit(settings, said, tmp_path):
    path = written(tmp_path / "a.pth", SMALL)
    with pytest.raises(InputError, match=said) as refused:
        load_imagenet(small(**settings), path)
    assert "\n" not in str(refused.value)


def test_start_that_is_not_there(tmp_path):
    config = ReidTraining(tmp_path, tmp_path, backbone="osnet_x0_25")
    with pytest.raises(InputError, match="--backbone osnet_x0_25: .*Model Zoo.* give --weights FILE, or --no-pretr"):
        config.check()
    with pytest.raises(InputError, match="osnet_x0_25: .*Model Zoo.* give --weights FILE, or --no-pretrained"):
        load_imagenet(small())
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"OSNet weights .*a\.pth: no OSNet of torchreid"):
        load_imagenet(small(), tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("conv3.1.conv2d.2.bn.bias"), r"tensor backbone.conv3.1.conv2.3.layers.2.bn.bias is missing"),
        (lambda s: s.update({"part.weight": torch.ones(1)}), "tensor backbone.part.weight is not one of such a netw"),
        (lambda s: s.pop("classifier.weight"), "tensor classifier.weight is missing"),
        (lambda s: s.update({"conv1.conv.weight": torch.ones(20, 3, 7, 7)}), "an OSNet of another structure: those"),
        (lambda s: s.update({"conv1.conv.weight": torch.ones(())}), "an OSNet of another structure: those"),
        (lambda s: s.update({"conv4.0.IN.weight": torch.ones(128)}), "an OSNet of another structure: those of osnet_x"),
        (lambda s: s.update({"conv5.bn.bias": torch.ones(128) / 0}), "no finite numbers"),
        (lambda s: s.update({"fc.0.weight": torch.ones(512)}), "tensor embed.weight is missing or no matrix"),
    ],
)
def test_files_that_do_not_fit(change, said, tmp_path):
    path = written(tmp_path / "a.pth", SMALL, change=change)
    with pytest.raises(InputError, match=said) as refused:
        load_reid(path)
    assert "\n" not in str(refused.value)


def test_what_the_file_does_not_have(tmp_path):
    path = written(tmp_path / "a.pth", SMALL)
    with pytest.raises(InputError, match="activation none: torchreid's osnet has relu"):
        load_reid(path, activation="none")
    with pytest.raises(InputError, match="last_stride 2 was asked for, but the file's is 1"):
        load_reid(path, last_stride=2)
    assert load_reid(path, "relu", 64, 32, last_stride=1).network.config.height == 64
    state = osnet_files.state(SMALL, 1000)
    torch.save(state, tmp_path / "b.pth")
    assert any("1,000 classes: if they are ImageNet's" in note for note in load_reid(tmp_path / "b.pth").notes)


def test_it_judges_who_a_picture_shows(tmp_path):
    judge = load_identity(written(tmp_path / "a.pth", SMALL))
    assert judge.name == "re-ID osnet_x0_25 embedding 256x128 (torchreid)"
    images = (osnet_files.images(2) * 2 - 1).requires_grad_()
    features = judge(images)
    assert features.shape == (2, 512)
    features[:, 0].sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0
