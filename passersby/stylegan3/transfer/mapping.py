"""Transfer of mapping networks: other depths, and labels that come, go or change."""

import math

import torch

from passersby.stylegan3.mapping import FullyConnected, MappingNetwork, normalize_second_moment
from passersby.stylegan3.transfer.channels import fan_in_gain, match_layers
from passersby.stylegan3.transfer.report import Ledger


def transfer_mapping(source: MappingNetwork, target: MappingNetwork, ledger: Ledger) -> None:
    """Both with the same z_dim and w_dim; the discriminator's (z_dim 0) both conditional."""
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
    """The normalised embedding [w_dim], averaged over all classes."""
    labels = torch.eye(mapping.c_dim, device=mapping.embed.weight.device)
    return normalize_second_moment(mapping.embed(labels)).mean(0)


def _transfer_layer(source, old: FullyConnected, target, new: FullyConnected, name: str, how: str, ledger) -> None:
    weight, bias = old.weight.detach(), old.bias.detach()
    if old.weight.shape[1] == new.weight.shape[1]:
        ledger.put(f"{name}.weight", weight, weight, how)
        ledger.put(f"{name}.bias", bias, bias, how)
        return
    # The first layer of a network that gains or loses its labels: z is in the first columns of both.
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
    # What comes from a leaky ReLU is nearly all positive, so a leaky ReLU changes it little: weights of
    # 1 / sqrt(2) undo its gain (4% of the variance is lost; a random layer would lose every meaning of w).
    return torch.eye(*layer.weight.shape, device=layer.weight.device) / (layer.weight_gain * math.sqrt(2))
