"""What a re-ID network thinks of generated pairs: its part of the generator's loss in a training by identity pairs.

The pair discriminator learns who is who from few labelled people, and from nothing else. A re-ID network that knows the
same people has learned it already, and its gradients reach the generator from the first step on. The loss asks for no
more than real pictures have: a generated pair has to be as alike as a real pair of one person, and pictures of two
generated people as unlike as real pictures of two people. A pair that is so has no loss, so the generator gains nothing
from pictures that only this network takes for one person.
"""

import dataclasses

import torch

from passersby.reid.identity_features import IdentityFeatures
from training.gan.config import MINIBATCH_GROUP
from training.workers import Scalars


@dataclasses.dataclass(frozen=True)
class IdentityLoss:
    """The loss with its frozen network. weight: that of the loss beside those of the discriminators."""

    features: IdentityFeatures
    weight: float

    def __call__(
        self, fakes: torch.Tensor, reals: torch.Tensor, strangers: torch.Tensor
    ) -> tuple[torch.Tensor, Scalars]:
        """(the loss [P, 1] times its weight, scalars [P, 1]) of P pairs each, [P, 6, H, W] float32, -1..1.

        Generated pair i has the real pairs i of one person and of two people as its measure, and the next generated
        pair of its group of the minibatch deviation as the two people. So the loss does not depend on how a batch is
        shared among workers.
        """
        first, second = self._features(fakes)
        with torch.no_grad():
            alike, unlike = (_cosine(*self._features(pairs)) for pairs in (reals, strangers))
        same, different = _cosine(first, second), _cosine(first, _next_of_group(second))
        loss = self.weight * ((alike - same).relu() + (different - unlike).relu())
        named = {"fake": same, "real": alike, "fake_strangers": different, "real_strangers": unlike}
        scalars = {f"identity/{name}": value.detach() for name, value in named.items()}
        return loss, {"G/identity_loss": loss.detach(), **scalars}

    def _features(self, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the first and of the second pictures of pairs, [P, D] each."""
        first, second = self.features(torch.cat(pairs.unflatten(1, (2, -1)).unbind(1))).chunk(2)
        return first, second


def _cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of features of length 1: [P, D], [P, D] -> [P, 1]."""
    return (first * second).sum(1, keepdim=True)


def _next_of_group(rows: torch.Tensor) -> torch.Tensor:
    """Each row's place taken by the next one of its group of the minibatch deviation, [P, D] -> [P, D]."""
    return rows.unflatten(0, (MINIBATCH_GROUP, -1)).roll(-1, 0).flatten(0, 1)
