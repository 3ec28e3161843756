"""A projected discriminator beside the ordinary one: it judges the maps of a network of ImageNet instead of pixels.

After Sauer et al. 2021 ("Projected GANs Converge Faster"): the network is frozen, its four maps are mixed by random
convolutions, which stay as they are, and a small head judges each mixed map. It differs from the paper where that was
needed for small trainings on people. The heads have no normalisation. Their loss compares each generated image with a
real one (Jolicoeur-Martineau 2018, relativistic pairs), and R1 and R2 are taken at the mixed maps (Huang et al. 2024,
"The GAN is dead; long live the GAN!"). The ordinary discriminator stays: alone, this one begins too slowly.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn

from passersby.perception.efficientnet import CHANNELS, EfficientNet, resized
from training.gan.optimizers import apply_gradients
from training.workers import Scalars, average_over_workers

HEIGHT = 128  # [pixels] lower images are enlarged, because the last map would have almost no positions
MIXED = (32, 64, 128, 256)  # channels of the mixed maps
STRIDED = (2, 1, 0, 0)  # convolutions of stride 2 in the head of each map
ALONE = 80  # iterations in which the heads learn before the generator learns from them
GAMMA = 0.003  # weight of R1 and R2 for each value of a map
INTERVAL = 4  # iterations between two penalties
MEASURED = 16  # iterations between two measurements of the gradients' ratio
LEARNING_RATE = 0.001  # of the heads
_MIXING_SEED = 0


class Mixing(nn.Module):
    """Maps [N, C, h, w] of `EfficientNet` -> as many mixed maps; coarse maps also reach the finer ones.

    The convolutions are random and stay so. Each mixed map is scaled to variance 1 of the first real images, which
    `scale` [4] remembers.
    """

    scale: torch.Tensor

    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(_MIXING_SEED)

        def convolution(inputs: int, outputs: int, kernel: int) -> nn.Parameter:
            size = (outputs, inputs, kernel, kernel)
            weight = torch.randn(size, generator=random) * math.sqrt(2 / (inputs * kernel**2))  # He et al. 2015
            return nn.Parameter(weight, requires_grad=False)

        self.across = nn.ParameterList([convolution(c, mixed, 1) for c, mixed in zip(CHANNELS, MIXED, strict=True)])
        self.down = nn.ParameterList([convolution(MIXED[i + 1], MIXED[i], 1) for i in range(3)])
        self.smooth = nn.ParameterList([convolution(MIXED[i], MIXED[i], 3) for i in range(3)])
        self.register_buffer("scale", torch.zeros(len(MIXED)))

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """The mixed maps, before they are scaled."""
        across = [F.conv2d(each, weight) for each, weight in zip(maps, self.across, strict=True)]
        mixed = [across.pop()]
        for each, down, smooth in zip(across[::-1], [*self.down][::-1], [*self.smooth][::-1], strict=True):
            coarse = F.interpolate(F.conv2d(mixed[-1], down), size=each.shape[2:], mode="bilinear", align_corners=False)
            mixed.append(F.conv2d((each + coarse) * math.sqrt(0.5), smooth, padding=1))
        return mixed[::-1]


class ProjectedDiscriminator(nn.Module):
    """Images [N, 3, H, W] float32, -1..1 -> mixed maps (`maps`) -> logits [N, 4], one of each head."""

    def __init__(self, network: EfficientNet):
        super().__init__()
        self.network, self.mixing = network, Mixing()
        heads = (_head(mixed, strided) for mixed, strided in zip(MIXED, STRIDED, strict=True))
        self.heads = nn.ModuleList(heads)
        self.requires_grad_(False)
        self.measured = False  # whether the scale is; the host knows it without waiting for a GPU

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The mixed maps [N, C, h, w], of variance 1. The first images measure the scale."""
        mixed = self.mixing(self.network(resized(images, HEIGHT)))
        if not self.measured:
            self.measured = True
            with torch.no_grad():
                mean = torch.stack([each.mean() for each in mixed])
                square = torch.stack([each.square().mean() for each in mixed])
                average_over_workers([mean, square])
                self.mixing.scale.copy_((square - mean.square()).rsqrt())
        return [each * scale for each, scale in zip(mixed, self.mixing.scale, strict=True)]

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """The logits [N, 4] of mixed maps: each is the mean of a head's map of logits."""
        heads = zip(self.heads, maps, strict=True)
        return torch.stack([head(each).mean((1, 2, 3)) for head, each in heads], 1)


def _head(channels: int, strided: int) -> nn.Module:
    inner = 128 if channels >= 64 else 64
    layers: list[nn.Module] = []
    for _ in range(strided):
        layers += [nn.Conv2d(channels, inner, 4, 2, 1), nn.LeakyReLU(0.2)]
        channels = inner
    if not strided:
        layers = [nn.Conv2d(channels, inner, 1), nn.LeakyReLU(0.2)]
    # A constant in the logits would cancel out between a real and a generated image.
    return nn.Sequential(*layers, nn.Conv2d(inner, 1, 3, 1, 1, bias=False))


@dataclasses.dataclass
class ProjectedTraining:
    """The projected discriminator with everything that its training changes.

    ratio: length of its gradient at the generated images, over that of the ordinary discriminator's. balance: the
    weight of its loss that keeps this ratio, measured again and again. iterations: how many it has learned in.
    """

    discriminator: ProjectedDiscriminator
    optimizer: torch.optim.Optimizer
    ratio: float
    balance: torch.Tensor  # []; 0 before the first measurement
    iterations: int = 0
    real_maps: list[torch.Tensor] | None = None  # of the running iteration, for the generator's loss

    def discriminator_step(self, fakes: torch.Tensor, reals: torch.Tensor, pairs: bool) -> Scalars:
        """One step of the heads on images [N, 3, H, W] as the ordinary discriminator sees them; scalars [N, 1].

        pairs: the fakes 2i and 2i + 1 are one sample (`_partners`).
        """
        network = self.discriminator
        with torch.no_grad():
            real, fake = network.maps(reals), network.maps(fakes)
        self.real_maps = real
        penalised = self.iterations % INTERVAL == 0
        if penalised:
            real, fake = ([each.detach().requires_grad_(True) for each in maps] for maps in (real, fake))
        network.heads.requires_grad_(True)
        real_logits, fake_logits = network(real), network(fake)
        loss = F.softplus(_partners(fake_logits, pairs) - real_logits).sum(1, keepdim=True)
        total = loss.mean()
        if penalised:
            total = total + self._penalty(real_logits, fake_logits, real + fake) * INTERVAL
        total.backward()
        network.heads.requires_grad_(False)
        apply_gradients(self.optimizer)
        self.iterations += 1
        return {"D/projected_loss": loss.detach()}

    def _penalty(self, real: torch.Tensor, fake: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
        """R1 and R2: gamma / 2 * |gradient|^2 at the mixed maps, times the values of a map; a mean over images."""
        gradients = torch.autograd.grad(real.sum() + fake.sum(), maps, create_graph=True)
        return sum(
            (each.square().sum((1, 2, 3)).mean() * (GAMMA / 2 * each[0].numel()) for each in gradients),
            start=real.new_zeros([]),
        )

    def generator_loss(
        self, seen: torch.Tensor, fakes: torch.Tensor, ordinary: torch.Tensor, pairs: bool
    ) -> tuple[torch.Tensor, Scalars]:
        """(what is added to the generator's loss, scalars [N, 1]); call it after `discriminator_step`.

        seen: the generated images `fakes` [N, 3, H, W] as the ordinary discriminator saw them. ordinary: the mean loss
        by that, whose gradient at the images is the measure. Both have their graph.
        """
        assert self.real_maps is not None  # of this iteration
        network = self.discriminator
        with torch.no_grad():
            real_logits = network(self.real_maps)
        self.real_maps = None
        loss = F.softplus(real_logits - _partners(network(network.maps(seen)), pairs)).sum(1, keepdim=True)
        scalars = {"G/projected_loss": loss.detach()}
        if self.iterations <= ALONE:
            return loss.mean() * 0, scalars
        if (self.iterations - ALONE - 1) % MEASURED == 0:
            self._measure(ordinary, loss.mean(), fakes)
        return loss.mean() * self.balance, scalars

    def _measure(self, ordinary: torch.Tensor, projected: torch.Tensor, fakes: torch.Tensor) -> None:
        squares = []
        for loss in (ordinary, projected):
            (gradient,) = torch.autograd.grad(loss, fakes, retain_graph=True)
            squares.append(gradient.square().sum())
        average_over_workers(squares)
        balance = self.ratio * (squares[0] / squares[1].clamp_min(1e-30)).sqrt()
        self.balance.copy_(torch.where(self.balance == 0, balance, self.balance.lerp(balance, 0.1)))

    def state_dict(self) -> dict:
        """Everything that a checkpoint needs, on the CPU. The frozen network's weights are a file of their own."""
        network = self.discriminator
        return {
            "heads": {name: value.cpu() for name, value in network.heads.state_dict().items()},
            "mixing": {name: value.cpu() for name, value in network.mixing.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "balance": self.balance.cpu(),
            "iterations": self.iterations,
        }

    def load_state_dict(self, values: dict) -> None:
        """Continue from `state_dict()`."""
        self.discriminator.heads.load_state_dict(values["heads"])
        self.discriminator.mixing.load_state_dict(values["mixing"])
        self.discriminator.measured = True
        self.optimizer.load_state_dict(values["optimizer"])
        self.balance.copy_(values["balance"])
        self.iterations = values["iterations"]

    def record(self) -> dict[str, object]:
        """What the networks' files say of the frozen network."""
        network = self.discriminator.network
        return {"name": network.name, "sha256": network.sha256}


def new_projected(network: EfficientNet, ratio: float, device: torch.device) -> ProjectedTraining:
    """A projected discriminator at its beginning; its heads' weights are the next random numbers of the CPU."""
    discriminator = ProjectedDiscriminator(network).to(device)
    optimizer = torch.optim.Adam(discriminator.heads.parameters(), lr=LEARNING_RATE, betas=(0.0, 0.99), eps=1e-8)
    return ProjectedTraining(discriminator, optimizer, ratio, torch.zeros([], device=device))


def _partners(fakes: torch.Tensor, pairs: bool) -> torch.Tensor:
    """Logits of fakes [N, ...] in the order in which the reals [N, ...] are their partners.

    A worker has every W-th real image, and every W-th fake or every W-th pair of fakes. In this order each fake has the
    same real partner, whatever W is.
    """
    return torch.cat([fakes[::2], fakes[1::2]]) if pairs else fakes
