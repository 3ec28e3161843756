"""Labels of training images: a distribution over the classes, and the weight of the image.

A real image is labelled with its person. The label of a generated image is a setting. Artificial people are new
classes, or their label is uniform (LSRO). A variant of a real person is labelled with this person, with this person
smoothed, uniformly, or with the probabilities of a teacher.
"""

import dataclasses
from typing import Literal, get_args

import torch
from torch.nn.functional import pad

from datasets.reid.sources import PEOPLE, VARIANTS
from passersby.errors import InputError

People = Literal["hard", "lsro"]
Variants = Literal["hard", "smooth", "lsro", "teacher"]


def is_generated(sources: torch.Tensor) -> torch.Tensor:
    """Which images are generated, [n] bool; the others are real pictures. sources: [n] int64, indices of SOURCES."""
    return (sources == PEOPLE) | (sources == VARIANTS)


def one_hot(classes: torch.Tensor, count: int) -> torch.Tensor:
    """Classes [n] int64, each 0..count-1 -> [n, count] float32, 1 at the class and 0 elsewhere."""
    return torch.nn.functional.one_hot(classes, count).to(torch.float32)


def smoothed(classes: torch.Tensor, count: int, eps: float) -> torch.Tensor:
    """Label smoothing (Szegedy et al. 2016): (1 - eps) one_hot + eps / count, [n, count] float32, rows sum to 1."""
    return one_hot(classes, count).mul_(1 - eps).add_(eps / count)


def uniform(n: int, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """LSRO (Zheng et al. 2017): every class has the same share, [n, count] float32 of 1 / count."""
    return torch.full((n, count), 1 / count, device=device)


@dataclasses.dataclass(frozen=True)
class Labelling:
    """How the images of each source are labelled and weighed.

    real_smoothing: eps of real images, 0 <= eps < 1 (0: the study; 0.1: bag of tricks).
    people: "hard": artificial people are new classes, labelled like real people; "lsro": uniform over the real classes.
    variants: "hard": labelled exactly as a real image of the person; "smooth": the person with eps
        `generated_smoothing` (CamStyle, Zhong et al. 2018: 0.1 on generated images only); "lsro": uniform over the
        real classes; "teacher": the teacher network's probabilities for the image (DG-Net, Zheng et al. 2019).
    generated_weight: weight of a generated image; a real image has weight 1.
    ramp: steps over which the weight of generated images grows from 0; 0: the full weight at once.
    """

    real_smoothing: float = 0.0
    people: People = "hard"
    variants: Variants = "hard"
    generated_smoothing: float = 0.1
    generated_weight: float = 1.0
    ramp: int = 0

    def __post_init__(self):
        for name, choices in (("people", get_args(People)), ("variants", get_args(Variants))):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} {getattr(self, name)!r} is no way to label them: {', '.join(choices)}")
        for name in ("real_smoothing", "generated_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: give a share of the label, at least 0 and below 1")
        if not 0 <= self.generated_weight < float("inf"):
            raise InputError(f"generated_weight {self.generated_weight}: give a number of at least 0")
        if self.ramp < 0:
            raise InputError(f"ramp {self.ramp}: give a number of steps, 0 for the full weight at once")

    def class_count(self, real_classes: int, total_classes: int) -> int:
        """Number of the classifier's classes: only the real classes where artificial people have a uniform label."""
        return real_classes if self.people == "lsro" else total_classes

    def targets(
        self,
        classes: torch.Tensor,
        sources: torch.Tensor,
        count: int,
        teacher_logits: torch.Tensor | None = None,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        """Labels [n, count] float32, rows sum to 1, on the device of `classes`.

        classes: [n] int64; with "lsro" the classes of artificial people are ignored and may be past `count`.
        sources: [n] int64, indices of SOURCES; further people and single pictures are labelled like real people.
        teacher_logits: [n, T], T <= count, of the first T classes. Later classes, whose people the teacher does not
        know, get 0. Only rows of variants are used. `temperature` softens the teacher's logits (Hinton et al. 2015),
        but not the logits of the trained network.
        Raises InputError where "teacher" has no teacher, or a teacher with more classes.
        """
        uniform_rows, variants = self._uniformly_labelled(sources), sources == VARIANTS
        valid_classes = torch.where(uniform_rows, 0, classes)  # one_hot refuses classes past the count
        labels = smoothed(valid_classes, count, self.real_smoothing)
        if self.variants == "smooth":
            labels = torch.where(variants[:, None], smoothed(valid_classes, count, self.generated_smoothing), labels)
        elif self.variants == "teacher" and teacher_logits is not None:
            labels = torch.where(variants[:, None], _teacher_labels(teacher_logits, count, temperature), labels)
        elif self.variants == "teacher" and variants.any():
            raise InputError("variants 'teacher': there is no teacher; give the checkpoint of a trained network")
        return torch.where(uniform_rows[:, None], uniform(len(classes), count, classes.device), labels)

    def weights(self, sources: torch.Tensor, step: int) -> torch.Tensor:
        """Weight of each image at this step, [n] float32: 1 for real images, up to `generated_weight` for generated."""
        ramp_factor = 1.0 if self.ramp == 0 else min(1.0, step / self.ramp)
        return torch.where(is_generated(sources), self.generated_weight * ramp_factor, 1.0).to(torch.float32)

    def _uniformly_labelled(self, sources: torch.Tensor) -> torch.Tensor:
        uniform_rows = torch.zeros_like(sources, dtype=torch.bool)
        if self.people == "lsro":
            uniform_rows |= sources == PEOPLE
        if self.variants == "lsro":
            uniform_rows |= sources == VARIANTS
        return uniform_rows


def _teacher_labels(logits: torch.Tensor, count: int, temperature: float) -> torch.Tensor:
    if logits.shape[1] > count:
        raise InputError(
            f"the teacher tells {logits.shape[1]} classes apart, this training {count}: "
            "train the teacher on the same real people"
        )
    probabilities = (logits.detach().to(torch.float32) / temperature).softmax(1)
    return pad(probabilities, (0, count - logits.shape[1]))
