"""Re-identification features of listed images: rows through FeatureExtractors, on Ray or in this process."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import ray
import torch

from actors.feature_extractor import FeatureExtractor
from datasets.people.image_sets import ROW_IMAGES
from datasets.people.labelled_images import decode_bicubic
from passersby.errors import InputError
from passersby.reid.network import FeatureNetwork
from pipeline.features import THREADS, Workers, rows_through


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Features of the readable images of a list.

    features [M, D] float32; places [M] int64, ascending: which images of the list these are; problem: what is wrong
    with the first of the others, None where all can be read.
    """

    features: np.ndarray
    places: np.ndarray
    problem: str | None


def embeddings_of(
    contents: Sequence[Path | bytes], network: FeatureNetwork, workers: Workers, description: str
) -> Embeddings:
    """Flip-averaged features of images, files or encoded bytes, at the network's size.

    Raises InputError where not one can be read, and where a unit of work failed for good.
    """
    size = {"height": network.height, "width": network.width_pixels}
    arguments = {
        "network": network if workers.here else ray.put(network),
        "device": workers.device,
        "threads": torch.get_num_threads() if workers.here else THREADS,
        "decode": decode_bicubic,
    }
    stages = [(FeatureExtractor, size | arguments)]
    image_bytes = network.height * network.width_pixels * 3
    rows = rows_through(list(_rows(contents)), stages, workers, len(contents), image_bytes, description)
    readable = np.array([flag for row in rows for flag in row["readable"]], bool)
    problem = next((row["message"] for row in rows if row["unreadable"]), None)
    if not readable.any():
        raise InputError(f"{description}: not one of {len(contents)} images can be read ({problem})")
    features = np.concatenate([np.frombuffer(row["features"], np.float32) for row in rows]).reshape(-1, network.width)
    return Embeddings(features, np.flatnonzero(readable), problem)


def _rows(contents: Sequence[Path | bytes]) -> Iterator[dict]:
    unit = itertools.count()
    for encoded, alike in itertools.groupby(contents, lambda content: isinstance(content, bytes)):
        items = [content if encoded else str(Path(content).absolute()) for content in alike]  # workers' folder differs
        for start in range(0, len(items), ROW_IMAGES):
            yield {"unit": next(unit), "image" if encoded else "path": items[start : start + ROW_IMAGES]}
