"""The random inputs of one iteration of a GAN training: real images, codes, noise, draws of the augmentation."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from passersby.devices import pinned, send
from training.gan.augment import Draws, rows_of

if TYPE_CHECKING:
    from training.gan.pairs import PairInputs


@dataclasses.dataclass(frozen=True)
class Noise:
    """The noise of a StyleGAN2's layers in one phase. A sample's noise depends on its place in the whole batch.

    So it does not depend on the number of workers or rounds. Every device has its own random numbers.
    """

    seed: int
    batch: int  # samples of all workers
    places: torch.Tensor  # [N] int64 on the CPU, ascending: the samples' places in the whole batch
    # The same where the noise is drawn; None: on the CPU.
    on_device: torch.Tensor | None = dataclasses.field(default=None, kw_only=True)

    def to(self, device: torch.device) -> "Noise":
        """The noise of a device. The host keeps the places, because decisions depend on them."""
        return dataclasses.replace(self, on_device=send(self.places, device))

    def draw(self, layer: int, size: tuple[int, ...]) -> torch.Tensor:
        """[N, *size] float32 of variance 1 for a layer, counted from 0, or for another use with a number of its own."""
        places = self.places if self.on_device is None else self.on_device
        device = places.device
        generator = torch.Generator(device).manual_seed(self.seed + layer)
        return torch.randn(self.batch, *size, generator=generator, device=device)[places]


@dataclasses.dataclass(frozen=True)
class Latents:
    """The codes of one phase. With `mix_z`, sample i has the w of `mix_z[i]` from index `mix_from[i]` on.

    Without `noise` a StyleGAN2 has its constant noise; a StyleGAN3 has no noise.
    """

    z: torch.Tensor  # [N, z_dim]
    mix_z: torch.Tensor | None = None  # [N, z_dim]
    mix_from: torch.Tensor | None = None  # [N] int64, 1..num_ws; num_ws = not mixed
    labels: torch.Tensor | None = None  # [N, c_dim]
    noise: Noise | None = None

    def share(self, index: slice | torch.Tensor, size: int = 1) -> "Latents":
        """The codes of some samples; size: images of a sample, 2 for pairs (`rows_of`)."""
        return self._map(lambda part: rows_of(part, index, size))

    def first(self, count: int) -> "Latents":
        """The codes of the first samples, copied."""
        return self._map(lambda part: part[:count].clone())

    def pinned(self) -> "Latents":
        """The same codes in pinned memory, from which a GPU reads without the host's waiting."""
        return self._map(pinned)

    def to(self, device: torch.device) -> "Latents":
        """The same codes on the device. The call does not wait for the device."""
        codes = dataclasses.replace(self, noise=None)._map(lambda part: send(part, device))
        return dataclasses.replace(codes, noise=self.noise and self.noise.to(device))

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Latents":
        mix_z, mix_from, labels = (
            None if part is None else change(part) for part in (self.mix_z, self.mix_from, self.labels)
        )
        noise = self.noise
        if noise is not None:
            on_device = None if noise.on_device is None else change(noise.on_device)
            noise = dataclasses.replace(noise, places=change(noise.places), on_device=on_device)
        return Latents(change(self.z), mix_z, mix_from, labels, noise)


# Images augmented in an iteration, each with separate draws: fakes that train G, fakes and reals that train D, R1.
AUGMENTED = ("generator", "fakes", "reals", "r1")
OF_FAKES = AUGMENTED[:2]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """All random inputs that one worker needs for an iteration."""

    reals: torch.Tensor  # [N, 3, H, W] float32, -1..1
    latents: tuple[Latents, ...]  # of the generator's and the discriminator's phase, perhaps of the path lengths
    labels: torch.Tensor | None = None  # [N, c_dim] of the reals
    draws: dict[str, Draws] = dataclasses.field(default_factory=dict)  # by AUGMENTED; a missing name: no augmentation
    pairs: "PairInputs | None" = None  # with pairs, the fakes 2i and 2i + 1 are pair i, which is one sample

    def part(self, index: int, count: int) -> "Inputs":
        """Samples index, index + count, ... This stride keeps the groups of the minibatch deviation."""
        share, size = slice(index, None, count), 1 if self.pairs is None else 2
        return Inputs(
            self.reals[share],
            tuple(latents.share(share, size) for latents in self.latents),
            None if self.labels is None else self.labels[share],
            {name: draws.share(share, size if name in OF_FAKES else 1) for name, draws in self.draws.items()},
            None if self.pairs is None else self.pairs.part(index, count),
        )
