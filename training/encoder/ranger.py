"""Ranger: rectified Adam with lookahead and centralised gradients, the optimiser of pSp and ReStyle."""

from collections.abc import Iterable

import torch
from torch import nn

_ALPHA, _EVERY = 0.5, 6


class Ranger(torch.optim.RAdam):
    """RAdam (Liu et al. 2020), beta1 0.95, epsilon 1e-5, in which two things are added.

    Gradients of matrices and kernels have their mean over all but the first axis removed (Yong et al. 2020). Every
    sixth step the weights go half of the way from where they were six steps ago (lookahead, Zhang et al. 2019); those
    earlier weights are part of the state dict, so that a restart goes on exactly.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float = 1e-4):
        super().__init__(parameters, lr=lr, betas=(0.95, 0.999), eps=1e-5)

    @torch.no_grad()
    def step(self, closure=None):
        """One step, as any optimiser of PyTorch."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter in parameters:
            state = self.state[parameter]
            if "slow" not in state:  # before the first step, so that RAdam finds its own values missing as always
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
        # RAdam makes its own values where a parameter's state is empty: they are made here, beside the slow weights.
        self.state[parameter] |= {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
            "slow": parameter.detach().clone(),
        }
