"""The probability of augmentation: fixed, or adapted to how far the discriminator overfits (Karras et al. 2020, ADA).

The measure is r = E[sign(D(real))]: 0 while the discriminator cannot tell, towards 1 as it learns its training images
by heart. p grows while r is above its target and shrinks while it is below.
"""

from typing import Literal

from passersby.errors import InputError

Mode = Literal["none", "fixed", "ada"]


class AdaController:
    """Holds p and moves it every `interval` iterations. Plain numbers: no tensors, no device, no workers.

    An iteration in which p may move costs one look at the device: keep the signs' sum and number there, add them up
    over the workers every `interval` iterations, and hand them over with `add` and `update`. Before a snapshot in
    between, `add` what has come together and start counting at 0 again: nothing else is to be stored.
    """

    def __init__(
        self,
        mode: Mode = "none",
        p: float = 0.0,
        *,
        target: float = 0.6,
        kimg: float = 500.0,
        interval: int = 4,
        p_max: float = 1.0,
    ):
        """`p`: where it starts ("ada") or stays ("fixed"). `kimg`: thousands of images in which p could go from 0 to 1;
        the reference takes 500, and 100 when it starts from a trained network.

        Raises InputError for values that make no sense.
        """
        if mode not in ("none", "fixed", "ada"):
            raise InputError(f"no adaptation {mode!r}: choose one of none, fixed, ada")
        if not 0 <= p <= p_max <= 1:
            raise InputError(f"augmentation probability {p} and its upper limit {p_max} need 0 <= p <= limit <= 1")
        if mode == "none" and p != 0:
            raise InputError(f"augmentation probability {p} with adaptation none: choose fixed or ada, or leave it 0")
        if not (-1 < target < 1 and kimg > 0 and interval >= 1):
            raise InputError(
                f"target {target}, kimg {kimg}, interval {interval}: need -1 < target < 1, kimg > 0, interval >= 1"
            )
        self.mode, self.p = mode, p
        self.target, self.kimg, self.interval, self.p_max = target, kimg, interval, p_max
        self._sign_sum, self._count = 0.0, 0

    @property
    def adapts(self) -> bool:
        """Whether signs are wanted at all."""
        return self.mode == "ada"

    def add(self, sign_sum: float, count: int) -> None:
        """Count the signs of D(real) of `count` images, over all workers."""
        self._sign_sum += sign_sum
        self._count += count

    def update(self, images: int) -> float:
        """Move p by `images` seen since the last call (batch * interval) and forget the signs. Returns the new p.

        p += sign(r - target) * images / (1000 * kimg), kept in 0..p_max (the reference has no upper limit). Without
        signs, or with another mode than "ada", p stays.
        """
        if self.adapts and self._count:
            excess = self._sign_sum / self._count - self.target
            direction = (excess > 0) - (excess < 0)
            self.p = min(max(self.p + direction * images / (self.kimg * 1000), 0.0), self.p_max)
        self._sign_sum, self._count = 0.0, 0
        return self.p

    def state_dict(self) -> dict[str, float | int]:
        """What changes while training: plain numbers that JSON keeps exactly."""
        return {"p": self.p, "sign_sum": self._sign_sum, "count": self._count}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Go on from `state_dict()`; a fixed p stays what it was asked to be. Raises InputError for other content."""
        try:
            p, sign_sum, count = float(state["p"]), float(state["sign_sum"]), int(state["count"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{state!r} is no state of the adaptation: needs p, sign_sum and count") from error
        if not (0 <= p <= 1 and count >= 0 and abs(sign_sum) <= count * 1.001):  # averages over workers are rounded
            raise InputError(f"{state!r} is no state of the adaptation: p is 0..1 and |sign_sum| <= count")
        if self.adapts:
            self.p = min(p, self.p_max)
            self._sign_sum, self._count = sign_sum, count
