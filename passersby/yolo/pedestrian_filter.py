"""The pedestrian filter: how sure is a detector, by default YOLOv4-tiny, that a small image shows a person?

The recipe is that of the study that set the thresholds: a constant border goes around the image, the bordered image is
stretched (not letterboxed) to the network's square input, and the score is the class score of "person". The border
matters: the network does not recognise a 64 pixel wide person that is stretched over the whole input. At 0.6 it rejects
9% of 315 real crops with the border, and 99% without.
"""

import functools
import os
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from passersby import weights as registry
from passersby.errors import InputError
from passersby.yolo.darknet import read_network
from passersby.yolo.detector_file import INPUT_SIZE
from passersby.yolo.onnx_detector import OnnxDetector
from passersby.yolo.yolov4_tiny import Window, Yolov4Tiny

BORDER = 150  # pixels on each side
COLOUR_BGR = (101, 52, 152)
SCORE = 0.6  # the lowest class score of a person
NMS_IOU = 0.3
PERSON = 0  # COCO's first class; other detectors may have another number


class PedestrianFilter:
    """A detector for images of one size, [H, W, 3] uint8 RGB.

    `weights` is a Darknet .weights with its .cfg beside it, or an .onnx (passersby/yolo/onnx_detector.py). `person` is
    the number of the class "person". `input_size` (pixels, square) is YOLOv4-tiny's; None takes the file's own size,
    as an .onnx always does. `device` is "cpu" (float32) or "cuda" (float16); an .onnx is computed on the CPU.
    `windowed=False` evaluates the network everywhere, with the same result, for comparison.
    Raises InputError for files that do not fit, for impossible sizes, and for "cuda" without a GPU.

    >>> import numpy, passersby, passersby.weights
    >>> detector = passersby.PedestrianFilter(passersby.weights.get("yolov4-tiny"), 128, 64)
    >>> images = numpy.full((1, 128, 64, 3), 128, numpy.uint8)
    >>> detector.scores(images).shape, len(detector.boxes(images))
    ((1,), 1)
    """

    def __init__(
        self,
        weights: str | Path,
        height: int,
        width: int,
        *,
        border: int = BORDER,
        colour_bgr: tuple[int, int, int] = COLOUR_BGR,
        input_size: int | None = INPUT_SIZE,
        person: int = PERSON,
        device: str = "cpu",
        windowed: bool = True,
    ):
        if min(height, width) < 1 or border < 0 or not 32 <= (input_size or INPUT_SIZE) <= 4096:
            raise InputError(
                f"pedestrian filter: image {height} x {width}, border {border} (at least 0) and "
                f"input size {input_size} (32 to 4096) do not make an input"
            )
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError(f"pedestrian filter: device {device!r} was asked for, but there is no CUDA GPU here")
        weights = Path(weights)
        self.height, self.width, self.border, self.person = height, width, border, person
        # The bordered image. Only its middle changes from image to image.
        self.canvas = np.empty((height + 2 * border, width + 2 * border, 3), np.uint8)
        self.canvas[:] = colour_bgr[::-1]
        self.device, self.dtype = torch.device(device), torch.float32
        self.onnx = OnnxDetector(weights) if weights.suffix == ".onnx" else None
        structure = self.onnx or read_network(weights, weights.with_suffix(".cfg"), input_size)
        if not 0 <= person < structure.classes:
            raise InputError(f"pedestrian filter: person {person} is none of the {structure.classes} classes")
        self.input_height, self.input_width = structure.height, structure.width
        whole = self.window = Window(0, 0, self.input_height, self.input_width)
        if isinstance(structure, OnnxDetector):
            return
        if windowed:
            top, bottom = reached(border, height, len(self.canvas), self.input_height)
            left, right = reached(border, width, self.canvas.shape[1], self.input_width)
            self.window = Window(top, left, bottom, right)
        blank = np.broadcast_to(self.canvas[:1, :1], (1, height, width, 3))
        network = Yolov4Tiny(structure, self.prepare(blank, whole)[0], self.window)
        if self.device.type == "cuda":
            self.dtype = torch.float16
        self.network = network.eval().to(self.device, self.dtype)

    def stretched(self, images: np.ndarray, window: Window) -> np.ndarray:
        """[N, H, W, 3] uint8 RGB -> the window of the bordered image at the input's size, [N, h, w, 3] uint8 RGB."""
        if images.dtype != np.uint8 or images.shape[1:] != (self.height, self.width, 3):
            raise InputError(
                f"pedestrian filter: images {images.shape} {images.dtype} are not uint8 [N, {self.height}, "
                f"{self.width}, 3]"
            )
        top, left, bottom, right = window
        inputs = np.empty((len(images), bottom - top, right - left, 3), np.uint8)
        for image, target in zip(images, inputs, strict=True):
            self.canvas[self.border :, self.border :][: self.height, : self.width] = image
            # Resize the whole canvas: OpenCV's rounding depends on the position, and the study resized it whole.
            size = (self.input_width, self.input_height)
            target[:] = cv2.resize(self.canvas, size, interpolation=cv2.INTER_LINEAR)[top:bottom, left:right]
        return inputs

    def prepare(self, images: np.ndarray, window: Window | None = None) -> Tensor:
        """[N, H, W, 3] uint8 RGB -> the window of the network's input, [N, 3, h, w] float32 0..1 RGB."""
        inputs = self.stretched(images, window or self.window)
        return torch.from_numpy(inputs).permute(0, 3, 1, 2).float() / 255

    def logits(self, images: np.ndarray) -> Tensor:
        """[N, H, W, 3] uint8 RGB -> raw heads [N, boxes, 5 + classes] float32; see Yolov4Tiny.forward. Not of .onnx."""
        with torch.inference_mode():
            return self.network(self.prepare(images).to(self.device, self.dtype))

    def decoded(self, images: np.ndarray) -> Tensor:
        """[N, H, W, 3] uint8 RGB -> boxes [N, boxes, 5 + classes] float32, as Yolov4Tiny.decode gives them."""
        if self.onnx:
            return torch.from_numpy(self.onnx(self.stretched(images, self.window)))
        return self.network.decode(self.logits(images))

    def scores(self, images: np.ndarray) -> np.ndarray:
        """The detector score of images [N, H, W, 3] uint8 RGB: [N] float32, 0..1; see `person_scores`."""
        if self.onnx:
            classes = self.decoded(images)[..., 5:]
            best = is_best(classes, self.person)
            return torch.where(best, classes[..., self.person], 0).amax(1).numpy()
        return person_scores(self.logits(images), self.person).cpu().numpy()

    def boxes(self, images: np.ndarray, score: float = SCORE, iou: float = NMS_IOU) -> list[np.ndarray]:
        """The boxes of people in each of the images [N, H, W, 3] uint8 RGB, after non-maximum suppression.

        The boxes of an image are [k, 5] float32, the best first: left, top, right, bottom in pixels of the
        image (they may lie in the border), and the class score.
        """
        from torchvision.ops import nms  # takes seconds, and scores do not need it

        decoded = self.decoded(images)
        side = decoded.new_tensor([self.canvas.shape[1], self.canvas.shape[0]])
        people = []
        for boxes in decoded:
            classes = boxes[:, 5:]
            boxes = boxes[is_best(classes, self.person) & (classes[:, self.person] >= score)]
            centre, extent = boxes[:, :2] * side - self.border, boxes[:, 2:4] * side
            corners = torch.cat([centre - extent / 2, centre + extent / 2], 1)
            sure = boxes[:, 5 + self.person]
            indices = nms(corners, sure, iou)
            people.append(torch.cat([corners, sure[:, None]], 1)[indices].cpu().numpy())
        return people


def person_scores(logits: Tensor, person: int = PERSON) -> Tensor:
    """Raw heads [N, boxes, 5 + classes] float32 -> the detector score of each image, [N] float32, 0..1.

    It is the highest class score (objectness x class probability) among boxes whose best class is `person`, and 0 if
    there is no such box. Non-maximum suppression never removes the highest box, so it cannot change the score.
    """
    scores = logits[..., 4].sigmoid() * logits[..., 5 + person].sigmoid()
    return torch.where(is_best(logits[..., 5:], person), scores, 0).amax(1)


def is_best(classes: Tensor, person: int) -> Tensor:
    """Whether `person` is the best of the classes [..., classes]; of equal classes the first is, as for argmax."""
    score, before, after = classes[..., person], classes[..., :person], classes[..., person + 1 :]
    best = torch.ones_like(score, dtype=torch.bool)
    if before.shape[-1]:
        best = best & (score > before.amax(-1))
    return best & (score >= after.amax(-1)) if after.shape[-1] else best


def reached(border: int, length: int, padded: int, size: int) -> tuple[int, int]:
    """The range of output pixels that depend on the image after bilinear stretching: the first, and one past the last.

    The stretching turns `padded` source pixels into `size` output pixels. Output pixel j reads the two source pixels
    around (j + 1/2) * padded / size - 1/2; the image has the source pixels border ... border + length - 1.
    """
    low = np.floor((np.arange(size) + 0.5) * padded / size - 0.5)
    pixels = np.flatnonzero((low + 1 >= border) & (low < border + length))
    return int(pixels[0]), int(pixels[-1]) + 1


def pedestrian_scores(images: np.ndarray, weights: str | os.PathLike | None = None, device: str = "cpu") -> np.ndarray:
    """How sure YOLOv4-tiny is that each of the images [N, H, W, 3] uint8 RGB shows a person: [N] float32, 0..1.

    Runs keep images with 0.6 or more. weights: the file yolov4-tiny.weights with its .cfg beside it; without it the
    weights are fetched (passersby/weights.py). Raises InputError for other images, and where there are no weights.

    >>> import numpy, passersby
    >>> grey = numpy.full((2, 128, 64, 3), 128, numpy.uint8)
    >>> (passersby.pedestrian_scores(grey) >= 0.6).tolist()
    [False, False]
    """
    if images.ndim != 4:
        raise InputError(f"pedestrian filter: images {images.shape} are not [N, H, W, 3]")
    path = registry.get("yolov4-tiny", weights)
    return _filter(path, images.shape[1], images.shape[2], device).scores(images)


@functools.lru_cache(maxsize=4)
def _filter(path: Path, height: int, width: int, device: str) -> PedestrianFilter:
    return PedestrianFilter(path, height, width, device=device)
