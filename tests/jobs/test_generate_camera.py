"""The method camera of the main job: networks trained by identity pairs, whose variants keep who and draw how."""

import contextlib
import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from datasets.runs.plan import read_plan
from datasets.storage.output import Output
from jobs import export, generate, report, verify
from jobs.common import parse
from jobs.generate import Config
from passersby.errors import InputError
from passersby.stylegan3 import Generator, GeneratorConfig
from passersby.stylegan3.checkpoint import load_network, save_network, z_halves
from pipeline.features import network_images
from tests.helpers.drivers import stages_here

ARCHITECTURE = GeneratorConfig.config_t(64, 32, channel_base=512, channel_max=16, output_scale=4.0)


def save(path: Path, record: dict, **changes) -> Path:
    torch.manual_seed(0)
    save_network(path, Generator(dataclasses.replace(ARCHITECTURE, **changes)), record=record)
    return path


@pytest.fixture(scope="module")
def paired(tmp_path_factory) -> Path:
    """A network whose record says which half of z is who."""
    record = {"trained_on": "nothing, a test", "z": z_halves(512)}
    return save(tmp_path_factory.mktemp("network") / "paired.safetensors", record)


@pytest.fixture(scope="module")
def by_cameras(tmp_path_factory) -> Path:
    """The same with labels of the cameras 3, 1 and 6."""
    labels = {"kind": "camera", "cameras": [3, 1, 6], "images": [5, 5, 5]}
    record = {"trained_on": {"labels": labels}, "z": z_halves(512)}
    return save(tmp_path_factory.mktemp("network") / "by_cameras.safetensors", record, c_dim=3)


def config(out: Path, network: Path, **changes) -> Config:
    values = {"people": 3, "variants": 4, "seed": 5, "detector_threshold": 0.0, "generators": 1, "detectors": 1}
    return Config(out=str(out), network=str(network), **values | {"ssim_floor": None} | changes)


def frozen(config: Config):
    return config.frozen(config.inputs())


def test_camera_is_the_default_of_networks_with_a_half_that_says_who(paired, by_cameras, network, tmp_path):
    c = frozen(config(tmp_path, paired))
    assert (c.method, c.layers, c.amount, c.cameras) == ("camera", (), None, ())
    assert frozen(config(tmp_path, by_cameras)).cameras == (3, 1, 6)
    assert frozen(config(tmp_path, paired, method="camera")) == c
    plain = frozen(config(tmp_path, network))
    assert (plain.method, plain.layers) == ("mix", tuple(range(5, 12)))
    for method, layers in (("mix", tuple(range(5, 12))), ("interpolate", tuple(range(16)))):
        chosen = frozen(config(tmp_path, paired, method=method))
        assert (chosen.method, chosen.layers, chosen.cameras) == (method, layers, ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "5-8"}, "--layers 5-8: --method camera mixes no layers; give --method mix"),
        ({"amount": 0.5}, "--amount 0.5: it belongs to --method interpolate"),
        ({"method": "camera", "layers": "all"}, "--layers all: --method camera mixes no layers"),
        ({"layers": "legs"}, "--layers 'legs': give "),
    ],
)
def test_options_of_other_methods_are_refused(paired, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        generate.main(config(tmp_path / "out", paired, **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"z": None},
        {"z": {"who": [0, 128], "how": [128, 512]}},
        {"z": {"who": [256, 512], "how": [0, 256]}},
        {"z": 7},
    ],
)
def test_networks_without_such_a_half_are_refused_in_one_line(tmp_path, record):
    path = save(tmp_path / "plain.safetensors", {"trained_on": "nothing"} | record)
    with pytest.raises(InputError) as caught:
        generate.main(config(tmp_path / "out", path, method="camera"))
    assert str(caught.value).startswith("--method camera: the record of plain.safetensors names no half")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert frozen(config(tmp_path / "out", path)).method == "mix"


@pytest.mark.parametrize("cameras", [None, [1, 2], [1, 2, 2], [1, 2, "3"], [True, 2, 3], {"1": 2}])
def test_labels_that_are_not_those_of_cameras_are_refused(tmp_path, cameras):
    record = {"trained_on": {"labels": {"cameras": cameras}}, "z": z_halves(512)}
    path = save(tmp_path / "odd.safetensors", record, c_dim=3)
    assert load_network(path).cameras == ()
    with pytest.raises(InputError, match="--network has 3 labels, .* give one without labels"):
        generate.main(config(tmp_path / "out", path))


def test_scores_of_a_network_with_labels_of_cameras_draw_cameras(by_cameras, network):
    _, configuration = network_images("n", load_network(by_cameras), 40, 7, 0.8)
    assert (configuration.method, configuration.cameras) == ("camera", (3, 1, 6))
    assert {configuration.camera(person, 0) for person in range(40)} == {3, 1, 6}
    _, configuration = network_images("n", load_network(network), 40, 7, 0.8)
    assert (configuration.method, configuration.layers, configuration.cameras) == ("mix", (0,), ())


# ---- a whole run


@pytest.fixture(scope="module", params=["paired", "by_cameras"])
def finished(ray_cluster, request, tmp_path_factory) -> Config:
    run = config(tmp_path_factory.mktemp("run") / "out", request.getfixturevalue(request.param))
    with contextlib.nullcontext() if request.param == "by_cameras" else stages_here():
        generate.main(run)
    return run


def test_a_run_by_cameras_is_whole_and_says_how_it_was_made(finished, capsys):
    network = load_network(finished.network)
    plan = json.loads(Output(finished.out).read("plan.json"))["configuration"]
    assert (plan["method"], plan["layers"]) == ("camera", [])
    assert plan.get("cameras", []) == list(network.cameras)
    rows = pq.read_table(f"{finished.out}/manifest.parquet").to_pylist()
    assert [row["method"] for row in rows] == ["camera"] * 12
    assert [row["mix_layers"] for row in rows] == [None] * 12
    assert [row["seed"] for row in rows] == [5] * 4 + [6] * 4 + [7] * 4
    assert all((row["mix_seed"] is None) == (row["variant"] == 0) for row in rows)
    assert {row["camera"] for row in rows} <= set(network.cameras or [None])
    assert verify.main(verify.Config(out=finished.out, network=Path(finished.network), sample=12)) in (None, 0)
    said = capsys.readouterr().out
    assert "whole: 3 people x 4 variants = 12 images" in said
    assert "made again, pixels differ by 0 at most" in said


def test_a_run_by_cameras_goes_on_with_its_own_options(finished, capsys):
    words = ["--out", finished.out, "--network", finished.network]
    again = parse(Config, words, begun=generate.begun)
    assert (again.method, again.layers, again.people) == ("camera", None, 3)
    generate.main(dataclasses.replace(again, detector_threshold=0.0, ssim_floor=None))
    assert "every unit is there" in capsys.readouterr().out
    with pytest.raises(InputError, match='method is "camera", not "mix"'):
        generate.main(parse(Config, [*words, "--method", "mix"], begun=generate.begun))


def test_a_run_by_cameras_is_exported_with_its_cameras(finished, tmp_path):
    export.main(export.Config(run=finished.out, out=str(tmp_path / "tree"), format="market1501", cameras=2))
    export.main(export.Config(run=finished.out, out=str(tmp_path / "table"), format="table"))
    rows = pq.read_table(f"{finished.out}/manifest.parquet").to_pylist()
    names = sorted(path.name for path in (tmp_path / "tree" / "bounding_box_train").glob("*.jpg"))
    expected = sorted(
        f"{row['person'] + 1:04d}_c{row['camera'] or 1 + row['variant'] % 2}s1_{row['variant']:06d}_00.jpg"
        for row in rows
    )
    assert names == expected
    (file,) = (tmp_path / "table").rglob("people-*.parquet")
    assert [row["method"] for row in pq.read_table(file).to_pylist()] == ["camera"] * 12


def test_a_run_by_cameras_has_a_report(finished):
    output = Output(finished.out)
    assert b"camera" in output.read("report.html")
    report.main(report.Config(run=finished.out))
    sheet = cv2.imread(f"{finished.out}/contact_sheet.png")
    assert np.asarray(sheet).size
    assert read_plan(output).people == 3
