"""Make people from seeds, or new pictures of real people from latents; score and store the pictures, on Ray."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from datasets.runs.card import teaching_section
from datasets.runs.plan import read_plan
from datasets.runs.rows import people_without_partners
from datasets.runs.run import GenerationRun, begin_run
from datasets.storage.output import Output
from jobs.common import connect, given, run_job
from passersby.errors import InputError
from passersby.options import Json
from passersby.weights import former_demo_network
from pipeline.cluster import resources
from pipeline.commit import failure_advice, make_units
from pipeline.generation import Config, Inputs, Materials, generation_stages, options_begun
from pipeline.pools import Machines, Stage
from reporting.run.forecast import forecast
from reporting.run.results import REPORT, SHEET, counts_of, is_published, publish, read_summary
from reporting.tables import discard_table, filters_set

if TYPE_CHECKING:
    from passersby.stylegan3 import Generator


def begun(out: str, arguments: list[str]) -> dict[str, Json | Path]:
    """The options of the run that lies in a folder, for `jobs.common.parse`; empty if there is no run."""
    plan = read_plan(Output(out))
    if plan is None:
        return {}
    values = options_begun(plan)
    if given(arguments, "method") not in (None, values["method"]):  # another method has defaults of its own
        values = {name: value for name, value in values.items() if name not in ("amount", "layers")}
    return values


def main(config: Config) -> int | None:
    """Plan, make what is missing, derive the files that people look at. Returns 1 when units failed for good."""
    thresholds, output = config.thresholds, Output(config.out)
    inputs, existing = config.inputs(), read_plan(output)
    begun_with = existing.configuration.network if existing and not config.network else inputs.network_sha256
    if begun_with != inputs.network_sha256 and (former := former_demo_network(begun_with)):
        raise InputError(f"--out {config.out} was begun with {former}")
    configuration = config.frozen(inputs, existing)
    people = config.people
    if people is None:
        people = inputs.latents.people if inputs.latents else 24
    run = begin_run(output, configuration, people)
    print(run.plan.describe(len(run.pending), people), flush=True)
    _, reason = config.chosen_layers(inputs, existing)
    for note in filter(None, (reason, people_without_partners(configuration, run.plan.people))):
        print(note, file=sys.stderr)
    if config.dry_run:
        return expect(config, run, inputs) if run.pending else None
    if (run.pending or not is_published(run, thresholds)) and make(config, run, inputs):
        return 1
    print(discard_table(counts_of(read_summary(output)), filters_set(dataclasses.asdict(thresholds))))
    print(f"contact sheet: {output.address(SHEET)}\nreport: {output.address(REPORT)}")
    return 0


def expect(config: Config, run: GenerationRun, inputs: Inputs) -> None:
    """A dry run: print what the pending units will take."""
    stages, machines = prepare(config, run, inputs, inputs.loaded.generator)
    images = sum(unit.people for unit in run.pending) * run.plan.configuration.variants
    pools = machines.pools(stages, len(run.pending))
    actors = [(stage.actor, stage.arguments) for stage in stages[:-1]]
    print(forecast(actors, pools, images, resources().cpus, run.output))


def make(config: Config, run: GenerationRun, inputs: Inputs) -> int | None:
    """Make what is missing, as the only driver in this folder; returns how many units failed for good."""
    with run.held():
        network, times = inputs.loaded, None
        if run.pending:
            stages, machines = prepare(config, run, inputs, network.generator)
            times, failed = make_units(run, stages, machines)
            if failed:
                print(failure_advice(run, failed), file=sys.stderr)
                return failed
        if inputs.identity:
            inputs.identity.look_for_copies(run, config.device)
        record = {"file": inputs.network.name, "sha256": network.sha256, **network.record}
        # The card is about people from seeds.
        address = None if inputs.latents else inputs.network_address or inputs.network
        card = address and teaching_section(address, network.sha256)
        publish(run, config.thresholds, record, times, card or None)
    return None


def prepare(config: Config, run: GenerationRun, inputs: Inputs, generator: "Generator") -> tuple[list[Stage], Machines]:
    """The stages of the pipeline, and the machines of the connected cluster that they run on."""
    materials = Materials.load(run, inputs, generator)
    connect()
    machines = config.machines.ready(waiting=not config.dry_run)
    return generation_stages(config, run, inputs, materials, machines.device), machines


if __name__ == "__main__":
    run_job(main, Config, begun=begun)
