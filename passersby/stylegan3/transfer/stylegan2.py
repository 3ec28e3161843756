"""Transfer of StyleGAN2 generators between resolutions, shapes and widths. Blocks of the same height match.

A StyleGAN2's image is the sum of what its blocks add at their resolutions. So the blocks that a smaller network shares
with a larger one make the larger one's image at the smaller size, and a larger network starts with the smaller one's
image, enlarged.
"""

import torch
import torch.nn.functional as F

from passersby.errors import InputError
from passersby.stylegan2.generator import FIRST_HEIGHT, Generator, StyledConvolution, SynthesisBlock, ToRgb
from passersby.stylegan3.transfer.channels import (
    Channels,
    changes,
    fan_in_gain,
    fit_into,
    joined,
    make_images_of_importance,
    put_rows,
    transfer_mapping,
)
from passersby.stylegan3.transfer.report import Ledger

# Key of a map: "const", (height, "conv0") or (height, "conv1"), the layer that writes it.


def transfer_stylegan2(source: Generator, target: Generator, ledger: Ledger) -> None:
    """Transfer block by block; a block that the source does not have adds nothing to the image at first."""
    for name in ("z_dim", "w_dim", "img_channels"):
        old, new = getattr(source.config, name), getattr(target.config, name)
        if old != new:
            raise InputError(f"transfer: {name} {old} of the source is {new} in the new generator: build it with {old}")
    transfer_mapping(source.mapping, target.mapping, ledger)
    channels = Channels(_widths(source), lambda: _importance(source))
    for height in target.synthesis.heights:
        block: SynthesisBlock = getattr(target.synthesis, f"b{height}")
        if height in source.synthesis.heights:
            _transfer_block(getattr(source.synthesis, f"b{height}"), block, height, channels, ledger)
        else:
            _start_block(block, height, ledger)


def _layers(network: Generator) -> dict:
    # (height, name) -> (layer, the key of the map that it reads)
    layers, reads = {}, "const"
    for height in network.synthesis.heights:
        block: SynthesisBlock = getattr(network.synthesis, f"b{height}")
        for name in ("conv0", "conv1"):
            if hasattr(block, name):
                layers[height, name] = (getattr(block, name), reads)
                reads = (height, name)
        layers[height, "torgb"] = (block.torgb, reads)
    return layers


def _widths(network: Generator) -> dict:
    widths = {key: layer.weight.shape[0] for key, (layer, _) in _layers(network).items()}
    first: SynthesisBlock = getattr(network.synthesis, f"b{FIRST_HEIGHT}")
    return widths | {"const": len(first.const)}


def _transfer_block(old: SynthesisBlock, new: SynthesisBlock, height: int, channels: Channels, ledger: Ledger) -> None:
    name = f"synthesis.b{height}"
    reads = (height // 2, "conv1")
    if new.is_first:
        reads = "const"
        const, width = old.const.detach(), len(new.const)
        resized = const
        if const.shape[1:] != new.const.shape[1:]:
            resized = F.interpolate(const[None], new.const.shape[1:], mode="bilinear", antialias=True)[0]
        how = "" if resized is const else "resized to the new shape"
        how = joined(how, changes(len(const), width, "channels"))
        keep = channels.keep("const", width)
        value = new.const.detach().clone()
        value[: len(keep)] = resized[keep]
        ledger.put(f"{name}.const", value, const, how, value[: len(keep)].numel())
    for part in ("conv0", "conv1", "torgb"):
        if not hasattr(new, part):
            continue
        layer, source = getattr(new, part), getattr(old, part)
        inputs = channels.keep(reads, layer.weight.shape[1])
        if part == "torgb":
            _put_layer(source, layer, f"{name}.{part}", inputs, torch.arange(len(layer.weight)), ledger)
            continue
        reads = (height, part)
        outputs = channels.keep(reads, len(layer.weight))
        _put_layer(source, layer, f"{name}.{part}", inputs, outputs, ledger)
        _put_noise(source, layer, f"{name}.{part}", ledger)


def _put_layer(old, new, name: str, inputs: torch.Tensor, outputs: torch.Tensor, ledger: Ledger) -> None:
    weight, target = old.weight.detach(), new.weight.detach()
    # ToRGB divides its style by the square root of its channels; the convolutions are demodulated.
    gain = fan_in_gain(weight.shape[1], target.shape[1]) if isinstance(new, ToRgb) else 1.0
    kernels = weight[outputs][:, inputs] * gain
    how = joined(changes(weight.shape[1], target.shape[1], "inputs"), changes(len(weight), len(target), "outputs"))
    ledger.put(f"{name}.weight", fit_into(target, kernels, weight), weight, how, kernels.numel())
    put_rows(ledger, f"{name}.bias", old.bias.detach(), outputs)
    put_rows(ledger, f"{name}.affine.weight", old.affine.weight.detach(), inputs)
    put_rows(ledger, f"{name}.affine.bias", old.affine.bias.detach(), inputs)


def _put_noise(old: StyledConvolution, new: StyledConvolution, name: str, ledger: Ledger) -> None:
    ledger.put(f"{name}.noise_strength", old.noise_strength.detach(), old.noise_strength.detach(), "")
    if old.noise_const.shape == new.noise_const.shape:
        ledger.put(f"{name}.noise_const", old.noise_const, old.noise_const, "")
    else:
        ledger.new(f"{name}.noise_const", "noise of another shape")


def _start_block(block: SynthesisBlock, height: int, ledger: Ledger) -> None:
    for name, parameter in block.named_parameters(prefix=f"synthesis.b{height}"):
        if name.endswith("torgb.weight"):
            ledger.new(name, "adds nothing to the image at first", torch.zeros_like(parameter))
        else:
            ledger.new(name, "a block more than the source has")
    for part, _ in enumerate(block.convolutions):
        ledger.new(f"synthesis.b{height}.conv{part}.noise_const", "a block more than the source has")


def _importance(source: Generator) -> dict:
    """The importance of each channel of each map, on the images of a few fixed codes.

    It is the mean square of the channel times its share in the modulated weights of the layers that read it.
    """
    importance: dict = {}

    def note(key, layer, inputs: tuple) -> None:
        x, w = inputs[0], inputs[1]
        share = layer.weight.square().sum((2, 3)) * layer.affine(w)[0].square()  # [out, in]
        share = (share / share.sum(1, keepdim=True)).sum(0)
        importance[key] = importance.get(key, 0) + share * x.float().square().mean((0, 2, 3))

    hooks = [
        layer.register_forward_pre_hook(lambda module, inputs, key=key: note(key, module, inputs))
        for layer, key in _layers(source).values()
    ]
    make_images_of_importance(source, hooks)
    return importance
