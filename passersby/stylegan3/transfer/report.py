"""The report of a transfer: whether each tensor was taken, adapted or is new, with counts of parameters."""

import dataclasses
from typing import Any

import torch
from torch import nn

# Buffers that training or chance made. Filters belong to the target's schedule: they are never transferred, and no part
# of a report.
_LEARNED_BUFFERS = ("w_avg", "magnitude_ema", "freqs", "phases", "noise_const")


@dataclasses.dataclass(frozen=True)
class TransferRow:
    """One tensor of the target. `sourced` of its `parameters` numbers come from the source."""

    name: str
    state: str  # "taken" (bit for bit) | "adapted" | "new"
    how: str  # empty for taken ones
    parameters: int
    sourced: int


@dataclasses.dataclass(frozen=True)
class TransferReport:
    """The report of a transfer: every learned tensor of the target once, in the network's order."""

    network: str  # class of the networks: "Generator" | "Discriminator"
    rows: tuple[TransferRow, ...]

    @property
    def parameters(self) -> int:
        """The number of values in all learned tensors of the target."""
        return sum(row.parameters for row in self.rows)

    def as_record(self) -> dict[str, Any]:
        """JSON data for the network's record: totals, and the number of values that were adapted in each way."""
        hows: dict[str, int] = {}
        for row in self.rows:
            if row.state == "adapted":
                hows[row.how] = hows.get(row.how, 0) + row.sourced
        taken_numbers = sum(row.sourced for row in self.rows if row.state == "taken")
        adapted_numbers = sum(hows.values())
        counts = {
            "taken": taken_numbers,
            "adapted": adapted_numbers,
            "new": self.parameters - taken_numbers - adapted_numbers,
        }
        return {"network": self.network, "parameters": self.parameters, **counts, "adapted_how": hows}

    def lines(self) -> list[str]:
        """A table for people: one line a layer with the share that comes from the source, then the total."""
        groups: dict[str, list[TransferRow]] = {}
        for row in self.rows:
            groups.setdefault(_layer(row.name), []).append(row)
        width = max(map(len, groups))
        lines = []
        for layer, rows in groups.items():
            parameters, sourced = sum(r.parameters for r in rows), sum(r.sourced for r in rows)
            largest = max(rows, key=lambda row: row.parameters)
            text = largest.state if largest.how == "" else f"{largest.state}: {largest.how}"
            lines.append(f"{layer.ljust(width)}  {_percent(sourced, parameters)} of {parameters:>11,}  {text}")
        record = self.as_record()
        counts = ", ".join(f"{record[key]:,} {key}" for key in ("taken", "adapted", "new"))
        total = f"{_percent(sum(r.sourced for r in self.rows), self.parameters)} of {self.parameters:>11,}"
        return [*lines, f"{self.network.ljust(width)}  {total}  {counts}"]


def _layer(name: str) -> str:
    # "synthesis.L0_36_512.affine.weight" -> "synthesis.L0_36_512"; "b64.conv0.weight" -> "b64"
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "synthesis" else parts[0]


def _percent(part: int, whole: int) -> str:
    # Rounded down, so that 100.0% means all.
    return f"{int(1000 * part / whole) / 10:5.1f}%"


class Ledger:
    """Writes tensors into the target and records what it wrote."""

    def __init__(self, target: nn.Module):
        self._tensors = learned_tensors(target)
        self._rows: dict[str, TransferRow] = {}
        self._network = type(target).__name__

    def tensor(self, name: str) -> torch.Tensor:
        """The target's tensor of that name, for reading."""
        return self._tensors[name].detach()

    def put(
        self, name: str, value: torch.Tensor, source: torch.Tensor | None, how: str, sourced: int | None = None
    ) -> None:
        """Write `value`, of which `sourced` numbers (default: all) come from the source.

        The state of the tensor is "taken" if `value` equals `source`, else "adapted".
        """
        target = self._tensors[name]
        with torch.no_grad():
            target.copy_(value)
        is_copy = source is not None and value.shape == source.shape and torch.equal(value, source)
        sourced = value.numel() if sourced is None or is_copy else sourced
        state, how = ("taken", "") if is_copy else ("adapted", how)
        self._add(TransferRow(name, state, how, target.numel(), sourced))

    def new(self, name: str, how: str, value: torch.Tensor | None = None) -> None:
        """Leave a tensor at its initial values, or write `value`, which does not come from the source."""
        if value is not None:
            with torch.no_grad():
                self._tensors[name].copy_(value)
        self._add(TransferRow(name, "new", how, self._tensors[name].numel(), 0))

    def report(self) -> TransferReport:
        """The finished report. A tensor without a row is a mistake of this program."""
        forgotten = self._tensors.keys() - self._rows.keys()
        if forgotten:
            raise AssertionError(f"transfer forgot {sorted(forgotten)}")
        return TransferReport(self._network, tuple(self._rows[name] for name in self._tensors))

    def _add(self, row: TransferRow) -> None:
        if row.name in self._rows:
            raise AssertionError(f"transfer wrote {row.name} twice")
        self._rows[row.name] = row


def learned_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, and the buffers that training or chance made, by name."""
    buffers = {k: v for k, v in network.named_buffers() if k.rpartition(".")[2] in _LEARNED_BUFFERS}
    learned = dict(network.named_parameters()) | buffers
    return {name: learned[name] for name in network.state_dict() if name in learned}
