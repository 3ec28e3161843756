"""What a re-ID training is made of: who generated pictures are, limits that nest, records."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from datasets.people.listing import identities_sha256
from datasets.reid.sources import REAL, VARIANTS, bytes_needed, list_sources, people_sha256
from datasets.reid.training_set import load_training_images
from datasets.runs.manifest import write_manifest
from datasets.runs.plan import read_plan
from datasets.runs.run import Run
from datasets.runs.shards import read_shard, shard_table, write_shard
from datasets.runs.verdicts import Thresholds
from passersby.errors import InputError
from tests.helpers import export_runs


def picture(path: Path, value: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((32, 16, 3), value, np.uint8))


def make_latent(run, people: set[int]) -> None:
    """Say of these people that they were made from real people's latents."""
    plan = read_plan(run)
    for unit in plan.units():
        table = read_shard(Run(run, plan), unit)
        sources = ["latent" if person in people else "seed" for person in table["person"].to_pylist()]
        columns = {name: table[name] for name in table.column_names} | {"source": pa.array(sources)}
        write_shard(run, plan.configuration.hash, unit.unit, shard_table(unit.unit, pa.table(columns)))
    write_manifest(Run(run, plan), plan.units(), Thresholds())


@pytest.fixture
def market(tmp_path):
    for person in (1, 3, 12):
        for camera in (1, 2, 3):
            picture(tmp_path / f"m/bounding_box_train/{person:04d}_c{camera}s1_000001_00.jpg", 10 * person + camera)
    return tmp_path / "m"


def test_a_run_s_variants_are_the_real_people_it_names(market, tmp_path):
    run = export_runs.make_run(str(tmp_path / "run"), people=4, variants=4)
    with pytest.raises(InputError, match=r"its 9 images are of new people.* give the run with --people"):
        list_sources(market, [], [tmp_path / "run"])
    make_latent(run, {0, 1, 3})
    *_, variants = list_sources(market, [], [tmp_path / "run"])
    assert variants.persons == ("0001",) * 3 + ("0003",) * 3
    assert variants.listing.names[:3] == ("1/0", "1/2", "1/3")
    assert "3 variants of 1 people who are not in m (Market-1501) train are left out: '0'" in variants.listing.notes[-1]
    make_latent(run, {3})
    *_, variants = list_sources(market, [], [tmp_path / "run"])
    assert set(variants.persons) == {"0003"}
    assert "6 images of new people are left out" in variants.listing.notes[0]


def test_a_run_is_only_read_as_far_as_asked(market, tmp_path, monkeypatch):
    export_runs.make_run(str(tmp_path / "run"), people=70, variants=6)
    read = []

    def counted(run, unit, columns=None):
        read.append(unit.unit)
        return read_shard(run, unit, columns)

    monkeypatch.setattr("datasets.reid.runs.read_shard", counted)
    levels = [list_sources(market, [tmp_path / "run"], most_people=most)[1] for most in (3, 20)]
    assert read.count(0) == 2
    assert max(read) < 20
    assert list(levels[0].people) == ["run/0", "run/1", "run/3"]  # nobody is kept of person 2
    assert list(levels[1].people)[:3] == list(levels[0].people)
    assert len(levels[1].people) == 20


@pytest.mark.slow
def test_drawn_people_of_a_run_nest_and_differ_between_seeds(market, tmp_path):
    export_runs.make_run(str(tmp_path / "run"), people=30, variants=6)

    def drawn(most: int, seed: int | None) -> list[str]:
        return list(list_sources(market, [tmp_path / "run"], most_people=most, draw_seed=seed)[1].people)

    assert set(drawn(5, 1)) < set(drawn(12, 1)) < set(drawn(29, None))  # of person 2 nobody is kept
    assert len(drawn(12, 1)) == 12
    assert drawn(12, 1) == sorted(drawn(12, 1), key=lambda name: int(name.rpartition("/")[2]))
    assert len({frozenset(drawn(5, seed)) for seed in (1, 2, None)}) == 3
    one = list_sources(market, [tmp_path / "run"], most_people=5, draw_seed=1)[1]
    everybody = list_sources(market, [tmp_path / "run"])[1]
    contents = dict(zip(everybody.listing.names, everybody.listing.contents, strict=True))
    assert all(contents[n] == c for n, c in zip(one.listing.names, one.listing.contents, strict=True))
    assert [n for n in everybody.listing.names if f"run/{n.split('/')[0]}" in drawn(5, 1)] == list(one.listing.names)


def test_drawn_people_of_a_folder_and_drawn_variants_nest(market, tmp_path):
    for person in "stuvwxyz":
        picture(tmp_path / "a" / person / "0.jpg")
    for index in range(8):
        for person in (3, 12):
            picture(tmp_path / "v" / str(person) / f"{index}.jpg")

    def people(most: int, seed: int | None) -> set[str]:
        return set(list_sources(market, [tmp_path / "a"], most_people=most, draw_seed=seed)[1].people)

    def variants(most: int, seed: int | None) -> set[str]:
        return set(list_sources(market, [], [tmp_path / "v"], most_variants=most, draw_seed=seed)[1].listing.names)

    for take in (people, variants):
        assert take(2, 0) < take(4, 0) < take(8, 0) == take(8, None)
        assert len({frozenset(take(3, seed)) for seed in (0, 1, 2)}) > 1
    assert sorted(name.split("/")[0] for name in variants(3, 0)) == ["12"] * 3 + ["3"] * 3


def test_limits_count_over_all_sources(market, tmp_path):
    for folder, people in (("a", "xy"), ("b", "yz")):
        for person in people:
            picture(tmp_path / folder / person / "0.jpg")
    for folder in ("v", "w"):
        for index in range(2):
            picture(tmp_path / folder / "3" / f"{index}.jpg")
    sources = list_sources(market, [tmp_path / "a", tmp_path / "b"], [tmp_path / "v", tmp_path / "w"], 3, 3)
    assert [name for source in sources[1:3] for name in source.people] == ["a/x", "a/y", "b/y"]
    assert [len(source) for source in sources if source.kind == VARIANTS] == [2, 1]
    assert len(list_sources(market, [tmp_path / "a", tmp_path / "b"], most_people=2)) == 2


def test_real_people_whose_names_look_like_an_artificial_one_s(tmp_path):
    picture(tmp_path / "faces/0/a.jpg")
    (tmp_path / "own.csv").write_text("path,identity\nfaces/0/a.jpg,faces/0\n")
    sources = list_sources(tmp_path / "own.csv", [tmp_path / "faces"])
    assert [list(source.people) for source in sources] == [["faces/0"], ["faces#2/0"]]


def test_variants_of_ambiguous_people_are_nobody_s(tmp_path):
    for person in ("7", "007", "é"):
        picture(tmp_path / "real" / person / "a.jpg")
    for person in ("007", "é"):
        picture(tmp_path / "some" / person / "a.jpg")
    picture(tmp_path / "none/07/a.jpg")
    assert list_sources(tmp_path / "real", [], [tmp_path / "some"])[1].persons == ("007", "é")
    with pytest.raises(InputError, match=r"none of its 1 people \('07'\)"):
        list_sources(tmp_path / "real", [], [tmp_path / "none"])


@pytest.mark.parametrize("option", ["people", "variants"])
def test_a_source_given_twice_is_one_line(market, tmp_path, option):
    picture(tmp_path / "a/1/0.jpg")
    with pytest.raises(InputError, match=f"--{option} .*a is given twice"):
        list_sources(market, **{option: [tmp_path / "a", tmp_path / "b/../a"]})


@pytest.mark.parametrize("limit", ["most_people", "most_variants"])
def test_limits_below_one_are_one_line(market, limit):
    with pytest.raises(InputError, match="must be 1 or more"):
        list_sources(market, **{limit: 0})


def test_people_called_by_numbers_have_the_hash_that_generators_record(market):
    record = list_sources(market)[REAL].record([])
    assert record["sha256"] == identities_sha256([1, 3, 12])
    assert people_sha256(["0002", "1"]) == identities_sha256([2, 1])
    assert people_sha256(["b", "1"]) == people_sha256(["1", "b"]) != people_sha256(["1", "c"])


def test_the_toy_crowd_is_named_in_the_record(market):
    assert "toy_crowd" not in load_training_images(market, height=16, width=8).record
    (market / "toy_crowd.json").write_text('{"version": "1", "content_hash": "abc", "options": {"junk": 3}}')
    assert load_training_images(market, height=16, width=8).record["toy_crowd"] == {
        "version": "1", "content_hash": "abc",
    }  # fmt: skip
    (market / "toy_crowd.json").write_text("[1")
    with pytest.raises(InputError, match="toy_crowd.json is no JSON object"):
        load_training_images(market, height=16, width=8)


def test_memory_is_asked_for_before_anything_is_decoded(market, monkeypatch):
    def refuse(needed: int) -> None:
        assert needed == bytes_needed([9], 64, 32) == 9 * 64 * 32 * 3
        raise InputError("too much")

    monkeypatch.setattr("datasets.reid.training_set.decode_into", None)
    with pytest.raises(InputError, match="too much"):
        load_training_images(market, height=64, width=32, check_memory=refuse)


def test_people_without_a_readable_image_are_left_out_with_their_variants(market, tmp_path):
    for camera in (1, 2, 3):
        (market / f"bounding_box_train/0001_c{camera}s1_000001_00.jpg").write_bytes(b"no image")
    (market / "bounding_box_train/0003_c1s1_000001_00.jpg").write_bytes(b"no image")
    for person in ("1", "12"):
        picture(tmp_path / "v" / person / "0.jpg", 200)
    data = load_training_images(market, [], [tmp_path / "v"], 32, 16)
    assert data.class_names == ("0003", "0012")
    values = data.images[:, 0, 0, 0].tolist()
    assert np.abs(np.subtract(values, [33, 122, 123, 200])).max() <= 2  # JPEG
    assert data.classes.tolist() == [0, 1, 1, 1]
    assert data.validation_classes.tolist() == [0, 1]
    # The first that can be read is set aside: of person 3 the second.
    assert np.abs(np.subtract(data.validation_images[:, 0, 0, 0].tolist(), [32, 121])).max() <= 2
    assert "1 people have no image that can be read and are left out, and 1 variants of them" in data.notes[-1]
    assert data.record["real"][0]["unreadable"][0] == "0001_c1s1_000001_00.jpg"
    assert data.record["trained"] == {"real": 3, "people": 0, "variants": 1}


def test_fingerprints_tell_trainings_apart_and_repeat(market, tmp_path):
    picture(tmp_path / "a/x/0.jpg")

    def fingerprint(people=(), variants=(), height=16, **options) -> str:
        return load_training_images(market, people, variants, height, 8, **options).fingerprint

    assert fingerprint() == fingerprint()
    different = {
        fingerprint(), fingerprint(height=32), fingerprint(validation="none"), fingerprint([tmp_path / "a"]),
    }  # fmt: skip
    assert len(different) == 4
    with pytest.raises(InputError, match="--validation people"):
        fingerprint(validation="people")
