"""The files that describe a tree of images to FiftyOne and to Hugging Face's library of data sets, every row of it.

- FiftyOne (voxel51/fiftyone 1.22, fiftyone/utils/data/importers.py, FiftyOneDatasetImporter) reads metadata.json, one
  document about the data set and its fields, and samples.json, {"samples": [...]} with a document for each image; both
  are MongoDB's extended JSON. Later versions bring documents of VERSION up to date by themselves.
- Hugging Face's `imagefolder` (huggingface/datasets 5.2) reads train/metadata.jsonl, one JSON line an image, whose
  `file_name` is relative to it. The folder's name makes it the split train.

The manifest alone decides both, so a file that exists never has to be written again.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from datasets.exports.manifest import RunManifest
from datasets.exports.record import NOTE
from datasets.exports.selection import Options, People, select
from datasets.exports.trees import image_names
from datasets.exports.write import finite
from datasets.runs.manifest import MANIFEST_SCHEMA
from datasets.storage.output import Output
from passersby.options import Json

METADATA, SAMPLES, LINES = "metadata.json", "samples.json", "train/metadata.jsonl"
VERSION = "1.0.0"  # of FiftyOne's documents
LISTED = {"fiftyone": (SAMPLES, METADATA), "huggingface": (LINES,)}  # format -> its files beside the images
_FIELDS = "fiftyone.core.fields."
_FIELD_TYPES = {pa.int64(): "IntField", pa.float32(): "FloatField", pa.string(): "StringField"}


def write_listings(out: Output, manifest: RunManifest, options: Options, people: People, suffix: str) -> None:
    """Write the files of LISTED that do not exist yet, whole and atomically; rows stream from the manifest."""
    for name in LISTED[options.format]:
        if out.exists(name):
            continue
        if name == METADATA:
            out.write(name, (json.dumps(_document(), indent=1) + "\n").encode())
            continue
        rows = _rows(manifest, options, people, suffix)
        with out.replacing(name) as target, open(target, "w", encoding="utf-8", newline="\n") as file:
            if name == LINES:
                file.writelines(f"{json.dumps(_line(path, row))}\n" for path, row in rows)
                continue
            file.write('{"samples": [\n')
            for index, (path, row) in enumerate(rows):
                file.write(f"{',' * (index > 0)}{json.dumps(_sample(path, row))}\n")
            file.write("]}\n")


def _columns() -> dict[str, pa.DataType]:
    return {"identity": pa.int64()} | {field.name: field.type for field in MANIFEST_SCHEMA}


def _rows(
    manifest: RunManifest, options: Options, people: People, suffix: str
) -> Iterator[tuple[str, dict[str, Json]]]:
    """The name of each image of the export, relative to the export's folder, and its row without NaN."""
    for piece in select(manifest, options, people, MANIFEST_SCHEMA.names):
        names = image_names(piece, options, people, suffix)
        rows = piece.table.select(list(_columns())).to_pylist()
        for name, row in zip(names, rows, strict=True):
            yield name, {key: finite(value) for key, value in row.items()}


def _line(path: str, row: dict[str, Json]) -> dict[str, Json]:
    return {"file_name": path.removeprefix("train/")} | row


# ---- FiftyOne's documents.


def _sample(path: str, row: dict[str, Json]) -> dict[str, Json]:
    # Numbers and names of a sample are made of its own name: the same export has the same bytes.
    digest = hashlib.sha256(path.encode()).digest()
    kind = "image/png" if path.endswith(".png") else "image/jpeg"
    size: dict[str, Json] = {"width": row["width"], "height": row["height"], "num_channels": 3}
    return {
        "_id": {"$oid": digest[:12].hex()},
        "filepath": path,
        "tags": ["train"],
        "metadata": {"_cls": "ImageMetadata", "size_bytes": None, "mime_type": kind} | size,
        "_media_type": "image",
        "_rand": int.from_bytes(digest[12:18], "big") / 2**48,  # FiftyOne's random views sort by it
    } | row


def _document() -> dict[str, Json]:
    embedded = "fiftyone.core.metadata.ImageMetadata"
    parts = {"size_bytes": "IntField", "mime_type": "StringField", "width": "IntField", "height": "IntField"}
    metadata: list[Json] = [_field(name, kind) for name, kind in (parts | {"num_channels": "IntField"}).items()]
    fields: list[Json] = [
        _field("id", "ObjectIdField", db_field="_id"),
        _field("filepath", "StringField"),
        _field("tags", "ListField", subfield=f"{_FIELDS}StringField"),
        _field("metadata", "EmbeddedDocumentField", embedded_doc_type=embedded, fields=metadata),
        _field("created_at", "DateTimeField", read_only=True),
        _field("last_modified_at", "DateTimeField", read_only=True),
    ]
    for name, kind in _columns().items():
        if pa.types.is_list(kind):
            fields.append(_field(name, "ListField", subfield=f"{_FIELDS}IntField"))
        else:
            fields.append(_field(name, _FIELD_TYPES[kind]))
    nothing: list[Json] = []
    return {
        "version": VERSION,
        "media_type": "image",
        "tags": nothing,
        "description": NOTE,
        "info": {},
        "sample_fields": fields,
        "frame_fields": nothing,
        "app_config": {},
        "group_media_types": {},
        "classes": {},
        "default_classes": nothing,
        "mask_targets": {},
        "default_mask_targets": {},
        "skeletons": {},
        "saved_views": nothing,
        "workspaces": nothing,
        "annotation_runs": {},
        "brain_methods": {},
        "evaluations": {},
        "runs": {},
    }


def _field(name: str, kind: str, **more: Any) -> dict[str, Json]:
    field: dict[str, Json] = {"name": name, "ftype": _FIELDS + kind, "embedded_doc_type": None, "subfield": None}
    return field | {"fields": [], "db_field": name, "description": None, "info": None, "read_only": False} | more
