"""passersby/reid/checkpoint.py: nothing is lost in our own files, and what does not fit is refused in one line."""

import hashlib
import json
import tarfile
import urllib.error

import pytest
import safetensors
import safetensors.torch
import torch
import torchvision

from passersby.errors import InputError
from passersby.reid.checkpoint import load_imagenet, load_reid, save_reid
from passersby.reid.network import ReidConfig, ReidNetwork

NAMES = ("0002", "0007", "run/3")


def network(**settings) -> ReidNetwork:
    torch.manual_seed(0)
    settings = {"backbone": "resnet10", "height": 64, "width": 32, "embedding": 16} | settings
    return ReidNetwork(ReidConfig(len(NAMES), **settings)).eval()


@pytest.fixture
def saved(tmp_path):
    save_reid(tmp_path / "a.safetensors", network(), class_names=NAMES, record={"seed": 1})
    return tmp_path / "a.safetensors"


def rewritten(path, change=None, **metadata):
    """The file with other metadata, or other tensors."""
    with safetensors.safe_open(path, framework="pt") as file:
        known = json.loads(file.metadata()["passersby-reid"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if change is not None:
        change(tensors)
    config = metadata.pop("config", {})
    known = known | metadata | {"config": known["config"] | config}
    safetensors.torch.save_file(tensors, path, {"passersby-reid": json.dumps(known)})
    return path


@pytest.mark.parametrize(
    "settings",
    [{}, {"neck": "bnneck", "domains": 2, "stem": "small", "last_stride": 1}, {"neck": "none", "activation": "none"}],
)
def test_everything_comes_back(settings, tmp_path):
    made = network(**settings).to(memory_format=torch.channels_last)
    save_reid(tmp_path / "a.safetensors", made, class_names=NAMES, record={"seed": 1, "data": {"people": 3}})
    torch.manual_seed(5)
    loaded = load_reid(tmp_path / "a.safetensors")
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))  # loading does not change what a seed gives
    assert loaded.network.config == made.config
    ours, theirs = made.state_dict(), loaded.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not loaded.network.training
    asked = [[(name, p.requires_grad) for name, p in one.named_parameters()] for one in (loaded.network, made)]
    assert asked[0] == asked[1]
    assert (loaded.class_names, loaded.kind, loaded.notes) == (NAMES, "passersby", ())
    assert loaded.record == {"seed": 1, "data": {"people": 3}}
    assert loaded.sha256 == hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    images = torch.rand(2, 3, 64, 32)
    torch.testing.assert_close(loaded.network.feature(images), made.feature(images), rtol=1e-4, atol=1e-5)
    loaded.network.train()(images).logits.sum().backward()  # what was loaded can be trained on
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_another_size_is_said(saved):
    loaded = load_reid(saved, height=128, width=64)
    assert (loaded.network.config.height, loaded.network.config.width) == (128, 64)
    assert loaded.notes == ("images of 128 x 64: it was made for 64 x 32",)


def test_names_are_one_for_each_class(tmp_path):
    with pytest.raises(InputError, match="2 class names for a network of 3"):
        save_reid(tmp_path / "a.safetensors", network(), class_names=NAMES[:2], record={})


def nan(tensors):
    tensors["embed.weight"][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"format_version": 2}, "format version 2; this program reads version 1"),
        ({"class_names": ["a"]}, "its 1 class names are not those of 3 classes"),
        ({"class_names": [1, 2, 3]}, "class names"),
        ({"record": None}, "lacks the configuration, the classes or the record"),
        ({"config": {"backbone": "resnet18"}}, "tensor backbone.layer1.1.conv1.weight is missing"),
        ({"config": {"neck": "none"}}, "tensor embed.bias is not one of such a network"),
        ({"config": {"embedding": 8}}, r"classifier.weight has shape \(3, 16\), that of such a network \(3, 8\)"),
        ({"config": {"embedding": "8"}}, "embedding is '8', no int"),
        ({"config": {"last_stride": True}}, "last_stride is 'True', no int"),
        ({"config": {"eyes": 2}}, "'eyes', which this version does not know"),
        ({"change": nan}, "tensor embed.weight holds values that are no finite numbers"),
    ],
)
def test_damaged_files_are_refused(saved, damage, said):
    rewritten(saved, **damage)
    with pytest.raises(InputError, match=said) as refused:
        load_reid(saved)
    assert str(refused.value).startswith(f"network {saved}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>", "an HTML or XML page: did the download fail"),
        (b"\x80\x04N.", "a plain pickle"),
        (b"PK\x03\x04 and no more", "damaged or truncated"),
        (b"", "starts with b''"),
    ],
)
def test_files_that_are_no_network(tmp_path, content, said):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(InputError, match=said) as refused:
        load_reid(tmp_path / "a.pth")
    assert "StyleGAN" not in str(refused.value)


def test_missing_cut_and_foreign_files(saved, tmp_path):
    with pytest.raises(InputError, match="none.safetensors: No such file"):
        load_reid(tmp_path / "none.safetensors")
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"no re-identification network: another program's \(weight\)"):
        load_reid(tmp_path / "b.safetensors")
    saved.write_bytes(saved.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"damaged \.safetensors file"):
        load_reid(saved)


def test_a_tar_archive_is_named(tmp_path):
    with tarfile.open(tmp_path / "a.pth.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    with pytest.raises(InputError, match="a tar archive, also the form of PyTorch's very first files: unpack it"):
        load_reid(tmp_path / "a.pth.tar")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensor: tensor.to("meta"), "is on the device 'meta'"),
        (lambda tensor: tensor.to_sparse(), "is sparse"),
        (lambda tensor: torch.nested.nested_tensor([tensor, tensor]), "is nested"),
        (lambda tensor: torch.quantize_per_tensor(tensor, 0.5, 0, torch.qint8), "is quantised"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
def test_tensors_that_are_no_plain_weights_are_one_line(tmp_path, change, said):
    state = torchvision.models.resnet18().state_dict()
    state["layer1.0.conv1.weight"] = change(state["layer1.0.conv1.weight"])
    torch.save(state, tmp_path / "weights.pth")
    made = network(backbone="resnet18", last_stride=1)
    with pytest.raises(InputError, match=f"weights.pth: .*its layer1.0.conv1.weight {said}") as refused:
        load_imagenet(made, tmp_path / "weights.pth")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "old"),
    [(torch.float16, False), (torch.float16, True), (torch.bfloat16, True), (torch.float8_e4m3fn, False),
     (torch.float8_e5m2, False)],
)  # fmt: skip
def test_weights_of_any_type_of_numbers_are_read(tmp_path, kind, old):
    state = {name: value.to(kind) if value.is_floating_point() else value
             for name, value in torchvision.models.resnet18().state_dict().items()}  # fmt: skip
    torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=not old)
    made = network(backbone="resnet18", last_stride=1)
    load_imagenet(made, tmp_path / "weights.pth")
    name = "layer4.0.conv1.weight"
    assert torch.equal(made.backbone.state_dict()[name], state[name].float())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_imagenet_weights_fill_the_backbone(tmp_path, suffix):
    state = torchvision.models.resnet18().state_dict()
    path = tmp_path / f"weights{suffix}"
    torch.save(state, path) if suffix == ".pth" else safetensors.torch.save_file(state, path)
    made = network(backbone="resnet18", last_stride=1, domains=2).to(memory_format=torch.channels_last)
    head = [value.clone() for value in made.head_parameters()]
    (note,) = load_imagenet(made, path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() in note
    filled = made.backbone.state_dict()
    assert torch.equal(filled["layer4.0.conv1.weight"], state["layer4.0.conv1.weight"])
    for domain in (0, 1):
        torch.testing.assert_close(filled[f"bn1.norms.{domain}.running_mean"], state["bn1.running_mean"])
    plain = network(backbone="resnet18")
    load_imagenet(plain, path)
    assert all(torch.equal(value, state[name]) for name, value in plain.backbone.state_dict().items())
    assert all(torch.equal(old, new) for old, new in zip(head, made.head_parameters(), strict=True))


def test_imagenet_weights_without_counters(tmp_path):
    # As files of before PyTorch 0.4.1 are.
    state = {n: v for n, v in torchvision.models.resnet18().state_dict().items() if "num_batches" not in n}
    torch.save(state, tmp_path / "old.pth")
    made = network(backbone="resnet18")
    load_imagenet(made, tmp_path / "old.pth")
    assert torch.equal(made.backbone.conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backbone": "resnet10"}, "resnet10: there are no ImageNet weights"),
        ({"backbone": "resnet18", "stem": "small"}, "stem small: there are no ImageNet weights"),
        ({"backbone": "resnet34"}, "tensor layer1.2.conv1.weight is missing, which torchvision's resnet34 has"),
    ],
)
def test_imagenet_weights_that_do_not_fit(settings, said, tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
    made = network(**settings)
    before = made.backbone.conv1.weight.clone()
    with pytest.raises(InputError, match=said):
        load_imagenet(made, tmp_path / "weights.pth")
    assert torch.equal(made.backbone.conv1.weight, before)


def test_imagenet_weights_of_another_network(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    torch.save(state | {"attention.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(InputError, match=r"ImageNet weights .*more.pth: tensor attention.weight is not one of"):
        load_imagenet(network(backbone="resnet18"), tmp_path / "more.pth")
    torch.save(state | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, tmp_path / "grey.pth")
    with pytest.raises(InputError, match=r"tensor conv1.weight has shape \(64, 1, 7, 7\)"):
        load_imagenet(network(backbone="resnet18"), tmp_path / "grey.pth")


def test_imagenet_weights_offline_and_out_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(url, target, **options):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InputError, match=r"resnet18-f37072fd\.pth .*no route.*--weights PATH"):
        load_imagenet(network(backbone="resnet18"))
    cached = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, cached)
    made = network(backbone="resnet18")
    assert "resnet18-f37072fd.pth" in load_imagenet(made)[0]
    assert torch.equal(made.backbone.conv1.weight, state["conv1.weight"])
