"""Transfer of generators between resolutions, shapes, widths, depths and the configurations T and R."""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from passersby.errors import InputError
from passersby.stylegan3.generator import Generator, SynthesisLayer, z_of_seeds
from passersby.stylegan3.schedule import LayerSpec
from passersby.stylegan3.transfer.channels import (
    Channels,
    changes,
    fan_in_gain,
    joined,
    match_layers,
    place,
    put_rows,
    transfer_mapping,
)
from passersby.stylegan3.transfer.report import Ledger

# ---- Kernels of another size or sampling rate.


def fit_kernel(weight: torch.Tensor, old: LayerSpec, new: LayerSpec) -> tuple[torch.Tensor, str]:
    """`weight` [O, I, k, k] of layer `old` as a kernel of layer `new`, and the change in words.

    Unchanged where kernel sizes and, for 3 x 3, sampling rates are the same.
    """
    if old.kernel == 3 and new.kernel == 1:
        # Right for constant maps. Optimal in the mean square for 1/f^2 spectra was no better (measured).
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

    Nearest in the mean square over signals with the spectrum of images, 1 / (1 + (f / 2)^2) up to the lower of
    the two cutoffs (f in cycles per height). The normal equations need the autocorrelation only; the small
    diagonal term keeps taps moderate where they lie closer together than the band can tell apart.
    """
    frequency = np.linspace(0, min(old.in_cutoff, new.in_cutoff), 400)
    spectrum = 1 / (1 + (frequency / 2) ** 2)

    def correlation(distance):
        return (spectrum * np.cos(2 * np.pi * frequency * distance[..., None])).sum(-1) / spectrum.sum()

    taps = np.arange(-1, 2)
    have, want = taps / old.in_rate, taps / new.in_rate
    gram = correlation(want[:, None] - want[None]) + 1e-3 * np.eye(3)
    return np.linalg.solve(gram, correlation(want[:, None] - have[None]))


# ---- The whole generator.

IMPORTANCE_SEEDS = range(4)  # of the codes on which channels are weighed


def transfer_generator(source: Generator, target: Generator, ledger: Ledger) -> None:
    """Layer by layer, by position.

    The i-th layer is matched to the i-th, although at another resolution it has another cutoff: a generator is a
    composition, and its order carries more than the band that a layer ends at. With a network trained on 64 x 32
    people the images of a 32 x 16 (128 x 64) target correlate with the source's by 0.79 (0.89) so, by 0.12
    (-0.05) with each layer matched to that of the nearest cutoff, by -0.04 for a new network.
    """
    _check(source, target)
    transfer_mapping(source.mapping, target.mapping, ledger)
    old, new = source.config.layers(), target.config.layers()
    # Map b is what layer b reads: 0 the Fourier features, len(old) the image.
    widths = {b: spec.in_channels for b, spec in enumerate(old)} | {len(old): old[-1].out_channels}
    channels = Channels(widths, lambda: _importance(source))
    _transfer_input(source, target, channels, ledger)
    scale = torch.ones(new[0].in_channels, device=source.mapping.w_avg.device)
    arrives = 0  # the source's map that the target's next layer gets
    for spec, j in zip(new, match_layers(len(old), len(new)), strict=True):
        layer = getattr(target.synthesis, spec.name)
        if j is None:
            scale = _pass_on(layer, channels, arrives, scale, ledger)
        else:
            step = _Step(source, j, layer, channels, ledger)
            scale = step.run(scale)
            arrives = j + 1


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
    # Each frequency counts as much as the kept channels use it; the kept ones stay what they were.
    waves = torch.arange(len(weight))
    if width < len(weight):
        waves = weight[out].square().sum(0).cpu().topk(width).indices.sort().values
    own = weight[out][:, waves] * fan_in_gain(len(weight), width)
    how = joined(changes(len(weight), width, "waves"), f"x {fan_in_gain(len(weight), width):.3f}")
    ledger.put(f"{name}.weight", place(ledger.tensor(f"{name}.weight"), own, weight), weight, how, own.numel())
    for part in ("weight", "bias"):
        value = getattr(old.affine, part).detach()
        ledger.put(f"{name}.affine.{part}", value, value, "")
    # Frequencies fill a disc up to the first cutoff, which is 2 at every resolution unless somebody changed it.
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
        """`scale` [in] says how much larger than the source's the maps are that arrive; returns it for the output."""
        spec, new = self.source.config.layers()[self.j], self.layer.spec
        old, name = getattr(self.source.synthesis, spec.name), f"synthesis.{new.name}"
        taken_in = self.channels.keep(self.j, new.in_channels)
        taken_out = self.channels.keep(self.j + 1, new.out_channels)
        put_rows(self.ledger, f"{name}.affine.weight", old.affine.weight.detach(), taken_in)
        put_rows(self.ledger, f"{name}.affine.bias", old.affine.bias.detach(), taken_in)
        weight = old.weight.detach()
        kept = weight[taken_out][:, taken_in]
        own, how = fit_kernel(kept, spec, new)
        sourced = kept.numel() if own.numel() > kept.numel() else own.numel()
        own = own / scale[: len(taken_in), None, None]
        if new.to_rgb:
            own = own * fan_in_gain(spec.in_channels, new.in_channels)
        how = joined(
            how,
            changes(spec.in_channels, new.in_channels, "inputs"),
            changes(spec.out_channels, new.out_channels, "outputs"),
            "" if spec.name.split("_")[0] == new.name.split("_")[0] else f"layer {self.j}",
        )
        value = place(self.ledger.tensor(f"{name}.weight"), own, weight)
        self.ledger.put(f"{name}.weight", value, weight, how or "rescaled for its inputs", sourced)
        grown = torch.ones(len(taken_out), device=weight.device)
        if spec.kernel == new.kernel == 3 and not torch.equal(own, kept):
            grown = self._growth(old, kept, own, taken_in)
        put_rows(self.ledger, f"{name}.bias", old.bias.detach(), taken_out, grown)
        self.ledger.put(f"{name}.magnitude_ema", old.magnitude_ema, old.magnitude_ema, "")
        after = torch.ones(new.out_channels, device=weight.device)
        after[: len(grown)] = grown
        return after

    def _growth(self, old: SynthesisLayer, kept: torch.Tensor, own: torch.Tensor, taken_in) -> torch.Tensor:
        """How much larger the outputs become because the demodulation sees other kernels, at the average style.

        A leaky ReLU passes factors on, so bias and next layer can undo it: the images of the 32 x 16 target
        correlate by 0.88 instead of 0.82 with the source's, and have its contrast. (Undoing what a choice of
        channels or 3x3 -> 1x1 changes did not help: there, part of the signal is lost, and the demodulation makes
        up for it.)
        """
        with torch.no_grad():
            style = old.affine(self.source.mapping.w_avg[None])[0, taken_in].square()
        norms = [weight.square().sum((2, 3)) @ style + 1e-8 for weight in (kept, own)]
        return (norms[0] / norms[1]).sqrt()


def _pass_on(layer: SynthesisLayer, channels: Channels, b: int, scale: torch.Tensor, ledger: Ledger) -> torch.Tensor:
    """A layer that the source does not have: every channel of the source's map `b` goes to the same channel.

    Demodulated, a single weight is 1; a magnitude of 2 undoes the activation's gain.
    """
    spec, how = layer.spec, "passes on what it gets"
    name, device = f"synthesis.{spec.name}", scale.device
    taken_in, taken_out = channels.keep(b, spec.in_channels), channels.keep(b, spec.out_channels)
    same = (taken_out[:, None] == taken_in[None]).float().to(device)  # [out, in]
    own = torch.nn.functional.pad(same[:, :, None, None], [spec.kernel // 2] * 4)
    weight = ledger.tensor(f"{name}.weight")
    ledger.new(f"{name}.weight", how, place(weight, own, own))
    ledger.new(f"{name}.bias", how)
    ledger.new(f"{name}.affine.weight", how, torch.zeros_like(layer.affine.weight))
    ledger.new(f"{name}.affine.bias", how)
    ledger.new(f"{name}.magnitude_ema", how, torch.full_like(layer.magnitude_ema, 2.0))
    after = torch.ones(spec.out_channels, device=device)
    after[: len(same)] = torch.where(same.any(1), same @ scale[: len(taken_in)], 1.0)
    return after


def _importance(source: Generator) -> dict[int, torch.Tensor]:
    """How much each channel of each map does, on the images of a few fixed codes.

    The mean square of the channel times its share in the demodulated weights of the layer that reads it. A network
    of 3/4 (1/2) the width keeps images that correlate by 0.78 (0.52) with the source's; by 0.24 (0.21) with the first
    channels, and weights alone (0.18, 0.12) are no guide at all.
    """
    seen: dict[int, torch.Tensor] = {}

    def note(b: int, layer: SynthesisLayer, inputs: tuple) -> None:
        x, w = inputs[0], inputs[1]
        style = layer.affine(w)[0].square()
        share = layer.weight.square().sum((2, 3)) * style  # [out, in]
        share = (share / share.sum(1, keepdim=True)).sum(0)
        seen[b] = seen.get(b, 0) + share * x.float().square().mean((0, 2, 3))

    layers = [getattr(source.synthesis, name) for name in source.synthesis.layer_names]
    hooks = [
        layer.register_forward_pre_hook(lambda module, inputs, b=b: note(b, module, inputs))
        for b, layer in enumerate(layers)
    ]
    try:
        for seed in IMPORTANCE_SEEDS:
            source_device = source.mapping.w_avg.device
            z = torch.from_numpy(z_of_seeds([seed], source.z_dim)).to(source_device)
            label = torch.eye(max(source.c_dim, 1), device=source_device)[[seed % max(source.c_dim, 1)]]
            with torch.no_grad():
                source(z, label if source.c_dim else None)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
