"""From the options of jobs/sweep.py to a sweep, checked on the driver: nothing is decoded, nothing written."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.latents.table import About, read_latents
from datasets.people.readers import address
from datasets.reid.sources import REAL, Source, list_sources
from passersby.errors import InputError
from training.reid.config import ReidTraining
from training.reid.data import ReidBatches
from tune.leak_guard import DataSet, Finding, judge_run, read_data_set, refuse_leak
from tune.levels import (
    LEVELS,
    PEOPLE_SWEEP,
    GeneratedRun,
    check_enough,
    check_latents,
    checked,
    read_generated,
    with_baseline,
)
from tune.options import arms_of
from tune.sweep import ONE_RUN, Sweep


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The options of jobs/sweep.py that decide what is swept; see there."""

    sweep: str
    data: Path
    generated: str | None
    runs_per_seed: tuple[str, ...]
    latents: tuple[str, ...]
    levels: tuple[int, ...] | None
    seeds: tuple[int, ...]
    preset: str
    set: tuple[str, ...]
    arms: tuple[str, ...]
    cross: tuple[str, ...]
    steps: int | None
    equal_epochs: bool
    allow_leak: bool


def plan_sweep(wanted: Wanted) -> Sweep:
    """The sweep that is wanted. Raises InputError for the first thing that cannot work, and for a leak."""
    levels = with_baseline(LEVELS[wanted.sweep] if wanted.levels is None else wanted.levels)
    paths = _runs_by_seed(wanted)
    seeds = checked(wanted.seeds, "--seeds")
    if wanted.equal_epochs and wanted.steps is not None:
        raise InputError(f"--equal-epochs with --steps {wanted.steps}: give one of them")
    arms = arms_of(wanted.preset, wanted.set, wanted.cross, wanted.arms)
    root = address(wanted.data)
    root = root if isinstance(root, str) else root.resolve()
    data = read_data_set(root)
    runs = {seed: read_generated(path, wanted.sweep, root) for seed, path in paths.items()}
    for path, run in zip(paths.values(), runs.values(), strict=True):
        for filters in dict.fromkeys(training.filters for training in arms.values()):
            filtered = read_generated(path, wanted.sweep, root, filters) if filters else run
            check_enough(filtered, wanted.sweep, levels)
    findings = _findings(runs, wanted.latents, data)
    refuse_leak(findings, wanted.allow_leak)
    arms = _with_steps(arms, wanted, root, levels, runs, seeds)
    return Sweep(wanted.sweep, root, data, levels, seeds, arms, runs, findings, wanted.allow_leak)


def _runs_by_seed(wanted: Wanted) -> dict[int | str, str | Path]:
    if (wanted.generated is None) == (not wanted.runs_per_seed):
        raise InputError("give either --generated, one run for all seeds, or --runs-per-seed, one for each")
    if wanted.runs_per_seed and len(wanted.runs_per_seed) != len(wanted.seeds):
        raise InputError(
            f"--runs-per-seed has {len(wanted.runs_per_seed)} runs for {len(wanted.seeds)} --seeds: give one for each"
        )
    chosen: dict[int | str, str] = {}
    if wanted.generated is not None:
        chosen[ONE_RUN] = wanted.generated
    else:
        chosen.update(zip(wanted.seeds, wanted.runs_per_seed, strict=True))
    places = {seed: address(path) for seed, path in chosen.items()}
    return {seed: path if isinstance(path, str) else path.resolve() for seed, path in places.items()}


def _findings(runs: Mapping[int | str, GeneratedRun], latents: Sequence[str], data: DataSet) -> tuple[Finding, ...]:
    tables = [read_latents(path) for path in latents]
    for table in tables:
        if all(run.record.get("latents") != table.sha256 for run in runs.values()):
            check_latents(next(iter(runs.values())), table)
    abouts: dict[str | None, About] = {table.sha256: table.about for table in tables}
    found = (judge_run(run, abouts.get(run.record.get("latents")), data) for run in runs.values())
    return tuple(dict.fromkeys(finding for findings in found for finding in findings))


def _with_steps(
    arms: Mapping[str, ReidTraining],
    wanted: Wanted,
    root: str | Path,
    levels: tuple[int, ...],
    runs: Mapping[int | str, GeneratedRun],
    seeds: tuple[int, ...],
) -> dict[str, ReidTraining]:
    """The arms with the steps of all their levels: of a training at level 0, unless given, or epochs are equal.

    Builds the batches of level 0 and of the first level above it, so that what cannot be built is said at once.
    """
    above = next((level for level in levels if level), None)
    real = list_sources(root)
    name = "people" if wanted.sweep == PEOPLE_SWEEP else "variants"
    planned = {}
    for arm, training in arms.items():
        dataclasses.replace(training, data=Path("."), out=Path(".")).check()
        baseline = _batches(training, real)
        if above is not None:
            limits = {name: [next(iter(runs.values())).path], f"most_{name}": above, "draw_seed": seeds[0]}
            _batches(training, list_sources(root, **limits, filters=training.filters))
        steps = None if wanted.equal_epochs else wanted.steps or -(-training.epochs * baseline.steps_per_epoch // 1)
        planned[arm] = dataclasses.replace(training, steps=None if steps is None else int(steps))
        planned[arm].check()
    return planned


def _batches(training: ReidTraining, sources: Sequence[Source]) -> ReidBatches:
    """The batches of listed images, as if all could be read."""
    numbers: dict[str, int] = {}
    persons = [person for source in sources for person in source.persons]
    classes = np.array([numbers.setdefault(person, len(numbers)) for person in persons], np.int64)
    kinds = np.repeat([source.kind for source in sources], [len(source) for source in sources])
    kept = np.ones(len(classes), bool)
    if training.validation == "images":
        places = np.flatnonzero(kinds == REAL)
        _, first, counts = np.unique(classes[places], return_index=True, return_counts=True)
        kept[places[first[counts > 1]]] = False
    return ReidBatches(
        classes[kept], kinds[kept], training.batch, 0, training.sampler, training.instances, training.generated_share
    )
