"""Features of a frozen network that passes gradients on, for a loss on whether two images show the same person.

There are two kinds of network. A re-identification network (passersby/reid/network.py) is the better one for people.
MoCo-v2 (He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020; Chen et al., "Improved
Baselines with Momentum Contrastive Learning", 2020) is the ResNet-50 that the published ReStyle tool takes for all
images except faces.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from passersby.checkpoints import fitted, is_safetensors, named, read_tensors
from passersby.files import file_sha256
from passersby.options import Json
from passersby.reid.checkpoint import load_reid
from passersby.reid.network import ReidNetwork

MOCO_SIZE = 224  # [pixels], both sides
_MOCO_PREFIX, _MOCO_HEAD = "encoder_q.", "encoder_q.fc."


class IdentityFeatures(nn.Module):
    """Images [N, 3, H, W] float, -1..1, RGB -> features [N, D] float32 of length 1; frozen, always in eval mode.

    Images are stretched to the network's `size` (height, width), bilinear, with averages where they become smaller. A
    re-identification network sees the colours of its training. MoCo-v2 sees -1..1, without ImageNet's mean and
    deviation, as in the published ReStyle tool. (That tool takes the nearest pixels, so some pixels get no gradient.)
    `name` describes the network, `sha256` is the hash of its file, `record` what the file says of its training, {} if
    nothing. The object can be pickled.
    """

    def __init__(
        self,
        network: nn.Module,
        size: tuple[int, int],
        name: str,
        sha256: str,
        record: Mapping[str, Json] | None = None,
    ):
        super().__init__()
        self.network, self.size, self.name, self.sha256, self.record = network, size, name, sha256, record or {}
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "IdentityFeatures":
        """Stay in eval mode: the batch normalisation of a frozen network must not follow the batches."""
        del mode
        return super().train(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] float, -1..1 -> [N, D] float32 of length 1."""
        x = images.float()
        if tuple(x.shape[2:]) != self.size:
            x = nn.functional.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=True)
        if isinstance(self.network, ReidNetwork):
            features = self.network.feature((x + 1) / 2)
        else:
            features = self.network(x).float()
        return nn.functional.normalize(features, dim=1)


def load_identity(path: str | os.PathLike) -> IdentityFeatures:
    """Read a network that compares people. The file's contents decide: a re-identification network, or MoCo-v2.

    Re-identification networks are the files that `passersby.reid.checkpoint.load_reid` reads. MoCo-v2 is the published
    checkpoint of a ResNet-50 (`module.encoder_q.*`). Raises InputError, one line with the path, for any other file.
    """
    path = Path(path)
    with named("identity network", path):
        tensors = {} if is_safetensors(path) else read_tensors(path)
        if any(name.startswith(_MOCO_PREFIX) for name in tensors):
            return IdentityFeatures(_moco(tensors), (MOCO_SIZE, MOCO_SIZE), "MoCo-v2 resnet50", file_sha256(path))
    loaded = load_reid(path)
    config = loaded.network.config
    name = f"re-ID {config.backbone} {config.neck} {config.height}x{config.width} ({loaded.kind})"
    return IdentityFeatures(loaded.network, (config.height, config.width), name, loaded.sha256, loaded.record)


def _moco(tensors: dict[str, torch.Tensor]) -> nn.Module:
    """The query encoder without its head: the head's two linear layers were only for the training."""
    from torchvision.models import resnet50  # takes seconds: for those who give a MoCo-v2 network

    with torch.device("meta"):  # loading must not draw random weights: it would change the results of a seed
        network = resnet50()
        network.register_module("fc", nn.Identity())
    remaining = {
        name.removeprefix(_MOCO_PREFIX): value
        for name, value in tensors.items()
        if name.startswith(_MOCO_PREFIX) and not name.startswith(_MOCO_HEAD)
    }
    wanted = network.state_dict()
    moco = fitted(remaining, wanted, "a MoCo-v2 checkpoint of a ResNet-50", _MOCO_PREFIX)
    network.load_state_dict(moco, strict=True, assign=True)
    return network.eval()
