"""Reads runs of jobs/generate.py as re-ID data: the images that a run's manifest keeps, by person.

A caller may limit the numbers of people and images. It gets the first ones, or those that a seed draws.
"""

import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.people.listing import UNKNOWN_CAMERA, Listing, drawn_key
from datasets.people.splits import DERIVED, derived_split
from datasets.runs.manifest import READERS, manifest_name, read_manifest, thresholds_of
from datasets.runs.plan import PLAN_FILE, Plan, Unit
from datasets.runs.run import GenerationRun, open_run
from datasets.runs.shards import read_shard
from datasets.runs.verdicts import KEPT, LATENT, SCORES, verdicts, with_filters, without_scores
from datasets.storage.output import Output
from passersby.errors import InputError

# ---- Selection of items: the first ones, or the first ones in the order that a seed draws. A larger selection always
# includes a smaller one.

Item = TypeVar("Item")


def first(items: Iterable[Item], name: Callable[[Item], str], most: int | None, draw_seed: int | None) -> list[Item]:
    """The first `most` items (None: all), in their own order, or in the order of their names' `drawn_key`."""
    ordered = list(items)
    if most is None:
        return ordered
    if draw_seed is not None:
        ordered.sort(key=lambda item: drawn_key(draw_seed, name(item)))
    return ordered[:most]


# ---- The reader of runs.


class Row(TypedDict):
    """The values of an image's row in the manifest that this module needs."""

    unit: int
    person: int
    variant: int
    source: str
    camera: int | None
    verdict: str


def holds(root: str | Path) -> bool:
    """Whether a folder or URI is a run: it holds a plan.json."""
    text = os.fspath(root)
    return Output(text).exists(PLAN_FILE) if "://" in text else (Path(text) / PLAN_FILE).is_file()


def splits(root: str | Path) -> set[str]:
    """The splits that `derived_split` makes from a run, which has no splits."""
    return set(DERIVED)


def read(root: str | Path, split: str) -> Listing:
    """Return one split, which `derived_split` makes."""
    return derived_split(read_run(root), split)


def read_run(
    root: str | Path,
    most_people: int | None = None,
    most_variants: int | None = None,
    latent_only: bool = False,
    draw_seed: int | None = None,
    filters: Sequence[str] = (),
) -> Listing:
    """The kept images of a run, as bytes, in the order of person and variant.

    identities: the run's person + 1 (persons count from 0). people: the person's number in the run; in a run made
    from latents, the person's name in the real data. most_people: take only the first this many people with a
    kept image. most_variants: take only the first this many kept images of each person. draw_seed: "first" means
    first in the order that this seed draws (see `drawn_key`). latent_only: take only images whose `source` is
    "latent". filters: thresholds in place of the run's own (`datasets.runs.verdicts.with_filters`). Reads the
    shards of the chosen images. Raises InputError where the run, its manifest or kept images are missing, and
    for a threshold of a score that the run did not measure.
    """
    output = Output(os.fspath(root))
    run = open_run(output)
    plan = run.plan
    if not output.exists(manifest_name()):
        raise InputError(f"{output.root_address}: no {manifest_name()} says which images are kept: end the run")
    units = {unit.unit: unit for unit in plan.units()}
    columns = ["unit", "person", "variant", "source", "camera"]
    table = read_manifest(output, columns=[*dict.fromkeys((*columns, *(SCORES if filters else ["verdict"])))])
    if filters:
        table = _filtered(output, table, filters)
    rows: list[Row] = (
        table.filter(pc.call_function("equal", [table["verdict"], KEPT])).select([*columns, "verdict"]).to_pylist()
    )
    rows = [row for row in rows if row["unit"] in units]
    if not rows:
        which = f"--filters {' '.join(filters)} keeps" if filters else f"{manifest_name()} keeps"
        raise InputError(f"{output.root_address}: {which} no image: jobs/refilter.py tries other thresholds in seconds")
    notes = []
    if latent_only:
        count, rows = len(rows), [row for row in rows if row["source"] == LATENT]
        if not rows:
            raise InputError(
                f"{output.root_address}: its {count:,} images are of new people, not made from the latents of real "
                "ones: give the run with --people"
            )
        if len(rows) < count:
            notes.append(f"{output.root_address}: {count - len(rows):,} images of new people are left out")
    rows = _first(plan, sorted(rows, key=_order), most_people, most_variants, draw_seed)
    images = _images(run, units, rows)
    cameras = [UNKNOWN_CAMERA if row["camera"] is None else row["camera"] for row in rows]
    return Listing(
        name=f"run {output.root_address.rstrip('/').rpartition('/')[2]}",
        contents=tuple(images[row["person"], row["variant"]] for row in rows),
        identities=np.array([row["person"] + 1 for row in rows], np.int64),
        cameras=np.array(cameras, np.int64),
        names=tuple(map(_image_name, rows)),
        people={row["person"] + 1: _name(plan, row["person"]) for row in rows},
        notes=tuple(notes),
    )


def _filtered(output: Output, table: pa.Table, filters: Sequence[str]) -> pa.Table:
    """The manifest's rows with the verdicts of the filters' thresholds."""
    thresholds = with_filters(thresholds_of(table), filters)
    for name, score in without_scores(table, thresholds).items():
        raise InputError(
            f"--filters {name}={getattr(thresholds, name):g}: {output.root_address} measured no {score}: make the run "
            "with --identity and --real, or leave it out"
        )
    return table.append_column("verdict", verdicts(table, thresholds))


def _name(plan: Plan, person: int) -> str:
    origins = plan.configuration.origins
    return origins[person].name if origins else str(person)


def _order(row: Row) -> tuple[int, int]:
    return row["person"], row["variant"]


def _first(
    plan: Plan, rows: list[Row], most_people: int | None, most_variants: int | None, draw_seed: int | None
) -> list[Row]:
    """The rows of the first, or the drawn, people and variants. `rows` and the result are in the order of `_order`."""
    groups = {person: list(group) for person, group in itertools.groupby(rows, key=lambda row: row["person"])}
    people = first(groups, lambda person: _name(plan, person), most_people, draw_seed)
    chosen = (first(groups[person], _image_name, most_variants, draw_seed) for person in people)
    return sorted(itertools.chain.from_iterable(chosen), key=_order)


def _image_name(row: Row) -> str:
    return f"{row['person']}/{row['variant']}"


def _images(run: GenerationRun, units: Mapping[int, Unit], rows: Sequence[Row]) -> dict[tuple[int, int], bytes]:
    """Map (person, variant) to encoded bytes. Every shard is read once, and only the needed columns."""
    rows_of_unit = defaultdict(list)
    for row in rows:
        index = (row["person"] - units[row["unit"]].first_person) * run.plan.configuration.variants + row["variant"]
        rows_of_unit[row["unit"]].append(index)

    def of_unit(item: tuple[int, list[int]]) -> list[tuple[tuple[int, int], bytes]]:
        table = read_shard(run, units[item[0]], ["person", "variant", "image"]).take(item[1])
        # A null image could not be made, and its row is not kept. Empty bytes are an unreadable image, not fatal.
        return [((row["person"], row["variant"]), row["image"] or b"") for row in table.to_pylist()]

    with ThreadPoolExecutor(READERS) as readers:
        return dict(itertools.chain.from_iterable(readers.map(of_unit, rows_of_unit.items())))
