"""A sweep: its frozen configuration, its trials, and the training of each trial."""

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path

from datasets.storage.output import Output
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.options import Json, agree, canonical_sha256, defaults, differences, known_part
from training.reid.config import ABOUT_GENERATED, FREE_TO_CHANGE, ReidTraining
from training.reid.stages import without_extras
from tune.leak_guard import DataSet, Finding, verdict_of
from tune.levels import PEOPLE_SWEEP, GeneratedRun, Trial, trials_of
from tune.options import DECIDED, FURTHER, GENERATED, NONE, SINGLE

SWEEP_FILE = "sweep.json"
ONE_RUN = "every seed"  # the key of the run, if all seeds use the same run
TRIALS = "trials"  # the folder of the trials
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(ReidTraining) if field.name in ABOUT_GENERATED}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep of trainings over levels and seeds.

    arms: name -> training (`tune.options.arms_of`), with the number of steps, or without it if epochs are equal. runs:
    seed -> the run whose pictures the seed uses, or ONE_RUN -> the run of all seeds. findings: those of the leak guard,
    labels: those of the label guard; allow_leak: whether a leak is allowed. known: the training options that the
    sweep's folder knows, None for all. The configuration and its hash omit an unknown option at its default
    (passersby/options.py). extras: what the levels of an arm add (`tune.options.EXTRAS`); generated pictures where it
    has no entry. choice: how the arms' recipes were chosen (tune/choice.py), None if the command gives them.
    """

    name: str
    root: str | Path
    data: DataSet
    levels: tuple[int, ...]
    seeds: tuple[int, ...]
    arms: Mapping[str, ReidTraining]
    runs: Mapping[int | str, GeneratedRun]
    findings: tuple[Finding, ...]
    allow_leak: bool
    labels: tuple[Finding, ...] = ()
    known: frozenset[str] | None = None
    extras: Mapping[str, str] = dataclasses.field(default_factory=dict)
    choice: Mapping[str, Json] | None = None

    def configuration(self) -> dict[str, Json]:
        """All values that change the result of a trial, as plain JSON.

        Folders and hardware are absent. Levels and seeds are absent because more of them extend a sweep.
        """
        extras = {arm: kind for arm, kind in self.extras.items() if kind != GENERATED}
        data = {"name": self.data.name, "toy_crowd": self.data.toy_hash} | dict(self.data.fingerprints)
        return {
            "sweep": self.name,
            "data": data,
            "training": {arm: _frozen(training, self.known) for arm, training in self.arms.items()},
            "runs": {str(seed): {**run.record} for seed, run in self.runs.items()},
            **({"extras": extras} if extras else {}),
        }

    @property
    def hash(self) -> str:
        """sha256 of the configuration as canonical JSON, without the runs, because more seeds bring more runs."""
        content = {name: value for name, value in self.configuration().items() if name != "runs"}
        return canonical_sha256(content)

    def trials(self) -> list[Trial]:
        """Every trial, in the order of the starts.

        The longest trials start first, because the cluster would have to wait for a long trial that starts last. Trials
        of equal length start seed by seed. Arms that share level 0 have one trial for it, and a control has no other.
        """
        copies = {arm for arms in self.sharing().values() for arm in arms}
        controls = {arm for arm in self.arms if self.extras.get(arm) == NONE}
        trials = [
            trial
            for trial in trials_of(self.levels, self.seeds, self.arms)
            if (trial.arm not in controls if trial.level else trial.arm not in copies)
        ]
        return sorted(trials, key=lambda trial: (-self.length(trial), trial.seed))

    def controls(self) -> dict[str, str]:
        """Arm -> the control that it is compared with: an arm without extras that has as many labelled people.

        Of several, the one whose training is the arm's own without extras, or else the first. Empty for a sweep without
        controls. Raises InputError for an arm without one.
        """
        controls = [arm for arm in self.arms if self.extras.get(arm) == NONE]
        matched = {}
        for arm, training in self.arms.items() if controls else ():
            if arm in controls:
                continue
            possible = [control for control in controls if _labels_of(self.arms[control]) == _labels_of(training)]
            if not possible:
                people = training.labelled_people
                raise InputError(f"arm {arm}: no control has labelled_people={people}: give an arm with extras=none")
            alone = _without_generated(training)
            equal = [control for control in possible if _without_generated(self.arms[control]) == alone]
            matched[arm] = (equal or possible)[0]
        return matched

    def sharing(self) -> dict[str, list[str]]:
        """Arm -> the arms that have no training of their own at level 0.

        These are the arms of a control, or else later arms that differ only in options about generated images.
        """
        compared: dict[str, list[str]] = {}
        for arm, control in self.controls().items():
            compared.setdefault(control, []).append(arm)
        if compared:
            return compared
        groups: dict[ReidTraining, list[str]] = {}
        for arm, training in self.arms.items():
            groups.setdefault(_without_generated(training), []).append(arm)
        return {first: rest for first, *rest in groups.values() if rest}

    def length(self, trial: Trial) -> float:
        """The approximate length of a trial, compared with others: the images of all its steps, or of its epochs."""
        training = self.arms[trial.arm]
        if training.steps:
            return float(training.steps * training.batch)
        added = 0.0
        if training.generated_share is None and trial.level:
            extras = self.extras.get(trial.arm, GENERATED)
            if extras == GENERATED:
                run = self.run_of(trial)
                available = run.people if self.name == PEOPLE_SWEEP else run.pictures
                added = run.images * min(trial.level / available, 1.0)
            else:
                added = self._pictures_of_a_person(trial if extras == SINGLE else None) * trial.level
        return training.epochs * (self.data.train_images + added)

    def run_of(self, trial: Trial) -> GeneratedRun:
        """The run whose pictures a trial trains on."""
        return self.runs[ONE_RUN] if ONE_RUN in self.runs else self.runs[trial.seed]

    def training(self, trial: Trial, out: Path, **resources: int) -> ReidTraining:
        """A trial's training in OUT/trials/<trial>; resources: workers, gpus, threads."""
        generated: dict[str, int | tuple[str | Path]] = {}
        base = self.arms[trial.arm]
        extras = self.extras.get(trial.arm, GENERATED)
        if trial.level and extras == FURTHER:
            base = dataclasses.replace(base, further_people=trial.level)
        elif trial.level and extras == SINGLE:
            base = dataclasses.replace(base, single_pictures=self.single_pictures(trial))
        elif trial.level:
            kind = "people" if self.name == PEOPLE_SWEEP else "variants"
            generated = {kind: (self.run_of(trial).path,), f"most_{kind}": trial.level, "draw_seed": trial.seed}
        else:
            base = _without_generated(base)
        folder = out / TRIALS / trial.name
        return dataclasses.replace(base, data=self.root, out=folder, seed=trial.seed, **generated, **resources)

    def single_pictures(self, trial: Trial) -> int:
        """As many single pictures as so many artificial people have on average, or without a run real people."""
        return round(self._pictures_of_a_person(trial) * trial.level)

    def _pictures_of_a_person(self, trial: Trial | None) -> float:
        """The mean number of pictures of an artificial person of a trial's run, or else of a real person."""
        if trial is None or not self.runs:
            return self.data.train_images / len(self.data.train)
        run = self.run_of(trial)
        return run.images / run.people

    def to_json(self, command: str) -> bytes:
        """The text of sweep.json: the configuration and its hash, derived values, and values that may change."""
        runs = {str(seed): run for seed, run in self.runs.items()}
        content = {
            "hash": self.hash,
            "configuration": self.configuration(),
            "sweep": self.name,
            "levels": list(self.levels),
            "seeds": list(self.seeds),
            "arms": list(self.arms),
            "controls": self.controls(),
            "extras": {arm: self.extras.get(arm, GENERATED) for arm in self.arms},
            "choice": self.choice,
            "trials": len(self.trials()),
            "equal": "steps" if all(training.steps for training in self.arms.values()) else "epochs",
            "steps": {arm: training.steps for arm, training in self.arms.items()},
            "one_generator": len({json.dumps(run.network.get("sha256")) for run in runs.values()}) == 1,
            "leak": {
                "verdict": verdict_of(self.findings),
                "allowed": self.allow_leak,
                "findings": [dataclasses.asdict(finding) for finding in self.findings],
            },
            "labels": {
                "verdict": verdict_of(self.labels),
                "allowed": self.allow_leak,
                "findings": [dataclasses.asdict(finding) for finding in self.labels],
            },
            "generators": {seed: run.network for seed, run in runs.items()},
            "paths": {"data": str(self.root), "runs": {seed: str(run.path) for seed, run in runs.items()}},
            "command": command,
        }
        return (json.dumps(content, indent=2) + "\n").encode()


def _labels_of(training: ReidTraining) -> tuple[int | None, int]:
    return training.labelled_people, training.label_draw if training.labelled_people is not None else 0


def _without_generated(training: ReidTraining) -> ReidTraining:
    return dataclasses.replace(training, **_DEFAULTS, stages=without_extras(training.stages))


def _frozen(training: ReidTraining, known: Collection[str] | None) -> dict[str, Json]:
    """The training options that change the result, without those of level and seed; known: as in `Sweep`."""
    steps = {"steps": training.steps}
    omitted = (FREE_TO_CHANGE | DECIDED.keys()) - {"preset"}
    paths = {name: getattr(training, name) for name in ("weights", "teacher", "start")}
    files: dict[str, Json] = {name: file_sha256(path) for name, path in paths.items() if path is not None}
    if training.donors:
        files["donors"] = [path.name for path in training.donors]
    values = {name: value for name, value in training.as_json().items() if name not in omitted} | steps | files
    return values if known is None else known_part(values, known, defaults(ReidTraining))


def continue_sweep(output: Output, sweep: Sweep) -> Sweep:
    """The sweep that continues the folder: `sweep`, with the options that the folder knows.

    The sweep may have more levels and seeds than sweep.json. Raises InputError if the configurations differ (the
    message names every such key, with the old and the new value), if levels or seeds of sweep.json are missing, and for
    a file that is not a sweep.json.
    """
    text = output.read(SWEEP_FILE)
    if text is None:
        return sweep
    try:
        content = json.loads(text)
        old, numbers = content["configuration"], {key: set(map(int, content[key])) for key in ("levels", "seeds")}
        trainings = old["training"]
        known = frozenset(name for values in trainings.values() for name in values)
        sweep = dataclasses.replace(sweep, known=known)
        old_values, new_values = _flat(old), _flat(sweep.configuration())
        default = _flat({"training": {arm: defaults(ReidTraining) for arm in trainings}})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{output.address(SWEEP_FILE)} is not the record of a sweep of this program ({error}): choose another --out"
        ) from error
    added = {key for key in new_values.keys() - old_values.keys() if key.startswith("runs.")}  # the runs of new seeds
    conflicts = differences(old_values, new_values, default, free=added)
    # An option that is absent may belong to an arm that the command does not have: the program still has the option.
    renamed = [dataclasses.replace(item, key=item.key.removeprefix("training.."), gone=False) for item in conflicts]
    missing = {key: old_numbers - set(getattr(sweep, key)) for key, old_numbers in numbers.items()}
    fewer = [f"{key} had {min(n)} (more extend a sweep, fewer are another)" for key, n in missing.items() if n]
    agree("a sweep of another configuration", [*renamed, *fewer])
    return sweep


def _flat(values: Mapping[str, Json], prefix: str = "") -> dict[str, Json]:
    """Nested mappings as one flat mapping, with keys such as data.name."""
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
