"""The files of an export beside its images: frozen options, a list of identities, a list of people with few images."""

import csv
import dataclasses
import io
import json

import numpy as np

from datasets.exports.manifest import RunManifest
from datasets.exports.selection import SPLITS, Options, People
from datasets.runs.plan import PLAN_FILE
from datasets.storage.output import Output
from passersby.errors import InputError
from passersby.options import agree, defaults, differences

RECORD, IDENTITIES, SHORT = "export.json", "identities.csv", "short_people.csv"
NOTE = "Artificial people, made by Passersby: none of these images shows anybody."


@dataclasses.dataclass(frozen=True)
class Record:
    """The contents of export.json. The same options over the same manifest give the same export, byte by byte."""

    options: Options
    plan_hash: str
    manifest: str  # its name
    manifest_sha256: str

    @staticmethod
    def of(manifest: RunManifest, options: Options) -> "Record":
        """The record of an export of `manifest`. Reads the whole manifest once."""
        return Record(options, manifest.run.plan.configuration.hash, manifest.name, manifest.sha256())

    def to_json(self, people: People) -> bytes:
        """The text of export.json."""
        images_per_person = self.options.per_person or 1
        content = {
            "note": NOTE,
            **dataclasses.asdict(self),
            "people": int(people.exported.sum()),
            "images": int(people.images.sum()),
            "short_people": int(people.short(images_per_person).sum()),
        }
        return (json.dumps(content, indent=2) + "\n").encode()


def holds_export(out: Output, record: Record) -> bool:
    """Whether `out` already holds a part of this export.

    Raises InputError if the folder holds another export (the message names the options that differ), an export of a
    manifest that has changed since then, a run, or other files.
    """
    text = out.read(RECORD)
    if text is None:
        if out.exists(PLAN_FILE):
            raise InputError(f"--out {out.root_address} is the folder of a run: choose another one")
        other_files = out.list("")
        if other_files:
            raise InputError(
                f"--out {out.root_address} holds files that are not an export ({other_files[0]}): choose an empty "
                "folder"
            )
        return False
    try:
        old = json.loads(text)
        options, plan_hash, sha256 = dict(old["options"]), old["plan_hash"], old["manifest_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{out.address(RECORD)} is not a record of this program: choose another --out") from error
    new = dataclasses.asdict(record.options)
    agree("an export with other options", differences(options, new, defaults(type(record.options))))
    if plan_hash != record.plan_hash:
        raise InputError(f"--out {out.root_address} holds an export of another run: choose another --out")
    if sha256 != record.manifest_sha256:
        raise InputError(
            f"{record.manifest} has changed since this export started (its sha256 is {record.manifest_sha256[:12]}, "
            f"not {str(sha256)[:12]}): choose another --out, or derive the manifest as it was"
        )
    return True


def begin(out: Output, record: Record, people: People) -> None:
    """Write export.json, then identities.csv and short_people.csv, unless they exist."""
    images_per_person = record.options.per_person or 1
    for name, content in (
        (RECORD, lambda: record.to_json(people)),
        (IDENTITIES, lambda: identities_csv(people)),
        (SHORT, lambda: short_csv(people, images_per_person)),
    ):
        if not out.exists(name):
            out.write(name, content())


def identities_csv(people: People) -> bytes:
    """One line for each exported person: identity, label, split, person, seed, images, name (of real people).

    label: the index among the sorted training identities, from 0. This is the class number of loaders that number the
    sorted identities (torchvision's ImageFolder). It is empty for test people.
    """
    rows, label = [], 0
    for index in np.flatnonzero(people.exported).tolist():
        train = people.split[index] == 0
        split = SPLITS[0] if train else "test"
        name = people.names[index] if people.names else ""
        rows.append([people.identity[index], label if train else "", split, *_who(people, index, people.images), name])
        label += int(train)
    return _csv(["identity", "label", "split", "person", "seed", "images", "name"], rows)


def short_csv(people: People, images_per_person: int) -> bytes:
    """One line for each person with fewer kept images than `images_per_person`: person, seed, images.

    People with 0 images are not in the export.
    """
    return _csv(
        ["person", "seed", "images"],
        [_who(people, index, people.kept) for index in np.flatnonzero(people.short(images_per_person)).tolist()],
    )


def _who(people: People, index: int, images: np.ndarray) -> list[int | str]:
    seed = people.seed[index]
    return [people.person[index], seed if seed >= 0 else "", images[index]]


def _csv(header: list[str], rows: list[list[int | str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()
