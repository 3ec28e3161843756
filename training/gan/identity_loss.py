"""What a re-ID network thinks of generated pairs: its part of the generator's loss in a training by identity pairs.

The pair discriminator learns who is who from few labelled people, and from nothing else. A re-ID network that knows the
same people has learned it already, and its gradients reach the generator from the first step on. The loss asks for no
more than real pictures have: a generated pair has to be as alike as a real pair of one person, and pictures of two
generated people as unlike as real pictures of two people. A pair that is so has no loss, so the generator gains nothing
from pictures that only this network takes for one person. It learns from the person alone: a gradient at the
surroundings could teach it to show all pictures of a person in one place.
"""

import dataclasses
import functools

import torch

from passersby.reid.identity_features import IdentityFeatures
from training.gan.config import MINIBATCH_GROUP
from training.reid.changes import person_masks
from training.workers import Scalars


@dataclasses.dataclass(frozen=True)
class IdentityLoss:
    """The loss with its frozen network. weight: that of the loss beside those of the discriminators."""

    features: IdentityFeatures
    weight: float

    def __call__(
        self, fakes: torch.Tensor, reals: torch.Tensor, strangers: torch.Tensor
    ) -> tuple[torch.Tensor, Scalars]:
        """(the loss [P, 1] times its weight, scalars [P, 1]) of pictures [2P, 3, H, W] float32, -1..1, of P pairs each.

        The pictures 2i and 2i + 1 are pair i, as in training/gan/pairs.py. A generated pair has the real pairs of its
        place, one of one person and one of two people, as its measure, and every other generated pair of its group of
        the minibatch deviation as another person; the terms of these add up. Otherwise the easy way to make one person
        alike is to make all people alike. The loss does not depend on how a batch is shared among workers.
        """
        first, second = self._features(_learning_from_the_person(fakes))
        with torch.no_grad():
            alike, unlike = (_cosine(*self._features(pictures)) for pictures in (reals, strangers))
        same = _cosine(first, second)
        others = torch.cat([_cosine(first, other) for other in _others_of_group(second)], 1)
        loss = self.weight * ((alike - same).relu() + (others - unlike).relu().sum(1, keepdim=True))
        different = others.mean(1, keepdim=True)
        named = {"fake": same, "real": alike, "fake_strangers": different, "real_strangers": unlike}
        scalars = {f"identity/{name}": value.detach() for name, value in named.items()}
        return loss, {"G/identity_loss": loss.detach(), **scalars}

    def _features(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the first and of the second pictures of pairs, [P, D] each."""
        features = self.features(pictures)
        return features[::2], features[1::2]


def _learning_from_the_person(pictures: torch.Tensor) -> torch.Tensor:
    """The same pictures [N, 3, H, W], whose gradient is that of a soft mask in the shape of a person."""
    still = pictures.detach()
    return still + _mask(*pictures.shape[2:], pictures.device, pictures.dtype) * (pictures - still)


@functools.cache
def _mask(height: int, width: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A soft mask in the middle, [1, H, W]; sent to a device once, because sending makes the host wait."""
    return person_masks(torch.tensor([[0.0, 1.0]]), height, width).to(device, dtype)


def _cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of features of length 1: [P, D], [P, D] -> [P, 1]."""
    return (first * second).sum(1, keepdim=True)


def _others_of_group(rows: torch.Tensor) -> list[torch.Tensor]:
    """For each other place of a group of the minibatch deviation: the rows there, [P, D] -> G - 1 of [P, D]."""
    groups = rows.unflatten(0, (MINIBATCH_GROUP, -1))
    return [groups.roll(-step, 0).flatten(0, 1) for step in range(1, MINIBATCH_GROUP)]
