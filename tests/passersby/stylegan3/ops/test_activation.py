"""Leaky ReLU and clamp in place against PyTorch's functions."""

import pytest
import torch
import torch.nn.functional as F

from passersby.stylegan3.ops.filtered_lrelu import leaky_clamp_


@pytest.mark.parametrize("clamp", [None, 1.0])
def test_leaky_clamp_equals_its_parts(clamp):
    x = torch.randn(4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = F.leaky_relu(x, 0.2)
    expected = expected if clamp is None else expected.clamp(-clamp, clamp)
    y = leaky_clamp_(x * 1.0, 0.2, clamp)
    torch.testing.assert_close(y, expected)
    if clamp is not None:
        assert (y == clamp).any()
    # Finite differences of 1e-6 meet a kink about never.
    assert torch.autograd.gradcheck(lambda a: leaky_clamp_(a * 1.0, 0.2, clamp), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda a: leaky_clamp_(a * 1.0, 0.2, clamp), x, fast_mode=True)


def test_it_overwrites_its_input():
    x = torch.tensor([-1.0, 2.0, 9.0])
    assert leaky_clamp_(x, 0.5, 3.0).data_ptr() == x.data_ptr()
    assert x.tolist() == [-0.5, 2.0, 3.0]
