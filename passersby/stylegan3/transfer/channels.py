"""Fitting tensors of one width and depth into another: which channels, which layers, what becomes of the rest."""

import math
from collections.abc import Callable

import torch

from passersby.stylegan3.mapping import FullyConnected, MappingNetwork, normalize_second_moment
from passersby.stylegan3.transfer.report import Ledger

Keep = torch.Tensor  # int64 indices into the source's channels, ascending: the k-th feeds the target's channel k


class Channels:
    """Which channels of the source's maps stay, one answer for a map and a width, whoever asks.

    Whatever writes to a map and whatever reads from it must agree, so both ask here. `importance` is called
    only when something has to go; it gives a number for every channel of every map.
    """

    def __init__(self, widths: dict, importance: Callable[[], dict]):
        self.widths = widths
        self._importance = importance
        self._values = None

    def keep(self, place, count: int) -> Keep:
        """The `count` most important channels of the map at `place`; all of them when there are no more."""
        width = self.widths[place]
        if count >= width:
            return torch.arange(width)
        if self._values is None:
            self._values = self._importance()
        return self._values[place].cpu().topk(count).indices.sort().values


def place(target: torch.Tensor, own: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """`own` [o, i, ...] in the low corner of a tensor like `target` [O, I, ...].

    Outputs beyond o keep the target's initial values. The o outputs take nothing from inputs beyond i at first:
    they go on computing what they did, also through a demodulation, and learn from there (as in Net2Net, Chen et
    al. 2016, where a wider network starts as the same function).
    """
    value = target.to(source.device, copy=True)
    value[: len(own)] = 0
    value[tuple(slice(0, n) for n in own.shape)] = own
    return value


def put_rows(ledger: Ledger, name: str, source: torch.Tensor, keep: Keep, scale: float | torch.Tensor = 1.0) -> None:
    """Rows `keep` of `source`, a matrix of styles or a vector with one value a channel; new channels start new."""
    own = source[keep.to(source.device)] * scale
    value = ledger.tensor(name).to(source.device, copy=True)
    value[: len(own)] = own
    ledger.put(name, value, source, changes(len(source), len(value), "channels") or "rescaled", own.numel())


def changes(old: int, new: int, what: str) -> str:
    """A change of width in words, empty for none."""
    if new == old:
        return ""
    return f"{new} of {old} {what}" if new < old else f"{new - old} {what} more than {old}"


def joined(*texts: str) -> str:
    """The texts that are not empty, as one."""
    return ", ".join(text for text in texts if text)


def match_layers(source: int, target: int) -> list[int | None]:
    """The source's layer for each of `target` layers, by relative position, the ends on the ends.

    A deeper target uses every layer once; None is a layer in between, which has to pass on what it gets.
    """
    if target > source:
        step = (target - 1) / max(source - 1, 1)
        positions = {round(j * step): j for j in range(source)}
        return [positions.get(i) for i in range(target)]
    return [round(i * (source - 1) / max(target - 1, 1)) for i in range(target)]


def fan_in_gain(old: int, new: int) -> float:
    """The factor of stored weights that undoes the change of their run-time gain 1 / sqrt(fan_in)."""
    return math.sqrt(new / old)


# ---- Mapping networks of another depth, and labels that come, go or change.


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
