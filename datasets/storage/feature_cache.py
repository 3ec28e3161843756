"""A cache of image features: they are computed once and stored under a hash of everything they depend on.

A file is PASSERSBY_CACHE/features/KEY.npy. It holds a NumPy array, and before it the array's sha256. A file is
written whole and then renamed; a damaged file is computed again. The folder may be emptied at any time.
"""

import hashlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from passersby.environment import cache_folder
from passersby.errors import InputError
from passersby.files import write_atomically
from passersby.perception.inception import FEATURES, Inception

FOLDER = "features"
_RECIPE = b"1"  # raised whenever a change of this code changes features


def feature_key(content: bytes, height: int, width: int, network_sha256: str) -> str:
    """Key of the features of images. content: the images' hash. height, width: the size they were brought to.

    network_sha256: the sha256 of the network's file, and anything else that changes the network's results.
    """
    digest = hashlib.sha256(_RECIPE + content)
    digest.update(f"{height}x{width} {network_sha256}".encode())
    return digest.hexdigest()


def real_features(images: np.ndarray, inception: Inception) -> np.ndarray:
    """Features [N, 2048] float32 of images in memory, uint8 [N, H, W, 3] RGB; from the cache where it has them.

    The key comes from the pixels, their order and the network, so the caller needs no name that could be wrong.
    Raises InputError for images of another shape or type.
    """
    content = hashlib.sha256(f"{images.shape} {images.dtype}".encode())
    for image in images:  # one at a time: the array may be a view with strides
        content.update(np.ascontiguousarray(image).data)
    height, width = images.shape[1:3]
    key = feature_key(content.digest(), height, width, inception.sha256)
    return cached(key, lambda: inception(images))


def cached(key: str, compute: Callable[[], np.ndarray], dimensions: int = FEATURES) -> np.ndarray:
    """The cached features of `key`, [N, dimensions] float32. Otherwise `compute` returns them, and they are stored.

    Prints to stderr where a file is damaged, and where it cannot be written (the features are returned anyway).
    """
    path = feature_path(key)
    features = read_features(path, dimensions)
    if features is None:
        features = compute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, _encoded(features))
        except (OSError, InputError) as error:  # the features are computed; a full disk must not lose them
            print(f"note: features are not kept ({error}): PASSERSBY_CACHE names another folder", file=sys.stderr)
    return features


def feature_path(key: str) -> Path:
    """The path of a key's file, which need not exist."""
    return cache_folder() / FOLDER / f"{key}.npy"


def read_features(path: Path, dimensions: int = FEATURES) -> np.ndarray | None:
    """The features in a file, [N, dimensions] float32; None without a file, and, with a printed note, if damaged."""
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
