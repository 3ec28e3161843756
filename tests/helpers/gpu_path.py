"""The way of a GPU, on a CPU: whole batches at once, the highest resolutions in float16. Slow: for tiny networks."""

import pytest
import torch
from torch import nn

from passersby.stylegan3 import generator
from passersby.stylegan3.mapping import Precision
from passersby.stylegan3.ops.convolution import whole_batch


def go_the_way_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, network: nn.Module, dtype: torch.dtype = torch.float16
) -> list[tuple[torch.dtype, bool]]:
    """Let `network` compute as on a GPU with this format until the test ends.

    Returns a list that grows: of each modulated convolution of 3x3, the dtype of its maps and whether float16 kernels
    would be scaled.
    """
    convolutions: list[tuple[torch.dtype, bool]] = []

    def convolution(x, weight, style, demodulation, bias, scaled=True):
        if weight.shape[2] == 3:
            convolutions.append((x.dtype, scaled))
        return whole_batch(x, weight, style, demodulation, bias, scaled)

    monkeypatch.setattr(generator, "modulated_conv2d", convolution)
    for layer in network.modules():
        if getattr(layer, "reduced_precision", False):
            monkeypatch.setattr(layer, "precision", Precision(dtype, on_cpu=True))
    return convolutions


def filter_kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns a list that grows by the kernel that each filtered leaky ReLU asks for, until the test ends."""
    kernels: list[str] = []
    filtered_lrelu = generator.filtered_lrelu

    def watched(x, up_filter, down_filter, plan, kernel="auto"):
        kernels.append(kernel)
        return filtered_lrelu(x, up_filter, down_filter, plan, kernel)

    monkeypatch.setattr(generator, "filtered_lrelu", watched)
    return kernels


def gradients_at_codes(synthesis: nn.Module) -> list[torch.Tensor]:
    """Returns a list that grows by the gradient at the codes, after each backward pass through `synthesis`."""
    gradients: list[torch.Tensor] = []

    def watch(_, arguments):
        if arguments[0].requires_grad:
            arguments[0].register_hook(gradients.append)

    synthesis.register_forward_pre_hook(watch)
    return gradients


def float_rules(monkeypatch: pytest.MonkeyPatch, network: nn.Module) -> list[tuple[bool, bool, bool]]:
    """Returns a list that grows with each call of `network`, until the test ends: PyTorch's settings at that time.

    They are TF32 in convolutions, TF32 in matrix products, and deterministic algorithms of cuDNN.
    """
    rules: list[tuple[bool, bool, bool]] = []
    forward, backends = network.forward, torch.backends

    def watched(*arguments, **keywords):
        rules.append((backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.deterministic))
        return forward(*arguments, **keywords)

    monkeypatch.setattr(network, "forward", watched)
    return rules


PYTORCHS_RULES = (True, False, False)
EXACT_RULES = (False, False, True)  # of generation and inversion
