"""The generated pictures of a sweep: what a run is, and how many people and pictures it has to give."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets.latents.table import Latents
from datasets.reid import runs as reid_runs
from datasets.reid.sources import list_sources
from datasets.runs.manifest import manifest_name
from datasets.runs.plan import Plan, read_plan
from datasets.storage.output import Output
from passersby.errors import InputError
from tune.levels import PEOPLE_SWEEP

SUMMARY = "summary.json"


@dataclasses.dataclass(frozen=True)
class GeneratedRun:
    """A run of jobs/generate.py, or a folder or table of pictures. `plan` is None where it is no run.

    record: what pins its contents, plain JSON values, without the folder that it lies in. people: how many it has;
    pictures: the most of any person; images: all. network: the generator's record with its file's sha256, {} where
    nobody wrote it.
    """

    path: str | Path
    record: dict[str, Any]
    people: int
    pictures: int
    images: int
    network: dict[str, Any]
    plan: Plan | None


def read_generated(path: str | Path, sweep: str, data: Path, filters: Sequence[str] = ()) -> GeneratedRun:
    """Look at a run, by its own thresholds or those of `filters`, without decoding a picture. Raises InputError as
    `list_sources` does."""
    kinds = {"people": [path]} if sweep == PEOPLE_SWEEP else {"variants": [path]}
    found = list_sources(data, **kinds, filters=filters)[1:]
    if not found:
        raise InputError(f"--generated {path}: there is not one picture of a person of {data}")
    source = found[0]
    counts = collections.Counter(source.persons)
    record = {"name": source.listing.name, "images": len(source), "people": len(counts)}
    record |= {"fingerprint": source.listing.fingerprint(), "plan": None}
    plan, network = None, {}
    if reid_runs.holds(path):
        output = Output(str(path))
        plan = read_plan(output)
        manifest = hashlib.sha256(output.read(manifest_name()) or b"").hexdigest()
        record |= {"plan": plan.configuration.hash, "manifest": manifest, "latents": plan.configuration.latents}
        network = _network(output)
    return GeneratedRun(path, record, len(counts), max(counts.values()), len(source), network, plan)


def _network(output: Output) -> dict[str, Any]:
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
