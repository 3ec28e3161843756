"""A detector of one's own as .onnx, computed by OpenCV's DNN, which is a dependency already. CPU alone."""

from pathlib import Path

import cv2
import numpy as np

from passersby.errors import InputError
from passersby.yolo.onnx_file import LAYOUTS, read_statement

_ROUNDING = 1e-3  # beyond 0..1, of class scores


class OnnxDetector:
    """Boxes of images, [N, height, width, 3] uint8 RGB; `onnx_file.py` says how the file states its layout.

    Raises InputError for a file that OpenCV cannot compute, and for outputs that are not those of the stated layout.
    """

    def __init__(self, path: Path):
        self.path, self.statement = path, read_statement(path)
        self.height, self.width = self.statement.height, self.statement.width
        try:
            self._network = cv2.dnn.readNetFromONNX(str(path))
        except cv2.error as error:
            raise InputError(f"{path}: OpenCV {cv2.__version__} cannot read it ({_reason(error)})") from error
        self._output = self._network.getUnconnectedOutLayersNames()[0]
        self.classes = 0  # told by the first output
        blank = np.zeros((1, self.height, self.width, 3), np.uint8)
        self.classes = self(blank).shape[2] - 5

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """-> [N, boxes, 5 + classes] float32: centre x, y, width, height as shares of the input; objectness 0..1;
        class scores 0..1, objectness x class probability."""
        # One image after the other: exports often have a fixed number of images, which is 1.
        return np.stack([self._boxes(image) for image in images])

    def _boxes(self, image: np.ndarray) -> np.ndarray:
        stated = self.statement
        values = image[:, :, ::-1] if stated.channels == "bgr" else image
        mean, deviation = (np.array(part, np.float32) for part in (stated.mean, stated.deviation))
        values = (values.astype(np.float32) * np.float32(stated.scale) - mean) / deviation
        try:
            self._network.setInput(np.ascontiguousarray(values.transpose(2, 0, 1)[None]))  # [1, 3, H, W] float32
            output = self._network.forward(self._output)
        except cv2.error as error:
            raise InputError(f"{self.path}: OpenCV {cv2.__version__} cannot compute it ({_reason(error)})") from error
        start = LAYOUTS[stated.layout]
        rows = output[0] if output.ndim == 3 and output.shape[0] == 1 else np.empty((0, 0))
        rows = rows.T if stated.layout == "v8" else rows  # [boxes, start + classes]
        classes = rows.shape[1] - start
        if classes < 1 or (stated.classes and classes != len(stated.classes)) or len(rows) <= classes:
            layout = f"layout {stated.layout}" + f" for {len(stated.classes)} classes" * bool(stated.classes)
            raise InputError(f"{self.path}: its output {output.shape} is not that of {layout}")
        objectness = rows[:, 4:5] if start == 5 else np.ones((len(rows), 1), np.float32)
        scores = objectness * rows[:, start:]
        if not (np.isfinite(scores).all() and scores.min() >= -_ROUNDING and scores.max() <= 1 + _ROUNDING):
            raise InputError(
                f"{self.path}: class scores from {scores.min():.3g} to {scores.max():.3g} are no probabilities of "
                f"layout {stated.layout}: another layout, or exported without the last activation"
            )
        size = np.array([self.width, self.height] * 2, np.float32)
        return np.concatenate([rows[:, :4] / size, objectness, scores.clip(0, 1)], 1, dtype=np.float32)


def _reason(error: cv2.error) -> str:
    text = " ".join(str(error.err or error).split())
    return text[:120]
