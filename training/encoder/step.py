"""One step of encoder training (ReStyle, Alaluf et al. 2021): a few refinements of a batch, one optimiser step."""

import dataclasses
from collections.abc import Iterable

import torch
from torch import nn

from passersby.restyle.encoder import RestyleEncoder, pooled, restyle_steps
from passersby.restyle.losses import InversionLoss
from passersby.stylegan3 import Generator
from passersby.stylegan3.mapping import loss_scale
from training.reid.step import running_statistics
from training.workers import Scalars, average_over_workers, workers

# ---- Ranger: rectified Adam with lookahead and centralised gradients, the optimiser of pSp and ReStyle.

_ALPHA, _EVERY = 0.5, 6


class Ranger(torch.optim.RAdam):
    """RAdam (Liu et al. 2020), beta1 0.95, epsilon 1e-5, with two additions.

    The mean over all but the first axis is subtracted from gradients of matrices and kernels (Yong et al. 2020). After
    every sixth step the weights become the midpoint between them and the weights of six steps ago (lookahead, Zhang et
    al. 2019). Those earlier weights are part of the state dict, so a restart continues exactly.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float = 1e-4):
        super().__init__(parameters, lr=lr, betas=(0.95, 0.999), eps=1e-5)

    @torch.no_grad()
    def step(self, closure=None):
        """Do one step, as any optimiser of PyTorch."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter in parameters:
            state = self.state[parameter]
            if "slow" not in state:  # before the first step
                self._start(parameter)
            if parameter.ndim > 1:
                parameter.grad -= parameter.grad.mean(tuple(range(1, parameter.ndim)), keepdim=True)
        loss = super().step(closure)
        for parameter in parameters:
            state = self.state[parameter]
            if int(state["step"]) % _EVERY == 0:
                state["slow"].lerp_(parameter, _ALPHA)
                parameter.copy_(state["slow"])
        return loss

    def _start(self, parameter: nn.Parameter) -> None:
        # RAdam fills a parameter's state only where it is empty. So RAdam's values are made here with the slow weights.
        self.state[parameter] |= {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
            "slow": parameter.detach().clone(),
        }


@dataclasses.dataclass
class EncoderState:
    """Everything that a step changes. best: the least LPIPS of all validations so far."""

    encoder: RestyleEncoder
    optimizer: Ranger
    step: int = 0
    images_seen: int = 0
    best: float = float("inf")


@dataclasses.dataclass(frozen=True)
class Frozen:
    """The networks and constants that a step uses and never changes, on the device.

    average: [num_ws, w_dim]; spread: spread of a coordinate of w (`w_statistics`); average_image: [3, h, w]; loss: at
    the size of the pictures, with each network that has a weight; measured: the same with all networks.
    """

    generator: Generator
    loss: InversionLoss
    measured: InversionLoss
    average: torch.Tensor
    spread: float
    average_image: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Batch:
    """This worker's part of a step's images: float32 [n, 3, h, w], -1..1. From index `generated` on the generator made
    the images; codes [n - generated, num_ws, w_dim] are the codes of these images, None without
    such images."""

    images: torch.Tensor
    codes: torch.Tensor | None
    generated: int


def train_step(
    state: EncoderState, frozen: Frozen, batch: Batch, refinements: int, codes_weight: float, rate: float
) -> Scalars:
    """Do one step; returns this worker's scalars of the last refinement, [n] or fewer values each.

    Each refinement adds the gradients of its mean loss over the images. Codes and reconstructions are constants for the
    next refinement, as published. For generated images w is known, and its mean squared error in spreads is added. With
    a generator in float16 the gradients are computed of 1024 times the loss (`loss_scale`).
    """
    state.encoder.train()
    state.optimizer.zero_grad(set_to_none=True)
    target, scale = frozen.loss.target(batch.images), loss_scale(frozen.generator)
    scalars: Scalars = {}
    steps = restyle_steps(
        state.encoder, frozen.generator.synthesis, batch.images, frozen.average, refinements, frozen.average_image
    )
    for codes, reconstructions in steps:
        losses = frozen.loss.measure(pooled(reconstructions, *batch.images.shape[2:]), target)
        total = frozen.loss.total(losses)
        scalars = {"loss/l2": losses.l2.detach()}
        if frozen.loss.perceptual is not None:
            scalars["loss/lpips"] = losses.lpips.detach()
        if frozen.loss.identity is not None:
            scalars["identity/cosine"] = losses.identity_cosine.detach()
        if batch.codes is not None:
            errors = ((codes[batch.generated :] - batch.codes) / frozen.spread).square().mean((1, 2))
            total = torch.cat((total[: batch.generated], total[batch.generated :] + codes_weight * errors))
            scalars["loss/codes"] = errors.detach()
        scalars["loss/total"] = total.detach()
        (total.mean() * scale).backward()
    gradients = [parameter.grad for parameter in state.encoder.parameters() if parameter.grad is not None]
    if scale != 1:
        for gradient in gradients:
            # Where the larger loss overflows, which is rare, the encoder stays as it is in this step.
            torch.nan_to_num(gradient.div_(scale), nan=0.0, posinf=0.0, neginf=0.0, out=gradient)
    # The running statistics too: they are the means over all workers' parts, and the same after a restart.
    average_over_workers([*gradients, *running_statistics(state.encoder)] if workers() > 1 else [])
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.step += 1
    return scalars
