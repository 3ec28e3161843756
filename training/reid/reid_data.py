"""Images of a re-ID training on their way to the device: decoded once, kept there where they fit, else sent ahead."""

import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from datasets.reid.training_set import TrainingImages
from training.reid.augment import draw
from training.reid.config import ReidTraining
from training.reid.data import ReidBatches
from training.reid.step import Batch

_AUGMENT = 4  # the stream of random numbers; ReidBatches has 0 to 3
_DEVICE_SHARE = 0.4  # of a GPU's free memory that images may take; the rest is the network's


class Feeder:
    """This worker's part of every step's batch, on the device; what step s gets is a function of the seed and s.

    On a GPU whose memory has room all images live there as uint8, and a batch is one gather. Elsewhere the next batch
    is gathered by a thread while the device computes, on a GPU through pinned memory. `waited` adds up the seconds in
    which the step stood still for its images.
    """

    def __init__(self, data: TrainingImages, config: ReidTraining, batches: ReidBatches, device, rank=0, workers=1):
        self.data, self.config, self.batches, self.device = data, config, batches, device
        self.rank, self.workers, self.waited = rank, workers, 0.0
        self.on_device = None
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if data.images.nbytes <= _DEVICE_SHARE * free:
                self.on_device = torch.from_numpy(np.ascontiguousarray(data.images)).to(device)
        self.thread = ThreadPoolExecutor(1)
        self.ahead: tuple[int, Future] | None = None

    def batch(self, step: int) -> Batch:
        """The images of a step."""
        clock = time.perf_counter()
        if self.ahead is None or self.ahead[0] != step:
            self.ahead = (step, self.thread.submit(self._gather, step))
        indices, images, draws = self.ahead[1].result()
        self.ahead = (step + 1, self.thread.submit(self._gather, step + 1))
        if self.on_device is not None:
            images = self.on_device[torch.from_numpy(indices).to(self.device)]
        else:
            images = images.to(self.device, non_blocking=True)
        classes, sources = (
            torch.from_numpy(values[indices]).to(self.device) for values in (self.data.classes, self.data.sources)
        )
        self.waited += time.perf_counter() - clock
        return Batch(images, classes, sources, draws)

    def close(self) -> None:
        """End the thread."""
        self.thread.shutdown(cancel_futures=True)

    def _gather(self, step: int):
        config = self.config
        indices = self.batches.share(step, self.rank, self.workers)
        share = config.batch // self.workers
        mine = slice(self.rank * share, (self.rank + 1) * share)
        stream = np.random.default_rng([config.seed, _AUGMENT, step])
        draws = draw(config.augmentation(), config.batch, config.height, config.width, stream).share(mine)
        if self.on_device is not None:
            return indices, None, draws
        images = torch.from_numpy(self.data.images[indices])
        return indices, images.pin_memory() if self.device.type == "cuda" else images, draws
