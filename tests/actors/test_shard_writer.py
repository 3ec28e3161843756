"""The stage that commits a unit, without Ray."""

import pyarrow as pa
import pytest

from actors.shard_writer import ShardWriter
from datasets.runs.plan import PLAN_FILE, Configuration, Plan
from datasets.runs.rows import with_columns
from datasets.runs.run import Run
from datasets.runs.shards import read_shard
from datasets.runs.verdicts import Thresholds
from datasets.storage.output import Output

CONFIGURATION = Configuration(
    seed=0, variants=4, method="mix", layers=(5,), amount=None, truncation_psi=0.7, network="n", height=64,
    width=32, format="png", jpeg_quality=None, unit_images=512, detector="d", reference_threshold=0.6,
    ssim_data_range=4095.0,
)  # fmt: skip
PLAN = Plan(CONFIGURATION).extended(1)


@pytest.fixture
def batch() -> pa.Table:
    columns = {
        "person": pa.array([0] * 4, pa.int64()),
        "variant": pa.array(range(4), pa.int64()),
        "image": pa.array([b"0", b"1", b"2", None], pa.binary()),
        "status": pa.array(["ok", "ok", "ok", "error"]),
        "message": pa.array([None, None, None, "not finite"], pa.string()),
        "detector_score": pa.array([0.9, 0.3, 0.8, None], pa.float32()),
        "ssim": pa.array([1.0, 0.9, 0.8, None], pa.float32()),
        "reference_variant": pa.array([0, 0, 0, None], pa.int64()),
    }
    seconds = {"seconds_generate": 1.5, "seconds_detect": 2.5, "seconds_similarity": 0.5}
    return with_columns(pa.table({"unit": pa.array([0], pa.int64())}), columns | seconds)


def test_a_unit_becomes_a_shard_and_a_small_row(tmp_path, batch):
    output = Output(str(tmp_path))
    output.write(PLAN_FILE, PLAN.to_json())
    row = ShardWriter(str(tmp_path), CONFIGURATION.hash, Thresholds())(batch).to_pylist()[0]
    assert row.pop("seconds_write") > 0
    assert row == {
        "unit": 0, "images": 4, "problem": None,
        "kept": 2, "error": 1, "detector": 1, "ssim_floor": 0, "ssim_ceiling": 0,
        "identity_floor": 0, "identity_margin": 0, "identity_ceiling": 0,
        "seconds_generate": 1.5, "seconds_detect": 2.5, "seconds_similarity": 0.5, "seconds_identity": 0.0,
    }  # fmt: skip
    table = read_shard(Run(output, PLAN), next(PLAN.units()))
    assert table["image"].to_pylist() == [b"0", b"1", b"2", None]
    assert table["message"].to_pylist()[3] == "not finite"
    assert "seconds_write" not in table.column_names  # timings would make equal work unequal bytes


def test_identities_are_stored_and_judged(tmp_path, batch):
    output = Output(str(tmp_path))
    output.write(PLAN_FILE, PLAN.to_json())
    identities = {
        "source": pa.array(["latent"] * 4),
        "identity_cosine": pa.array([0.75, 0.5, 0.25, None], pa.float32()),
        "nearest_identity": pa.array([7, 7, 9, None], pa.int64()),
        "identity_margin": pa.array([0.5, 0.25, -0.25, None], pa.float32()),
        "seconds_identity": 0.75,
    }
    writer = ShardWriter(str(tmp_path), CONFIGURATION.hash, Thresholds(identity_margin=0.0))
    row = writer(with_columns(batch, identities)).to_pylist()[0]
    assert (row["kept"], row["detector"], row["identity_margin"], row["seconds_identity"]) == (1, 1, 1, 0.75)
    table = read_shard(Run(output, PLAN), next(PLAN.units()))
    assert table["nearest_identity"].to_pylist() == [7, 7, 9, None]


def test_what_cannot_be_written_is_a_problem_in_the_row(tmp_path, batch):
    output = Output(str(tmp_path))
    output.write(PLAN_FILE, PLAN.to_json())
    (tmp_path / "shards").write_text("a file where the folder belongs")
    row = ShardWriter(str(tmp_path), CONFIGURATION.hash, Thresholds())(batch).to_pylist()[0]
    assert row["problem"].startswith(f"cannot write {tmp_path}/shards/000/unit-000000.parquet: ")


def test_a_node_that_does_not_see_the_plan_writes_nothing(tmp_path, batch):
    writer = ShardWriter(str(tmp_path), CONFIGURATION.hash, Thresholds())
    assert "a worker does not see" in writer(batch).to_pylist()[0]["problem"]
    Output(str(tmp_path)).write(PLAN_FILE, PLAN.to_json())
    stranger = ShardWriter(str(tmp_path), "another hash", Thresholds())
    assert "a worker does not see" in stranger(batch).to_pylist()[0]["problem"]
    assert Output(str(tmp_path)).list("shards") == []
    assert writer(batch).to_pylist()[0]["problem"] is None
