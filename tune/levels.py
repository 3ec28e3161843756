"""The levels of a sweep, and the runs that it takes generated pictures from.

A level is how many artificial people, or generated pictures of each real person, stand beside the real ones. Levels are
nested inside a seed: what level 10 has is a part of what level 20 has (datasets/reid/runs.py).
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
}  # the original study's
_MOST = 9_999_999


@dataclasses.dataclass(frozen=True, order=True)
class Trial:
    """One training and evaluation: a seed, a level, and the crossed options as "key=value, ...", "" without any."""

    seed: int
    level: int
    arm: str = ""

    @property
    def name(self) -> str:
        """Name of its folder: "level-0020-seed-1", with a crossed option "level-0020-seed-1-batch-32"."""
        option = re.sub(r"[^A-Za-z0-9.]+", "-", self.arm).strip("-")
        return f"level-{self.level:04d}-seed-{self.seed}" + (f"-{option}" if option else "")


def checked(numbers: Iterable[int], option: str) -> tuple[int, ...]:
    """Levels or seeds, ascending. Raises InputError for none, one given twice, or one out of range."""
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
    """The levels, ascending, and level 0, to which all others are compared. Raises InputError as `checked` does."""
    levels = checked(levels, "--levels")
    return levels if levels[0] == 0 else (0, *levels)


def trials_of(levels: Iterable[int], seeds: Iterable[int], arms: Iterable[str]) -> list[Trial]:
    """Every level with every seed and every arm, the trials of a seed together. Raises InputError where two arms would
    have one folder."""
    levels, arms = tuple(levels), tuple(arms)
    trials = [Trial(seed, level, arm) for seed in seeds for level in levels for arm in arms]
    names: dict[str, Trial] = {}
    for trial in trials:
        other = names.setdefault(trial.name, trial)
        if other is not trial:
            raise InputError(
                f"--cross: {other.arm!r} and {trial.arm!r} would share the folder {trial.name}: leave one out"
            )
    return trials


# ---- Runs: how many people and pictures each has to give.

SUMMARY = "summary.json"


class RunRecord(TypedDict):
    """What pins the contents of generated pictures, without the folder that they lie in.

    name: what they are called. fingerprint: of their listing. Of a run, plan: the hash of its configuration; manifest:
    the file's sha256; latents: that of the table that it was made from.
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
    """A run of jobs/generate.py, or a folder or table of pictures. `plan` is None where it is no run.

    record: what pins its contents. people: how many it has;
    pictures: the most of any person; images: all. network: the generator's record with its file's sha256, {} where
    nobody wrote it.
    """

    path: str | Path
    record: RunRecord
    people: int
    pictures: int
    images: int
    network: dict[str, Json]
    plan: Plan | None


def read_generated(path: str | Path, sweep: str, data: str | Path, filters: Sequence[str] = ()) -> GeneratedRun:
    """Look at a run, by its own thresholds or those of `filters`, without decoding a picture. Raises InputError as
    `list_sources` does."""
    people, variants = ([path], []) if sweep == PEOPLE_SWEEP else ([], [path])
    found = list_sources(data, people, variants, filters=filters)[1:]
    if not found:
        raise InputError(f"--generated {path}: there is not one picture of a person of {data}")
    source = found[0]
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
            raise InputError(f"--generated {path}: its plan.json is gone")
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
    """Raises InputError for a level above what there is, which would be the training of another level again."""
    there, what = (run.people, "people") if sweep == PEOPLE_SWEEP else (run.pictures, "pictures of any person")
    beyond = [level for level in levels if level > there]
    if beyond:
        raise InputError(
            f"--levels {beyond[0]}: {run.record['name']} has {there} {what} that pass the filters: generate more, or "
            f"give levels up to {there}"
        )


def check_latents(run: GeneratedRun, latents: Latents) -> None:
    """Raises InputError unless a run was made from these latents."""
    made_from = run.record.get("latents")
    if latents.sha256 != made_from:
        raise InputError(
            f"--latents {latents.folder}: {run.record['name']} was made from other latents, or from none: give those"
        )
