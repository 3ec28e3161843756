"""People from seeds, or real ones from latents: made, varied, filtered and committed, unit by unit, on Ray."""

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
    """Make people, artificial or real, and pictures of each, filter them, and write them with their scores.

    The same command again does what is missing and nothing else; more --people extend a run.
    """

    out: Annotated[str, tyro.conf.arg(metavar="DIR_OR_URI")]
    """Where to write: a folder that every node sees, or a URI such as s3://bucket/run."""
    people: int | None = None
    """Number of people, by default 24, with --latents all. Person i is seed + i, or the i-th of the latents."""
    variants: int = 51
    """Pictures of each person, the base image among them; the study's number."""
    seed: int = 0
    """Seed of the first person: the same person as `--seeds` of the reference StyleGAN3 tools. It decides
    what variants take, too, also with --latents."""
    network: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """A reference .pkl, a .safetensors of ours or a .pt state dict; by default the demo network (a toy)."""
    latents: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """Real people instead of seeds: what jobs/invert.py wrote with this network, a folder or its latents.parquet."""
    partners: Literal["random", "people", "pictures"] = "random"
    """Whose styles variants take. people: other real people's pictures. pictures: the person's other pictures, with
    interpolate; who has one picture only is not varied."""
    method: Literal["mix", "interpolate"] = "mix"
    """mix: a variant takes the chosen layers' styles from another code. interpolate: it moves towards one."""
    layers: str | None = None
    """coarse (0-5), middle (5-11, poses; default of mix), fine (12-15), all (default of interpolate), or
    3,5-8."""
    amount: float | None = None
    """How far interpolate moves, 1 being the other code; the same in every variant. By default 0.5."""
    truncation_psi: float = 0.7
    """Pulls codes towards the average person: 1 whole variety, 0 none. 0.7 avoids the rare, which is
    drawn badly."""
    height: int = 128
    """Height of the stored images in pixels."""
    width: int = 64
    """Width of the stored images in pixels."""
    format: Literal["jpeg", "png"] = "jpeg"
    """File format of the stored images."""
    jpeg_quality: int = 95
    """1 to 100; without a meaning for png."""
    detector_threshold: float = 0.6
    """Least score of the pedestrian filter. The first variant that reaches it is its person's reference."""
    ssim_floor: float | None = 0.75
    """Least SSIM to the person's reference; None for no floor."""
    ssim_ceiling: float | None = None
    """Greatest SSIM to the person's reference, against near-copies; None for no ceiling."""
    ssim_data_range: float = 4095.0
    """Range of values SSIM assumes. Images are 8 bit, but the study's tool said 4095, and its floor of
    0.75 means something only beside that: at 255 nearly every image of another pose falls below it."""
    identity: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """A re-ID network (jobs/train_reid.py, layumi, torchreid) that compares each image with its person."""
    real: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Pictures of real people for --identity: with --latents the data set they were made of."""
    identity_floor: float | None = None
    """Least cosine to the person: to a real picture, or to an artificial person's reference."""
    identity_margin: float | None = None
    """Least lead of that cosine over the one to anybody else's real picture: 0 keeps images liker nobody else."""
    identity_ceiling: float | None = None
    """Greatest cosine to a real picture, against near-copies."""
    yolo_weights: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """yolov4-tiny.weights with its .cfg beside it, for machines without a package registry."""
    unit_images: int = 512
    """Most images of a unit, the piece of work that is committed at once (more if one person has more)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA when the cluster has GPUs."""
    generators: int | None = None
    """Actors that make images; by default one a GPU, without GPUs one a CPU."""
    detectors: int | None = None
    """Actors of the pedestrian filter; by default as many."""
    identifiers: int | None = None
    """Actors of --identity; by default as many."""
    gpus_per_generator: float | None = None
    """GPUs of each generator, fractions allowed; by default 0.6, so that each card gets one."""
    gpus_per_detector: float | None = None
    """GPUs of each detector, fractions allowed; by default the 0.4 beside a generator, with --identity 0.24."""
    gpus_per_identifier: float | None = None
    """GPUs of each actor of --identity, fractions allowed; by default the 0.16 beside the others."""
    gpus: int | None = None
    """Ask the autoscaler for so many GPUs and wait until they are there; by default take what is there."""
    gpu_minutes: float = 20.0
    """How long to wait for them."""
    dry_run: bool = False
    """Print plan, pools, expected time and disk; write nothing."""

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
