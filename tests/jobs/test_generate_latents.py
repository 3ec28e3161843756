"""The main job with real people's latents and with a re-ID network, on a shared local Ray, and what it refuses."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from datasets.latents.table import read_latents
from datasets.people.decoding import decode, decode_bicubic
from datasets.reid.sources import list_sources
from datasets.runs.plan import PLAN_FILE, read_plan
from datasets.runs.run import Run, begin_run
from datasets.runs.shards import read_shard, write_shard
from datasets.storage.output import Output
from jobs import generate, verify
from jobs.generate import Config
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.reid.checkpoint import load_reid, save_reid
from passersby.reid.network import FeatureNetwork, ReidConfig, ReidNetwork
from passersby.stylegan3 import to_uint8
from passersby.stylegan3.checkpoint import load_network
from reporting.grid import encode_png
from tests.helpers import latent_tables as helper

COUNTS, VARIANTS = (3, 1, 2), 3


@pytest.fixture(scope="module")
def codes() -> list[np.ndarray]:
    return helper.codes_of(COUNTS, (16, 512))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, network, codes) -> Path:
    """A table, and a Market-1501 tree of the pictures that it names: those that the network makes of the codes."""
    folder = tmp_path_factory.mktemp("real")
    helper.write_table(folder / "latents", file_sha256(network, "--network"), codes)
    synthesis = load_network(network).generator.synthesis
    for name in ("bounding_box_train", "query", "bounding_box_test"):
        (folder / "tree" / name).mkdir(parents=True)
    for person, pictures in enumerate(codes):
        images = to_uint8(synthesis(torch.from_numpy(pictures))).numpy()
        for place, image in enumerate(images):
            path = folder / "tree" / helper.path_of(person, place)
            path.write_bytes(encode_png(image))
    torch.manual_seed(3)
    config = ReidConfig(classes=4, backbone="resnet10", neck="none", height=32, width=16, stem="small")
    save_reid(folder / "reid.safetensors", ReidNetwork(config), class_names=list("abcd"), record={})
    return folder


@pytest.fixture(scope="module")
def config(folder, network) -> Config:
    return Config(
        out=str(folder / "run"), latents=str(folder / "latents"), network=str(network), partners="people", height=64,
        width=32, format="png", variants=VARIANTS, detector_threshold=0.0, ssim_floor=None,
        identity=str(folder / "reid.safetensors"), real=str(folder / "tree"), generators=1, detectors=1, identifiers=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(ray_cluster, config) -> Config:
    assert generate.main(config) == 0
    return config


def rows_of(out: str) -> list[dict]:
    plan = read_plan(Output(out))
    return [row for unit in plan.units() for row in read_shard(Run(Output(out), plan), unit).to_pylist()]


@pytest.mark.slow
def test_all_people_of_the_table_are_made_from_their_codes(finished, folder, network, codes):
    generator, people = load_network(network).generator, read_latents(folder / "latents").person_codes()
    rows = rows_of(finished.out)
    assert [(row["person"], row["variant"]) for row in rows] == [(p, v) for p in range(3) for v in range(VARIANTS)]
    for row in rows:
        person, ws = row["person"], torch.tensor(people[row["person"]])[None]
        if row["variant"]:
            others = [code for who, pictures in enumerate(codes) if who != person for code in pictures]
            images = []
            for other in others:  # one of them it must be; which one is tested with the stage
                mixed = ws.clone()
                mixed[:, 5:12] = torch.tensor(other)[5:12]
                images.append(to_uint8(generator.synthesis(mixed))[0].numpy())
        else:
            images = [to_uint8(generator.synthesis(ws))[0].numpy()]
        made = decode(row["image"]).astype(int)
        assert min(np.abs(made - image).max() for image in images) <= 1  # another order of float32 sums
        assert (row["source"], row["seed"]) == ("latent", None)
    assert read_plan(Output(finished.out)).configuration.origins[1].path == helper.path_of(1, 0)


def test_identities_are_compared_with_the_real_pictures(finished, folder):
    loaded = load_reid(folder / "reid.safetensors")
    network = FeatureNetwork(loaded.network, loaded.sha256)

    def feature(content: bytes) -> np.ndarray:
        return network(decode_bicubic(content, 32, 16)[None])[0]

    paths = [(person, helper.path_of(person, place)) for person in range(3) for place in range(COUNTS[person])]
    real = np.stack([feature((folder / "tree" / path).read_bytes()) for _, path in paths])
    owner = np.array([person for person, _ in paths])
    for row in rows_of(finished.out):
        cosines = real @ feature(row["image"])
        own, others = cosines[owner == row["person"]].max(), cosines[owner != row["person"]].max()
        assert row["identity_cosine"] == pytest.approx(own, abs=1e-5)
        assert row["identity_margin"] == pytest.approx(own - others, abs=2e-5)
        assert row["nearest_identity"] == int(helper.NAMES[owner[cosines.argmax()]])


def test_what_is_derived_says_who_was_compared_with_whom(finished, folder, network):
    summary = json.loads((Path(finished.out) / "summary.json").read_text())
    assert summary["configuration"]["latents"] == file_sha256(folder / "latents" / "latents.parquet", "")
    assert summary["configuration"]["identity"] == file_sha256(folder / "reid.safetensors", "")
    assert "origins" not in summary["configuration"]
    assert summary["stage_seconds"]["identity"] > 0
    privacy = json.loads((Path(finished.out) / "privacy.json").read_text())
    assert privacy["images"] == summary["images"] == 3 * VARIANTS
    assert privacy["near_copies"]["scored"] == 3 * VARIANTS
    _, variants = list_sources(folder / "tree", variants=[finished.out])
    assert list(variants.people) == ["0002", "0007", "0010"]


def test_a_finished_run_of_real_people_is_left_as_it_is_and_other_thresholds_need_no_images(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in Path(finished.out).rglob("*")}
    assert generate.main(finished) == 0
    assert {path: path.stat().st_mtime_ns for path in Path(finished.out).rglob("*")} == before
    assert generate.main(dataclasses.replace(finished, identity_floor=1.0)) == 0
    counts = json.loads((Path(finished.out) / "summary.json").read_text())["counts"]
    manifest = pq.read_table(Path(finished.out) / "manifest.parquet")
    assert counts["identity_floor"] == sum(cosine < 1 for cosine in manifest["identity_cosine"].to_pylist()) > 0
    assert generate.main(finished) == 0
    shards = {path: time for path, time in before.items() if path.name.startswith("unit-")}
    assert {path: path.stat().st_mtime_ns for path in shards} == shards


@pytest.mark.slow
def test_a_run_of_real_people_is_verified_with_its_latents(finished, folder, network, capsys):
    threads = torch.get_num_threads()
    options = {"out": finished.out, "sample": 100, "network": network}
    assert verify.main(verify.Config(**options, latents=str(folder / "latents"))) == 0
    assert "made again, pixels differ by 0 at most" in capsys.readouterr().out
    with pytest.raises(InputError, match="give these with --latents as well"):
        verify.main(verify.Config(**options))
    check_identity_scores(finished, folder, capsys)
    (folder / "other").mkdir()
    table = (folder / "latents" / "latents.parquet").read_bytes()
    (folder / "other" / "latents.parquet").write_bytes(table)
    other = helper.write_table(folder / "other", file_sha256(network, ""), helper.codes_of(COUNTS, (16, 512), seed=9))
    with pytest.raises(InputError, match=r"--latents: its sha256 is .*, the run's people are of"):
        verify.main(verify.Config(**options, latents=str(other)))
    torch.set_num_threads(threads)


def check_identity_scores(finished, folder, capsys):
    """Computed again from the stored bytes, by the network and the real pictures of the run."""
    assert verify.main(verify.Config(finished.out)) == 0
    assert "not those of identity, for which give --identity" in capsys.readouterr().out
    options = {"latents": finished.latents, "identity": finished.identity, "real": finished.real}
    assert verify.main(verify.Config(finished.out, **options)) == 0
    assert re.search(r"computed again \(greatest difference [\d.e-]+\)$", capsys.readouterr().out.strip())
    plan, name = read_plan(Output(finished.out)), "identity_margin"
    table = read_shard(Run(Output(finished.out), plan), next(plan.units()))
    changed = pc.add(table[name], pa.scalar(0.5, pa.float32()))
    spoilt = Path(finished.out).with_name("spoilt")
    shutil.copytree(finished.out, spoilt)
    unit = next(plan.units()).unit
    write_shard(
        Output(str(spoilt)),
        plan.configuration.hash,
        unit,
        table.set_column(table.column_names.index(name), name, changed),
    )
    assert verify.main(verify.Config(str(spoilt), **options)) == 1
    assert "identity_margin is" in capsys.readouterr().out
    other = folder / "other.safetensors"
    config = ReidConfig(classes=2, backbone="resnet10", neck="none", height=32, width=16, stem="small")
    save_reid(other, ReidNetwork(config), class_names=["a", "b"], record={})
    with pytest.raises(InputError, match=r"--identity: its sha256 is .*, the run has compared people by"):
        verify.main(verify.Config(finished.out, **options | {"identity": str(other)}))


def test_a_dry_run_measures_the_stage_of_identities_too(ray_cluster, config, tmp_path, capsys):
    generate.main(dataclasses.replace(config, out=str(tmp_path / "out"), dry_run=True))
    printed = capsys.readouterr().out
    assert "3 people x 3 variants = 9 images" in printed
    assert "identifiers 1 x " in printed
    assert ", identity " in printed
    assert not (tmp_path / "out").exists()


def test_artificial_people_are_compared_with_themselves_and_with_nobody(ray_cluster, config, tmp_path):
    # The job's stages one after the other in this process: a pipeline would take ten times as long to start.
    out, threads = str(tmp_path / "out"), torch.get_num_threads()
    seeds = {"latents": None, "real": None, "partners": "random", "people": 2}
    config = dataclasses.replace(config, out=out, **seeds)
    inputs = config.inputs()
    run = begin_run(Output(out), config.frozen(inputs), 2)
    run.output.write(PLAN_FILE, run.plan.to_json())
    stages, _ = generate.prepare(config, run, inputs, load_network(inputs.network).generator)
    actors = [stage.actor(**stage.arguments) for stage in stages]
    for unit in run.plan.units():
        batch = pa.table({name: [value] for name, value in dataclasses.asdict(unit).items()})
        for actor in actors:
            batch = actor(batch)
        assert batch["problem"].to_pylist() == [None]
    inputs.identity.look_for_copies(run, "cpu")
    torch.set_num_threads(threads)
    rows = rows_of(out)
    assert [row["identity_cosine"] == 1 for row in rows] == [row["variant"] == 0 for row in rows]
    assert all(row["nearest_identity"] is None and row["identity_margin"] is None for row in rows)
    assert json.loads((Path(out) / "privacy.json").read_text())["doubles"]["pairs"] == 1


def test_latents_of_another_network_are_refused_by_both_hashes(config, folder, network, tmp_path, codes):
    table = helper.write_table(tmp_path / "table", "f00d" * 16, codes)
    with pytest.raises(InputError) as caught:
        generate.main(dataclasses.replace(config, latents=str(table), out=str(tmp_path / "out")))
    for part in (str(network), file_sha256(network, "")[:12], "f00df00df00d", "tiny.safetensors"):
        assert part in str(caught.value)
    with pytest.raises(InputError, match=r"its sha256 is .*, but the codes of --latents are of"):
        generate.main(dataclasses.replace(config, network=None, out=str(tmp_path / "out")))  # the demo network's
    assert not (tmp_path / "out").exists()


ALONE = {"latents": None, "identity": None, "real": None, "partners": "random"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"people": 4}, "--people 4: --latents has 3 people"),
        ({"people": 0}, "--people 0"),
        ({"latents": "nowhere"}, "nowhere"),
        ({"partners": "pictures"}, "--partners pictures: it belongs to --method interpolate"),
        ({"variants": 6}, "--variants 6: --latents has only 3 pictures of other people to mix with"),
        ({"real": None}, "give with --real the data set they were made of (toy)"),
        ({"real": "nowhere"}, "nowhere"),
        ({"identity": None}, "--real "),
        ({"identity": "nowhere.pth", "real": None, "latents": None, "partners": "random"}, "nowhere.pth"),
        ({"identity": "tests"}, "--identity tests"),
        ({"identity": "pyproject.toml"}, "pyproject.toml"),
        (ALONE | {"partners": "people"}, "--partners people: they are real people's, give them with --latents"),
        (ALONE | {"identity_floor": 0.5}, "--identity-floor 0.5: it belongs to --identity NETWORK"),
        (ALONE | {"identifiers": None, "identity_margin": 0.0}, "--identity-margin 0.0: it belongs to"),
        ({"identity_floor": 1.5}, "--identity-floor 1.5"),
        ({"latents": None, "real": None, "partners": "random", "identity_ceiling": 0.9}, "--identity-ceiling 0.9"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_value(config, tmp_path, changes, message):
    if "identity" in changes and changes["identity"] is None:
        changes = {"identifiers": None} | changes
    with pytest.raises(InputError) as caught:
        generate.main(dataclasses.replace(config, **({"out": str(tmp_path / "out")} | changes)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
