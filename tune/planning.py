"""Turn the options of jobs/sweep.py into a sweep and check it on the driver, without decoding or writing anything."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.latents.table import About, read_latents
from datasets.people.readers import address
from datasets.reid.sources import REAL, Source, list_sources
from passersby.errors import InputError
from passersby.options import Json
from passersby.reid.checkpoint import load_reid
from training.reid.config import ReidTraining
from training.reid.data import ReidBatches
from tune.label_guard import allowed_people, judge_labels, judge_run_labels, read_networks, refuse_label_leak
from tune.leak_guard import DataSet, Finding, judge_network, judge_run, read_data_set, refuse_leak
from tune.levels import (
    LEVELS,
    PEOPLE_SWEEP,
    GeneratedRun,
    Trial,
    check_enough,
    check_latents,
    checked,
    read_generated,
    with_baseline,
)
from tune.options import GENERATED, NONE, arms_of, extras_of
from tune.sweep import ONE_RUN, Sweep


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """The options of jobs/sweep.py that decide the sweep. That job describes them."""

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
    networks: tuple[str, ...] = ()
    recipes: Mapping[str, str] = dataclasses.field(default_factory=dict)  # name of an arm -> the recipe chosen for it


def plan_sweep(options: SweepOptions) -> Sweep:
    """The sweep of these options. Raises InputError for the first option that cannot work, and for a leak."""
    levels = with_baseline(LEVELS[options.sweep] if options.levels is None else options.levels)
    seeds = checked(options.seeds, "--seeds")
    if options.equal_epochs and options.steps is not None:
        raise InputError(f"--equal-epochs with --steps {options.steps}: give one of them")
    arms = arms_of(options.preset, options.set, options.cross, options.arms, options.recipes)
    extras = extras_of(options.set, options.cross, options.arms)
    paths = _runs_by_seed(options, GENERATED in extras.values())
    root = address(options.data)
    root = root if isinstance(root, str) else root.resolve()
    data = read_data_set(root)
    runs = {seed: read_generated(path, options.sweep, root) for seed, path in paths.items()}
    generated_arms = [training for arm, training in arms.items() if extras[arm] == GENERATED]
    for path, run in zip(paths.values(), runs.values(), strict=True):
        for filters in dict.fromkeys(training.filters for training in generated_arms):
            filtered = read_generated(path, options.sweep, root, filters) if filters else run
            check_enough(filtered, options.sweep, levels)
    abouts = _abouts(runs, options.latents)
    starts = {name: load_reid(path).record for name, path in _starts(arms)}
    findings = _findings(runs, abouts, starts, data)
    refuse_leak(findings, options.allow_leak)
    labels = _label_findings(runs, abouts, starts, read_networks(options.networks), arms, data)
    refuse_label_leak(labels, options.allow_leak)
    arms = _with_steps(arms, extras, options, root, levels, runs, seeds)
    sweep = Sweep(
        options.sweep, root, data, levels, seeds, arms, runs, findings, options.allow_leak, labels, extras=extras
    )  # fmt: skip
    _check_real_extras(sweep)
    return sweep


def _check_real_extras(sweep: Sweep) -> None:
    """Raise InputError for a level with more real people or single pictures than the data have beside the labelled."""
    for arm, kind in sweep.extras.items():
        if kind in (GENERATED, NONE):
            continue
        training = sweep.arms[arm]
        if sweep.name != PEOPLE_SWEEP or training.labelled_people is None:
            raise InputError(
                f"extras={kind}: it belongs to --sweep {PEOPLE_SWEEP} with labelled_people=N, beside whom other people "
                "of --data are left"
            )
        first_and_last = [level for level in sweep.levels if level][:1] + [sweep.levels[-1]]
        for level in filter(None, first_and_last):  # the last needs most people, the first could be below a batch
            trained = sweep.training(Trial(sweep.seeds[0], level, arm), Path("."))
            _batches(trained, list_sources(sweep.root, labelled=trained.labelled))


def _runs_by_seed(options: SweepOptions, needed: bool) -> dict[int | str, str | Path]:
    if not needed and options.generated is None and not options.runs_per_seed:
        return {}
    if (options.generated is None) == (not options.runs_per_seed):
        raise InputError("give either --generated, one run for all seeds, or --runs-per-seed, one for each")
    if options.runs_per_seed and len(options.runs_per_seed) != len(options.seeds):
        raise InputError(
            f"--runs-per-seed has {len(options.runs_per_seed)} runs for {len(options.seeds)} --seeds: give one for each"
        )
    paths: dict[int | str, str] = {}
    if options.generated is not None:
        paths[ONE_RUN] = options.generated
    else:
        paths.update(zip(options.seeds, options.runs_per_seed, strict=True))
    addresses = {seed: address(path) for seed, path in paths.items()}
    return {seed: path if isinstance(path, str) else path.resolve() for seed, path in addresses.items()}


def _starts(arms: Mapping[str, ReidTraining]) -> list[tuple[str, Path]]:
    """The re-ID networks that trainings start from or learn from, each once, with words for it."""
    named = [(name, getattr(training, name)) for name in ("start", "teacher") for training in arms.values()]
    paths = dict.fromkeys((name, path) for name, path in named if path is not None)
    return [(f"{name} network {path.name}", path) for name, path in paths]


def _abouts(runs: Mapping[int | str, GeneratedRun], latents: Sequence[str]) -> dict[str | None, About]:
    """sha256 of latents -> their metadata. Raises InputError for latents from which no run was made."""
    tables = [read_latents(path) for path in latents]
    if tables and not runs:
        raise InputError(f"--latents {latents[0]}: no arm uses generated pictures: leave it out")
    for table in tables:
        if all(run.record.get("latents") != table.sha256 for run in runs.values()):
            check_latents(next(iter(runs.values())), table)
    return {table.sha256: table.about for table in tables}


def _findings(
    runs: Mapping[int | str, GeneratedRun],
    abouts: Mapping[str | None, About],
    starts: Mapping[str, Json],
    data: DataSet,
) -> tuple[Finding, ...]:
    judgements = [judge_run(run, abouts.get(run.record.get("latents")), data) for run in runs.values()]
    judgements += [judge_network(name, record, data) for name, record in starts.items()]
    return tuple(dict.fromkeys(finding for findings in judgements for finding in findings))


def _label_findings(
    runs: Mapping[int | str, GeneratedRun],
    abouts: Mapping[str | None, About],
    starts: Mapping[str, Json],
    networks: Mapping[str, Json],
    arms: Mapping[str, ReidTraining],
    data: DataSet,
) -> tuple[Finding, ...]:
    """The label guard's findings, for every set of labelled people of the arms."""
    findings: list[Finding] = []
    for allowed in dict.fromkeys(allowed_people(data, training.labelled) for training in arms.values()):
        for run in runs.values():
            findings += judge_run_labels(run, abouts.get(run.record.get("latents")), networks, data, allowed)
        for name, record in starts.items():
            findings += judge_labels(name, record, data, allowed)
    return tuple(dict.fromkeys(findings))


def _with_steps(
    arms: Mapping[str, ReidTraining],
    extras: Mapping[str, str],
    options: SweepOptions,
    root: str | Path,
    levels: tuple[int, ...],
    runs: Mapping[int | str, GeneratedRun],
    seeds: tuple[int, ...],
) -> dict[str, ReidTraining]:
    """The arms with the number of steps of all their levels.

    It is the number of --steps, or else that of a training at level 0. With equal epochs it stays None. The function
    builds the batches of level 0 and of the next level, so that an impossible training fails at once.
    """
    first_level = next((level for level in levels if level), None)
    name = "people" if options.sweep == PEOPLE_SWEEP else "variants"
    trainings = {}
    for arm, training in arms.items():
        dataclasses.replace(training, data=Path("."), out=Path(".")).check()
        baseline = _batches(training, list_sources(root, labelled=training.labelled))
        if first_level is not None and extras[arm] == GENERATED:
            limits = {name: [next(iter(runs.values())).path], f"most_{name}": first_level, "draw_seed": seeds[0]}
            _batches(training, list_sources(root, **limits, filters=training.filters, labelled=training.labelled))
        steps = None if options.equal_epochs else options.steps or -(-training.epochs * baseline.steps_per_epoch // 1)
        trainings[arm] = dataclasses.replace(training, steps=None if steps is None else int(steps))
        trainings[arm].check()
    return trainings


def _batches(training: ReidTraining, sources: Sequence[Source]) -> ReidBatches:
    """The batches of the listed images, as if all images could be read."""
    numbers: dict[str, int] = {}
    persons = [person for source in sources for person in source.persons]
    classes = np.array([numbers.setdefault(person, len(numbers)) for person in persons], np.int64)
    kinds = np.repeat([source.kind for source in sources], [len(source) for source in sources])
    mask = np.ones(len(classes), bool)  # the images to train on
    if training.validation == "images":
        real_images = np.flatnonzero(kinds == REAL)
        _, first, counts = np.unique(classes[real_images], return_index=True, return_counts=True)
        mask[real_images[first[counts > 1]]] = False
    return ReidBatches(
        classes[mask], kinds[mask], training.batch, 0, training.sampler, training.instances, training.generated_share
    )
