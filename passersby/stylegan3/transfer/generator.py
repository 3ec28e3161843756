"""Transfer of generators between resolutions, shapes, widths, depths and the configurations T and R."""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from passersby.errors import InputError
from passersby.stylegan3.generator import Generator, SynthesisLayer
from passersby.stylegan3.schedule import GeneratorConfig, LayerSpec
from passersby.stylegan3.transfer.channels import (
    Channels,
    changes,
    fan_in_gain,
    fit_into,
    joined,
    make_images_of_importance,
    match_layers,
    put_rows,
    transfer_mapping,
)
from passersby.stylegan3.transfer.report import Ledger

# ---- Kernels of another size or sampling rate.


def fit_kernel(weight: torch.Tensor, old: LayerSpec, new: LayerSpec) -> tuple[torch.Tensor, str]:
    """Turn `weight` [O, I, k, k] of layer `old` into a kernel of layer `new`. Returns it and the change in words.

    The kernel is unchanged where kernel sizes and, for 3 x 3, sampling rates are the same.
    """
    if old.kernel == 3 and new.kernel == 1:
        # The sum is right for constant maps. A kernel optimal in the mean square for 1/f^2 spectra was no better.
        return weight.sum((2, 3), keepdim=True), "3x3 -> 1x1 by sum"
    if old.kernel == 1 and new.kernel == 3:
        return F.pad(weight, [1, 1, 1, 1]), "1x1 -> centre of 3x3"
    if old.kernel == 1 or old.in_rate == new.in_rate:
        return weight, ""
    matrix = torch.from_numpy(_resampling(old, new)).to(weight)
    text = f"3x3 for {new.in_rate} instead of {old.in_rate} samples"
    return torch.einsum("yi,xj,ocij->ocyx", matrix, matrix, weight), text


def _resampling(old: LayerSpec, new: LayerSpec) -> np.ndarray:
    """[3 new taps, 3 old taps] for each axis: the kernel whose response is nearest to the old one's.

    It is nearest in the mean square over signals with the spectrum of images, 1 / (1 + (f / 2)^2) up to the lower of
    the two cutoffs (f in cycles per height). The normal equations need the autocorrelation only. The small diagonal
    term keeps the taps moderate where they lie too close together for the band to separate them.
    """
    frequency = np.linspace(0, min(old.in_cutoff, new.in_cutoff), 400)
    spectrum = 1 / (1 + (frequency / 2) ** 2)

    def correlation(distance):
        return (spectrum * np.cos(2 * np.pi * frequency * distance[..., None])).sum(-1) / spectrum.sum()

    taps = np.arange(-1, 2)
    old_taps, new_taps = taps / old.in_rate, taps / new.in_rate
    gram = correlation(new_taps[:, None] - new_taps[None]) + 1e-3 * np.eye(3)
    return np.linalg.solve(gram, correlation(new_taps[:, None] - old_taps[None]))


# ---- The whole generator.


def transfer_generator(source: Generator, target: Generator, ledger: Ledger) -> None:
    """Transfer layer by layer; layers match by position.

    The i-th layer matches the i-th, although at another resolution it has another cutoff: a generator is a composition,
    and the order of its layers means more than the bands that they end at. With a network trained on 64 x 32 people,
    the images of a 32 x 16 (128 x 64) target then correlate with the source's by 0.79 (0.89). With each layer matched
    to the layer of the nearest cutoff it is 0.12 (-0.05), for a new network -0.04.
    """
    _check(source, target)
    transfer_mapping(source.mapping, target.mapping, ledger)
    old, new = _layers(source), _layers(target)
    # Map b is the input of layer b: 0 is the Fourier features, len(old) the image.
    widths = {b: spec.in_channels for b, spec in enumerate(old)} | {len(old): old[-1].out_channels}
    channels = Channels(widths, lambda: _importance(source))
    _transfer_input(source, target, channels, ledger)
    scale = torch.ones(new[0].in_channels, device=source.mapping.w_avg.device)
    arrives = 0  # the source's map that corresponds to the input of the target's next layer
    for spec, j in zip(new, match_layers(len(old), len(new)), strict=True):
        layer = getattr(target.synthesis, spec.name)
        if j is None:
            scale = _pass_on(layer, channels, arrives, scale, ledger)
        else:
            step = _Step(source, j, layer, channels, ledger)
            scale = step.run(scale)
            arrives = j + 1


def _layers(generator: Generator) -> list[LayerSpec]:
    assert isinstance(generator.config, GeneratorConfig)  # StyleGAN2 generators have their own transfer
    return generator.config.layers()


def _check(source: Generator, target: Generator) -> None:
    for name in ("z_dim", "w_dim", "img_channels"):
        old, new = getattr(source.config, name), getattr(target.config, name)
        if old != new:
            raise InputError(f"transfer: {name} {old} of the source is {new} in the new generator: build it with {old}")


def _transfer_input(source: Generator, target: Generator, channels: Channels, ledger: Ledger) -> None:
    old, new = source.synthesis.input, target.synthesis.input
    name, weight = "synthesis.input", old.weight.detach()
    width = len(new.weight)
    out = channels.keep(0, width)
    # A frequency is as important as its weights in the kept channels. Kept frequencies do not change.
    waves = torch.arange(len(weight))
    if width < len(weight):
        waves = weight[out].square().sum(0).cpu().topk(width).indices.sort().values
    matrix = weight[out][:, waves] * fan_in_gain(len(weight), width)
    how = joined(changes(len(weight), width, "waves"), f"x {fan_in_gain(len(weight), width):.3f}")
    ledger.put(f"{name}.weight", fit_into(ledger.tensor(f"{name}.weight"), matrix, weight), weight, how, matrix.numel())
    for part in ("weight", "bias"):
        value = getattr(old.affine, part).detach()
        ledger.put(f"{name}.affine.{part}", value, value, "")
    # Frequencies fill a disc up to the first cutoff, which by default is 2 at every resolution.
    put_rows(ledger, f"{name}.freqs", old.freqs, waves, new.bandwidth / old.bandwidth)
    put_rows(ledger, f"{name}.phases", old.phases, waves)


@dataclasses.dataclass
class _Step:
    """One layer of the target, made from layer `j` of the source."""

    source: Generator
    j: int
    layer: SynthesisLayer
    channels: Channels
    ledger: Ledger

    def run(self, scale: torch.Tensor) -> torch.Tensor:
        """Write the layer. `scale` [in] is the ratio of its input maps to the source's; returns that of its output."""
        spec, new = _layers(self.source)[self.j], self.layer.spec
        old, name = getattr(self.source.synthesis, spec.name), f"synthesis.{new.name}"
        inputs = self.channels.keep(self.j, new.in_channels)
        outputs = self.channels.keep(self.j + 1, new.out_channels)
        put_rows(self.ledger, f"{name}.affine.weight", old.affine.weight.detach(), inputs)
        put_rows(self.ledger, f"{name}.affine.bias", old.affine.bias.detach(), inputs)
        weight = old.weight.detach()
        selected = weight[outputs][:, inputs]
        kernels, how = fit_kernel(selected, spec, new)
        sourced = selected.numel() if kernels.numel() > selected.numel() else kernels.numel()
        kernels = kernels / scale[: len(inputs), None, None]
        if new.to_rgb:
            kernels = kernels * fan_in_gain(spec.in_channels, new.in_channels)
        how = joined(
            how,
            changes(spec.in_channels, new.in_channels, "inputs"),
            changes(spec.out_channels, new.out_channels, "outputs"),
            "" if spec.name.split("_")[0] == new.name.split("_")[0] else f"layer {self.j}",
        )
        value = fit_into(self.ledger.tensor(f"{name}.weight"), kernels, weight)
        self.ledger.put(f"{name}.weight", value, weight, how or "rescaled for its inputs", sourced)
        growth = torch.ones(len(outputs), device=weight.device)
        if spec.kernel == new.kernel == 3 and not torch.equal(kernels, selected):
            growth = self._growth(old, selected, kernels, inputs)
        put_rows(self.ledger, f"{name}.bias", old.bias.detach(), outputs, growth)
        self.ledger.put(f"{name}.magnitude_ema", old.magnitude_ema, old.magnitude_ema, "")
        after = torch.ones(new.out_channels, device=weight.device)
        after[: len(growth)] = growth
        return after

    def _growth(self, old: SynthesisLayer, selected: torch.Tensor, kernels: torch.Tensor, inputs) -> torch.Tensor:
        """How much larger the outputs become because the demodulation sees other kernels, at the average style.

        A leaky ReLU keeps factors, so the bias and the next layer can undo this growth. The images of the 32 x 16
        target then correlate with the source's by 0.88 instead of 0.82, and have the same contrast. (Undoing the growth
        by a choice of channels, or by 3x3 -> 1x1, did not help: these lose a part of the signal, and the demodulation
        compensates for it.)
        """
        with torch.no_grad():
            style = old.affine(self.source.mapping.w_avg[None])[0, inputs].square()
        norms = [weight.square().sum((2, 3)) @ style + 1e-8 for weight in (selected, kernels)]
        return (norms[0] / norms[1]).sqrt()


def _pass_on(layer: SynthesisLayer, channels: Channels, b: int, scale: torch.Tensor, ledger: Ledger) -> torch.Tensor:
    """Write a layer that the source does not have: every channel of the source's map `b` goes to the same channel.

    After demodulation a single weight is 1. A magnitude of 2 undoes the activation's gain.
    """
    spec, how = layer.spec, "passes on what it gets"
    name, device = f"synthesis.{spec.name}", scale.device
    inputs, outputs = channels.keep(b, spec.in_channels), channels.keep(b, spec.out_channels)
    connections = (outputs[:, None] == inputs[None]).float().to(device)  # [out, in]
    kernels = torch.nn.functional.pad(connections[:, :, None, None], [spec.kernel // 2] * 4)
    weight = ledger.tensor(f"{name}.weight")
    ledger.new(f"{name}.weight", how, fit_into(weight, kernels, kernels))
    ledger.new(f"{name}.bias", how)
    ledger.new(f"{name}.affine.weight", how, torch.zeros_like(layer.affine.weight))
    ledger.new(f"{name}.affine.bias", how)
    ledger.new(f"{name}.magnitude_ema", how, torch.full_like(layer.magnitude_ema, 2.0))
    after = torch.ones(spec.out_channels, device=device)
    after[: len(connections)] = torch.where(connections.any(1), connections @ scale[: len(inputs)], 1.0)
    return after


def _importance(source: Generator) -> dict[int, torch.Tensor]:
    """The importance of each channel of each map, on the images of a few fixed codes.

    It is the mean square of the channel times its share in the demodulated weights of the layer that reads it. The
    images of a network of 3/4 (1/2) the width then correlate with the source's by 0.78 (0.52). With the first channels
    it is 0.24 (0.21), and with a choice by weights alone 0.18 (0.12).
    """
    importance: dict[int, torch.Tensor] = {}

    def note(b: int, layer: SynthesisLayer, inputs: tuple) -> None:
        x, w = inputs[0], inputs[1]
        style = layer.affine(w)[0].square()
        share = layer.weight.square().sum((2, 3)) * style  # [out, in]
        share = (share / share.sum(1, keepdim=True)).sum(0)
        importance[b] = importance.get(b, 0) + share * x.float().square().mean((0, 2, 3))

    layers = [getattr(source.synthesis, name) for name in source.synthesis.layer_names]
    hooks = [
        layer.register_forward_pre_hook(lambda module, inputs, b=b: note(b, module, inputs))
        for b, layer in enumerate(layers)
    ]
    make_images_of_importance(source, hooks)
    return importance
