"""Make people from seeds, or new pictures of real people from latents; score and store the pictures, on Ray."""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import ray
import tyro

from actors.shard_writer import ShardWriter
from datasets.latents.partners import real_codes
from datasets.runs.configuration import Configuration
from datasets.runs.plan import Plan, Unit, agree, read_plan
from datasets.runs.rows import people_without_partners
from datasets.runs.shards import finished_units
from datasets.runs.verdicts import Thresholds
from datasets.storage.local_copy import local_copy
from datasets.storage.lock import hold
from datasets.storage.output import Output
from jobs.common import connect, given, run_job
from passersby import weights
from passersby.options import Json
from pipeline.cluster import resources, wait_for_gpus
from pipeline.commit import failure_advice, make_units
from pipeline.generation import Choices, Here, Inputs, freeze, read_inputs
from pipeline.pools import Pool, describe, fit_pools
from reporting.grid import discard_table, filters_set
from reporting.run.forecast import forecast
from reporting.run.results import REPORT, SHEET, counts_of, is_published, publish, read_summary

if TYPE_CHECKING:
    from passersby.stylegan3 import Generator

THREADS = 1  # of every actor, whatever the machine: their number can change the last bit of a score


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
    method: Literal["mix", "interpolate"] = "mix"
    """mix: a variant takes the styles of the chosen layers from another code.
    interpolate: in the chosen layers a variant moves towards another code."""
    layers: str | None = None
    """The layers in which variants differ: coarse (0-5), middle (5-11), fine (12-15), all, or numbers such as 3,5-8.
    By default middle, which moves poses in the study's network; with --method interpolate all."""
    amount: float | None = None
    """How far --method interpolate moves, the same in every variant; 1 reaches the other code. By default 0.5."""
    truncation_psi: float = 0.7
    """Pulls every code towards the average person: 1 keeps the whole variety, 0 leaves only the average person.
    0.7 avoids rare people, whom the generator draws badly."""
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
        """What an image must reach to be kept. Raises InputError."""
        return Thresholds(
            detector=self.detector_threshold,
            ssim_floor=self.ssim_floor,
            ssim_ceiling=self.ssim_ceiling,
            identity_floor=self.identity_floor,
            identity_margin=self.identity_margin,
            identity_ceiling=self.identity_ceiling,
        )

    def inputs(self) -> Inputs:
        """The files that people are made from, looked at. Raises InputError."""
        needing = {
            "--identity-floor": self.identity_floor,
            "--identity-margin": self.identity_margin,
            "--identity-ceiling": self.identity_ceiling,
            "--identifiers": self.identifiers,
            "--gpus-per-identifier": self.gpus_per_identifier,
        }
        return read_inputs(self.network, self.latents, self.identity, self.real, needing)

    def frozen(self, inputs: Inputs, existing: Plan | None = None) -> Configuration:
        """The part that changes bytes, checked; `existing` as for `freeze`. Raises InputError."""
        choices = Choices(
            seed=self.seed,
            variants=self.variants,
            partners=self.partners,
            method=self.method,
            layers=self.layers,
            amount=self.amount,
            truncation_psi=self.truncation_psi,
            height=self.height,
            width=self.width,
            format=self.format,
            jpeg_quality=self.jpeg_quality,
            detector_threshold=self.detector_threshold,
            ssim_data_range=self.ssim_data_range,
            unit_images=self.unit_images,
        )
        return freeze(choices, inputs, existing)


def begun(out: str, arguments: list[str]) -> dict[str, Json | Path]:
    """The options of the run that lies in a folder, for `jobs.common.parse`: none where there is no run."""
    plan = read_plan(Output(out))
    if plan is None:
        return {}
    c = plan.configuration
    names = ["variants", "seed", "partners", "method", "height", "width", "format", "ssim_data_range", "unit_images"]
    names += [name for name in ("amount", "truncation_psi", "jpeg_quality") if getattr(c, name) is not None]
    values = {name: getattr(c, name) for name in names}
    values |= {"people": plan.people, "layers": ",".join(map(str, c.layers))}
    if given(arguments, "method") not in (None, c.method):  # another method has defaults of its own
        values = {name: value for name, value in values.items() if name not in ("amount", "layers")}
    return values


def main(config: Config) -> int | None:
    """Plan, make what is missing, derive what people look at. Returns 1 when units failed for good."""
    thresholds, output = config.thresholds, Output(config.out)
    inputs, existing = config.inputs(), read_plan(output)
    configuration = config.frozen(inputs, existing)
    people = config.people
    if people is None:
        people = inputs.latents.people if inputs.latents else 24
    plan = agree(existing, configuration, people)
    pending = plan.pending(finished_units(output))
    print(plan.describe(len(pending), people), flush=True)
    if note := people_without_partners(configuration, plan.people):
        print(note, file=sys.stderr)
    if config.dry_run:
        return expect(config, output, plan, inputs, pending) if pending else None
    if (pending or not is_published(output, plan, thresholds)) and make(config, output, configuration, people, inputs):
        return 1
    print(discard_table(counts_of(read_summary(output)), filters_set(dataclasses.asdict(thresholds))))
    print(f"contact sheet: {output.address(SHEET)}\nreport: {output.address(REPORT)}")
    return 0


def expect(config: Config, output: Output, plan: Plan, inputs: Inputs, pending: list[Unit]) -> None:
    """A dry run: print what the pending units will take."""
    from passersby.stylegan3.checkpoint import load_network

    stages, device = prepare(config, output, plan, inputs, load_network(inputs.network).generator)
    images = sum(unit.people for unit in pending) * plan.configuration.variants
    pools = plan_pools(config, device, len(pending))
    print(forecast(stages[:-1], pools, images, resources().cpus, output))


def make(config: Config, output: Output, configuration: Configuration, people: int, inputs: Inputs) -> int | None:
    """Make what is missing, as the only driver in this folder; returns how many units failed for good."""
    from passersby.stylegan3.checkpoint import load_network  # it brings PyTorch: a finished run is quick without

    with hold(output) as lease:
        plan = agree(read_plan(output), configuration, people)  # another driver may just have ended
        pending = plan.pending(finished_units(output))
        loaded, times = load_network(inputs.network), None
        if pending:
            stages, device = prepare(config, output, plan, inputs, loaded.generator)
            pools = plan_pools(config, device, len(pending))  # what does not fit is refused before anything is written
            again = functools.partial(plan_pools, config, device, fewer=True)
            times, failed = make_units(output, plan, pending, stages, pools, again, lease)
            if failed:
                print(failure_advice(output, failed), file=sys.stderr)
                return failed
        if inputs.identity:
            inputs.identity.look_for_copies(output, plan, config.device)
        record = {"file": inputs.network.name, "sha256": loaded.sha256, **loaded.record}
        publish(output, plan, config.thresholds, record, times)
    return None


def prepare(
    config: Config, output: Output, plan: Plan, inputs: Inputs, generator: "Generator"
) -> tuple[list[tuple[type, dict]], str]:
    """The pipeline: its stages with their arguments, and the device of the heavy ones, on the connected cluster."""
    from actors.pedestrian_detector import PedestrianDetector
    from actors.similarity_scorer import SimilarityScorer
    from actors.style_mixer import StyleMixer, check_network

    c = plan.configuration
    codes = real_codes(inputs.latents, c, plan.people) if inputs.latents else None
    check_network(generator.config, c, codes)
    own = local_copy(config.yolo_weights, "--yolo-weights", beside=(".cfg",)) if config.yolo_weights else None
    detector = weights.contents(weights.get("yolov4-tiny", own))
    if inputs.identity:
        _ = inputs.identity.network  # a file that is none is refused before Ray starts
    connect()
    if config.gpus and not config.dry_run:
        wait_for_gpus(config.gpus, config.gpu_minutes)
    device, gpus = config.device, resources().gpus
    if device == "auto":
        device = "cuda" if gpus else "cpu"
        print(f"{gpus} GPUs: running on CUDA" if gpus else "no GPU here: running on the CPU")
    here: Here = {"device": device, "threads": THREADS}
    people = {"codes": ray.put(codes)} if codes else {}
    scoring = {"detector_threshold": c.reference_threshold, "data_range": c.ssim_data_range, "threads": THREADS}
    stages = [
        (StyleMixer, {"generator": ray.put(generator), "configuration": c, **people, **here}),
        (PedestrianDetector, {"weights": ray.put(detector), "height": c.height, "width": c.width, **here}),
        (SimilarityScorer, scoring),
        *([inputs.identity.stage(c, here, config.dry_run)] if inputs.identity else []),
        (ShardWriter, {"address": output.secret_address, "plan_hash": c.hash, "thresholds": config.thresholds}),
    ]
    return stages, device


def plan_pools(config: Config, device: str, units: int, fewer: bool = False) -> list[Pool]:
    """The resources of every stage on the cluster as it is, printed; `fewer` as for `fit_pools`."""
    requests = [
        Pool("generators", config.generators, gpus=config.gpus_per_generator),
        Pool("detectors", config.detectors, gpus=config.gpus_per_detector),
        Pool("scorers", cpus=0.25),
        *([Pool("identifiers", config.identifiers, gpus=config.gpus_per_identifier)] if config.identity else []),
        Pool("writers", cpus=0.25),
    ]
    if config.gpus and device == "cuda" and not resources().gpus:
        wait_for_gpus(1, config.gpu_minutes)  # the last one was lost on the way
    cluster = resources()
    pools = fit_pools(requests, cluster, device == "cuda", units, fewer)
    print(describe(pools, cluster), flush=True)
    return pools


if __name__ == "__main__":
    run_job(main, Config, begun=begun)
