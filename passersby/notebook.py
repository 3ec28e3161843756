"""What `import passersby` offers beyond the functions of other modules: a generator, and scores of the detector.

Each function here stands for a few lines over those modules and has no numbers of its own.
"""

import functools
import os
from pathlib import Path

import numpy as np

from passersby import weights as registry
from passersby.errors import InputError
from passersby.stylegan3.checkpoint import load_network
from passersby.stylegan3.generator import Generator
from passersby.yolo.pedestrian_filter import PedestrianFilter


def load_generator(file: str | os.PathLike = registry.DEMO_NETWORK, device: str = "cpu") -> Generator:
    """The generator of a network file: a reference .pkl, a .safetensors of ours or a .pt; by default the demo network.

    Raises InputError for a file that is no such network. `passersby.stylegan3.load_network` gives all that a file
    holds.

    >>> import passersby
    >>> generator = passersby.load_generator()
    >>> people = generator.images([0, 1, 2], truncation_psi=0.7)
    >>> people.shape, people.dtype
    ((3, 64, 32, 3), dtype('uint8'))
    >>> variants = generator.images([0, 0], others=[7, 8], layers=range(5, 12), truncation_psi=0.7)
    """
    return load_network(file).generator.to(device)


def pedestrian_scores(images: np.ndarray, weights: str | os.PathLike | None = None, device: str = "cpu") -> np.ndarray:
    """How sure YOLOv4-tiny is of a person in each of images [N, H, W, 3] uint8 RGB: [N] float32, 0..1.

    Runs keep images with 0.6 or more. weights: the file yolov4-tiny.weights with its .cfg beside it, fetched when it is
    not given (passersby/weights.py). Raises InputError for other images, and where there are no weights.

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
