"""One training iteration of StyleGAN3: losses, phases, optimisers, the averaged generator. No Ray, no files.

The loss is the non-saturating one (Goodfellow et al. 2014) with R1 (Mescheder et al. 2018) applied lazily
(Karras et al. 2020, StyleGAN2); StyleGAN3-R blurs what the discriminator sees at the start (Karras et al.
2021, appendix F). Several workers call the same functions inside a `torch.distributed` group.
"""

import copy
import dataclasses
from collections.abc import Iterable

import torch
import torch.distributed
import torch.nn.functional as F

from models.stylegan3 import Discriminator, Generator

Scalars = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What an iteration needs to know besides networks and data. Counts are images, over all workers."""

    gamma: float
    r1_interval: int = 16
    blur_start_sigma: float = 0.0  # pixels; 0 = no blur (config T)
    blur_fade_images: float = 1.0
    ema_half_life_images: float = 5000.0
    ema_ramp: float | None = 0.05  # the half-life is at most this share of the images seen so far


@dataclasses.dataclass(frozen=True)
class Latents:
    """The codes of one phase. With `mix_z`, sample i has the w of `mix_z[i]` from index `mix_from[i]` on."""

    z: torch.Tensor  # [N, z_dim]
    mix_z: torch.Tensor | None = None  # [N, z_dim]
    mix_from: torch.Tensor | None = None  # [N] int64, 1..num_ws; num_ws = not mixed


@dataclasses.dataclass
class TrainingState:
    """Everything that training changes. `images_seen` counts real images over all workers."""

    generator: Generator
    discriminator: Discriminator
    generator_ema: Generator
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    iteration: int = 0
    images_seen: int = 0


def new_state(
    generator: Generator,
    discriminator: Discriminator,
    *,
    generator_lr: float = 0.0025,
    discriminator_lr: float = 0.002,
    r1_interval: int = 16,
) -> TrainingState:
    """Optimisers and the averaged generator around two networks.

    The discriminator takes 17 Adam steps where 16 are meant, so its rate and betas are adjusted (StyleGAN2,
    appendix B: c = k / (k + 1), rate * c, betas ** c).
    """
    generator.train().requires_grad_(False)
    discriminator.train().requires_grad_(False)
    correction = r1_interval / (r1_interval + 1)
    return TrainingState(
        generator=generator,
        discriminator=discriminator,
        generator_ema=copy.deepcopy(generator).eval().requires_grad_(False),
        generator_optimizer=torch.optim.Adam(generator.parameters(), lr=generator_lr, betas=(0.0, 0.99), eps=1e-8),
        discriminator_optimizer=torch.optim.Adam(
            discriminator.parameters(),
            lr=discriminator_lr * correction,
            betas=(0.0, 0.99**correction),
            eps=1e-8,
        ),
    )


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


def blur_sigma(settings: StepSettings, images_seen: int) -> float:
    """Width in pixels of the blur before the discriminator: fades linearly from its start to 0."""
    return settings.blur_start_sigma * max(1 - images_seen / settings.blur_fade_images, 0.0)


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Separable blur of [N, 3, H, W]: kernel 2^-(x/sigma)^2 (base 2), radius floor(3 sigma), zeros outside.

    Written as two banded matrix products: the kernel is longer than the image at the start of training, where
    a convolution would mostly multiply padding.
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


def synthesize(generator: Generator, latents: Latents, update_emas: bool = False) -> torch.Tensor:
    """Training images of one phase, [N, 3, H, W] float32, with style mixing where the latents ask for it.

    Mixing is decided per sample, not per batch as in StyleGAN2: the same expectation, and every batch sees
    several crossing points instead of one.
    """
    ws = generator.mapping(latents.z, update_emas=update_emas)  # [N, num_ws, w_dim]
    if latents.mix_z is not None:
        mix_ws = generator.mapping(latents.mix_z)
        index = torch.arange(ws.shape[1], device=ws.device)
        ws = torch.where((index[None, :] < latents.mix_from[:, None])[:, :, None], ws, mix_ws)
    return generator.synthesis(ws, update_emas=update_emas)


def generator_phase(state: TrainingState, latents: Latents, sigma: float) -> Scalars:
    """Gradients of the generator's loss in `generator.parameters()`. Returns per-image scalars."""
    state.generator.requires_grad_(True)
    logits = state.discriminator(blur(synthesize(state.generator, latents), sigma))
    loss = generator_loss(logits)
    loss.mean().backward()
    state.generator.requires_grad_(False)
    return {"G/loss": loss.detach()}


def discriminator_phase(state: TrainingState, reals: torch.Tensor, latents: Latents, sigma: float) -> Scalars:
    """Gradients of the discriminator's loss on reals [N, 3, H, W]; moves the generator's own averages."""
    with torch.no_grad():
        fakes = blur(synthesize(state.generator, latents, update_emas=True), sigma)
        reals = blur(reals, sigma)
    state.discriminator.requires_grad_(True)
    # Two passes: the minibatch deviations of fakes and reals must not mix. Two backwards: the memory of one.
    fake_logits = state.discriminator(fakes)
    fake_loss = F.softplus(fake_logits)
    fake_loss.mean().backward()
    real_logits = state.discriminator(reals)
    F.softplus(-real_logits).mean().backward()
    state.discriminator.requires_grad_(False)
    fake_logits, real_logits = fake_logits.detach(), real_logits.detach()
    return {
        "D/loss": discriminator_loss(fake_logits, real_logits),
        "scores/fake": fake_logits,
        "scores/real": real_logits,
    }


def regularization_phase(state: TrainingState, reals: torch.Tensor, sigma: float, settings: StepSettings) -> Scalars:
    """Gradients of R1 on reals [N, 3, H, W], times the interval as the phase runs that much more seldom."""
    state.discriminator.requires_grad_(True)
    reals = reals.detach().requires_grad_(True)
    penalty = r1_penalty(state.discriminator(blur(reals, sigma)), reals, settings.gamma)
    penalty.mean().mul(settings.r1_interval).backward()
    state.discriminator.requires_grad_(False)
    return {"D/r1": penalty.detach()}


def workers() -> int:
    """How many workers train together: 1 outside a `torch.distributed` group."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def average_over_workers(tensors: Iterable[torch.Tensor]) -> None:
    """Replace every tensor by its mean over the workers, in one message. Does nothing for one worker."""
    tensors = list(tensors)
    if workers() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    flat /= workers()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


@torch.no_grad()
def apply_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Average the gradients over workers, make them finite (nan -> 0, +-inf -> +-1e5), step, clear them."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
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
    """average <- beta * average + (1 - beta) * generator; buffers are copied (they are averages already)."""
    for mean, value in zip(average.parameters(), generator.parameters(), strict=True):
        mean.lerp_(value, 1 - beta)
    for mean, value in zip(average.buffers(), generator.buffers(), strict=True):
        mean.copy_(value)


def train_iteration(
    state: TrainingState, settings: StepSettings, reals: torch.Tensor, latents: tuple[Latents, Latents]
) -> Scalars:
    """Generator, discriminator, R1 (every `r1_interval` iterations), a step each; then the moving average.

    reals: [N, 3, H, W] float32, -1..1, this worker's share of the batch; latents: of the generator's and of
    the discriminator's phase. Returns per-image scalars of this worker, still on the device.
    """
    sigma = blur_sigma(settings, state.images_seen)
    scalars = generator_phase(state, latents[0], sigma)
    apply_gradients(state.generator_optimizer)
    scalars |= discriminator_phase(state, reals, latents[1], sigma)
    # The averages inside the generator are linear in the samples: their mean over workers is what one worker
    # with the whole batch would have got, and every worker's generator stays the same.
    average_over_workers(buffer for name, buffer in state.generator.named_buffers() if name.endswith(("_avg", "_ema")))
    apply_gradients(state.discriminator_optimizer)
    if state.iteration % settings.r1_interval == 0:
        scalars |= regularization_phase(state, reals, sigma, settings)
        apply_gradients(state.discriminator_optimizer)
    batch = len(reals) * workers()
    update_ema(state.generator_ema, state.generator, ema_beta(settings, state.images_seen, batch))
    state.iteration += 1
    state.images_seen += batch
    return scalars
