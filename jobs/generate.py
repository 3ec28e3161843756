"""People from seeds: made, varied, filtered and committed, unit by unit, on Ray."""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Annotated, Literal

import ray
import tyro

from actors.shard_writer import ShardWriter
from datasets.inputs import local_copy
from datasets.lease import hold
from datasets.output import Output
from datasets.plan import Configuration, Plan, Unit, agree, file_sha256, parse_layers, read_plan
from datasets.shards import finished_units
from datasets.verdicts import Thresholds
from jobs.common import connect, run_job
from models import weights
from models.errors import InputError
from pipeline.cluster import resources, wait_for_gpus
from pipeline.commit import failure_advice, make_units
from pipeline.pools import Pool, describe, fit_pools
from reporting.forecast import forecast
from reporting.results import REPORT, SHEET, counts_of, is_published, publish, read_summary
from reporting.tables import discard_table

THREADS = 1  # of every actor, whatever the machine: their number can change the last bit of a score


@dataclasses.dataclass(frozen=True)
class Config:
    """Make artificial people and pictures of each, filter them, and write them with their scores.

    The same command again does what is missing and nothing else; more --people extend a run.
    """

    out: Annotated[str, tyro.conf.arg(metavar="DIR_OR_URI")]
    """Where to write: a folder that every node sees, or a URI such as s3://bucket/run."""
    people: int = 24
    """Number of people. Person i is seed + i."""
    variants: int = 51
    """Pictures of each person, the base image among them; the study's number."""
    seed: int = 0
    """Seed of the first person: the same person as `--seeds` of the reference StyleGAN3 tools."""
    network: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """A reference .pkl, a .safetensors of ours or a .pt state dict; by default the demo network (a toy)."""
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
    gpus_per_generator: float | None = None
    """GPUs of each generator, fractions allowed; by default 0.6, so that each card gets one."""
    gpus_per_detector: float | None = None
    """GPUs of each detector, fractions allowed; by default the 0.4 beside a generator."""
    gpus: int | None = None
    """Ask the autoscaler for so many GPUs and wait until they are there; by default take what is there."""
    gpu_minutes: float = 20.0
    """How long to wait for them."""
    dry_run: bool = False
    """Print plan, pools, expected time and disk; write nothing."""

    def frozen(self, network: Path) -> Configuration:
        """The part that changes bytes, checked. Raises InputError."""
        mix = self.method == "mix"
        if mix and self.amount is not None:
            raise InputError(f"--amount {self.amount}: it belongs to --method interpolate")
        fields = {field.name for field in dataclasses.fields(Configuration)}
        derived = {
            "layers": parse_layers(self.layers if self.layers is not None else "middle" if mix else "all"),
            "amount": None if mix else 0.5 if self.amount is None else self.amount,
            "jpeg_quality": self.jpeg_quality if self.format == "jpeg" else None,
            "network": file_sha256(network, "--network"),
            "detector": weights.WEIGHTS["yolov4-tiny"].files[0].sha256,  # `weights.get` takes no other
            "reference_threshold": self.detector_threshold,
        }
        return Configuration(**({name: vars(self)[name] for name in vars(self).keys() & fields} | derived))


def main(config: Config) -> int | None:
    """Plan, make what is missing, derive what people look at. Returns 1 when units failed for good."""
    thresholds = Thresholds(config.detector_threshold, config.ssim_floor, config.ssim_ceiling)
    output = Output(config.out)
    network = local_copy(config.network, "--network") if config.network else weights.DEMO_NETWORK
    configuration = config.frozen(network)
    plan = agree(read_plan(output), configuration, config.people)
    pending = plan.pending(finished_units(output))
    print(plan.describe(len(pending), config.people), flush=True)
    if config.dry_run:
        return expect(config, output, plan, thresholds, network, pending) if pending else None
    if (pending or not is_published(output, plan, thresholds)) and make(
        config, output, configuration, thresholds, network
    ):
        return 1
    print(discard_table(counts_of(read_summary(output))))
    print(f"contact sheet: {output.address(SHEET)}\nreport: {output.address(REPORT)}")
    return 0


def expect(
    config: Config, output: Output, plan: Plan, thresholds: Thresholds, network: Path, pending: list[Unit]
) -> None:
    """A dry run: print what the pending units will take."""
    from models.stylegan3.checkpoint import load_network

    stages, device = prepare(config, output, plan, thresholds, load_network(network).generator)
    images = sum(unit.people for unit in pending) * plan.configuration.variants
    print(forecast(stages[:-1], plan_pools(config, device, len(pending)), images, resources().cpus, output))


def make(
    config: Config, output: Output, configuration: Configuration, thresholds: Thresholds, network: Path
) -> int | None:
    """Make what is missing, as the only driver in this folder; returns how many units failed for good."""
    from models.stylegan3.checkpoint import load_network  # it brings PyTorch: a finished run is quick without

    with hold(output) as lease:
        plan = agree(read_plan(output), configuration, config.people)  # another driver may just have ended
        pending = plan.pending(finished_units(output))
        loaded, times = load_network(network), None
        if pending:
            stages, device = prepare(config, output, plan, thresholds, loaded.generator)
            pools = plan_pools(config, device, len(pending))  # what does not fit is refused before anything is written
            again = functools.partial(plan_pools, config, device)
            times, failed = make_units(output, plan, pending, stages, pools, again, lease)
            if failed:
                print(failure_advice(output, failed), file=sys.stderr)
                return failed
        record = {"file": network.name, "sha256": loaded.sha256, **loaded.record}
        publish(output, plan, thresholds, record, times)
    return None


def prepare(
    config: Config, output: Output, plan: Plan, thresholds: Thresholds, generator: object
) -> tuple[list[tuple[type, dict]], str]:
    """The pipeline: its stages with their arguments, and the device of the heavy ones, on the connected cluster."""
    from actors.pedestrian_detector import PedestrianDetector
    from actors.similarity_scorer import SimilarityScorer
    from actors.style_mixer import StyleMixer, check_network

    c = plan.configuration
    check_network(generator.config, c)
    own = local_copy(config.yolo_weights, "--yolo-weights", beside=(".cfg",)) if config.yolo_weights else None
    detector = weights.contents(weights.get("yolov4-tiny", own))
    connect()
    if config.gpus and not config.dry_run:
        wait_for_gpus(config.gpus, config.gpu_minutes)
    device, gpus = config.device, resources().gpus
    if device == "auto":
        device = "cuda" if gpus else "cpu"
        print(f"{gpus} GPUs: running on CUDA" if gpus else "no GPU here: running on the CPU")
    here = {"device": device, "threads": THREADS}
    scoring = {"detector_threshold": c.reference_threshold, "data_range": c.ssim_data_range, "threads": THREADS}
    stages = [
        (StyleMixer, {"generator": ray.put(generator), "configuration": c, **here}),
        (PedestrianDetector, {"weights": ray.put(detector), "height": c.height, "width": c.width, **here}),
        (SimilarityScorer, scoring),
        (ShardWriter, {"address": output.secret_address, "plan_hash": c.hash, "thresholds": thresholds}),
    ]
    return stages, device


def plan_pools(config: Config, device: str, units: int) -> list[Pool]:
    """The resources of every stage on the cluster as it is, printed."""
    requests = [
        Pool("generators", config.generators, gpus=config.gpus_per_generator),
        Pool("detectors", config.detectors, gpus=config.gpus_per_detector),
        Pool("scorers", cpus=0.25),
        Pool("writers", cpus=0.25),
    ]
    if config.gpus and device == "cuda" and not resources().gpus:
        wait_for_gpus(1, config.gpu_minutes)  # the last one was lost on the way
    cluster = resources()
    pools = fit_pools(requests, cluster, device == "cuda", units)
    print(describe(pools, cluster), flush=True)
    return pools


if __name__ == "__main__":
    run_job(main, Config)
