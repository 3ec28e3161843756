"""Write the kept images of a run for other tools: `python jobs/export.py --run OUT --out DEST --format market1501`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from datasets.exports.listings import LISTED, write_listings
from datasets.exports.manifest import RunManifest
from datasets.exports.record import IDENTITIES, RECORD, SHORT, Record, begin, holds_export
from datasets.exports.selection import FILES_OF_MANY, ExportImages, Options, People, assign
from datasets.exports.trees import loader_notes, write_empty_notes
from datasets.exports.write import run_tasks, tasks
from datasets.runs.run import GenerationRun, open_run
from datasets.storage.output import Output
from jobs.common import run_job
from passersby.bounds import Bound, check_bounds
from passersby.errors import InputError
from reporting.progress import ProgressLine

HOW_TO_READ = {
    "fiftyone": "fiftyone.Dataset.from_dir({out!r}, dataset_type=fiftyone.types.FiftyOneDataset)",
    "huggingface": "datasets.load_dataset('imagefolder', data_dir={out!r}, split='train')",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Write the kept images of a finished run as other tools read them. JPEG bytes are passed on as they are stored.

    Example: python jobs/export.py --run /data/people --out /data/market1501 --format market1501 --compact-ids
    --cameras 6 --test-people 100
    torchreid then loads the tree with root /data, fast-reid with FASTREID_DATASETS=/data/market1501.
    The same command again does what is missing and nothing else.
    """

    run: Annotated[str, tyro.conf.arg(metavar="DIR_OR_URI")]
    """The run: the folder or URI that jobs/generate.py wrote."""
    out: Annotated[str, tyro.conf.arg(metavar="DIR_OR_URI")]
    """Where to write: an empty folder or a URI such as s3://bucket/export."""
    format: Literal["market1501", "webdataset", "folder", "table", "fiftyone", "huggingface"]
    """market1501: a tree with bounding_box_train. folder: a sub-folder for each person (torchvision's ImageFolder).
    webdataset: people-NNNNNN.tar, each image with a .json.
    table: table/people-NNNNNN.parquet, images and scores.
    fiftyone: a FiftyOneDataset of FiftyOne. huggingface: an imagefolder with metadata.jsonl for the library of that
    name. Both have every score and verdict as fields."""
    manifest: str | None = None
    """Name of the manifest that says which images are kept, as given to jobs/refilter.py --name.
    By default the run's own manifest."""
    per_person: int | None = None
    """Export only the first N kept images of each person, in the order of variants. By default all.
    short_people.csv lists the people with fewer images."""
    people: int | None = None
    """Export only the first N people who have images to export."""
    first_identity: int | None = None
    """Person i becomes identity --first-identity + i. By default 1 + i.
    Variants of real people keep by default the numbers of their data set.
    No identity is ever 0 or -1, which mean distractors and junk."""
    compact_ids: bool = False
    """Number the exported people one after the other. People without a kept image then leave no gaps."""
    camera: int = 1
    """The camera of images that have none. Generated people have one only if their network has labels of cameras."""
    cameras: int = 1
    """Spread images without a camera over N cameras, by variant. The first of them is --camera."""
    test_people: int = 0
    """market1501: the last N people are for testing, not for training.
    The first image of each becomes a query, the others become the gallery."""
    loader_limits: bool = True
    """market1501: refuse a tree that torchreid and fast-reid would refuse: identities above 1501, cameras above 6."""
    jpeg_quality: int | None = None
    """Convert the images of a run of PNG files to JPEG of this quality, 1 to 100."""
    images_per_file: int | None = None
    """webdataset, table: number of images in one file. By default 10000, fewer if images are large."""
    threads: Annotated[int, Bound(ge=1, le=256)] = 4
    """Number of units (or files) that are written at a time. Give more for object stores.
    The bytes do not depend on the number."""
    dry_run: bool = False
    """Print what would be exported; write nothing."""

    def frozen(self) -> Options:
        """The part that decides the bytes, checked. Raises InputError."""
        return Options(
            format=self.format,
            per_person=self.per_person,
            people=self.people,
            first_identity=self.first_identity,
            compact_ids=self.compact_ids,
            camera=self.camera,
            cameras=self.cameras,
            test_people=self.test_people,
            jpeg_quality=self.jpeg_quality,
            images_per_file=self.images_per_file,
        )


def main(config: Config) -> None:
    """Choose the images, freeze the choice, write what is missing."""
    options = config.frozen()
    check_bounds(config)
    manifest = RunManifest(_run(config.run), config.manifest)
    configuration = manifest.run.plan.configuration
    options = options.completed(configuration.image_bytes, configuration.format)
    out = Output(config.out)
    record = Record.of(manifest, options)
    continued = holds_export(out, record)
    people = assign(manifest, options)
    describe(config, options, manifest, people)
    if options.format == "market1501":
        for note in loader_notes(out, options, people, config.loader_limits):
            print(f"note: {note}")
    if config.dry_run:
        return
    if continued:
        out.remove_leftovers()
    begin(out, record, people)
    if options.format == "market1501":
        write_empty_notes(out, options)
    existing = set(out.list("")) if continued else set()
    if options.format in LISTED:
        suffix = ExportImages(manifest, options.jpeg_quality).suffix
        write_listings(out, manifest, options, people, suffix)
    write(config, options, manifest, out, people, existing)
    print(f"{people.images.sum():,} images of {people.exported.sum():,} people, as {out.address(RECORD)} says")
    print(f"who is who: {out.address(IDENTITIES)}")
    if options.format in HOW_TO_READ:
        print(f"read it with: {HOW_TO_READ[options.format].format(out=out.root_address)}")


def _run(address: str) -> GenerationRun:
    try:
        output = Output(address)
    except InputError as error:  # its message names the option --out
        raise InputError(str(error).replace("--out", "--run")) from error
    return open_run(output, "--run")


def describe(config: Config, options: Options, manifest: RunManifest, people: People) -> None:
    """Print how many images and people the export takes, and how many people have too few images."""
    if manifest.rows < manifest.run.plan.images:
        print(f"note: {manifest.name} judges {manifest.rows:,} of the {manifest.run.plan.images:,} planned images")
    identities = people.identity[people.exported]
    files = f", {options.images_per_file:,} images a file" if options.format in FILES_OF_MANY else ""
    print(
        f"{options.format}: {people.images.sum():,} images of {len(identities):,} people, identities "
        f"{identities.min()} to {identities.max()}{files}",
        flush=True,
    )
    per_person = options.per_person or 1
    short, none = people.short(per_person), people.short(1)
    if short.any():
        fewer = f"{short.sum():,} people have fewer than {per_person} kept images, {none.sum():,} of them none"
        print(f"{fewer if per_person > 1 else f'{none.sum():,} people have no kept image'} (listed in {SHORT})")


def write(
    config: Config, options: Options, manifest: RunManifest, out: Output, people: People, existing: set[str]
) -> None:
    """Write the missing files, and show the progress in a line."""
    total = units = missing = missing_units = 0
    for task in tasks(manifest, out, options, people, existing):
        total, units = total + task.images, units + 1
        missing, missing_units = missing + task.missing, missing_units + (task.missing > 0)
    if not missing:
        print("everything is there")
        return
    with ProgressLine(units, total, units - missing_units, total - missing) as line:
        work = tasks(manifest, out, options, people, existing)
        run_tasks(work, config.threads, lambda task: line.update(task.missing))


if __name__ == "__main__":
    run_job(main, Config)
