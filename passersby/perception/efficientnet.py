"""Maps of EfficientNet-Lite0, a network of ImageNet: what a projected discriminator sees instead of pixels.

The network is timm's. Its weights are those of passersby/weights.py, "efficientnet-lite0".
"""

import os

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from passersby import weights
from passersby.checkpoints import named, read_tensors
from passersby.errors import InputError

WEIGHT = "efficientnet-lite0"  # its name in passersby/weights.py
CHANNELS = (24, 40, 112, 320)  # of the four maps
STRIDES = (4, 8, 16, 32)  # pixels of the input for one position of a map
_ARCHITECTURE = "tf_efficientnet_lite0"
_STAGES = (1, 2, 4, 6)  # of timm's seven, after which a map is taken


class EfficientNet(nn.Module):
    """Images [N, 3, H, W] float32, RGB, -1..1 -> four maps [N, C, H / stride, W / stride] float32, rounded up.

    It is frozen, works on any device, and passes gradients on. `sha256` is the hash of the network's file, `name` what
    records call it.
    """

    name = "EfficientNet-Lite0 (ImageNet)"

    def __init__(self, stages: nn.Sequential, sha256: str):
        super().__init__()
        self.stages, self.sha256 = stages, sha256
        self.requires_grad_(False)
        self.eval()
        self.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> "EfficientNet":
        """It stays as it is: its averages belong to its weights."""
        return super().train(False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        x, maps = images.contiguous(memory_format=torch.channels_last), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def load_efficientnet(path: str | os.PathLike | None = None) -> EfficientNet:
    """The network with the weights of a file; without a file they are fetched once.

    Raises InputError, one line with the path, for any other file: maps of other weights are another discriminator.
    """
    file = weights.get(WEIGHT, path)
    with named("EfficientNet", file):
        return EfficientNet(_stages(filled(read_tensors(file))), weights.WEIGHTS[WEIGHT].files[0].sha256)


def filled(tensors: dict[str, torch.Tensor]) -> nn.Module:
    """The whole network, in eval mode, with the tensors of its file: [N, 3, H, W] -> logits [N, 1000] of ImageNet."""
    import timm  # takes 3 s

    with torch.device("meta"):  # loading must not draw random weights: it would change the results of a seed
        network = timm.create_model(_ARCHITECTURE, pretrained=False)
    expected = network.state_dict()
    # The file has names of its own, in the order of timm's.
    if [tuple(value.shape) for value in tensors.values()] != [tuple(value.shape) for value in expected.values()]:
        raise InputError(f"{len(tensors)} tensors, not the {len(expected)} of {_ARCHITECTURE} in its order")
    network.load_state_dict(dict(zip(expected, tensors.values(), strict=True)), assign=True)
    return network.eval()


def _stages(network: nn.Module) -> nn.Sequential:
    """The network up to its last map in four parts, each of which ends with a map."""
    blocks = list(network.get_submodule("blocks").children())
    ends = [0, *(stage + 1 for stage in _STAGES)]
    parts = [nn.Sequential(*blocks[start:end]) for start, end in zip(ends[:-1], ends[1:], strict=True)]
    stem = nn.Sequential(network.get_submodule("conv_stem"), network.get_submodule("bn1"))
    stages = nn.Sequential(nn.Sequential(stem, parts[0]), *parts[1:])
    for module in list(stages.modules()):
        _fold(module)
    return stages


def _fold(module: nn.Module) -> None:
    """Put the batch normalisations among a module's children into the convolutions before them."""
    convolution = ""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            convolution = name
        elif isinstance(child, nn.BatchNorm2d):
            folded = fuse_conv_bn_eval(getattr(module, convolution), child)
            setattr(module, convolution, folded)
            setattr(module, name, child.act)  # timm's normalisations hold the activation that follows


def resized(images: torch.Tensor, height: int) -> torch.Tensor:
    """Images [N, 3, H, W] enlarged to this height, bilinear; unchanged where they are as high or higher."""
    factor = height / images.shape[2]
    return images if factor <= 1 else F.interpolate(images, scale_factor=factor, mode="bilinear", align_corners=False)
