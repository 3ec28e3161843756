"""The Inception network of 2015, which defines FID, and its 2048 features of each image.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2016), as in TensorFlow's
`inception-2015-12-05`. It differs from later versions: averages do not count the padding, and the last block takes a
maximum where the others average. The weights come from a TorchScript file (passersby/weights.py, "inception-2015").
This module defines the network itself: with the normalisation folded into the convolutions, and channels last, it is
twice as fast on a CPU as that script. Neither freezing nor `torch.jit.optimize_for_inference` makes the script faster.
"""

import hashlib
import io
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from passersby.devices import exact_numbers
from passersby.errors import InputError
from passersby.weights import WEIGHTS

FEATURES = 2048
INPUT_SIZE = 299
BATCH_IMAGES = {"cpu": 16, "cuda": 128}  # below 16 images PyTorch takes slower kernels on one CPU thread
_VARIANCE_EPSILON = 1e-3


class Convolution(nn.Conv2d):
    """Convolution with bias, then ReLU. Padding keeps the size where there is no stride, unless `valid`."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, valid: bool = False):
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        super().__init__(inputs, outputs, (height, width), stride, 0 if valid else (height // 2, width // 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu_()


class Branches(nn.ModuleList):
    """Modules that all take the same input; their outputs are concatenated along the channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self], 1)


def _average() -> nn.Module:
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)


def _block_a(inputs: int, pooled: int) -> nn.Module:
    c, chain = Convolution, nn.Sequential
    return Branches(
        [
            c(inputs, 64, 1),
            chain(c(inputs, 48, 1), c(48, 64, 5)),
            chain(c(inputs, 64, 1), c(64, 96, 3), c(96, 96, 3)),
            chain(_average(), c(inputs, pooled, 1)),
        ]
    )


def _block_b(inputs: int) -> nn.Module:
    c, chain = Convolution, nn.Sequential
    return Branches(
        [
            c(inputs, 384, 3, 2, valid=True),
            chain(c(inputs, 64, 1), c(64, 96, 3), c(96, 96, 3, 2, valid=True)),
            nn.MaxPool2d(3, 2),
        ]
    )


def _block_c(inputs: int, inner: int) -> nn.Module:
    c, chain, wide, tall = Convolution, nn.Sequential, (1, 7), (7, 1)
    long = [c(inner, inner, tall), c(inner, inner, wide), c(inner, inner, tall), c(inner, 192, wide)]
    return Branches(
        [
            c(inputs, 192, 1),
            chain(c(inputs, inner, 1), c(inner, inner, wide), c(inner, 192, tall)),
            chain(c(inputs, inner, 1), *long),
            chain(_average(), c(inputs, 192, 1)),
        ]
    )


def _block_d(inputs: int) -> nn.Module:
    c, chain = Convolution, nn.Sequential
    long = [c(192, 192, (1, 7)), c(192, 192, (7, 1)), c(192, 192, 3, 2, valid=True)]
    return Branches(
        [
            chain(c(inputs, 192, 1), c(192, 320, 3, 2, valid=True)),
            chain(c(inputs, 192, 1), *long),
            nn.MaxPool2d(3, 2),
        ]
    )


def _block_e(inputs: int, pool: nn.Module) -> nn.Module:
    c, chain = Convolution, nn.Sequential

    def crossed() -> nn.Module:
        return Branches([c(384, 384, (1, 3)), c(384, 384, (3, 1))])

    return Branches(
        [
            c(inputs, 320, 1),
            chain(c(inputs, 384, 1), crossed()),
            chain(c(inputs, 448, 1), c(448, 384, 3), crossed()),
            chain(pool, c(inputs, 192, 1)),
        ]
    )


def inception_network() -> nn.Sequential:
    """The network up to the pooled features: [N, 3, 299, 299] float32, -1..127/128 -> [N, 2048, 1, 1]."""
    c = Convolution
    return nn.Sequential(
        c(3, 32, 3, 2, valid=True),
        c(32, 32, 3, valid=True),
        c(32, 64, 3),
        nn.MaxPool2d(3, 2),
        c(64, 80, 1),
        c(80, 192, 3, valid=True),
        nn.MaxPool2d(3, 2),  # [N, 192, 35, 35]
        _block_a(192, 32),
        _block_a(256, 64),
        _block_a(288, 64),
        _block_b(288),  # [N, 768, 17, 17]
        *(_block_c(768, inner) for inner in (128, 160, 160, 192)),
        _block_d(768),  # [N, 1280, 8, 8]
        _block_e(1280, _average()),
        _block_e(FEATURES, nn.MaxPool2d(3, 1, 1)),
        nn.AvgPool2d(8),
    )


class Inception:
    """Features of images: a call takes uint8 [N, H, W, 3] RGB and gives float32 [N, 2048], both NumPy arrays.

    Images of any size are stretched to 299 x 299 by the metric's convention (`stretched`), so tall images change their
    proportions. `sha256` is the hash of the network's file. The object can be pickled and sent to workers.
    """

    def __init__(self, network: nn.Module, sha256: str, device: str | torch.device = "cpu"):
        self.sha256 = sha256
        self.network = network
        self.to(device)

    def to(self, device: str | torch.device) -> "Inception":
        """Move the network to a device, in place, and return it."""
        self.device = torch.device(device)
        self.network.to(self.device).to(memory_format=torch.channels_last)
        return self

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Raises InputError for images of another shape or type."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
            raise InputError(f"inception: images {images.shape} {images.dtype} are not uint8 [N, H, W, 3]")
        features = np.empty((len(images), FEATURES), np.float32)
        step = BATCH_IMAGES[self.device.type]
        # The tensor cores' short format would change features by 1e-3 of their size.
        with exact_numbers():
            for start in range(0, len(images), step):
                chunk = torch.tensor(np.ascontiguousarray(images[start : start + step]), device=self.device)
                features[start : start + step] = self.network(stretched(chunk)).flatten(1).cpu()
        return features


def stretched(images: torch.Tensor) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> the network's input, float32 [N, 3, 299, 299], (x - 128) / 128, channels last.

    The stretching is bilinear as in TensorFlow 1, which every published FID uses: pixel j reads at j * size / 299,
    without the half pixel that libraries add today, and without averaging where the image becomes smaller.
    """
    x = (images.float() - 128) / 128
    for axis in (1, 2):
        size = x.shape[axis]
        position = torch.arange(INPUT_SIZE, dtype=torch.float32, device=x.device) * (size / INPUT_SIZE)
        low = position.long()
        weight = (position - low).view(-1, *[1] * (3 - axis))
        high = (low + 1).clamp(max=size - 1)
        x = torch.lerp(x.index_select(axis, low), x.index_select(axis, high), weight)
    return x.permute(0, 3, 1, 2)


def load_inception(source: str | os.PathLike | bytes, device: str | torch.device = "cpu") -> Inception:
    """Load the network of `weights.get("inception-2015")`. source: the path of the file, or its bytes.

    Raises InputError for a missing file, and for any other file: distances by another network cannot be compared with
    published ones.
    """
    entry = WEIGHTS["inception-2015"]
    (file,) = entry.files
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"{entry.option} {source}: {error.strerror or error}: check the path") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != file.sha256:
        name = "the bytes given" if isinstance(source, bytes) else source
        raise InputError(
            f"{entry.option}: {name} are not {file.name}: expected sha256 {file.sha256}, found {sha256}; leave the "
            "option out to fetch it"
        )
    return Inception(_filled(content), sha256, device)


def _filled(content: bytes) -> nn.Module:
    """The network with the weights of the TorchScript file, which are in the order of the network's convolutions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch warns that TorchScript will be removed
        script = torch.jit.load(io.BytesIO(content), map_location="cpu")
    parameters = {name: parameter.detach() for name, parameter in script.named_parameters()}
    names = [name.removesuffix(".weight") for name in parameters if name.endswith(".weight")]
    with torch.device("meta"):  # loading must not draw random weights: it would change the results of a seed
        network = inception_network()
    layers = [layer for layer in network.modules() if isinstance(layer, Convolution)]
    for name, layer in zip(names, layers, strict=True):
        # Normalisation y = (conv(x) - mean) / sqrt(var + 0.001) + beta, folded in float64.
        weight, beta, mean, variance = (
            parameters[f"{name}.{part}"].double() for part in ("weight", "beta", "mean", "var")
        )
        scale = (variance + _VARIANCE_EPSILON).rsqrt()
        kernel = weight * scale[:, None, None, None]
        if kernel.shape != layer.weight.shape:
            raise AssertionError(f"{name}: {tuple(kernel.shape)} are not the weights of {layer}")
        layer.weight = nn.Parameter(kernel.float(), requires_grad=False)
        layer.bias = nn.Parameter((beta - mean * scale).float(), requires_grad=False)
    return network.eval()
