"""What an export takes: the first kept images, identities, cameras."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from datasets.exports.manifest import RunManifest
from datasets.exports.record import identities_csv
from datasets.exports.selection import Options, assign, cameras_of, select
from datasets.runs.manifest import write_manifest
from datasets.runs.plan import PLAN_FILE, Plan, read_plan
from datasets.runs.run import Run, open_run
from datasets.runs.verdicts import Thresholds
from datasets.storage.output import Output
from passersby.errors import InputError
from tests.helpers import export_runs as runs


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Output:
    return runs.make_run(str(tmp_path_factory.mktemp("run")))


def taken(run: Output, options: Options) -> list[tuple[int, int, int, int]]:
    """(person, variant, identity, camera) of every image of an export."""
    manifest = RunManifest(open_run(run))
    people = assign(manifest, options)
    return [
        (row["person"], row["variant"], row["identity"], row["camera"])
        for piece in select(manifest, options, people, [])
        for row in piece.table.to_pylist()
    ]


def test_only_kept_images_are_taken_the_first_of_each_person(run):
    everything = [(p, v) for p in range(8) for v in range(6) if runs.kept(p, v)]
    assert [row[:2] for row in taken(run, Options("folder"))] == everything
    first = [(p, v) for p in range(8) for v in [v for v in range(6) if runs.kept(p, v)][:3]]
    assert [row[:2] for row in taken(run, Options("folder", per_person=3))] == first


def test_people_with_fewer_are_known_those_with_none_too(run):
    people = assign(RunManifest(open_run(run)), Options("folder", per_person=3))
    assert people.person[people.short(3)].tolist() == [runs.NOBODY, runs.FEW]
    assert people.kept[people.short(3)].tolist() == [0, 2]
    assert people.person[people.short(1)].tolist() == [runs.NOBODY]


def test_identities_are_the_person_plus_a_number_or_compact(run):
    identities = {row[0]: row[2] for row in taken(run, Options("folder", first_identity=40))}
    assert identities == {person: 40 + person for person in range(8) if person != runs.NOBODY}
    identities = {row[0]: row[2] for row in taken(run, Options("folder", first_identity=40, compact_ids=True))}
    assert list(identities.values()) == list(range(40, 47))
    assert {row[0] for row in taken(run, Options("folder", people=3))} == {0, 1, 3}


@pytest.mark.parametrize(
    ("names", "options", "identities"),
    [
        (("0002", "0007", "1501"), {}, [2, 7, 1501]),  # they can lie beside Market-1501's own pictures
        (("0002", "0007", "1501"), {"first_identity": 5}, [5, 6, 7]),
        (("0002", "0007", "1501"), {"compact_ids": True}, [1, 2, 3]),
        (("0007", "0002", "0009"), {}, [1, 2, 3]),  # labels by order would be others than these numbers
        (("0000", "0002", "0009"), {}, [1, 2, 3]),  # 0 means distractors
        (("anna", "ben", "carl"), {}, [1, 2, 3]),
    ],
)
def test_variants_of_real_people_keep_their_numbers(tmp_path, names, options, identities):
    run = runs.make_run(str(tmp_path), people=3, names=names)
    people = assign(RunManifest(open_run(run)), Options("folder", **options))
    expected = [0 if person == runs.NOBODY else number for person, number in enumerate(identities)]
    if options.get("compact_ids"):
        expected = [1, 2, 0]
    assert people.identity.tolist() == expected
    rows = identities_csv(people).decode().splitlines()
    assert rows[0].endswith(",seed,images,name")
    assert [row.rpartition(",")[2] for row in rows[1:]] == list(names[:2])


def test_images_without_a_camera_are_spread_by_variant_and_stored_cameras_stay(run, tmp_path):
    assert {row[3] for row in taken(run, Options("folder", camera=4))} == {4}
    for _, variant, _, camera in taken(run, Options("folder", camera=2, cameras=3)):
        assert camera == 2 + variant % 3
    stored = runs.make_run(str(tmp_path), people=2, camera=lambda variant: 5 if variant < 3 else None)
    options = Options("folder", cameras=2)
    for _, variant, _, camera in taken(stored, options):
        assert camera == (5 if variant < 3 else 1 + variant % 2)
    assert cameras_of(options, assign(RunManifest(open_run(stored)), options)) == {1, 2, 5}


def test_row_groups_that_cut_units_and_people_change_nothing(run, tmp_path):
    expected = taken(run, Options("folder", per_person=2))
    copy = runs.make_run(str(tmp_path))
    path = f"{copy.root_address}/manifest.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=5)
    assert taken(copy, Options("folder", per_person=2)) == expected
    sizes = [table.num_rows for table in RunManifest(open_run(copy)).pieces([])]
    assert len(sizes) > 3
    assert sum(sizes) == 48


def test_rows_are_those_of_the_shard(run):
    manifest = RunManifest(open_run(run))
    for piece in select(manifest, Options("folder"), assign(manifest, Options("folder")), []):
        names = [(row["person"], row["variant"]) for row in piece.table.to_pylist()]
        assert manifest.images(piece.unit, piece.rows) == [runs.picture(*name) for name in names]


def test_a_manifest_that_does_not_fit_the_run_is_refused(tmp_path):
    run = runs.make_run(str(tmp_path))
    path = f"{run.root_address}/manifest.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(np.arange(48)[::-1]), path)
    with pytest.raises(InputError, match="not hold the images in the order"):
        assign(RunManifest(open_run(run)), Options("folder"))
    pq.write_table(table.replace_schema_metadata({"plan_hash": "other"}), path)
    with pytest.raises(InputError, match="belongs to another plan"):
        RunManifest(open_run(run))
    Path(path).write_bytes(b"PAR1 nonsense")
    with pytest.raises(InputError, match="damaged"):
        RunManifest(open_run(run))
    Path(path).unlink()
    with pytest.raises(InputError, match=r"manifest\.parquet does not exist: finish the run"):
        RunManifest(open_run(run))
    with pytest.raises(InputError, match=r"manifest-x\.parquet does not exist: make it with jobs/refilter"):
        RunManifest(open_run(run), "x")


def test_units_cut_in_another_way_are_noticed(tmp_path):
    run = runs.make_run(str(tmp_path))
    manifest = RunManifest(open_run(run))
    people = assign(manifest, Options("folder"))
    run.write(PLAN_FILE, Plan(read_plan(run).configuration).extended(640).to_json())
    with pytest.raises(InputError, match="another plan"):
        list(select(RunManifest(open_run(run)), Options("folder"), people, []))


def test_nothing_kept_is_an_error(tmp_path):
    run = runs.make_run(str(tmp_path), people=2)
    plan = read_plan(run)
    write_manifest(Run(run, plan), plan.units(), Thresholds(detector=1.0))
    with pytest.raises(InputError, match="nothing to export"):
        assign(RunManifest(open_run(run)), Options("folder"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "zip"}, "--format zip"),
        ({"first_identity": 0}, "--first-identity 0: must be 1 or more; in Market-1501 the identity 0 means distract"),
        ({"per_person": 0}, "--per-person 0"),
        ({"people": -1}, "--people -1"),
        ({"cameras": 0}, "--cameras 0"),
        ({"test_people": 2}, "--test-people 2: only --format market1501"),
        ({"test_people": -2}, "--test-people -2"),
        ({"images_per_file": 10}, "--images-per-file 10: it is an option of webdataset and table"),
        ({"jpeg_quality": 0}, "--jpeg-quality 0"),
    ],
)
def test_bad_options_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        Options(**({"format": "folder"} | values))


def test_files_of_many_images_are_bounded_by_pixels_too():
    assert Options("table").completed(128 * 64 * 3, "jpeg").images_per_file == 10_000
    assert Options("webdataset").completed(1024 * 512 * 3, "png").images_per_file == 635
    assert Options("table", images_per_file=7).completed(1, "jpeg").images_per_file == 7
    assert Options("folder").completed(1, "jpeg").images_per_file is None


def test_conversion_is_only_for_png():
    with pytest.raises(InputError, match="are JPEG, whose bytes do not change"):
        Options("folder", jpeg_quality=90).completed(1, "jpeg")
    with pytest.raises(InputError, match="give --jpeg-quality 95 to convert"):
        Options("market1501").completed(1, "png")
    assert Options("folder").completed(1, "png").jpeg_quality is None
