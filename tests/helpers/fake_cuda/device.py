"""Steps on fake CUDA tensors: shapes, dtypes and devices are those of a GPU, values are not computed.

Tensors on the CPU are real, so that random draws, indices and pinned memory are those of the program. The library of
`shim.cpp` must be loaded before PyTorch, so all of this runs in a process of its own: `tests.helpers.fake_cuda.steps`.
"""

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[3]
GPU = torch.device("cuda", 0)


class Census(TorchDispatchMode):
    """Inside this context CUDA tensors are fake. Counts what makes the host wait for the device, by kind and place.

    A wait is reading a value of the device, an operation whose result's size depends on values of the device, and a
    copy to the device that is blocking or from memory that is not pinned. Values that are read are 0, nothing is
    found by `nonzero`, and masks take everything: so a step with a wait goes on, and the count is whole.
    """

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.pinned: dict[int, torch.Tensor] = {}  # by the address of the memory; kept, so that no address comes twice

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.prim.device.default:  # asked so often that a shorter way saves half of the time
            return args[0].fake_device
        if function._can_decompose():  # in inference mode PyTorch does not take such operations apart beforehand
            with self:
                result = function.decompose(*args, **kwargs or {})
            if result is not NotImplemented:
                return result
        kwargs = kwargs or {}
        tensors = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        fakes = [isinstance(tensor, FakeTensor) for tensor in tensors]
        to_gpu = torch.device(kwargs.get("device") or "cpu").type == "cuda"
        if not any(fakes) and not to_gpu:
            return function(*args, **kwargs)
        name = function.overloadpacket.__name__
        self.operations[name] += 1
        if name == "_local_scalar_dense":
            self.wait("value read")
            return {torch.bool: False}.get(args[0].dtype, 0 if not args[0].dtype.is_floating_point else 0.0)
        if name in ("_to_copy", "copy_"):
            source, target = (args[0], kwargs.get("device")) if name == "_to_copy" else (args[1], args[0].device)
            result = self._copied(source, torch.device(target or source.device), kwargs.get("non_blocking", args[2:3]))
            if name == "copy_" and result is not None:
                return args[0]
            if result is not None:
                memory_format = kwargs.get("memory_format") or torch.preserve_format
                return result.to(kwargs.get("dtype") or source.dtype, memory_format=memory_format)
        if name == "nonzero":
            self.wait("size depends on values: nonzero")
            with self.fake:
                return torch.empty(0, args[0].ndim, dtype=torch.int64, device=GPU)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            args = (args[0], self._indices(args[1]), *args[2:])
        with self.fake:
            return function(*args, **kwargs)

    def wait(self, kind: str) -> None:
        """Count a wait at the line of the project that runs."""
        here = str(Path(__file__).parent)
        frames = [f for f in traceback.extract_stack() if f.filename.startswith(str(ROOT)) and here not in f.filename]
        place = (
            f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else "no line of the project"
        )
        self.waits[f"{kind} at {place}"] += 1

    def _copied(self, source: torch.Tensor, target: torch.device, non_blocking) -> torch.Tensor | None:
        # The result of a copy between devices; None for a copy on a device.
        if source.device.type == "cuda" and target.type == "cpu":
            if non_blocking not in (True, (True,)):
                self.wait("copy to the host")
            if source.dtype in (torch.int32, torch.int64) and source.ndim:  # as if they were indices of a row
                return torch.arange(source.shape[-1], dtype=source.dtype).expand(source.shape).clone()
            return torch.zeros(source.shape, dtype=source.dtype)
        if source.device.type == "cpu" and target.type == "cuda":
            if source.untyped_storage().data_ptr() not in self.pinned:
                self.wait("copy from pageable memory")
            elif non_blocking not in (True, (True,)):
                self.wait("blocking copy to the device")
            strides = torch.empty_like(source, device="meta").stride()
            with self.fake:
                return torch.empty_strided(source.shape, strides, dtype=source.dtype, device=GPU)
        return None

    def _indices(self, indices):
        whole = []
        for index in indices:
            if index is not None and not isinstance(index, FakeTensor):
                self.wait("copy from pageable memory: indices")
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                self.wait("size depends on values: mask")
                with self.fake:
                    whole += [torch.empty(index.numel(), dtype=torch.int64, device=GPU) for _ in range(index.ndim)]
            else:
                whole.append(index)
        return whole

    def pin(self, tensor: torch.Tensor, *_) -> torch.Tensor:
        """A copy of the tensor that counts as pinned, in place of `Tensor.pin_memory`."""
        copy = tensor.clone(memory_format=torch.preserve_format)
        self.pinned[copy.untyped_storage().data_ptr()] = copy
        return copy


def _moved(module: torch.nn.Module, *arguments, **keywords) -> torch.nn.Module:
    """In place of `Module.to`, which cannot replace a fake parameter by another one."""
    device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*arguments, **keywords)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        of_maps = {} if memory_format is None or tensor.ndim != 4 else {"memory_format": memory_format}
        return tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking, **of_maps)

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(moved(parameter.detach()), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else moved(buffer)
    return module


@contextlib.contextmanager
def fake_gpu() -> Iterator[Census]:
    """A GPU of fake tensors inside the context, and the census of what happens on it."""
    census, gib = Census(), 1 << 30
    cuda = {
        "_lazy_init": lambda: None,
        "is_available": lambda: False,  # a step is told its device
        "is_bf16_supported": lambda **_: True,
        "mem_get_info": lambda *_: (140 * gib, 141 * gib),
        "max_memory_allocated": lambda *_: 0,
        "synchronize": lambda *_: census.wait("synchronize"),
        "Event": mock.Mock,
        "get_device_name": lambda *_: "no GPU",
    }
    with contextlib.ExitStack() as stack:
        for name, value in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        # PyTorch would ask the device's properties in order to choose between its own kernel and cuDNN's.
        cudnn = torch._C._ConvBackend.Cudnn
        stack.enter_context(mock.patch.object(torch._C, "_select_conv_backend", return_value=cudnn))
        common = torch.cuda.amp.common
        stack.enter_context(mock.patch.object(common, "amp_definitely_not_available", return_value=False))
        stack.enter_context(mock.patch.object(torch.nn.Module, "to", _moved))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda *a: census.pin(*a)))
        stack.enter_context(mock.patch.object(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, create=True))
        before = torch._C._only_lift_cpu_tensors()  # so that `torch.tensor(.., device=..)` is a copy that is seen
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, before)
        stack.enter_context(census)
        yield census
