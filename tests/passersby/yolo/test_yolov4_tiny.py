"""YOLOv4-tiny and the pedestrian filter's recipe, against OpenCV's DNN on the same files."""

import re

import cv2
import numpy as np
import pytest
import torch

from passersby import weights
from passersby.errors import InputError
from passersby.yolo.darknet import Convolution, read_network, read_structure
from passersby.yolo.pedestrian_filter import PedestrianFilter, person_scores, reached
from passersby.yolo.yolov4_tiny import Window, influenced, needed

# The windows change the order of float32 sums, nothing else: differences seen are 2e-6.
WINDOW_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def weights_path():
    return weights.get("yolov4-tiny")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def detector(weights_path):
    return PedestrianFilter(weights_path, 128, 64)


@pytest.fixture(scope="module")
def plain_detector(weights_path):
    return PedestrianFilter(weights_path, 128, 64, windowed=False)


def drawn_people(count: int, height: int = 128, width: int = 64) -> np.ndarray:
    """Crude figures, most of which score above 0.2: [N, H, W, 3] uint8 RGB."""
    random = np.random.default_rng(5)
    images = []
    for _ in range(count):
        image = np.full((128, 64, 3), random.integers(90, 200, 3), np.uint8)
        cv2.rectangle(image, (0, 100), (64, 128), random.integers(60, 150, 3).tolist(), -1)
        skin, shirt, trousers = ((224, 172, 140), random.integers(0, 255, 3).tolist(), (40, 40, 60))
        for x in (27, 37):
            cv2.line(image, (32, 66), (x, 118), trousers, 8)
            cv2.ellipse(image, (x, 120), (5, 3), 0, 0, 360, (20, 20, 20), -1)
        for x in (20, 44):
            cv2.line(image, (32, 33), (x, 66), shirt, 5)
            cv2.circle(image, (x, 68), 3, skin, -1)
        cv2.ellipse(image, (32, 48), (11, 23), 0, 0, 360, shirt, -1)
        cv2.circle(image, (32, 17), 8, skin, -1)
        cv2.ellipse(image, (32, 13), (8, 6), 0, 180, 360, (40, 25, 15), -1)
        image = cv2.GaussianBlur(image, (3, 3), 0).astype(np.int64) + random.integers(-8, 8, image.shape)
        images.append(cv2.resize(np.clip(image, 0, 255).astype(np.uint8), (width, height)))
    return np.stack(images)


def real_crops(folder, count: int) -> np.ndarray:
    paths = sorted((folder / "images" / "pedestrian-crops").glob("*.jpg"))
    paths = paths[:: max(1, len(paths) // count)][:count]
    return np.stack([cv2.imread(str(path))[:, :, ::-1] for path in paths])


def opencv_boxes(weights_path, images: np.ndarray, border: int = 150) -> np.ndarray:
    """The study's way, image by image: [N, boxes, 85], x, y, w, h in 0..1, class scores under 0.2 zeroed."""
    net = cv2.dnn.readNetFromDarknet(str(weights_path.with_suffix(".cfg")), str(weights_path))
    found = []
    for image in images:
        bgr = cv2.copyMakeBorder(image[:, :, ::-1], *[border] * 4, borderType=cv2.BORDER_CONSTANT, value=(101, 52, 152))
        net.setInput(cv2.dnn.blobFromImage(bgr, 1 / 255, (416, 416), swapRB=True, crop=False))
        found.append(np.concatenate(net.forward(net.getUnconnectedOutLayersNames())))
    return np.stack(found)


def compare_with_opencv(detector, weights_path, images):
    """Scores >= 0.2 within 1e-3, their boxes within 1 px of the bordered image, and `scores`."""
    want = opencv_boxes(weights_path, images, detector.border)
    got = detector.network.decode(detector.logits(images)).numpy()
    counted = want[..., 5:] > 0
    assert counted.any(2).any(1).sum() >= len(images) // 2, "too few boxes to compare"
    np.testing.assert_allclose(got[..., 5:][counted], want[..., 5:][counted], atol=1e-3)
    assert (got[..., 5:][~counted] < 0.2 + 1e-3).all()
    boxes = counted.any(2)
    side = np.tile([detector.canvas.shape[1], detector.canvas.shape[0]], 2)
    np.testing.assert_allclose(got[boxes][:, :4] * side, want[boxes][:, :4] * side, atol=1)
    person = np.where(want[..., 5:].argmax(2) == 0, want[..., 5], 0).max(1)
    scores = detector.scores(images)
    assert (person > 0).any()
    np.testing.assert_allclose(scores[person > 0], person[person > 0], atol=1e-3)
    return scores


def test_equals_opencv_on_drawn_people(detector, weights_path):
    compare_with_opencv(detector, weights_path, drawn_people(6))


@pytest.mark.slow
def test_equals_opencv_on_real_crops(detector, weights_path, shared_dir):
    compare_with_opencv(detector, weights_path, real_crops(shared_dir, 16))


@pytest.mark.slow
def test_the_border_is_what_makes_a_crop_a_person(detector, weights_path, shared_dir):
    images = real_crops(shared_dir, 40)
    rejected = (detector.scores(images) < 0.6).mean()
    assert rejected <= 0.2  # 5 to 9% of all crops there
    without = PedestrianFilter(weights_path, 128, 64, border=0)
    assert (without.scores(images[:10]) < 0.6).mean() >= 0.8  # 99% of all


def test_windowed_equals_full_evaluation(detector, plain_detector):
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (2, 128, 64, 3), dtype=np.uint8)
    corners = np.zeros((1, 128, 64, 3), np.uint8)
    corners[0, 0, 0] = corners[0, -1, -1] = 255
    images = np.concatenate([drawn_people(2), noise, corners])
    with torch.inference_mode():
        windowed = detector.network.decode(detector.logits(images))
        full = plain_detector.network.decode(plain_detector.logits(images))
    assert detector.network.layers[2].window != plain_detector.network.layers[2].window
    torch.testing.assert_close(windowed, full, atol=WINDOW_TOLERANCE, rtol=WINDOW_TOLERANCE)


@pytest.mark.parametrize(
    ("height", "width", "border", "input_size"), [(64, 32, 150, 416), (128, 64, 20, 224), (33, 50, 7, 160)]
)
def test_windowed_equals_full_at_other_sizes(weights_path, height, width, border, input_size):
    images = drawn_people(2, height, width)
    options = {"border": border, "input_size": input_size}
    windowed, full = (
        PedestrianFilter(weights_path, height, width, windowed=windowed, **options) for windowed in (True, False)
    )
    np.testing.assert_allclose(windowed.scores(images), full.scores(images), atol=WINDOW_TOLERANCE)
    with torch.inference_mode():
        torch.testing.assert_close(
            windowed.network.decode(windowed.logits(images)),
            full.network.decode(full.logits(images)),
            atol=WINDOW_TOLERANCE,
            rtol=WINDOW_TOLERANCE,
        )


def test_scores_do_not_depend_on_the_batch(detector):
    images = drawn_people(5)
    alone = np.concatenate([detector.scores(images[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(detector.scores(images), alone, atol=WINDOW_TOLERANCE)


def test_only_boxes_whose_best_class_is_person_count():
    logits = torch.full((3, 2, 85), -5.0)
    logits[0, 0, [4, 5, 7]] = torch.tensor([4.0, 2.0, 3.0])  # a surer car than person
    logits[0, 1, [4, 5]] = torch.tensor([0.0, 1.0])  # a fainter person
    logits[1, 0, [4, 5, 7]] = torch.tensor([4.0, 2.0, 3.0])  # the car alone; the other box is all equal
    logits[2, :, 7] = 3.0
    want = [torch.tensor([0.0, 1.0]).sigmoid().prod(), torch.tensor([-5.0, -5.0]).sigmoid().prod(), 0.0]
    torch.testing.assert_close(person_scores(logits), torch.tensor(want))


def test_boxes_after_suppression(detector):
    images = drawn_people(3)
    for found, score in zip(detector.boxes(images, score=0.2), detector.scores(images), strict=True):
        assert found.shape[1] == 5
        if score >= 0.2:
            assert found[0, 4] == pytest.approx(score, abs=1e-6)  # suppression keeps the best box
            left, top, right, bottom = found[0, :4]
            assert -20 < left < right < 84
            assert -20 < top < bottom < 148
        else:
            assert len(found) == 0
    assert not any(len(found) for found in detector.boxes(images, score=1.0))


@pytest.mark.parametrize("kernel", [(3, 1, 1), (3, 2, 1), (1, 1, 0), (2, 2, 0), (5, 3, 2)])
def test_window_arithmetic_against_brute_force(kernel):
    size, stride, padding = kernel
    length = 20
    outputs = range((length + 2 * padding - size) // stride + 1)
    reads = {o: set(range(o * stride - padding, o * stride - padding + size)) for o in outputs}
    for start in range(length):
        for end in range(start + 1, length + 1):
            touched = [o for o in outputs if reads[o] & set(range(start, end))]
            got = influenced(Window(start, 0, end, length), *kernel)
            got = got.intersection(Window(0, 0, len(outputs), 99))
            assert touched == list(range(got.top, got.bottom))
            if touched:
                wanted = set().union(*(reads[o] for o in touched))
                region = needed(got, *kernel)
                assert (region.top, region.bottom) == (min(wanted), max(wanted) + 1)


@pytest.mark.parametrize(("border", "length", "size"), [(150, 64, 416), (150, 128, 416), (0, 64, 416), (9, 300, 96)])
def test_the_person_reaches_no_pixel_outside_its_window(border, length, size):
    line = np.zeros((1, length + 2 * border, 3), np.uint8)
    line[:, border : border + length] = 255
    stretched = cv2.resize(line, (size, 1), interpolation=cv2.INTER_LINEAR)[0, :, 0]
    start, end = reached(border, length, length + 2 * border, size)
    changed = np.flatnonzero(stretched)
    assert start <= changed[0] <= start + 1
    assert end - 1 <= changed[-1] + 1 <= end


def test_bad_settings_are_named(weights_path):
    with pytest.raises(InputError, match="border -1"):
        PedestrianFilter(weights_path, 128, 64, border=-1)
    with pytest.raises(InputError, match="image 0 x 64"):
        PedestrianFilter(weights_path, 0, 64)
    with pytest.raises(InputError, match="do not fit together"):  # 100 is no multiple of 32
        PedestrianFilter(weights_path, 128, 64, input_size=100)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA GPU"):
            PedestrianFilter(weights_path, 128, 64, device="cuda")


def test_images_of_another_size_are_refused(detector):
    with pytest.raises(InputError, match=re.escape("(1, 64, 64, 3)")):
        detector.scores(np.zeros((1, 64, 64, 3), np.uint8))


@pytest.mark.parametrize(
    ("line", "replacement", "words"),
    [
        ("activation=leaky", "activation=mish", "activation='mish' is not one of leaky, linear"),
        ("[maxpool]", "[shortcut]", "[shortcut]: unknown section"),
        ("filters=32", "filters=32\nfliters=3", "unknown option 'fliters'"),
        ("filters=32", "filters=many", "filters='many' is not a list of int"),
        ("filters=32", "filters=-32", "filters=-32 must be one number"),
        ("filters=32", "stride=3", "option 'stride' occurs twice, as '3' and as '2'"),
        ("filters=32", "", "option 'filters' is missing"),
        ("layers = -1, 23", "layers = -1, 99", "do not exist"),
        ("layers = -1, 23", "layers = -1, 2", "do not fit together"),
        ("classes=80", "classes=81", "3 anchors of 81 classes do not fit 255 channels"),
        ("channels=3", "channels=1", "channels must be 3"),
        ("[net]", "", "neither a [section] nor option=value"),
        ("[net]", "[convolutional]", "does not begin with [net]"),
    ],
)
def test_a_structure_that_is_not_understood_is_refused(weights_path, tmp_path, line, replacement, words):
    text = weights_path.with_suffix(".cfg").read_text()
    assert line in text
    structure = tmp_path / "other.cfg"
    structure.write_text(text.replace(line, replacement, 1))
    with pytest.raises(InputError, match=re.escape(words)):
        read_structure(structure)


def test_weights_that_do_not_fit_are_refused(weights_path, tmp_path):
    data = weights_path.read_bytes()
    structure = weights_path.with_suffix(".cfg")
    damaged = tmp_path / "damaged.weights"
    for content, words in [
        (data[:-4], "is 24251272 bytes, the network in .* needs exactly 24251276"),
        (data + b"\0", "is 24251277 bytes"),
        (b"", "no Darknet header"),
        (b"PK\3\4" + data[4:], "no Darknet header"),
        (data[:4000] + np.float32(np.nan).tobytes() + data[4004:], "not finite"),
    ]:
        damaged.write_bytes(content)
        with pytest.raises(InputError, match=words):
            read_network(damaged, structure)
    with pytest.raises(InputError, match="cannot read .*none.weights"):
        read_network(tmp_path / "none.weights", structure)
    structure = tmp_path / "binary.cfg"
    structure.write_bytes(data[:400].replace(b"\0", b"\xff"))
    with pytest.raises(InputError, match="not a text file"):
        read_network(weights_path, structure)


def test_batch_normalisation_is_folded(weights_path):
    network = read_network(weights_path, weights_path.with_suffix(".cfg"))
    first = network.layers[0]
    raw = np.frombuffer(weights_path.read_bytes(), "<f4", offset=20)
    beta, scale, mean, variance = raw[:128].reshape(4, 32)
    weight = raw[128 : 128 + 32 * 27].reshape(32, 3, 3, 3)
    x = np.random.default_rng(0).standard_normal((3, 3, 3)).astype(np.float32)
    plain = ((weight * x).sum((1, 2, 3)) - mean) / np.sqrt(variance + 1e-6) * scale + beta
    assert isinstance(first, Convolution)
    np.testing.assert_allclose((first.weight * x).sum((1, 2, 3)) + first.bias, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_half_precision_on_cuda(detector, weights_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    images = drawn_people(4)
    on_gpu = PedestrianFilter(weights_path, 128, 64, device="cuda")
    assert on_gpu.dtype == torch.float16
    np.testing.assert_allclose(on_gpu.scores(images), detector.scores(images), atol=1e-2)  # 11 bits of mantissa
