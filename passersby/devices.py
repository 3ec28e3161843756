"""Which device computes: the CPU, or a GPU where there is one."""

from typing import TYPE_CHECKING

from passersby.errors import InputError

if TYPE_CHECKING:  # jobs that only ask a cluster start without PyTorch
    import torch


def chosen_device(device: str, gpus: int) -> str:
    """--device with "auto" made "cuda" where there are GPUs, those of this process or of a cluster, else "cpu"."""
    if device == "auto":
        return "cuda" if gpus else "cpu"
    return device


def pick_device(gpus: int | None) -> "torch.device":
    """The device of a training in this process: the first GPU, or the CPU where there is none or --gpus is 0.

    Raises InputError where a GPU is asked for and there is none.
    """
    import torch

    usable = torch.cuda.is_available()
    if gpus and not usable:
        raise InputError(f"--gpus {gpus}: this machine has no usable CUDA device; give --gpus 0 for the CPU")
    return torch.device("cuda", 0) if gpus != 0 and usable else torch.device("cpu")
