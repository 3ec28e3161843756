"""Losses against slow loops in double precision, and their gradients where a square root or a mask could break them."""

import math

import numpy as np
import pytest
import torch

from training.reid.step import batch_hard_triplet, soft_cross_entropy, valid_mean


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def triplet_by_loop(embedding, classes, margin, mask):
    losses, valid = np.zeros(len(classes)), np.zeros(len(classes), bool)
    for anchor in range(len(classes)):
        far, near = [], []
        for other in range(len(classes)):
            if anchor != other and mask[anchor] and mask[other]:
                distance = math.dist(embedding[anchor].tolist(), embedding[other].tolist())
                (far if classes[anchor] == classes[other] else near).append(distance)
        if far and near:
            gap = max(far) - min(near)
            losses[anchor] = math.log1p(math.exp(gap)) if margin is None else max(0.0, margin + gap)
            valid[anchor] = True
    return losses, valid


def test_soft_cross_entropy():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(7, 5)) * 4, rng.dirichlet(np.ones(5), 7)
    expected = -(targets * log_softmax(logits)).sum(1)
    tensors = [torch.tensor(array, dtype=torch.float32) for array in (logits, targets)]
    assert np.allclose(soft_cross_entropy(*tensors), expected, atol=1e-5)


def test_soft_cross_entropy_of_a_class_is_the_usual_one():
    logits, classes = torch.randn(6, 9), torch.arange(6)
    expected = torch.nn.functional.cross_entropy(logits, classes, reduction="none")
    assert torch.allclose(soft_cross_entropy(logits, torch.eye(9)[classes]), expected, atol=1e-6)


def test_everything_is_float32_under_autocast():
    torch.manual_seed(0)
    half, classes = torch.randn(8, 16).to(torch.bfloat16), torch.arange(8) % 4
    targets = torch.rand(8, 16).softmax(1)
    compute = lambda rows: (  # noqa: E731
        soft_cross_entropy(rows, targets),
        batch_hard_triplet(rows, classes, None)[0],
    )
    exact = compute(half.to(torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        losses = compute(half)
    for loss, expected in zip(losses, exact, strict=True):
        assert loss.dtype == torch.float32
        assert torch.allclose(loss, expected, atol=1e-6)


@pytest.mark.parametrize("margin", [0.3, None])
@pytest.mark.parametrize("seed", range(6))
def test_triplet_is_the_loop(seed, margin):
    rng = np.random.default_rng(seed)
    classes, mask = rng.integers(0, 5, 24), rng.random(24) < (1.0, 0.7, 0.3)[seed % 3]
    embedding = rng.normal(size=(24, 6)) * 0.4
    embedding[3] = embedding[5]  # distance 0
    expected, expected_valid = triplet_by_loop(embedding, classes, margin, mask)
    losses, valid = batch_hard_triplet(
        torch.tensor(embedding, dtype=torch.float32), torch.tensor(classes), margin, torch.tensor(mask)
    )
    assert valid.tolist() == expected_valid.tolist()
    assert np.allclose(losses, expected, atol=2e-6)
    assert float(valid_mean(losses, valid)) == pytest.approx(expected.sum() / max(expected_valid.sum(), 1), abs=2e-6)


@pytest.mark.parametrize("margin", [0.3, None])
def test_triplet_gradient_is_that_of_finite_differences(margin):
    torch.manual_seed(1)
    embedding = torch.randn(10, 4, dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3, 0])
    mask = torch.arange(10) != 9
    assert torch.autograd.gradcheck(lambda rows: batch_hard_triplet(rows, classes, margin, mask)[0], embedding)


def test_near_samples_far_from_the_origin_keep_their_distances():
    embedding = (1000 + 0.01 * np.random.default_rng(0).normal(size=(16, 4))).astype(np.float32)
    classes = np.arange(16) % 4
    expected, _ = triplet_by_loop(embedding, classes, 1.0, np.ones(16, bool))
    losses, _ = batch_hard_triplet(torch.tensor(embedding), torch.tensor(classes), 1.0)
    assert np.allclose(losses, expected, atol=1e-6)


@pytest.mark.parametrize("margin", [0.3, None])
def test_identical_embeddings_have_a_finite_gradient(margin):
    embedding = torch.ones(6, 4, requires_grad=True)
    losses, valid = batch_hard_triplet(embedding, torch.tensor([0, 0, 0, 1, 1, 1]), margin)
    assert valid.all()
    assert np.allclose(losses.detach(), math.log(2) if margin is None else margin, atol=1e-6)
    losses.sum().backward()
    assert torch.isfinite(embedding.grad).all()


@pytest.mark.parametrize("classes", [[0, 0, 0, 0], [0, 1, 2, 3]])
def test_no_positive_or_no_negative_is_no_loss(classes):
    embedding = torch.randn(4, 3, requires_grad=True)
    losses, valid = batch_hard_triplet(embedding, torch.tensor(classes), None)
    assert not valid.any()
    assert losses.tolist() == [0] * 4
    valid_mean(losses, valid).backward()
    assert embedding.grad.tolist() == [[0] * 3] * 4


def test_samples_outside_the_mask_have_no_gradient():
    embedding = torch.randn(8, 3, requires_grad=True)
    mask = torch.tensor([True] * 6 + [False] * 2)
    losses, valid = batch_hard_triplet(embedding, torch.tensor([0, 0, 1, 1, 2, 2, 0, 1]), None, mask)
    assert valid.tolist() == mask.tolist()
    losses.sum().backward()
    assert (embedding.grad[6:] == 0).all()
    assert (embedding.grad[:6] != 0).any()


def test_embeddings_that_are_not_numbers_show_in_the_loss():
    embedding = torch.randn(4, 3)
    embedding[1] = float("nan")
    losses, valid = batch_hard_triplet(embedding, torch.tensor([0, 0, 1, 1]), 0.3)
    assert valid_mean(losses, valid).isnan()
