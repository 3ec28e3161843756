"""How a GPU computes in float32, and how values get to it."""

import os

import torch

from passersby.devices import exact_numbers, repeatable, send


def settings() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.deterministic


def test_float32_is_float32_inside_the_context_and_as_before_after_it():
    before = settings()
    assert before[0]  # PyTorch's default, which rounds float32 convolutions
    with exact_numbers():
        assert settings() == (False, False, False)
    with exact_numbers(deterministic=True):
        assert settings() == (False, False, True)
    with exact_numbers(tf32=True):
        assert settings() == (True, True, False)
    assert settings() == before


def test_repeatable_asks_pytorch_for_deterministic_algorithms_alone(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with repeatable(False):
        assert not torch.are_deterministic_algorithms_enabled()
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with repeatable():
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # the user's own
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_on_a_cpu_a_tensor_is_sent_without_a_copy():
    tensor = torch.zeros(3)
    assert send(tensor, torch.device("cpu")) is tensor
