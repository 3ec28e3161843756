"""Labels and weights, against sums done by hand."""

import numpy as np
import pytest
import torch

from datasets.reid.sources import PEOPLE, REAL, VARIANTS
from passersby.errors import InputError
from training.reid.labels import Labelling, one_hot, smoothed, uniform

# Classes 0..2 are real, 3 and 4 artificial people.
CLASSES = torch.tensor([0, 2, 3, 4, 1, 2])
SOURCES = torch.tensor([REAL, REAL, PEOPLE, PEOPLE, VARIANTS, VARIANTS])


def rows(labelling: Labelling, count: int = 5, **teacher) -> np.ndarray:
    labels = labelling.targets(CLASSES, SOURCES, count, **teacher)
    assert labels.dtype == torch.float32
    assert labels.shape == (6, count)
    assert torch.allclose(labels.sum(1), torch.ones(6))
    return labels.numpy()


def test_plain_labels():
    assert one_hot(torch.tensor([1, 0]), 3).tolist() == [[0, 1, 0], [1, 0, 0]]
    expected = [[0.025, 0.925, 0.025, 0.025]]
    assert np.allclose(smoothed(torch.tensor([1]), 4, 0.1), expected)
    assert uniform(2, 4).tolist() == [[0.25] * 4] * 2
    assert {labels.dtype for labels in (one_hot(CLASSES, 5), smoothed(CLASSES, 5, 0.1), uniform(1, 5))} == {
        torch.float32
    }


def test_the_study_gives_everyone_their_class():
    assert rows(Labelling()).tolist() == np.eye(5)[CLASSES].tolist()


def test_hard_labels_of_generated_images_are_smoothed_as_real_ones():
    assert np.allclose(rows(Labelling(real_smoothing=0.2)), 0.8 * np.eye(5)[CLASSES] + 0.04)


def test_doubt_about_variants_only():
    expected = np.eye(5)[CLASSES]
    expected[4:] = 0.7 * expected[4:] + 0.06
    assert np.allclose(rows(Labelling(variants="smooth", generated_smoothing=0.3)), expected)


def test_lsro_people_are_nobody_among_the_real_classes():
    labelling = Labelling(people="lsro")
    assert labelling.class_count(3, 5) == 3
    assert Labelling(variants="lsro").class_count(3, 5) == 5
    expected = np.eye(5)[CLASSES][:, :3]
    expected[2:4] = 1 / 3
    assert np.allclose(rows(labelling, 3), expected)  # classes 3 and 4 are past the count


def test_lsro_variants():
    expected = np.eye(5)[CLASSES]
    expected[4:] = 0.2
    assert np.allclose(rows(Labelling(variants="lsro")), expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_teacher_of_the_real_classes_labels_variants(temperature):
    logits = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    logits[:4] = np.nan  # those of other images are not looked at
    labels = rows(Labelling(variants="teacher"), teacher_logits=torch.tensor(logits), temperature=temperature)
    expected = np.eye(5)[CLASSES]
    powers = np.exp(logits[4:] / temperature)
    expected[4:] = np.concatenate([powers / powers.sum(1, keepdims=True), np.zeros((2, 2))], 1)
    assert np.allclose(labels, expected, atol=1e-6)


def test_no_gradient_reaches_the_teacher():
    logits = torch.randn(6, 5, requires_grad=True)
    assert not Labelling(variants="teacher").targets(CLASSES, SOURCES, 5, logits).requires_grad


def test_a_teacher_that_is_not_there_or_knows_too_many():
    teacher = Labelling(variants="teacher")
    with pytest.raises(InputError, match="no teacher"):
        teacher.targets(CLASSES, SOURCES, 5)
    with pytest.raises(InputError, match="7 classes apart, this training 5"):
        teacher.targets(CLASSES, SOURCES, 5, torch.zeros(6, 7))
    assert teacher.targets(CLASSES[:4], SOURCES[:4], 5).shape == (4, 5)  # not needed without variants


def test_weight_of_generated_images_grows():
    labelling = Labelling(generated_weight=0.5, ramp=10)
    for step, expected in ((0, 0.0), (4, 0.2), (10, 0.5), (999, 0.5)):
        weights = labelling.weights(SOURCES, step)
        assert weights.dtype == torch.float32
        assert np.allclose(weights, [1, 1] + [expected] * 4)
    assert Labelling(generated_weight=0.5).weights(SOURCES, 0).tolist() == [1, 1] + [0.5] * 4
    assert Labelling().weights(SOURCES, 0).tolist() == [1] * 6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"people": "soft"}, "people 'soft'.*hard, lsro"),
        ({"variants": "soft"}, "variants 'soft'"),
        ({"real_smoothing": 1.0}, "real_smoothing 1.0"),
        ({"generated_smoothing": -0.1}, "generated_smoothing -0.1"),
        ({"generated_weight": float("nan")}, "generated_weight nan"),
        ({"ramp": -1}, "ramp -1"),
    ],
)
def test_bad_settings(wrong, message):
    with pytest.raises(InputError, match=message):
        Labelling(**wrong)
