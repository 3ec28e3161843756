"""Features of images, computed once and kept in the cache folder under a hash of all they depend on.

Files are PASSERSBY_CACHE/features/KEY.npy: the sha256 of what follows, and a NumPy array. They are written whole, then
renamed; a damaged one is computed again. The folder may be emptied at any time.
"""

import hashlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from passersby.errors import InputError
from passersby.files import write_atomically
from passersby.perception.inception import FEATURES, Inception
from passersby.weights import cache_folder

FOLDER = "features"
_RECIPE = b"1"  # raised whenever a change of this code changes features


def feature_key(content: bytes, height: int, width: int, network_sha256: str) -> str:
    """Name of the features of images. content: their hash; height, width: the size that they were brought to.

    network_sha256: that of the network's file, with whatever else decides what the network computes.
    """
    digest = hashlib.sha256(_RECIPE + content)
    digest.update(f"{height}x{width} {network_sha256}".encode())
    return digest.hexdigest()


def real_features(images: np.ndarray, inception: Inception) -> np.ndarray:
    """Features [N, 2048] float32 of images uint8 [N, H, W, 3] RGB that are in memory, from the cache where they are.

    The key is made of the pixels, their order and the network: no name has to be given, and none can be wrong.
    Raises InputError for images of another shape or type.
    """
    content = hashlib.sha256(f"{images.shape} {images.dtype}".encode())
    for image in images:  # one at a time: the array may be a view with strides
        content.update(np.ascontiguousarray(image).data)
    height, width = images.shape[1:3]
    key = feature_key(content.digest(), height, width, inception.sha256)
    return cached(key, lambda: inception(images))


def cached(key: str, compute: Callable[[], np.ndarray], dimensions: int = FEATURES) -> np.ndarray:
    """What lies under `key`, or what `compute` returns, [N, dimensions] float32, which is then kept.

    Says on stderr where a file is damaged, and where none can be written (the features are returned all the same).
    """
    path = feature_path(key)
    features = read_features(path, dimensions)
    if features is None:
        features = compute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, _encoded(features))
        except (OSError, InputError) as error:  # the work is done: a full disk must not cost it
            print(f"note: features are not kept ({error}): PASSERSBY_CACHE names another folder", file=sys.stderr)
    return features


def feature_path(key: str) -> Path:
    """The file of a key, whether it is there or not."""
    return cache_folder() / FOLDER / f"{key}.npy"


def read_features(path: Path, dimensions: int = FEATURES) -> np.ndarray | None:
    """The features in a file, [N, dimensions] float32; None where there is none, and, said, where it is damaged."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        print(f"note: cannot read {path} ({error.strerror}): computing again", file=sys.stderr)
        return None
    digest, array = content[:32], content[32:]
    if hashlib.sha256(array).digest() == digest:
        features = np.load(io.BytesIO(array), allow_pickle=False)
        if features.ndim == 2 and features.shape[1] == dimensions and features.dtype == np.float32:
            return features
    print(f"note: {path} is damaged: computing again", file=sys.stderr)
    return None


def _encoded(features: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(features, np.float32), allow_pickle=False)
    return hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()
