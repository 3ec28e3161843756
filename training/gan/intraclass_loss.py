"""How much of a picture's look belongs to the person: a part of the generator's loss in a training by identity pairs.

In real pictures of one person the clothes are nearly the same; the surroundings, the light and the pose are not. The
share of a feature's variance that belongs to the person is its intraclass correlation (Fisher 1925): of two pictures of
one person, the covariance of the feature over its variance. This loss brings the intraclass correlations of simple
features of generated pairs to those of real pairs. The pair discriminator asks for the same, but it learns that slowly:
surroundings and poses of a generated person stay too much alike, and a re-ID network takes them for the person.

The features are colours in cells of a picture, which tell clothes, surroundings and light, and the strength of edges
in such cells, which tells pose and outline.
"""

import dataclasses

import torch
import torch.nn.functional as F

from training.workers import Scalars, average_over_workers

MEMORY = 64  # iterations before the loss begins, and that the averages of generated pairs remember
_SIZE = (64, 32)  # [pixels] the greatest height and width; larger pictures are shrunk
_CELLS = (16, 8)  # rows and columns of cells
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_LEAST_SHARE = 0.25  # a generated feature's variance counts as this share of the real one's at least


def look(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [N, 3, H, W] -> features [N, 640]: three colours and the edges along two axes, of each cell.

    H and W are powers of two, at least 16 and 8, as in every generator. Adaptive pooling would do for any size, but on
    a GPU its gradient is not repeatable.
    """
    small = F.avg_pool2d(pictures, [max(side // most, 1) for side, most in zip(pictures.shape[2:], _SIZE, strict=True)])
    red, green, blue = small.split(1, dim=1)
    grey = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    across = F.pad(grey.diff(dim=3).abs(), (0, 1))
    along = F.pad(grey.diff(dim=2).abs(), (0, 0, 0, 1))
    cell = [side // cells for side, cells in zip(small.shape[2:], _CELLS, strict=True)]
    return F.avg_pool2d(torch.cat([small, across, along], 1), cell).flatten(1)


@dataclasses.dataclass
class IntraclassLoss:
    """The loss with its running averages of D features.

    weight: that of the loss beside those of the discriminators. real, fake: [3, D], the means of the features, of their
    squares, and of their products in the two pictures of a pair. Those of real pairs are of all iterations so far.
    """

    weight: float
    real: torch.Tensor
    fake: torch.Tensor
    iterations: int = 0
    rounds: list[torch.Tensor] = dataclasses.field(default_factory=list)  # [2, 3, D] each, of the running iteration

    def __call__(self, fakes: torch.Tensor, reals: torch.Tensor) -> tuple[torch.Tensor, Scalars]:
        """(the loss [P, 1] times its weight, scalars [P, 1]) of pictures [2P, 3, H, W] float32, -1..1, of P pairs each.

        The pictures 2i and 2i + 1 are pair i, as in training/gan/pairs.py. The loss is linear in the pairs, with the
        slope of the squared error of the correlations at the averages. So it does not depend on how a batch is shared
        among workers, and a batch of few pairs does not look as if its people had much in common by chance.
        """
        found = look(fakes)
        with torch.no_grad():
            self.rounds.append(torch.stack([_moments(found), _moments(look(reals))]))
            variance = torch.maximum(_variance(self.fake), _variance(self.real) * _LEAST_SHARE)
            correlation = _covariance(self.fake) / variance
            error = correlation - _covariance(self.real) / _variance(self.real)
        centred = (found - self.fake[0]) * variance.rsqrt()
        first, second = centred[::2], centred[1::2]  # [P, D]
        # The slope of covariance over variance: more variance within people does as well as less between them.
        slope = first * second - correlation * (first.square() + second.square()) / 2
        ready = float(self.iterations >= MEMORY)
        loss = self.weight * ready * 2 * (error * slope).mean(1, keepdim=True)
        size = error.square().mean().sqrt().expand(len(loss), 1)
        return loss, {"G/intraclass_loss": loss.detach(), "intraclass/error": size}

    def update(self) -> None:
        """Move the averages by the pairs of an iteration, of all rounds and workers."""
        fake, real = torch.stack(self.rounds).mean(0).unbind()
        self.rounds.clear()
        average_over_workers([fake, real])
        self.iterations += 1
        self.real.lerp_(real, 1 / self.iterations)
        self.fake.lerp_(fake, 1 / min(self.iterations, MEMORY))

    def state_dict(self) -> dict:
        """What a checkpoint needs, on the CPU."""
        return {"real": self.real.cpu(), "fake": self.fake.cpu(), "iterations": self.iterations}

    def load_state_dict(self, values: dict) -> None:
        """Continue from `state_dict()`."""
        self.real.copy_(values["real"])
        self.fake.copy_(values["fake"])
        self.iterations = values["iterations"]


def new_intraclass_loss(weight: float, device: torch.device) -> IntraclassLoss:
    """The loss at the beginning of a training."""
    size = look(torch.zeros(1, 3, *_SIZE)).shape[1]
    return IntraclassLoss(weight, torch.zeros(3, size, device=device), torch.zeros(3, size, device=device))


def _moments(found: torch.Tensor) -> torch.Tensor:
    """Features [2P, D] of pairs -> [3, D]: means of a feature, of its square, of its product in the two pictures."""
    return torch.stack([found.mean(0), found.square().mean(0), (found[::2] * found[1::2]).mean(0)])


def _variance(moments: torch.Tensor) -> torch.Tensor:
    return moments[1] - moments[0].square() + 1e-4  # [D]; where all pictures are alike it is no zero


def _covariance(moments: torch.Tensor) -> torch.Tensor:
    return moments[2] - moments[0].square()
