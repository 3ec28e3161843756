"""Checks of shards and names against the plan: whatever is altered is found, what is whole passes."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.runs.configuration import Origin
from datasets.runs.plan import Configuration, Extent, Plan, Unit
from datasets.runs.run import Run, shard_name
from datasets.runs.shards import SCHEMA, shard_table, write_shard
from datasets.runs.verify import Findings, check_names, check_shard, check_shards, ranges, sampled_people
from datasets.storage.output import Output

VARIANTS = 3
PLAN = Plan(
    Configuration(
        seed=7, variants=VARIANTS, method="interpolate", layers=(5, 6), amount=0.3, truncation_psi=0.7, network="n",
        height=16, width=8, format="png", jpeg_quality=None, unit_images=6, detector="d", reference_threshold=0.6,
        ssim_data_range=4095.0,
    ),
    (Extent(0, 0, 20, 2),),
)  # fmt: skip


def picture(number: int, height: int = 16, width: int = 8, ending: str = ".png") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return cv2.imencode(ending, pixels)[1].tobytes()


def rows(unit: Unit) -> list[dict]:
    """The rows of a whole unit; of each person the second variant is the first that passes, the last has failed."""
    c = PLAN.configuration
    images = [(p, v) for p in range(unit.first_person, unit.first_person + unit.people) for v in range(VARIANTS)]
    return [
        {
            "person": person,
            "variant": variant,
            "source": "seed",
            "seed": 7 + person,
            "mix_seed": c.mix_seed(person, variant) if variant else None,
            "method": "interpolate",
            "mix_layers": [5, 6] if variant else [],
            "amount": 0.3 if variant else None,
            "truncation_psi": 0.7,
            "image": None if variant == 2 else picture(VARIANTS * person + variant),
            "height": 16,
            "width": 8,
            "status": "error" if variant == 2 else "ok",
            "message": "the network's image is not finite" if variant == 2 else None,
            "detector_score": (0.1, 0.9, None)[variant],
            "ssim": (0.8, 1.0, None)[variant],
            "reference_variant": (1, 1, None)[variant],
        }
        for person, variant in images
    ]


def table(unit: Unit, changes: dict[int, dict] | None = None) -> pa.Table:
    changed = [row | (changes or {}).get(index, {}) for index, row in enumerate(rows(unit))]
    return shard_table(
        unit.unit,
        pa.table({name: pa.array([row[name] for row in changed], SCHEMA.field(name).type) for name in changed[0]}),
    )


@pytest.fixture
def output(tmp_path) -> Output:
    return Output(str(tmp_path / "run"))


def found(output: Output, decoded: bool = True) -> str:
    problem = check_shard(Run(output, PLAN), next(PLAN.units()), lambda _: decoded).problem
    return ": ".join(problem) if problem else ""


def test_a_whole_shard_passes(output):
    unit = next(PLAN.units())
    write_shard(output, PLAN.configuration.hash, 0, table(unit))
    check = check_shard(Run(output, PLAN), unit, lambda _: True)
    assert check.problem is None
    assert check.table.equals(table(unit))


def test_any_altered_byte_is_found(output):
    # All kinds of places: page headers, pages, images, footer, and the words around them; every 13th byte.
    write_shard(output, PLAN.configuration.hash, 0, table(next(PLAN.units())))
    whole = output.read(shard_name(0))
    number = whole.index(b"parquet-cpp-arrow version ")  # a digit of it may be another release's honest file
    digits = range(number, number + 40)
    file = Path(output.address(shard_name(0)))
    for place in [place for place in range(0, len(whole), 13) if place not in digits]:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert "damaged" in found(output, decoded=False) or "another plan" in found(output), place


def test_a_flipped_byte_in_the_images_is_found_by_the_checksum(output):
    write_shard(output, PLAN.configuration.hash, 0, table(next(PLAN.units())))
    whole = output.read(shard_name(0))
    image = picture(1)
    place = whole.index(image) + len(image) // 2
    output.write(shard_name(0), whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    assert "checksum" in found(output, decoded=False)


@pytest.mark.parametrize(
    ("row", "changes", "text"),
    [
        (1, {"seed": 8}, "person 0 variant 1: seed is 8, the plan says 7"),
        (1, {"mix_seed": 5}, "mix_seed is 5"),
        (0, {"mix_seed": 5}, "mix_seed is 5, the plan says None"),
        (4, {"mix_layers": [5]}, "person 1 variant 1: mix_layers is [5], the plan says [5, 6]"),
        (1, {"amount": 0.5}, "amount is 0.5"),
        (1, {"amount": float("nan")}, "amount is nan"),
        (1, {"truncation_psi": 1.0}, "truncation_psi is 1.0"),
        (1, {"method": "mix"}, "method is mix"),
        (1, {"source": "latent"}, "source is latent"),
        (1, {"height": 17}, "height is 17"),
        (1, {"status": "fine"}, "status is neither ok nor error"),
        (1, {"image": None}, "status ok without an image"),
        (1, {"message": "hm"}, "status ok with a message"),
        (2, {"message": None}, "status error without a message"),
        (2, {"ssim": 0.5}, "status error with scores"),
        (2, {"image": picture(2)}, "status error, but its image is good"),
        (0, {"detector_score": 1.5}, "detector_score is not within 0..1"),
        (0, {"detector_score": float("nan")}, "detector_score is not within 0..1"),
        (0, {"detector_score": None}, "detector_score is not within 0..1"),
        (0, {"ssim": -1.5}, "ssim is not within -1..1"),
        (0, {"reference_variant": 0}, "reference_variant is not what the scores say"),
        (4, {"ssim": 0.9}, "person 1 variant 1: the reference's ssim is not 1"),
        (0, {"detector_score": 0.7}, "reference_variant is not what the scores say"),
        (1, {"image": b"nonsense"}, "not an image that can be decoded"),
        (1, {"image": picture(1, 16, 16)}, "the image stored is 16 x 16, not 16 x 8"),
        (1, {"image": picture(1, ending=".jpg")}, "the image is no png"),
    ],
)
def test_rows_that_break_a_rule_are_found_although_the_file_is_intact(output, row, changes, text):
    write_shard(output, PLAN.configuration.hash, 0, table(next(PLAN.units()), {row: changes}))
    assert found(output).startswith("with wrong rows")
    assert text in found(output)


def test_a_person_without_a_passing_image_refers_to_the_first_that_is_ok(output):
    unit = next(PLAN.units())
    nothing = {"detector_score": None, "ssim": None, "reference_variant": None, "image": None}
    changes = {
        0: nothing | {"status": "error", "message": "not finite"},
        1: {"detector_score": 0.2},
        3: {"detector_score": 0.3, "ssim": 1.0, "reference_variant": 0},
        4: {"detector_score": 0.2, "ssim": 0.8, "reference_variant": 0},
    }
    write_shard(output, PLAN.configuration.hash, 0, table(unit, changes))
    assert found(output) == ""


REAL = Configuration(
    seed=7, variants=VARIANTS, method="interpolate", layers=(5, 6), amount=0.4, truncation_psi=None, network="n",
    height=16, width=8, format="png", jpeg_quality=None, unit_images=6, detector="d", reference_threshold=0.6,
    ssim_data_range=4095.0, latents="t", partners="pictures",
    origins=(Origin("0002", "a/1.jpg", 3, 2), Origin("0007", "a/2.jpg", None, 9)),
)  # fmt: skip


def real_rows(configuration: Configuration) -> list[dict]:
    """Two real people: the first has one other picture, so the second variant goes only half the way."""
    changed = []
    for row, amount in zip(rows(Unit(0, 0, 2)), (None, 0.4, 0.2, None, 0.4, 0.4), strict=True):
        first, scored = row["person"] == 0, row["variant"] < 2 and configuration.identity is not None
        row |= {"source": "latent", "seed": None, "truncation_psi": None, "amount": amount}
        row |= {"source_path": "a/1.jpg" if first else "a/2.jpg", "camera": 3 if first else None}
        row |= {"mix_seed": configuration.mix_seed(row["person"], row["variant"]) if row["variant"] else None}
        row |= {"identity_cosine": 0.8 if scored else None, "identity_margin": -0.1 if scored else None}
        changed.append(row | {"nearest_identity": 7 if scored else None})
    return changed


def found_in(output: Output, configuration: Configuration, found: list[dict]) -> str:
    plan = Plan(configuration, (Extent(0, 0, 2, 2),))
    columns = {name: pa.array([row.get(name) for row in found], SCHEMA.field(name).type) for name in found[0]}
    write_shard(output, configuration.hash, 0, shard_table(0, pa.table(columns)))
    problem = check_shard(Run(output, plan), next(plan.units()), lambda _: True).problem
    return ": ".join(problem) if problem else ""


@pytest.mark.parametrize(
    ("row", "changes", "text"),
    [
        (0, {}, ""),
        (0, {"source": "seed"}, "source is seed, the plan says latent"),
        (1, {"source_path": "a/2.jpg"}, "person 0 variant 1: source_path is a/2.jpg, the plan says a/1.jpg"),
        (3, {"camera": 3}, "person 1 variant 0: camera is 3, the plan says None"),
        (0, {"camera": None}, "camera is None, the plan says 3"),
        (0, {"seed": 7}, "seed is 7, the plan says None"),
        (1, {"mix_seed": 1}, "mix_seed is 1, the plan says"),
        (2, {"amount": 0.4}, "person 0 variant 2: amount is 0.4"),
        (4, {"truncation_psi": 0.5}, "truncation_psi is 0.5"),
        (4, {"identity_cosine": 0.5}, "scores of identity that nothing can have given"),
    ],
)
def test_rows_of_real_people_are_checked_against_the_plan_alone(output, row, changes, text):
    found = real_rows(REAL)
    found[row] |= changes
    assert text in found_in(output, REAL, found)
    assert bool(text) == bool(found_in(output, REAL, found))


NOTHING = {"identity_cosine": None, "identity_margin": None, "nearest_identity": None}


@pytest.mark.parametrize(
    ("row", "changes", "text"),
    [
        (0, {}, ""),
        (0, {"identity_cosine": None, "identity_margin": None}, ""),  # no picture of this person can be read
        (0, {"identity_cosine": 1.1}, "identity_cosine is not within -1..1"),
        (0, {"identity_margin": float("nan")}, "identity_margin is not within -2..2"),
        (0, {"nearest_identity": None}, "no nearest_identity"),
        (2, {"identity_cosine": 0.5}, "scores of identity that nothing can have given"),
        (1, {"status": "error", "message": "its features are not finite"}, "nothing can have"),
        (1, {"status": "error", "message": "its features are not finite"} | NOTHING, ""),  # the reference, too
    ],
)
def test_scores_of_identity_follow_rules(output, row, changes, text):
    configuration = dataclasses.replace(REAL, identity="i", real="r")
    found = real_rows(configuration)
    found[row] |= changes
    assert text in found_in(output, configuration, found)
    assert bool(text) == bool(found_in(output, configuration, found))
    if text:
        return
    without = dataclasses.replace(configuration, real=None)
    assert "nothing can have given" in found_in(output, without, found)


def test_artificial_people_are_compared_with_their_references(output):
    configuration = dataclasses.replace(PLAN.configuration, identity="i")
    found = rows(Unit(0, 0, 2))
    for row in found:
        row["identity_cosine"] = (0.7, 1.0, None)[row["variant"]]
    assert found_in(output, configuration, found) == ""
    found[1]["identity_cosine"] = 0.99
    assert "the reference's identity_cosine is not 1" in found_in(output, configuration, found)
    found[0]["identity_cosine"], found[1]["identity_cosine"] = None, 1.0
    assert "no identity_cosine" in found_in(output, configuration, found)
    found[1] |= {"identity_cosine": None, "status": "error", "message": "its features are not finite"}
    assert found_in(output, configuration, found) == ""  # nothing left to compare the first with


def test_other_columns_and_texts_that_are_none_are_found(output):
    unit = next(PLAN.units())
    with output.replacing(shard_name(0)) as path:
        pq.write_table(
            table(unit)
            .drop_columns("camera")
            .replace_schema_metadata({"schema_version": "1", "plan_hash": PLAN.configuration.hash}),
            path,
        )
    assert "other columns" in found(output)
    broken = table(unit)
    text = pa.array([b"\xff\xfe"] * 6, pa.binary()).view(pa.string())
    write_shard(
        output, PLAN.configuration.hash, 0, broken.set_column(SCHEMA.get_field_index("message"), "message", text)
    )
    assert found(output).startswith("damaged")


def test_units_come_in_order_and_images_only_where_asked(output):
    for unit in list(PLAN.units())[:7]:
        write_shard(output, PLAN.configuration.hash, unit.unit, table(unit))
    checks = list(check_shards(Run(output, PLAN), {0, 1, 2, 3, 4, 6}, lambda _: True, lambda unit: unit.unit == 3))
    assert [check.unit for check in checks] == list(PLAN.units())
    assert [check.table is None for check in checks] == [False] * 5 + [True, False, True, True, True]
    assert [check.unit.unit for check in checks if check.table and "image" in check.table.column_names] == [3]
    assert not any(check.problem for check in checks)


def test_shards_of_many_pages_pass(output):
    # Above 1 MB the images of a shard are more than one page: encoding again must cut them alike.
    plan = Plan(PLAN.configuration, (Extent(0, 0, 200, 200),))
    unit = next(plan.units())
    content = [b"\xff" * 5000] * 600
    whole = table(unit)
    big = whole.set_column(SCHEMA.get_field_index("image"), "image", pa.array(content, pa.binary()))
    write_shard(output, plan.configuration.hash, 0, big)
    assert len(output.read(shard_name(0))) > 2_900_000
    assert check_shard(Run(output, plan), unit, lambda _: False).problem is None


def test_strangers_are_found_and_leftovers_noted():
    findings = Findings()
    names = [
        "plan.json", "manifest.parquet", shard_name(0), shard_name(2), shard_name(10), "shards/001/unit-000003.parquet",
        "shards/000/copy.parquet", "shards/000/.unit-000004.parquet.host.1.tmp",
    ]  # fmt: skip
    assert check_names(names, PLAN, findings) == {0, 2}
    assert findings.missing == [1, *range(3, 10)]
    assert not findings.whole
    assert findings.verdict(PLAN) == ("NOT whole: 8 of 10 units missing, 3 not of the plan (shards/000/copy.parquet)")
    text = "\n".join(findings.lines())
    assert "no shard of units 1, 3-9: the same command" in text
    for name in (shard_name(10), "shards/001/unit-000003.parquet", "shards/000/copy.parquet"):
        assert f"{name} is no shard of this plan: remove it" in text
    assert "note: files that are no shards, left by killed writers or others: 1 (shards/000/.unit-000004" in text


def test_many_findings_are_counted():
    findings = Findings()
    for unit in range(1000):
        findings.add("damaged", shard_name(unit), f"{shard_name(unit)} is damaged")
    findings.notes.append("a note")
    assert len(findings.lines()) == 11
    assert findings.lines()[-1] == "... and 991 more"
    assert findings.verdict(PLAN) == f"NOT whole: 1,000 damaged ({shard_name(0)})"


def test_ranges_are_short():
    assert ranges([]) == ""
    assert ranges([0, 3, 4, 5, 12]) == "0, 3-5, 12"
    assert ranges(range(0, 40, 2)) == "0, 2, 4, 6, 8, 10, 12, 14 and 12 more"


def test_the_sample_is_spread_and_always_the_same():
    assert sampled_people(PLAN, 0) == []
    assert sampled_people(PLAN, 1) == [10]
    assert sampled_people(PLAN, 12) == [2, 7, 12, 17]
    assert sampled_people(PLAN, 10**9) == list(range(20))
