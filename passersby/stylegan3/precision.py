"""In which number format the highest resolutions of a network compute: float16, bfloat16 or float32."""

import dataclasses

import torch
from torch import nn

from passersby.errors import InputError


@dataclasses.dataclass(frozen=True)
class Precision:
    """The format of a layer's maps; parameters stay float32. On a CPU float32 unless `on_cpu`."""

    dtype: torch.dtype = torch.float32
    on_cpu: bool = False

    def of(self, x: torch.Tensor) -> torch.dtype:
        """The format in which the layer works on maps that come as x."""
        return self.dtype if x.is_cuda or self.on_cpu else torch.float32

    @classmethod
    def of_layer(cls, reduced: bool) -> "Precision":
        """The format of a new network's layer: float16 on a GPU where `reduced`, as the reference has it."""
        return cls(torch.float16) if reduced else cls()


def set_precision(network: nn.Module, dtype: torch.dtype, on_cpu: bool = False) -> None:
    """Let the highest resolutions of a generator or discriminator (`num_fp16_res` octaves) compute in `dtype`.

    float16 is what networks are made with; bfloat16 has float32's range, so that nothing overflows or vanishes, and
    three binary digits less than float16. The other layers stay float32. `on_cpu` lets a CPU do the same, for tests.
    Raises InputError for other formats, and for float16 on a CPU, which few can do.
    """
    allowed = (torch.bfloat16, torch.float32) if on_cpu else (torch.float16, torch.bfloat16, torch.float32)
    if dtype not in allowed:
        where = "on a CPU" if on_cpu else "here"
        names = " or ".join(str(choice).removeprefix("torch.") for choice in allowed)
        raise InputError(f"precision {str(dtype).removeprefix('torch.')} cannot be used {where}: take {names}")
    for layer in network.modules():
        if getattr(layer, "reduced_precision", False):
            layer.precision = Precision(dtype, on_cpu)
