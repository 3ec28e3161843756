"""Ranger against the formulas of its papers, written out in NumPy."""

import copy
import math

import numpy as np
import pytest
import torch

from training.encoder.step import Ranger


def slow_ranger(start: np.ndarray, gradients: list[np.ndarray], lr: float) -> list[np.ndarray]:
    """RAdam (Liu et al. 2020, algorithm 2) on centralised gradients, and lookahead with k = 6, alpha = 0.5."""
    beta1, beta2, epsilon = 0.95, 0.999, 1e-5
    weights, slow, m, v, seen = start.copy(), start.copy(), 0.0, 0.0, []
    for t, gradient in enumerate(gradients, 1):
        if gradient.ndim > 1:
            gradient = gradient - gradient.mean(tuple(range(1, gradient.ndim)), keepdims=True)
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * t * beta2**t / (1 - beta2**t)
        step = m / (1 - beta1**t)
        if length > 5:
            rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            step = step * math.sqrt(rectified) * math.sqrt(1 - beta2**t) / (np.sqrt(v) + epsilon)
        weights = weights - lr * step
        if t % 6 == 0:
            slow = slow + 0.5 * (weights - slow)
            weights = slow.copy()
        seen.append(weights.copy())
    return seen


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 3, 3)])
def test_steps_are_those_of_the_papers(shape):
    random = np.random.default_rng(0)
    start = random.standard_normal(shape)
    gradients = [random.standard_normal(shape) for _ in range(20)]
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = Ranger([parameter], lr=0.1)
    for gradient, wanted in zip(gradients, slow_ranger(start, gradients, 0.1), strict=True):
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        np.testing.assert_allclose(parameter.detach().numpy(), wanted, rtol=1e-6, atol=1e-9)


def test_it_goes_on_from_its_state_dict():
    random = torch.Generator().manual_seed(0)
    gradients = torch.randn((15, 3, 4), generator=random)
    one = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = Ranger([one])
    for step, gradient in enumerate(gradients):
        if step == 8:
            kept, two = copy.deepcopy(optimizer.state_dict()), torch.nn.Parameter(one.detach().clone())
            other = Ranger([two])
            other.load_state_dict(kept)
        one.grad = gradient.clone()
        optimizer.step()
        if step >= 8:
            two.grad = gradient.clone()
            other.step()
    assert torch.equal(one, two)
