"""The mapping network z -> w, and two parts that all networks share: the equalised linear layer, number formats."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from passersby.errors import InputError

# ---- Number formats of the highest resolutions: float16, bfloat16 or float32.


@dataclasses.dataclass(frozen=True)
class Precision:
    """The format of a layer's maps; parameters stay float32. On a CPU the maps are float32 unless `on_cpu`."""

    dtype: torch.dtype = torch.float32
    on_cpu: bool = False

    def of(self, x: torch.Tensor) -> torch.dtype:
        """The format in which the layer computes the input x."""
        return self.dtype if x.is_cuda or self.on_cpu else torch.float32

    @classmethod
    def of_layer(cls, reduced: bool) -> "Precision":
        """The format of a new network's layer: as in the reference, float16 on a GPU if `reduced`."""
        return cls(torch.float16) if reduced else cls()


@runtime_checkable
class _Reducible(Protocol):
    """A layer whose format can be set."""

    reduced_precision: bool  # whether it is one of the highest resolutions
    precision: Precision


def set_precision(network: nn.Module, dtype: torch.dtype, on_cpu: bool = False) -> None:
    """Let the highest resolutions of a generator or discriminator (`num_fp16_res` octaves) compute in `dtype`.

    New networks use float16. bfloat16 has float32's range, so that nothing overflows or vanishes, and three binary
    digits less than float16. The other layers stay float32. `on_cpu` makes a CPU use the format as well, for tests.
    Raises InputError for other formats, and for float16 on a CPU, because few CPUs support it.
    """
    allowed = (torch.bfloat16, torch.float32) if on_cpu else (torch.float16, torch.bfloat16, torch.float32)
    if dtype not in allowed:
        situation = "on a CPU" if on_cpu else "here"
        names = " or ".join(str(choice).removeprefix("torch.") for choice in allowed)
        raise InputError(f"precision {str(dtype).removeprefix('torch.')} cannot be used {situation}: take {names}")
    for layer in network.modules():
        if isinstance(layer, _Reducible) and layer.reduced_precision:
            layer.precision = Precision(dtype, on_cpu)


@contextlib.contextmanager
def full_precision(network: nn.Module) -> Iterator[None]:
    """Inside the context all layers of `network` compute in float32; afterwards each has its own format again.

    For gradients where accuracy matters more than time. Other threads must not use the network meanwhile.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _Reducible)]
    formats = [layer.precision for layer in layers]
    try:
        for layer in layers:
            layer.precision = Precision()
        yield
    finally:
        for layer, precision in zip(layers, formats, strict=True):
            layer.precision = precision


FLOAT16_LOSS_SCALE = 1024.0  # a power of two, so that it rounds nothing; 65536 overflows where a loss is a sum


def loss_scale(network: nn.Module) -> float:
    """The factor for a loss whose gradient goes through the network; gradients are divided by it afterwards.

    A mean over pixels has small gradients. Below 2^-24 they are 0 in float16: near the end of a training a half of
    them, and whole layers do not move. So the factor is 1024 if any layer computes in float16, else 1.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _Reducible)]
    formats = {layer.precision.of(next(layer.parameters())) for layer in layers}
    return FLOAT16_LOSS_SCALE if torch.float16 in formats else 1.0


# ---- Linear layers, and the mapping network made of them.


class FullyConnected(nn.Module):
    """Linear layer with equalised learning rate (Karras et al. 2018): x [N, in] -> [N, out].

    The stored weights are N(0, 1) / `lr_multiplier`; the gain at run time is `lr_multiplier` / sqrt(in). `activation`
    adds a leaky ReLU of slope 0.2, times sqrt(2).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: bool = False,
        lr_multiplier: float = 1.0,
        weight_init: float = 1.0,
        bias_init: float | Sequence[float] = 0.0,
    ):
        super().__init__()
        self.activation = activation
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * (weight_init / lr_multiplier))
        bias = torch.as_tensor(bias_init, dtype=torch.float32).expand(out_features) / lr_multiplier
        self.bias = nn.Parameter(bias.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.addmm(self.bias * self.bias_gain, x, (self.weight * self.weight_gain).t())
        return nn.functional.leaky_relu(y, 0.2) * math.sqrt(2) if self.activation else y


def normalize_second_moment(x: torch.Tensor) -> torch.Tensor:
    """Scale x [N, C] so that the mean square of each row is 1."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def who_size(z_dim: int) -> int:
    """Number of the first values of z that say who a person is, in networks trained by identity pairs; the other values
    say how the person is seen."""
    return z_dim // 2


class MappingNetwork(nn.Module):
    """z [N, z_dim] and, with `c_dim`, a label c [N, c_dim] -> ws [N, num_ws, w_dim] float32.

    Without `num_ws` (inside a conditional discriminator, where z_dim is 0) the result is [N, w_dim].
    """

    w_avg: torch.Tensor  # [w_dim], only with `num_ws`

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, num_ws: int | None, num_layers: int, w_avg_beta=0.998):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.num_layers, self.w_avg_beta = num_layers, w_avg_beta
        if c_dim > 0:
            self.embed = FullyConnected(c_dim, w_dim)
        width = z_dim + (w_dim if c_dim > 0 else 0)
        for i in range(num_layers):
            layer = FullyConnected(width, w_dim, activation=True, lr_multiplier=0.01)
            setattr(self, f"fc{i}", layer)
            width = w_dim
        if num_ws is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: torch.Tensor | None,
        c: torch.Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
    ) -> torch.Tensor:
        """Map to w. `truncation_psi` moves the first `truncation_cutoff` ws (default: all) towards the average w."""
        x = self._input(z, c)
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        if self.num_ws is None:
            return x
        if update_emas:
            self.w_avg.copy_(x.detach().mean(0).lerp(self.w_avg, self.w_avg_beta))
        ws = x[:, None].repeat(1, self.num_ws, 1)
        if truncation_psi != 1:
            part = ws[:, :truncation_cutoff]
            ws[:, :truncation_cutoff] = self.w_avg.lerp(part, truncation_psi)
        return ws

    def _input(self, z, c):
        parts = []
        if self.z_dim > 0:
            if z is None or z.ndim != 2 or z.shape[1] != self.z_dim:
                shape = None if z is None else tuple(z.shape)
                raise InputError(f"mapping: z has shape {shape}, expected [N, {self.z_dim}]")
            parts.append(normalize_second_moment(z.to(torch.float32)))
        if self.c_dim > 0:
            if c is None or c.ndim != 2 or c.shape[1] != self.c_dim:
                shape = None if c is None else tuple(c.shape)
                raise InputError(
                    f"mapping: this network is conditional: label shape {shape}, expected [N, {self.c_dim}]"
                )
            parts.append(normalize_second_moment(self.embed(c.to(torch.float32))))
        return torch.cat(parts, dim=1)
