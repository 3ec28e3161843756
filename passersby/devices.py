"""The device that computes: the CPU, or a GPU if there is one."""

from typing import TYPE_CHECKING

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
