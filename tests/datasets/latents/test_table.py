"""Latents: what is read of a table that somebody else may have written, and what jobs/invert.py derives."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.latents.plan import InversionConfiguration, continue_inversion
from datasets.latents.shards import LATENTS, WHO_LATENTS, read_latents_shard, write_latents
from datasets.latents.table import SCHEMA, WHO_SCHEMA, delta_name, has_encoder, read_latents
from datasets.runs.run import Run
from datasets.runs.shards import shard_table, write_shard
from datasets.storage.output import Output
from passersby.errors import InputError

WS, DIM = 3, 4
ABOUT = {
    "generator": {"file": "g", "sha256": "abc", "height": 64, "width": 32, "num_ws": WS, "w_dim": DIM},
    "test_people": False,
}
DELTA = b"a delta"
SHA = hashlib.sha256(DELTA).hexdigest()


def code(value: float) -> list[float]:
    return [value + index / 100 for index in range(WS * DIM)]


def row(person: int, value: float | None, **changes) -> dict:
    fields = {
        "unit": 0, "person": person, "identity": 10 * person + 1, "name": f"p{person}", "path": f"{person}/{value}.jpg",
        "camera": 2, "split": "train", "w": None if value is None else code(value), "encoder_lpips": 0.5, "l2": 0.1,
        "lpips": 0.2, "identity_cosine": None, "status": "error" if value is None else "ok", "message": None,
        "delta": None, "delta_sha256": None,
    }  # fmt: skip
    return fields | changes


ROWS = [
    row(0, 1.0), row(0, 1.2, camera=None), row(0, 9.0), row(1, None, message="no image"),
    row(2, 5.0, delta=delta_name(2), delta_sha256=SHA), row(2, None),
]  # fmt: skip


def write(folder: Path, rows: list[dict], about: dict | None = ABOUT, schema: pa.Schema = SCHEMA, **metadata) -> Path:
    """A table written by pyarrow alone, with its own settings."""
    metadata = {"schema_version": "1"} | ({} if about is None else {"about": json.dumps(about)}) | metadata
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema.with_metadata(metadata)), folder / "latents.parquet")
    return folder / "latents.parquet"


def test_people_with_a_code_are_read_and_numbered_without_gaps(tmp_path):
    path = write(tmp_path, ROWS)
    latents = read_latents(path)
    assert (len(latents), latents.people) == (4, 2)
    assert latents.codes.dtype == np.float32
    assert latents.codes.shape == (4, WS, DIM)
    np.testing.assert_array_equal(latents.codes[1], np.array(code(1.2), np.float32).reshape(WS, DIM))
    assert latents.persons.tolist() == [0, 0, 0, 1]  # person 1 of the file has no picture
    assert latents.identities.tolist() == [1, 1, 1, 21]
    assert latents.cameras.tolist() == [2, -1, 2, 2]
    assert latents.paths == ("0/1.0.jpg", "0/1.2.jpg", "0/9.0.jpg", "2/5.0.jpg")
    assert latents.names == {0: "p0", 1: "p2"}
    assert latents.deltas == {1: (delta_name(2), SHA)}
    assert latents.about == ABOUT
    assert latents.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert latents.pictures_of(0).tolist() == [0, 1, 2]
    assert latents.pictures_of(1).tolist() == [3]


def test_a_person_is_the_robust_mean_and_the_medoid_the_picture_nearest_to_it(tmp_path):
    latents = read_latents(write(tmp_path, ROWS))
    codes = latents.person_codes()
    assert codes.shape == (2, WS, DIM)
    assert codes.dtype == np.float32
    # On a line the geometric median of three points is the middle one; the mean would be 3.7.
    np.testing.assert_allclose(codes[0], np.array(code(1.2)).reshape(WS, DIM), atol=0.02)
    np.testing.assert_allclose(codes[1], np.array(code(5.0)).reshape(WS, DIM), atol=1e-5)
    assert [latents.medoid(0), latents.medoid(1)] == [1, 3]


def test_rows_in_any_order_become_people_in_order(tmp_path):
    latents = read_latents(write(tmp_path, [ROWS[4], ROWS[2], ROWS[0]]))
    assert latents.paths == ("0/9.0.jpg", "0/1.0.jpg", "2/5.0.jpg")
    np.testing.assert_allclose(latents.codes[:, 0, 0], [9, 1, 5])


def test_every_address_of_a_table_reads_the_same(tmp_path, monkeypatch):
    path = write(tmp_path / "a run", ROWS)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a run"
    for address in (path, str(path), folder, "a run", "a run/latents.parquet", folder.as_uri()):
        assert read_latents(address).people == 2
    other = path.rename(path.with_name("other.parquet"))
    assert read_latents(other).people == 2


def test_a_delta_is_read_only_if_it_is_the_one_that_is_named(tmp_path):
    latents = read_latents(write(tmp_path, ROWS))
    assert latents.delta(0) is None
    with pytest.raises(InputError, match=r"person-000002\.safetensors is missing"):
        latents.delta(1)
    (tmp_path / delta_name(2)).parent.mkdir(parents=True)
    (tmp_path / delta_name(2)).write_bytes(DELTA)
    assert latents.delta(1) == DELTA
    (tmp_path / delta_name(2)).write_bytes(b"another")
    with pytest.raises(InputError, match="is not the file that latents.parquet names"):
        latents.delta(1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(0, 1.0, w=code(1.0)[:-1])], "has 11 values, not 3 x 4"),
        ([row(0, 1.0), row(0, 1.0, w=[])], "has 0 values, not 3 x 4"),
        ([row(0, 1.0, w=None)], "has 0 values, not 3 x 4"),
        ([row(0, 1.0, w=[*code(1.0)[:-1], float("nan")])], "is not finite"),
        ([row(0, 1.0), row(0, 1.0, w=[float("inf"), *code(1.0)[1:]])], "is not finite"),
        ([row(0, 1.0, w=[None, *code(1.0)[1:]])], "is not finite"),
        ([row(0, None)], "there is nobody in it"),
        ([], "there is nobody in it"),
        ([row(0, 1.0, name=None)], "name is empty"),
        ([row(0, 1.0) | {"person": None}], "person is empty"),
        ([row(0, 1.0), row(0, 1.0, identity=77)], "contradict each other"),
        ([row(0, 1.0, delta="../../secret", delta_sha256="x")], "is no name of a delta"),
        ([row(0, 1.0, delta=delta_name(0))], "is no name of a delta"),
    ],
)
def test_rows_that_cannot_be_are_refused(tmp_path, rows, message):
    path = write(tmp_path, rows)
    with pytest.raises(InputError, match=message) as caught:
        read_latents(path)
    assert str(caught.value).startswith(f"--latents {path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (None, "is no table of latents"),
        ({}, "its metadata are damaged"),
        ([], "its metadata are damaged"),
        ({"generator": {}}, "its metadata are damaged"),
        ({"generator": ABOUT["generator"] | {"num_ws": "3"}}, "give no num_ws"),
        ({"generator": ABOUT["generator"] | {"w_dim": 10**9}}, "give no w_dim"),
        ({"generator": ABOUT["generator"] | {"sha256": None}}, "give no sha256"),
        ({"generator": ABOUT["generator"] | {"w_dim": 5}}, "has 12 values, not 3 x 5"),
    ],
)
def test_metadata_that_cannot_be_are_refused(tmp_path, about, message):
    with pytest.raises(InputError, match=message):
        read_latents(write(tmp_path, ROWS, about))


def test_files_that_are_none_are_refused(tmp_path):
    whole = write(tmp_path, ROWS).read_bytes()
    contents = {
        "truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello",
        "damaged": whole[:200] + bytes(60) + whole[260:],
    }  # fmt: skip
    for name, content in contents.items():
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"--latents {path} is damaged"):
            read_latents(path)
    with pytest.raises(InputError, match="there is no such file"):
        read_latents(tmp_path / "nowhere")
    with pytest.raises(InputError, match="--latents is empty"):
        read_latents(" ")
    with pytest.raises(InputError, match="schema version 9, not 1"):
        read_latents(write(tmp_path, ROWS, schema_version="9"))
    other = pa.schema([SCHEMA.field(name) for name in SCHEMA.names if name != "message"])
    with pytest.raises(InputError, match="is no table of latents"):
        read_latents(write(tmp_path, [{k: v for k, v in r.items() if k != "message"} for r in ROWS], schema=other))


# ---- one who for all pictures of a person


def who_row(person: int, value: float | None, how: float = 0.0, **changes) -> dict:
    parts = {"who": [float(person), 0.5], "how": [how, how, how], "offset": [0.1 * person] * DIM}
    return row(person, value, **{name: None if value is None else part for name, part in parts.items()} | changes)


WHO_ROWS = [who_row(4, 1.0, 0.3), who_row(4, 1.2, -0.3), who_row(4, None), who_row(6, 5.0)]


def test_each_person_s_who_and_offset_are_read(tmp_path):
    latents = read_latents(write(tmp_path, WHO_ROWS, schema=WHO_SCHEMA))
    assert latents.whos.tolist() == [[4.0, 0.5], [6.0, 0.5]]
    np.testing.assert_allclose(latents.offsets, np.array([[0.4] * DIM, [0.6] * DIM]), rtol=1e-6)
    old = read_latents(write(tmp_path / "old", ROWS))
    assert (old.whos, old.offsets) == (None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"who": [5.0, 0.5]}, "who of '4/1.2.jpg' is not that of the person's other rows"),
        ({"offset": [0.0] * DIM}, "offset of '4/1.2.jpg' is not that of the person's other rows"),
        ({"who": [4.0]}, "who of '4/1.2.jpg' has 1 values, not 2"),
        ({"who": None}, "who of '4/1.2.jpg' has 0 values, not 2"),
        ({"offset": [0.4] * (DIM + 1)}, f"offset of '4/1.2.jpg' has {DIM + 1} values, not {DIM}"),
        ({"who": [4.0, float("nan")]}, "who holds values that are not finite"),
        ({"who": [4.0, None]}, "who holds values that are not finite"),
    ],
)
def test_a_who_that_cannot_be_is_refused(tmp_path, changes, message):
    rows = [WHO_ROWS[0], who_row(4, 1.2, -0.3, **changes), *WHO_ROWS[2:]]
    with pytest.raises(InputError, match=message):
        read_latents(write(tmp_path, rows, schema=WHO_SCHEMA))


def test_shards_of_the_refinement_who_have_its_columns(tmp_path):
    configuration = dataclasses.replace(CONFIGURATION, encoder=None, steps=None, refine="who")
    output, plan = Output(str(tmp_path / "out")), continue_inversion(None, configuration, (3, 1), None)
    rows = [
        {name: value for name, value in each.items() if name != "unit"} | {"person": person}
        for each, person in zip(WHO_ROWS, (0, 0, 0, 1), strict=True)
    ]
    for unit in plan.units():
        own = pa.Table.from_pylist([each for each in rows if each["person"] == unit.first_person])
        write_shard(output, plan.hash, unit.unit, shard_table(unit.unit, own, WHO_LATENTS), WHO_LATENTS)
    small = write_latents(Run(output, plan), ABOUT | {"encoder": None})
    assert not {"w", "who", "how", "offset"} & set(small.column_names)
    latents = read_latents(output.root_address)
    assert latents.whos.tolist() == [[4.0, 0.5], [6.0, 0.5]]
    assert [has_encoder(about) for about in (latents.about, ABOUT)] == [False, True]


# ---- what jobs/invert.py writes

CONFIGURATION = InversionConfiguration(
    encoder="e", network="n", identity=None, perceptual="p", data="d", splits=("train",), pictures=None, steps=5,
    refine="w", refine_steps=100, pivotal_steps=None, unit_images=3,
)  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """Two units in their shards, of persons 0 (three pictures) and 1, 2."""
    output, plan = Output(str(tmp_path / "out")), continue_inversion(None, CONFIGURATION, (3, 1, 2), None)
    units = list(plan.units())
    assert [(unit.first_person, unit.people) for unit in units] == [(0, 1), (1, 1), (2, 1)]
    for unit in units:
        own = [r for r in ROWS if unit.first_person <= r["person"] < unit.first_person + unit.people]
        table = pa.Table.from_pylist([{k: v for k, v in r.items() if k != "unit"} for r in own])
        write_shard(output, plan.configuration.hash, unit.unit, shard_table(unit.unit, table, LATENTS), LATENTS)
    return output, plan, units


def test_the_table_is_the_shards_in_order_with_their_record(run):
    output, plan, units = run
    before = Path(output.address("shards/000/unit-000000.parquet")).read_bytes()
    rows = read_latents_shard(Run(output, plan), units[0])
    write_shard(output, plan.configuration.hash, 0, rows, LATENTS)
    assert Path(output.address("shards/000/unit-000000.parquet")).read_bytes() == before  # equal rows, equal bytes
    small = write_latents(Run(output, plan), ABOUT)
    assert "w" not in small.column_names
    stored = pq.read_table(output.address("latents.parquet")).to_pylist()
    expected = pa.Table.from_pylist(ROWS, schema=SCHEMA).to_pylist()
    assert stored == [r | {"unit": unit} for r, unit in zip(expected, [0, 0, 0, 1, 2, 2], strict=True)]
    latents = read_latents(output.root_address)
    assert latents.about == ABOUT
    assert latents.names == {0: "p0", 1: "p2"}


def test_shards_that_do_not_fit_the_plan_are_refused(run):
    output, plan, units = run
    other = dataclasses.replace(plan, configuration=dataclasses.replace(CONFIGURATION, steps=3))
    with pytest.raises(InputError, match=r"unit-000000\.parquet belongs to another plan"):
        read_latents_shard(Run(output, other), units[0])
    with pytest.raises(InputError, match="holds 3 pictures that are not the 4 of its unit"):
        read_latents_shard(Run(output, dataclasses.replace(plan, counts=(4, 1, 2))), units[0])
    path = Path(output.address("shards/000/unit-000001.parquet"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"unit-000001\.parquet is damaged"):
        write_latents(Run(output, plan), ABOUT)
    assert not Path(output.address("latents.parquet")).exists()
