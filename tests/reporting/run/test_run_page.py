"""The page of a run: what it packs, which pictures it takes, and how large it gets."""

import base64
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from datasets.runs.run import Run
from datasets.runs.verdicts import Thresholds, verdicts
from passersby.errors import InputError
from reporting.gan.scores import read_training
from reporting.run.page import COLUMNS, choose_rows, choose_strips, controls, gather, pack_scores, run_page, thumbnail
from reporting.run.results import REPORT, RunTimes, publish, read_summary
from tests.helpers import identity_runs as runs

OFF = {"detector": 0.6, "ssim_floor": 0.75, "ssim_ceiling": None}


def manifest(
    people: int, variants: int = 10, units: int = 4, source: str = "seed", identities: bool = False
) -> pa.Table:
    rng = np.random.default_rng(1)
    count = people * variants
    nothing = pa.nulls(count, pa.float32())
    table = pa.table(
        {
            "unit": pa.array(np.arange(count) * units // count),
            "person": pa.array(np.repeat(np.arange(people), variants)),
            "variant": pa.array(np.tile(np.arange(variants), people)),
            "reference_variant": pa.array(np.zeros(count, np.int64)),
            "status": pa.array(["ok"] * count),
            "detector_score": pa.array(rng.random(count).astype(np.float32)),
            "ssim": pa.array(rng.uniform(0.7, 1, count).astype(np.float32), mask=rng.random(count) < 0.1),
            "source": pa.array([source] * count),
            "identity_cosine": pa.array(rng.random(count).astype(np.float32)) if identities else nothing,
            "identity_margin": pa.array(rng.random(count).astype(np.float32)) if identities else nothing,
        }
    )
    return table.append_column("verdict", verdicts(table, Thresholds()))


def unpacked(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def test_scores_are_packed_bit_by_bit():
    table = manifest(30, identities=True)
    packed = pack_scores(table)
    assert packed["count"] == 300
    for name, column in (("detector", "detector_score"), ("ssim", "ssim"), ("cosine", "identity_cosine")):
        values = np.array([np.nan if v is None else v for v in table[column].to_pylist()], np.float32)
        assert unpacked(packed["columns"][name], "<f4").tobytes() == values.tobytes()
    flags = unpacked(packed["flags"], np.uint8)
    assert ((flags & 4) > 0).tolist() == [v is None for v in table["ssim"].to_pylist()]
    assert ((flags & 64) > 0).tolist() == [v == 0 for v in table["variant"].to_pylist()]
    assert unpacked(packed["people"], "<u4").tolist() == [10] * 30
    assert set(pack_scores(manifest(3))["columns"]) == {"detector", "ssim"}


@pytest.mark.parametrize(
    ("identities", "source", "expected"),
    [
        (False, "seed", {"detector": "detector", "ssim_floor": "ssim", "ssim_ceiling": "ssim"}),
        (True, "seed", {"identity_floor": "cosine", "identity_margin": "margin", "identity_ceiling": "real"}),
        (True, "latent", {"identity_floor": "cosine", "identity_margin": "margin", "identity_ceiling": "cosine"}),
    ],
)
def test_there_are_sliders_for_what_was_scored(identities, source, expected):
    found = {one.key: one.score for one in controls(manifest(3, source=source, identities=identities), OFF)}
    assert found.items() >= expected.items()
    assert len(found) == (6 if identities else 3)


def test_pictures_lie_around_the_thresholds_everywhere_else_and_of_many_people():
    table = manifest(2000, units=500)
    shown = controls(table, OFF)
    rows = choose_rows(table, shown, 1200)
    assert len(rows) <= 1200
    assert (np.diff(rows) > 0).all()
    assert len(np.unique(table["unit"].to_numpy()[rows])) <= 64
    score = table["detector_score"].to_numpy()[rows]
    assert (abs(score - 0.6) < 0.1).mean() > 0.25
    assert np.histogram(score, 20, (0, 1))[0].min() >= 5
    people, times = np.unique(table["person"].to_numpy()[rows], return_counts=True)
    assert len(people) > 150
    assert times.max() <= 10
    few = manifest(5)
    assert choose_rows(few, controls(few, OFF), 1200).tolist() == list(range(50))


def test_strips_of_chosen_people():
    table = manifest(30, variants=80)
    strips = choose_strips(table, (7, 3, 7))
    assert [set(table["person"].to_numpy()[rows]) for rows in strips] == [{7}, {3}]
    assert [len(rows) for rows in strips] == [64, 64]
    with pytest.raises(InputError, match="--people 30: the run has no such person; its people are 0 to 29"):
        choose_strips(table, (3, 30))


def test_numbers_of_people_that_are_not_consecutive():
    table = manifest(30)
    assert "numbers" not in pack_scores(table)
    numbers = pc.call_function("multiply", [table["person"], 5])
    packed = pack_scores(table.set_column(table.column_names.index("person"), "person", numbers))
    assert unpacked(packed["numbers"], "<u4").tolist() == [*range(0, 150, 5)]


def test_strips_are_of_people_from_the_whole_run():
    strips = choose_strips(manifest(240, variants=20))
    assert [len(rows) for rows in strips] == [16] * 24
    assert strips[0][0] == 0
    assert strips[-1][0] == 239 * 20
    assert choose_strips(manifest(240).slice(0, 0)) == []


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_what_cannot_be_shown_has_no_thumbnail(content):
    assert thumbnail(content) == ""


def test_a_thumbnail_is_small_and_of_the_picture():
    image = np.full((512, 256, 3), (200, 30, 30), np.uint8)
    content = base64.b64decode(thumbnail(runs.png(image)))
    small = runs.cv2.imdecode(np.frombuffer(content, np.uint8), runs.cv2.IMREAD_COLOR)
    assert small.shape == (128, 64, 3)
    assert abs(small.mean((0, 1)) - (30, 30, 200)).max() < 5


@pytest.fixture
def run(tmp_path):
    output, plan = runs.make_run(str(tmp_path), [[runs.picture(9 * p + v) for v in range(3)] for p in range(4)], None)
    publish(Run(output, plan), Thresholds(), {"trained_on": "</script>"}, RunTimes(2.0, plan.images, {}))
    return output, plan


def test_the_page_of_a_run_holds_its_data_and_one_script_that_its_policy_names(run):
    html = run[0].read(REPORT).decode()
    kinds = re.findall(r"<script([^>]*)>", html)
    assert kinds == [' type="application/json" id="data"', ""]
    data = json.loads(html.partition('id="data">')[2].partition("</script>")[0])
    assert data["scores"]["count"] == 12
    assert data["thresholds"] == {"detector": 0.6, "ssim_floor": 0.75, "ssim_ceiling": None} | dict.fromkeys(
        ("identity_floor", "identity_margin", "identity_ceiling")
    )
    assert html.count("<figure class=") == 12
    assert "script-src 'sha256-" in html
    assert "http://www.w3.org" not in html.partition("<script>")[0]
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)


def test_a_hundred_thousand_images_fit_into_a_page(run):
    output, plan = run
    table = manifest(2000, variants=50, identities=True, units=1)
    real = table.slice(0, 12).to_pylist()
    assert len(real) == 12
    packed = len(json.dumps(pack_scores(table)))
    pictures = 1600 * 5500  # sample and strips, a thumbnail of the most detailed pictures as base64
    assert packed + pictures < 15e6
    gathered = gather(Run(output, plan), run_manifest(output), OFF, 0)
    assert gathered["sampled"] == 12


def run_manifest(output):
    from datasets.runs.manifest import read_manifest

    return read_manifest(output, columns=COLUMNS)


def test_curves_and_fids_stand_beside_the_studys(run, tmp_path):
    output, plan = run
    folder = tmp_path / "gan"
    folder.mkdir()
    lines = [{"kimg": 1.0, "G/loss": 1.5, "fid": 200.0}, {"kimg": 2.0, "G/loss": 1.0, "fid": 130.25}]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps({"data": "/x/market", "height": 64, "width": 32}))
    training = read_training(folder, toy=False)
    assert training.fid.fid == 130.25
    html = run_page(Run(output, plan), run_manifest(output), read_summary(output), trainings=[training])
    words = re.sub(r"<[^>]*>|\s+", " ", html)
    assert re.search(r"gan +130\.25 +market", words)
    assert re.search(r"StyleGAN3 of the study +9\.29 +Market-1501", words)
    assert words.count("Market-1501") >= 11
    with pytest.raises(InputError, match=r"no history\.jsonl there"):
        read_training(tmp_path / "nothing", toy=False)
    with pytest.raises(InputError, match="--sample 9999"):
        run_page(Run(output, plan), run_manifest(output), read_summary(output), sample=9999)
