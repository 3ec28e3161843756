"""Find latent codes of real people's pictures: encode, refine and store them, unit by unit, on Ray."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from datasets.latents.pictures import Pictures, check_splits, list_pictures
from datasets.latents.plan import InversionConfiguration, InversionPlan, agree, read_inversion_plan
from datasets.runs.shards import finished_units
from datasets.storage.local_copy import local_copy
from datasets.storage.lock import hold
from datasets.storage.output import Output
from jobs.common import connect, given, run_job
from passersby import weights
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.options import Json, flag
from pipeline.cluster import wait_for_gpus
from reporting.inversion.results import (
    is_inversion_published,
    publish_inversion,
    read_inversion_summary,
    summary_lines,
)

if TYPE_CHECKING:
    from pipeline.inversion import Networks
    from pipeline.pools import Pool

REFINE_STEPS, PIVOTAL_STEPS = 100, 200


@dataclasses.dataclass(frozen=True)
class Config:
    """Find the latent codes that show real people, and write latents.parquet for jobs/generate.py --latents.

    Example: python jobs/invert.py --data /data/market1501 --encoder encoder.safetensors --out /data/latents
    The same command again does what is missing and nothing else. A larger --people extends the table.
    """

    out: Annotated[str, tyro.conf.arg(metavar="DIR_OR_URI")]
    """Where to write: a folder that every node sees, or a URI such as s3://bucket/run."""
    data: Annotated[str, tyro.conf.arg(metavar="DIR_OR_TABLE")]
    """Real people: a Market-1501 or toy crowd tree, or another re-ID data set.
    A folder with one sub-folder for each person will do too, or a table (CSV, Parquet) of path and identity.
    Every node must see the data under this path."""
    encoder: Annotated[str, tyro.conf.arg(metavar="FILE_OR_URI")]
    """A ReStyle encoder of jobs/train_encoder.py, or a .pt of stylegan3-editing. It must be made for the generator."""
    network: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """The generator: a reference .pkl, a .safetensors of ours, or a .pt state dict.
    By default the demo network, which has seen only drawn people."""
    splits: tuple[Literal["train", "query", "gallery", "multi-query"], ...] = ("train",)
    """The splits whose pictures are inverted. query and gallery need --allow-test-people, and exclude train."""
    allow_test_people: bool = False
    """Invert people with whom re-ID networks are tested.
    The record then says that nothing made from these latents is for training."""
    people: int | None = None
    """Invert only the first N people, in the order of their identities. By default all."""
    pictures: int | None = None
    """Most pictures of one person, spread evenly over the person's pictures. By default all."""
    steps: int = 5
    """Number of the encoder's steps. The published values are 3 to 5."""
    refine: Literal["none", "w", "pivotal"] = "w"
    """What follows the encoder. none: nothing. w: gradient descent improves each picture's code.
    pivotal: then also a change of the generator for each person, a small file beside the table."""
    refine_steps: int | None = None
    """Number of steps that refine a code. By default 100."""
    pivotal_steps: int | None = None
    """Number of steps of pivotal tuning. By default 200."""
    identity: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """A re-ID network (ours, layumi's, torchreid's) or MoCo-v2, which judges whether it is still the same person.
    Its judgement is part of the loss and of the table. By default there is none."""
    alexnet: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """torchvision's AlexNet, for LPIPS as published. By default ST-LPIPS, which is fetched from a package."""
    unit_images: int = 64
    """Most pictures of a unit, the piece of work that is stored at once. A person is never divided between units."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if the cluster has GPUs, else the CPU."""
    inverters: int | None = None
    """Number of actors that invert. By default one for each GPU, or without GPUs one for each CPU."""
    gpus_per_inverter: float | None = None
    """GPUs of each inverter; a fraction shares a card. By default 1."""
    gpus: int | None = None
    """Ask the autoscaler for this number of GPUs and wait until they are there.
    By default the job takes the GPUs that it finds."""
    gpu_minutes: float = 20.0
    """How many minutes to wait for --gpus."""
    dry_run: bool = False
    """Check everything, print the plan and the pools; write nothing."""

    def step_counts(self) -> dict[str, int | None]:
        """Steps of both refinements, None for one that does not run. Raises InputError for one given in vain."""
        runs = {"refine_steps": self.refine != "none", "pivotal_steps": self.refine == "pivotal"}
        usual = {"refine_steps": REFINE_STEPS, "pivotal_steps": PIVOTAL_STEPS}
        for name, goes in runs.items():
            if not goes and getattr(self, name) is not None:
                needed = "pivotal" if name == "pivotal_steps" else "w or pivotal"
                raise InputError(f"--{flag(name)} {getattr(self, name)}: it belongs to --refine {needed}")
        given = {name: usual[name] if getattr(self, name) is None else getattr(self, name) for name in runs}
        return {name: given[name] if goes else None for name, goes in runs.items()}


def begun(out: str, arguments: list[str]) -> dict[str, Json | Path]:
    """The options of the inversion that lies in a folder, for `jobs.common.parse`: none where there is none."""
    plan = read_inversion_plan(Output(out))
    if plan is None:
        return {}
    c = plan.configuration
    names = ["splits", "pictures", "steps", "refine", "unit_images"]
    if given(arguments, "refine") in (None, c.refine):  # another refinement has defaults of its own
        names += ["refine_steps", "pivotal_steps"]
    return {**{name: getattr(c, name) for name in names}, "people": sum(plan.extents)}


@dataclasses.dataclass(frozen=True)
class Files:
    """Local paths of the networks."""

    encoder: Path
    generator: Path
    perceptual: Path
    identity: Path | None

    @classmethod
    def found(cls, config: Config) -> "Files":
        """Raises InputError that names the option of a file that is missing."""
        identity = local_copy(config.identity, "--identity") if config.identity else None
        alexnet = local_copy(config.alexnet, "--alexnet") if config.alexnet else weights.get("st-lpips-alex")
        network = local_copy(config.network, "--network") if config.network else weights.DEMO_NETWORK
        return cls(local_copy(config.encoder, "--encoder"), network, alexnet, identity)


def main(config: Config) -> int | None:
    """Plan, invert what is missing, derive what people look at. Returns 1 when units failed for good."""
    steps = config.step_counts()
    check_splits(config.splits, config.allow_test_people)
    output = Output(config.out)
    files = Files.found(config)
    pictures = list_pictures(config.data, config.splits, config.allow_test_people, config.pictures)
    configuration = InversionConfiguration(
        encoder=file_sha256(files.encoder, "--encoder"),
        network=file_sha256(files.generator, "--network"),
        identity=None if files.identity is None else file_sha256(files.identity, "--identity"),
        perceptual=file_sha256(files.perceptual, "--alexnet"),
        data=pictures.fingerprint,
        splits=config.splits,
        pictures=config.pictures,
        steps=config.steps,
        refine=config.refine,
        unit_images=config.unit_images,
        refine_steps=steps["refine_steps"],
        pivotal_steps=steps["pivotal_steps"],
    )
    plan = agree(read_inversion_plan(output), configuration, pictures.counts, config.people)
    pending = plan.pending(finished_units(output))
    print(*(f"note: {note}" for note in pictures.listing.notes), plan.describe(len(pending), config.people), sep="\n")
    if config.dry_run or pending or not is_inversion_published(output, plan):
        failed = invert(config, output, configuration, pictures, files)
        if failed or config.dry_run:
            return failed
    if summary := read_inversion_summary(output):
        print(*summary_lines(summary, output), sep="\n")
    return 0


def invert(
    config: Config, output: Output, configuration: InversionConfiguration, pictures: Pictures, files: Files
) -> int | None:
    """Invert what is missing, as the only driver in this folder; returns 1 when units failed for good."""
    from pipeline.inversion import Networks  # it brings PyTorch: a finished run is quick without

    networks = Networks.load(files.encoder, files.generator, files.perceptual, files.identity)
    print(networks.describe())
    if config.dry_run:
        plan = agree(read_inversion_plan(output), configuration, pictures.counts, config.people)
        prepare(config, output, plan, networks, len(plan.pending(finished_units(output))))
        return None
    with hold(output) as lease:
        # Another driver may just have ended.
        plan = agree(read_inversion_plan(output), configuration, pictures.counts, config.people)
        pending, times = plan.pending(finished_units(output)), None
        if pending:
            from pipeline.commit import failure_advice, make_work
            from pipeline.inversion import inversion_work

            stages, pools, again = prepare(config, output, plan, networks, len(pending))
            work = inversion_work(plan, pending, pictures, networks.generator)
            times, failed = make_work(output, work, stages, pools, again, lease)
            if failed:
                others = "units that are there stay"
                print(failure_advice(output, failed, others), file=sys.stderr)
                return 1
        publish_inversion(output, plan, pictures, networks, times)
    return None


def prepare(
    config: Config, output: Output, plan: InversionPlan, networks: "Networks", units: int
) -> tuple[list[tuple[type, dict]], "list[Pool]", "Callable[[int], list[Pool]]"]:
    """The pipeline on the connected cluster: stages with their arguments, pools, and what plans pools again."""
    from pipeline.inversion import choose_device, inversion_pools, inversion_stages

    connect()
    if config.gpus and not config.dry_run:
        wait_for_gpus(config.gpus, config.gpu_minutes)
    device = choose_device(config.device)
    asked = None if config.gpus is None else (config.gpus, config.gpu_minutes)
    again = functools.partial(inversion_pools, config.inverters, config.gpus_per_inverter, asked, device, fewer=True)
    pools = again(units, fewer=False)  # what does not fit is refused before anything is written
    return inversion_stages(output, plan, networks, device), pools, again


if __name__ == "__main__":
    run_job(main, Config, begun=begun)
