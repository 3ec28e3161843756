"""The images of every step of an encoder training: pictures out of memory, and some that the generator makes."""

import numpy as np
import torch

from datasets.reid.training_set import TrainingImages
from passersby.restyle.restyle import pooled
from passersby.stylegan3 import Generator
from training.encoder.config import EncoderTraining
from training.encoder.step import Batch
from training.gan.data import Order

_MIRROR, _CODES = 3, 4  # streams of random numbers; Order has its own


class Feeder:
    """This worker's part of every step's batch, on the device; what step s gets is a function of the seed and s.

    A batch is gathered where it is needed: a thousandth of the time that its step takes.
    """

    def __init__(self, data: TrainingImages, config: EncoderTraining, generator: Generator, device, rank=0, workers=1):
        self.images, self.config, self.generator, self.device = data.images, config, generator, device
        self.order = Order(len(data.images), config.seed)
        share = config.batch // workers
        self.mine = np.arange(rank * share, (rank + 1) * share)

    @torch.no_grad()
    def batch(self, step: int) -> Batch:
        """The images of a step: pictures first, generated ones last in the whole batch."""
        config = self.config
        real = config.batch - config.generated
        places = self.order.indices(step * real, real) if real else np.empty(0, np.int64)
        flips = np.random.default_rng([config.seed, _MIRROR, step]).random(real) < 0.5
        here = self.mine[self.mine < real]
        pixels = self.images[places[here]]  # a copy
        if config.mirror:
            mirrored = flips[here]
            pixels[mirrored] = pixels[mirrored, :, ::-1]
        images = to_float(torch.from_numpy(pixels), self.device)
        made = self.mine[self.mine >= real] - real
        if not len(made):
            return Batch(images, None, len(images))
        stream = np.random.default_rng([config.seed, _CODES, step])
        z = torch.from_numpy(stream.standard_normal((config.generated, self.generator.z_dim), np.float32)[made])
        codes = self.generator.mapping(z.to(self.device), truncation_psi=config.generated_psi)
        drawn = pooled(self.generator.synthesis(codes).clamp(-1, 1), *self.images.shape[1:3])
        return Batch(torch.cat((images, drawn)), codes, len(images))


def to_float(pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] on the device, -1..1."""
    return pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
