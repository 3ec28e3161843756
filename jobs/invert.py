"""Find latent codes of real people's pictures: encode, refine and store them, unit by unit, on Ray."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from datasets.latents.pictures import Pictures, check_splits, list_pictures
from datasets.latents.plan import (
    RECIPE,
    InversionConfiguration,
    InversionRun,
    NetworkFiles,
    begin_inversion,
    check_encoder,
    read_inversion_plan,
    steps_of,
)
from datasets.storage.output import Output
from jobs.common import connect, given, run_job
from passersby.files import file_sha256
from passersby.options import Json
from reporting.inversion.results import is_inversion_published, publish_inversion, read_inversion_summary, summary_lines

if TYPE_CHECKING:
    from pipeline.inversion import Networks
    from pipeline.pools import Machines, Stage


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
    encoder: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """A ReStyle encoder of jobs/train_encoder.py, or a .pt of stylegan3-editing. It must be made for the generator.
    Only --refine who needs none, and takes none."""
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
    """Most pictures of one person, spread evenly over the person's pictures. By default all.
    With --refine who all of them share one who; the time of an image does not depend on their number."""
    steps: int | None = None
    """Number of the encoder's steps. By default 5. The published values are 3 to 5."""
    refine: Literal["none", "w", "pivotal", "who"] = "w"
    """What follows the encoder. none: nothing. w: gradient descent improves each picture's code.
    pivotal: then also a change of the generator for each person, a small file beside the table.
    who: for networks of jobs/train_gan.py --pairs, without an encoder.
    It finds one who and one offset in w for all pictures of a person, and a how for each picture.
    jobs/generate.py then makes pictures of the person with other hows."""
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

    def with_steps(self) -> "Config":
        """The same with the steps of encoder and refinements, None for one that does not run. Raises InputError."""
        steps = steps_of("steps", self.refine, self.steps)
        refine = steps_of("refine_steps", self.refine, self.refine_steps)
        pivotal = steps_of("pivotal_steps", self.refine, self.pivotal_steps)
        return dataclasses.replace(self, steps=steps, refine_steps=refine, pivotal_steps=pivotal)

    def frozen(self, files: NetworkFiles, pictures: Pictures) -> InversionConfiguration:
        """The part that changes bytes, checked, of options `with_steps`. Raises InputError."""
        return InversionConfiguration(
            encoder=None if files.encoder is None else file_sha256(files.encoder, "--encoder"),
            network=file_sha256(files.generator, "--network"),
            identity=None if files.identity is None else file_sha256(files.identity, "--identity"),
            perceptual=file_sha256(files.perceptual, "--alexnet"),
            data=pictures.fingerprint,
            splits=self.splits,
            pictures=self.pictures,
            steps=self.steps,
            refine=self.refine,
            refine_steps=self.refine_steps,
            pivotal_steps=self.pivotal_steps,
            unit_images=self.unit_images,
            recipe=RECIPE,
        )


def begun(out: str, arguments: list[str]) -> dict[str, Json | Path]:
    """The options of the inversion that lies in a folder, for `jobs.common.parse`; empty if there is no inversion."""
    plan = read_inversion_plan(Output(out))
    if plan is None:
        return {}
    c = plan.configuration
    names = ["splits", "pictures", "refine", "unit_images"]
    refine = given(arguments, "refine")
    if refine in (None, c.refine):  # another refinement has defaults of its own
        names += ["steps", "refine_steps", "pivotal_steps"]
    elif refine != "who" and c.steps is not None:  # the encoder is there with both
        names += ["steps"]
    return {**{name: getattr(c, name) for name in names}, "people": sum(plan.extents)}


def main(config: Config) -> int | None:
    """Plan, invert what is missing, derive the files that people look at. Returns 1 when units failed for good."""
    config = config.with_steps()
    check_splits(config.splits, config.allow_test_people)
    check_encoder(config.encoder, config.refine)
    output = Output(config.out)
    files = NetworkFiles.of(config.encoder, config.network, config.alexnet, config.identity)
    pictures = list_pictures(config.data, config.splits, config.allow_test_people, config.pictures)
    run = begin_inversion(output, config.frozen(files, pictures), pictures.counts, config.people)
    print(
        *(f"note: {note}" for note in pictures.listing.notes),
        run.plan.describe(len(run.pending), config.people),
        sep="\n",
    )
    if config.dry_run:
        return expect(config, run, files)
    if (run.pending or not is_inversion_published(run)) and invert(config, run, pictures, files):
        return 1
    if summary := read_inversion_summary(output):
        print(*summary_lines(summary, output), sep="\n")
    return 0


def expect(config: Config, run: InversionRun, files: NetworkFiles) -> None:
    """A dry run: check the networks, print the machines that they would run on."""
    from pipeline.inversion import Networks  # it imports PyTorch, which a finished run does not need

    networks = Networks.load(files)
    print(networks.describe())
    stages, machines = prepare(config, run, networks)
    machines.pools(stages, len(run.pending))


def invert(config: Config, run: InversionRun, pictures: Pictures, files: NetworkFiles) -> int | None:
    """Invert what is missing, as the only driver in this folder; returns 1 when units failed for good."""
    from pipeline.commit import failure_advice, make_work
    from pipeline.inversion import Networks, inversion_work

    networks = Networks.load(files)
    print(networks.describe())
    with run.held():
        times = None
        if run.pending:
            stages, machines = prepare(config, run, networks)
            times, failed = make_work(run, inversion_work(run, pictures, networks.generator), stages, machines)
            if failed:
                print(failure_advice(run, failed, "units that are there stay"), file=sys.stderr)
                return 1
        publish_inversion(run, pictures, networks, times)
    return None


def prepare(config: Config, run: InversionRun, networks: "Networks") -> "tuple[list[Stage], Machines]":
    """The stages of the pipeline, and the machines of the connected cluster that they run on."""
    from pipeline.inversion import inversion_stages
    from pipeline.pools import Machines, Pool

    connect()
    machines = Machines(config.device, config.gpus, config.gpu_minutes).ready(waiting=not config.dry_run)
    inverters = Pool("inverters", config.inverters, gpus=config.gpus_per_inverter)
    return inversion_stages(run, networks, inverters, machines.device), machines


if __name__ == "__main__":
    run_job(main, Config, begun=begun)
