"""One training iteration of StyleGAN2 or StyleGAN3: losses, phases, optimisers, the averaged generator. No Ray.

The loss is the non-saturating loss (Goodfellow et al. 2014) with R1 (Mescheder et al. 2018), which is applied lazily
(Karras et al. 2020, StyleGAN2). At the start StyleGAN3-R blurs the discriminator's images (Karras et al. 2021, appendix
F). A StyleGAN2 generator has lazy path-length regularisation (Karras et al. 2020, StyleGAN2). The discriminator's
images are augmented with a probability that adapts (Karras et al. 2020, ADA). Several workers call the same functions
inside a `torch.distributed` group.
"""

import copy
import dataclasses
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import (
    _foreach_add_,  # pyright: ignore[reportPrivateImportUsage]  (torch's stubs do not export what torch exports)
    _foreach_copy_,  # pyright: ignore[reportPrivateImportUsage]  (the same)
)

from passersby.stylegan3 import Discriminator, Generator
from training.gan.augment import AdaController, Draws, apply
from training.gan.inputs import Inputs, Latents
from training.gan.losses import blur, discriminator_loss, generator_loss, path_lengths, r1_penalty, synthesize
from training.gan.optimizers import apply_gradients, new_adam, update_ema
from training.workers import Scalars, average_over_workers, workers

if TYPE_CHECKING:
    from training.gan.pairs import PairInputs, PairTraining
    from training.gan.projected import ProjectedTraining


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
    path_length_weight: float = 0.0  # 0 = no path-length regularisation (StyleGAN3)
    path_length_interval: int = 4
    path_length_decay: float = 0.01  # how far an iteration moves the average length
    one_pass: bool = False  # both networks learn from the same generated images


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
    projected: "ProjectedTraining | None" = None  # the projected discriminator, where the training has one
    step: int = 0
    images_seen: int = 0
    path_length: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros([]))  # [], the average length

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
    path_length_interval: int | None = None,
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
        generator_optimizer=new_adam(generator.parameters(), generator_lr, path_length_interval),
        discriminator_optimizer=new_adam(trained, discriminator_lr, r1_interval),
        ada=ada or AdaController(),
        real_signs=torch.zeros(2, device=generator.mapping.w_avg.device),
        frozen=frozen,
        path_length=torch.zeros([], device=generator.mapping.w_avg.device),
    )


def blur_sigma(settings: StepSettings, images_seen: int) -> float:
    """Width in pixels of the blur before the discriminator: falls linearly from its start value to 0."""
    return settings.blur_start_sigma * max(1 - images_seen / settings.blur_fade_images, 0.0)


def seen(images: torch.Tensor, sigma: float, draws: Draws | None) -> torch.Tensor:
    """Images [N, 3, H, W] as discriminators see them: after blur and then augmentation."""
    images = blur(images, sigma)
    return images if draws is None else apply(images, draws)


def judge(
    state: TrainingState, images: torch.Tensor, labels: torch.Tensor | None, sigma: float, draws: Draws | None
) -> torch.Tensor:
    """Logits [N, 1] of images [N, 3, H, W] from the discriminator, after blur and then augmentation."""
    return state.discriminator(seen(images, sigma, draws), labels)


def generator_phase(
    state: TrainingState,
    latents: Latents,
    sigma: float,
    draws: Draws | None = None,
    fakes: torch.Tensor | None = None,
    pairs: "PairInputs | None" = None,
) -> Scalars:
    """Add gradients of the generator's loss to its parameters' gradients. Returns per-image scalars.

    `fakes` are images of the latents whose graph leads to the generator; by default the phase makes them. With `pairs`
    the generator also learns from the pair discriminator.
    """
    state.train("generator", True)
    if fakes is None:
        fakes = synthesize(state.generator, latents)
    shown = seen(fakes, sigma, draws)
    loss = generator_loss(state.discriminator(shown, latents.labels))
    total, scalars = loss.mean(), {"G/loss": loss.detach()}
    if state.projected is not None:
        more, more_scalars = state.projected.generator_loss(shown, fakes, loss.mean(), pairs is not None)
        total, scalars = total + more, scalars | more_scalars
    if state.pairs is not None and pairs is not None:
        pair_loss, pair_scalars = state.pairs.generator_loss(fakes, latents.labels, sigma, pairs)
        total, scalars = total + pair_loss.mean(), scalars | pair_scalars
    total.backward()
    state.train("generator", False)
    return scalars


def path_length_phase(state: TrainingState, parts: list[Latents], settings: StepSettings) -> Scalars:
    """Add gradients of the path-length penalty, times its interval, and move the average length.

    `parts` are this worker's latents, a part for each round. As in the reference the first half of the whole batch is
    used, and the penalty is the squared distance from the average length, which includes this batch. The average is
    over all workers and rounds, so a training does not depend on their number.
    """
    noise = parts[0].noise
    assert noise is not None
    used = max(noise.batch // 2, 1)
    state.train("generator", True)
    chosen, weights = [], []
    for latents in parts:
        assert latents.noise is not None
        count = int((latents.noise.places < used).sum())  # on the CPU; places ascend: these are the first samples
        # A part without such a sample takes another one with weight 0: every worker needs gradients to average.
        chosen.append(latents.first(max(count, 1)))
        weights.append(float(count > 0))
    graphs = None
    if len(parts) == 1:
        graphs = [path_lengths(state.generator, chosen[0])]
        lengths = [graphs[0].detach()]
    else:  # the average of all rounds is needed before the first one's gradient
        lengths = [path_lengths(state.generator, latents, False).detach() for latents in chosen]
    total = sum(part.sum() * weight for part, weight in zip(lengths, weights, strict=True))
    average = torch.as_tensor(total).reshape(1).clone()
    average_over_workers([average])
    average = average[0] * (workers() / used)  # of the whole half batch
    decay = settings.path_length_decay
    target = state.path_length.lerp(average, decay)
    # The target moves with the lengths: d/dL of the mean of (L - target)^2, with the target's own derivative.
    shift = (average - target) * decay
    scale = settings.path_length_weight * settings.path_length_interval * workers() * len(parts) / used
    penalties = []
    for index, (latents, weight) in enumerate(zip(chosen, weights, strict=True)):
        graph = graphs[index] if graphs else path_lengths(state.generator, latents)
        distance = lengths[index] - target
        (graph * (2 * (distance - shift))).sum().mul(scale * weight).backward()
        if weight:
            penalties.append(distance.square())
    state.path_length.copy_(target)
    state.train("generator", False)
    return {"G/path_length": torch.cat(penalties or [lengths[0][:0]])}


def discriminator_phase(
    state: TrainingState,
    reals: torch.Tensor,
    latents: Latents,
    sigma: float,
    labels: torch.Tensor | None = None,
    draws: tuple[Draws | None, Draws | None] = (None, None),
    fakes: torch.Tensor | None = None,
    pairs: "PairInputs | None" = None,
) -> Scalars:
    """Add gradients of the discriminator's loss on reals [N, 3, H, W]; moves the averages inside the generator.

    `draws` augment the fakes and the reals. `fakes` are images of the latents without a graph; by default the phase
    makes them, and only then moves the averages. With `pairs` the pair discriminator learns from the same fakes, and a
    projected discriminator takes its step.
    """
    if fakes is None:
        with torch.no_grad():
            fakes = synthesize(state.generator, latents, update_emas=True)
    state.train("discriminator", True)
    # Two forward passes, because the minibatch deviations of fakes and reals must not mix. Two backward passes need the
    # memory of only one.
    fakes_seen, reals_seen = seen(fakes, sigma, draws[0]), seen(reals, sigma, draws[1])
    fake_logits = state.discriminator(fakes_seen, latents.labels)
    F.softplus(fake_logits).mean().backward()
    real_logits = state.discriminator(reals_seen, labels)
    F.softplus(-real_logits).mean().backward()
    state.train("discriminator", False)
    fake_logits, real_logits = fake_logits.detach(), real_logits.detach()
    scalars = {
        "D/loss": discriminator_loss(fake_logits, real_logits),
        "scores/fake": fake_logits,
        "scores/real": real_logits,
    }
    if state.projected is not None:
        scalars |= state.projected.discriminator_step(fakes_seen, reals_seen, pairs is not None)
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


def ema_beta(settings: StepSettings, images_seen: int, batch: int) -> float:
    """The share that the averaged generator keeps in an iteration of `batch` images."""
    half_life = settings.ema_half_life_images
    if settings.ema_ramp is not None:
        half_life = min(half_life, images_seen * settings.ema_ramp)
    return 0.5 ** (batch / max(half_life, 1e-8))


def train_iteration(state: TrainingState, settings: StepSettings, inputs: Inputs) -> Scalars:
    """A step each of generator, discriminator and R1 (every `r1_interval` iterations); then averages and adaptation.

    With path-length regularisation the generator has another step every `path_length_interval` iterations. Returns
    per-image scalars of this worker, still on the device.
    """
    sigma = blur_sigma(settings, state.images_seen)
    rounds = [inputs.part(index, settings.rounds) for index in range(settings.rounds)]
    if settings.one_pass:
        scalars = _one_pass(state, settings, rounds, sigma)
    else:
        scalars = _generator_steps(state, settings, rounds, sigma)
        scalars |= _discriminator_steps(state, settings, rounds, sigma)
    batch = len(inputs.reals) * workers()
    update_ema(state.generator_ema, state.generator, ema_beta(settings, state.images_seen, batch))
    state.step += 1
    state.images_seen += batch
    adapt(state.ada, state.real_signs, scalars["scores/real"], state.step, batch)
    if state.pairs is not None:
        adapt(state.pairs.ada, state.pairs.real_signs, scalars["scores/pair_real"], state.step, batch)
        if state.pairs.intraclass is not None:
            state.pairs.intraclass.update()
    return scalars


def _generator_steps(
    state: TrainingState,
    settings: StepSettings,
    rounds: list[Inputs],
    sigma: float,
    fakes: torch.Tensor | None = None,
) -> Scalars:
    parts = [
        generator_phase(state, part.latents[0], sigma, part.draws.get("generator"), fakes, part.pairs)
        for part in rounds
    ]
    scalars = _joined(parts)
    apply_gradients(state.generator_optimizer, settings.rounds)
    if settings.path_length_weight and state.step % settings.path_length_interval == 0:
        scalars |= path_length_phase(state, [part.latents[2] for part in rounds], settings)
        apply_gradients(state.generator_optimizer, settings.rounds)
    return scalars


def _discriminator_steps(
    state: TrainingState,
    settings: StepSettings,
    rounds: list[Inputs],
    sigma: float,
    fakes: torch.Tensor | None = None,
) -> Scalars:
    if fakes is None:
        scalars = _joined(_discriminator_rounds(state, rounds, sigma))
    else:
        part = rounds[0]
        draws = part.draws.get("fakes"), part.draws.get("reals")
        scalars = discriminator_phase(state, part.reals, part.latents[0], sigma, part.labels, draws, fakes, part.pairs)
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
    return scalars


def _one_pass(state: TrainingState, settings: StepSettings, rounds: list[Inputs], sigma: float) -> Scalars:
    """The discriminator's steps on the generator's images without their graph, then the generator's on the same images.

    The order is the other way round than with two passes, so that the generator learns from the newer discriminator
    and the graph of its images is still that of its weights.
    """
    (part,) = rounds  # the graph stays in memory while the discriminator learns, so parts would save none
    state.train("generator", True)
    fakes = synthesize(state.generator, part.latents[0], update_emas=True)
    average_over_workers(_averages(state.generator))
    scalars = _discriminator_steps(state, settings, rounds, sigma, fakes.detach())
    return _generator_steps(state, settings, rounds, sigma, fakes) | scalars


def _averages(generator: Generator) -> list[torch.Tensor]:
    return [buffer for name, buffer in generator.named_buffers() if name.endswith(("_avg", "_ema"))]


def _discriminator_rounds(state: TrainingState, rounds: list[Inputs], sigma: float) -> list[Scalars]:
    # The averages inside the generator are linear in the samples. So their mean over rounds and workers, each from the
    # same start, equals the averages of one worker with the whole batch, and all workers' generators stay the same.
    averages = _averages(state.generator)
    start = [buffer.clone() for buffer in averages]
    total = [torch.zeros_like(buffer) for buffer in averages]
    scalars = []
    for part in rounds:
        _foreach_copy_(averages, start)
        draws = part.draws.get("fakes"), part.draws.get("reals")
        scalars.append(
            discriminator_phase(state, part.reals, part.latents[1], sigma, part.labels, draws, pairs=part.pairs)
        )
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
