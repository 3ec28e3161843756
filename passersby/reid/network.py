"""The re-identification network: a backbone (ResNet, OSNet, any of timm's), a neck and the people's classifier.

There are three necks, each as in its source. "embedding" is the baseline of Zheng et al. (2019) with 512 values before
the classifier, which torchreid calls fc512. "bnneck" is that of Luo et al., "Bag of Tricks and a Strong Baseline for
Deep Person Re-identification" (2019). "none" is a classifier directly on the pooled features. ResNets are
torchvision's (He et al., 2016), so torchvision's ImageNet weights fit. resnet50_ibn_a is that of X. Pan et al., "Two at
Once: Enhancing Learning and Generalization Capacities via IBN-Net" (2018), whose weights fit. OSNets are torchreid's
(passersby/reid/osnet.py), where they have the neck "embedding". "timm:NAME" is a network of timm
(passersby/reid/timm_backbone.py). Files are read in passersby/reid/checkpoint.py.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from passersby.devices import exact_numbers
from passersby.errors import InputError
from passersby.reid.layers import (
    DomainBatchNorm,
    GeneralisedMean,
    InstanceBatchNorm,
    NonLocalStage,
    normalisation,
    with_domains,
)
from passersby.reid.osnet import OSNETS, OSNet
from passersby.reid.timm_backbone import PREFIX, is_timm, make_timm, pooled_width

if TYPE_CHECKING:
    from torchvision.models import ResNet
    from torchvision.models.resnet import BasicBlock, Bottleneck

BASIC, BOTTLENECK = "basic", "bottleneck"  # blocks of two 3 x 3 convolutions, and of 1 x 1, 3 x 3, 1 x 1
EXPANSION = {BASIC: 1, BOTTLENECK: 4}  # output channels of a block / channels of its 3 x 3 convolution
BLOCKS = {
    "resnet50": (BOTTLENECK, [3, 4, 6, 3]),
    "resnet50_ibn_a": (BOTTLENECK, [3, 4, 6, 3]),
    "resnet34": (BASIC, [3, 4, 6, 3]),
    "resnet18": (BASIC, [2, 2, 2, 2]),
    "resnet10": (BASIC, [1, 1, 1, 1]),  # for CPUs; torchvision does not have it, so there are no ImageNet weights
}
BACKBONES = (*BLOCKS, *OSNETS)
IBN_NETS = ("resnet50_ibn_a",)
NECKS = ("embedding", "bnneck", "none")
ACTIVATIONS = ("relu", "none")
STEMS = ("imagenet", "small", "bot", "fastreid")
POOLINGS = ("average", "gem")
NECK_FEATURES = ("after", "before")
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, of values 0..1
BATCH_IMAGES = {"cpu": 32, "cuda": 256}
# fast-reid's stages with non-local blocks: after so many of their last blocks, which give so many channels.
NON_LOCAL = {"layer2": (2, 512), "layer3": (3, 1024)}
MOST_CLASSES, MOST_PIXELS, MOST_EMBEDDING = 10_000_000, 4096, 65_536


@dataclasses.dataclass(frozen=True)
class ReidConfig:
    """The configuration of a network. Raises InputError for impossible values."""

    classes: int  # people of the training
    backbone: str = "resnet50"  # one of BACKBONES
    neck: str = "embedding"  # one of NECKS
    height: int = 256  # of the images that the network was made for [pixels]; any size runs
    width: int = 128
    # Of a ResNet. 1: the last stage keeps the size and has four times as many values (Luo et al. 2019).
    last_stride: int = 2
    embedding: int = 512  # values of the embedding; this and the next two are for the neck "embedding" alone
    activation: str = "relu"  # one of ACTIVATIONS
    dropout: float = 0.5  # before the classifier
    domains: int = 1  # 2: generated images (domain 1) have their own batch normalisation
    # "small": 3 x 3 at stride 2 without maximum, for small images; no ImageNet weights fit it. "bot": without ReLU, as
    # the code of Luo et al. has it. "fastreid": the maximum has no border, as in fast-reid.
    stem: str = "imagenet"
    width_factor: float = 1.0  # factor of the backbone's channels: below 1 for CPUs; ImageNet weights fit only 1
    # Files of other programs need these; the options of a training do not name the first three.
    pooling: str = "average"  # of a ResNet; "gem": generalised mean (F. Radenovic et al. 2018), its exponent is learnt
    non_local: bool = False  # non-local blocks in the second and third stage of a ResNet-50, as in fast-reid
    neck_feature: str = "after"  # of a bnneck: the feature is that after its batch normalisation, or before it
    mean: tuple[float, ...] = IMAGENET_MEAN  # taken off an image's values, RGB, 0..1
    deviation: tuple[float, ...] = IMAGENET_DEVIATION  # which then divides them

    def __post_init__(self):
        choices = {"backbone": BACKBONES, "neck": NECKS, "last_stride": (1, 2), "activation": ACTIVATIONS}
        choices |= {"domains": (1, 2), "stem": STEMS, "pooling": POOLINGS, "neck_feature": NECK_FEATURES}
        timm = is_timm(self.backbone)
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed and not (timm and name == "backbone"):
                more = f", {PREFIX}NAME" if name == "backbone" else ""
                raise InputError(f"{name} {getattr(self, name)!r}: take one of {', '.join(map(str, allowed))}{more}")
        limits = {"classes": MOST_CLASSES, "height": MOST_PIXELS, "width": MOST_PIXELS, "embedding": MOST_EMBEDDING}
        for name, most in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise InputError(f"{name} {value!r}: a whole number from 1 to {most} is needed")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout {self.dropout!r}: a share from 0 to below 1 is needed")
        if type(self.width_factor) not in (int, float) or not 0.1 <= self.width_factor <= 4:
            raise InputError(f"width_factor {self.width_factor!r}: a number from 0.1 to 4 is needed")
        if self.backbone in OSNETS and self.width_factor != 1:
            raise InputError(f"width_factor {self.width_factor!r}: an OSNet has its width in its name")
        if timm and (self.width_factor, self.stem) != (1, "imagenet"):
            raise InputError(f"width_factor {self.width_factor:g}, stem {self.stem}: timm's networks are as they are: "
                             "take 1 and imagenet")  # fmt: skip
        if (self.pooling != "average" or self.non_local) and self.backbone not in BLOCKS:
            raise InputError(f"pooling {self.pooling!r}, non_local {self.non_local}: they are for ResNets alone")
        if self.non_local and (BLOCKS[self.backbone] != BLOCKS["resnet50"] or self.width_factor != 1):
            raise InputError(f"non_local with {self.backbone}: take resnet50 or resnet50_ibn_a, width_factor 1")
        for name in ("mean", "deviation"):
            values = getattr(self, name)
            if len(values) != 3 or not all(type(value) in (int, float) and 0 <= value <= 1 for value in values):
                raise InputError(f"{name} {str(values)[:60]}: three numbers from 0 to 1 are needed")
        if min(self.deviation) == 0:
            raise InputError(f"deviation {self.deviation}: three numbers above 0 are needed")

    @property
    def stages(self) -> tuple[int, ...]:
        """Channels of the 3 x 3 convolutions of the four stages: multiples of 8, for which kernels of CPUs are fast."""
        return tuple(max(8, 8 * round(base * self.width_factor / 8)) for base in (64, 128, 256, 512))

    @property
    def pooled_width(self) -> int:
        """The number of the backbone's pooled features."""
        if self.backbone in OSNETS:
            return OSNETS[self.backbone].channels[-1]
        if is_timm(self.backbone):
            return pooled_width(self.backbone, self.height, self.width)
        return self.stages[-1] * EXPANSION[BLOCKS[self.backbone][0]]

    @property
    def feature_width(self) -> int:
        """The number of values of a feature, D."""
        return self.embedding if self.neck == "embedding" else self.pooled_width


class Outputs(NamedTuple):
    """The network's outputs for a batch in training, both float32."""

    embedding: torch.Tensor  # [N, D], for a metric loss: before the batch normalisation of a bnneck
    logits: torch.Tensor  # [N, classes]


class ReidNetwork(nn.Module):
    """Images of people -> embeddings and logits. A new network has random weights, drawn as the sources draw them."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, config: ReidConfig):
        super().__init__()
        self.config = config
        self.backbone = _backbone(config)
        pooled, wide = config.pooled_width, config.feature_width
        self.classifier = nn.Linear(wide, config.classes, bias=config.neck != "bnneck")
        deviation = 0.01 if config.neck == "none" else 0.001
        nn.init.normal_(self.classifier.weight, std=deviation)
        if self.classifier.bias is not None:
            nn.init.zeros_(self.classifier.bias)
        if config.neck == "embedding":
            self.embed = nn.Linear(pooled, wide)
            nn.init.kaiming_normal_(self.embed.weight, mode="fan_out")
            nn.init.zeros_(self.embed.bias)
        if config.neck != "none":
            self.norm = normalisation(nn.BatchNorm1d, wide, config.domains)
            for norm in self.norm.modules():
                if not isinstance(norm, nn.BatchNorm1d):
                    continue
                if config.neck == "embedding":
                    nn.init.normal_(norm.weight, 1.0, 0.02)
                else:  # the shift stays 0, so that the classes' planes go through the origin, as the cosine needs
                    norm.bias.requires_grad_(False)
        self.dropout = nn.Dropout(config.dropout)
        # These buffers have a fixed device, so that they have values if the rest is built on the device "meta".
        for name, values in (("mean", config.mean), ("deviation", config.deviation)):
            self.register_buffer(name, torch.tensor(values, device="cpu").view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor, domain: int = 0) -> Outputs:
        """`images` [N, 3, H, W] float, 0..1, RGB, all of one domain: 0 for real images, 1 for generated images.

        Raises ValueError for a domain that the configuration does not have.
        """
        pooled = self._pooled(images, domain)
        embedding = self._embedded(pooled) if self.config.neck == "embedding" else pooled
        if self.config.neck == "bnneck":
            logits = self.classifier(self.norm(pooled))
        elif self.config.neck == "embedding":
            logits = self.classifier(self.dropout(embedding))
        else:
            logits = self.classifier(embedding)
        return Outputs(embedding.float(), logits.float())

    def feature(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] float, 0..1, RGB -> [N, D] float32: the feature for comparing images, not normalised.

        It is the embedding, or the bnneck's values, by default after its batch normalisation. Call it in eval mode; it
        takes domain 0.
        """
        pooled = self._pooled(images, domain=0)
        if self.config.neck == "embedding":
            return self._embedded(pooled).float()
        normed = self.config.neck == "bnneck" and self.config.neck_feature == "after"
        return (self.norm(pooled) if normed else pooled).float()

    def flip_averaged(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] float, 0..1, RGB -> [N, D] float32 of length 1: features of image + mirror image."""
        return nn.functional.normalize(self.feature(images) + self.feature(images.flip(3)), dim=1)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The parameters that ImageNet weights can fill."""
        return list(self.backbone.parameters())

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters of neck and classifier."""
        return [value for name, value in self.named_parameters() if not name.startswith("backbone.")]

    def _pooled(self, images: torch.Tensor, domain: int) -> torch.Tensor:
        if not 0 <= domain < self.config.domains:
            raise ValueError(f"domain {domain}: the network was built for {self.config.domains}")
        if self.config.domains > 1:
            for module in self.modules():
                if isinstance(module, DomainBatchNorm):
                    module.current = domain
        return self.backbone((images - self.mean) / self.deviation)  # [N, pooled_width]

    def _embedded(self, pooled: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(pooled))
        return nn.functional.relu(x) if self.config.activation == "relu" else x


class FeatureNetwork:
    """Features of images: a call takes uint8 [N, H, W, 3] RGB and gives float32 [N, D] of length 1, NumPy arrays.

    Flip-averaged, for eval mode whatever mode the network is in. `width` is D, `height` and `width_pixels` those of the
    images it takes, `sha256` that of the network's file. It can be pickled, and sent to workers.
    """

    def __init__(self, network: ReidNetwork, sha256: str, device: str | torch.device | None = None):
        self.network = network
        self.sha256 = sha256
        self.recipe = str(network.config)  # what decides the features beside the file
        self.width = network.config.feature_width
        self.height, self.width_pixels = network.config.height, network.config.width
        self.to(network.mean.device if device is None else device)

    def to(self, device: str | torch.device) -> "FeatureNetwork":
        """Move to a device, in place; returns itself."""
        self.device = torch.device(device)
        self.network.to(self.device).to(memory_format=torch.channels_last)
        return self

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Raises InputError for images of another shape or type."""
        self._check(images)
        features = np.empty((len(images), self.width), np.float32)
        step = BATCH_IMAGES.get(self.device.type, BATCH_IMAGES["cuda"])
        training = self.network.training
        self.network.eval()
        try:
            # The tensor cores' short format would change features by 1e-3 of their size.
            with exact_numbers():
                for start in range(0, len(images), step):
                    chunk = torch.tensor(np.ascontiguousarray(images[start : start + step]), device=self.device)
                    inputs = chunk.permute(0, 3, 1, 2).float() / 255  # [n, 3, H, W] float32, 0..1, channels last
                    features[start : start + step] = self.network.flip_averaged(inputs).cpu()
        finally:
            self.network.train(training)
        return features

    def _check(self, images: np.ndarray) -> None:
        if images.dtype != np.uint8 or images.shape[1:] != (self.height, self.width_pixels, 3):
            needed = f"[N, {self.height}, {self.width_pixels}, 3]"
            raise InputError(f"re-identification: images {images.shape} {images.dtype} are not uint8 {needed}")


def _backbone(config: ReidConfig) -> nn.Module:
    if is_timm(config.backbone):
        made = make_timm(config.backbone, config.height, config.width, config.last_stride)
        return made if config.domains == 1 else with_domains(made, config.domains)
    norm_layer = functools.partial(normalisation, nn.BatchNorm2d, domains=config.domains)
    if config.backbone in OSNETS:
        return OSNet(OSNETS[config.backbone], norm_layer, small_stem=config.stem == "small")
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet  # takes seconds: for those who build one

    kind, layers = BLOCKS[config.backbone]
    block = BasicBlock if kind == BASIC else Bottleneck
    backbone = ResNet(block, layers, norm_layer=norm_layer)
    backbone.register_module("fc", nn.Identity())
    if config.width_factor != 1:
        _change_width(backbone, block, layers, config)
    if config.backbone in IBN_NETS:
        for stage, channels in zip((backbone.layer1, backbone.layer2, backbone.layer3), config.stages, strict=False):
            for part in stage:
                part.register_module("bn1", InstanceBatchNorm(channels, norm_layer))
    if config.non_local:
        for name, (count, channels) in NON_LOCAL.items():
            stage = NonLocalStage(getattr(backbone, name), count, channels, norm_layer)
            backbone.register_module(name, stage)
    if config.pooling == "gem":
        backbone.register_module("avgpool", GeneralisedMean())
    if config.stem == "bot":
        backbone.register_module("relu", nn.Identity())
    if config.stem == "fastreid":
        backbone.register_module("maxpool", nn.MaxPool2d(3, stride=2, ceil_mode=True))
    if config.stem == "small":
        backbone.conv1 = nn.Conv2d(3, config.stages[0], 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
        backbone.register_module("maxpool", nn.Identity())
    if config.last_stride == 1:
        for convolution in backbone.layer4[
            0
        ].modules():  # two convolutions have stride 2: one in the block, one beside it
            if isinstance(convolution, nn.Conv2d):
                convolution.stride = (1, 1)
    return backbone


def _change_width(
    backbone: "ResNet", block: "type[BasicBlock | Bottleneck]", layers: list[int], config: ReidConfig
) -> None:
    """Replace all convolutions and norms by those of `config.stages`, with torchvision's random weights."""
    first = config.stages[0]
    backbone.inplanes = first
    backbone.conv1 = nn.Conv2d(3, first, 7, stride=2, padding=3, bias=False)
    backbone.bn1 = normalisation(nn.BatchNorm2d, first, config.domains)
    for number, (planes, count) in enumerate(zip(config.stages, layers, strict=True), start=1):
        # torchvision has no argument for the width of a network of basic blocks.
        stage = backbone._make_layer(block, planes, count, stride=1 if number == 1 else 2)
        backbone.register_module(f"layer{number}", stage)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
