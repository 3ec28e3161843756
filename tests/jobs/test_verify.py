"""The job that says whether a run is whole: it passes one that is, and finds every way of altering one."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from actors.pedestrian_detector import PedestrianDetector
from actors.similarity_scorer import SimilarityScorer
from actors.style_mixer import StyleMixer
from datasets.runs.manifest import write_manifest
from datasets.runs.plan import PLAN_FILE, Configuration, Extent, Plan, read_plan
from datasets.runs.rows import images_of
from datasets.runs.run import Failure, Run, shard_name
from datasets.runs.shards import read_shard, shard_table, write_shard
from datasets.runs.verdicts import Thresholds
from datasets.storage.output import Output
from jobs.verify import Config, main
from passersby import weights
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.stylegan3.checkpoint import load_network
from pipeline.recomputation import Recomputation
from reporting.run.results import SUMMARY, publish

THRESHOLDS = Thresholds(detector=0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, network) -> Path:
    """A whole run of 3 units, as the stages make it without Ray: 9 people x 3 variants, 27 images."""
    output = Output(str(tmp_path_factory.mktemp("run") / "out"))
    c = Configuration(
        seed=5, variants=3, method="mix", layers=(5, 6, 7), amount=None, truncation_psi=0.7,
        network=file_sha256(network, "--network"), height=64, width=32, format="jpeg", jpeg_quality=95, unit_images=512,
        detector=weights.WEIGHTS["yolov4-tiny"].files[0].sha256, reference_threshold=0.0, ssim_data_range=4095.0,
    )  # fmt: skip
    plan = Plan(c, (Extent(0, 0, 9, 7), Extent(2, 9, 1, 1)))  # 21 images: more than one batch of the detector
    threads = torch.get_num_threads()
    stages = [
        StyleMixer(load_network(network).generator, c),
        PedestrianDetector(weights.get("yolov4-tiny"), c.height, c.width),
        SimilarityScorer(c.reference_threshold, data_range=c.ssim_data_range),
    ]
    output.write(PLAN_FILE, plan.to_json())
    for unit in plan.units():
        batch = pa.table({name: [value] for name, value in dataclasses.asdict(unit).items()})
        for stage in stages:
            batch = stage(batch)
        write_shard(output, c.hash, unit.unit, shard_table(unit.unit, images_of(batch)))
    torch.set_num_threads(threads)
    publish(Run(output, plan), THRESHOLDS, {"trained_on": "nothing, a test"}, None)
    write_manifest(Run(output, plan), plan.units(), Thresholds(detector=0.9), "strict")
    return Path(output.root_address)


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


@pytest.fixture
def verify(capsys):
    """Calls the job on a folder; returns its exit code, the last line, and everything it printed."""

    def call(out: Path, **options) -> tuple[int, str, str]:
        threads = torch.get_num_threads()
        code = main(Config(**({"out": str(out), "sample": 0} | options)))
        torch.set_num_threads(threads)
        printed = capsys.readouterr().out
        return code, printed.splitlines()[-1], printed

    return call


def snapshot(out: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()}


def plan_of(out: Path) -> Plan:
    return read_plan(Output(str(out)))


def rewrite(out: Path, unit: int, plan_hash: str | None = None, **changes: dict[int, object]) -> None:
    """Write a shard again with some values changed, as an intact file: column -> {row: value}."""
    plan, output = plan_of(out), Output(str(out))
    table = read_shard(Run(output, plan), list(plan.units())[unit])
    for name, values in changes.items():
        column = [values.get(row, value) for row, value in enumerate(table[name].to_pylist())]
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array(column, table.schema.field(name).type))
    write_shard(output, plan_hash or plan.configuration.hash, unit, table)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def flip_in_images(out: Path) -> None:
    content = (out / shard_name(1)).read_bytes()
    flip(out / shard_name(1), content.index(b"\xff\xd8\xff") + 200)


def flip_in_scores(out: Path) -> None:
    row_group = pq.read_metadata(out / shard_name(1)).row_group(0)
    columns = [row_group.column(index) for index in range(row_group.num_columns)]
    ssim = next(column for column in columns if column.path_in_schema == "ssim")
    flip(out / shard_name(1), (ssim.dictionary_page_offset or ssim.data_page_offset) + ssim.total_compressed_size - 2)


def exchange(first: Path, second: Path) -> None:
    content = first.read_bytes()
    second.replace(first)
    second.write_bytes(content)


def edit_score(out: Path) -> None:
    rewrite(out, 0, ssim={4: 0.5})
    publish(Run(Output(str(out)), plan_of(out)), THRESHOLDS, {}, None)  # all derived files follow the false score
    write_manifest(Run(Output(str(out)), plan_of(out)), plan_of(out).units(), Thresholds(detector=0.9), "strict")


def other_image(out: Path) -> None:
    other = pq.read_table(out / shard_name(0))["image"][0].as_py()
    rewrite(out, 2, image={0: other})  # a good picture, of another person


def small_image(out: Path) -> None:
    small = cv2.imencode(".jpg", np.zeros((32, 16, 3), np.uint8))[1].tobytes()
    rewrite(out, 1, image={2: small})


def edit_manifest(out: Path, name: str = "manifest.parquet", without: slice = slice(0, 0), **columns) -> None:
    table = pq.read_table(out / name)
    for column, values in columns.items():
        place = table.schema.get_field_index(column)
        table = table.set_column(place, column, pa.array(values, table.schema.field(column).type))
    pq.write_table(pa.concat_tables([table.slice(0, without.start), table.slice(without.stop)]), out / name)


def edit_json(out: Path, name: str, **changes) -> None:
    path = out / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2) + "\n")


def edit_plan(out: Path, old: str, new: str) -> None:
    text = (out / PLAN_FILE).read_text()
    assert text.count(old) == 1
    (out / PLAN_FILE).write_text(text.replace(old, new))


WRONG = "1 of the derived files wrong"
CORRUPTIONS = {
    "truncated shard": (lambda out: os.truncate(out / shard_name(1), 5000), "1 damaged"),
    "empty shard": (lambda out: (out / shard_name(1)).write_bytes(b""), "1 of 3 units missing"),
    "byte in an image": (flip_in_images, "1 damaged (shards/000/unit-000001.parquet)"),
    "byte in the scores": (flip_in_scores, "1 damaged (shards/000/unit-000001.parquet)"),
    "byte in the footer": (lambda out: flip(out / shard_name(1), -300), "1 damaged"),
    "swapped shards": (lambda out: exchange(out / shard_name(0), out / shard_name(1)), "2 damaged"),
    "edited score": (edit_score, "1 with other scores or images than computed again (shards/000/unit-000000.parquet)"),
    "another person's image": (other_image, "1 with other scores or images than computed again"),
    "image of another size": (small_image, "1 with wrong rows (shards/000/unit-000001.parquet)"),
    "edited seed": (lambda out: rewrite(out, 1, seed={0: 99}), "1 with wrong rows"),
    "missing shard": (lambda out: (out / shard_name(1)).unlink(), "1 of 3 units missing"),
    "extra shard": (lambda out: shutil.copy(out / shard_name(1), out / shard_name(7)), "1 not of the plan"),
    "other plan's shard": (lambda out: rewrite(out, 1, plan_hash="0" * 64), "1 damaged"),
    "edited verdict": (lambda out: edit_manifest(out, verdict=["kept"] * 29 + ["error"]), WRONG),
    "edited other manifest": (lambda out: edit_manifest(out, "manifest-strict.parquet", seed=[1] * 30), WRONG),
    "manifest without a unit": (lambda out: edit_manifest(out, without=slice(21, 27)), WRONG),
    "manifest without a row": (lambda out: edit_manifest(out, without=slice(22, 23)), WRONG),
    "damaged manifest": (lambda out: flip(out / "manifest.parquet", 3000), WRONG),
    "edited counts": (lambda out: edit_json(out, SUMMARY, counts={"kept": 30}), WRONG),
    "edited number": (lambda out: edit_json(out, SUMMARY, images=31), WRONG),
    "summary of nothing": (lambda out: (out / SUMMARY).write_text("[]"), WRONG),
    "edited configuration": (lambda out: edit_plan(out, "0.7", "0.5"), "plan.json was edited"),
    "edited images of the plan": (lambda out: edit_plan(out, '"images": 30', '"images": 33'), "plan.json was edited"),
    "edited extent": (lambda out: edit_plan(out, '"people_per_unit": 7', '"people_per_unit": 5'), "damaged"),
    "no plan": (lambda out: (out / PLAN_FILE).unlink(), "plan.json: put it back"),
}  # fmt: skip


@pytest.mark.slow
def test_a_whole_run_is_whole_and_left_as_it_is(whole, verify):
    before = snapshot(whole)
    code, last, printed = verify(whole, sample=1000)
    scores = "scores of 30 images computed again (greatest difference 0)"
    assert last == f"whole: 10 people x 3 variants = 30 images in 3 shards, {scores}"
    assert (code, printed.count("\n")) == (0, 1)
    assert snapshot(whole) == before


SCORED = "another person's image"  # all scores are computed again, as for "edited score"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == SCORED else []) for name in CORRUPTIONS]
)
def test_every_corruption_is_found(run, verify, name):
    corrupt, expected = CORRUPTIONS[name]
    corrupt(run)
    code, last, printed = verify(run, sample=30 if "computed again" in expected else 0)
    assert code == 1, printed
    assert last.startswith("NOT whole: ")
    assert expected in last
    assert len(printed.splitlines()) <= 12


@pytest.mark.slow
def test_images_are_made_again_with_the_run_s_network(whole, run, network, verify, tmp_path):
    again = "(greatest difference 0; made again, pixels differ by 0 at most)"
    assert verify(whole, sample=9, network=network)[1].endswith(again)
    other = pq.read_table(run / shard_name(0)).slice(0, 3)  # scores belong to images here, images not to the person
    rewrite(run, 2, **{name: dict(enumerate(other[name].to_pylist())) for name in ("image", "ssim", "detector_score")})
    code, _, printed = verify(run, sample=30, network=network)
    assert code == 1
    assert "person 9 variant 0: the image made again is another one" in printed
    other = tmp_path / "other.safetensors"
    other.write_bytes(network.read_bytes() + b"x")
    with pytest.raises(InputError, match=r"other\.safetensors: its sha256 is .*, the run's network has"):
        verify(whole, sample=3, network=other)


def test_scores_are_cut_into_the_run_s_batches(whole):
    # Person 5 lies in the last, shorter batch of its unit; alone, its scores would differ in their last bits.
    plan, output = plan_of(whole), Output(str(whole))
    threads = torch.get_num_threads()
    again = Recomputation(plan, None, None, "cpu")
    unit = next(plan.units())
    assert again(unit, read_shard(Run(output, plan), unit), 5) == []
    torch.set_num_threads(threads)
    assert (again.images, again.greatest) == (3, 0.0)


def test_missing_units_of_a_run_that_failed_say_why(run, verify):
    (run / shard_name(1)).unlink()
    for unit, reason in ((1, "CUDA out of memory"), (2, "solved since")):
        Run(Output(str(run)), plan_of(run)).record(Failure(unit, "StyleMixer", reason))
    code, last, printed = verify(run)
    assert (code, last) == (1, "NOT whole: 1 of 3 units missing")
    assert "1 of them failed; failed/unit-000001.json: CUDA out of memory. The same command tries them again" in printed
    assert "note: records in failed/ of units that were made later: 1" in printed


def test_an_unfinished_extension_is_no_fault_of_what_was_derived_before(run, verify):
    (run / PLAN_FILE).write_bytes(plan_of(run).extended(11).to_json())
    code, last, printed = verify(run)
    assert (code, last) == (1, "NOT whole: 1 of 4 units missing")
    assert "note: summary.json says other people, images" in printed


def test_what_is_derived_may_be_missing(run, verify):
    for name in ("manifest.parquet", "manifest-strict.parquet", SUMMARY, "report.html"):
        (run / name).unlink()
    code, last, printed = verify(run)
    assert (code, last[:5]) == (0, "whole")
    assert "note: no manifest.parquet, report.html, summary.json: the same command makes" in printed


def test_a_manifest_of_part_of_a_run_is_no_fault_of_the_run(run, verify):
    plan = plan_of(run)
    write_manifest(Run(Output(str(run)), plan), list(plan.units())[:2], Thresholds(), "strict")
    code, _, printed = verify(run)
    assert code == 0
    assert (
        "note: manifest-strict.parquet lacks 1 of the units that are there: make it again with jobs/refilter.py"
        in printed
    )


def test_where_no_run_is_the_exit_code_is_2(call, tmp_path):
    assert call("verify", tmp_path) == (
        2,
        "",
        f"error: {tmp_path}: no plan.json there, so no run of jobs/generate.py\n",
    )


def test_bad_options_are_refused(whole, verify, tmp_path):
    with pytest.raises(InputError, match="--sample -1"):
        verify(whole, sample=-1)
    with pytest.raises(InputError, match="--network x: there is no sample"):
        verify(whole, sample=0, network=Path("x"))
    with pytest.raises(InputError, match=r"nowhere\.weights"):
        verify(whole, sample=3, yolo_weights=tmp_path / "nowhere.weights")
