"""The configuration of a re-ID training: one frozen dataclass, from which the command line is made."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

from datasets.reid.sources import Labelled
from datasets.runs.verdicts import Thresholds, with_filters
from passersby.bounds import Bound, check_bounds
from passersby.options import require
from passersby.reid.checkpoint import IBN_WEIGHTS, OSNET_WEIGHTS
from passersby.reid.network import BACKBONES, IBN_NETS, IMAGENET_DEVIATION, IMAGENET_MEAN, ReidConfig
from passersby.reid.osnet import OSNETS
from passersby.reid.timm_backbone import PREFIX, about, is_timm, pooled_width
from training.config import ALWAYS_FREE, TrainingConfig
from training.reid.augment import AugmentConfig
from training.reid.changes import Changes
from training.reid.labels import Labelling
from training.reid.stages import stages_of

FREE_TO_CHANGE = ALWAYS_FREE | {"people", "variants", "weights", "teacher", "donors"}
# Options that concern generated images only: in a training without generated images they change nothing.
ABOUT_GENERATED = frozenset(
    ["people_labels", "variants_labels", "generated_smoothing", "teacher", "temperature", "generated_weight"]
    + ["generated_share", "generated_triplet", "ramp_epochs", "real_only_epochs", "separate_batchnorm", "filters"]
    + ["generated_surroundings", "generated_colours", "generated_jitter"]
)


@dataclasses.dataclass(frozen=True)
class ReidTraining(TrainingConfig):
    """Train a re-identification network on real people, and if you like on generated ones.

    The same command again continues where the training stopped, whatever stopped it.

    Example: python jobs/train_reid.py --preset strong --data MARKET --people RUN --out OUT
    """

    data: Path
    """Real people: Market-1501, DukeMTMC-reID, CUHK03, MSMT17, or a folder with one folder for each person.
    A CSV or Parquet table will do too: with the columns path and identity, and camera if it is known."""
    out: Path
    """Folder for the network, checkpoints, curves and logs. All machines must see it."""
    preset: Literal["strong", "study", "scarce", "strong-small", "study-small", "scarce-small", "tiny"] = "strong"
    """Sets the defaults of all options below. strong: the bag of tricks. study: the original study's recipe.
    scarce: for few labelled people, whose pictures get other surroundings and colours for most of the steps.
    On photographs leave that out: --surroundings 0 --colours 0 --jitter 0 --stages.
    strong-small, study-small, scarce-small: these recipes with a small backbone at 64x32, for CPUs.
    tiny: seconds, for tests."""
    labelled_people: Annotated[int | None, Bound(ge=2)] = None
    """Use the identity labels of N people of --data only. By default the labels of all training people.
    Pictures of the others may still give surroundings and colours."""
    label_draw: Annotated[int, Bound(ge=0)] = 0
    """The seed that draws the labelled people, the same ones in every job.
    Of one seed, 60 people always include its 20 people."""
    further_people: Annotated[int, Bound(ge=0)] = 0
    """With --labelled-people: train on so many further real people too, as on artificial people.
    It shows what artificial people could bring at best."""
    single_pictures: Annotated[int, Bound(ge=0)] = 0
    """With --labelled-people: train on so many pictures of people without a label too, each a class of its own."""
    people: tuple[Path, ...] = ()
    """Artificial people, who become new classes: runs of jobs/generate.py, folders or tables."""
    variants: tuple[Path, ...] = ()
    """Generated pictures of people in --data. They bear the identities of these people."""
    most_people: Annotated[int | None, Bound(ge=1)] = None
    """Take only the first N artificial people. The first 20 include the first 10."""
    most_variants: Annotated[int | None, Bound(ge=1)] = None
    """Take only the first N generated pictures of each person in --variants."""
    draw_seed: Annotated[int | None, Bound(ge=0)] = None
    """Let this seed decide which people and pictures are the first ones. By default their own order decides.
    Of one seed, 20 people always include its 10 people."""
    filters: tuple[str, ...] = ()
    """Thresholds, as those of jobs/refilter.py, which replace the thresholds of the runs.
    For example: detector_threshold=0.8 identity_margin=0 ssim_floor=None"""

    # ---- the network
    backbone: str = "resnet50"
    """resnet50, 34, 18: torchvision's networks. resnet10 has one basic block in each stage and no ImageNet weights.
    resnet50_ibn_a and OSNets of ibn or ain have instance normalisation, for people of other cameras.
    osnet_x1_0, x0_75, x0_5, x0_25, osnet_ibn_x1_0, osnet_ain_x1_0, ain_x0_75, ain_x0_5, ain_x0_25: Zhou's networks,
    made for re-ID and small machines. x0_25 has a tenth of the parameters of x1_0.
    timm:NAME, such as timm:resnet50 or timm:vit_small_patch16_224: any network of the package timm that pools,
    with the neck of --neck. NAME.TAG names its weights."""
    neck: Literal["embedding", "bnneck", "none"] = "bnneck"
    """The layers between pooling and classifier. embedding: linear, batch norm, activation, dropout.
    bnneck: batch norm. none: no layers."""
    stem: Literal["imagenet", "small", "bot", "fastreid"] = "imagenet"
    """The first layers. imagenet: the network's own, a 7x7 convolution of stride 2 and max-pool.
    small: a 3x3 convolution of stride 2 without max-pool, for small images.
    bot: without ReLU, and fastreid: with a max-pool without border, are those of networks for --start."""
    height: Annotated[int, Bound(ge=16)] = 256
    """Height of the images in pixels, as the network sees them."""
    width: Annotated[int, Bound(ge=16)] = 128
    """Width of the images in pixels, as the network sees them."""
    width_factor: Annotated[float, Bound(ge=0.1, le=4)] = 1.0
    """Multiplies the channels of the backbone. ImageNet weights fit only 1."""
    last_stride: Literal[1, 2] = 1
    """Stride of a ResNet's last stage. 1 keeps twice the height and width. OSNet's last stage always does.
    Of timm's networks only the ResNets heed it."""
    embedding: Annotated[int, Bound(ge=1)] = 512
    """Size of the feature with --neck embedding."""
    activation: Literal["relu", "none"] = "relu"
    """The activation with --neck embedding."""
    dropout: Annotated[float, Bound(ge=0, lt=1, note="at 1 nothing would be left")] = 0.5
    """Share of the feature's values that dropout sets to 0 with --neck embedding."""
    pretrained: bool = True
    """Start from ImageNet weights, or from those of --weights."""
    weights: Path | None = None
    """File of the ImageNet weights, for machines without internet.
    An OSNet needs a file of torchreid, trained on ImageNet or on people: its classifier is not used.
    A network of timm takes the file of timm's hub, or any other state dict of it; resnet50_ibn_a that of IBN-Net."""
    start: Path | None = None
    """Start from this re-ID network, with new classes: one of ours, of layumi's baseline, torchreid, fast-reid, BoT or
    TransReID. Its backbone, stem and neck must be those of this training."""

    # ---- generated images
    people_labels: Literal["hard", "lsro"] = "hard"
    """hard: each artificial person is a class.
    lsro: artificial people are no class; their label is spread evenly over the real people."""
    variants_labels: Literal["hard", "smooth", "lsro", "teacher"] = "smooth"
    """hard: the label is the person. smooth: the person, with --generated-smoothing.
    lsro: a label spread evenly over the real people. teacher: the probabilities that --teacher gives."""
    generated_smoothing: Annotated[float, Bound(ge=0, le=1)] = 0.1
    """Share of a smooth label that is spread over all classes. CamStyle uses 0.1."""
    teacher: Path | None = None
    """A re-ID network that was trained on the same real people. Its probabilities are the labels of variants."""
    temperature: Annotated[float, Bound(gt=0)] = 1.0
    """Temperature of the teacher's probabilities, and of the student's where they are compared with the teacher's."""
    generated_weight: Annotated[float, Bound(ge=0)] = 1.0
    """Weight of a generated image's loss. A real image's loss has weight 1."""
    generated_share: Annotated[float | None, Bound(ge=0, le=1)] = 0.25
    """Greatest share of generated images in a batch; they come from a list of their own.
    None: real and generated images are in one list. Further people and single pictures count as generated here."""
    generated_triplet: bool = False
    """Let generated images take part in the triplet loss."""
    ramp_epochs: Annotated[float, Bound(ge=0)] = 0.0
    """Number of epochs over which the weight of generated images grows from 0 to --generated-weight."""
    real_only_epochs: Annotated[float, Bound(ge=0)] = 0.0
    """Number of epochs at the end that use real images only."""
    separate_batchnorm: bool = False
    """Give generated images batch-norm statistics of their own. Features always use those of the real images."""

    # ---- learning
    epochs: Annotated[float, Bound(gt=0)] = 120.0
    """Number of passes over the real images; with --generated-share None over all images."""
    steps: Annotated[int | None, Bound(ge=1)] = None
    """Number of SGD steps, in place of the steps that --epochs gives. Schedules stretch with it.
    Equal steps make trainings with different numbers of images comparable."""
    batch: Annotated[int, Bound(ge=1)] = 64
    """Images of one step, over all workers."""
    sampler: Literal["shuffle", "pk"] = "pk"
    """shuffle: images in random order.
    pk: each batch has some people with --instances images each, as the triplet loss needs them."""
    instances: Annotated[int, Bound(ge=1)] = 4
    """Images of each person in a batch, with --sampler pk."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """adam, or sgd with Nesterov momentum 0.9."""
    lr: Annotated[float, Bound(gt=0)] = 0.00035
    """Learning rate of the head. The backbone has this rate times --backbone-lr-factor."""
    backbone_lr_factor: Annotated[float, Bound(ge=0)] = 1.0
    """The backbone's learning rate as a multiple of --lr."""
    weight_decay: Annotated[float, Bound(ge=0)] = 0.0005
    """Weight decay of the optimizer."""
    schedule: Literal["step", "cosine"] = "step"
    """step: the rate is divided by ten at each of --milestones. cosine: the rate falls as a cosine to 0."""
    milestones: tuple[float, ...] = (40.0, 70.0)
    """Epochs at which --schedule step divides the rate by ten."""
    warmup_epochs: Annotated[float, Bound(ge=0)] = 10.0
    """Number of epochs over which the rate grows from a hundredth to --lr."""
    label_smoothing: Annotated[float, Bound(ge=0, le=1)] = 0.1
    """Share of a real image's label that is spread over all classes."""
    triplet_weight: Annotated[float, Bound(ge=0)] = 1.0
    """Weight of the batch-hard triplet loss. 0 leaves cross-entropy alone."""
    margin: Annotated[float | None, Bound(ge=0)] = 0.3
    """Margin of the triplet loss. None: the soft margin."""
    pad: Annotated[int, Bound(ge=0)] = 10
    """Width in pixels of a black border; a part of the image's own size is then cut out at a random place."""
    mirror: bool = True
    """Mirror every second image, left to right."""
    erasing: Annotated[float, Bound(ge=0, le=1)] = 0.5
    """Probability that a random rectangle of an image is erased."""
    surroundings: Annotated[float, Bound(ge=0, le=1)] = 0.0
    """Probability that a real picture gets the surroundings of another picture, behind a soft mask of a person."""
    colours: Annotated[float, Bound(ge=0, le=1)] = 0.0
    """How far the colours of a real picture move towards those of another picture (Reinhard). 1: all the way."""
    jitter: Annotated[float, Bound(ge=0)] = 0.0
    """Strength of random changes of a real picture: gamma, gain, cast, contrast, saturation, blur and noise."""
    generated_surroundings: Annotated[float | None, Bound(ge=0, le=1)] = None
    """--surroundings of generated pictures. By default that of real pictures."""
    generated_colours: Annotated[float | None, Bound(ge=0, le=1)] = None
    """--colours of generated pictures. By default that of real pictures."""
    generated_jitter: Annotated[float | None, Bound(ge=0)] = None
    """--jitter of generated pictures. By default that of real pictures."""
    donors: tuple[Path, ...] = ()
    """The pictures that give surroundings and colours: runs of jobs/generate.py, folders or tables.
    By default those of --data whose people are not labelled, or if all are, all training pictures."""
    most_donors: Annotated[int, Bound(ge=1)] = 4000
    """Take at most so many of these pictures; --label-draw draws them."""
    stages: tuple[str, ...] = ()
    """Parts of the steps with options of their own, such as 0.7:jitter=0.7,surroundings=1,colours=0.7 0.3:plain.
    Each has a share of the steps, and a schedule of its own unless it says: continued. plain: pictures as they are.
    sources=real/people names what a stage trains on: real (always), people, variants, further, singles."""
    validation: Literal["images", "none"] = "images"
    """images: set the first image of each real person aside, for the validation loss and the Rank-1 error.
    none: train on all images."""
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
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the backbone. auto: bfloat16 on a GPU that has it, else float32."""
    tf32: bool = False
    """Let a GPU round the inputs of float32 products and convolutions to 10 binary digits (TF32).
    Float32 layers are then faster. The cost: their results are right to three decimal digits in place of seven."""
    restarts: Annotated[int, Bound(ge=0)] = 3
    """How often Ray Train starts the workers again, from the last checkpoint, after a worker died."""

    # ---- what is kept and said
    validation_epochs: Annotated[float, Bound(gt=0)] = 1.0
    """Number of epochs between two validations. Each validation adds a record to history.jsonl."""
    checkpoint_minutes: Annotated[float, Bound(gt=0)] = 5.0
    """Minutes between two checkpoints, from which a training can continue. The last two are kept."""
    max_minutes: Annotated[float | None, Bound(ge=0)] = None
    """Stop with a checkpoint after so many minutes. The same command continues from there."""
    status_seconds: Annotated[float, Bound(gt=0)] = 15.0
    """Seconds between two status lines."""

    def check(self) -> None:
        """Raises InputError naming the first value that cannot work. Needs neither data nor networks."""
        check_bounds(self)
        timm = is_timm(self.backbone)
        known = f"{', '.join(BACKBONES)}, {PREFIX}NAME"
        require(timm or self.backbone in BACKBONES, f"--backbone {self.backbone} is not known: give one of {known}")
        if timm:
            about(self.backbone)  # names of timm are checked by timm
            require(self.stem == "imagenet", f"--stem {self.stem} with --backbone {self.backbone}: give imagenet")
            require(
                self.width_factor == 1,
                f"--width-factor {self.width_factor:g} with --backbone {self.backbone}: it is as timm has it: give 1",
            )
            pooled_width(self.backbone, self.height, self.width)
        with_filters(Thresholds(), self.filters)
        self._check_batch()
        wants_teacher = self.variants_labels == "teacher" and bool(self.variants)
        require(not wants_teacher or self.teacher is not None, "--variants-labels teacher: give --teacher FILE")
        require(
            self.real_only_epochs < self.epochs,
            f"--real-only-epochs {self.real_only_epochs:g} leaves none of --epochs {self.epochs:g} for generated ones",
        )
        require(
            not (self.pretrained and self.start is None and self.backbone == "resnet10"),
            "--backbone resnet10 has no ImageNet weights: give --no-pretrained, or another backbone",
        )
        require(
            not (self.pretrained and self.backbone in OSNETS and self.weights is None and self.start is None),
            f"--backbone {self.backbone}: {OSNET_WEIGHTS}",
        )
        require(
            not (self.pretrained and self.backbone in IBN_NETS and self.weights is None and self.start is None),
            f"--backbone {self.backbone}: {IBN_WEIGHTS}",
        )
        require(
            self.backbone not in OSNETS or self.width_factor == 1,
            f"--width-factor {self.width_factor:g} with --backbone {self.backbone}: an OSNet has its width in its name",
        )
        require(
            not (self.pretrained and self.start is None and self.width_factor != 1),
            f"--width-factor {self.width_factor:g} has no ImageNet weights: give --no-pretrained, or 1",
        )
        self._check_labels_and_stages()

    def _check_labels_and_stages(self) -> None:
        for name in ("further_people", "single_pictures"):
            require(
                not getattr(self, name) or self.labelled_people is not None,
                f"--{name.replace('_', '-')} {getattr(self, name)}: give --labelled-people too, or everybody is "
                "labelled",
            )
        require(
            not (self.stages and self.real_only_epochs),
            f"--real-only-epochs {self.real_only_epochs:g} with --stages: give a last stage with sources=real",
        )
        for stage in stages_of(self, self.steps or 1_000_000):
            check_bounds(stage.config)

    def _check_batch(self) -> None:
        share = self.check_workers()
        require(share >= 2, f"--batch {self.batch} gives each worker one image: batch norm needs two or more")
        require(
            self.sampler != "pk" or self.triplet_weight == 0 or self.instances >= 2,
            f"--instances {self.instances}: the triplet loss needs two images of a person or more",
        )

    def network(self, classes: int) -> ReidConfig:
        """The network's configuration."""
        mean, deviation = IMAGENET_MEAN, IMAGENET_DEVIATION
        if is_timm(self.backbone):  # many learnt from images with another mean and deviation
            stated = about(self.backbone)
            mean, deviation = stated.mean, stated.deviation
        return ReidConfig(
            classes=classes,
            backbone=self.backbone,
            neck=self.neck,
            stem=self.stem,
            height=self.height,
            width=self.width,
            last_stride=self.last_stride,
            embedding=self.embedding,
            activation=self.activation,
            dropout=self.dropout,
            domains=2 if self.separate_batchnorm else 1,
            width_factor=float(self.width_factor),
            mean=mean,
            deviation=deviation,
        )

    @property
    def labelled(self) -> Labelled:
        """Whose labels the training uses."""
        return Labelled(self.labelled_people, self.label_draw, self.further_people, self.single_pictures)

    def labelling(self, total_steps: int) -> Labelling:
        """How images become targets and weights."""
        return Labelling(
            real_smoothing=self.label_smoothing,
            people=self.people_labels,
            variants=self.variants_labels,
            generated_smoothing=self.generated_smoothing,
            generated_weight=self.generated_weight,
            ramp=self.step_of(self.ramp_epochs, total_steps),
        )

    def augmentation(self) -> AugmentConfig:
        """The augmentation of the images."""
        return AugmentConfig(flip=0.5 if self.mirror else 0.0, pad=self.pad, erase=self.erasing)

    def changes(self) -> tuple[Changes, Changes]:
        """The changes of real and of generated pictures."""
        real = Changes(self.surroundings, self.colours, self.jitter)
        options = (self.generated_surroundings, self.generated_colours, self.generated_jitter)
        names = ("surroundings", "colours", "jitter")
        given = {name: value for name, value in zip(names, options, strict=True) if value is not None}
        return real, dataclasses.replace(real, **given)

    def needs_donors(self) -> bool:
        """Whether any stage takes surroundings or colours from other pictures."""
        stages = stages_of(self, self.steps or 1_000_000)
        return any(change.needs_donors for stage in stages for change in stage.config.changes())

    def step_of(self, epochs: float, total_steps: int) -> int:
        """The step at which so many epochs are over: schedules stretch with `steps`."""
        return round(min(epochs / self.epochs, 1.0) * total_steps)

    def rate_factor(self, step: int, total_steps: int) -> float:
        """The factor of the learning rates in a step."""
        epoch = step / total_steps * self.epochs
        factor = 1.0
        if epoch < self.warmup_epochs:
            factor = 0.01 + 0.99 * epoch / self.warmup_epochs
        if self.schedule == "step":
            return factor * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)
        rest = max(epoch - self.warmup_epochs, 0) / max(self.epochs - self.warmup_epochs, 1e-9)
        return factor * (1 + math.cos(math.pi * min(rest, 1.0))) / 2
