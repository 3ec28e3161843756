"""The AlexNet of "Shift-tolerant Perceptual Similarity Metric" (Ghildyal and Liu, 2022): it blurs before it subsamples.

As in Zhang, "Making Convolutional Networks Shift-Invariant Again" (2019). The first convolution has stride 1 and is
blurred before its ReLU, the maxima have stride 1 and are blurred. The weights are those of passersby/weights.py,
"st-lpips-alex".
"""

import torch
from torch import nn

# Weights of a blur along one axis, and those of its last place when the length is even: mirrored, 1 2 1 is 2 2.
_LINE, _LAST = (0.25, 0.5, 0.25), (0.5, 0.5)
_KERNEL, _PADDING = 11, 2  # of the first convolution


class Blur(nn.Module):
    """[N, C, H, W] -> [N, C, (H + 1) // 2 + 1, (W + 1) // 2 + 1]: 1 2 1 along both axes, at every second place.

    Two places are mirrored in front of the first and behind the last one.
    """

    def __init__(self, channels: int):
        super().__init__()
        line = torch.tensor(_LINE, device="cpu")
        self.register_buffer("weight", (line[:, None] * line).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(x, (2, 2, 2, 2), mode="reflect")
        return nn.functional.conv2d(padded, self.weight, stride=2, groups=x.shape[1])


class BlurredConvolution(nn.Module):
    """Convolution 11 x 11 of stride 1, padded by 2 zeros, then `Blur`: [N, 3, H, W] -> [N, 64, h, w].

    Both are linear, so they are one convolution of stride 2, a third of the products and never the large image between
    (nine times as fast on a CPU, four with gradients). Only at the border do the mirrored places make a difference:
    the first blurred place is the second once more, the last is the one before it once more when the convolution's
    length is odd, and the mean of its last two places when that is even.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor):
        super().__init__()
        self.register_buffer("bias", bias)
        for name, lines in {
            "inner": (_LINE, _LINE),
            "below": (_LAST, _LINE),
            "right": (_LINE, _LAST),
            "corner": (_LAST, _LAST),
        }.items():
            self.register_buffer(name, _composed(weight, *lines))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(x, (_PADDING,) * 4)
        y = self._rows(padded, self.inner, self.below)
        odd = x.shape[3] % 2  # as the convolution's width is, 6 less
        last = y[..., -1:] if odd else self._rows(padded[..., -_KERNEL - 1 :], self.right, self.corner)
        return torch.cat([y[..., :1], y, last], 3)

    def _rows(self, padded: torch.Tensor, inner: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
        y = nn.functional.conv2d(padded, inner, self.bias, stride=2)
        if padded.shape[2] % 2:
            last = y[:, :, -1:]
        else:
            last = nn.functional.conv2d(padded[:, :, -_KERNEL - 1 :], below, self.bias, stride=2)
        return torch.cat([y[:, :, :1], y, last], 2)


def shift_tolerant_stages(layers: list[tuple[torch.Tensor, torch.Tensor]]) -> list[nn.Module]:
    """The five stages whose outputs are compared, from weight and bias of the five convolutions, float32."""
    first, *others = layers
    second, third, fourth, fifth = (convolution(*layer, padding=layer[0].shape[2] // 2) for layer in others)

    def pool(channels: int) -> list[nn.Module]:
        return [nn.MaxPool2d(3, 1), Blur(channels)]

    stages = [
        [BlurredConvolution(*first)],
        [*pool(64), second],
        [*pool(192), third],
        [fourth],
        [fifth],
    ]
    return [nn.Sequential(*stage, nn.ReLU(inplace=True)) for stage in stages]


def convolution(weight: torch.Tensor, bias: torch.Tensor, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    """A frozen layer with given weights; none are drawn, so that loading does not change what a seed gives."""
    outputs, inputs, *kernel = weight.shape
    with torch.device("meta"):
        layer = nn.Conv2d(inputs, outputs, kernel, stride, padding)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def _composed(weight: torch.Tensor, vertical: tuple[float, ...], horizontal: tuple[float, ...]) -> torch.Tensor:
    """The kernel of a convolution and then a blur, [64, 3, 10 + taps, 10 + taps] float32, summed in float64."""
    size = [_KERNEL + len(vertical) - 1, _KERNEL + len(horizontal) - 1]
    composed = torch.zeros([*weight.shape[:2], *size], dtype=torch.float64)
    for row, by_row in enumerate(vertical):
        for column, by_column in enumerate(horizontal):
            composed[:, :, row : row + _KERNEL, column : column + _KERNEL] += by_row * by_column * weight
    return composed.float()
