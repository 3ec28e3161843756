"""An ONNX detector of the user's own, run by OpenCV's DNN: against PyTorch, and every way to state its layout."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from passersby.errors import InputError
from passersby.yolo.detector_file import own_detector
from passersby.yolo.onnx_file import read_graph, read_statement
from passersby.yolo.pedestrian_filter import PedestrianFilter
from tests.helpers.onnx_files import write_onnx
from tests.passersby.yolo.test_yolov4_tiny import drawn_people

NAMES = "{0: 'car', 1: 'person', 2: 'dog'}"  # as exporters write them


def scores_of(path, detector: PedestrianFilter, images, person: int = 1, layout: str = "v8", **stated) -> np.ndarray:
    """PyTorch's detector scores from the numbers in the file."""
    weight, bias = (numpy_helper.to_array(part) for part in onnx.load(path).graph.initializer[:2])
    values = torch.from_numpy(detector.stretched(images, detector.window)).double()  # [N, H, W, 3] RGB
    values = values.flip(3) if stated.get("channels") == "bgr" else values
    mean, deviation = (
        torch.tensor(stated.get(name, [value] * 3)) for name, value in (("mean", 0.0), ("deviation", 1.0))
    )
    values = (values * stated.get("scale", 1 / 255) - mean) / deviation
    maps = torch.conv2d(values.permute(0, 3, 1, 2), torch.tensor(weight).double(), torch.tensor(bias).double(), 32)
    rows = maps.sigmoid().flatten(2)  # [N, 4 or 5 + classes, boxes]
    classes = rows[:, 4:] if layout == "v8" else rows[:, 4:5] * rows[:, 5:]
    best = classes.argmax(1) == person
    return torch.where(best, classes[:, person], 0).amax(1).numpy()


@pytest.mark.parametrize("size", [(96, 64), (128, 128)])
@pytest.mark.parametrize("layout", ["v5", "v8"])
def test_equals_pytorch(tmp_path, layout, size):
    path = write_onnx(tmp_path / "own.onnx", layout, classes=3, size=size, metadata={"names": NAMES})
    file = own_detector(path)
    assert file.setup == f"onnx {layout} rgb * 0.00392157, {size[0]} x {size[1]}, person 1 of 3"
    detector = PedestrianFilter(path, 128, 64, **file.arguments)
    images = drawn_people(3)
    wanted = [scores_of(path, detector, images, person, layout) for person in range(3)]
    assert np.std(wanted) > 0.1
    for detector.person, want in enumerate(wanted):
        np.testing.assert_allclose(detector.scores(images), want, atol=1e-5)
    assert (detector.input_height, detector.input_width) == size
    people = detector.boxes(images, score=0.0)
    assert all(boxes.shape[1] == 5 for boxes in people)


@pytest.mark.parametrize(
    "stated",
    [
        {"channels": "bgr"},
        {"scale": 1.0},
        {"mean": [0.485, 0.456, 0.406], "deviation": [0.229, 0.224, 0.225]},
        {"channels": "bgr", "scale": 1, "mean": [104, 117, 123], "deviation": [58, 57, 57]},
    ],
)
@pytest.mark.parametrize("place", ["json", "metadata"])
def test_channels_and_normalisation_are_stated(tmp_path, place, stated):
    text = json.dumps(stated | {"layout": "v8", "classes": ["car", "person", "dog"]})
    metadata = {"passersby-detector": text} if place == "metadata" else {}
    path = write_onnx(tmp_path / "own.onnx", "v8", classes=3, metadata=metadata, scale=stated.get("scale", 1 / 255))
    if place == "json":
        path.with_suffix(".json").write_text("\ufeff" + text)
    file = own_detector(path)
    assert set(file.contents()) == {".onnx"} | ({".json"} if place == "json" else set())
    detector = PedestrianFilter(path, 128, 64, **file.arguments)
    images = drawn_people(2)
    np.testing.assert_allclose(detector.scores(images), scores_of(path, detector, images, **stated), atol=1e-4)
    # The same numbers without the statement.
    write_onnx(tmp_path / "b.onnx", "v8", classes=3, metadata={"names": NAMES}, scale=stated.get("scale", 1 / 255))
    plain = PedestrianFilter(tmp_path / "b.onnx", 128, 64, person=1)
    assert np.abs(plain.scores(images) - detector.scores(images)).max() > 1e-4


def test_the_layout_follows_from_the_number_of_names(tmp_path):
    for layout in ("v5", "v8"):
        path = write_onnx(tmp_path / "own.onnx", layout, classes=3, metadata={"names": NAMES})
        assert read_statement(path).layout == layout
    path = write_onnx(tmp_path / "own.onnx", "v8", classes=3)
    with pytest.raises(InputError, match=r"does not say how boxes lie in it: state it in .*own.json, for example"):
        own_detector(path, 1)


def test_open_sizes_are_stated(tmp_path):
    path = write_onnx(tmp_path / "own.onnx", "v8", classes=3, metadata={"names": NAMES}, open_size=True)
    with pytest.raises(InputError, match="the height of its input, open, is not 32 to 4096 pixels: state it in"):
        own_detector(path)
    path.with_suffix(".json").write_text('{"layout": "v8", "height": 96, "width": 64}')
    assert own_detector(path).setup == "onnx v8 rgb * 0.00392157, 96 x 64, person 1 of 3"
    path.with_suffix(".json").write_text('{"layout": "v8"}')
    metadata = {"names": NAMES, "imgsz": "[64, 96]", "task": "detect"}
    write_onnx(path, "v8", classes=3, metadata=metadata, open_size=True)
    assert own_detector(path).setup.startswith("onnx v8 rgb * 0.00392157, 64 x 96")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"layout": "v6"}', "layout 'v6': must be v5 or v8"),
        ('{"channels": "gray"}', "channels 'gray': must be rgb or bgr"),
        ('{"mean": [1, 2]}', r"mean '\[1, 2\]': must be three numbers"),
        ('{"deviation": [0, 1, 1]}', "must be three numbers above 0"),
        ('{"scale": 0}', "scale '0': must be a number above 0"),
        ('{"scale": true}', "must be a number above 0"),
        ('{"scale": 1e999}', "must be a number above 0"),
        ('{"height": 8}', "height '8': must be 32 to 4096 pixels"),
        ('{"height": 64}', "height 64 is stated, but the input is"),
        ('{"classes": "person"}', "must be a list of names"),
        ('{"size": 640}', r"\['size'\] is unknown; a detector's keys are channels, classes"),
        ("[1]", "list is unknown"),
        ("{", "no JSON about the detector"),
        ("[" * 100_000, "no JSON about the detector"),
    ],
)
def test_statements_that_make_no_sense(tmp_path, text, words):
    path = write_onnx(tmp_path / "own.onnx", "v8", classes=3, metadata={"names": NAMES})
    path.with_suffix(".json").write_text(text)
    with pytest.raises(InputError, match=words):
        own_detector(path)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"names": "{0: 'car'}"}, "does not say how boxes lie"),
        ({"names": "__import__('os').system('touch ran')"}, "does not say how boxes lie"),
        ({"names": "{0: 'car', 1: 'bus', 2: 'dog'}"}, "0 classes are named person"),
        ({"names": NAMES, "task": "segment"}, "made for 'segment', not to detect"),
        ({"names": NAMES, "end2end": "True"}, "suppresses boxes itself: export it without suppression"),
    ],
)
def test_metadata_of_something_else(tmp_path, metadata, words):
    with pytest.raises(InputError, match=words):
        own_detector(write_onnx(tmp_path / "own.onnx", "v8", classes=3, size=(128, 128), metadata=metadata))
    assert not (tmp_path / "ran").exists()


def test_outputs_of_another_layout(tmp_path):
    stated = '{"layout": "v5", "classes": ["person", "car"]}'
    path = write_onnx(tmp_path / "own.onnx", "v8", classes=3, size=(128, 128))
    path.with_suffix(".json").write_text(stated)
    with pytest.raises(InputError, match=r"its output \(1, 7, 16\) is not that of layout v5 for 2 classes"):
        PedestrianFilter(path, 128, 64)
    path = write_onnx(tmp_path / "own.onnx", "v8", classes=3, activation="Identity", metadata={"names": NAMES})
    path.with_suffix(".json").unlink()
    with pytest.raises(InputError, match="no probabilities of layout v8: another layout, or exported without the last"):
        PedestrianFilter(path, 128, 64)
    with pytest.raises(InputError, match="person 3 is none of the 3 classes"):
        PedestrianFilter(write_onnx(path, "v8", classes=3, metadata={"names": NAMES}), 128, 64, person=3)


def test_files_that_are_no_onnx_detector(tmp_path):
    path = tmp_path / "own.onnx"
    whole = write_onnx(path, "v8", classes=3, metadata={"names": NAMES}).read_bytes()
    for content in (b"", b"PK\x03\x04" + bytes(100), b"\xff" * 50, whole[: len(whole) // 2], whole[:40], b"just text"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="own.onnx"):
            own_detector(path)
    with pytest.raises(InputError, match="cannot read .*none.onnx"):
        own_detector(tmp_path / "none.onnx")


def test_an_operation_that_opencv_does_not_have(tmp_path):
    path = write_onnx(tmp_path / "own.onnx", "v8", classes=3, activation="Unheard", metadata={"names": NAMES})
    with pytest.raises(InputError, match=r"OpenCV [\d.]+ cannot (read|compute) it"):
        PedestrianFilter(path, 128, 64)


def test_shapes_are_read_as_the_package_reads_them(tmp_path):
    path = write_onnx(tmp_path / "own.onnx", "v5", classes=3, size=(96, 64), metadata={"names": NAMES, "x": "ü"})
    inputs, outputs, metadata = read_graph(path)
    assert inputs == [(1, 3, 96, 64)]
    assert outputs == [(1, 6, 8)]
    assert metadata == {"names": NAMES, "x": "ü"}
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, [8, 3, 32, 32]))
    onnx.save(model, path)
    assert read_graph(path)[0] == [(1, 3, 96, 64)]  # files of 2018 list their weights among the inputs
