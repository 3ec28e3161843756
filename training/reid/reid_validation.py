"""Loss and Rank-1 error on images of the training people that were set aside."""

import numpy as np
import torch
from torch.nn import functional

from passersby.reid.network import ReidNetwork
from training.reid.step import autocast

_AT_ONCE = 256


class Validation:
    """Images uint8 [V, H, W, 3] and their classes [V], as the study's baseline has them (one a person)."""

    def __init__(self, images: np.ndarray, classes: np.ndarray, device: torch.device, dtype: torch.dtype | None):
        self.images, self.device, self.dtype = images, device, dtype
        self.classes = torch.from_numpy(classes).to(device)

    @torch.no_grad()
    def measure(self, network: ReidNetwork) -> dict[str, float]:
        """`validation/loss`: mean cross-entropy; `validation/error`: share whose highest class is another person."""
        network.eval()
        loss = wrong = 0.0
        for first in range(0, len(self.images), _AT_ONCE):
            batch = torch.from_numpy(self.images[first : first + _AT_ONCE]).to(self.device)
            images = batch.permute(0, 3, 1, 2).float().div_(255)
            classes = self.classes[first : first + _AT_ONCE]
            with autocast(self.dtype, self.device):
                logits = network(images).logits.float()
            loss += functional.cross_entropy(logits, classes, reduction="sum").item()
            wrong += (logits.argmax(1) != classes).sum().item()
        return {"validation/loss": loss / len(self.images), "validation/error": wrong / len(self.images)}
