"""Runs of jobs/generate.py as re-ID data: the images that a run's manifest keeps, by person.

Where only some people or images are wanted, they are the first ones, or those that a seed draws.
"""

import hashlib
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

from datasets.people.listing import UNKNOWN_CAMERA, Listing
from datasets.people.splits import DERIVED, derived_split
from datasets.runs.manifest import READERS, manifest_name, read_manifest, thresholds_of
from datasets.runs.plan import PLAN_FILE, Plan, Unit
from datasets.runs.run import GenerationRun, open_run
from datasets.runs.shards import read_shard
from datasets.runs.verdicts import KEPT, LATENT, SCORES, verdicts, with_filters, without_scores
from datasets.storage.output import Output
from passersby.errors import InputError

# ---- Which of many are taken: the first, or the first in the order that a seed draws. Those taken of a smaller number
# are always among those taken of a larger one.

Item = TypeVar("Item")


def first(items: Iterable[Item], name: Callable[[Item], str], most: int | None, draw_seed: int | None) -> list[Item]:
    """At most `most` of the items (None: all), by their own order, or by that of `drawn_key` of their names."""
    ordered = list(items)
    if most is None:
        return ordered
    if draw_seed is not None:
        ordered.sort(key=lambda item: drawn_key(draw_seed, name(item)))
    return ordered[:most]


def drawn_key(draw_seed: int, name: str) -> bytes:
    """What puts names into the order that a seed draws: sha256 of both.

    An item's key depends on no other item, as a permutation of numbers would: where a filter takes somebody out, the
    others keep their order.
    """
    return hashlib.sha256(f"{draw_seed}\n{name}".encode("utf-8", "surrogateescape")).digest()


# ---- A run as a reader of re-ID data sees it.


class Row(TypedDict):
    """What is needed of an image's row in the manifest."""

    unit: int
    person: int
    variant: int
    source: str
    camera: int | None
    verdict: str


def holds(root: str | Path) -> bool:
    """Whether a folder or URI is a run: plan.json lies in it."""
    text = os.fspath(root)
    return Output(text).exists(PLAN_FILE) if "://" in text else (Path(text) / PLAN_FILE).is_file()


def splits(root: str | Path) -> set[str]:
    """The splits that are made of a run, which has none."""
    return set(DERIVED)


def read(root: str | Path, split: str) -> Listing:
    """One split, made as `derived_split` says."""
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

    identities: the run's person + 1 (persons count from 0); people: the person as written in the run, or, in a run made
    from latents, what the real data call that person. most_people: of those with a kept image the first so many;
    most_variants: the first so many kept images of each. draw_seed: the first in the order that it draws
    (datasets/reid/runs.py). latent_only: those whose `source` is "latent". filters: thresholds in place of the run's
    own (`datasets.runs.verdicts.with_filters`). Reads the shards of the images chosen. Raises InputError where there is
    no run, no manifest or no image, and for a threshold of a score that the run has not.
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
        kept, rows = len(rows), [row for row in rows if row["source"] == LATENT]
        if not rows:
            raise InputError(
                f"{output.root_address}: its {kept:,} images are of new people, not made from the latents of real "
                "ones: give the run with --people"
            )
        if len(rows) < kept:
            notes.append(f"{output.root_address}: {kept - len(rows):,} images of new people are left out")
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
    """The manifest's rows with the verdicts of other thresholds."""
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
    """Of rows in their order the first, or the drawn, people and variants; in their order again."""
    groups = {person: list(group) for person, group in itertools.groupby(rows, key=lambda row: row["person"])}
    people = first(groups, lambda person: _name(plan, person), most_people, draw_seed)
    chosen = (first(groups[person], _image_name, most_variants, draw_seed) for person in people)
    return sorted(itertools.chain.from_iterable(chosen), key=_order)


def _image_name(row: Row) -> str:
    return f"{row['person']}/{row['variant']}"


def _images(run: GenerationRun, units: Mapping[int, Unit], rows: Sequence[Row]) -> dict[tuple[int, int], bytes]:
    """(person, variant) -> encoded bytes; every shard is read once, of the columns needed."""
    wanted = defaultdict(list)
    for row in rows:
        place = (row["person"] - units[row["unit"]].first_person) * run.plan.configuration.variants + row["variant"]
        wanted[row["unit"]].append(place)

    def of_unit(item: tuple[int, list[int]]) -> list[tuple[tuple[int, int], bytes]]:
        table = read_shard(run, units[item[0]], ["person", "variant", "image"]).take(item[1])
        # Null where an image could not be made: such rows are not kept, and no picture is unreadable, not fatal.
        return [((row["person"], row["variant"]), row["image"] or b"") for row in table.to_pylist()]

    with ThreadPoolExecutor(READERS) as readers:
        return dict(itertools.chain.from_iterable(readers.map(of_unit, wanted.items())))
