"""passersby/reid/formats.py: files with the names of layumi's and torchreid's programs, against a plain forward."""

import builtins
import collections
import functools

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.transforms.v2.functional import normalize

from passersby.errors import InputError
from passersby.reid.checkpoint import load_reid

CLASSES = 5


def trained(model: nn.Module) -> nn.Module:
    """In eval mode, with batch normalisations that change values."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


def backbone(name: str, last_stride: int) -> nn.Module:
    torch.manual_seed(0)
    made = getattr(torchvision.models, name)()
    if last_stride == 1:
        for layer in made.layer4.modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
    return trained(made)


def pooled(made: nn.Module, images: torch.Tensor) -> torch.Tensor:
    x = normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    x = made.maxpool(made.relu(made.bn1(made.conv1(x))))
    return made.layer4(made.layer3(made.layer2(made.layer1(x)))).mean((2, 3))


def layumi(name: str = "resnet50", last_stride: int = 2, embedding: int = 512):
    """The parts of layumi's network, and its state dict: the ImageNet classifier stays in it."""
    made = backbone(name, last_stride)
    wide = made.fc.in_features
    block = trained(nn.Sequential(nn.Linear(wide, embedding), nn.BatchNorm1d(embedding), nn.Dropout(0.5)))
    classifier = nn.Sequential(nn.Linear(embedding, CLASSES))
    state = {f"model.{key}": value for key, value in made.state_dict().items()}
    state |= {f"classifier.add_block.{key}": value for key, value in block.state_dict().items()}
    state |= {f"classifier.classifier.{key}": value for key, value in classifier.state_dict().items()}
    return made, block, classifier, state


@functools.cache
def small_state():
    """Of a layumi network on a resnet18; copied before it is changed."""
    return layumi("resnet18")[-1]


IMAGES = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "last_stride"), [("resnet50", 1), ("resnet18", 2)])
@torch.inference_mode()
def test_layumi(name, last_stride, tmp_path):
    made, block, classifier, state = layumi(name, last_stride)
    torch.save(state, tmp_path / "net_last.pth")
    loaded = load_reid(tmp_path / "net_last.pth", last_stride=last_stride)
    feature = block(pooled(made, IMAGES))
    torch.testing.assert_close(loaded.network.feature(IMAGES), feature, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded.network(IMAGES).logits, classifier(feature), rtol=1e-5, atol=1e-5)
    config = loaded.network.config
    assert (loaded.kind, loaded.class_names, config.classes) == ("layumi", (), CLASSES)
    assert (config.height, config.width, config.backbone) == (256, 128, name)
    assert loaded.record == {"trained_on": "unknown"}
    (note,) = loaded.notes
    assert "no activation" in note
    studys = load_reid(tmp_path / "net_last.pth", activation="relu", last_stride=last_stride)
    torch.testing.assert_close(studys.network.feature(IMAGES), feature.clamp(min=0), rtol=1e-5, atol=1e-5)
    assert studys.notes == ()


def test_layumi_options_beside_it(tmp_path, monkeypatch):
    made, block, _, state = layumi("resnet18", 1, embedding=8)
    torch.save(state, tmp_path / "net_last.pth")
    assert any("last stride 2, its default" in note for note in load_reid(tmp_path / "net_last.pth").notes)
    (tmp_path / "opts.yaml").write_text("stride: 1\ndroprate: 0.2\nlinear_num: 8\ngpu_ids:\n- 0\n")
    loaded = load_reid(tmp_path / "net_last.pth")
    torch.testing.assert_close(loaded.network.feature(IMAGES), block(pooled(made, IMAGES)), rtol=1e-5, atol=1e-5)
    assert (loaded.network.config.dropout, loaded.network.config.embedding) == (0.2, 8)
    assert "opts.yaml beside it says stride 1, droprate 0.2" in loaded.notes
    for text, said in (
        ("stride: [1", "cannot be read"),
        ("stride: !!python/object/apply:os.getcwd []", "cannot be read"),
        ("stride: two", "where numbers are needed"),
        ("stride: 7", "last_stride 7"),
    ):
        (tmp_path / "opts.yaml").write_text(text)
        with pytest.raises(InputError, match=said):
            load_reid(tmp_path / "net_last.pth")
    real = builtins.__import__

    def without_yaml(name, *rest, **more):
        if name == "yaml":
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_yaml)
    assert "opts.yaml beside it was not read: pip install pyyaml" in load_reid(tmp_path / "net_last.pth").notes


def test_averaged_parallel_and_compiled_networks(tmp_path):
    state = small_state()
    plain = tmp_path / "plain.pth"
    torch.save(state, plain)
    expected = load_reid(plain).network.feature(IMAGES)
    for number, prefix in enumerate(("module.", "_orig_mod.", "module.module.")):
        path = tmp_path / f"{number}.pth"
        torch.save({"n_averaged": torch.tensor(3)} | {prefix + key: value for key, value in state.items()}, path)
        assert torch.equal(load_reid(path).network.feature(IMAGES), expected)


@pytest.mark.parametrize("name", ["resnet50", "resnet50_fc512", "resnet18", "resnet34"])
@torch.inference_mode()
def test_torchreid(name, tmp_path):
    base = name.removesuffix("_fc512")
    made = backbone(base, 1 if name.endswith("fc512") else 2)
    wide = made.fc.in_features
    state = {key: value for key, value in made.state_dict().items() if not key.startswith("fc.")}
    feature = pooled(made, IMAGES)
    if name.endswith("fc512"):
        head = trained(nn.Sequential(nn.Linear(wide, 512), nn.BatchNorm1d(512), nn.ReLU()))
        state |= {f"fc.{key}": value for key, value in head.state_dict().items()}
        feature, wide = head(feature), 512
    classifier = nn.Linear(wide, CLASSES)
    state |= {f"classifier.{key}": value for key, value in classifier.state_dict().items()}
    checkpoint = {
        "state_dict": collections.OrderedDict((f"module.{key}", value) for key, value in state.items()),
        "epoch": 60,
        "rank1": np.float32(0.9),  # a NumPy number, as its evaluation gives
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "scheduler": {"milestones": collections.Counter([20])},
    }
    torch.save(checkpoint, tmp_path / "model.pth.tar-60")
    loaded = load_reid(tmp_path / "model.pth.tar-60")
    torch.testing.assert_close(loaded.network.feature(IMAGES), feature, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded.network(IMAGES).logits, classifier(feature), rtol=1e-5, atol=1e-5)
    assert loaded.kind == "torchreid"
    assert f"torchreid's {name}, whose last stride" in loaded.notes[0]
    with pytest.raises(InputError, match="activation none|activation relu was asked for"):
        load_reid(tmp_path / "model.pth.tar-60", activation="none" if name.endswith("fc512") else "relu")


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_of_a_file_is_run(tmp_path):
    torch.save({"state_dict": {}, "rank1": Hostile(tmp_path / "ran")}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"nothing of it was run \(it refers to \S*open") as refused:
        load_reid(tmp_path / "a.pth")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()
    torch.save(nn.Linear(2, 2), tmp_path / "b.pth")
    with pytest.raises(InputError, match="refers to torch.nn"):
        load_reid(tmp_path / "b.pth")


def test_numpy_is_not_let_into_files(tmp_path):
    # Its numbers are allowed in a checkpoint only because nothing is made of them.
    torch.save({"state_dict": {"weight": np.float64(1)}}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="its weight is a NoneType, not a tensor"):
        load_reid(tmp_path / "a.pth")


def without(key):
    return lambda state: state.pop(key)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("classifier.add_block.1.weight"), "tensor norm.weight is missing"),
        (without("model.layer3.0.conv1.weight"), "tensor backbone.layer3.0.conv1.weight is missing"),
        (lambda s: s.update({"usam_1.weight": torch.ones(1)}), "tensor usam_1.weight is not one of such a network"),
        (lambda s: s.update({"model.layer1.2.conv1.weight": torch.ones(1)}), r"its backbone has \[3, 2, 2, 2\] basic"),
        (lambda s: s.update({"classifier.add_block.0.weight": torch.ones(9)}), "linear_num 0"),
        (lambda s: s.update({"model.conv1.weight": torch.ones(1).expand(10**9)}), "more than the whole file"),
        (lambda s: s.update({"model.conv1.weight": torch.ones(64, 3, 7, 7) / 0}), "no finite numbers"),
        (lambda s: s.update({"model.conv1.weight": torch.ones(64, 3, 3, 3)}), r"has shape \(64, 3, 3, 3\)"),
        (lambda s: s.update({"epoch": 3}), "its epoch is a int, not a tensor"),
    ],
)
def test_files_that_do_not_fit(change, said, tmp_path):
    state = dict(small_state())
    change(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(InputError, match=said):
        load_reid(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "it holds a list, not a state dict"),
        ({}, "it holds a dict, not a state dict"),
        ({"base.weight": torch.ones(1)}, r"neither layumi's ResNet-50 nor torchreid's resnet \(base.weight"),
        ({"conv1.weight": torch.ones(1), "fc.weight": torch.ones(1)}, "training takes them with --weights"),
    ],
)
def test_other_contents(content, said, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=said):
        load_reid(tmp_path / "a.pth")


def test_activation_that_no_network_has(tmp_path):
    with pytest.raises(InputError, match="activation 'gelu': take one of relu, none"):
        load_reid(tmp_path / "a.pth", activation="gelu")
