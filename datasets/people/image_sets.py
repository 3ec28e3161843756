"""Image sets: images that a metric such as FID compares as a whole, whoever they show.

A set comes from a tree, a folder, a run or a network. It is hashed, and cut into rows for the stages.
"""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.people import folders
from datasets.people.any_folder import of_names, without_clutter
from datasets.people.decoding import TRANSPARENT, read_bytes, read_header, remarks
from datasets.people.listing import CLUTTER, GALLERY, QUERY, TRAIN, Listing, joined
from datasets.people.names import files_below, is_clutter, is_image
from datasets.people.readers import data_set, published_root, read_split
from datasets.people.splits import clutter_note
from datasets.runs.manifest import manifest_name, read_manifest
from datasets.runs.plan import Unit
from datasets.runs.run import GenerationRun, open_run
from datasets.runs.shards import read_shard
from datasets.runs.verdicts import KEPT
from datasets.storage.output import Output
from passersby.errors import InputError

ROW_IMAGES = 64  # images of one row; a row is one unit of work
SPLITS = {"train": (TRAIN,), "held-out": (QUERY, GALLERY)}


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images and where they come from.

    rows: ROW_IMAGES images each, with `unit` and either `path` (of files, as bytes), `image` (encoded bytes) or the
    columns from which a network makes the images. sizes: each (height, width) and the number of images
    that have it; an image whose header cannot be read is not counted. sha256: over the names and bytes of
    all images, in the order of the names. people: the number of people, None where it is unknown. notes: lines
    for the user.
    """

    kind: str  # "tree" | "folder" | "run" | "network"
    description: str
    count: int
    rows: tuple[dict, ...]
    sizes: tuple[tuple[tuple[int, int], int], ...]
    sha256: str
    people: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> list[Path]:
        """The paths of the images, for a set that consists of files."""
        return [Path(os.fsdecode(path)) for row in self.rows for path in row["path"]]

    def size(self, option: str) -> tuple[int, int]:
        """The (height, width) that all images have. Raises InputError where sizes differ or no header can be read."""
        if len(self.sizes) == 1:
            return self.sizes[0][0]
        sizes = ", ".join(f"{count} of {height}x{width}" for (height, width), count in self.sizes[:3])
        raise InputError(
            f"{option}: {self.count} images have no one size ({sizes or 'none can be read'}): give --height and --width"
        )


def tree_images(root: Path, split: str, limit: int, seed: int = 0) -> ImageSet:
    """The images of people in one of SPLITS of a Market-1501 tree or another data set, without junk and distractors."""
    root = published_root(Path(root))
    base = root.parent if root.is_file() else root
    parts = [read_split(root, part).below(base) for part in SPLITS[split]]
    clutter = sum(part.left_out.get(CLUTTER, 0) for part in parts)
    listing = without_clutter(joined(parts).people_only(), clutter)
    if not len(listing):
        raise InputError(f"{root}: not one of its {split} images shows a person")
    chosen = listing.take(choose(len(listing), limit, seed))
    people = len(chosen.people)
    who = "training people" if split == "train" else "held-out people (query, gallery without junk and distractors)"
    return _measured("tree", f"{root.name}: {len(chosen):,} images of {people:,} {who}", chosen, people)


def splits_of(root: Path) -> set[str]:
    """The SPLITS that a data set has; an empty set for a folder whose split is unknown."""
    data = data_set(Path(root))
    if data is not None and data.reader is folders and folders.flat_training_folder(data.root) is not None:
        return set()  # pictures that lie in no person's folder
    parts = set() if data is None else data.splits()
    return {split for split, needed in SPLITS.items() if set(needed) <= parts}


def folder_images(root: Path, limit: int, seed: int = 0) -> ImageSet:
    """Every picture below a folder, flat or one sub-folder a person; links to folders are not followed."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: check the path")
    names = []
    for folder, files in files_below(root):
        names += [os.path.relpath(os.path.join(folder, name), root) for name in files]
    clutter = sum(map(is_clutter, names))
    names = sorted(filter(is_image, names))
    listing = without_clutter(of_names(root, names, [(root / name).absolute() for name in names]), clutter)
    listing = listing.take(choose(len(listing), limit, seed))
    return _measured("folder", f"{listing.name}: {len(listing):,} images", listing, None)


def run_images(output: Output, verdict: str, manifest: str | None, limit: int, seed: int = 0) -> ImageSet:
    """Images of a run of jobs/generate.py: those that a manifest keeps, or all with status ok (`verdict` "all").

    Reads the shards of the chosen images. Raises InputError where the run, its manifest or images are missing.
    """
    run = open_run(output, "--run")
    units = {unit.unit: unit for unit in run.plan.units()}
    if verdict == KEPT:
        candidates = _kept(run, units, manifest)
    else:
        candidates = [
            (unit, index)
            for unit in sorted(run.finished() & units.keys())
            for index, status in enumerate(read_shard(run, units[unit], ["status"])["status"].to_pylist())
            if status == "ok"
        ]
    if not candidates:
        raise InputError(f"--run {output.root_address}: there is no image ({verdict}) to score")
    rows_of_unit: dict[int, list[int]] = {}
    for index in choose(len(candidates), limit, seed):
        rows_of_unit.setdefault(candidates[index][0], []).append(candidates[index][1])
    images = {}
    for unit, rows in rows_of_unit.items():
        table = read_shard(run, units[unit], ["person", "variant", "image"]).take(rows)
        for row in table.to_pylist():
            images[f"{row['person']}/{row['variant']}"] = row["image"]
    people = len({name.partition("/")[0] for name in images})
    which = f"kept by {manifest_name(manifest)}" if verdict == KEPT else "whatever their verdict"
    description = f"{output.root_address.rpartition('/')[2]}: {len(images):,} images of {people:,} people, {which}"
    listing = of_names(Path(output.root_address), tuple(images), tuple(images.values()))
    return _measured("run", description, listing, people)


def _kept(run: GenerationRun, units: dict[int, Unit], manifest: str | None) -> list[tuple[int, int]]:
    output, plan, name = run.output, run.plan, manifest_name(manifest)
    if not output.exists(name):
        raise InputError(
            f"--run {output.root_address}: no {name} says which images are kept: end the run, or --verdict all"
        )
    table = read_manifest(output, manifest, ["unit", "person", "variant", "verdict"])
    return [
        (row["unit"], (row["person"] - units[row["unit"]].first_person) * plan.configuration.variants + row["variant"])
        for row in table.to_pylist()
        if row["verdict"] == KEPT and row["unit"] in units
    ]


def choose(count: int, limit: int, seed: int) -> np.ndarray:
    """Ascending indices of at most `limit` of `count` images: all of them, or a random part that the seed decides."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))


def _measured(kind: str, description: str, listing: Listing, people: int | None) -> ImageSet:
    """A set of files (absolute, as workers run in other folders) or of encoded bytes, in the order of the names."""
    listing = listing.take(sorted(range(len(listing)), key=listing.names.__getitem__))
    digest = hashlib.sha256()
    sizes: Counter[tuple[int, int]] = Counter()
    peculiar: Counter[str] = Counter()
    for name, content in zip(listing.names, listing.files, strict=True):
        try:
            data = read_bytes(content)
        except OSError as error:
            raise InputError(f"cannot read {content}: {error.strerror or error}") from error
        digest.update(f"{name}\0".encode() + hashlib.sha256(data).digest())
        if (header := read_header(data)) is not None:
            sizes[header.height, header.width] += 1
            peculiar.update(header.peculiarities)
    if peculiar[TRANSPARENT]:
        digest.update(b"on white")  # the cache may hold features of these pictures without their alpha
    clutter = clutter_note(listing.name, listing.left_out.get(CLUTTER, 0))
    notes = [*([clutter] if clutter else []), *remarks(peculiar, listing.name)]
    return ImageSet(
        kind, description, len(listing), tuple(_rows(listing)), tuple(sizes.most_common()), digest.hexdigest(), people,
        tuple(notes),
    )  # fmt: skip


def _rows(listing: Listing) -> Iterator[dict]:
    for unit, start in enumerate(range(0, len(listing), ROW_IMAGES)):
        contents = listing.contents[start : start + ROW_IMAGES]
        encoded = isinstance(contents[0], bytes)
        # Paths are bytes: text in a table must be UTF-8, and the names of files need not be.
        column = {"image": list(contents)} if encoded else {"path": list(map(os.fsencode, contents))}
        yield {"unit": unit, **column}
