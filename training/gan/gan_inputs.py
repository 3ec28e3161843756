"""What one iteration of a GAN training takes in: real images, latent codes, draws of the augmentation."""

import dataclasses

import torch

from training.gan.augment import Draws


@dataclasses.dataclass(frozen=True)
class Latents:
    """The codes of one phase. With `mix_z`, sample i has the w of `mix_z[i]` from index `mix_from[i]` on."""

    z: torch.Tensor  # [N, z_dim]
    mix_z: torch.Tensor | None = None  # [N, z_dim]
    mix_from: torch.Tensor | None = None  # [N] int64, 1..num_ws; num_ws = not mixed
    labels: torch.Tensor | None = None  # [N, c_dim]

    def share(self, index: slice) -> "Latents":
        """The codes of some samples."""
        return Latents(*(None if part is None else part[index] for part in self._parts()))

    def to(self, device: torch.device) -> "Latents":
        """The same codes on the device."""
        return Latents(*(None if part is None else part.to(device) for part in self._parts()))

    def _parts(self):
        return self.z, self.mix_z, self.mix_from, self.labels


# What is augmented in an iteration, each with draws of its own: fakes that train G, fakes and reals that train D, R1.
AUGMENTED = ("generator", "fakes", "reals", "r1")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Everything random that one worker needs for an iteration."""

    reals: torch.Tensor  # [N, 3, H, W] float32, -1..1
    latents: tuple[Latents, Latents]  # of the generator's and of the discriminator's phase
    labels: torch.Tensor | None = None  # [N, c_dim] of the reals
    draws: dict[str, Draws] = dataclasses.field(default_factory=dict)  # keys: AUGMENTED; missing = as they are

    def part(self, index: int, count: int) -> "Inputs":
        """Samples index, index + count, ...: with this stride the groups of the minibatch deviation are the same."""
        share = slice(index, None, count)
        return Inputs(
            self.reals[share],
            (self.latents[0].share(share), self.latents[1].share(share)),
            None if self.labels is None else self.labels[share],
            {name: draws.share(share) for name, draws in self.draws.items()},
        )
