"""Re-ID networks as .onnx: against PyTorch, every way to state the input, and what is refused."""

import dataclasses
import json
import pickle

import cv2
import numpy as np
import pyarrow as pa
import pytest
from onnx import TensorProto

from actors.identity_scorer import IdentityScorer
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.reid.checkpoint import load_judge, load_reid, save_reid
from passersby.reid.identity_features import load_identity
from passersby.reid.network import ReidConfig, ReidNetwork
from passersby.reid.onnx_network import OnnxInput, onnx_sha256
from pipeline.card.judge import Judge
from pipeline.identity import identity_of
from tests.helpers import onnx_reid
from tests.helpers.onnx_reid import STATED, write_reid_onnx

IMAGES = np.random.default_rng(1).integers(0, 256, (5, 32, 16, 3), np.uint8)
GIVEN = OnnxInput(mean=tuple(STATED["mean"]), deviation=tuple(STATED["deviation"]))


@pytest.mark.parametrize("place", ["options", "json", "metadata"])
@pytest.mark.parametrize(
    "stated",
    [
        STATED,
        STATED | {"flip": False},
        {"mean": [0, 0, 0], "deviation": [1, 1, 1], "channels": "bgr"},
        {"mean": [104, 117, 123], "deviation": [58, 57, 57], "scale": 1, "channels": "bgr"},
    ],
)
def test_features_are_pytorchs_wherever_the_input_is_stated(place, stated, tmp_path):
    text = json.dumps(stated)
    path = write_reid_onnx(tmp_path / "a.onnx", metadata={"passersby-input": text} if place == "metadata" else {})
    if place == "json":
        path.with_suffix(".json").write_text("\ufeff" + text)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in stated.items()}
    loaded = load_judge(path, onnx=OnnxInput(**values) if place == "options" else OnnxInput())
    network = loaded.feature_network()
    np.testing.assert_allclose(network(IMAGES), onnx_reid.features(IMAGES, **stated), atol=1e-5)
    assert (network.height, network.width_pixels, network.width, loaded.kind) == (32, 16, onnx_reid.VALUES, "onnx")
    # What is stated outside the file gives other features of the same file.
    assert (loaded.sha256 == file_sha256(path)) == (place == "metadata")
    assert onnx_sha256(path) == (loaded.sha256 if place == "json" else None)


@pytest.mark.parametrize("kind", ["fixed 1", "fixed 4", "channels last", "float16", "open size", "bytes", "pickled"])
def test_every_kind_of_input(kind, tmp_path):
    settings, size, stated = {}, {}, STATED
    if kind.startswith("fixed"):
        settings = {"batch": int(kind[-1])}
    elif kind == "channels last":
        settings = {"channels_last": True}
    elif kind == "float16":
        settings = {"kind": TensorProto.FLOAT16}
    elif kind == "open size":
        settings, size = {"size": ("h", "w")}, {"height": 32, "width": 16}
    elif kind == "bytes":
        settings, stated = {"kind": TensorProto.UINT8}, {"mean": [0, 0, 0], "deviation": [1, 1, 1], "scale": 1}
    path = write_reid_onnx(tmp_path / "a.onnx", **settings, metadata={"passersby-input": json.dumps(stated)})
    loaded = load_judge(path, **size)
    network = loaded.feature_network("cpu")
    if kind == "pickled":
        network = pickle.loads(pickle.dumps(network))
    tolerance = 2e-3 if kind == "float16" else 1e-5
    for count in (5, 1):
        expected = onnx_reid.features(IMAGES[:count], **stated)
        np.testing.assert_allclose(network(IMAGES[:count]), expected, atol=tolerance)
    assert len(network(IMAGES[:0])) == 0
    (note, *_) = loaded.notes
    assert ("4 at once" if kind == "fixed 4" else "1 at once" if kind == "fixed 1" else "any number") in note
    with pytest.raises(InputError, match=r"are not uint8 \[N, 32, 16, 3\]"):
        network(IMAGES[:, :16])


@pytest.mark.parametrize(
    ("settings", "given", "problem"),
    [
        ({}, {}, "give --mean and --deviation, or write a.json beside it"),
        ({}, {"height": 64}, r"height 64 was asked for, but its input is \[open, 3, 32, 16\]"),
        ({"size": ("h", 16)}, {"onnx": GIVEN}, r"\[open, 3, open, 16\] leaves the height open: give --height"),
        ({"pooled": False}, {"onnx": GIVEN}, r"its output \(1, 16, 7, 3\) for 1 images is not"),
        ({"inputs": 2}, {"onnx": GIVEN}, "it has the inputs images, images2: one is needed"),
        ({"kind": TensorProto.INT64}, {"onnx": GIVEN}, r"its input is tensor\(int64\)"),
        ({"external": "../../secret"}, {"onnx": GIVEN}, "its weights lie in other files"),
        (
            {"metadata": {"passersby-input": '{"mean": [1]}'}},
            {},
            r"metadata passersby-input: mean '\(1,\)': must be three numbers",
        ),
        ({"metadata": {"passersby-input": '{"colour": 1}'}}, {}, "colour is unknown; its keys are channels, deviation"),
        ({"metadata": {"passersby-input": "[" * 9999}}, {}, "metadata passersby-input: no JSON"),
        ({}, {"onnx": dataclasses.replace(GIVEN, deviation=(0.0, 1.0, 1.0))}, "must be three numbers above 0"),
        ({}, {"activation": "relu"}, "--activation is for networks that are no .onnx"),
    ],
)
def test_what_cannot_be_used_is_one_line(settings, given, problem, tmp_path):
    path = write_reid_onnx(tmp_path / "a.onnx", **settings)
    with pytest.raises(InputError, match=problem) as caught:
        load_judge(path, **given)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_run_and_a_card_are_judged_by_it(tmp_path):
    path = write_reid_onnx(tmp_path / "a.onnx", batch=3)
    path.with_suffix(".json").write_text(json.dumps(STATED))
    identity = identity_of(str(path), None, None, {})
    assert identity is not None
    assert identity.sha256 == identity.network.sha256 != file_sha256(path)  # a plan knows the JSON file too
    contents = [cv2.imencode(".png", image)[1].tobytes() for image in IMAGES[:, :, :, ::-1]]
    expected = onnx_reid.features(IMAGES, **STATED)
    np.testing.assert_allclose(Judge(identity.network).features(contents), expected, atol=1e-5)
    scored = IdentityScorer(identity.network, None)(
        pa.table(
            {
                "unit": [0], "person": [[0] * 5], "variant": [[*range(5)]], "source": [["seed"] * 5],
                "reference_variant": [[0] * 5], "image": [contents], "status": [["ok"] * 5],
                "message": pa.array([[None] * 5], pa.list_(pa.string())),
            }
        )
    )  # fmt: skip
    np.testing.assert_allclose(scored["identity_cosine"].to_pylist()[0], expected @ expected[0], atol=1e-5)


def test_damaged_files_are_one_line(tmp_path):
    path = write_reid_onnx(tmp_path / "a.onnx")
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:-7], b"\x08\x08" + b"\xff" * 50, b"<html>"):
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            load_judge(path, onnx=GIVEN)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="No such file"):
        load_judge(tmp_path / "none.onnx", onnx=GIVEN)


def test_other_networks_are_read_as_before_and_onnx_is_known_without_its_name(tmp_path):
    made = ReidNetwork(ReidConfig(3, "resnet10", height=32, width=16))
    save_reid(tmp_path / "a.safetensors", made, class_names=list("abc"), record={})
    loaded = load_judge(tmp_path / "a.safetensors")
    expected = load_reid(tmp_path / "a.safetensors").features(IMAGES)
    np.testing.assert_array_equal(loaded.feature_network()(IMAGES), expected)
    with pytest.raises(InputError, match="--mean is for .onnx files: leave it out"):
        load_judge(tmp_path / "a.safetensors", onnx=GIVEN)
    path = write_reid_onnx(tmp_path / "model")
    assert load_judge(path, onnx=GIVEN).kind == "onnx"
    # A loss needs gradients, which onnxruntime does not give.
    with pytest.raises(InputError, match="an ONNX network or another protocol buffer"):
        load_identity(path)
