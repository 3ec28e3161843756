"""The levels of a sweep, and the runs from which it takes generated pictures.

A level is the number of artificial people, or of generated pictures of each real person, that a training adds to the
real pictures. Levels are nested inside a seed: the pictures of level 10 are a part of those of level 20
(datasets/reid/runs.py).
"""

import collections
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from datasets.latents.table import Latents
from datasets.reid import runs
from datasets.reid.sources import list_sources
from datasets.runs.manifest import manifest_name
from datasets.runs.plan import Plan, read_plan
from datasets.storage.output import Output
from passersby.errors import InputError
from passersby.options import Json

# ---- Levels, and the trials of all of them.

PEOPLE_SWEEP, VARIANTS_SWEEP = "artificial-people", "variants-of-real-people"
LEVELS = {
    PEOPLE_SWEEP: (*range(0, 101, 10), 150, 200, 250, 280, 300, 320),
    VARIANTS_SWEEP: (*range(0, 46, 5), 60, 70, 85, 105, 135),
}  # the levels of the original study
_MOST = 9_999_999


@dataclasses.dataclass(frozen=True, order=True)
class Trial:
    """One training and evaluation. arm: the name of the arm, such as "key=value, ..."; "" if there is one arm."""

    seed: int
    level: int
    arm: str = ""

    @property
    def name(self) -> str:
        """The name of the trial's folder: "level-0020-seed-1", or with an arm "level-0020-seed-1-batch-32"."""
        option = re.sub(r"[^A-Za-z0-9.]+", "-", self.arm).strip("-")
        return f"level-{self.level:04d}-seed-{self.seed}" + (f"-{option}" if option else "")


def checked(numbers: Iterable[int], option: str) -> tuple[int, ...]:
    """Levels or seeds, ascending. Raises InputError without numbers, for a number twice, and for one out of range."""
    numbers = tuple(numbers)
    if not numbers:
        raise InputError(f"{option}: give one number or more")
    for number in numbers:
        if not 0 <= number <= _MOST:
            raise InputError(f"{option} {number}: must be 0 to {_MOST}")
        if numbers.count(number) > 1:
            raise InputError(f"{option} {number} is given twice: give it once")
    return tuple(sorted(numbers))


def with_baseline(levels: Iterable[int]) -> tuple[int, ...]:
    """The levels, ascending, with level 0, the baseline of all comparisons. Raises InputError as `checked` does."""
    levels = checked(levels, "--levels")
    return levels if levels[0] == 0 else (0, *levels)


def trials_of(levels: Iterable[int], seeds: Iterable[int], arms: Iterable[str]) -> list[Trial]:
    """Every level with every seed and every arm, seed by seed. Raises InputError if two arms would share a folder."""
    levels, arms = tuple(levels), tuple(arms)
    trials = [Trial(seed, level, arm) for seed in seeds for level in levels for arm in arms]
    names: dict[str, Trial] = {}
    for trial in trials:
        first = names.setdefault(trial.name, trial)
        if first is not trial:
            raise InputError(
                f"--cross: {first.arm!r} and {trial.arm!r} would share the folder {trial.name}: leave one out"
            )
    return trials


# ---- Runs: their numbers of people and pictures.

SUMMARY = "summary.json"


class RunRecord(TypedDict):
    """A record that identifies the contents of generated pictures, without their folder.

    name: the name of their listing; fingerprint: that of the listing. For a run, plan: the hash of its configuration;
    manifest: the sha256 of the file; latents: the sha256 of the latents table that the run uses.
    """

    name: str
    images: int
    people: int
    fingerprint: str
    plan: str | None
    manifest: NotRequired[str]
    latents: NotRequired[str | None]


@dataclasses.dataclass(frozen=True)
class GeneratedRun:
    """A run of jobs/generate.py, or a folder or table of pictures, for which `plan` is None.

    record: it identifies the contents. people: the number of people; pictures: the largest number of pictures of a
    person; images: the number of all pictures. network: the generator's record with the sha256 of its file, {} if there
    is none.
    """

    path: str | Path
    record: RunRecord
    people: int
    pictures: int
    images: int
    network: dict[str, Json]
    plan: Plan | None


def read_generated(path: str | Path, sweep: str, data: str | Path, filters: Sequence[str] = ()) -> GeneratedRun:
    """Read a run, with its own thresholds or those of `filters`, without decoding pictures.

    Raises InputError as `list_sources` does, and without pictures of people.
    """
    people, variants = ([path], []) if sweep == PEOPLE_SWEEP else ([], [path])
    sources = list_sources(data, people, variants, filters=filters)[1:]
    if not sources:
        raise InputError(f"--generated {path}: it has no picture of a person of {data}")
    source = sources[0]
    counts = collections.Counter(source.persons)
    record: RunRecord = {
        "name": source.listing.name,
        "images": len(source),
        "people": len(counts),
        "fingerprint": source.listing.fingerprint(),
        "plan": None,
    }
    plan, network = None, {}
    if runs.holds(path):
        output = Output(str(path))
        plan = read_plan(output)
        if plan is None:
            raise InputError(f"--generated {path}: its plan.json is missing")
        manifest = hashlib.sha256(output.read(manifest_name()) or b"").hexdigest()
        record["plan"], record["manifest"] = plan.configuration.hash, manifest
        record["latents"] = plan.configuration.latents
        network = _network(output)
    return GeneratedRun(path, record, len(counts), max(counts.values()), len(source), network, plan)


def _network(output: Output) -> dict[str, Json]:
    try:
        network = json.loads(output.read(SUMMARY) or b"{}").get("network", {})
    except (ValueError, AttributeError, RecursionError):
        return {}
    return network if isinstance(network, dict) else {}


def check_enough(run: GeneratedRun, sweep: str, levels: tuple[int, ...]) -> None:
    """Raise InputError for a level above the run's pictures: it would repeat the training of a lower level."""
    available, noun = (run.people, "people") if sweep == PEOPLE_SWEEP else (run.pictures, "pictures of any person")
    impossible = [level for level in levels if level > available]
    if impossible:
        raise InputError(
            f"--levels {impossible[0]}: {run.record['name']} has {available} {noun} that pass the filters: generate "
            f"more, or give levels up to {available}"
        )


def check_latents(run: GeneratedRun, latents: Latents) -> None:
    """Raise InputError unless a run was made from these latents."""
    latents_sha256 = run.record.get("latents")
    if latents.sha256 != latents_sha256:
        raise InputError(
            f"--latents {latents.folder}: {run.record['name']} was made from other latents, or from none: give the "
            "run's own latents"
        )
