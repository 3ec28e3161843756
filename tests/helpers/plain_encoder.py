"""A plain version of the published encoder: torchvision's ResNet, one small module a head, the tool's tensor names."""

import math

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

COUNTS = {"resnet34": [3, 4, 6, 3], "resnet18": [2, 2, 2, 2], "resnet10": [1, 1, 1, 1]}


class PlainLinear(nn.Module):
    """A linear layer with equalised learning rate, by the paper's formula: W x / sqrt(in) + b."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(out, width)), nn.Parameter(torch.randn(out))

    def forward(self, x):
        return nn.functional.linear(x, self.weight / math.sqrt(self.weight.shape[1]), self.bias)


class PlainHead(nn.Module):
    """Convolutions that halve the map until it is 1 x 1, and a linear layer."""

    def __init__(self, channels: int, head_channels: int, w_dim: int, size: tuple[int, int]):
        super().__init__()
        layers = []
        while not layers or size != (1, 1):
            layers += [nn.Conv2d(channels, head_channels, 3, stride=2, padding=1), nn.LeakyReLU(0.01)]
            channels, size = head_channels, ((size[0] + 1) // 2, (size[1] + 1) // 2)
        self.convs, self.linear = nn.Sequential(*layers), PlainLinear(head_channels, w_dim)

    def forward(self, x):
        return self.linear(self.convs(x).flatten(1))


class PlainEncoder(nn.Module):
    """The first layers and the ResNet's blocks in one list, a head for each w input."""

    def __init__(self, height, width, num_ws=16, w_dim=512, backbone="resnet34", head_channels=512, resnet=None):
        super().__init__()
        resnet = resnet if resnet is not None else ResNet(BasicBlock, COUNTS[backbone])
        stages = [resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]
        self.conv1 = nn.Conv2d(6, stages[0][0].conv1.in_channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(self.conv1.out_channels)
        self.relu = nn.PReLU(self.conv1.out_channels)
        self.body = nn.Sequential(*(block for stage in stages for block in stage))
        with torch.no_grad():
            features = self.body.eval()(torch.zeros(1, self.conv1.out_channels, (height + 1) // 2, (width + 1) // 2))
        size = tuple(features.shape[2:])
        heads = (PlainHead(features.shape[1], head_channels, w_dim, size) for _ in range(num_ws))
        self.styles = nn.ModuleList(heads)

    def forward(self, x):
        x = self.body(self.relu(self.bn1(self.conv1(x))))
        return torch.stack([head(x) for head in self.styles], 1)


def narrow_resnet(channels: tuple[int, ...]) -> ResNet:
    """A ResNet of four blocks with these channels."""
    resnet = ResNet(BasicBlock, COUNTS["resnet10"])
    before = channels[0]
    for i, after in enumerate(channels):
        shortcut = None
        if i > 0:
            shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=2, bias=False), nn.BatchNorm2d(after))
        setattr(resnet, f"layer{i + 1}", nn.Sequential(BasicBlock(before, after, 2 if i else 1, shortcut)))
        before = after
    return resnet


def lively(encoder: nn.Module) -> nn.Module:
    """Give the encoder batch statistics and slopes that a new network does not have; returns it in eval mode."""
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.1, 0.4)
    return encoder.eval()


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Turn the tool's names into ours: the rows of all heads, one head below the other."""
    heads = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("styles."))
    out = {name: tensor for name, tensor in state.items() if not name.startswith("styles.")}
    for name in [name for name in state if name.startswith("styles.0.")]:
        suffix = name.removeprefix("styles.0.")
        out[f"styles.{suffix}"] = torch.cat([state[f"styles.{i}.{suffix}"] for i in range(heads)])
    return out


def imagenet_file(path, backbone: str) -> ResNet:
    """A torchvision network with random weights; its state dict is written to a file."""
    torch.manual_seed(11)
    network = lively(getattr(torchvision.models, backbone)(weights=None))
    torch.save(network.state_dict(), path)
    return network
