"""Inversion end to end on a shared local Ray, and everything that it refuses before Ray starts."""

import dataclasses
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import pipeline.connection
from actors.inverter import Inverter
from actors.style_mixer import StyleMixer
from datasets.latents.partners import real_codes
from datasets.latents.pictures import list_pictures
from datasets.latents.plan import NetworkFiles, continue_inversion, read_inversion_plan
from datasets.latents.table import SCHEMA, WHO_SCHEMA, delta_name, read_latents
from datasets.runs.rows import images_of
from datasets.runs.run import shard_name
from datasets.storage.output import Output
from jobs import generate, invert
from jobs.invert import Config
from passersby import stylegan2
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.reid.checkpoint import save_reid
from passersby.reid.network import ReidConfig, ReidNetwork
from passersby.restyle.checkpoint import save_encoder
from passersby.stylegan3 import Generator, GeneratorConfig
from passersby.stylegan3.checkpoint import save_network, z_halves
from tests.helpers import export_runs as runs
from tests.helpers import inversion_networks as tiny
from tests.helpers import latent_tables
from tests.helpers.drivers import stages_here


def png(seed: int, height: int = 64, width: int = 32) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (4, 2, 3), dtype=np.uint8)
    return cv2.imencode(".png", cv2.resize(small, (width, height)))[1].tobytes()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, network) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    made, average = tiny.tiny_encoder()
    generator = {"file": network.name, "sha256": file_sha256(network)}
    save_encoder(path, made, average, generator=generator, record={"trained_on": "nothing, a test"})
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Four training people, the second with a broken picture, the fourth with nothing else; one test person."""
    root = tmp_path_factory.mktemp("data") / "tree"
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (root / folder).mkdir(parents=True)
    for number, (identity, camera) in enumerate([(3, 1), (3, 2), (5, 1), (5, 2), (5, 3), (8, 1)]):
        name = f"{identity:04d}_c{camera}s1_{number:06d}_00.png"
        (root / "bounding_box_train" / name).write_bytes(png(number))
    (root / "bounding_box_train" / "0005_c2s1_000003_00.png").write_bytes(png(3)[:100])
    (root / "bounding_box_train" / "0009_c2s1_000001_00.png").write_bytes(b"")
    (root / "query" / "0004_c1s1_000001_00.png").write_bytes(png(20))
    (root / "bounding_box_test" / "0004_c2s1_000001_00.png").write_bytes(png(21))
    (root / "bounding_box_test" / "-1_c2s1_000001_00.png").write_bytes(png(22))
    return root


@pytest.fixture(scope="module")
def config(tmp_path_factory, network, encoder, tree) -> Config:
    out = str(tmp_path_factory.mktemp("run") / "out")
    return Config(
        out=out, data=str(tree), encoder=str(encoder), network=str(network), people=3, steps=2, refine="pivotal",
        refine_steps=2, pivotal_steps=2, unit_images=3, inverters=1,
    )  # fmt: skip


def snapshot(out: str) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in Path(out).rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(ray_cluster, config) -> Config:
    assert invert.main(config) == 0
    return config


@pytest.mark.slow
def test_a_run_leaves_what_it_promises(finished, tree, network):
    output = Output(finished.out)
    assert set(snapshot(finished.out)) == {
        "plan.json", "latents.parquet", "summary.json", "inversion.png",
        *(shard_name(unit) for unit in range(3)), *(delta_name(person) for person in range(3)),
    }  # fmt: skip
    table = pq.read_table(f"{finished.out}/latents.parquet")
    assert table.schema.equals(SCHEMA)
    names = sorted(path.name for path in (tree / "bounding_box_train").iterdir())[:6]
    assert table["path"].to_pylist() == [f"bounding_box_train/{name}" for name in names]
    assert table["person"].to_pylist() == [0, 0, 1, 1, 1, 2]
    assert table["name"].to_pylist() == ["0003"] * 2 + ["0005"] * 3 + ["0008"]
    assert table["status"].to_pylist() == ["ok", "ok", "ok", "error", "ok", "ok"]
    latents = read_latents(finished.out)
    assert (len(latents), latents.people) == (5, 3)
    assert latents.codes.shape == (5, 16, 512)
    assert len(latents.delta(2)) > 1000
    about = latents.about
    assert about["generator"]["sha256"] == file_sha256(network)
    assert (about["generator"]["height"], about["generator"]["num_ws"]) == (64, 16)
    assert about["test_people"] is False
    assert about["identities"]["count"] == 3
    assert about["trained_on"] == {"generator": "nothing, a test", "encoder": "nothing, a test"}
    assert about["metric"].startswith("ST-LPIPS")
    assert about["identity"] is None
    summary = json.loads(output.read("summary.json"))
    assert (summary["pictures"], summary["inverted"], summary["errors"], summary["deltas"]) == (6, 5, 1, 3)
    measured = np.array([value for value in table["lpips"].to_pylist() if value is not None])
    assert summary["figures"]["lpips"]["mean"] == pytest.approx(measured.mean())
    assert summary["figures"]["lpips"]["median"] == pytest.approx(np.sort(measured)[2])
    assert summary["figures"]["identity_cosine"] == {"mean": None, "median": None, "pictures": 0}
    assert all(summary["seconds_per_picture"][name] > 0 for name in ("read", "encode", "refine", "pivotal", "write"))
    sheet = cv2.imread(f"{finished.out}/inversion.png")
    assert sheet.shape[0] > 3 * 128


@pytest.mark.slow
def test_shards_hold_what_the_stage_makes_without_ray(finished, tree):
    from pipeline.inversion import Networks

    output = Output(finished.out)
    stored = read_inversion_plan(output)
    pictures = list_pictures(tree, ["train"])
    plan = continue_inversion(stored, stored.configuration, pictures.counts, 3)
    networks = Networks.load(NetworkFiles.of(finished.encoder, finished.network, None, None))
    threads = torch.get_num_threads()
    inverter = Inverter(networks.encoder, networks.generator, networks.loss, stored.configuration)
    row = pictures.row(list(plan.units())[1])
    alone = images_of(inverter(pa.table({name: [value] for name, value in row.items()}))).to_pylist()
    torch.set_num_threads(threads)
    written = pq.read_table(f"{finished.out}/{shard_name(1)}").to_pylist()
    for expected, found in zip(alone, written, strict=True):
        content = expected.pop("delta_content")
        assert content is None or content == (Path(finished.out) / delta_name(1)).read_bytes()
        for name in ("delta", "delta_sha256"):
            expected.pop(name)
        assert found | expected == found  # every number, bit by bit: equal machines, equal codes


@pytest.mark.slow
def test_a_finished_run_does_nothing_and_needs_no_ray(finished, call, monkeypatch):
    def refuse(worker_variables):
        raise AssertionError("Ray is asked for")

    monkeypatch.setattr(pipeline.connection, "join_or_start", refuse)
    before = snapshot(finished.out)
    times = {path: path.stat().st_mtime_ns for path in Path(finished.out).rglob("*")}
    names = ("out", "data", "encoder", "network", "people", "steps", "refine", "refine_steps", "pivotal_steps")
    given = {name: str(getattr(finished, name)) for name in (*names, "unit_images")}
    code, said, wrong = call("invert", *(f"--{name.replace('_', '-')}={value}" for name, value in given.items()))
    assert code == 0, wrong
    assert "plan: 6 pictures of 3 people; every unit is there" in said
    assert "5 of 6 pictures of 3 people inverted, 1 could not" in said
    assert said.splitlines()[-1] == f"sheet: {finished.out}/inversion.png"
    assert snapshot(finished.out) == before
    assert {path: path.stat().st_mtime_ns for path in Path(finished.out).rglob("*")} == times


@pytest.mark.slow
def test_a_killed_run_is_finished_failed_units_are_tried_again_and_more_people_extend_it(finished, monkeypatch, capsys):
    import pipeline.inversion

    class Failing(Inverter):
        def __call__(self, batch: pa.Table) -> pa.Table:
            if batch["unit"][0].as_py() == 1:
                raise RuntimeError("this unit cannot be inverted")
            return super().__call__(batch)

    before, out = snapshot(finished.out), Path(finished.out)
    for name in (shard_name(1), shard_name(2), "latents.parquet", "summary.json", "inversion.png"):
        (out / name).unlink()
    (out / delta_name(2)).write_bytes(b"half")  # of a writer that was killed before the shard
    untouched = (out / shard_name(0)).stat().st_mtime_ns
    monkeypatch.setattr(pipeline.inversion, "Inverter", Failing)
    assert invert.main(finished) == 1
    said = capsys.readouterr().err
    assert "1 unit failed, the first in Failing: RuntimeError: this unit cannot be inverted, 3 times" in said
    left = snapshot(finished.out)
    assert set(before) - set(left) == {shard_name(1), "latents.parquet", "summary.json", "inversion.png"}
    assert set(left) - set(before) == {"failed/unit-000001.json"}
    monkeypatch.undo()
    with stages_here():
        assert invert.main(dataclasses.replace(finished, people=None)) == 0
    after = snapshot(finished.out)
    assert (out / shard_name(0)).stat().st_mtime_ns == untouched
    same = [name for name in before if name.startswith(("shards", "deltas"))]
    assert all(after[name] == before[name] for name in same)
    assert set(after) - set(before) == {shard_name(3)}  # the fourth person's picture cannot be read
    table = pq.read_table(out / "latents.parquet")
    assert table["person"].to_pylist() == [0, 0, 1, 1, 1, 2, 3]
    assert read_latents(out).people == 3
    assert json.loads(after["summary.json"])["people_without"] == 1
    assert invert.main(finished) == 0  # fewer: nothing is taken away
    assert snapshot(finished.out) == after


def test_other_options_in_an_old_folder_are_refused_by_name(finished, tree, tmp_path):
    before = snapshot(finished.out)
    for changes, message in (
        ({"steps": 3}, "steps is 2, not 3"),
        ({"refine": "w", "pivotal_steps": None}, 'refine is "pivotal", not "w"; pivotal_steps is 2, not null'),
        ({"pictures": 1}, "pictures is null, not 1"),
    ):
        with pytest.raises(InputError, match=message):
            invert.main(dataclasses.replace(finished, **changes))
    added = tree / "bounding_box_train" / "0003_c6s1_000009_00.png"
    added.write_bytes(png(50))
    try:
        with pytest.raises(InputError, match="data is "):
            invert.main(finished)
    finally:
        added.unlink()
    assert snapshot(finished.out) == before


@pytest.fixture
def here(ray_cluster):
    with stages_here():
        yield


PLAIN = {"people": None, "refine": "none", "refine_steps": None, "pivotal_steps": None}


@pytest.mark.slow
def test_test_people_are_refused_unless_asked_for_and_the_record_says_so(config, tmp_path, capsys, here):
    config = dataclasses.replace(config, out=str(tmp_path / "out"), splits=("query", "gallery"), **PLAIN)
    with pytest.raises(InputError, match=r"^--splits query gallery: query shows people"):
        invert.main(config)
    assert not (tmp_path / "out").exists()
    assert invert.main(dataclasses.replace(config, allow_test_people=True)) == 0
    printed = capsys.readouterr().out
    assert "1 junk images and distractors are left out" in printed
    assert "train on nothing that is made of them" in printed
    latents = read_latents(config.out)
    assert latents.about["test_people"] is True
    assert latents.about["splits"] == ["query", "gallery"]
    assert latents.identities.tolist() == [4, 4]
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["test_people"] is True
    table = pq.read_table(tmp_path / "out" / "latents.parquet")
    assert table["encoder_lpips"].to_pylist() == table["lpips"].to_pylist()


def test_networks_without_a_record_are_taken_and_called_unknown(config, tmp_path, here):
    data, network, encoder = tmp_path / "data", tmp_path / "bare.safetensors", tmp_path / "encoder.safetensors"
    (data / "anna").mkdir(parents=True)
    (data / "anna" / "a.png").write_bytes(png(1, 20, 90))
    save_network(network, Generator(dataclasses.replace(tiny.tiny_generator().config, channel_max=8)), record={})
    own, average = tiny.tiny_encoder()
    save_encoder(encoder, own, average, generator={}, record={})
    networks = {"network": str(network), "encoder": str(encoder)}
    out = tmp_path / "out"
    assert invert.main(dataclasses.replace(config, data=str(data), out=str(out), **networks, **PLAIN)) == 0
    about = read_latents(out).about
    assert about["trained_on"] == {"generator": "unknown", "encoder": "unknown"}
    assert about["encoder"]["generator"] == "unknown"
    assert about["data"] == "data"


@pytest.mark.slow
def test_pictures_of_a_run_which_are_bytes_and_an_identity_network(config, tmp_path, here):
    """A run of jobs/generate.py holds its pictures in its shards: they travel with the units."""
    torch.manual_seed(0)
    small = ReidNetwork(ReidConfig(backbone="resnet18", classes=2, height=32, width=16))
    save_reid(tmp_path / "reid.safetensors", small, class_names=["a", "b"], record={})
    runs.make_run(str(tmp_path / "run"), people=2, variants=3)  # whose filters keep variants 0 and 2
    out = tmp_path / "out"
    config = dataclasses.replace(
        config, data=str(tmp_path / "run"), out=str(out), identity=str(tmp_path / "reid.safetensors"), **PLAIN
    )
    assert invert.main(config) == 0
    table = pq.read_table(out / "latents.parquet").to_pylist()
    assert [row["path"] for row in table] == ["0/0", "0/2", "1/0", "1/2"]
    assert all(-1 <= row["identity_cosine"] <= 1 for row in table)
    about = read_latents(out).about
    assert about["identity"].startswith("re-ID resnet18")
    assert about["weights"]["identity"] == 0.1
    assert json.loads((out / "plan.json").read_text())["configuration"]["identity"] == file_sha256(config.identity)


# ---- --refine who


@pytest.fixture(scope="module")
def pairs_network(tmp_path_factory) -> Path:
    """A tiny network whose record says which half of z is who."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.safetensors"
    torch.manual_seed(3)
    config = stylegan2.GeneratorConfig(16, 8, z_dim=10, w_dim=12, mapping_layers=2, channel_base=128)
    record = {"trained_on": "nothing, a test", "z": z_halves(10)}
    save_network(path, stylegan2.Generator(config), record=record)
    return path


def who_config(config, pairs_network, out: Path) -> Config:
    changes = {"encoder": None, "steps": None, "refine": "who", "refine_steps": 2, "pivotal_steps": None}
    return dataclasses.replace(config, network=str(pairs_network), out=str(out), **changes)


def test_people_are_found_as_one_who_and_seen_in_other_ways(config, pairs_network, tree, tmp_path, capsys, here):
    config = who_config(config, pairs_network, tmp_path / "out")
    assert invert.main(config) == 0
    printed = capsys.readouterr().out
    assert "inversion at 16 x 8: no encoder, generator pairs.safetensors" in printed
    assert re.search(r"ST-LPIPS.*: 0\.\d+ in the end; L2", printed)
    made = snapshot(config.out)
    latents = read_latents(config.out)
    assert (latents.whos.shape, latents.offsets.shape) == ((3, 5), (3, 12))
    assert (latents.about["encoder"], latents.about["refine"]) == (None, "who")
    assert pq.read_table(tmp_path / "out" / "latents.parquet").schema.equals(WHO_SCHEMA)
    # What is missing is made again, and nothing else; the plan is continued with the options of its first command.
    (tmp_path / "out" / shard_name(1)).unlink()
    (tmp_path / "out" / "summary.json").unlink()
    assert invert.begun(config.out, [])["steps"] is None
    assert invert.main(config) == 0
    again = snapshot(config.out)
    assert all(again[name] == made[name] for name in made if name != "summary.json")
    # Pictures of these people with other hows.
    options = {"out": str(tmp_path / "run"), "latents": config.out, "network": config.network, "variants": 3}
    run = generate.Config(**options, height=16, width=8, format="png")
    inputs = run.inputs()
    frozen = run.frozen(inputs)
    assert (frozen.method, frozen.layers, frozen.truncation_psi) == ("camera", (), 1.0)
    assert dataclasses.replace(run, truncation_psi=0.5, method="camera").frozen(inputs).truncation_psi == 0.5
    assert dataclasses.replace(run, method="mix", layers="0-1").frozen(inputs).truncation_psi == 0.7
    codes, threads = real_codes(inputs.latents, frozen, 3), torch.get_num_threads()
    mixer = StyleMixer(inputs.loaded.generator, frozen, codes=codes)
    rows = images_of(mixer(pa.table({"unit": [0], "first_person": [0], "people": [3]}))).to_pylist()
    torch.set_num_threads(threads)
    assert {row["status"] for row in rows} == {"ok"}
    assert len({row["image"] for row in rows}) == 9


def test_people_without_a_who_are_not_seen_in_other_ways(config, pairs_network, network, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"--refine who: the record of tiny.safetensors names no half of its codes"):
        invert.main(dataclasses.replace(who_config(config, network, out), dry_run=True))
    config = who_config(config, pairs_network, out)
    for changes, message in (
        (
            {"encoder": "e.safetensors"},
            "--refine who: only --refine who starts without an encoder: leave --encoder out",
        ),
        ({"refine": "w"}, "--refine w: only --refine who starts without an encoder: give --encoder FILE"),
        ({"steps": 3}, "--steps 3: it belongs to --refine none or w or pivotal"),
    ):
        with pytest.raises(InputError, match=message):
            invert.main(dataclasses.replace(config, **changes))
    assert not out.exists()
    sha256 = file_sha256(pairs_network)
    table = latent_tables.write_table(tmp_path / "plain", sha256, latent_tables.codes_of((2, 1), (6, 12)))
    run = generate.Config(out=str(out), latents=str(table), network=str(pairs_network), layers="0-1")
    assert run.frozen(run.inputs()).method == "mix"
    run = dataclasses.replace(run, method="camera", layers=None)
    with pytest.raises(InputError, match="--method camera: the people of --latents have no who: invert with"):
        run.frozen(run.inputs())


def test_not_one_picture_that_can_be_read_is_said(config, tmp_path, here):
    (tmp_path / "data" / "anna").mkdir(parents=True)
    (tmp_path / "data" / "anna" / "a.png").write_bytes(b"nothing")
    config = dataclasses.replace(config, data=str(tmp_path / "data"), people=None, out=str(tmp_path / "out"))
    with pytest.raises(InputError, match=r"not one of 1 pictures could be inverted; the first is anna/a\.png: the 7"):
        invert.main(config)


def test_a_dry_run_prints_and_writes_nothing(ray_cluster, config, tmp_path, capsys):
    assert invert.main(dataclasses.replace(config, out=str(tmp_path / "out"), dry_run=True)) is None
    printed = capsys.readouterr().out
    assert "plan: 6 pictures of 3 people; 3 units, 3 to make" in printed
    assert "inversion at 32 x 16: encoder encoder.safetensors (passersby), generator tiny.safetensors" in printed
    assert "inverters 1 x (" in printed
    assert not (tmp_path / "out").exists()


def test_an_encoder_of_another_generator_is_refused_by_hash(config, tmp_path):
    other = tmp_path / "other.safetensors"
    torch.manual_seed(4)
    save_network(
        other,
        Generator(GeneratorConfig.config_t(64, 32, channel_base=512, channel_max=16, output_scale=4.0)),
        record={},
    )
    with pytest.raises(InputError, match=f"not for sha256 {file_sha256(other)}"):
        invert.main(dataclasses.replace(config, network=str(other), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"people": 0}, "--people 0"),
        ({"people": 99}, "--people 99: must be 1 to 4"),
        ({"pictures": 0}, "--pictures 0"),
        ({"steps": 0}, "--steps 0"),
        ({"refine": "none"}, "--refine-steps 2: it belongs to --refine w or pivotal"),
        ({"refine": "w"}, "--pivotal-steps 2: it belongs to --refine pivotal"),
        ({"refine_steps": 0}, "--refine-steps 0"),
        ({"unit_images": 0}, "--unit-images 0"),
        ({"encoder": "nowhere.safetensors"}, "--encoder nowhere.safetensors"),
        ({"network": "nowhere.pkl"}, "--network nowhere.pkl"),
        ({"identity": "nowhere.pth"}, "--identity nowhere.pth"),
        ({"alexnet": "nowhere.pth"}, "--alexnet nowhere.pth"),
        ({"data": "nowhere"}, "nowhere: there is no such folder or table"),
        ({"out": ""}, "--out"),
        ({"splits": ()}, "--splits nothing"),
        ({"splits": ("train", "query"), "allow_test_people": True}, "two --out folders"),
    ],
)
def test_bad_input_is_refused_by_name_and_value(config, tmp_path, changes, message):
    with pytest.raises(InputError) as caught:
        invert.main(dataclasses.replace(config, **({"out": str(tmp_path / "out")} | changes)))
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_networks_are_refused(config, network, encoder, tmp_path):
    for option, whole in (("encoder", encoder.read_bytes()), ("network", network.read_bytes())):
        for name, content in {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}.items():
            path = tmp_path / name
            path.write_bytes(content)
            with pytest.raises(InputError, match=str(path)):
                invert.main(dataclasses.replace(config, out=str(tmp_path / "out"), **{option: str(path)}))
    assert not (tmp_path / "out").exists()


def test_the_folder_of_another_job_is_refused(config, tmp_path):
    (tmp_path / "plan.json").write_text('{"hash": "x", "configuration": {}}')
    with pytest.raises(InputError, match=r"plan\.json is the plan of another job than invert"):
        invert.main(dataclasses.replace(config, out=str(tmp_path)))
