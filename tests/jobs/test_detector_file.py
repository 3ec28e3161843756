"""A detector of the user's own in the jobs: in the plan, the scores, the check of a run, and the calibration."""

import dataclasses
import json
import shlex
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.pedestrian_detector import PedestrianDetector
from actors.similarity_scorer import SimilarityScorer
from actors.style_mixer import StyleMixer
from datasets.runs.plan import PLAN_FILE, Plan, continue_plan, read_plan
from datasets.runs.rows import images_of
from datasets.runs.run import Run
from datasets.runs.shards import read_shard, shard_table, write_shard
from datasets.runs.verdicts import Thresholds
from datasets.storage.output import Output
from jobs import calibrate, generate, verify
from passersby.errors import InputError
from passersby.stylegan3.checkpoint import load_network
from passersby.yolo.detector_file import own_detector
from passersby.yolo.pedestrian_filter import PedestrianFilter
from reporting.run.results import publish, read_summary
from tests.helpers.darknet_files import three_scales, write_detector
from tests.helpers.onnx_files import write_onnx

NAMES = "{0: 'car', 1: 'person', 2: 'dog'}"


@pytest.fixture(scope="module", params=["weights", "onnx"])
def detector(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    if request.param == "weights":
        return write_detector(folder, three_scales(3, 96, 96), names=("car", "person", "dog"))
    return write_onnx(folder / "own.onnx", "v8", classes=3, metadata={"names": NAMES})


@pytest.fixture(scope="module")
def config(tmp_path_factory, network, detector) -> generate.Config:
    out = str(tmp_path_factory.mktemp("run") / "out")
    return generate.Config(
        out=out, people=2, variants=2, seed=5, network=network, height=64, width=32, detector_threshold=0.0,
        detector_file=str(detector), generators=1, detectors=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(config, detector) -> Path:
    """A whole run as the stages make it without Ray, with the detector's bytes as workers get them."""
    output, inputs = Output(config.out), config.inputs()
    c = config.frozen(inputs)
    plan, threads = Plan(c).extended(2), torch.get_num_threads()
    contents = inputs.detector.contents()
    stages = [
        StyleMixer(load_network(inputs.network).generator, c),
        PedestrianDetector(contents, c.height, c.width, **inputs.detector.arguments),
        SimilarityScorer(c.reference_threshold, data_range=c.ssim_data_range),
    ]
    output.write(PLAN_FILE, plan.to_json())
    for unit in plan.units():
        batch = pa.table({name: [value] for name, value in dataclasses.asdict(unit).items()})
        for stage in stages:
            batch = stage(batch)
        write_shard(output, c.hash, unit.unit, shard_table(unit.unit, images_of(batch)))
    torch.set_num_threads(threads)
    publish(Run(output, plan), Thresholds(detector=0.0), {"trained_on": "nothing, a test"}, None)
    return Path(output.root_address)


def test_the_plan_and_the_record_say_which_detector(made, detector):
    file = own_detector(detector)
    c = read_plan(Output(str(made))).configuration
    assert (c.detector, c.detector_setup) == (file.sha256, file.setup)
    assert "person 1 of 3" in c.detector_setup
    assert read_summary(Output(str(made)))["configuration"]["detector_setup"] == file.setup


def test_the_scores_are_the_detectors(made, detector):
    output = Output(str(made))
    run = Run(output, read_plan(output))
    filter_ = PedestrianFilter(detector, 64, 32, **own_detector(detector).arguments)
    for unit in run.plan.units():
        table = read_shard(run, unit)
        images = [cv2.imdecode(np.frombuffer(image, np.uint8), 1)[:, :, ::-1] for image in table["image"].to_pylist()]
        scores = table["detector_score"].to_numpy()
        np.testing.assert_allclose(scores, filter_.scores(np.stack(images)), atol=1e-5)
        assert ((scores > 0) & (scores < 1)).all()


def test_another_detector_does_not_continue_the_run(config, made, tmp_path, detector):
    existing = read_plan(Output(str(made)))
    assert continue_plan(existing, config.frozen(config.inputs(), existing), 2) == existing
    other = dataclasses.replace(config, detector_file=None)
    with pytest.raises(InputError, match=r"detector is .*; detector_setup is .*Choose another --out"):
        continue_plan(existing, other.frozen(other.inputs(), existing), 2)
    other = dataclasses.replace(config, detector_person=2)
    with pytest.raises(InputError, match=r"detector_setup is .*person 1 of 3.*not .*person 2 of 3"):
        continue_plan(existing, other.frozen(other.inputs(), existing), 2)


def test_verify_computes_the_scores_again(made, detector, tmp_path, capsys):
    config = verify.Config(out=str(made), sample=4, detector_file=str(detector))
    threads = torch.get_num_threads()
    assert verify.main(config) == 0
    assert "scores of 4 images computed again (greatest difference 0" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"is not the YOLOv4-tiny of the study: give it with --detector-file"):
        verify.main(dataclasses.replace(config, detector_file=None))
    with pytest.raises(InputError, match=r"--detector-file .*person 0 of 3; the run's detector is .*person 1 of 3"):
        verify.main(dataclasses.replace(config, detector_person=0))
    torch.set_num_threads(threads)


def test_options_that_do_not_go_together(config, detector, tmp_path):
    for changes, words in (
        ({"yolo_weights": "a.weights"}, "--yolo-weights a.weights: --detector-file takes its place"),
        ({"detector_file": None, "detector_person": 1}, "--detector-person 1: it belongs to --detector-file"),
        ({"detector_file": str(tmp_path / "none.onnx")}, "--detector-file .*none.onnx: no such file"),
        ({"detector_person": 9}, "--detector-person 9"),
    ):
        with pytest.raises(InputError, match=words):
            dataclasses.replace(config, **changes).inputs()


def test_calibrate_takes_it_and_prints_the_option(detector, tmp_path, capsys):
    folder = tmp_path / "data" / "0001"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(6):
        cv2.imwrite(str(folder / f"{index}.png"), random.integers(0, 256, (64, 32, 3), dtype=np.uint8))
    options = {"height": 64, "width": 32, "workers": 0, "device": "cpu", "detector_file": str(detector)}
    calibrate.main(calibrate.Config(data=str(folder.parent), out=str(tmp_path / "out"), **options))
    record = json.loads((tmp_path / "out" / "calibration.json").read_text())
    file = own_detector(detector)
    assert (record["detector"]["sha256"], record["detector"]["setup"]) == (file.sha256, file.setup)
    line = next(line for line in capsys.readouterr().out.splitlines() if "generate.py" in line)
    words = shlex.split(line)
    assert words[words.index("--detector-file") + 1] == str(detector)


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["onnx"], indirect=True)  # Ray carries bytes, whatever they hold
def test_a_run_on_ray_with_it(ray_cluster, config, made, tmp_path):
    on_ray = dataclasses.replace(config, out=str(tmp_path / "out"))
    assert generate.main(on_ray) == 0
    output = Output(on_ray.out)
    runs = [Run(place, read_plan(place)) for place in (output, Output(str(made)))]
    assert runs[0].plan == runs[1].plan
    for unit in runs[0].plan.units():
        scores = [read_shard(run, unit)["detector_score"].to_pylist() for run in runs]
        np.testing.assert_allclose(*scores, atol=1e-5)
