"""Image sets: images that are compared as a whole, as by FID, whoever they show; hashed, and cut into rows for stages.

A set comes from a tree, a folder, a run or a network. Reading and decoding one image of a modest size stand here too.
"""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from datasets.people.market_tree import MOST_PIXELS, DecodingError, decode, header_size, identities, list_split, resized
from datasets.runs.manifest import manifest_name, read_manifest
from datasets.runs.plan import Plan, Unit
from datasets.runs.run import Run, open_run
from datasets.runs.shards import read_shard
from datasets.runs.verdicts import KEPT
from datasets.storage.output import Output
from passersby.errors import InputError

Content = TypeVar("Content", str, bytes)  # an image: the path of its file, or its encoded bytes
ROW_IMAGES = 64  # of one row, which is one unit of work
MOST_BYTES = 64 << 20  # of one file
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
SPLITS = {"train": ("train",), "held-out": ("query", "gallery")}


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images and where they come from.

    rows: of ROW_IMAGES images each, with `unit` and either `path` (files) or `image` (encoded bytes), or what makes
    them. sizes: (height, width) of those whose header can be read, with their number. sha256: over the names and the
    bytes of all, in the order of the names. people: how many, where that is known.
    """

    kind: str  # "tree" | "folder" | "run" | "network"
    description: str
    count: int
    rows: tuple[dict, ...]
    sizes: tuple[tuple[tuple[int, int], int], ...]
    sha256: str
    people: int | None = None

    def size(self, option: str) -> tuple[int, int]:
        """The (height, width) that all of them have. Raises InputError where they differ or none can be read."""
        if len(self.sizes) == 1:
            return self.sizes[0][0]
        found = ", ".join(f"{count} of {height}x{width}" for (height, width), count in self.sizes[:3])
        raise InputError(
            f"{option}: {self.count} images have no one size ({found or 'none can be read'}): give --height and --width"
        )


def tree_images(root: Path, split: str, limit: int, seed: int = 0) -> ImageSet:
    """The images of people in one of SPLITS of a Market-1501 tree, without junk (-1) and distractors (0)."""
    root = Path(root)
    files = [file for part in SPLITS[split] for file in list_split(root, part) if file.identity > 0]
    if not files:
        raise InputError(f"{root}: not one of its {split} images shows a person")
    chosen = [files[place] for place in choose(len(files), limit, seed)]
    named = {f"{file.path.parent.name}/{file.path.name}": file.path for file in chosen}
    people = identities(chosen)
    who = "training people" if split == "train" else "held-out people (query, gallery without junk and distractors)"
    return _of_files("tree", f"{root.name}: {len(chosen):,} images of {len(people):,} {who}", named, len(people))


def has_held_out(root: Path) -> bool:
    """Whether a tree has query and gallery."""
    return all((Path(root) / name).is_dir() for name in ("query", "bounding_box_test"))


def is_tree(root: Path) -> bool:
    """Whether a folder is a Market-1501 tree."""
    return (Path(root) / "bounding_box_train").is_dir()


def folder_images(root: Path, limit: int, seed: int = 0) -> ImageSet:
    """Every JPEG and PNG below a folder, flat or one sub-folder a person; links to folders are not followed."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: check the path")
    names = []
    for folder, _, files in os.walk(root):
        names += [os.path.relpath(os.path.join(folder, name), root) for name in files if _is_image(name)]
    if not names:
        raise InputError(f"no images (jpg, png) in {root}")
    names.sort()
    chosen = {Path(names[place]).as_posix(): root / names[place] for place in choose(len(names), limit, seed)}
    return _of_files("folder", f"{root.name}: {len(chosen):,} images", chosen, None)


def run_images(output: Output, verdict: str, manifest: str | None, limit: int, seed: int = 0) -> ImageSet:
    """Images of a run of jobs/generate.py: those that a manifest keeps, or (`verdict` "all") all that could be made.

    Reads the shards of the chosen images. Raises InputError where there is no run, no manifest or no image.
    """
    run = open_run(output, "--run")
    units = {unit.unit: unit for unit in run.plan.units()}
    if verdict == KEPT:
        candidates = _kept(run, units, manifest)
    else:
        candidates = [
            (unit, place)
            for unit in sorted(run.finished() & units.keys())
            for place, status in enumerate(read_shard(run, units[unit], ["status"])["status"].to_pylist())
            if status == "ok"
        ]
    if not candidates:
        raise InputError(f"--run {output.root_address}: there is no image ({verdict}) to score")
    wanted: dict[int, list[int]] = {}
    for place in choose(len(candidates), limit, seed):
        wanted.setdefault(candidates[place][0], []).append(candidates[place][1])
    named = {}
    for unit, places in wanted.items():
        table = read_shard(run, units[unit], ["person", "variant", "image"]).take(places)
        for row in table.to_pylist():
            named[f"{row['person']}/{row['variant']}"] = row["image"]
    people = len({name.partition("/")[0] for name in named})
    which = f"kept by {manifest_name(manifest)}" if verdict == KEPT else "whatever their verdict"
    description = f"{output.root_address.rpartition('/')[2]}: {len(named):,} images of {people:,} people, {which}"
    return _measured("run", description, named, people, lambda content: content, "image")


def _kept(run: Run[Plan], units: dict[int, Unit], manifest: str | None) -> list[tuple[int, int]]:
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
    """Ascending places of at most `limit` of `count` images: all, or a random part that the seed decides."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def _of_files(kind: str, description: str, files: Mapping[str, Path], people: int | None) -> ImageSet:
    def read(path: Path) -> bytes:
        try:
            return read_bytes(path)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error

    paths = {name: str(path.absolute()) for name, path in files.items()}  # workers run in other folders
    return _measured(kind, description, paths, people, lambda path: read(Path(path)), "path")


def _measured(
    kind: str,
    description: str,
    items: Mapping[str, Content],
    people: int | None,
    read: Callable[[Content], bytes],
    column: str,
) -> ImageSet:
    digest = hashlib.sha256()
    sizes: Counter[tuple[int, int]] = Counter()
    for name in sorted(items):
        content = read(items[name])
        digest.update(f"{name}\0".encode() + hashlib.sha256(content).digest())
        if (size := header_size(content)) is not None:
            sizes[size] += 1
    rows = tuple(_rows(column, [items[name] for name in sorted(items)]))
    return ImageSet(kind, description, len(items), rows, tuple(sizes.most_common()), digest.hexdigest(), people)


def _rows(column: str, items: Sequence[Content]) -> Iterable[dict[str, int | list[Content]]]:
    for unit, start in enumerate(range(0, len(items), ROW_IMAGES)):
        yield {"unit": unit, column: list(items[start : start + ROW_IMAGES])}


def read_bytes(path: Path) -> bytes:
    """A file's first MOST_BYTES and one: a longer one cannot be decoded, and is no person's picture."""
    with path.open("rb") as file:
        return file.read(MOST_BYTES + 1)


def decode_scaled(data: bytes, height: int, width: int) -> np.ndarray:
    """JPEG or PNG bytes -> uint8 [height, width, 3] RGB; shrinking averages areas, enlarging is bilinear.

    Raises DecodingError for bytes that are no such image, or one of more than MOST_PIXELS.
    """
    return resized(decode_own_size(data), height, width)


def decode_own_size(data: bytes) -> np.ndarray:
    """JPEG or PNG bytes -> uint8 [H, W, 3] RGB. Errors as `decode_scaled`."""
    size = header_size(data)
    if size is None or len(data) > MOST_BYTES or size[0] * size[1] > MOST_PIXELS:
        raise DecodingError(f"the {len(data)} bytes stored are no JPEG or PNG image of a modest size")
    return decode(data)
