"""The stage that compares every image of a person with one image of that person."""

import time

import numpy as np
import pyarrow as pa
import torch

from datasets.people.decoding import DecodingError, decode
from datasets.runs.rows import images_of, with_columns
from passersby.errors import InputError
from passersby.metrics.ssim import ssim

DATA_RANGE = 4095.0

# Pairs compared at once. The sums of more pairs do not fit a core's cache: a pair takes 0.5 ms at 8, 1.8 ms at 50.
PAIRS = 8


class SimilarityScorer:
    """A stage that adds `ssim` (float32), `reference_variant` (int64) and the unit's `seconds_similarity`.

    The reference of a person is the first variant whose detector score reaches `detector_threshold` (the study's
    "first image left"). If no score does, the reference is the first variant without an error: the detector rejects
    such a person anyway, and the scores help those who filter again with a lower threshold. The reference itself
    has 1.

    The study takes a `data_range` of 4095, though its images have 8 bits. Its floor of 0.75 means something only with
    this range: at 255 nearly every image of another pose falls below it. The stage compares images as RGB, the study
    as BGR. This gives the same, because SSIM is a mean over channels. An image that cannot be compared has null. If
    its status was not yet "error", it gets that status with a message.
    """

    def __init__(self, detector_threshold: float, *, data_range: float = DATA_RANGE, threads: int = 1):
        if not 0 <= detector_threshold <= 1:
            raise InputError(f"similarity: the detector threshold {detector_threshold} is not within 0..1")
        if not data_range > 0:
            raise InputError(f"similarity: the data range {data_range} is not above 0")
        torch.set_num_threads(threads)
        self.detector_threshold, self.data_range = detector_threshold, data_range

    def __call__(self, batch: pa.Table) -> pa.Table:
        start = time.perf_counter()
        names = ["person", "variant", "image", "status", "message", "detector_score"]
        rows = images_of(batch).select(names).to_pylist()
        people: dict[int, list[dict]] = {}
        for row in rows:
            row["ssim"] = row["reference_variant"] = None
            people.setdefault(row["person"], []).append(row)
        for person in people.values():
            self.compare(sorted(person, key=lambda row: row["variant"]))
        return with_columns(
            batch,
            {
                "status": pa.array([row["status"] for row in rows], pa.string()),
                "message": pa.array([row["message"] for row in rows], pa.string()),
                "ssim": pa.array([row["ssim"] for row in rows], pa.float32()),
                "reference_variant": pa.array([row["reference_variant"] for row in rows], pa.int64()),
                "seconds_similarity": time.perf_counter() - start,
            },
        )

    def compare(self, rows: list[dict]) -> None:
        """Fill in `ssim` and `reference_variant` of one person's rows, which are in the order of the variants."""
        pixels: dict[int, np.ndarray] = {}  # index in `rows` -> [H, W, 3] uint8 RGB
        for index, row in enumerate(rows):
            if row["status"] == "error" or row["image"] is None:
                continue
            try:
                pixels[index] = decode(row["image"])
            except DecodingError as error:
                row["status"], row["message"] = "error", str(error)
        if not pixels:
            return
        passing = [index for index in pixels if (rows[index]["detector_score"] or 0.0) >= self.detector_threshold]
        reference = passing[0] if passing else next(iter(pixels))
        shape = pixels[reference].shape
        for index, image in pixels.items():
            rows[index]["reference_variant"] = rows[reference]["variant"]
            if image.shape != shape:
                rows[index]["status"] = "error"
                size, reference_size = (f"{height} x {width}" for height, width in (image.shape[:2], shape[:2]))
                rows[index]["message"] = f"the image is {size}, its reference {reference_size}"
        rows[reference]["ssim"] = 1.0
        rest = [index for index in pixels if index != reference and pixels[index].shape == shape]
        base = torch.from_numpy(pixels[reference])[None]
        for first in range(0, len(rest), PAIRS):
            chunk = rest[first : first + PAIRS]
            images = torch.from_numpy(np.stack([pixels[index] for index in chunk]))
            for index, value in zip(chunk, ssim(base, images, self.data_range).tolist(), strict=True):
                rows[index]["ssim"] = value
