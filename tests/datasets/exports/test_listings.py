"""The listings of an export for FiftyOne and Hugging Face: every image once, with every column of the manifest."""

import json

import pytest

from datasets.runs.manifest import read_manifest
from datasets.storage.output import Output
from jobs.export import Config, main
from tests.helpers import export_runs as runs


def exported(tmp_path, name: str, **settings):
    run = runs.make_run(str(tmp_path / "run"), **settings)
    out = tmp_path / "out"
    main(Config(run=run.root_address, out=str(out), format=name, camera=4))
    rows = [row for row in read_manifest(run).to_pylist() if row["verdict"] == "kept"]
    return out, rows


def check_rows(listed: list[dict], rows: list[dict]) -> None:
    """The rows of the listing are those of the manifest, with the identity and the camera of the export."""
    assert [(row["person"], row["variant"]) for row in listed] == [(row["person"], row["variant"]) for row in rows]
    for one, row in zip(listed, rows, strict=True):
        assert {name: one[name] for name in row} == row | {"camera": 4}
        assert one["identity"] == row["person"] + 1


@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_hugging_face(tmp_path, image_format):
    out, rows = exported(tmp_path, "huggingface", image_format=image_format)
    listed = [json.loads(line) for line in (out / "train/metadata.jsonl").read_text().splitlines()]
    check_rows(listed, rows)
    suffix = {"jpeg": "jpg", "png": "png"}[image_format]
    files = {str(path.relative_to(out / "train")) for path in (out / "train").glob(f"*/*.{suffix}")}
    assert {row["file_name"] for row in listed} == files
    assert len(files) == len(rows)


def test_fiftyone(tmp_path):
    out, rows = exported(tmp_path, "fiftyone")
    samples = json.loads((out / "samples.json").read_text())["samples"]
    check_rows(samples, rows)
    files = {str(path.relative_to(out)) for path in (out / "data").glob("*/*.jpg")}
    assert {sample["filepath"] for sample in samples} == files
    assert len({sample["_id"]["$oid"] for sample in samples}) == len(samples)
    assert all(len(sample["_id"]["$oid"]) == 24 and 0 <= sample["_rand"] < 1 for sample in samples)
    document = json.loads((out / "metadata.json").read_text())
    declared = {field["name"]: field for field in document["sample_fields"]}
    assert {field["db_field"] for field in declared.values()} >= samples[0].keys() - {"_media_type", "_rand"}
    kinds = {name: declared[name]["ftype"].rpartition(".")[2] for name in ("verdict", "ssim", "person", "mix_layers")}
    assert kinds == {"verdict": "StringField", "ssim": "FloatField", "person": "IntField", "mix_layers": "ListField"}


@pytest.mark.parametrize("name", ["fiftyone", "huggingface"])
def test_a_listing_that_is_lost_is_written_again_alone(tmp_path, name):
    out, _ = exported(tmp_path, name)
    whole = runs.tree(out)
    listing = out / {"fiftyone": "samples.json", "huggingface": "train/metadata.jsonl"}[name]
    others = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path != listing}
    listing.unlink()
    main(Config(run=str(tmp_path / "run"), out=str(out), format=name, camera=4))
    assert runs.tree(out) == whole
    assert all(path.stat().st_mtime_ns == time for path, time in others.items())


def test_an_object_store_takes_it_too(tmp_path):
    run = runs.make_run(str(tmp_path / "run"))
    main(Config(run=run.root_address, out=f"file://{tmp_path}/out", format="huggingface"))
    assert Output(str(tmp_path / "out")).exists("train/metadata.jsonl")
