"""A detector of the user's own in Darknet's format: against OpenCV's DNN on the same files, and every spelling."""

import re

import cv2
import numpy as np
import pytest
import torch

from passersby import weights
from passersby.errors import InputError
from passersby.yolo.darknet import NEUTRAL_OPTIONS, TRAINING_OPTIONS, read_structure
from passersby.yolo.detector_file import own_detector, structure_sha256
from passersby.yolo.pedestrian_filter import PedestrianFilter, person_scores
from tests.helpers.darknet_files import (
    NET,
    convolution,
    head,
    pyramid_pooling,
    three_scales,
    version_three,
    write_detector,
)
from tests.passersby.yolo.test_yolov4_tiny import WINDOW_TOLERANCE, drawn_people

KINDS = {"three scales": three_scales, "version 3": version_three, "pyramid pooling": pyramid_pooling}


def opencv_boxes(path, images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """OpenCV's boxes of bordered images, [N, boxes, 5 + classes]."""
    net = cv2.dnn.readNetFromDarknet(str(path.with_suffix(".cfg")), str(path))
    boxes = []
    for image in images:
        bgr = cv2.copyMakeBorder(image[:, :, ::-1], *[150] * 4, borderType=cv2.BORDER_CONSTANT, value=(101, 52, 152))
        net.setInput(cv2.dnn.blobFromImage(bgr, 1 / 255, size[::-1], swapRB=True, crop=False))
        boxes.append(np.concatenate(net.forward(net.getUnconnectedOutLayersNames())))
    return np.stack(boxes)


@pytest.mark.parametrize("size", [(96, 96), (160, 96)])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_opencv(tmp_path, kind, classes, size):
    path = write_detector(tmp_path, KINDS[kind](classes, *size))
    images = drawn_people(2)
    want = opencv_boxes(path, images, size)
    for windowed in (True, False):
        detector = PedestrianFilter(path, 128, 64, input_size=None, windowed=windowed)
        assert (detector.input_height, detector.input_width) == size
        got = detector.decoded(images).numpy()
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
        for person in range(classes):
            detector.person = person
            best = np.where(want[..., 5:].argmax(2) == person, want[..., 5 + person], 0).max(1)
            np.testing.assert_allclose(detector.scores(images), best, atol=1e-4)
    assert want[..., 5:].std() > 0.01, "the numbers say nothing"


@pytest.mark.parametrize("side", [96, 99, 125])
def test_windowed_equals_full_where_pools_leave_a_remainder(tmp_path, side):
    structure = NET.format(height=side, width=side)
    structure += convolution(4, stride=2) + "[maxpool]\nsize=3\nstride=2\n" + convolution(4) + head(2, "0,1,2")
    path = write_detector(tmp_path, structure)
    images = drawn_people(2)
    windowed, full = (PedestrianFilter(path, 128, 64, input_size=None, windowed=w) for w in (True, False))
    torch.testing.assert_close(
        windowed.decoded(images), full.decoded(images), atol=WINDOW_TOLERANCE, rtol=WINDOW_TOLERANCE
    )
    np.testing.assert_allclose(full.decoded(images), opencv_boxes(path, images, (side, side)), rtol=1e-3, atol=1e-4)


def test_the_person_may_be_any_class():
    logits = torch.full((4, 2, 8), -5.0)
    logits[0, 0, [4, 6]] = torch.tensor([4.0, 2.0])  # the second of three classes
    logits[1, 0, [4, 5, 6]] = torch.tensor([4.0, 2.0, 2.0])  # of equal classes the first is the best
    logits[2, 0, [4, 6, 7]] = torch.tensor([4.0, 2.0, 2.0])
    logits[3, 0, [4, 6, 7]] = torch.tensor([4.0, 2.0, 3.0])
    sure = torch.tensor([4.0, 2.0]).sigmoid().prod()
    torch.testing.assert_close(person_scores(logits, 1), torch.stack([sure, sure * 0, sure, sure * 0]))


def test_a_detector_of_one_class_alone():
    logits = torch.tensor([[[0, 0, 0, 0, 4.0, 2.0], [0, 0, 0, 0, 1.0, 9.0]]])
    expected = torch.tensor([[4.0, 2.0], [1.0, 9.0]]).sigmoid().prod(1).max()
    torch.testing.assert_close(person_scores(logits), expected[None])


# ---- spellings of a .cfg


@pytest.fixture(scope="module")
def published():
    return weights.get("yolov4-tiny").with_suffix(".cfg").read_text()


def every_section(text: str, lines: str) -> str:
    return re.sub(r"^(\[\w+\])$", lambda match: f"{match[1]}\n{lines}", text, flags=re.MULTILINE)


def all_options(text: str) -> str:
    def options(match: re.Match) -> str:
        training = "\n".join(f"{name}=1" for name in sorted(TRAINING_OPTIONS[match[1]]))
        neutral = "\n".join(NEUTRAL_OPTIONS.get(match[1], "").split())
        return f"[{match[1]}]\n{training}\n{neutral}"

    return re.sub(r"^\[(\w+)\]$", options, text, flags=re.MULTILINE)


SPELLINGS = {
    "byte order mark": lambda text: "\ufeff" + text,
    "ends of lines of Windows": lambda text: text.replace("\n", "\r\n"),
    "ends of lines of old Macs": lambda text: text.replace("\n", "\r"),
    "semicolon comments": lambda text: "; a comment\n" + every_section(text, ";batch=7\n ; pad=0 "),
    "comments behind values": lambda text: text.replace("\nsize=3\n", "\nsize=3 # three\n").replace("pad=1", "pad=1;"),
    "spaces and tabs": lambda text: text.replace("=", "\t=  ").replace("\n[", "\n\t ["),
    "other names of sections": lambda text: text.replace("[net]", "[network]").replace("[convolutional]", "[conv]"),
    "another name of maxpool": lambda text: text.replace("[maxpool]", "[max]"),
    "every option without an effect": all_options,
    "an option of training twice": lambda text: text.replace("[net]", "[net]\nbatch=1\nbatch=64"),
    "an option twice with one value": lambda text: text.replace("filters=32", "filters=32\nfilters=32", 1),
    "a comma at the end": lambda text: text.replace("mask = 3,4,5", "mask = 3,4,5,"),
    "training with the first layers frozen": lambda text: text.replace("[maxpool]", "[maxpool]\nstopbackward=800", 1),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_same_structure_in_every_spelling(published, tmp_path, spelling):
    path, other = tmp_path / "published.cfg", tmp_path / "other.cfg"
    path.write_text(published)
    text = SPELLINGS[spelling](published)
    assert text != published
    other.write_bytes(text.encode())
    assert read_structure(other) == read_structure(path)
    assert structure_sha256(read_structure(other)) == structure_sha256(read_structure(path))


def test_comments_in_another_encoding(published, tmp_path):
    path = tmp_path / "other.cfg"
    path.write_bytes("# 训练参数\n".encode("gbk") + published.encode())
    assert read_structure(path).classes == 80
    path.write_bytes(published.encode() + "\n[yolo]\nclasses=训练\n".encode("gbk"))
    with pytest.raises(InputError, match="not a text file"):
        read_structure(path)


@pytest.mark.parametrize(
    ("section", "option"),
    [(section, text) for section, texts in NEUTRAL_OPTIONS.items() for text in texts.split()],
)
def test_options_that_change_the_result_are_read_at_one_value_alone(published, tmp_path, section, option):
    path = tmp_path / "other.cfg"
    name, _, value = option.partition("=")
    path.write_text(published.replace(f"[{section}]", f"[{section}]\n{name}={int(value) + 1}", 1))
    with pytest.raises(InputError, match=rf"{name}={int(value) + 1} is not supported, only {option}"):
        read_structure(path)


def test_heads_that_disagree_and_structures_without_heads(tmp_path):
    net = "[net]\nheight=96\nwidth=96\nchannels=3\n"
    for layers, words in (
        (convolution(4) + head(1, "0,1,2") + "[route]\nlayers=0\n" + head(2, "0,1,2"), r"heads have \[1, 2\] classes"),
        (convolution(4), "heads have no classes"),
        ("[maxpool]\nsize=97\nstride=1\npadding=0\n" + head(1, "0,1,2"), "nothing is left"),
        ("[maxpool]\nsize=2\nstride=2\npadding=3\n" + head(1, "0,1,2"), "padding=3 is too much for size=2"),
    ):
        path = tmp_path / "other.cfg"
        path.write_text(net + layers)
        with pytest.raises(InputError, match=words):
            read_structure(path)


# ---- which class is a person


def own(tmp_path, names=(), person=None, classes=3):
    return own_detector(write_detector(tmp_path, three_scales(classes, 96, 96), names=names), person)


def test_the_class_named_person_is_found(tmp_path):
    for names, number in ((("person", "car", "dog"), 0), (("car", "dog", " Person "), 2)):
        file = own(tmp_path, names)
        assert file.person == number
        assert re.fullmatch(rf"darknet [0-9a-f]{{16}}, 96 x 96, person {number} of 3", file.setup)
        assert file.arguments == {"person": number, "input_size": None}
        assert set(file.contents()) == {".weights", ".cfg"}
    assert own(tmp_path, ("pedestrian", "rider", "car"), person=1).person == 1


@pytest.mark.parametrize(
    ("names", "person", "words"),
    [
        ((), None, "nothing names its classes: put a .names beside it, or give --detector-person N"),
        (("car", "bus", "dog"), None, r"0 classes are named person \(0 car, 1 bus, 2 dog\): give --detector-person N"),
        (("person", "person", "dog"), None, "2 classes are named person"),
        (("person", "car"), None, "own.names has 2 names, but .*own.cfg 3 classes"),
        ((), 3, "--detector-person 3: .* has 3 classes, numbered from 0"),
        ((), -1, "--detector-person -1"),
    ],
)
def test_classes_that_do_not_say_who_is_a_person(tmp_path, names, person, words):
    with pytest.raises(InputError, match=words):
        own(tmp_path, names, person)


def test_names_with_marks_and_empty_lines(tmp_path):
    path = write_detector(tmp_path, three_scales(2, 96, 96))
    path.with_suffix(".names").write_bytes(b"\xef\xbb\xbfperson\r\ncar\r\n\r\n")
    assert own_detector(path).person == 0


def test_files_that_are_no_detector(tmp_path):
    path = write_detector(tmp_path, three_scales(2, 96, 96))
    path.with_suffix(".cfg").unlink()
    with pytest.raises(InputError, match="cannot read .*own.cfg"):
        own_detector(path, 0)
    with pytest.raises(InputError, match=r"--detector-file .*own.pt: give a Darknet .weights .* or an .onnx"):
        own_detector(tmp_path / "own.pt")
    write_detector(tmp_path, three_scales(2, 96, 96), "none").unlink()
    with pytest.raises(InputError, match="--detector-file .*none.weights"):
        own_detector(tmp_path / "none.weights", 0)
