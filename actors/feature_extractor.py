"""The stage that turns every image of a unit into a network's features."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import pyarrow as pa
import torch

from datasets.people.decoding import DecodingError, decode_scaled, peculiarities, read_bytes
from datasets.people.names import printable_name
from datasets.runs.rows import Reference, images_of, resolved
from passersby.errors import InputError


class Network(Protocol):
    """A network that computes features, as perception.inception.Inception and reid.network.FeatureNetwork do."""

    def to(self, device: str) -> "Network":
        """Move the network to a device and return it."""
        ...

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] RGB -> float32 [N, D]."""
        ...


class FeatureExtractor:
    """A stage that turns a unit's images, encoded bytes (`image`) or files (`path`), into one row with their features.

    A path is text, or bytes where names need not be UTF-8. The row has these columns: unit; images (int64), the number
    of images with features; unreadable (int64), the number of images without; message, the reason for the first
    unreadable image; readable, a list with one bool an image; peculiarities, a list with those of all readable images
    (`datasets.people.decoding.peculiarities`); features (binary), float32 [images, D] in the order of the unit;
    seconds_features. `decode` turns bytes into
    [height, width, 3] uint8 RGB or raises DecodingError. An image is unreadable when its status is "error", when it
    has no bytes or when it cannot be decoded. `network` may be a Ray reference; `device` is "cpu" or "cuda".
    """

    def __init__(
        self,
        network: Network | Reference[Network],
        height: int,
        width: int,
        device: str = "cpu",
        threads: int = 1,
        decode: Callable[[bytes, int, int], np.ndarray] = decode_scaled,
    ):
        if min(height, width, threads) < 1:
            raise InputError(f"feature extractor: {height=}, {width=} and {threads=} must be at least 1")
        torch.set_num_threads(threads)
        cv2.setNumThreads(1)
        self.network = resolved(network).to(device)  # the driver sends it: nodes need no copy of the file
        self.height, self.width, self.decode = height, width, decode

    def __call__(self, batch: pa.Table) -> pa.Table:
        start = time.perf_counter()
        images, readable, problems, peculiar = [], [], [], []
        for content, problem in self._contents(images_of(batch)):
            if content is not None:
                try:
                    images.append(self.decode(content, self.height, self.width))
                    peculiar += peculiarities(content)
                except DecodingError as error:
                    content, problem = None, str(error)
            readable.append(content is not None)
            problems += [problem] if content is None else []
        features = self.network(np.stack(images)).tobytes() if images else b""
        return pa.table(
            {
                "unit": batch["unit"],
                "images": pa.array([len(images)], pa.int64()),
                "unreadable": pa.array([len(problems)], pa.int64()),
                "message": pa.array([problems[0] if problems else None], pa.string()),
                "readable": pa.array([readable], pa.list_(pa.bool_())),
                "peculiarities": pa.array([peculiar], pa.list_(pa.string())),
                "features": pa.array([features], pa.binary()),
                "seconds_features": [time.perf_counter() - start],
            }
        )

    def _contents(self, images: pa.Table):
        """Yield the bytes of each image and None, or None and the reason."""
        if "path" in images.column_names:
            for path in images["path"].to_pylist():
                content, reason, path = None, None, os.fsdecode(path)
                try:
                    content = read_bytes(Path(path))
                except OSError as error:
                    reason = f"{printable_name(path)}: {error.strerror or error}"
                yield content, reason
            return
        for row in images.to_pylist():
            usable = row.get("status") != "error" and row["image"] is not None
            yield (row["image"] if usable else None), row.get("message") or "there is no image"
