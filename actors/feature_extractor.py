"""The stage that turns every image of a unit into Inception features."""

import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import ray
import torch

from datasets.decoding import DecodingError
from datasets.scored_images import decode_scaled, read_bytes
from datasets.units import images_of
from models.errors import InputError
from models.inception import FEATURES, Inception


class FeatureExtractor:
    """A unit's images, as encoded bytes (`image`) or files (`path`), become one row with their features.

    The row: unit, images (int64, how many have features), unreadable (int64) and the first such `message`, features
    (binary, float32 [images, 2048] in the order of the unit) and seconds_features. Images of another size than `height`
    x `width` are brought to it. An image with status "error", without bytes, or that cannot be decoded counts as
    unreadable. `inception` may be a Ray reference, `device` is "cpu" or "cuda".
    """

    def __init__(
        self,
        inception: "Inception | ray.ObjectRef",
        height: int,
        width: int,
        device: str = "cpu",
        threads: int = 1,
    ):
        if min(height, width, threads) < 1:
            raise InputError(f"feature extractor: {height=}, {width=} and {threads=} must be at least 1")
        torch.set_num_threads(threads)
        cv2.setNumThreads(1)
        if isinstance(inception, ray.ObjectRef):  # the driver's network: nodes need no copy of the file
            inception = ray.get(inception)
        self.inception = inception.to(device)
        self.height, self.width = height, width

    def __call__(self, batch: pa.Table) -> pa.Table:
        start = time.perf_counter()
        images, problems = [], []
        for content, problem in self._contents(images_of(batch)):
            if content is not None:
                try:
                    images.append(decode_scaled(content, self.height, self.width))
                    continue
                except DecodingError as error:
                    problem = str(error)
            problems.append(problem)
        features = self.inception(np.stack(images)) if images else np.empty((0, FEATURES), np.float32)
        return pa.table(
            {
                "unit": batch["unit"],
                "images": pa.array([len(images)], pa.int64()),
                "unreadable": pa.array([len(problems)], pa.int64()),
                "message": pa.array([problems[0] if problems else None], pa.string()),
                "features": pa.array([features.tobytes()], pa.binary()),
                "seconds_features": [time.perf_counter() - start],
            }
        )

    def _contents(self, images: pa.Table):
        """Each image's bytes, or None and the reason."""
        if "path" in images.column_names:
            for path in images["path"].to_pylist():
                content, reason = None, None
                try:
                    content = read_bytes(Path(path))
                except OSError as error:
                    reason = f"{path}: {error.strerror or error}"
                yield content, reason
            return
        for row in images.to_pylist():
            made = row.get("status") != "error" and row["image"] is not None
            yield (row["image"] if made else None), row.get("message") or "there is no image"
