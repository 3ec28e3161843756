"""The configuration of an encoder training: one frozen dataclass, from which the command line is made."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

from passersby.bounds import Bound, check_bounds
from passersby.options import require
from passersby.restyle.encoder import EncoderConfig
from passersby.restyle.losses import LossWeights
from passersby.stylegan2 import AnyGeneratorConfig
from training.config import ALWAYS_FREE, TrainingConfig

FREE_TO_CHANGE = ALWAYS_FREE | {"network", "weights", "identity_network", "alexnet"}


@dataclasses.dataclass(frozen=True)
class EncoderTraining(TrainingConfig):
    """Train a ReStyle-pSp encoder, which turns pictures of people into codes of a generator.

    The same command again continues where the training stopped, whatever stopped it.

    Example: python jobs/train_encoder.py --preset person-128x64 --data MARKET --network G.safetensors
    --identity-network REID/network.safetensors --out ENCODER
    """

    data: Path
    """People: Market-1501, DukeMTMC-reID, CUHK03, MSMT17, a folder with one folder for each person, or a table.
    The encoder trains on their training images. The first image of each person is kept for validation."""
    out: Path
    """Folder for the encoder, checkpoints, curves and logs. All machines must see it."""
    network: Path | None = None
    """The generator, which is not changed: a reference .pkl, a .safetensors of ours, or a .pt state dict.
    By default the demo network, which has seen only drawn people."""
    preset: Literal["person-128x64", "study", "tiny"] = "person-128x64"
    """Sets the defaults of all options below. person-128x64: for tall networks.
    study: the original study's (256x256, 240,000 steps of 2 images; the study took 75 hours on a Titan RTX).
    tiny: 64x32 with a small backbone, an hour on one CPU core."""

    # ---- the encoder
    backbone: Literal["resnet34", "resnet18", "resnet10"] = "resnet34"
    """torchvision's layers after a first convolution of 6 channels. resnet10 has one block in each stage."""
    width_factor: Annotated[float, Bound(gt=0)] = 1.0
    """Multiplies the channels of the backbone. ImageNet weights fit only 1."""
    head_channels: Annotated[int, Bound(ge=1)] = 512
    """Channels of the heads. There is one head for each style input."""
    height: Annotated[int, Bound(ge=16)] = 256
    """Height in pixels at which the encoder sees images. Smaller pictures are enlarged."""
    width: Annotated[int, Bound(ge=16)] = 128
    """Width in pixels at which the encoder sees images. Smaller pictures are enlarged."""
    weights: Path | None = None
    """torchvision's ImageNet weights of a ResNet-34 or -18. By default the backbone starts from random weights."""

    # ---- losses
    l2_weight: Annotated[float, Bound(ge=0)] = 1.0
    """Weight of the L2 loss."""
    lpips_weight: Annotated[float, Bound(ge=0)] = 0.8
    """Weight of the LPIPS loss."""
    identity_weight: Annotated[float, Bound(ge=0)] = 0.1
    """Weight of the identity loss: 1 - cosine between the identity network's features of picture and reconstruction."""
    identity_network: Path | None = None
    """A re-ID network of jobs/train_reid.py, or a MoCo-v2 checkpoint, the study's.
    The re-ID network is the better choice for people."""
    alexnet: Path | None = None
    """torchvision's ImageNet AlexNet, for LPIPS itself. By default shift-tolerant LPIPS, which is complete."""
    codes_weight: Annotated[float, Bound(ge=0)] = 1.0
    """Weight of the squared error of w, in units of the variance of w.
    It applies to generated images, whose w is known."""

    # ---- learning
    refinements: Annotated[int, Bound(ge=1)] = 3
    """ReStyle steps of a batch, each with gradients of its own."""
    generated_share: Annotated[float, Bound(ge=0, le=1)] = 0.0
    """Share of a batch that the generator makes. These images are endless, and their w is known exactly."""
    generated_psi: Annotated[float, Bound(ge=0)] = 0.8
    """Truncation of the generated images."""
    steps: Annotated[int, Bound(ge=1)] = 100_000
    """Number of training steps."""
    batch: Annotated[int, Bound(ge=1)] = 8
    """Images of one step, over all workers."""
    lr: Annotated[float, Bound(gt=0)] = 0.0001
    """Learning rate of Ranger (rectified Adam, lookahead)."""
    final_lr: Annotated[float, Bound(gt=0, le=1, note="it is a share of --lr")] = 1.0
    """Share of --lr to which the rate falls over the last half of the steps, as a cosine. 1 keeps it, as published."""
    mirror: bool = True
    """Mirror every second image, left to right."""
    seed: Annotated[int, Bound(ge=0)] = 0
    """Fixes the initial weights, the order of the images and their random changes."""

    # ---- where it runs
    workers: Annotated[int, Bound(ge=0)] = 1
    """Number of Ray Train workers. 0 trains in this process, without Ray."""
    gpus: Annotated[int | None, Bound(ge=0)] = None
    """GPUs in all: 0, or one for each worker.
    By default one for each worker if there are that many, else the CPU."""
    threads: Annotated[int | None, Bound(ge=1)] = None
    """CPU threads of a worker. By default PyTorch's choice in this process, and 2 in a Ray Train worker."""
    tf32: bool = False
    """Let a GPU round the inputs of float32 products and convolutions to 10 binary digits (TF32).
    Float32 layers are then faster. The cost: their results are right to three decimal digits in place of seven."""
    restarts: Annotated[int, Bound(ge=0)] = 3
    """How often Ray Train starts the workers again, from the last checkpoint, after a worker died."""

    # ---- what is kept and said
    validation_images: Annotated[int, Bound(ge=1)] = 64
    """Pictures that are kept from training. The encoder with the least LPIPS on them is kept."""
    validation_steps: Annotated[int, Bound(ge=1)] = 2_500
    """Number of steps between two validations. Each validation adds a record to history.jsonl."""
    validation_refinements: Annotated[int, Bound(ge=1)] = 5
    """ReStyle steps of a validation."""
    shown_refine_steps: Annotated[int, Bound(ge=0)] = 100
    """Steps that refine the codes of the pictures in the last column of validation.png."""
    checkpoint_minutes: Annotated[float, Bound(gt=0)] = 10.0
    """Minutes between two checkpoints, from which a training can continue. The last two are kept."""
    max_minutes: Annotated[float | None, Bound(ge=0)] = None
    """Stop with a checkpoint after so many minutes. The same command continues from there."""
    status_seconds: Annotated[float, Bound(gt=0)] = 15.0
    """Seconds between two status lines."""

    def check(self) -> None:
        """Raises InputError naming the first value that cannot work. Needs neither data nor networks."""
        check_bounds(self)
        require(
            self.identity_network is not None or self.identity_weight == 0,
            f"--identity-weight {self.identity_weight:g} needs --identity-network FILE (a re-ID or MoCo-v2 network); "
            "give one, or --identity-weight 0",
        )
        part = self.check_workers()
        require(part >= 2, f"--batch {self.batch} gives each worker one image: batch norm needs two or more")
        require(
            self.weights is None or (self.width_factor == 1 and self.backbone != "resnet10"),
            "--weights: ImageNet weights are of resnet18 and resnet34 with --width-factor 1; leave them out",
        )

    def encoder(self, generator: AnyGeneratorConfig) -> EncoderConfig:
        """The encoder's configuration for a generator."""
        return EncoderConfig(
            height=self.height,
            width=self.width,
            num_ws=generator.num_ws,
            w_dim=generator.w_dim,
            backbone=self.backbone,
            width_factor=self.width_factor,
            head_channels=self.head_channels,
        )

    @property
    def loss_weights(self) -> LossWeights:
        """Weights of the losses between pictures and reconstructions."""
        return LossWeights(self.l2_weight, self.lpips_weight, self.identity_weight)

    @property
    def generated(self) -> int:
        """Generated images of a batch."""
        return round(self.generated_share * self.batch)

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        late = max(2 * step / self.steps - 1, 0.0)
        return self.lr * (self.final_lr + (1 - self.final_lr) * (1 + math.cos(math.pi * late)) / 2)


PATHS = ("data", "out", "network", "weights", "identity_network", "alexnet")
