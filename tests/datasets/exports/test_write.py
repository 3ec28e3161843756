"""WebDataset tars and Parquet tables, read back by the tools that they are for."""

import json
from pathlib import Path

import duckdb
import pandas as pd
import polars
import pyarrow.parquet as pq
import pytest
import webdataset

from datasets.exports.manifest import RunManifest
from datasets.exports.selection import Options, assign
from datasets.exports.write import TABLE_SCHEMA, run_tasks, tasks
from datasets.runs.run import open_run
from datasets.storage.output import Output
from tests.helpers import export_runs as runs

KEPT = [(p, v) for p in range(8) for v in range(6) if runs.kept(p, v)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Output:
    return runs.make_run(str(tmp_path_factory.mktemp("run")))


def export(run: Output, folder: Path, options: Options, threads: int = 2) -> None:
    manifest = RunManifest(open_run(run))
    work = tasks(manifest, Output(str(folder)), options, assign(manifest, options), set())
    run_tasks(work, threads, lambda task: None)


@pytest.fixture(scope="module")
def table(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    export(run, folder, Options("table", images_per_file=10, first_identity=11))
    return folder / "table"


def test_webdataset_reads_every_image_with_its_row(run, tmp_path):
    export(run, tmp_path, Options("webdataset", images_per_file=10, first_identity=11, cameras=2))
    tars = sorted(path.name for path in tmp_path.iterdir())
    assert tars == ["people-000000.tar", "people-000001.tar", "people-000002.tar"]
    samples = list(webdataset.WebDataset(str(tmp_path / "people-{000000..000002}.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{p + 11:06d}_{v:06d}" for p, v in KEPT]
    for sample, (person, variant) in zip(samples, KEPT, strict=True):
        row = json.loads(sample["json"])
        assert sample["jpg"] == runs.picture(person, variant)
        assert (row["identity"], row["person"], row["variant"]) == (person + 11, person, variant)
        assert (row["camera"], row["seed"], row["verdict"]) == (1 + variant % 2, runs.SEED + person, "kept")
        assert row["detector_score"] == pytest.approx(0.7 + 0.01 * variant)
        assert row["ssim"] is None
    decoded = webdataset.WebDataset(str(tmp_path / "people-000002.tar"), shardshuffle=False).decode("rgb8")
    image, row = next(iter(decoded.to_tuple("jpg", "json")))
    assert image.shape == (16, 8, 3)
    assert row["identity"] == 11 + KEPT[20][0]


@pytest.mark.parametrize("name", ["webdataset", "table"])
def test_equal_exports_are_equal_bytes_whatever_the_threads(run, tmp_path, name):
    for threads in (1, 5):
        export(run, tmp_path / str(threads), Options(name, images_per_file=4), threads)
    assert len(runs.tree(tmp_path / "1")) == 7
    assert runs.tree(tmp_path / "1") == runs.tree(tmp_path / "5")


def test_no_file_has_more_than_its_bound(table):
    assert [pq.read_metadata(path).num_rows for path in sorted(table.iterdir())] == [10, 10, 6]
    for path in table.iterdir():
        assert pq.read_schema(path).equals(TABLE_SCHEMA)


def test_pandas_reads_the_table(table):
    frame = pd.read_parquet(table)
    assert list(zip(frame.person, frame.variant, strict=True)) == KEPT
    assert frame.image[3] == runs.picture(*KEPT[3])
    assert (frame.identity == frame.person + 11).all()
    assert set(frame.verdict) == {"kept"}


def test_duckdb_filters_by_a_score(table):
    found = duckdb.sql(
        f"SELECT person, variant, image FROM '{table}/*.parquet' WHERE detector_score > 0.735 ORDER BY person, variant"
    ).fetchall()
    wanted = [(p, v) for p, v in KEPT if v >= 4]
    assert [row[:2] for row in found] == wanted
    assert found[0][2] == runs.picture(*wanted[0])


def test_polars_filters_by_a_score(table):
    lazy = polars.scan_parquet(f"{table}/*.parquet").filter(polars.col("detector_score") > 0.735)
    frame = lazy.select("identity", "variant", "mix_layers", "image").collect()
    assert frame["variant"].unique().sort().to_list() == [5]
    assert frame["image"][0] == runs.picture(frame["identity"][0] - 11, 5)
    assert frame["mix_layers"].to_list()[0] == [5]
    with_sql = polars.SQLContext(people=polars.scan_parquet(f"{table}/*.parquet"), eager=True)
    assert with_sql.execute("SELECT person FROM people WHERE detector_score > 0.735").height == frame.height


def test_scores_have_statistics_for_filters_and_images_have_none(table):
    group = pq.read_metadata(next(iter(table.iterdir()))).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert columns["detector_score"].is_stats_set
    assert not columns["image"].is_stats_set
