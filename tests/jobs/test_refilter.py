"""The job that judges again: refusals and identities; the rest is tested with jobs/generate.py, whose runs it reads."""

import pyarrow as pa
import pytest

from datasets.runs.manifest import read_manifest
from datasets.runs.plan import PLAN_FILE, Configuration, Plan
from datasets.runs.run import Run
from datasets.runs.shards import read_shard, shard_table, write_shard
from datasets.storage.output import Output
from jobs.refilter import Config, main
from passersby.errors import InputError

PLAN = Plan(
    Configuration(
        seed=0, variants=4, method="mix", layers=(5,), amount=None, truncation_psi=0.7, network="n", height=64,
        width=32, format="png", jpeg_quality=None, unit_images=512, detector="d", reference_threshold=0.6,
        ssim_data_range=4095.0,
    )
).extended(3)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detector_threshold": 1.2}, "--detector-threshold 1.2"),
        ({"ssim_floor": -3.0}, "--ssim-floor -3.0"),
        ({"ssim_floor": 0.9, "ssim_ceiling": 0.8}, "--ssim-ceiling 0.8 is below"),
        ({"identity_floor": 1.2}, "--identity-floor 1.2: a cosine is -1 to 1"),
        ({"identity_margin": -3.0}, "--identity-margin -3.0: a difference of cosines is -2 to 2"),
        ({"identity_ceiling": 7.0}, "--identity-ceiling 7.0"),
        ({"name": "../up"}, "--name '../up'"),
        ({"name": ""}, "--name ''"),
        ({"out": "/nonexistent/run"}, "no plan.json there"),
        ({}, "no unit is finished yet"),
    ],
)
def test_bad_input_is_refused(tmp_path, changes, message):
    Output(str(tmp_path)).write(PLAN_FILE, PLAN.to_json())
    with pytest.raises(InputError) as caught:
        main(Config(**({"out": str(tmp_path)} | changes)))
    assert message in str(caught.value)


@pytest.fixture
def run(tmp_path):
    """A run of one unit of three people x four variants: of two the identities were compared, of the third not."""
    output = Output(str(tmp_path))
    output.write(PLAN_FILE, PLAN.to_json())
    for unit in PLAN.units():
        count = unit.people * 4
        person = [unit.first_person + place // 4 for place in range(count)]
        columns = {
            "person": pa.array(person, pa.int64()),
            "variant": pa.array([place % 4 for place in range(count)], pa.int64()),
            "source": pa.array(["latent"] * count),
            "status": pa.array(["ok"] * count),
            "detector_score": pa.array([0.9] * count, pa.float32()),
            "ssim": pa.array([0.9] * count, pa.float32()),
            "reference_variant": pa.array([0] * count, pa.int64()),
            "identity_cosine": pa.array([None if p == 2 else 0.5 + place % 4 / 10 for place, p in enumerate(person)]),
            "identity_margin": pa.array([None if p == 2 else place % 4 / 10 - 0.1 for place, p in enumerate(person)]),
        }
        write_shard(output, PLAN.configuration.hash, unit.unit, shard_table(unit.unit, pa.table(columns)))
    return output


def verdicts_of(run, **options) -> list[str]:
    main(Config(out=run.root_address, **options))
    return read_manifest(run, "refiltered", ["verdict"])["verdict"].to_pylist()


def test_identities_are_judged_again(run, capsys):
    found = verdicts_of(run, identity_floor=0.65, identity_ceiling=0.75)
    assert found[:4] == ["identity_floor", "identity_floor", "kept", "identity_ceiling"]
    assert found[8:] == ["kept"] * 4
    printed = capsys.readouterr().out
    assert "too unlike the person (identity floor)" in printed
    assert "(identity margin)" not in printed
    assert "rejects nothing" not in printed
    assert verdicts_of(run, identity_margin=0.0)[:4] == ["identity_margin", "kept", "kept", "kept"]
    assert verdicts_of(run) == ["kept"] * 12
    assert "identity" not in capsys.readouterr().out.split("(identity margin)")[-1]


def test_thresholds_of_scores_that_nobody_took_are_said_to_reject_nothing(run, capsys):
    for unit in PLAN.units():
        table = read_shard(Run(run, PLAN), unit).drop_columns(["identity_cosine", "identity_margin"])
        write_shard(run, PLAN.configuration.hash, unit.unit, shard_table(unit.unit, table))
    assert verdicts_of(run, identity_floor=0.9, identity_margin=0.5, identity_ceiling=0.0) == ["kept"] * 12
    printed = capsys.readouterr().out
    assert "--identity-floor 0.9 rejects nothing: the run measured no likeness to its person" in printed
    assert printed.count("rejects nothing") == 3
