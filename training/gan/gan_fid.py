"""FID of a snapshot inside the training loop, over all workers, without Ray."""

import numpy as np
import torch

from datasets.storage.feature_cache import real_features
from passersby.metrics.fid import fid
from passersby.perception.inception import load_inception
from passersby.stylegan3 import Generator, to_uint8
from training.gan.config import GanConfig
from training.gan.images import TrainingData
from training.workers import gather_rows, workers

IMAGES_ON_GPU = 10_000
ENOUGH_VALIDATION = 500  # images: with fewer, FID says more about the few than about the generator
_SEED = 2**31 - 2  # of codes that are the same at every snapshot and that no training draws
_CHUNK = 32


def images_wanted(config: GanConfig, on_gpu: bool) -> int:
    """How many generated images the FID of a snapshot takes; 0: none is measured."""
    if config.fid_images is None:
        return IMAGES_ON_GPU if on_gpu else 0
    return config.fid_images


class SnapshotFid:
    """Compares images of the averaged generator with real ones. Every worker makes its share of the images.

    `inception`: the bytes of its network file, where FID is wanted.
    """

    def __init__(self, config: GanConfig, data: TrainingData, device: torch.device, rank: int, inception: bytes | None):
        self.count = _whole_shares(images_wanted(config, device.type == "cuda"))
        self.data, self.device, self.share = data, device, slice(rank, None, workers())
        held_out = config.fid_reference == "validation"
        if config.fid_reference == "auto":
            held_out = len(data.validation) >= ENOUGH_VALIDATION
        real = data.validation if held_out else data.sample
        self.real = real[: _whole_shares(len(real))]
        self.reference = f"{len(self.real)} images of {'validation' if held_out else 'training'} people"
        self.inception_bytes, self.inception, self.real_features = inception, None, None

    @torch.inference_mode()
    def measure(self, generator: Generator) -> float | None:
        """FID of this generator, the same in all workers; None where none is asked for."""
        if self.count == 0:
            return None
        if self.inception is None:
            self.inception = load_inception(self.inception_bytes, self.device)
            self.real_features = self._gathered(real_features(self.real[self.share], self.inception))
        z = np.random.default_rng(_SEED).standard_normal((self.count, generator.z_dim), np.float32)[self.share]
        labels = None
        if generator.c_dim:
            rows = np.random.default_rng(_SEED).integers(len(self.data.labels), size=self.count)
            labels = torch.from_numpy(self.data.labels[rows[self.share]])
        fakes = []
        for start in range(0, len(z), _CHUNK):
            part = slice(start, start + _CHUNK)
            given = None if labels is None else labels[part].to(self.device)
            images = to_uint8(generator(torch.from_numpy(z[part]).to(self.device), given))
            fakes.append(self.inception(images.cpu().numpy()))
        return fid(self.real_features, self._gathered(np.concatenate(fakes)))

    def _gathered(self, features: np.ndarray) -> np.ndarray:
        return gather_rows(torch.from_numpy(features).to(self.device)).cpu().numpy()


def _whole_shares(count: int) -> int:
    return count - count % workers()
