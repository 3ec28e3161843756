"""One training iteration of StyleGAN3: losses, phases, optimisers, the averaged generator. No Ray, no files.

The loss is the non-saturating loss (Goodfellow et al. 2014) with R1 (Mescheder et al. 2018), which is applied lazily
(Karras et al. 2020, StyleGAN2). At the start StyleGAN3-R blurs the discriminator's images (Karras et al. 2021, appendix
F). The discriminator's images are augmented with a probability that adapts (Karras et al. 2020, ADA). Several workers
call the same functions inside a `torch.distributed` group.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import (
    _foreach_add_,  # pyright: ignore[reportPrivateImportUsage]  (torch's stubs do not export what torch exports)
    _foreach_copy_,  # pyright: ignore[reportPrivateImportUsage]  (the same)
    _foreach_div_,  # pyright: ignore[reportPrivateImportUsage]  (the same)
)

from passersby.stylegan3 import Discriminator, Generator
from training.gan.augment import AdaController, Draws, apply, rows_of
from training.workers import Scalars, average_over_workers, workers

if TYPE_CHECKING:
    from training.gan.pairs import PairInputs, PairTraining

# ---- The losses of StyleGAN3's training and the blur before its discriminator, as functions of tensors.


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(D(G(z))), the non-saturating loss; [N, 1] -> [N, 1]."""
    return F.softplus(-fake_logits)


def discriminator_loss(fake_logits: torch.Tensor, real_logits: torch.Tensor) -> torch.Tensor:
    """-log(1 - sigmoid(D(G(z)))) - log sigmoid(D(x)); [N, 1], [N, 1] -> [N, 1]."""
    return F.softplus(fake_logits) + F.softplus(-real_logits)


def r1_penalty(real_logits: torch.Tensor, reals: torch.Tensor, gamma: float) -> torch.Tensor:
    """gamma / 2 * |grad_x D(x)|^2 of every image, differentiable; [N, 1], [N, 3, H, W] -> [N]."""
    (gradient,) = torch.autograd.grad(real_logits.sum(), reals, create_graph=True)
    return gradient.square().sum(dim=[1, 2, 3]) * (gamma / 2)


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Separable blur of [N, 3, H, W]: kernel 2^-(x/sigma)^2 (base 2), radius floor(3 sigma), zeros outside.

    The blur is two products with banded matrices. At the start of training the kernel is longer than the image, so a
    convolution would mostly multiply padding.
    """
    radius = int(sigma * 3)
    if radius == 0:
        return images
    taps = torch.arange(-radius, radius + 1, dtype=torch.float32, device=images.device).div(sigma)
    total = taps.square().neg().exp2().sum()

    def matrix(size: int) -> torch.Tensor:
        position = torch.arange(size, dtype=torch.float32, device=images.device)
        distance = position[:, None] - position[None, :]
        kernel = distance.div(sigma).square().neg().exp2() / total
        return torch.where(distance.abs() <= radius, kernel, 0.0)  # [size, size], symmetric

    height, width = images.shape[2:]
    return matrix(height) @ images @ matrix(width)


# ---- Inputs of one iteration of a GAN training: real images, latent codes, draws of the augmentation.


@dataclasses.dataclass(frozen=True)
class Latents:
    """The codes of one phase. With `mix_z`, sample i has the w of `mix_z[i]` from index `mix_from[i]` on."""

    z: torch.Tensor  # [N, z_dim]
    mix_z: torch.Tensor | None = None  # [N, z_dim]
    mix_from: torch.Tensor | None = None  # [N] int64, 1..num_ws; num_ws = not mixed
    labels: torch.Tensor | None = None  # [N, c_dim]

    def share(self, index: slice, size: int = 1) -> "Latents":
        """The codes of some samples; size: images of a sample, 2 for pairs (`rows_of`)."""
        return self._map(lambda part: rows_of(part, index, size))

    def to(self, device: torch.device) -> "Latents":
        """The same codes on the device."""
        return self._map(lambda part: part.to(device))

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Latents":
        optional_parts = (None if part is None else change(part) for part in (self.mix_z, self.mix_from, self.labels))
        return Latents(change(self.z), *optional_parts)


# Images augmented in an iteration, each with separate draws: fakes that train G, fakes and reals that train D, R1.
AUGMENTED = ("generator", "fakes", "reals", "r1")
OF_FAKES = AUGMENTED[:2]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """All random inputs that one worker needs for an iteration."""

    reals: torch.Tensor  # [N, 3, H, W] float32, -1..1
    latents: tuple[Latents, Latents]  # of the generator's and of the discriminator's phase
    labels: torch.Tensor | None = None  # [N, c_dim] of the reals
    draws: dict[str, Draws] = dataclasses.field(default_factory=dict)  # by AUGMENTED; a missing name: no augmentation
    pairs: "PairInputs | None" = None  # with pairs, the fakes 2i and 2i + 1 are pair i, which is one sample

    def part(self, index: int, count: int) -> "Inputs":
        """Samples index, index + count, ... This stride keeps the groups of the minibatch deviation."""
        share, size = slice(index, None, count), 1 if self.pairs is None else 2
        return Inputs(
            self.reals[share],
            (self.latents[0].share(share, size), self.latents[1].share(share, size)),
            None if self.labels is None else self.labels[share],
            {name: draws.share(share, size if name in OF_FAKES else 1) for name, draws in self.draws.items()},
            None if self.pairs is None else self.pairs.part(index, count),
        )


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """The settings of an iteration. Counts are images, over all workers."""

    gamma: float
    r1_interval: int = 16
    blur_start_sigma: float = 0.0  # pixels; 0 = no blur (config T)
    blur_fade_images: float = 1.0
    ema_half_life_images: float = 5000.0
    ema_ramp: float | None = 0.05  # the half-life is at most this share of the images seen so far
    rounds: int = 1  # parts of a worker's share, computed one after the other; their gradients are added up


@dataclasses.dataclass
class TrainingState:
    """Everything that training changes. `images_seen` counts real images over all workers."""

    generator: Generator
    discriminator: Discriminator
    generator_ema: Generator
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    ada: AdaController
    real_signs: torch.Tensor  # [2]: sum of sign(D(real)) and count since p was last adapted, of this worker
    frozen: frozenset[str] = frozenset()  # parameters of the discriminator that stay unchanged (Freeze-D)
    pairs: "PairTraining | None" = None  # the pair discriminator, where the training has one
    step: int = 0
    images_seen: int = 0

    def train(self, network: str, train: bool) -> None:
        """Switch gradients of one network's parameters on or off; parameters of Freeze-D never have gradients."""
        for name, parameter in getattr(self, network).named_parameters():
            parameter.requires_grad_(train and not (network == "discriminator" and name in self.frozen))


def new_state(
    generator: Generator,
    discriminator: Discriminator,
    *,
    generator_lr: float = 0.0025,
    discriminator_lr: float = 0.002,
    r1_interval: int = 16,
    ada: AdaController | None = None,
    frozen: frozenset[str] = frozenset(),
) -> TrainingState:
    """Optimisers and the averaged generator around two networks. Without `ada` nothing is augmented."""
    generator.train().requires_grad_(False)
    discriminator.train().requires_grad_(False)
    trained = [parameter for name, parameter in discriminator.named_parameters() if name not in frozen]
    return TrainingState(
        generator=generator,
        discriminator=discriminator,
        generator_ema=copy.deepcopy(generator).eval().requires_grad_(False),
        generator_optimizer=torch.optim.Adam(generator.parameters(), lr=generator_lr, betas=(0.0, 0.99), eps=1e-8),
        discriminator_optimizer=new_adam(trained, discriminator_lr, r1_interval),
        ada=ada or AdaController(),
        real_signs=torch.zeros(2, device=generator.mapping.w_avg.device),
        frozen=frozen,
    )


def new_adam(parameters: Iterable[torch.nn.Parameter], lr: float, interval: int) -> torch.optim.Adam:
    """Adam for a network with a lazy regularisation every `interval` steps.

    Such a network takes 17 Adam steps in place of 16, so its rate and betas are adjusted (StyleGAN2, appendix B:
    c = k / (k + 1), rate * c, betas ** c).
    """
    correction = interval / (interval + 1)
    return torch.optim.Adam(parameters, lr=lr * correction, betas=(0.0, 0.99**correction), eps=1e-8)


def blur_sigma(settings: StepSettings, images_seen: int) -> float:
    """Width in pixels of the blur before the discriminator: falls linearly from its start value to 0."""
    return settings.blur_start_sigma * max(1 - images_seen / settings.blur_fade_images, 0.0)


def synthesize(generator: Generator, latents: Latents, update_emas: bool = False) -> torch.Tensor:
    """Training images of one phase, [N, 3, H, W] float32, with style mixing where the latents ask for it.

    Mixing is decided per sample, not per batch as in StyleGAN2. The expectation is the same, and every batch has
    several crossing points instead of one.
    """
    ws = generator.mapping(latents.z, latents.labels, update_emas=update_emas)  # [N, num_ws, w_dim]
    if latents.mix_z is not None:
        assert latents.mix_from is not None  # with `mix_z` comes `mix_from`
        mix_ws = generator.mapping(latents.mix_z, latents.labels)
        index = torch.arange(ws.shape[1], device=ws.device)
        ws = torch.where((index[None, :] < latents.mix_from[:, None])[:, :, None], ws, mix_ws)
    return generator.synthesis(ws, update_emas=update_emas)


def judge(
    state: TrainingState, images: torch.Tensor, labels: torch.Tensor | None, sigma: float, draws: Draws | None
) -> torch.Tensor:
    """Logits [N, 1] of images [N, 3, H, W] from the discriminator, after blur and then augmentation."""
    images = blur(images, sigma)
    return state.discriminator(images if draws is None else apply(images, draws), labels)


def generator_phase(
    state: TrainingState,
    latents: Latents,
    sigma: float,
    draws: Draws | None = None,
    pairs: "PairInputs | None" = None,
) -> Scalars:
    """Add gradients of the generator's loss to its parameters' gradients. Returns per-image scalars."""
    state.train("generator", True)
    images = synthesize(state.generator, latents)
    loss = generator_loss(judge(state, images, latents.labels, sigma, draws))
    total, scalars = loss.mean(), {"G/loss": loss.detach()}
    if state.pairs is not None and pairs is not None:
        pair_loss = state.pairs.generator_loss(images, latents.labels, sigma, pairs)
        total, scalars = total + pair_loss.mean(), scalars | {"G/pair_loss": pair_loss.detach()}
    total.backward()
    state.train("generator", False)
    return scalars


def discriminator_phase(
    state: TrainingState,
    reals: torch.Tensor,
    latents: Latents,
    sigma: float,
    labels: torch.Tensor | None = None,
    draws: tuple[Draws | None, Draws | None] = (None, None),
    pairs: "PairInputs | None" = None,
) -> Scalars:
    """Add gradients of the discriminator's loss on reals [N, 3, H, W]; moves the averages inside the generator.

    `draws` augment the fakes and the reals. With `pairs` the pair discriminator learns from the same fakes.
    """
    with torch.no_grad():
        fakes = synthesize(state.generator, latents, update_emas=True)
    state.train("discriminator", True)
    # Two forward passes, because the minibatch deviations of fakes and reals must not mix. Two backward passes need the
    # memory of only one.
    fake_logits = judge(state, fakes, latents.labels, sigma, draws[0])
    F.softplus(fake_logits).mean().backward()
    real_logits = judge(state, reals, labels, sigma, draws[1])
    F.softplus(-real_logits).mean().backward()
    state.train("discriminator", False)
    fake_logits, real_logits = fake_logits.detach(), real_logits.detach()
    scalars = {
        "D/loss": discriminator_loss(fake_logits, real_logits),
        "scores/fake": fake_logits,
        "scores/real": real_logits,
    }
    if state.pairs is not None and pairs is not None:
        scalars |= state.pairs.discriminator_phase(fakes, latents.labels, sigma, pairs)
    return scalars


def regularization_phase(
    state: TrainingState,
    reals: torch.Tensor,
    sigma: float,
    settings: StepSettings,
    labels: torch.Tensor | None = None,
    draws: Draws | None = None,
) -> Scalars:
    """Add gradients of R1 on reals [N, 3, H, W], times the interval, because the phase runs only once an interval."""
    state.train("discriminator", True)
    reals = reals.detach().requires_grad_(True)
    penalty = r1_penalty(judge(state, reals, labels, sigma, draws), reals, settings.gamma)
    penalty.mean().mul(settings.r1_interval).backward()
    state.train("discriminator", False)
    return {"D/r1": penalty.detach()}


@torch.no_grad()
def apply_gradients(optimizer: torch.optim.Optimizer, rounds: int = 1) -> None:
    """Average the gradients over rounds and workers, make them finite (nan -> 0, +-inf -> +-1e5), step, clear them.

    The reference does the same, and has no loss scale in float16 either.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if rounds > 1:
        _foreach_div_(gradients, float(rounds))
    average_over_workers(gradients)
    for gradient in gradients:
        torch.nan_to_num(gradient, nan=0.0, posinf=1e5, neginf=-1e5, out=gradient)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def ema_beta(settings: StepSettings, images_seen: int, batch: int) -> float:
    """The share that the averaged generator keeps in an iteration of `batch` images."""
    half_life = settings.ema_half_life_images
    if settings.ema_ramp is not None:
        half_life = min(half_life, images_seen * settings.ema_ramp)
    return 0.5 ** (batch / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(average: Generator, generator: Generator, beta: float) -> None:
    """average <- beta * average + (1 - beta) * generator; buffers are copied, because they are averages already."""
    for mean, value in zip(average.parameters(), generator.parameters(), strict=True):
        mean.lerp_(value, 1 - beta)
    for mean, value in zip(average.buffers(), generator.buffers(), strict=True):
        mean.copy_(value)


def train_iteration(state: TrainingState, settings: StepSettings, inputs: Inputs) -> Scalars:
    """A step each of generator, discriminator and R1 (every `r1_interval` iterations); then averages and adaptation.

    Returns per-image scalars of this worker, still on the device.
    """
    sigma = blur_sigma(settings, state.images_seen)
    rounds = [inputs.part(index, settings.rounds) for index in range(settings.rounds)]
    parts = [generator_phase(state, part.latents[0], sigma, part.draws.get("generator"), part.pairs) for part in rounds]
    scalars = _joined(parts)
    apply_gradients(state.generator_optimizer, settings.rounds)
    scalars |= _joined(_discriminator_rounds(state, rounds, sigma))
    apply_gradients(state.discriminator_optimizer, settings.rounds)
    if state.pairs is not None:
        apply_gradients(state.pairs.optimizer, settings.rounds)
    if state.step % settings.r1_interval == 0:
        parts = [
            regularization_phase(state, part.reals, sigma, settings, part.labels, part.draws.get("r1"))
            for part in rounds
        ]
        scalars |= _joined(parts)
        apply_gradients(state.discriminator_optimizer, settings.rounds)
        if state.pairs is not None:
            scalars |= _joined(
                [
                    state.pairs.regularization_phase(sigma, settings.r1_interval, part.pairs)
                    for part in rounds
                    if part.pairs is not None
                ]
            )
            apply_gradients(state.pairs.optimizer, settings.rounds)
    batch = len(inputs.reals) * workers()
    update_ema(state.generator_ema, state.generator, ema_beta(settings, state.images_seen, batch))
    state.step += 1
    state.images_seen += batch
    adapt(state.ada, state.real_signs, scalars["scores/real"], state.step, batch)
    if state.pairs is not None:
        adapt(state.pairs.ada, state.pairs.real_signs, scalars["scores/pair_real"], state.step, batch)
    return scalars


def _discriminator_rounds(state: TrainingState, rounds: list[Inputs], sigma: float) -> list[Scalars]:
    # The averages inside the generator are linear in the samples. So their mean over rounds and workers, each from the
    # same start, equals the averages of one worker with the whole batch, and all workers' generators stay the same.
    averages = [buffer for name, buffer in state.generator.named_buffers() if name.endswith(("_avg", "_ema"))]
    start = [buffer.clone() for buffer in averages]
    total = [torch.zeros_like(buffer) for buffer in averages]
    scalars = []
    for part in rounds:
        _foreach_copy_(averages, start)
        draws = part.draws.get("fakes"), part.draws.get("reals")
        scalars.append(discriminator_phase(state, part.reals, part.latents[1], sigma, part.labels, draws, part.pairs))
        _foreach_add_(total, averages, alpha=1 / len(rounds))
    _foreach_copy_(averages, total)
    average_over_workers(averages)
    return scalars


def _joined(parts: list[Scalars]) -> Scalars:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def adapt(ada: AdaController, real_signs: torch.Tensor, real_scores: torch.Tensor, step: int, batch: int) -> None:
    """Count the signs of D(real) and let the controller move p; waits for the device only when p may move.

    real_signs: [2], the sum and the number of signs since p could last move, of this worker. step: number of the
    iterations so far.
    """
    if not ada.adapts:
        return
    signs = real_scores.sign()
    real_signs += torch.stack([signs.sum(), torch.full_like(signs.sum(), signs.numel())])
    if step % ada.interval == 0:
        average_over_workers([real_signs])
        total, count = real_signs.tolist()
        ada.add(total * workers(), round(count * workers()))
        ada.update(batch * ada.interval)
        real_signs.zero_()
