"""Check whether a run is whole: read every shard, compare it with the plan, compute a sample of scores again."""

import bisect
import dataclasses
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from datasets.latents.table import read_latents
from datasets.runs.manifest import manifest_name
from datasets.runs.plan import PLAN_FILE, Plan, Unit, read_plan
from datasets.runs.run import SHARD_FOLDER, GenerationRun, Run, failure_name, shard_name
from datasets.runs.shards import ADVICE
from datasets.runs.verify import Findings, check_names, check_shards, sampled_people
from datasets.runs.verify_derived import DerivedChecks
from datasets.storage.output import Output
from jobs.common import run_job
from passersby.bounds import Bound, check_bounds
from passersby.errors import InputError
from reporting.progress import ProgressLine
from reporting.run.results import REPORT, SHEET, SUMMARY

if TYPE_CHECKING:
    from pipeline.recomputation import Recomputation


@dataclasses.dataclass(frozen=True)
class Config:
    """Check a run of jobs/generate.py and say in one line whether it is whole. The job changes nothing.

    Exit code 0: the run is whole. 1: it is not whole. 2: there is no run, or an option cannot be used.
    """

    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR_OR_URI")]
    """The run: the folder or URI that jobs/generate.py wrote."""
    sample: Annotated[int, Bound(ge=0)] = 64
    """Number of images whose scores are computed again. They belong to whole persons, spread over the run.
    0 computes no scores."""
    decode: Literal["all", "sample"] = "all"
    """Which images are decoded, to check that they are pictures of the right size."""
    network: Path | None = None
    """The run's network. With it the job makes the images of the sample again and compares them."""
    latents: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """With --network or --identity, for a run of real people: the latents that the run was made from."""
    identity: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """The re-ID network of a run that compared identities.
    With it the job computes these scores of the sample again."""
    real: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """With --identity: the pictures of real people that the run compared with. All of them become features first."""
    yolo_weights: Path | None = None
    """Path of yolov4-tiny.weights, with its .cfg beside it, for machines without a package registry."""
    detector_file: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """The detector of a run that had another one than YOLOv4-tiny, as jobs/generate.py took it."""
    detector_person: int | None = None
    """With --detector-file: the number of the class of people, as jobs/generate.py took it."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the sample is computed again."""


def main(config: Config) -> int:
    """Check the file names, every shard, the sample and the derived files; print the findings and the verdict."""
    check_bounds(config)
    if config.network and not config.sample:
        raise InputError(f"--network {config.network}: there is no sample with --sample 0; give 1 or more")
    if config.latents and not (config.network or config.identity):
        raise InputError(f"--latents {config.latents}: give --network or --identity too, which need them")
    if config.identity and not config.sample:
        raise InputError(f"--identity {config.identity}: there is no sample with --sample 0; give 1 or more")
    output, findings = Output(config.out), Findings()
    names = output.list("")
    try:
        run = Run(output, intact_plan(output, names))
    except DamagedPlan as error:
        print(f"NOT whole: {error}")
        return 1
    people = sampled_people(run.plan, config.sample)
    sample = Sample(people, recomputation(config, run) if people else None)
    present = check_names(names, run.plan, findings)
    report_failures(run, present, findings)
    check_units(config, run, present, names, sample, findings)
    derived = [name for name in (manifest_name(), SHEET, REPORT, SUMMARY) if name not in names]
    if derived:
        findings.notes.append(f"no {', '.join(derived)}: the same command makes what is derived when it ends")
    print(*findings.lines(), sep="\n", end="\n" * bool(findings.lines()))
    whole = f"{contents(run.plan)}{sample.again or ', no scores computed again'}"
    print(whole if findings.whole else findings.verdict(run.plan))
    return 0 if findings.whole else 1


def recomputation(config: Config, run: GenerationRun) -> "Recomputation":
    """The stages that compute the sample's scores again."""
    from pipeline.generation import fetched_detector
    from pipeline.identity import identity_of
    from pipeline.recomputation import Recomputation  # it imports PyTorch, which takes seconds

    latents = read_latents(config.latents) if config.latents else None
    identity = identity_of(config.identity, config.real, latents, {})
    detector = fetched_detector(config.detector_file, config.detector_person, config.yolo_weights)
    return Recomputation(run.plan, config.yolo_weights, config.network, config.device, latents, identity, detector)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Persons, ascending, whose images are decoded in any case, and the stages that compute their scores again."""

    people: list[int]
    again: "Recomputation | None"

    def of(self, unit: Unit) -> list[int]:
        """The persons of a unit."""
        first = bisect.bisect_left(self.people, unit.first_person)
        return self.people[first : bisect.bisect_left(self.people, unit.first_person + unit.people)]


def contents(plan: Plan) -> str:
    """What a whole run holds, for people."""
    variants = plan.configuration.variants
    return (
        f"whole: {plan.people:,} people x {variants:,} variants = {plan.images:,} images in {plan.unit_count:,} shards"
    )


class DamagedPlan(Exception):
    """Shards lie there, but their plan cannot be trusted; the text is one line."""


def intact_plan(output: Output, names: Collection[str]) -> Plan:
    """The plan. Raises DamagedPlan if it was edited or lost, InputError if there never was a run."""
    if PLAN_FILE not in names:
        if any(name.startswith(f"{SHARD_FOLDER}/") for name in names):
            raise DamagedPlan(f"shards, but no {output.address(PLAN_FILE)}: put it back")
        raise InputError(f"{output.root_address}: no plan.json there, so no run of jobs/generate.py")
    advice = "put the original back, or make the run again in another folder"
    try:
        plan = read_plan(output)
        intact = plan if plan is not None and plan.to_json() == output.read(PLAN_FILE) else None
    except (InputError, TypeError, ArithmeticError) as error:  # the last two: impossible numbers
        raise DamagedPlan(f"{error}; {advice}") from error
    if intact is None:
        raise DamagedPlan(f"{output.address(PLAN_FILE)} was edited: its numbers do not agree; {advice}")
    return intact


def report_failures(run: GenerationRun, present: Collection[int], findings: Findings) -> None:
    """Say how many missing units the run has recorded as failed, and the first reason."""
    failed = sorted(run.failed())
    units = [unit for unit in failed if unit not in present]
    if units:
        try:
            failure = run.failure(units[0])
            reason = "its record is gone" if failure is None else failure.reason
        except InputError as error:
            reason = str(error)
        findings.reasons.append(
            f"{len(units):,} of them failed; {failure_name(units[0])}: {reason}. The same command tries them again"
        )
    if len(units) < len(failed):
        findings.notes.append(f"records in failed/ of units that were made later: {len(failed) - len(units):,}")


def check_units(
    config: Config,
    run: GenerationRun,
    present: Collection[int],
    names: Collection[str],
    sample: Sample,
    findings: Findings,
) -> None:
    """Check every shard in the plan's order, the manifests beside them, and the sampled persons' scores."""
    sampled, again, variants = set(sample.people), sample.again, run.plan.configuration.variants
    derived = DerivedChecks(run, names, SUMMARY)

    def decoded(person: int) -> bool:
        return config.decode == "all" or person in sampled

    images = sum(unit.people for unit in run.plan.units() if unit.unit in present) * variants
    with ProgressLine(len(present), images) as line:
        for check in check_shards(run, present, decoded, kept=lambda unit: bool(sample.of(unit))):
            unit, name = check.unit, shard_name(check.unit.unit)
            kept_images = derived.take(unit, check.table)
            if check.problem:
                findings.add(check.problem[0], name, check.problem[1])
            elif again and check.table is not None:
                wrong = [text for person in sample.of(unit) for text in again(unit, check.table, person)]
                if wrong:
                    text = f"{run.output.address(name)}: {wrong[0]} ({len(wrong):,} such in the sample): {ADVICE}"
                    findings.add("with other scores or images than computed again", name, text)
            if unit.unit in present:
                line.update(unit.people * variants, kept_images)
    derived.finish(findings)


if __name__ == "__main__":
    run_job(main, Config)
