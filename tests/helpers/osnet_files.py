"""State dicts under the names of torchreid's OSNets, written out plainly, with weights that depend on names alone.

`tests/data/osnet.npz` has what torchreid's own code (deep-person-reid f8cd150) computes with these weights: it took
them with strict names and shapes, and gave for `images(2)`, with ImageNet's mean and deviation taken off, every 16th
value of its features in eval mode, [2, 32] float32 for each network.
"""

import zlib

import numpy as np
import torch

CHANNELS = {"x1_0": (64, 256, 384, 512), "x0_75": (48, 192, 288, 384), "x0_5": (32, 128, 192, 256)}
CHANNELS["x0_25"] = (16, 64, 96, 128)
ALONE = ("osnet_x1_0", "osnet_x0_75", "osnet_x0_5", "osnet_x0_25", "osnet_ibn_x1_0")  # torchreid's osnet.py
AIN = tuple(f"osnet_ain_{width}" for width in CHANNELS)  # its osnet_ain.py
AIN_INSTANCE = {"conv2.0", "conv2.1", "conv3.1", "conv4.0"}


def images(count: int) -> torch.Tensor:
    """[N, 3, 64, 32] float32, 0..1."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 64, 32), np.uint8)
    return torch.from_numpy(pixels.astype(np.float32) / 255)


def state(name: str, classes: int = 7) -> dict[str, torch.Tensor]:
    """The state dict of torchreid's network of this name."""
    ain, ibn = "_ain_" in name, "_ibn_" in name
    channels = CHANNELS[name.partition("osnet_")[2].removeprefix("ain_").removeprefix("ibn_")]
    shapes: dict[str, tuple[int, ...]] = {"conv1.conv.weight": (channels[0], 3, 7, 7)}
    shapes |= instance("conv1.bn", channels[0]) if ain or ibn else batch("conv1.bn", channels[0])
    for stage in (2, 3, 4):
        inputs, outputs = channels[stage - 2], channels[stage - 1]
        for number in (0, 1):
            place = f"conv{stage}.{number}"
            branch = ain and place in AIN_INSTANCE
            shapes |= block(place, inputs if number == 0 else outputs, outputs, ain, branch, ibn and stage == 2)
        if stage < 4:
            shapes |= convolution(f"pool{stage}.0" if ain else f"conv{stage}.2.0", outputs, outputs)
    shapes |= convolution("conv5", channels[3], channels[3])
    shapes |= {"fc.0.weight": (512, channels[3]), "fc.0.bias": (512,)} | batch("fc.1", 512)
    shapes |= {"classifier.weight": (classes, 512), "classifier.bias": (classes,)}
    return {key: values(key, shape) for key, shape in shapes.items()}


def block(place: str, inputs: int, outputs: int, ain: bool, branch: bool, after: bool) -> dict[str, tuple[int, ...]]:
    inner = outputs // 4
    shapes = convolution(f"{place}.conv1", inputs, inner)
    for number, letter in enumerate("abcd"):
        for layer in range(number + 1):
            plain = f"{place}.conv2{letter}" + (f".{layer}" if number else "")
            at = f"{place}.conv2.{number}.layers.{layer}" if ain else plain
            shapes |= {f"{at}.conv1.weight": (inner, inner, 1, 1), f"{at}.conv2.weight": (inner, 1, 3, 3)}
            shapes |= batch(f"{at}.bn", inner)
    shapes |= {f"{place}.gate.fc1.weight": (inner // 16, inner, 1, 1), f"{place}.gate.fc1.bias": (inner // 16,)}
    shapes |= {f"{place}.gate.fc2.weight": (inner, inner // 16, 1, 1), f"{place}.gate.fc2.bias": (inner,)}
    shapes |= {f"{place}.conv3.conv.weight": (outputs, inner, 1, 1)}
    if not branch:
        shapes |= batch(f"{place}.conv3.bn", outputs)
    if branch or after:
        shapes |= instance(f"{place}.IN", outputs)
    if inputs != outputs:
        shapes |= convolution(f"{place}.downsample", inputs, outputs)
    return shapes


def convolution(place: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{place}.conv.weight": (outputs, inputs, 1, 1)} | batch(f"{place}.bn", outputs)


def batch(place: str, width: int) -> dict[str, tuple[int, ...]]:
    named: dict[str, tuple[int, ...]] = {f"{place}.{part}": (width,) for part in ("running_mean", "running_var")}
    return instance(place, width) | named | {f"{place}.num_batches_tracked": ()}


def instance(place: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{place}.weight": (width,), f"{place}.bias": (width,)}


def values(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers that the name decides: the spread of features is about 1."""
    if not shape:
        return torch.tensor(1)
    random = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1):
        numbers = random.uniform(0.5, 1.5, shape)
    else:
        numbers = random.normal(0, np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.2, shape)
    return torch.from_numpy(numbers.astype(np.float32))
