"""A sweep: its frozen configuration, its trials, and what each of them trains."""

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path

from datasets.storage.output import Output
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.options import Json, canonical_sha256, defaults, differences, known_part
from training.reid.config import ABOUT_GENERATED, FREE_TO_CHANGE, ReidTraining
from tune.leak_guard import DataSet, Finding, verdict_of
from tune.levels import PEOPLE_SWEEP, GeneratedRun, Trial, trials_of
from tune.options import DECIDED

SWEEP_FILE = "sweep.json"
ONE_RUN = "every seed"  # key of the run where all seeds draw from one
TRIALS = "trials"  # folder
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(ReidTraining) if field.name in ABOUT_GENERATED}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is swept. arms: name -> training (`tune.options.arms_of`), with the steps of all its levels, or without
    where epochs are equal. runs: seed -> the run that it draws from, or one run below ONE_RUN. findings: of the leak
    guard; allow_leak: whether a leak was allowed. known: the training's options that the sweep's folder knows, None for
    all: at its default, another one is absent from the configuration and its hash (passersby/options.py)."""

    name: str
    root: str | Path
    data: DataSet
    levels: tuple[int, ...]
    seeds: tuple[int, ...]
    arms: Mapping[str, ReidTraining]
    runs: Mapping[int | str, GeneratedRun]
    findings: tuple[Finding, ...]
    allow_leak: bool
    known: frozenset[str] | None = None

    def configuration(self) -> dict[str, Json]:
        """All that changes a trial's result, as plain JSON values: no folders, not where it runs. Levels and seeds are
        absent: more of them extend a sweep."""
        data = {"name": self.data.name, "toy_crowd": self.data.toy_hash} | dict(self.data.fingerprints)
        return {
            "sweep": self.name,
            "data": data,
            "training": {arm: _frozen(training, self.known) for arm, training in self.arms.items()},
            "runs": {str(seed): {**run.record} for seed, run in self.runs.items()},
        }

    @property
    def hash(self) -> str:
        """sha256 of the configuration as canonical JSON, without the runs: more seeds bring more of them."""
        content = {name: value for name, value in self.configuration().items() if name != "runs"}
        return canonical_sha256(content)

    def trials(self) -> list[Trial]:
        """Every trial, in the order that they start in: the longest first, as a long one that starts last would keep
        the cluster waiting; equally long ones seed by seed. Level 0 is in it once for all arms that share it."""
        copies = {arm for arms in self.sharing().values() for arm in arms}
        trials = [
            trial for trial in trials_of(self.levels, self.seeds, self.arms) if trial.level or trial.arm not in copies
        ]
        return sorted(trials, key=lambda trial: (-self.length(trial), trial.seed))

    def sharing(self) -> dict[str, list[str]]:
        """Arm -> later ones with the same trainings at level 0: those that differ in options about generated images."""
        found: dict[ReidTraining, list[str]] = {}
        for arm, training in self.arms.items():
            found.setdefault(_without_generated(training), []).append(arm)
        return {first: others for first, *others in found.values() if others}

    def length(self, trial: Trial) -> float:
        """About how long a trial takes, beside others: images trained on, of one epoch or all its steps."""
        training = self.arms[trial.arm]
        if training.steps:
            return float(training.steps * training.batch)
        run, share = self.run_of(trial), 0.0
        if training.generated_share is None:
            there = run.people if self.name == PEOPLE_SWEEP else run.pictures
            share = run.images * min(trial.level / there, 1.0)
        return training.epochs * (self.data.train_images + share)

    def run_of(self, trial: Trial) -> GeneratedRun:
        """The run whose pictures a trial trains on."""
        return self.runs[ONE_RUN] if ONE_RUN in self.runs else self.runs[trial.seed]

    def training(self, trial: Trial, out: Path, **where: int) -> ReidTraining:
        """A trial's training in OUT/trials/<trial>; where: workers, gpus, threads."""
        chosen: dict[str, int | tuple[str | Path]] = {}
        base = self.arms[trial.arm]
        if trial.level:
            kind = "people" if self.name == PEOPLE_SWEEP else "variants"
            chosen = {kind: (self.run_of(trial).path,), f"most_{kind}": trial.level, "draw_seed": trial.seed}
        else:
            base = _without_generated(base)
        folder = out / TRIALS / trial.name
        return dataclasses.replace(base, data=self.root, out=folder, seed=trial.seed, **chosen, **where)

    def to_json(self, command: str) -> bytes:
        """The text of sweep.json: the configuration and its hash, and what is derived or may change."""
        runs = {str(seed): run for seed, run in self.runs.items()}
        content = {
            "hash": self.hash,
            "configuration": self.configuration(),
            "sweep": self.name,
            "levels": list(self.levels),
            "seeds": list(self.seeds),
            "arms": list(self.arms),
            "trials": len(self.trials()),
            "equal": "steps" if all(training.steps for training in self.arms.values()) else "epochs",
            "steps": {arm: training.steps for arm, training in self.arms.items()},
            "one_generator": len({json.dumps(run.network.get("sha256")) for run in runs.values()}) == 1,
            "leak": {
                "verdict": verdict_of(self.findings),
                "allowed": self.allow_leak,
                "findings": [dataclasses.asdict(finding) for finding in self.findings],
            },
            "generators": {seed: run.network for seed, run in runs.items()},
            "paths": {"data": str(self.root), "runs": {seed: str(run.path) for seed, run in runs.items()}},
            "command": command,
        }
        return (json.dumps(content, indent=2) + "\n").encode()


def _without_generated(training: ReidTraining) -> ReidTraining:
    return dataclasses.replace(training, **_DEFAULTS)


def _frozen(training: ReidTraining, known: Collection[str] | None) -> dict[str, Json]:
    """A training's options that change its result, but for those of a level and a seed; known as in `Sweep`."""
    steps = {"steps": training.steps}
    left_out = (FREE_TO_CHANGE | DECIDED.keys()) - {"preset"}
    files = {
        name: file_sha256(path) for name in ("weights", "teacher") if (path := getattr(training, name)) is not None
    }
    values = {name: value for name, value in training.as_json().items() if name not in left_out} | steps | files
    return values if known is None else known_part(values, known, defaults(ReidTraining))


def agree(output: Output, sweep: Sweep) -> Sweep:
    """The sweep to go on with: this one, with the options that its folder knows; levels and seeds may be more than
    those that sweep.json has.

    Raises InputError that names every key in which the configurations differ, with the old and the new value, where
    levels or seeds of before are left out, and for a file that is no sweep.json.
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
            f"{output.address(SWEEP_FILE)} is not of a sweep of this program ({error}): choose another --out"
        ) from error
    added = {key for key in new_values.keys() - old_values.keys() if key.startswith("runs.")}  # of new seeds
    found = differences(old_values, new_values, default, free=added)
    different = [str(dataclasses.replace(option, key=option.key.removeprefix("training.."))) for option in found]
    for key, before in numbers.items():
        left_out = before - set(getattr(sweep, key))
        if left_out:
            different.append(f"{key} had {min(left_out)} (more extend a sweep, fewer are another)")
    if different:
        raise InputError(
            f"--out holds a sweep of another configuration: {'; '.join(different)}. Choose another --out, or the "
            "options it was begun with"
        )
    return sweep


def _flat(values: Mapping[str, Json], prefix: str = "") -> dict[str, Json]:
    """Nested mappings as one, with keys such as data.name."""
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
