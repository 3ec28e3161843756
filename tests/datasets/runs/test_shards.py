"""Shards and the manifest that is derived from them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.runs import manifest
from datasets.runs.manifest import read_manifest, write_manifest
from datasets.runs.plan import Configuration, Plan, Unit
from datasets.runs.run import Run, shard_name
from datasets.runs.shards import SCHEMA, decode_shard, read_shard, shard_table, write_shard
from datasets.runs.verdicts import Thresholds
from datasets.storage.output import Output
from passersby.errors import InputError

VARIANTS = 3
COLUMNS = [
    "unit", "person", "variant", "source", "source_path", "camera", "seed", "mix_seed", "method", "mix_layers",
    "amount", "truncation_psi", "image", "height", "width", "status", "message", "detector_score", "ssim",
    "reference_variant", "identity_cosine", "nearest_identity", "identity_margin",
]  # fmt: skip


@pytest.fixture
def plan() -> Plan:
    configuration = Configuration(
        seed=0, variants=VARIANTS, method="mix", layers=(5, 6), amount=None, truncation_psi=0.7, network="n",
        height=16, width=8, format="jpeg", jpeg_quality=95, unit_images=6, detector="d", reference_threshold=0.6,
        ssim_data_range=4095.0,
    )  # fmt: skip
    return Plan(configuration).extended(150)


def images(unit: Unit) -> pa.Table:
    rows = [(p, v) for p in range(unit.first_person, unit.first_person + unit.people) for v in range(VARIANTS)]
    count = len(rows)
    return pa.table(
        {
            "person": pa.array([row[0] for row in rows], pa.int64()),
            "variant": pa.array([row[1] for row in rows], pa.int64()),
            "image": pa.array([b"jpeg%d-%d" % row for row in rows], pa.binary()),
            "mix_layers": pa.array([[] if v == 0 else [5, 6] for _, v in rows], pa.list_(pa.int64())),
            "status": pa.array(["ok"] * count),
            # person by person, every tenth fails the detector
            "detector_score": pa.array([0.1 if p % 10 == 0 else 0.9 for p, _ in rows], pa.float32()),
            "ssim": pa.array([1.0 if v == 0 else 0.8 for _, v in rows], pa.float32()),
            "reference_variant": pa.array([0] * count, pa.int64()),
        }
    )


def write(output: Output, plan: Plan, unit: Unit) -> None:
    write_shard(output, plan.configuration.hash, unit.unit, shard_table(unit.unit, images(unit)))


@pytest.fixture
def output(tmp_path) -> Output:
    return Output(str(tmp_path / "run"))


def test_a_shard_has_every_column_in_order_with_its_type(output, plan):
    unit = next(plan.units())
    write(output, plan, unit)
    schema = pq.read_schema(f"{output.root_address}/{shard_name(0)}")
    assert schema.names == COLUMNS
    assert [field.type for field in schema] == [field.type for field in SCHEMA]
    assert schema.metadata[b"schema_version"] == b"1"
    assert schema.metadata[b"plan_hash"] == plan.configuration.hash.encode()
    table = read_shard(Run(output, plan), unit)
    assert table["image"].to_pylist() == images(unit)["image"].to_pylist()
    assert table["mix_layers"].to_pylist()[:2] == [[], [5, 6]]
    assert table["identity_cosine"].null_count == table.num_rows
    assert table["unit"].to_pylist() == [0] * table.num_rows


def test_equal_rows_are_equal_bytes(output, plan):
    unit = next(plan.units())
    write(output, plan, unit)
    first = output.read(shard_name(0))
    write(output, plan, unit)
    assert output.read(shard_name(0)) == first


def test_finished_units_are_the_files_that_exist(output, plan):
    assert Run(output, plan).finished() == set()
    units = list(plan.units())
    for unit in (units[0], units[7]):
        write(output, plan, unit)
    write_shard(output, plan.configuration.hash, 12_345, shard_table(12_345, images(units[1])))
    output.write("shards/000/.unit-000003.parquet.host.1.tmp", b"x")
    output.write("shards/000/unit-000004.parquet", b"")
    output.write("shards/001/unit-000005.parquet", b"in the wrong folder")
    assert Run(output, plan).finished() == {0, 7, 12_345}
    assert shard_name(12_345) == "shards/012/unit-012345.parquet"


def test_every_page_has_a_checksum(output, plan):
    # Not only where a flipped bit breaks the decompression: the images are stored as they are.
    unit = next(plan.units())
    write(output, plan, unit)
    whole = output.read(shard_name(0))
    assert decode_shard(pa.BufferReader(whole), "x", plan, unit, checksums=True).equals(
        read_shard(Run(output, plan), unit)
    )
    row_group = pq.ParquetFile(pa.BufferReader(whole)).metadata.row_group(0)
    for column in (row_group.column(index) for index in range(row_group.num_columns)):
        last = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1
        damaged = whole[:last] + bytes([whole[last] ^ 1]) + whole[last + 1 :]
        with pytest.raises(InputError, match="checksum"):
            decode_shard(pa.BufferReader(damaged), "x", plan, unit, checksums=True)
    image = whole.replace(b"jpeg0-1", b"jpeg0-7")
    assert decode_shard(pa.BufferReader(image), "x", plan, unit)["image"][1].as_py() == b"jpeg0-7"


def test_other_columns_are_refused(output, plan):
    unit = next(plan.units())
    metadata = {"schema_version": "1", "plan_hash": plan.configuration.hash}
    other = shard_table(0, images(unit)).rename_columns(["colour", *COLUMNS[1:]]).replace_schema_metadata(metadata)
    with output.replacing(shard_name(0)) as path:
        pq.write_table(other, path)
    with pytest.raises(InputError, match="other columns than schema version 1"):
        read_shard(Run(output, plan), unit)


def test_unknown_columns_are_an_error(plan):
    with pytest.raises(ValueError, match="colour"):
        shard_table(0, pa.table({"colour": [1]}))


def test_damaged_foreign_and_wrong_shards_are_named(output, plan):
    first, second = list(plan.units())[:2]
    write(output, plan, first)
    whole = output.read(shard_name(0))
    for damage in (whole[:-20], whole[: len(whole) // 2], b"nonsense"):
        output.write(shard_name(0), damage)
        with pytest.raises(InputError, match=r"unit-000000\.parquet is damaged"):
            read_shard(Run(output, plan), first)
    write_shard(output, "another hash", 0, shard_table(0, images(first)))
    with pytest.raises(InputError, match="another plan"):
        read_shard(Run(output, plan), first)
    write_shard(output, plan.configuration.hash, 0, shard_table(0, images(second)))
    with pytest.raises(InputError, match="not the 6 of its unit"):
        read_shard(Run(output, plan), first)
    with pytest.raises(InputError, match=r"unit-000001\.parquet: .*No such file"):
        read_shard(Run(output, plan), second)


def test_the_manifest_holds_every_image_with_its_verdict(output, plan):
    assert plan.unit_count > manifest.SHARDS_AT_ONCE  # more than one group
    for unit in plan.units():
        write(output, plan, unit)
    counts = write_manifest(Run(output, plan), plan.units(), Thresholds())
    none = dict.fromkeys(["identity_floor", "identity_margin", "identity_ceiling"], 0)
    assert counts == {"kept": 405, "error": 0, "detector": 45, "ssim_floor": 0, "ssim_ceiling": 0} | none
    table = read_manifest(output)
    assert table.column_names == [name for name in COLUMNS if name != "image"] + ["verdict", "shard"]
    assert table["person"].to_pylist() == [person for person in range(150) for _ in range(VARIANTS)]
    row = table.slice(10 * VARIANTS, 1).to_pylist()[0]
    assert (row["person"], row["verdict"], row["shard"]) == (10, "detector", shard_name(row["unit"]))
    assert row["detector_score"] == pytest.approx(0.1)
    metadata = pq.read_schema(f"{output.root_address}/manifest.parquet").metadata
    assert json.loads(metadata[b"thresholds"])["detector"] == 0.6


def test_other_thresholds_are_another_manifest(output, plan):
    units = list(plan.units())
    for unit in units:
        write(output, plan, unit)
    write_manifest(Run(output, plan), units, Thresholds())
    before = output.read("manifest.parquet")
    counts = write_manifest(
        Run(output, plan), units[:5], Thresholds(detector=0.0, ssim_ceiling=0.75, ssim_floor=0.5), "strict"
    )
    assert counts["ssim_ceiling"] == 20
    assert counts["kept"] == 10  # the references are exempt
    assert output.read("manifest.parquet") == before
    assert read_manifest(output, "strict", ["verdict"]).num_rows == 30


def test_a_missing_shard_leaves_the_old_manifest(output, plan):
    units = list(plan.units())
    write(output, plan, units[0])
    write_manifest(Run(output, plan), units[:1], Thresholds())
    before = output.read("manifest.parquet")
    with pytest.raises(InputError, match="unit-000001"):
        write_manifest(Run(output, plan), units[:2], Thresholds())
    assert output.read("manifest.parquet") == before
