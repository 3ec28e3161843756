"""The device that computes, the CPU or a GPU: how it is chosen, how it computes in float32, how values get to it."""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from passersby.errors import InputError

if TYPE_CHECKING:  # jobs that only ask a cluster start without PyTorch
    import torch


def chosen_device(device: str, gpus: int) -> str:
    """The device "cpu" or "cuda"; "auto" becomes "cuda" if `gpus`, of this process or of a cluster, are above 0."""
    if device == "auto":
        return "cuda" if gpus else "cpu"
    return device


def pick_device(gpus: int | None) -> "torch.device":
    """The device of a training in this process: the first GPU, or the CPU if there is no GPU or --gpus is 0.

    Raises InputError if --gpus asks for a GPU and there is none.
    """
    import torch

    usable = torch.cuda.is_available()
    if gpus and not usable:
        raise InputError(f"--gpus {gpus}: this machine has no usable CUDA device; give --gpus 0 for the CPU")
    return torch.device("cuda", 0) if gpus != 0 and usable else torch.device("cpu")


@contextlib.contextmanager
def exact_numbers(*, tf32: bool = False, deterministic: bool = False) -> Iterator[None]:
    """Inside the context a GPU computes float32 in float32; afterwards PyTorch's settings are again what they were.

    PyTorch's own default lets convolutions round float32 inputs to 10 binary digits (TF32); the reference of StyleGAN
    turns that off. tf32: allow it, in convolutions and in matrix products. deterministic: cuDNN takes only algorithms
    that give equal bits in every call. A CPU computes the same either way.
    """
    import torch

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = tf32
    try:
        with cudnn.flags(cudnn.enabled, cudnn.benchmark, deterministic=deterministic, allow_tf32=tf32):
            yield
    finally:
        matmul.allow_tf32 = before


@contextlib.contextmanager
def repeatable(asked: bool = True) -> Iterator[None]:
    """Inside the context a GPU gives equal bits in every call; an operation without such a way is a RuntimeError.

    It must be entered before the first matrix product of the process. asked=False changes nothing.
    """
    if not asked:
        yield
        return
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at the first product
    settings: Any = torch.utils.deterministic  # its attribute is set by a class that types do not see
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # it finds mistakes, and writes every new tensor twice
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


def pinned(tensor: "torch.Tensor") -> "torch.Tensor":
    """A copy in pinned memory, from which a GPU reads without the host's waiting; without the gaps of a strided view.

    A view with gaps would be copied once more on its way, to memory that is not pinned.
    """
    return tensor if tensor.is_pinned() else tensor.clone().pin_memory()


def send(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """The tensor of the CPU on the device. The host does not wait for a GPU's earlier work."""
    return pinned(tensor).to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
