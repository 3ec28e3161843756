"""Options of jobs/generate.py, the files that they name, the configuration that both freeze, and the stages."""

import dataclasses
import functools
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal

import ray
import tyro

from datasets.latents.partners import NO_WHO, check_generator, origins_of, real_codes
from datasets.latents.table import Latents, read_latents
from datasets.runs.card import PoseLayers, pose_layers
from datasets.runs.configuration import CAMERA, INTERPOLATE, MIX, RANDOM, RECIPE, Configuration, Origin
from datasets.runs.plan import LAYER_GROUPS, POSE, Plan, layers_text, parse_layers
from datasets.runs.run import GenerationRun
from datasets.runs.verdicts import Thresholds
from datasets.storage.local_copy import local_copy
from passersby import weights
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.options import Json
from passersby.yolo.detector_file import (
    BESIDE,
    PERHAPS_BESIDE,
    STUDY_SHA256,
    DetectorFile,
    check_options,
    chosen_detector,
    own_detector,
)
from pipeline.identity import Identity, identity_of
from pipeline.pools import Machines, Pool, Stage

if TYPE_CHECKING:
    from datasets.latents.partners import RealCodes
    from passersby.stylegan3 import Generator
    from passersby.stylegan3.checkpoint import LoadedNetwork

MOST_WS = 256  # more style inputs than any network has
THREADS = 1  # of every actor, on every machine: the number of threads can change the last bit of a score


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The checked files that people are made from: the network, and where given the latents of real people, a re-ID
    network with real pictures, and weights of YOLOv4-tiny or a detector of the user's own. network_address: the path or
    URI that `network` is the local copy of, where it is one; the network's card lies beside it."""

    network: Path
    latents: Latents | None = None
    identity: Identity | None = None
    yolo_weights: str | None = None
    detector: DetectorFile | None = None
    network_address: str | None = None

    @functools.cached_property
    def network_sha256(self) -> str:
        """The hash of the network's file. Raises InputError where it cannot be read."""
        return file_sha256(self.network, "--network")

    @functools.cached_property
    def pose(self) -> PoseLayers:
        """The layers that hold the network's pose. Raises InputError for a damaged card."""
        return pose_layers(self.network_address or self.network, self.network_sha256, self.num_ws)

    @functools.cached_property
    def num_ws(self) -> int:
        """Style inputs of the network. Raises InputError for a file that is no network."""
        from passersby.stylegan3.checkpoint import load_config  # needs PyTorch; a finished run does not

        return load_config(self.network).num_ws

    @functools.cached_property
    def loaded(self) -> "LoadedNetwork":
        """Everything in the network file. Raises InputError. It needs PyTorch, which a finished run does not."""
        from passersby.stylegan3.checkpoint import load_network

        return load_network(self.network)


@dataclasses.dataclass(frozen=True)
class Config:
    """Make people and pictures of each person, score the pictures, and store them with their scores.

    The people come from seeds, or with --latents they are real.
    The same command again does what is missing and nothing else. A larger --people extends a run.
    """

    out: Annotated[str, tyro.conf.arg(metavar="DIR_OR_URI")]
    """Where to write: a folder that every node sees, or a URI such as s3://bucket/run."""
    people: int | None = None
    """Number of people. By default 24, or with --latents everybody in the table.
    Person i has seed --seed + i; with --latents person i is the table's i-th person."""
    variants: int = 51
    """Pictures of each person, the base image included. 51 is the study's number."""
    seed: int = 0
    """Seed of the first person. `--seeds` of the reference StyleGAN3 tools makes the same person from it.
    The seed also decides which codes variants take styles from, with --latents too."""
    network: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """The generator: a reference .pkl, a .safetensors of ours, or a .pt state dict.
    By default the demo network, which has seen only drawn people."""
    latents: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """Make new pictures of real people instead of people from seeds.
    Give what jobs/invert.py wrote for this network: its folder or its latents.parquet."""
    partners: Literal["random", "people", "pictures"] = "random"
    """Whose styles a variant takes. random: those of a random code. people: those of another real person's picture.
    pictures: those of another picture of the same person; this needs --method interpolate.
    A person with only one picture is then not varied."""
    method: Literal["mix", "interpolate", "camera"] | None = None
    """mix: a variant takes the styles of the chosen layers from another code.
    interpolate: in the chosen layers a variant moves towards another code.
    camera: a variant keeps the half of its code that says who, and draws the half that says how the person is seen.
    By default camera for networks of jobs/train_gan.py --pairs, which alone have such halves; mix for all others.
    With --latents it needs people that jobs/invert.py --refine who has found, and is then the default."""
    layers: str | None = None
    """The layers in which variants differ: pose, coarse (0-5), middle (5-11), fine (12-15), all, or numbers like 3,5-8.
    Networks with other than 16 style inputs have the same shares of them; a StyleGAN2 of height 128 has 12.
    By default pose; with --method interpolate all. --method camera mixes no layers.
    pose: the layers that move the pose and keep the clothes, as the network's card says (jobs/score.py --card).
    Without a card pose means middle, the study's layers. A run that was begun keeps its layers."""
    amount: float | None = None
    """How far --method interpolate moves, the same in every variant; 1 reaches the other code. By default 0.5."""
    truncation_psi: float | None = None
    """Pulls every code towards the average person: 1 keeps the whole variety, 0 leaves only the average person.
    By default 0.7, which avoids rare people, whom the generator draws badly.
    With --latents and --method camera 1, with which jobs/invert.py found the people: less makes others of them."""
    height: int = 128
    """Height of the stored images in pixels."""
    width: int = 64
    """Width of the stored images in pixels."""
    format: Literal["jpeg", "png"] = "jpeg"
    """File format of the stored images."""
    jpeg_quality: int = 95
    """Quality of JPEG files, 1 to 100. It has no meaning for png."""
    detector_threshold: float = 0.6
    """Least score of the pedestrian filter.
    The first variant of a person that reaches it becomes the person's reference."""
    ssim_floor: float | None = 0.75
    """Least SSIM to the person's reference. None sets no floor."""
    ssim_ceiling: float | None = None
    """Greatest SSIM to the person's reference, against near-copies. None sets no ceiling."""
    ssim_data_range: float = 4095.0
    """Range of values that SSIM assumes. Images have 8 bits, but the study's tool assumed 4095.
    The floor of 0.75 has a meaning only beside 4095: at 255 nearly every image of another pose falls below it."""
    identity: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """A re-ID network of jobs/train_reid.py, layumi or torchreid. It compares each image with its person."""
    real: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Pictures of real people, which --identity compares with. With --latents: the data set of the latents."""
    identity_floor: float | None = None
    """Least cosine of an image to its person, as --identity sees them.
    For a real person the nearest real picture counts, for an artificial person the person's reference."""
    identity_margin: float | None = None
    """Least lead of an image's cosine to its person over its cosine to the nearest picture of any other real person.
    0 rejects an image that looks more like another real person than like its own person."""
    identity_ceiling: float | None = None
    """Greatest cosine of an image to a real picture, against near-copies of real pictures."""
    yolo_weights: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """Path of yolov4-tiny.weights, with its .cfg beside it, for machines without a package registry."""
    detector_file: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """A detector of your own in place of YOLOv4-tiny: a Darknet .weights with its .cfg beside it, or an .onnx.
    docs/filters.md says which are read, and how an .onnx states its input and output."""
    detector_person: int | None = None
    """With --detector-file: the number of the class of people, from 0.
    By default the class named person, in the .names beside the .weights or in the .onnx."""
    unit_images: int = 512
    """Most images of a unit, the piece of work that is stored at once. A person is never divided between units."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if the cluster has GPUs, else the CPU."""
    generators: int | None = None
    """Number of actors that make images. By default one for each GPU, or without GPUs one for each CPU."""
    detectors: int | None = None
    """Number of actors of the pedestrian filter. By default one for each GPU, or without GPUs one for each CPU."""
    identifiers: int | None = None
    """Number of actors of --identity. By default one for each GPU, or without GPUs one for each CPU."""
    gpus_per_generator: float | None = None
    """GPUs of each generator; a fraction shares a card. By default 0.6, so that each card gets one generator."""
    gpus_per_detector: float | None = None
    """GPUs of each detector; a fraction shares a card.
    By default 0.4, which the generator leaves; with --identity 0.24."""
    gpus_per_identifier: float | None = None
    """GPUs of each actor of --identity; a fraction shares a card.
    By default 0.16, which the generator and the detector leave."""
    gpus: int | None = None
    """Ask the autoscaler for this number of GPUs and wait until they are there.
    By default the job takes the GPUs that it finds."""
    gpu_minutes: float = 20.0
    """How many minutes to wait for --gpus."""
    dry_run: bool = False
    """Print the plan, the pools, the expected time and disk space; write nothing."""

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds that an image must reach to be kept. Raises InputError."""
        return Thresholds(
            detector=self.detector_threshold,
            ssim_floor=self.ssim_floor,
            ssim_ceiling=self.ssim_ceiling,
            identity_floor=self.identity_floor,
            identity_margin=self.identity_margin,
            identity_ceiling=self.identity_ceiling,
        )

    @property
    def machines(self) -> Machines:
        """The machines that the stages may run on."""
        return Machines(self.device, self.gpus, self.gpu_minutes)

    def inputs(self) -> Inputs:
        """The checked files that people are made from. Raises InputError."""
        network = local_copy(self.network, "--network") if self.network else weights.DEMO_NETWORK
        latents = read_latents(self.latents) if self.latents is not None else None
        needing = {
            "--identity-floor": self.identity_floor,
            "--identity-margin": self.identity_margin,
            "--identity-ceiling": self.identity_ceiling,
            "--identifiers": self.identifiers,
            "--gpus-per-identifier": self.gpus_per_identifier,
        }
        identity = identity_of(self.identity, self.real, latents, needing)
        detector = fetched_detector(self.detector_file, self.detector_person, self.yolo_weights)
        return Inputs(network, latents, identity, self.yolo_weights, detector, self.network)

    def chosen_layers(self, inputs: Inputs, existing: Plan | None = None) -> tuple[tuple[int, ...], str | None]:
        """The layers in which variants differ, and a line for the user where the command does not name them.

        A plan freezes the layers that "pose" stood for when its folder was begun: a card that was measured later does
        not change them. Raises InputError.
        """
        method, _ = self._method(inputs, existing)
        if method == CAMERA:
            if self.layers is None:
                return (), None
            raise InputError(f"--layers {self.layers}: --method camera mixes no layers; give --method mix to mix them")
        text = self.layers if self.layers is not None else POSE if method == MIX else "all"
        layers = None if existing is None else existing.configuration.layers
        if text != POSE:
            if layers and text not in LAYER_GROUPS and parse_layers(text, MOST_WS) == layers:
                return layers, None  # the network was asked when the folder was begun
            return parse_layers(text, inputs.num_ws), None
        if layers:
            return layers, f"layers {layers_text(layers)}, which the plan of the folder says"
        return inputs.pose.layers, inputs.pose.reason

    def frozen(self, inputs: Inputs, existing: Plan | None = None) -> Configuration:
        """The checked part of the options and inputs that changes the bytes of images.

        Origins come from an `existing` plan of the same latents, because the last bits of a machine may decide which of
        two pictures is nearer to a code. Raises InputError.
        """
        method, cameras = self._method(inputs, existing)
        latents = inputs.latents
        if method != INTERPOLATE and self.amount is not None:
            raise InputError(f"--amount {self.amount}: it belongs to --method interpolate")
        layers, _ = self.chosen_layers(inputs, existing)
        network = inputs.network_sha256
        origins: tuple[Origin, ...] = ()
        if latents is not None:
            check_generator(latents, network, str(inputs.network))
            if existing is not None and existing.configuration.latents == latents.sha256:
                origins = existing.configuration.origins
            else:
                origins = origins_of(latents)
        psi = self.truncation_psi
        if psi is None:
            psi = 1.0 if method == CAMERA and latents is not None else 0.7
        return Configuration(
            seed=self.seed,
            variants=self.variants,
            method=method,
            layers=layers,
            amount=None if method != INTERPOLATE else 0.5 if self.amount is None else self.amount,
            truncation_psi=psi if latents is None or self.partners == RANDOM else None,
            network=network,
            height=self.height,
            width=self.width,
            format=self.format,
            jpeg_quality=self.jpeg_quality if self.format == "jpeg" else None,
            unit_images=self.unit_images,
            detector=inputs.detector.sha256 if inputs.detector else STUDY_SHA256,  # `weights.get` takes no other
            reference_threshold=self.detector_threshold,
            ssim_data_range=self.ssim_data_range,
            recipe=RECIPE,
            latents=None if latents is None else latents.sha256,
            partners=self.partners,
            origins=origins,
            identity=inputs.identity and inputs.identity.sha256,
            real=inputs.identity and inputs.identity.fingerprint,
            detector_setup=inputs.detector and inputs.detector.setup,
            cameras=cameras,
        )

    def _method(self, inputs: Inputs, existing: Plan | None) -> tuple[str, tuple[int, ...]]:
        """The method, and for the method camera the cameras that the network has labels for."""
        if self.method in (MIX, INTERPOLATE):
            return self.method, ()
        if existing is not None and self.method == existing.configuration.method:
            return CAMERA, existing.configuration.cameras  # without reading the network again
        if self.layers not in (None, POSE):
            parse_layers(self.layers)  # its refusals, before the network is read
        network = inputs.loaded
        if not network.has_who:
            if self.method is None:
                return MIX, ()
            raise InputError(
                f"--method camera: the record of {inputs.network.name} names no half of its codes that says who, as "
                "networks of jobs/train_gan.py --pairs have: give such a network, or --method mix"
            )
        if inputs.latents is not None and inputs.latents.whos is None:
            if self.method is None:
                return MIX, ()
            raise InputError(f"--method camera: {NO_WHO}, or give --method mix")
        return CAMERA, network.cameras


def fetched_detector(address: str | None, person: int | None, yolo_weights: str | Path | None) -> DetectorFile | None:
    """The detector of --detector-file, a path or a URI; None without the option.

    Raises InputError for a file that is no such detector, and for options that do not go together.
    """
    check_options(address, person, yolo_weights)
    if address is None:
        return None
    beside = BESIDE.get(PurePosixPath(address).suffix, ())
    return own_detector(local_copy(address, "--detector-file", beside, PERHAPS_BESIDE), person)


def options_begun(plan: Plan) -> dict[str, Json | Path]:
    """The options that a run was begun with, without the options that every start decides anew."""
    c = plan.configuration
    names = ["variants", "seed", "partners", "method", "height", "width", "format", "ssim_data_range", "unit_images"]
    names += [name for name in ("amount", "truncation_psi", "jpeg_quality") if getattr(c, name) is not None]
    layers = {"layers": ",".join(map(str, c.layers))} if c.layers else {}
    return {name: getattr(c, name) for name in names} | {"people": plan.people} | layers


@dataclasses.dataclass(frozen=True, eq=False)
class Materials:
    """The inputs as the stages need them, in this process: the generator, the files of the pedestrian filter, and the
    codes of real people. For artificial people `codes` is None."""

    generator: "Generator"
    detector: DetectorFile
    codes: "RealCodes | None"

    @classmethod
    def load(cls, run: GenerationRun, inputs: Inputs, generator: "Generator") -> "Materials":
        """Raises InputError where the inputs do not belong together. This is before Ray starts, which takes seconds."""
        from actors.style_mixer import check_network

        c = run.plan.configuration
        codes = real_codes(inputs.latents, c, run.plan.people) if inputs.latents else None
        check_network(generator.config, c, codes)
        path = inputs.yolo_weights
        path = local_copy(path, "--yolo-weights", beside=(".cfg",)) if path else None
        detector = chosen_detector(inputs.detector, path)
        if inputs.detector:
            from passersby.yolo.pedestrian_filter import PedestrianFilter

            PedestrianFilter(detector.path, c.height, c.width, **detector.arguments)  # refuses what cannot be computed
        if inputs.identity:
            _ = inputs.identity.network  # refuses a file that is no re-ID network
        return cls(generator, detector, codes)


def generation_stages(
    config: Config, run: GenerationRun, inputs: Inputs, materials: Materials, device: str
) -> list[Stage]:
    """The pipeline: every stage with its arguments and its requested actors, on the connected cluster."""
    from actors.identity_scorer import IdentityScorer
    from actors.pedestrian_detector import PedestrianDetector
    from actors.shard_writer import ShardWriter
    from actors.similarity_scorer import SimilarityScorer
    from actors.style_mixer import StyleMixer

    c = run.plan.configuration
    execution = {"device": device, "threads": THREADS}
    codes = {"codes": ray.put(materials.codes)} if materials.codes else {}
    mixing = {"generator": ray.put(materials.generator), "configuration": c, **codes, **execution}
    detecting = {"weights": ray.put(materials.detector.contents()), "height": c.height, "width": c.width, **execution}
    detecting |= materials.detector.arguments
    comparing = {"detector_threshold": c.reference_threshold, "data_range": c.ssim_data_range, "threads": THREADS}
    writing = {"address": run.output.secret_address, "plan_hash": run.hash, "thresholds": config.thresholds}
    stages = [
        Stage(StyleMixer, mixing, Pool("generators", config.generators, gpus=config.gpus_per_generator)),
        Stage(PedestrianDetector, detecting, Pool("detectors", config.detectors, gpus=config.gpus_per_detector)),
        Stage(SimilarityScorer, comparing, Pool("scorers", cpus=0.25)),
    ]
    if inputs.identity:
        network, real = inputs.identity.compared_with(c, device, config.dry_run)
        scoring = {"network": ray.put(network), "real": None if real is None else ray.put(real), **execution}
        pool = Pool("identifiers", config.identifiers, gpus=config.gpus_per_identifier)
        stages.append(Stage(IdentityScorer, scoring, pool))
    return [*stages, Stage(ShardWriter, writing, Pool("writers", cpus=0.25))]
