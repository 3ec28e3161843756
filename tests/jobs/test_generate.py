"""The main job, end to end on a shared local Ray, and everything that it refuses before Ray starts."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from actors.pedestrian_detector import PedestrianDetector
from actors.similarity_scorer import SimilarityScorer
from actors.style_mixer import StyleMixer
from datasets.runs.plan import PLAN_FILE, read_plan
from datasets.runs.rows import images_of
from datasets.runs.run import Run, begin_run, shard_name
from datasets.runs.shards import read_shard
from datasets.storage.output import Output, _host
from jobs import generate, refilter
from jobs.generate import Config
from passersby import weights
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.stylegan3.checkpoint import load_network
from tests.helpers.drivers import stages_here

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory, network) -> Config:
    # Threshold 0: an untrained network makes no pedestrians. One actor a stage: a start costs seconds.
    out = str(tmp_path_factory.mktemp("run") / "out")
    return Config(
        out=out, people=3, variants=4, seed=5, network=network, detector_threshold=0.0, generators=1, detectors=1
    )


def snapshot(out: str) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in Path(out).rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(ray_cluster, config) -> Config:
    generate.main(config)
    return config


def test_a_run_leaves_what_it_promises(finished):
    output = Output(finished.out)
    plan = read_plan(output)
    assert plan.people == 3
    assert {name for name in snapshot(finished.out) if "/" not in name} == {
        "plan.json", "manifest.parquet", "summary.json", "contact_sheet.png", "report.html",
    }  # fmt: skip
    manifest = pq.read_table(f"{finished.out}/manifest.parquet")
    found = list(zip(manifest["person"].to_pylist(), manifest["variant"].to_pylist(), strict=True))
    assert found == [(person, variant) for person in range(3) for variant in range(4)]
    summary = json.loads(output.read("summary.json"))
    assert summary["images"] == sum(summary["counts"].values()) == 12
    assert summary["plan_hash"] == plan.configuration.hash
    assert summary["network"]["trained_on"] == "nothing, a test"
    assert summary["images_per_second"] > 0
    assert all(summary["stage_seconds"][stage] > 0 for stage in ("generate", "detect", "similarity", "write"))


def test_shards_hold_what_the_stages_make_without_ray(finished):
    output = Output(finished.out)
    plan = read_plan(output)
    c = plan.configuration
    threads = torch.get_num_threads()
    stages = [
        StyleMixer(load_network(finished.network).generator, c),
        PedestrianDetector(weights.get("yolov4-tiny"), c.height, c.width),
        SimilarityScorer(c.reference_threshold),
    ]
    unit = list(plan.units())[1]
    batch = pa.table({name: [value] for name, value in dataclasses.asdict(unit).items()})
    for stage in stages:
        batch = stage(batch)
    torch.set_num_threads(threads)
    alone, stored = images_of(batch).to_pylist(), read_shard(Run(output, plan), unit).to_pylist()
    for expected, row in zip(alone, stored, strict=True):
        assert row | expected == row  # every column of every image, bytes and scores: equal machines, equal numbers


@pytest.mark.slow
def test_a_finished_run_does_nothing_and_needs_no_ray(finished):
    before = snapshot(finished.out)
    times = {path: path.stat().st_mtime_ns for path in Path(finished.out).rglob("*")}
    options = ["--people", "3", "--variants", "4", "--seed", "5", "--detector-threshold", "0"]
    command = [sys.executable, "-m", "jobs.generate", "--out", finished.out, "--network", str(finished.network)]
    nowhere = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}  # to start or join Ray would fail
    done = subprocess.run([*command, *options], env=nowhere, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "every unit is there" in done.stdout
    assert done.stdout.splitlines()[-2:] == [
        f"contact sheet: {finished.out}/contact_sheet.png",
        f"report: {finished.out}/report.html",
    ]
    assert snapshot(finished.out) == before
    assert {path: path.stat().st_mtime_ns for path in Path(finished.out).rglob("*")} == times


def test_refilter_judges_again_in_seconds(finished, capsys):
    before = snapshot(finished.out)
    refilter.main(refilter.Config(out=finished.out, name="strict", detector_threshold=0.9))
    after = snapshot(finished.out)
    assert set(after) - set(before) == {"manifest-strict.parquet"}
    assert all(after[name] == content for name, content in before.items())
    verdicts = pq.read_table(f"{finished.out}/manifest-strict.parquet")["verdict"].to_pylist()
    assert verdicts == ["detector"] * 12
    printed = capsys.readouterr().out
    assert "references were chosen at detector threshold 0" in printed
    assert printed.rstrip().endswith("manifest-strict.parquet")


def test_other_thresholds_of_a_finished_run_need_no_ray(finished):
    shards = {name: data for name, data in snapshot(finished.out).items() if name.startswith("shards")}
    generate.main(dataclasses.replace(finished, detector_threshold=0.95))
    summary = json.loads(Output(finished.out).read("summary.json"))
    assert summary["counts"]["detector"] == 12
    assert summary["stage_seconds"]["generate"] > 0  # of the run that made them
    generate.main(finished)
    assert json.loads(Output(finished.out).read("summary.json"))["counts"]["detector"] == 0
    assert {name: data for name, data in snapshot(finished.out).items() if name.startswith("shards")} == shards


@pytest.mark.slow
def test_a_killed_run_meets_an_output_that_cannot_be_written_is_finished_and_more_people_extend_it(finished):
    # What a killed run leaves: shards missing, a temporary file, nothing derived.
    before = snapshot(finished.out)
    out = Path(finished.out)
    (out / shard_name(1)).unlink()
    for derived in ("manifest.parquet", "summary.json"):
        (out / derived).unlink()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (out / shard_name(1)).with_name(f".unit-000001.parquet.{_host()}.{ended.pid}.tmp").write_bytes(b"half")
    untouched = (out / shard_name(0)).stat().st_mtime_ns
    larger, last = dataclasses.replace(finished, people=5), out / shard_name(4)
    last.mkdir()  # a folder in the shard's place: the rename fails, whoever runs this
    with pytest.raises(InputError, match=rf"^cannot write {last}: Is a directory"):
        generate.main(larger)
    last.rmdir()
    assert list(out.rglob(".*.tmp")) == []
    with stages_here():
        generate.main(larger)
    after = snapshot(finished.out)
    assert (out / shard_name(0)).stat().st_mtime_ns == untouched
    for name in (shard_name(0), shard_name(1), shard_name(2)):
        assert after[name] == before[name]
    assert {name for name in after if name.startswith("shards")} == {shard_name(unit) for unit in range(5)}
    people = pq.read_table(out / "manifest.parquet")["person"].to_pylist()
    assert people == [person for person in range(5) for _ in range(4)]
    assert json.loads((out / "summary.json").read_text())["images"] == 20
    assert read_plan(Output(finished.out)).people == 5


@pytest.mark.slow
def test_a_failed_unit_is_said_and_tried_again_by_the_next_run(finished, tmp_path, monkeypatch, capsys):
    prepare = generate.prepare

    class Failing(StyleMixer):
        def __call__(self, batch: pa.Table) -> pa.Table:
            if batch["first_person"][0].as_py() == 1:
                raise RuntimeError("this person cannot be drawn")
            return super().__call__(batch)

    def with_a_failing_stage(*arguments):
        stages, machines = prepare(*arguments)
        return [stages[0]._replace(actor=Failing), *stages[1:]], machines

    monkeypatch.setattr(generate, "prepare", with_a_failing_stage)
    config = dataclasses.replace(finished, out=str(tmp_path / "out"))
    assert generate.main(config) == 1
    said = capsys.readouterr().err
    assert "1 unit failed, the first in Failing: RuntimeError: this person cannot be drawn, 3 times" in said
    assert "The same command tries them again" in said
    left = set(snapshot(config.out))
    assert left == {"plan.json", shard_name(0), shard_name(2), "failed/unit-000001.json"}
    monkeypatch.undo()
    with stages_here():
        assert generate.main(config) == 0
    assert set(snapshot(config.out)) - left == {
        shard_name(1), "manifest.parquet", "summary.json", "contact_sheet.png", "report.html",
    }  # fmt: skip
    assert "failed/unit-000001.json" not in snapshot(config.out)


def test_a_dry_run_prints_and_writes_nothing(ray_cluster, config, tmp_path, capsys):
    generate.main(dataclasses.replace(config, out=str(tmp_path / "out"), people=1000, dry_run=True))
    printed = capsys.readouterr().out
    assert "1,000 people x 4 variants = 4,000 images" in printed
    assert "no GPU here: running on the CPU" in printed
    assert "generators 1 x " in printed
    assert "expected time: " in printed
    assert "expected disk: " in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generators": 4, "gpus_per_generator": 1}, "the largest node has 0"),
        ({"device": "cuda"}, "0 GPUs"),
        ({"generators": 100_000}, "100000 generators"),
    ],
)
def test_more_than_the_cluster_has_is_refused(ray_cluster, config, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        generate.main(dataclasses.replace(config, out=str(tmp_path / "out"), **changes))
    assert not (tmp_path / "out").exists()


def test_another_configuration_in_an_old_folder_is_refused(finished):
    with pytest.raises(InputError, match=r"truncation_psi is 0\.7, not 0\.5"):
        generate.main(dataclasses.replace(finished, truncation_psi=0.5))
    with pytest.raises(InputError, match="seed is 5, not 6; variants is 4, not 9"):
        generate.main(dataclasses.replace(finished, seed=6, variants=9))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"people": 0}, "--people 0"),
        ({"people": -3}, "--people -3"),
        ({"people": 10**12}, "--people 1000000000000"),
        ({"variants": 0}, "--variants 0"),
        ({"seed": -1}, "--seed -1"),
        ({"truncation_psi": float("nan")}, "--truncation-psi nan"),
        ({"layers": "17"}, "--layers '17'"),
        ({"layers": ""}, "--layers ''"),
        ({"amount": 0.5}, "--amount 0.5: it belongs to"),
        ({"method": "interpolate", "amount": -1.0}, "--amount -1.0"),
        ({"height": 0}, "--height 0"),
        ({"width": 10**6}, "--width 1000000"),
        ({"jpeg_quality": 400}, "--jpeg-quality 400"),
        ({"detector_threshold": 1.5}, "--detector-threshold 1.5"),
        ({"ssim_floor": 7.0}, "--ssim-floor 7.0"),
        ({"ssim_ceiling": 0.1}, "--ssim-ceiling 0.1"),
        ({"ssim_data_range": 0.0}, "--ssim-data-range 0.0"),
        ({"unit_images": -5}, "--unit-images -5"),
        ({"network": Path("nowhere.pkl")}, "nowhere.pkl"),
        ({"yolo_weights": Path("nowhere.weights")}, "nowhere.weights"),
        ({"out": ""}, "--out"),
        ({"out": "nosuch://x/y"}, "--out nosuch://x/y"),
    ],
)
def test_bad_input_is_refused_by_name_and_value(config, tmp_path, changes, message):
    with pytest.raises(InputError) as caught:
        generate.main(dataclasses.replace(config, **({"out": str(tmp_path / "out")} | changes)))
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_an_earlier_demo_network_says_how_to_go_on(config, network, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "DEMO_NETWORK", network)
    former = "176214e5a71781b5dfbb1776447b566c5a81591df246f67aedc149276f387ace"
    config = dataclasses.replace(config, out=str(tmp_path / "out"), network=None)
    output = Output(config.out)
    configuration = dataclasses.replace(config.frozen(config.inputs()), network=former)
    output.write(PLAN_FILE, begin_run(output, configuration, 3).plan.to_json())
    before = snapshot(config.out)
    with pytest.raises(InputError) as caught:
        generate.main(config)
    assert str(caught.value) == (
        f"--out {config.out} was begun with the demo network of an earlier version (sha256 {former}; "
        f"f00fa60:models/demo/toy_crowd.safetensors): give --network {weights.DEMO_STYLEGAN3}"
    )
    assert snapshot(config.out) == before
    assert file_sha256(weights.DEMO_STYLEGAN3) == former
    earlier = "2eb112ad964da95f5be07e09bb53e4d35e72998801afeb38bcfb78e134af8b9a"
    configuration = dataclasses.replace(configuration, network=earlier)
    output.write(PLAN_FILE, begin_run(Output(str(tmp_path / "other")), configuration, 3).plan.to_json())
    with pytest.raises(InputError) as caught:
        generate.main(config)
    assert str(caught.value) == (
        f"--out {config.out} was begun with the demo network of an earlier version (sha256 {earlier}): write it into a "
        "file, git show f9620e4:models/demo/toy_crowd.safetensors > former.safetensors, and give "
        "--network former.safetensors"
    )


def test_networks_that_are_none_are_refused(config, network, tmp_path):
    whole = network.read_bytes()
    bad = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"hello",
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(99),
    }
    for name, content in bad.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=str(path)):
            generate.main(dataclasses.replace(config, network=path, out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_wrong_detector_weights_are_refused(config, tmp_path):
    path = tmp_path / "yolov4-tiny.weights"
    path.write_bytes(bytes(1000))
    path.with_suffix(".cfg").write_text("[net]")
    with pytest.raises(InputError, match=str(path)):
        generate.main(dataclasses.replace(config, yolo_weights=path, out=str(tmp_path / "out")))


@pytest.mark.slow
def test_bad_input_is_one_line_and_exit_code_2(network, tmp_path):
    (tmp_path / "plain").write_text("")
    command = [sys.executable, "-m", "jobs.generate", "--network", str(network), "--people", "-3"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --people -3: must be 1 or more\n"


def test_a_plain_file_as_parent_is_refused(ray_cluster, config, tmp_path):
    (tmp_path / "plain").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*/plain/out/\.driver\.json: "):
        generate.main(dataclasses.replace(config, out=str(tmp_path / "plain" / "out")))
