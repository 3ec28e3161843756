"""Fit tensors of one width and depth into another: the choice of channels and layers, and the values of the rest."""

import math
from collections.abc import Callable

import torch

from passersby.stylegan3.generator import Generator, z_of_seeds
from passersby.stylegan3.mapping import FullyConnected, MappingNetwork, normalize_second_moment
from passersby.stylegan3.transfer.report import Ledger

Keep = torch.Tensor  # int64 indices into the source's channels, ascending: the k-th feeds the target's channel k


class Channels:
    """The choice of the source's channels that the target keeps: one answer for a map and a width.

    The layer that writes a map and the layer that reads it must agree, so both ask this object. It calls `importance`
    only if a map loses channels; `importance` gives a number for every channel of every map.
    """

    def __init__(self, widths: dict, importance: Callable[[], dict]):
        self.widths = widths
        self._importance = importance
        self._values = None

    def keep(self, key, count: int) -> Keep:
        """The `count` most important channels of the map `key`; all channels if it has no more."""
        width = self.widths[key]
        if count >= width:
            return torch.arange(width)
        if self._values is None:
            self._values = self._importance()
        return self._values[key].cpu().topk(count).indices.sort().values


def fit_into(target: torch.Tensor, corner: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Copy `target` [O, I, ...] to the source's device and write `corner` [o, i, ...] into its low corner.

    Outputs beyond o keep the target's initial values. The weights of the o outputs for inputs beyond i are 0: these
    outputs first compute what they did in the source, also through a demodulation, and learn from there (as in Net2Net,
    Chen et al. 2016, where a wider network starts as the same function).
    """
    value = target.to(source.device, copy=True)
    value[: len(corner)] = 0
    value[tuple(slice(0, n) for n in corner.shape)] = corner
    return value


def put_rows(ledger: Ledger, name: str, source: torch.Tensor, keep: Keep, scale: float | torch.Tensor = 1.0) -> None:
    """Write the rows `keep` of `source`, a matrix of styles or a vector with one value a channel.

    New channels keep the target's initial values.
    """
    rows = source[keep.to(source.device)] * scale
    value = ledger.tensor(name).to(source.device, copy=True)
    value[: len(rows)] = rows
    ledger.put(name, value, source, changes(len(source), len(value), "channels") or "rescaled", rows.numel())


def changes(old: int, new: int, noun: str) -> str:
    """A change of width in words; empty if there is none."""
    if new == old:
        return ""
    return f"{new} of {old} {noun}" if new < old else f"{new - old} {noun} more than {old}"


def joined(*texts: str) -> str:
    """Join the texts that are not empty."""
    return ", ".join(text for text in texts if text)


def match_layers(source: int, target: int) -> list[int | None]:
    """The source's layer for each of `target` layers, by relative position; first and last layers match.

    A deeper target uses every layer once; None is a layer in between, which has to pass its input on.
    """
    if target > source:
        step = (target - 1) / max(source - 1, 1)
        positions = {round(j * step): j for j in range(source)}
        return [positions.get(i) for i in range(target)]
    return [round(i * (source - 1) / max(target - 1, 1)) for i in range(target)]


def fan_in_gain(old: int, new: int) -> float:
    """The factor for stored weights that undoes the change of their run-time gain 1 / sqrt(fan_in)."""
    return math.sqrt(new / old)


# ---- Mapping networks of another depth, and with other labels.


def transfer_mapping(source: MappingNetwork, target: MappingNetwork, ledger: Ledger) -> None:
    """Transfer a mapping network. Both have the same z_dim and w_dim; those of discriminators (z_dim 0) have labels."""
    if target.c_dim > 0:
        for part in ("weight", "bias"):
            name = f"mapping.embed.{part}"
            if source.c_dim == target.c_dim:
                value = getattr(source.embed, part).detach()
                ledger.put(name, value, value, "")
            else:
                ledger.new(name, f"labels: {source.c_dim} -> {target.c_dim} classes")
    for i, j in enumerate(match_layers(source.num_layers, target.num_layers)):
        name, layer = f"mapping.fc{i}", getattr(target, f"fc{i}")
        if j is None:
            ledger.new(f"{name}.weight", "passes on what it gets", _identity(layer))
            ledger.new(f"{name}.bias", "passes on what it gets", torch.zeros_like(layer.bias))
            continue
        how = "" if source.num_layers == target.num_layers else f"layer {j} of {source.num_layers}"
        _transfer_layer(source, getattr(source, f"fc{j}"), target, layer, name, how, ledger)
    if target.num_ws is not None:
        ledger.put("mapping.w_avg", source.w_avg, source.w_avg, "")


def average_label(mapping: MappingNetwork) -> torch.Tensor:
    """The average [w_dim] of the normalised embeddings of all classes."""
    labels = torch.eye(mapping.c_dim, device=mapping.embed.weight.device)
    return normalize_second_moment(mapping.embed(labels)).mean(0)


def _transfer_layer(source, old: FullyConnected, target, new: FullyConnected, name: str, how: str, ledger) -> None:
    weight, bias = old.weight.detach(), old.bias.detach()
    if old.weight.shape[1] == new.weight.shape[1]:
        ledger.put(f"{name}.weight", weight, weight, how)
        ledger.put(f"{name}.bias", bias, bias, how)
        return
    # This is the first layer of a network that gains or loses labels: the first columns of both are for z.
    gain = fan_in_gain(old.weight.shape[1], new.weight.shape[1])
    common = min(old.weight.shape[1], new.weight.shape[1])
    value = torch.zeros(new.weight.shape, device=weight.device)
    value[:, :common] = weight[:, :common] * gain
    how = f"inputs z x {gain:.3f}, " + ("the average label is in the bias" if gain < 1 else "labels start at 0")
    ledger.put(f"{name}.weight", value, weight, how, value[:, :common].numel())
    if source.c_dim > 0 and target.c_dim == 0:
        with torch.no_grad():
            shift = weight[:, common:] @ average_label(source) * (old.weight_gain / old.bias_gain)
        ledger.put(f"{name}.bias", bias + shift, bias, "with the average label")
    else:
        ledger.put(f"{name}.bias", bias, bias, "")


def _identity(layer: FullyConnected) -> torch.Tensor:
    # The output of a leaky ReLU is nearly all positive, so another leaky ReLU changes it little. Weights of 1 / sqrt(2)
    # undo the gain. 4% of the variance is lost; a random layer would destroy every meaning of w.
    return torch.eye(*layer.weight.shape, device=layer.weight.device) / (layer.weight_gain * math.sqrt(2))


IMPORTANCE_SEEDS = range(4)  # seeds of the codes that give the importance of channels


def make_images_of_importance(source: Generator, hooks: list[torch.utils.hooks.RemovableHandle]) -> None:
    """Make the images of a few fixed codes, which call the hooks of the layers; then remove the hooks."""
    try:
        device = source.mapping.w_avg.device
        for seed in IMPORTANCE_SEEDS:
            z = torch.from_numpy(z_of_seeds([seed], source.z_dim)).to(device)
            label = torch.eye(max(source.c_dim, 1), device=device)[[seed % max(source.c_dim, 1)]]
            with torch.no_grad():
                source(z, label if source.c_dim else None)
    finally:
        for hook in hooks:
            hook.remove()
