"""The configuration of a GAN training: one frozen dataclass, from which the command line is made."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from passersby import stylegan2
from passersby.bounds import Bound, check_bounds
from passersby.options import require
from passersby.stylegan3 import DiscriminatorConfig, GeneratorConfig
from passersby.stylegan3.ops.filtered_lrelu import Kernel
from training.config import ALWAYS_FREE, TrainingConfig
from training.gan.augment import AUGMENTATIONS, AdaController
from training.gan.step import StepSettings

MINIBATCH_GROUP = 4  # images that share one minibatch deviation in the discriminator

FREE_TO_CHANGE = ALWAYS_FREE | {
    "kimg", "snapshot_kimg", "batch_gpu", "validation_kimg", "fid_images", "fid_reference", "inception",
    "kernel", "deterministic", "identity_network", "projected_network",
}  # fmt: skip

# Values of options in folders that are older than the option, where its default is another value. Folders older than
# augmentation hold no usable checkpoint: null is no value of --augment, so these folders are refused.
BEFORE = {"augment": None}


@dataclasses.dataclass(frozen=True)
class GanTraining(TrainingConfig):
    """Train a StyleGAN3 or a StyleGAN2 on people.

    The same command again continues where the training stopped, whatever stopped it.

    Example: python jobs/train_gan.py --preset person-128x64-t --data MARKET --out OUT --workers 2
    """

    data: Path
    """A data set for re-ID, such as a Market-1501 tree (only its training people are trained on), a folder of images,
    a table with the columns path and identity, or a zip with dataset.json."""
    out: Path
    """Folder for snapshots, grids, curves and logs. All machines must see it."""
    preset: Literal[
        "person-128x64-t", "person-128x64-r", "person-128x64-2", "study", "tiny", "tiny-2", "tiny-pairs"
    ] = "person-128x64-t"
    """Sets the defaults of all options below. person-128x64-t, -r, -2: people on GPUs, config T, R or 2.
    study: the study's settings (config R, 64 x 64, batch 16, gamma 2, people stretched).
    tiny, tiny-2: config T or 2 at 64 x 32, for two CPU cores. tiny-pairs: tiny-2 with --pairs."""

    # ---- the networks
    height: int = 128
    """Height of the images in pixels: a power of two, at least 16."""
    width: int = 64
    """Width of the images in pixels: the height, or the height divided by a power of two."""
    config: Literal["t", "r", "2"] = "t"
    """t: StyleGAN3-T (3x3 convolutions). r: StyleGAN3-R (1x1, radial filters, twice the generator's channels).
    2: StyleGAN2, several times faster on a CPU. It also sets the defaults of --generator-lr (0.002) and
    --style-mixing-probability (0.9), as the reference's configuration does."""
    channel_base: Annotated[int, Bound(ge=1)] = 32768
    """A layer has about this number divided by its resolution as channels, and at most --channel-max."""
    channel_max: Annotated[int, Bound(ge=1)] = 512
    """Most channels of a layer."""
    margin_size: Annotated[int, Bound(ge=0)] = 10
    """Samples that layers compute beyond the image's edges. Fewer are faster (4: a third less work at 64x32).
    But then the image can see its edges, which is acceptable only for small demonstrations.
    Config 2 has no margin."""
    mapping_layers: Annotated[int | None, Bound(ge=1, le=64)] = None
    """Layers of the mapping network. By default 2, with config 2 8."""
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the layers of the highest four octaves, on a GPU. auto: float16, as in the reference.
    On a CPU it is always float32."""
    kernel: Kernel = "auto"
    """How the filtered leaky ReLUs of configs t and r are computed; all ways differ by rounding alone.
    plain: depthwise convolutions. matmul: matrix products. triton: one kernel for each layer, with the least memory.
    auto: plain on a CPU, matmul on a GPU."""

    # ---- where it starts
    transfer: Path | None = None
    """Start from the weights of this network. Any network file of any size, width and config will do.
    Only StyleGAN2 and StyleGAN3 do not fit each other."""
    freeze_d: Annotated[int, Bound(ge=0)] = 0
    """Keep the first N layers of the discriminator, from the image side, as they are (Freeze-D)."""

    # ---- data
    fit: Literal["exact", "crop", "pad", "stretch"] = "exact"
    """What happens to images of another shape than height : width.
    exact: refuse them. crop: cut them. pad: repeat their edges. stretch: stretch them."""
    enlarge: bool = False
    """Enlarge images that are smaller than height x width. By default they are refused."""
    mirror: bool = True
    """Mirror every second real image, left to right."""
    validation_people: Annotated[int | None, Bound(ge=0)] = None
    """Number of people who are set aside for validation losses and FID, and never trained on.
    By default one in twenty, 50 at most."""
    condition: Literal["none", "camera", "cluster", "dataset"] = "none"
    """Train with labels. camera: the image's camera. cluster: one of --clusters groups of people who look alike.
    dataset: the labels of dataset.json."""
    clusters: Annotated[int, Bound(ge=2, note="or give --condition none")] = 16
    """Number of groups with --condition cluster."""

    # ---- identity pairs
    pairs: bool = False
    """Train people who are seen by many cameras: half of a code says who, the other half how the person is seen.
    A second discriminator judges two pictures of one person at a time. The data must say who is who."""
    labelled_people: Annotated[int | None, Bound(ge=2)] = None
    """With --pairs: use the identity labels of N people only; all other pictures are trained on without labels.
    By default the labels of all training people. The labelled people are never set aside for validation."""
    label_draw: Annotated[int, Bound(ge=0)] = 0
    """The seed that draws the labelled people. Of one seed, 60 people always include its 20 people."""
    pair_cameras: Literal["any", "different"] = "any"
    """The cameras of a real pair. any: drawn independently of each other, so that some pairs have one camera.
    different: two cameras in every pair. But generated pairs sometimes look like one camera, which gives them away."""
    pair_gamma: Annotated[float | None, Bound(ge=0)] = None
    """Weight of the R1 penalty of the pair discriminator. By default twice --gamma, as a pair has twice the values."""
    pair_strangers: Annotated[float, Bound(ge=0, le=1)] = 0.5
    """Share of real pairs of two different people among what the pair discriminator learns to reject.
    The other share is generated pairs."""
    identity_network: Path | None = None
    """With --pairs: a re-ID network of the labelled people. Its features are one more loss of the generator.
    A generated pair shall be as alike as a real pair of one person, and two people as unlike as two real people."""
    identity_weight: Annotated[float, Bound(gt=0)] = 10.0
    """Weight of the loss of --identity-network. On drawn people 2 changed little, and 10 much."""
    intraclass_weight: Annotated[float, Bound(ge=0)] = 0.0
    """With --pairs: weight of a loss by which no more of a picture's look belongs to the person than in real pairs.
    Without it, surroundings and poses of a person stay too much alike. Try 100.
    On drawn people fewer images passed the pedestrian filter with it. 0: no such loss."""

    # ---- a projected discriminator
    projected: bool = False
    """Let a second discriminator judge the generated images by the maps of a network of ImageNet, EfficientNet-Lite0.
    People get crisper in few images. FID falls further than they gain, because its network knows ImageNet too.
    It needs --one-pass."""
    projected_ratio: Annotated[float, Bound(gt=0)] = 2.0
    """With --projected: the length of its gradient at the generated images, over that of the ordinary discriminator."""
    projected_network: Path | None = None
    """The weights of --projected (efficientnet-lite0-57934424.pth), for machines without a package registry."""

    # ---- learning
    batch: Annotated[int, Bound(ge=1)] = 32
    """Images of one iteration, over all workers."""
    batch_gpu: Annotated[int | None, Bound(ge=1)] = None
    """Images that a worker computes at a time; it adds up their gradients. By default its whole share of the batch."""
    kimg: Annotated[float, Bound(gt=0)] = 5000.0
    """Thousands of real images to train on in all."""
    gamma: Annotated[float, Bound(ge=0)] = 0.25
    """Weight of the R1 penalty. A larger weight is more stable and makes blurrier images.
    The best weight grows with the number of pixels. Try a quarter of the default and four times the default."""
    generator_lr: Annotated[float, Bound(gt=0)] = 0.0025
    """Learning rate of Adam for the generator."""
    discriminator_lr: Annotated[float, Bound(gt=0)] = 0.002
    """Learning rate of Adam for the discriminator, before its correction for lazy R1."""
    style_mixing_probability: Annotated[float, Bound(ge=0, le=1)] = 0.5
    """Share of the training images that are made from two codes.
    The reference trains with 0, so that its networks have never seen mixed codes."""
    path_length_weight: Annotated[float | None, Bound(ge=0)] = None
    """Weight of the path-length penalty of config 2, which runs in every fourth iteration. 0: no penalty.
    By default 2, as in the reference."""
    one_pass: bool = False
    """Let both networks learn from the same generated images, which are then made only once in an iteration.
    This is faster. The discriminator learns first. It needs a whole worker's share in memory: no --batch-gpu."""
    augment: Literal["ada", "fixed", "none"] = "ada"
    """Augment what the discriminator sees. ada: with a probability that adapts.
    fixed: with the probability --augment-p. none: never."""
    augment_set: str = "upright"
    """The set of transforms. upright: bgc without turns, hue and luma flip, which would leak into upright people.
    bgc: the reference's set. blit, geom, color, bg: parts of it. bgcfnc: also bands, noise and cutouts."""
    augment_p: Annotated[float, Bound(ge=0, le=1)] = 0.0
    """Probability of each transform: at the start with --augment ada, always with fixed."""
    augment_p_max: Annotated[float, Bound(ge=0, le=1)] = 1.0
    """Greatest probability that --augment ada reaches."""
    ada_target: Annotated[float, Bound(gt=-1, lt=1)] = 0.6
    """ADA keeps the mean sign of the discriminator's scores of real images at this value."""
    ada_kimg: Annotated[float | None, Bound(gt=0)] = None
    """Thousands of images in which the probability could go from 0 to 1. By default 500, with --transfer 100."""
    seed: Annotated[int, Bound(ge=0)] = 0
    """Fixes the initial weights, the order of the data, every latent code and the augmentation.
    The number of workers changes none of them."""

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
    deterministic: bool = False
    """Let a GPU use only algorithms that give equal bits each time: a training that was stopped goes on bit for bit.
    It is slower. A step without such an algorithm ends the training with one line; augmentation sets with turned
    images (bgc, bg, geom and those that contain them) have such steps."""
    restarts: Annotated[int, Bound(ge=0)] = 3
    """How often Ray Train starts the workers again, from the last checkpoint, after a worker died."""

    # ---- what is kept and said
    snapshot_kimg: Annotated[float, Bound(gt=0)] = 100.0
    """Thousands of images between two snapshots (networks, grids, FID). The end has one too. All are kept."""
    checkpoint_minutes: Annotated[float, Bound(gt=0)] = 10.0
    """Minutes between two checkpoints, from which a training can continue. The last two are kept."""
    validation_kimg: Annotated[float, Bound(gt=0)] = 4.0
    """Thousands of images between two validations. Each adds the losses on validation people to history.jsonl."""
    fid_images: Annotated[int | None, Bound(ge=0)] = None
    """Generated images for the FID of a snapshot. 0 computes no FID. By default 10,000 on a GPU, none on a CPU."""
    fid_reference: Literal["auto", "validation", "training"] = "auto"
    """The real images that FID compares with.
    auto: validation people if they have 500 images, else training people."""
    inception: Path | None = None
    """File of the Inception network, for machines without a package registry."""
    max_minutes: Annotated[float | None, Bound(ge=0)] = None
    """Stop with a checkpoint after so many minutes. The same command continues from there."""
    status_seconds: Annotated[float, Bound(gt=0)] = 30.0
    """Seconds between two status lines."""

    def check(self) -> None:
        """Raises InputError naming the first value that cannot work. Needs neither data nor networks."""
        check_bounds(self)
        choices = ", ".join(AUGMENTATIONS)
        require(
            self.augment_set in AUGMENTATIONS, f"--augment-set {self.augment_set} is not known: give one of {choices}"
        )
        self._check_sizes()
        self._check_batch()
        self._check_pairs()
        require(
            self.one_pass or not self.projected,
            "--projected needs --one-pass: both discriminators learn from an image before the generator does",
        )
        require(
            self.projected or self.projected_network is None,
            f"--projected-network {self.projected_network}: it belongs to --projected",
        )
        require(
            self.config == "2" or not self.path_length_weight,
            f"--path-length-weight {self.path_length_weight}: the layers of StyleGAN3 have no second derivative; the "
            "penalty belongs to --config 2",
        )

    def _check_sizes(self) -> None:
        sizes = f"--height {self.height} --width {self.width}"
        require(
            _is_power_of_two(self.height) and self.height >= 16,
            f"{sizes}: the height must be 16, 32, 64, ...",
        )
        require(
            _is_power_of_two(self.width) and 8 <= self.width <= self.height,
            f"{sizes}: the width must be the height divided by 1, 2, 4, ... and at least 8",
        )

    def _check_batch(self) -> None:
        share = self.check_workers()
        part = self.batch_gpu or share
        require(
            part <= share and share % part == 0,
            f"--batch-gpu {self.batch_gpu} does not divide each worker's {share} images (--batch {self.batch})",
        )
        what = f"--batch-gpu {self.batch_gpu}" if self.batch_gpu else f"--batch {self.batch}"
        require(
            part % min(MINIBATCH_GROUP, part) == 0,
            f"{what} gives each worker {part} images: take less than {MINIBATCH_GROUP} "
            f"or a multiple of {MINIBATCH_GROUP}",
        )
        require(
            not self.one_pass or part == share,
            f"--batch-gpu {self.batch_gpu} with --one-pass: the images stay in memory between the networks' steps, so "
            "parts save no memory; leave one of them out",
        )

    def _check_pairs(self) -> None:
        if not self.pairs:
            require(self.labelled_people is None, f"--labelled-people {self.labelled_people}: it belongs to --pairs")
            require(self.identity_network is None, f"--identity-network {self.identity_network}: it belongs to --pairs")
            require(not self.intraclass_weight, f"--intraclass-weight {self.intraclass_weight}: it belongs to --pairs")
            return
        require(
            self.condition in ("none", "camera"),
            f"--condition {self.condition} with --pairs: such labels would say who people are; give none or camera",
        )
        part = self.batch_gpu or self.check_workers()
        what = f"--batch-gpu {self.batch_gpu}" if self.batch_gpu else f"--batch {self.batch}"
        require(
            part % (2 * MINIBATCH_GROUP) == 0,
            f"{what} gives each worker {part} images: --pairs needs a multiple of {2 * MINIBATCH_GROUP}, "
            f"which is {MINIBATCH_GROUP} pairs",
        )

    @property
    def labels_used(self) -> tuple[int | None, int] | None:
        """The identity labels that the training uses, as `datasets.people.image_source.open_images` takes them."""
        return (self.labelled_people, self.label_draw) if self.pairs else None

    @property
    def has_noise(self) -> bool:
        """Whether the generator's layers have noise."""
        return self.config == "2"

    @property
    def path_length(self) -> float:
        """The weight of the path-length penalty; 0 in a StyleGAN3."""
        if self.config != "2":
            return 0.0
        return 2.0 if self.path_length_weight is None else self.path_length_weight

    @property
    def architecture(self) -> str:
        """The generator's architecture for users."""
        return "StyleGAN2" if self.config == "2" else f"StyleGAN3-{self.config.upper()}"

    def generator(self, label_size: int = 0) -> stylegan2.AnyGeneratorConfig:
        """The generator's configuration; the magnitude average of a StyleGAN3 halves every 20,000 images."""
        if self.config == "2":
            return stylegan2.GeneratorConfig(
                self.height,
                self.width,
                c_dim=label_size,
                mapping_layers=self.mapping_layers or 8,
                channel_base=self.channel_base,
                channel_max=self.channel_max,
            )
        make = GeneratorConfig.config_r if self.config == "r" else GeneratorConfig.config_t
        return make(
            self.height,
            self.width,
            c_dim=label_size,
            mapping_layers=self.mapping_layers or 2,
            channel_base=self.channel_base,
            channel_max=self.channel_max,
            margin_size=self.margin_size,
            magnitude_ema_beta=0.5 ** (self.batch / 20_000),
        )

    def discriminator(self, label_size: int = 0) -> DiscriminatorConfig:
        """The discriminator's configuration: the same for T and R; with config 2 tall maps end as in StyleGAN-Human."""
        return DiscriminatorConfig(
            self.height,
            self.width,
            c_dim=label_size,
            channel_base=self.channel_base,
            channel_max=self.channel_max,
            mbstd_group_size=MINIBATCH_GROUP,
            last_height=4 if self.config == "2" and self.width < self.height else None,
        )

    def pair_discriminator(self, label_size: int = 0) -> DiscriminatorConfig:
        """The configuration of the discriminator of pairs: two pictures and two labels as one."""
        return dataclasses.replace(self.discriminator(2 * label_size), img_channels=6)

    def step_settings(self) -> StepSettings:
        """The settings of an iteration, which depend on the batch as in the reference.

        After a transfer there is no blur, and no quick start of the averaged generator, as when the reference resumes.
        """
        share = self.batch // max(self.workers, 1)
        return StepSettings(
            gamma=self.gamma,
            blur_start_sigma=10.0 if self.config == "r" and not self.transfer else 0.0,
            blur_fade_images=self.batch * 200_000 / 32,
            ema_half_life_images=self.batch * 10_000 / 32,
            ema_ramp=None if self.transfer else 0.05,
            rounds=share // (self.batch_gpu or share),
            path_length_weight=self.path_length,
            one_pass=self.one_pass,
        )

    def ada(self) -> AdaController:
        """The controller of the augmentation's probability, at its start."""
        kimg = self.ada_kimg or (100.0 if self.transfer else 500.0)
        return AdaController(self.augment, self.augment_p, target=self.ada_target, kimg=kimg, p_max=self.augment_p_max)


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0
