"""jobs/export_reid.py: the ONNX file gives PyTorch's features in another program, or is not written."""

import dataclasses
import importlib
import json
import re

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from jobs import export_reid
from jobs.export_reid import Config, main
from passersby.errors import InputError
from passersby.reid.checkpoint import load_judge, load_reid, save_reid
from passersby.reid.network import ReidConfig, ReidNetwork
from tests.helpers import osnet_files


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network whose batch normalisations change values, as a file."""
    torch.manual_seed(0)
    network = ReidNetwork(ReidConfig(3, "resnet10", "embedding", 64, 32, embedding=16, domains=2)).train()
    with torch.no_grad():
        network(torch.rand(8, 3, 64, 32), 0)
    path = tmp_path_factory.mktemp("network") / "a.safetensors"
    save_reid(path, network, class_names=("a", "b", "c"), record={"seed": 1})
    return path


@pytest.fixture(scope="module")
def exported(trained):
    path = trained.with_name("a.onnx")
    main(Config(trained, path))
    return path


def run(path, images):
    (features,) = onnxruntime.InferenceSession(path).run(None, {"images": images})
    return features


@pytest.mark.slow
def test_features_are_pytorchs_for_any_number_of_images(trained, exported):
    images = np.random.default_rng(0).random((5, 3, 64, 32), np.float32)
    network = load_reid(trained).network
    with torch.inference_mode():
        both = network.feature(torch.from_numpy(images)) + network.feature(torch.from_numpy(images).flip(3))
    expected = (both / both.norm(dim=1, keepdim=True)).numpy()
    for count in (1, 2, 5):
        np.testing.assert_allclose(run(exported, images[:count]), expected[:count], atol=1e-5)


@pytest.mark.slow
def test_our_own_file_is_read_again_with_everything_that_it_says(trained, exported):
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), np.uint8)
    loaded = load_judge(exported)
    np.testing.assert_allclose(loaded.feature_network()(images), load_reid(trained).features(images), atol=1e-5)
    assert loaded.record == {"seed": 1}
    assert "without the mirror image" in loaded.notes[0]  # the file adds it itself


@pytest.mark.slow
def test_a_network_of_timm_is_exported(tmp_path, capsys):
    made = ReidNetwork(ReidConfig(3, "timm:test_efficientnet", "bnneck", 64, 32, domains=2)).train()
    with torch.no_grad():
        made(torch.rand(8, 3, 64, 32), 0)
    save_reid(tmp_path / "a.safetensors", made, class_names=("a", "b", "c"), record={})
    main(Config(tmp_path / "a.safetensors", tmp_path / "a.onnx"))
    assert re.search(r"onnxruntime and PyTorch: largest 1 - cosine \d\.\de-(0[6-9]|1\d) on 8", capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("neck", ["embedding", "bnneck"])
def test_opencv_gives_pytorchs_features_for_any_number_of_images(trained, exported, tmp_path, capsys, neck):
    path, network, flip = exported, trained, neck == "embedding"
    if neck == "bnneck":
        torch.manual_seed(1)
        other = ReidNetwork(ReidConfig(3, "resnet10", neck, 64, 32, last_stride=1)).train()
        with torch.no_grad():
            other(torch.rand(8, 3, 64, 32))
        path, network = tmp_path / "a.onnx", tmp_path / "a.safetensors"
        save_reid(network, other, class_names=("a", "b", "c"), record={})
        main(Config(network, path, flip=False))
        assert re.search(r"OpenCV's DNN and PyTorch: largest 1 - cosine \d\.\de-\d\d on 8", capsys.readouterr().out)
    images = np.random.default_rng(0).random((5, 3, 64, 32), np.float32)
    module = export_reid.UnitFeature(load_reid(network).network, flip)
    with torch.inference_mode():
        expected = module(torch.from_numpy(images)).numpy()
    net = cv2.dnn.readNetFromONNX(str(path))
    for count in (1, 5, 2):  # OpenCV once fused batch normalisations anew after each change of the size
        net.setInput(images[:count])
        # OpenCV sums in another order, which changes values by 1e-6; 1e-4 is what users may rely on.
        np.testing.assert_allclose(net.forward(), expected[:count], atol=1e-4)
    assert not {"Slice", "Expand"} & {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["osnet_x0_25", "osnet_ain_x0_25"])
def test_osnets_give_pytorchs_features_in_onnxruntime_and_opencv(name, tmp_path, capsys):
    torch.save(osnet_files.state(name), tmp_path / "a.pth")
    main(Config(tmp_path / "a.pth", tmp_path / "a.onnx", height=64, width=32))
    printed = capsys.readouterr().out
    assert re.search(r"onnxruntime and PyTorch: largest 1 - cosine \d\.\de-(0[6-9]|1\d) on 8", printed)
    assert re.search(r"OpenCV's DNN and PyTorch: largest 1 - cosine \d\.\de-(0[6-9]|1\d) on 8", printed)
    module = export_reid.UnitFeature(load_reid(tmp_path / "a.pth", height=64, width=32).network, True)
    images = osnet_files.images(3)
    with torch.inference_mode():
        expected = module(images).numpy()
    np.testing.assert_allclose(run(tmp_path / "a.onnx", images.numpy()), expected, atol=1e-5)


@pytest.mark.parametrize("settings", [{"domains": 2}, {"neck": "bnneck", "last_stride": 1}, {"neck": "none"}])
@pytest.mark.parametrize("backbone", ["resnet10", "resnet50", "osnet_x0_25", "osnet_ain_x0_25"])
def test_folding_changes_no_feature(backbone, settings):
    torch.manual_seed(0)
    network = ReidNetwork(ReidConfig(3, backbone, height=64, width=32, **settings)).train()
    with torch.no_grad():
        network(torch.rand(4, 3, 64, 32))
    plain = export_reid.folded(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in plain.modules())
    images = torch.rand(2, 3, 64, 32)
    with torch.inference_mode():
        expected = network.eval().flip_averaged(images)
        torch.testing.assert_close(plain.flip_averaged(images), expected, atol=1e-5, rtol=0)


def test_the_mirror_is_that_of_the_evaluation(trained):
    network = load_reid(trained).network
    images = torch.rand(3, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(export_reid.UnitFeature(network, True)(images), network.flip_averaged(images))


def test_file_says_what_it_takes_and_where_it_comes_from(trained, exported):
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    (given,), (made,) = model.graph.input, model.graph.output
    sizes = [[d.dim_param or d.dim_value for d in part.type.tensor_type.shape.dim] for part in (given, made)]
    assert sizes == [["batch", 3, 64, 32], ["batch", 16]]
    assert "RGB, 0..1" in given.doc_string
    described = json.loads({entry.key: entry.value for entry in model.metadata_props}["passersby-reid"])
    loaded = load_reid(trained)
    assert described["network"] == {"file": "a.safetensors", "sha256": loaded.sha256, "kind": "passersby"}
    assert described["config"] == json.loads(json.dumps(dataclasses.asdict(loaded.network.config)))
    assert described["record"] == {"seed": 1}
    assert described["flip_averaged"] is True
    # No folders of the machine that wrote it, and no image's classes: what is exported compares people.
    assert not re.search(rb"[\w-]+/[\w-]+\.py", exported.read_bytes())
    assert not any("classifier" in entry.name for entry in model.graph.initializer)


@pytest.mark.slow
def test_without_flip(trained, tmp_path, capsys):
    main(Config(trained, tmp_path / "a.onnx", flip=False))
    images = np.random.default_rng(0).random((2, 3, 64, 32), np.float32)
    with torch.inference_mode():
        feature = load_reid(trained).network.feature(torch.from_numpy(images)).numpy()
    expected = feature / np.linalg.norm(feature, axis=1, keepdims=True)
    np.testing.assert_allclose(run(tmp_path / "a.onnx", images), expected, atol=1e-5)
    printed = capsys.readouterr().out
    assert re.search(r"largest 1 - cosine \d\.\de-\d\d on 8 images", printed)
    assert "RGB, 0..1" in printed


def test_features_that_differ_are_not_written(trained, exported, tmp_path, monkeypatch):
    # The file of another network stands for one that was translated wrongly.
    model = onnx.load(exported)
    weight = next(entry for entry in model.graph.initializer if entry.name.endswith("embed.weight"))
    other = onnx.numpy_helper.to_array(weight)[::-1].copy()
    weight.CopyFrom(onnx.numpy_helper.from_array(other, weight.name))
    for content in (model.SerializeToString(), undefined(model)):
        monkeypatch.setattr(export_reid, "onnx_bytes", lambda module, described, content=content: content)
        with pytest.raises(InputError, match=r"was not written: onnxruntime's features differ .* 1e-04 is allowed"):
            main(Config(trained, tmp_path / "b.onnx"))
    assert not list(tmp_path.iterdir())


def undefined(model) -> bytes:
    weight = next(entry for entry in model.graph.initializer if entry.name.endswith("embed.weight"))
    broken = np.full_like(onnx.numpy_helper.to_array(weight), np.nan)
    weight.CopyFrom(onnx.numpy_helper.from_array(broken, weight.name))
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"out": "b.pt"}, r"b\.pt: its name has to end with \.onnx"),
        ({"out": "none/b.onnx"}, "there is no folder"),
        ({"out": "there.onnx"}, "is there already"),
        ({"height": 0}, "--height 0: must be 1 or more"),
        ({"network": "none.pth"}, "--network .*none.pth: no such file"),
    ],
)
def test_options_that_cannot_be_used(trained, tmp_path, settings, said):
    (tmp_path / "there.onnx").write_bytes(b"")
    places = {name: tmp_path / settings[name] for name in ("network", "out") if name in settings}
    options = {"network": trained, "out": tmp_path / "b.onnx"} | settings | places
    with pytest.raises(InputError, match=said):
        main(Config(**options))


def test_package_that_is_not_installed(trained, tmp_path, monkeypatch):
    real = importlib.import_module

    def without(name):
        if name == "onnxscript":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(InputError, match=r"onnxscript is not installed .*pip install -e '\.\[onnx\]'"):
        main(Config(trained, tmp_path / "b.onnx"))
