"""People from seeds: made, varied, filtered and committed, unit by unit, on Ray."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Literal

import ray
import tyro

from actors.shard_writer import STAGES, ShardWriter
from datasets.output import Output
from datasets.plan import PLAN_FILE, Configuration, Plan, Unit, agree, file_sha256, parse_layers, read_plan
from datasets.shards import finished_units
from datasets.verdicts import Thresholds
from jobs.common import Pool, connect, fit_pools, resources, run_job, run_units
from models import weights
from models.errors import InputError
from reporting.forecast import forecast
from reporting.progress import ProgressLine
from reporting.results import REPORT, SHEET, RunTimes, counts_of, is_published, publish, read_summary
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
    network: Path | None = None
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
    yolo_weights: Path | None = None
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
    """GPUs of each generator, fractions allowed; by default half of one."""
    gpus_per_detector: float | None = None
    """GPUs of each detector, fractions allowed; by default half of one."""
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


def main(config: Config) -> None:
    """Plan, make what is missing, derive what people look at."""
    thresholds = Thresholds(config.detector_threshold, config.ssim_floor, config.ssim_ceiling)
    output, path = Output(config.out), config.network or weights.DEMO_NETWORK
    plan = agree(read_plan(output), config.frozen(path), config.people)
    pending = plan.pending(finished_units(output))
    print(plan.describe(len(pending), config.people), flush=True)
    times = make(config, output, plan, pending, thresholds, path) if pending else None
    if config.dry_run:
        return
    if times or not is_published(output, plan, thresholds):
        publish(output, plan, thresholds, network_record(path), times)
    print(discard_table(counts_of(read_summary(output))))
    print(f"contact sheet: {output.address(SHEET)}\nreport: {output.address(REPORT)}")


def make(
    config: Config, output: Output, plan: Plan, pending: list[Unit], thresholds: Thresholds, path: Path
) -> RunTimes | None:
    """Make the pending units: the pipeline. None, and nothing written, on a dry run."""
    from actors.pedestrian_detector import PedestrianDetector  # here, as they bring PyTorch: a finished
    from actors.similarity_scorer import SimilarityScorer  # run, which does nothing, should do it quickly
    from actors.style_mixer import StyleMixer, check_network
    from models.stylegan3.checkpoint import load_network

    c, generator = plan.configuration, load_network(path).generator
    check_network(generator.config, c)
    detector = weights.get("yolov4-tiny", config.yolo_weights)
    connect()
    pools, device = plan_pools(config, len(pending))
    here = {"device": device, "threads": THREADS}
    stages = [
        (StyleMixer, {"generator": ray.put(generator), "configuration": c, **here}),
        (
            PedestrianDetector,
            {"weights": ray.put(weights.contents(detector)), "height": c.height, "width": c.width, **here},
        ),
        (
            SimilarityScorer,
            {"detector_threshold": c.reference_threshold, "data_range": c.ssim_data_range, "threads": THREADS},
        ),
        (ShardWriter, {"address": output.root_address, "plan_hash": c.hash, "thresholds": thresholds}),
    ]
    images = sum(unit.people for unit in pending) * c.variants
    if config.dry_run:
        return print(forecast(stages[:-1], pools, images, resources().cpus, output))
    output.write(PLAN_FILE, plan.to_json())
    output.remove_leftovers()
    start, seconds = time.monotonic(), dict.fromkeys(STAGES, 0.0)
    unit_bytes = max(unit.people for unit in pending) * c.person_pixel_bytes
    done = (plan.unit_count - len(pending), plan.images - images)
    with ProgressLine(plan.unit_count, plan.images, *done) as line:
        for row in run_units([dataclasses.asdict(unit) for unit in pending], stages, pools, unit_bytes):
            if row["problem"]:
                raise InputError(row["problem"])
            line.update(row["images"], row["kept"])
            for stage in STAGES:
                seconds[stage] += row[f"seconds_{stage}"]
    return RunTimes(time.monotonic() - start, images, seconds)


def network_record(path: Path) -> dict:
    """What is known about the network, for the report."""
    from models.stylegan3.checkpoint import load_network

    network = load_network(path)
    return {"file": path.name, "sha256": network.sha256, **network.record}


def plan_pools(config: Config, units: int) -> tuple[list[Pool], str]:
    """The resources of every stage, printed, and the device of the heavy ones."""
    cluster = resources()
    device = config.device
    if device == "auto":
        device = "cuda" if cluster.gpus >= 1 else "cpu"
        print(f"{cluster.gpus:g} GPUs: running on CUDA" if device == "cuda" else "no GPU here: running on the CPU")
    requests = [
        Pool("generators", config.generators, gpus=config.gpus_per_generator),
        Pool("detectors", config.detectors, gpus=config.gpus_per_detector),
        Pool("scorers", cpus=0.25),
        Pool("writers", cpus=0.25),
    ]
    pools = fit_pools(requests, cluster, device == "cuda", units)
    print(f"pools: {', '.join(map(str, pools))} of {cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs", flush=True)
    return pools, device


if __name__ == "__main__":
    run_job(main, Config)
