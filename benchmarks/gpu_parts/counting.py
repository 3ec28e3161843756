"""What a computation asks of a device: its operations, their arithmetic, and the bytes that they read and write.

The least time of an operation on a card is the larger of bytes / (speed of memory) and FLOP / (speed of products): it
reads its inputs from memory and writes its results there, as it does without a compiler. Their sum is a floor of the
whole computation.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from passersby.stylegan3.ops.filtered_lrelu import fused
from passersby.stylegan3.ops.filtered_lrelu.activation import FilterPlan
from passersby.stylegan3.ops.filtered_lrelu.matmul import SEPARATION_TOLERANCE, Taps

# Operations that move no bytes: views, and new memory without values.
FREE = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "broadcast_to", "chunk", "detach", "device", "empty",
    "empty_like", "empty_strided", "expand", "lift_fresh", "new_empty", "new_empty_strided", "permute", "reshape",
    "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten", "unsqueeze",
    "view",
}  # fmt: skip
FOREACH_TENSORS = 100  # about so many tensors share one launch of a `_foreach` operation


@dataclasses.dataclass
class Work(TorchDispatchMode):
    """Counts the operations inside its context, by name. `calls` approximates launches of kernels.

    `bytes` are those of all tensors that an operation takes or gives, without the repetitions of an expanded one.
    `flop`: of convolutions, matrix products and the kernel of Triton; a multiplication and an addition are 2.
    """

    calls: Counter[str] = dataclasses.field(default_factory=Counter)
    bytes: Counter[str] = dataclasses.field(default_factory=Counter)
    flop: Counter[str] = dataclasses.field(default_factory=Counter)
    taps: Callable[[torch.Tensor], Taps] = fused.taps_of

    def __post_init__(self):
        super().__init__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in FREE:
            return result
        inputs, outputs = (_tensors(part) for part in ((args, kwargs), result))
        calls, flop = 1, 0
        if name == "convolution":
            name, flop = _convolution(args, outputs[0])
        elif name == "convolution_backward":
            name, flop, calls = _convolution_gradients(args)
        elif name in ("mm", "addmm", "bmm", "baddbmm"):
            flop = 2 * args[-2].numel() * outputs[0].shape[-1]
        elif name.startswith("filtered_lrelu"):
            flop = self._filtered_lrelu(name.endswith("backward"), args, outputs[0])
        elif name.startswith("_foreach"):
            calls = max(1, len(inputs) // FOREACH_TENSORS)
        self.calls[name] += calls
        self.bytes[name] += sum(map(_bytes, inputs + outputs))
        self.flop[name] += flop
        return result

    def _filtered_lrelu(self, backward: bool, args: tuple, output: torch.Tensor) -> int:
        # The products of all tiles, the repeated and the padded ones too.
        x, (up_filter, down_filter, up, down, crop, size, slope, gain, clamp) = args[0], args[2 if backward else 1 :]
        plan = FilterPlan(up, down, tuple(crop), tuple(size), slope, gain, clamp)
        make, tile_of = (
            (fused.backward_variant, fused.backward_tile) if backward else (fused.forward_variant, fused.forward_tile)
        )
        tile = tile_of(x.dtype, x.shape[1])
        variant = make(self.taps(up_filter), self.taps(down_filter), plan, tile, SEPARATION_TOLERANCE[x.dtype])
        products = sum(matrix.size for matrix in variant.matrices) * tile.channels
        n, channels, height, width = output.shape
        parts = (height / tile.height, width / tile.width, channels / tile.channels)
        return 2 * products * variant.constants["ROWS"] * n * math.prod(map(math.ceil, parts))

    @property
    def all_calls(self) -> int:
        """Calls of all operations."""
        return sum(self.calls.values())

    @property
    def all_bytes(self) -> int:
        """Bytes of all operations."""
        return sum(self.bytes.values())

    @property
    def all_flop(self) -> int:
        """FLOP of all operations."""
        return sum(self.flop.values())

    def floor(self, bytes_per_second: float, flop_per_second: float) -> float:
        """The least seconds on a device of these speeds."""
        return sum(max(self.bytes[name] / bytes_per_second, self.flop[name] / flop_per_second) for name in self.bytes)


def saved_bytes(forward: Callable[[], object]) -> int:
    """Bytes of memory that `forward` keeps for the backward pass of its result, without parameters and buffers.

    Each piece of memory counts once, whole, however many views of it are kept.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    total = sum(storage.nbytes() for storage in kept.values())
    del result
    return total


def _tensors(values) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _bytes(tensor: torch.Tensor) -> int:
    lengths = (length for length, step in zip(tensor.shape, tensor.stride(), strict=True) if step)
    return math.prod(lengths) * tensor.element_size()


def _convolution(args: tuple, output: torch.Tensor) -> tuple[str, int]:
    x, weight, transposed, groups = args[0], args[1], args[6], args[8]
    places = x if transposed else output
    name = f"{'depthwise ' if groups > 1 else ''}{'transposed ' if transposed else ''}convolution"
    return name, 2 * places.numel() * math.prod(weight.shape[1:])


def _convolution_gradients(args: tuple) -> tuple[str, int, int]:
    grad, x, weight, transposed, groups, wanted = *args[:3], args[7], args[9], args[10]
    places, gradients = x if transposed else grad, sum(wanted[:2])
    name = f"{'depthwise ' if groups > 1 else ''}convolution's gradient"
    return name, 2 * places.numel() * math.prod(weight.shape[1:]) * gradients, gradients
