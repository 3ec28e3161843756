"""The stage that scores how surely each image of a unit shows a pedestrian."""

import contextlib
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import torch

from datasets.people.decoding import DecodingError, decode
from datasets.runs.rows import Reference, images_of, resolved, with_columns
from passersby.devices import exact_numbers
from passersby.errors import InputError
from passersby.yolo.pedestrian_filter import BORDER, COLOUR_BGR, INPUT_SIZE, PERSON, PedestrianFilter


class PedestrianDetector:
    """A stage that adds `detector_score` (float32, 0..1) and the unit's `seconds_detect`.

    The detector scores the stored bytes after decoding. An image without bytes or with status "error" has the score
    null. An image that cannot be decoded to `height` x `width` gets the status "error" and a message. `weights` is a
    Darknet .weights with its .cfg beside it, or an .onnx, or a Ray reference to the bytes of the files by suffix, for
    nodes that have no copy. `person` and `input_size` are those of PedestrianFilter. `device` is "cpu" or "cuda".
    `batch_images` is the number of images of a unit that are evaluated at once.
    Raises InputError when the detector cannot be set up with these arguments.
    """

    def __init__(
        self,
        weights: str | Path | Reference[dict[str, bytes]],
        height: int,
        width: int,
        *,
        border: int = BORDER,
        colour_bgr: tuple[int, int, int] = COLOUR_BGR,
        input_size: int | None = INPUT_SIZE,
        person: int = PERSON,
        batch_images: int = 16,
        device: str = "cpu",
        threads: int = 1,
    ):
        if batch_images < 1 or threads < 1:
            raise InputError(f"pedestrian detector: {batch_images=} and {threads=} must be at least 1")
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        self.batch_images = batch_images
        with contextlib.ExitStack() as stack:
            source = resolved(weights)
            if isinstance(source, dict):
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="passersby-")))
                for suffix, content in source.items():
                    (folder / f"detector{suffix}").write_bytes(content)
                source = folder / ("detector.onnx" if ".onnx" in source else "detector.weights")
            self.filter = PedestrianFilter(
                source,
                height,
                width,
                border=border,
                colour_bgr=colour_bgr,
                input_size=input_size,
                person=person,
                device=device,
            )

    def __call__(self, batch: pa.Table) -> pa.Table:
        start = time.perf_counter()
        rows = images_of(batch).select(["image", "status", "message"]).to_pylist()
        decoded: dict[int, np.ndarray] = {}  # [H, W, 3] uint8 RGB
        for index, row in enumerate(rows):
            if row["status"] == "error" or row["image"] is None:
                continue
            try:
                decoded[index] = decode(row["image"], self.filter.height, self.filter.width)
            except DecodingError as error:
                row["status"], row["message"] = "error", str(error)
        scores: list[float | None] = [None] * len(rows)
        indices = list(decoded)
        for first in range(0, len(indices), self.batch_images):
            chunk = indices[first : first + self.batch_images]
            with exact_numbers():
                chunk_scores = self.filter.scores(np.stack([decoded[index] for index in chunk]))
            for index, score in zip(chunk, chunk_scores.tolist(), strict=True):
                scores[index] = score
        return with_columns(
            batch,
            {
                "status": pa.array([row["status"] for row in rows], pa.string()),
                "message": pa.array([row["message"] for row in rows], pa.string()),
                "detector_score": pa.array(scores, pa.float32()),
                "seconds_detect": time.perf_counter() - start,
            },
        )
