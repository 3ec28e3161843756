"""Identity pairs: codes z = (who, how), and a second discriminator, which judges two pictures of one person at a time.

After Donahue et al. 2018 ("Semantically Decomposing the Latent Spaces of Generative Adversarial Networks"). Two
generated pictures of a pair share the half `who` of their codes and differ in the half `how`. The ordinary
discriminator judges single pictures of everybody. The pair discriminator sees two pictures as one image of six
channels. For it, two real pictures of one person are real. Generated pairs are fake, and so are two real pictures of
two people: without these it could accept any two good pictures, and `who` would mean nothing (as Reed et al. 2016,
"Generative Adversarial Text to Image Synthesis", take real pictures with a wrong text as a second kind of fake).

Where pictures of pairs stand in a row, the pictures 2i and 2i + 1 are pair i. A pair is one sample: no share of a batch
parts it. In this order the minibatch deviation of the ordinary discriminator never compares the two pictures of a pair,
which would reward the generator for making them differ.
"""

import dataclasses
from collections.abc import Collection

import numpy as np
import torch
import torch.nn.functional as F

from datasets.people.listing import Listing
from passersby.errors import InputError
from passersby.stylegan3 import Discriminator
from training.gan.augment import AdaController, Draws, apply
from training.gan.identity_loss import IdentityLoss
from training.gan.intraclass_loss import IntraclassLoss
from training.gan.losses import blur, generator_loss, r1_penalty
from training.workers import Scalars

# Pairs augmented in an iteration, each with separate draws: fakes that train G, fakes, reals and strangers that train
# the pair discriminator, R1.
PAIRS_AUGMENTED = ("generator", "fakes", "reals", "strangers", "r1")


def as_pairs(pictures: torch.Tensor) -> torch.Tensor:
    """Two rows become one: pictures [2P, 3, H, W] -> [P, 6, H, W], labels [2P, c_dim] -> [P, 2 c_dim]."""
    return pictures.unflatten(0, (-1, 2)).flatten(1, 2)


def as_pictures(pairs: torch.Tensor) -> torch.Tensor:
    """The inverse of `as_pairs`: [P, 6, H, W] -> [2P, 3, H, W]."""
    return pairs.unflatten(1, (2, -1)).flatten(0, 1)


# ---- Pairs of real pictures.


class RealPairs:
    """Draws pairs of real pictures of the labelled people who have two pictures or more.

    All these people are equally likely. The cameras of a pair's pictures are drawn independently of each other from
    those that see the person, then a picture of each camera; a pair never holds one picture twice. different: only
    pairs of two cameras, of people whom two cameras see. Raises InputError where fewer than two people remain.
    """

    def __init__(self, listing: Listing, people: Collection[int], different: bool = False):
        self.different = different
        self.people: list[list[tuple[int, np.ndarray]]] = []  # of each person: (camera, indices of its pictures)
        for identity in sorted(people):
            indices = np.flatnonzero(listing.identities == identity)
            cameras = listing.cameras[indices]
            pictures = [(camera, indices[cameras == camera]) for camera in np.unique(cameras).tolist()]
            if len(pictures) > 1 or (len(indices) > 1 and not different):
                self.people.append(pictures)
        if len(self.people) < 2:
            need = "two known cameras" if different else "two pictures"
            raise InputError(
                f"--pairs: {len(self.people)} of {len(people)} labelled people in {listing.name} have {need} or more: "
                "pairs need two such people or more"
            )

    def same(self, random: np.random.Generator, count: int) -> np.ndarray:
        """Pairs of two pictures of one person, as indices [count, 2] int64."""
        chosen = [self.people[person] for person in random.integers(len(self.people), size=count)]
        return np.array([self._pair(random, person, person) for person in chosen])

    def strangers(self, random: np.random.Generator, count: int) -> np.ndarray:
        """Pairs of one picture each of two people, as indices [count, 2] int64; cameras are drawn as in `same`."""
        first = random.integers(len(self.people), size=count)
        second = (first + random.integers(1, len(self.people), size=count)) % len(self.people)
        chosen = zip(first.tolist(), second.tolist(), strict=True)
        return np.array([self._pair(random, self.people[a], self.people[b]) for a, b in chosen])

    def _pair(self, random: np.random.Generator, *people: list[tuple[int, np.ndarray]]) -> tuple[int, int]:
        while True:
            cameras, pictures = zip(*(person[random.integers(len(person))] for person in people), strict=True)
            first, second = (int(indices[random.integers(len(indices))]) for indices in pictures)
            if first != second and not (self.different and cameras[0] == cameras[1]):
                return first, second


# ---- Inputs of the pair discriminator in one iteration.


@dataclasses.dataclass(frozen=True)
class PairInputs:
    """Real pairs, and the augmentation of all pairs, for one worker. Labels are those of both pictures of a pair."""

    reals: torch.Tensor  # [P, 6, H, W] float32, -1..1: two pictures of one person
    strangers: torch.Tensor  # [P, 6, H, W]: one picture each of two people
    labels: torch.Tensor | None = None  # [P, 2 c_dim] of the reals
    stranger_labels: torch.Tensor | None = None  # [P, 2 c_dim]
    # By PAIRS_AUGMENTED, of 2P pictures; a missing name: no augmentation.
    draws: dict[str, Draws] = dataclasses.field(default_factory=dict)

    def part(self, index: int, count: int) -> "PairInputs":
        """Pairs index, index + count, ..."""
        share = slice(index, None, count)
        return PairInputs(
            self.reals[share],
            self.strangers[share],
            None if self.labels is None else self.labels[share],
            None if self.stranger_labels is None else self.stranger_labels[share],
            {name: draws.share(share, 2) for name, draws in self.draws.items()},
        )


# ---- The pair discriminator's part of an iteration.


@dataclasses.dataclass
class PairTraining:
    """The pair discriminator with everything that its training changes.

    gamma: weight of R1 on pairs of six channels. stranger_weight: share of pairs of two people in the loss of fakes.
    identity, intraclass: what a re-ID network and the intraclass correlations add to the generator's loss, if anything.
    """

    discriminator: Discriminator
    optimizer: torch.optim.Optimizer
    ada: AdaController
    real_signs: torch.Tensor  # [2]: as in `TrainingState`
    gamma: float
    stranger_weight: float
    identity: IdentityLoss | None = None
    intraclass: IntraclassLoss | None = None

    def generator_loss(
        self, pictures: torch.Tensor, labels: torch.Tensor | None, sigma: float, inputs: PairInputs
    ) -> tuple[torch.Tensor, Scalars]:
        """(the generator's loss [P, 1], scalars [P, 1]) on its pictures [2P, 3, H, W] and their labels [2P, c_dim]."""
        draws = inputs.draws.get("generator")
        loss = generator_loss(self._judge(as_pairs(pictures), _paired(labels), sigma, draws))
        scalars = {"G/pair_loss": loss.detach()}
        reals = as_pictures(inputs.reals)
        if self.identity is not None:
            more, more_scalars = self.identity(pictures, reals, as_pictures(inputs.strangers))
            loss, scalars = loss + more, scalars | more_scalars
        if self.intraclass is not None:
            more, more_scalars = self.intraclass(pictures, reals)
            loss, scalars = loss + more, scalars | more_scalars
        return loss, scalars

    def discriminator_phase(
        self, pictures: torch.Tensor, labels: torch.Tensor | None, sigma: float, inputs: PairInputs
    ) -> Scalars:
        """Add gradients of the pair discriminator's loss; `pictures` [2P, 3, H, W] are generated, without gradients."""
        self.discriminator.requires_grad_(True)
        # One backward pass for each kind: their minibatch deviations must not mix, and each frees its memory.
        weight, draws = self.stranger_weight, inputs.draws
        fake = self._judge(as_pairs(pictures), _paired(labels), sigma, draws.get("fakes"))
        (F.softplus(fake).mean() * (1 - weight)).backward()
        stranger = self._judge(inputs.strangers, inputs.stranger_labels, sigma, draws.get("strangers"))
        (F.softplus(stranger).mean() * weight).backward()
        real = self._judge(inputs.reals, inputs.labels, sigma, draws.get("reals"))
        F.softplus(-real).mean().backward()
        self.discriminator.requires_grad_(False)
        fake, stranger, real = fake.detach(), stranger.detach(), real.detach()
        loss = F.softplus(-real) + (1 - weight) * F.softplus(fake) + weight * F.softplus(stranger)
        scores = {"scores/pair_real": real, "scores/pair_fake": fake, "scores/pair_stranger": stranger}
        return {"D/pair_loss": loss, **scores}

    def regularization_phase(self, sigma: float, interval: int, inputs: PairInputs) -> Scalars:
        """Add gradients of R1 on real pairs, times the interval, because the phase runs only once an interval."""
        self.discriminator.requires_grad_(True)
        reals = inputs.reals.detach().requires_grad_(True)
        logits = self._judge(reals, inputs.labels, sigma, inputs.draws.get("r1"))
        penalty = r1_penalty(logits, reals, self.gamma)
        penalty.mean().mul(interval).backward()
        self.discriminator.requires_grad_(False)
        return {"D/pair_r1": penalty.detach()}

    def _judge(
        self, pairs: torch.Tensor, labels: torch.Tensor | None, sigma: float, draws: Draws | None
    ) -> torch.Tensor:
        """Logits [P, 1] of pairs [P, 6, H, W], after blur and then augmentation of each picture."""
        pairs = blur(pairs, sigma)
        if draws is not None:
            pairs = as_pairs(apply(as_pictures(pairs), draws))
        return self.discriminator(pairs, labels)

    def state_dict(self) -> dict:
        """Everything that a checkpoint needs, on the CPU."""
        values = {
            "discriminator": {name: value.cpu() for name, value in self.discriminator.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "ada": self.ada.state_dict(),
            "real_signs": self.real_signs.cpu(),
        }
        return values if self.intraclass is None else values | {"intraclass": self.intraclass.state_dict()}

    def load_state_dict(self, values: dict) -> None:
        """Continue from `state_dict()`."""
        self.discriminator.load_state_dict(values["discriminator"])
        self.optimizer.load_state_dict(values["optimizer"])
        self.ada.load_state_dict(values["ada"])
        self.real_signs.copy_(values["real_signs"])
        if self.intraclass is not None:
            self.intraclass.load_state_dict(values["intraclass"])


def _paired(labels: torch.Tensor | None) -> torch.Tensor | None:
    return None if labels is None else as_pairs(labels)
