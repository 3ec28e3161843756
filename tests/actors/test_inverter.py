"""The stages of an inversion, without Ray, with tiny networks."""

import dataclasses
import functools
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import actors.inverter as inverter_module
from actors.inverter import CHUNK_PIXELS, MOST_CHUNK, Inverter, chunk_of
from actors.latent_writer import LatentWriter
from datasets.latents.plan import RECIPE, InversionConfiguration, continue_inversion
from datasets.latents.table import SCHEMA, WHO_SCHEMA, delta_name
from datasets.runs.rows import images_of
from datasets.storage.output import Output
from passersby import stylegan2
from passersby.perception.perceptual import load_perceptual
from passersby.restyle.checkpoint import LoadedEncoder
from passersby.restyle.losses import InversionLoss, LossWeights
from passersby.restyle.pivotal import apply_delta, load_delta
from passersby.stylegan3 import Generator
from tests.helpers import inversion_networks as tiny
from tests.helpers.gpu_path import EXACT_RULES, PYTORCHS_RULES, filter_kernels, float_rules, go_the_way_of_a_gpu

CONFIGURATION = InversionConfiguration(
    encoder="e", network="n", identity=None, perceptual="p", data="d", splits=("train",), pictures=None, steps=3,
    refine="none", refine_steps=None, pivotal_steps=None, unit_images=64,
)  # fmt: skip
REFINED = {"refine": "w", "refine_steps": 8}
TUNED = {"refine": "pivotal", "refine_steps": 1, "pivotal_steps": 3}


@pytest.fixture(scope="module")
def networks():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    encoder, average = tiny.tiny_encoder()
    loaded = LoadedEncoder(encoder, average, {"sha256": "n"}, {}, "e", "passersby", None, ())
    loss = InversionLoss(LossWeights(identity=0.0), load_perceptual(), None)
    yield {"encoder": loaded, "generator": tiny.tiny_generator(), "loss": loss}
    torch.set_num_threads(before)


def picture(seed: int, height: int = 32, width: int = 16) -> np.ndarray:
    """A smooth random picture, [height, width, 3] uint8."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 2, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 and image.shape[2] == 3 else image)[1].tobytes()


def unit(contents: list[bytes], persons: list[int]) -> pa.Table:
    count = len(contents)
    row = {
        "unit": 7, "person": persons, "identity": [10 + p for p in persons], "name": [f"p{p}" for p in persons],
        "path": [f"{i}.png" for i in range(count)], "camera": [-1] * (count - 1) + [3], "split": ["train"] * count,
        "content": contents,
    }  # fmt: skip
    return pa.table({name: [value] for name, value in row.items()})


def invert(networks, batch: pa.Table, **changes) -> pa.Table:
    made = Inverter(**networks, configuration=dataclasses.replace(CONFIGURATION, **changes))(batch)
    assert made["unit"].to_pylist() == [7]
    assert all(made[f"seconds_{name}"][0].as_py() >= 0 for name in ("read", "encode", "refine", "pivotal"))
    table = images_of(made)
    stored = [name for name in table.column_names if name != "delta_content"]
    assert all(table.schema.field(name).type == SCHEMA.field(name).type for name in stored)
    return table


def codes(table: pa.Table) -> torch.Tensor:
    return torch.tensor(table["w"].to_pylist()).view(-1, 16, 512)


@torch.no_grad()
def by_hand(networks, image: np.ndarray, steps: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """The code of one picture of the encoder's size and what it shows at that size, written out."""
    encoder, generator = networks["encoder"].encoder, networks["generator"]
    x = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    code = networks["encoder"].average[None]
    for _ in range(steps):
        shown = generator.synthesis(code).reshape(1, 3, 32, 2, 16, 2).mean((3, 5))
        code = code + encoder(torch.cat([x, shown], 1))
    return code[0], generator.synthesis(code).reshape(1, 3, 32, 2, 16, 2).mean((3, 5))


@pytest.mark.slow
def test_codes_and_losses_are_those_of_the_written_out_loop(networks, monkeypatch):
    monkeypatch.setattr("actors.inverter.MOST_CHUNK", 4)
    images = [picture(seed) for seed in range(6)]  # two chunks, the border in the second person
    table = invert(networks, unit([png(image) for image in images], [0] * 3 + [1] * 3))
    assert table["person"].to_pylist() == [0] * 3 + [1] * 3
    assert table["identity"].to_pylist() == [10] * 3 + [11] * 3
    assert table["camera"].to_pylist() == [None] * 5 + [3]
    assert table["path"][4].as_py() == "4.png"
    assert set(table["status"].to_pylist()) == {"ok"}
    assert table["encoder_lpips"].to_pylist() == table["lpips"].to_pylist()
    assert table["identity_cosine"].null_count == 6
    for place, image in enumerate(images):
        code, shown = by_hand(networks, image)
        # Batches sum in another order: 1e-4 of codes of about 1.
        torch.testing.assert_close(codes(table)[place], code, atol=1e-4, rtol=1e-4)
        x = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        assert table["l2"][place].as_py() == pytest.approx(float((shown - x).square().mean()), rel=1e-3)
        expected = float(networks["loss"].perceptual(shown, x))
        assert table["lpips"][place].as_py() == pytest.approx(expected, rel=1e-3)
    assert (codes(table)[0] - codes(table)[1]).abs().max() > 1e-3  # the picture matters


@pytest.mark.slow
def test_a_picture_alone_has_the_code_that_it_has_among_others(networks):
    contents = [png(picture(seed)) for seed in range(4)]
    among, single = unit([b"broken", *contents], [0, 0, 1, 1, 2]), unit([contents[2]], [1])
    together, alone = invert(networks, among), invert(networks, single)
    before = codes(together.slice(3, 1))
    torch.testing.assert_close(before, codes(alone), atol=1e-4, rtol=1e-4)
    together, alone = invert(networks, among, **REFINED), invert(networks, single, **REFINED)
    after = codes(together.slice(3, 1))
    # Adam moves a coordinate of almost no gradient by the last bits of it: so the move as a whole is compared.
    assert (after - codes(alone)).norm() < 0.02 * (after - before).norm()


@pytest.mark.slow
def test_refinement_lowers_what_the_encoder_left(networks):
    batch = unit([png(picture(seed)) for seed in range(3)], [0, 0, 1])
    plain, refined = invert(networks, batch), invert(networks, batch, **REFINED)
    assert refined["encoder_lpips"].to_pylist() == plain["lpips"].to_pylist()
    assert plain["delta_content"].null_count == refined["delta_content"].null_count == 3
    before, after = (
        np.array(table["l2"].to_pylist()) + 0.8 * np.array(table["lpips"].to_pylist()) for table in (plain, refined)
    )
    assert (after < before).all()


@pytest.mark.slow
def test_pivotal_tuning_gives_each_person_a_delta_that_shows_what_was_measured(networks):
    batch = unit([png(picture(seed)) for seed in range(3)] + [b""], [4, 4, 5, 6])
    refined = invert(networks, batch, **TUNED | {"refine": "w"})
    table = invert(networks, batch, **TUNED)
    assert table["w"].to_pylist() == refined["w"].to_pylist()  # the pivots stay
    contents = table["delta_content"].to_pylist()
    assert [content is not None for content in contents] == [True, False, True, False]
    assert sum(table["l2"].to_pylist()[:3]) < sum(refined["l2"].to_pylist()[:3])
    generator = tiny.tiny_generator()
    for rows, content in (([0, 1], contents[0]), ([2], contents[2])):
        with torch.no_grad(), apply_delta(generator, load_delta(content, "n")):
            shown = generator.synthesis(codes(table.slice(0, 3))[rows]).reshape(-1, 3, 32, 2, 16, 2).mean((3, 5))
        for row, image in zip(rows, shown, strict=True):
            x = torch.from_numpy(picture(row).astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
            assert table["l2"][row].as_py() == pytest.approx(float((image - x).square().mean()), rel=1e-3)


def test_every_kind_of_picture_has_a_row(networks, tmp_path):
    image = picture(5, 50, 30)
    alpha = np.dstack([image[..., ::-1], np.full(image.shape[:2], 7, np.uint8)])
    whole = png(image)
    contents = {
        "other size": whole,
        "alpha": png(alpha),
        "grey": png(image[..., 0]),
        "sixteen bits": png(image.astype(np.uint16) * 257),
        "empty": b"",
        "truncated": whole[: len(whole) // 3],
        "text": b"no picture",
        "gif": b"GIF89a" + bytes(40),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    batch = unit(list(contents.values()), [0] * 8).to_pylist()[0]
    batch["path"] = [*batch["path"][:-1], "gone"]
    del batch["content"]
    batch["file"] = [str(tmp_path / name) for name in contents][:-1] + [str(tmp_path / "gone")]
    table = invert(networks, pa.table({name: [value] for name, value in batch.items()}))
    assert table["status"].to_pylist() == ["ok"] * 4 + ["error"] * 4
    assert table["w"].is_null().to_pylist() == [False] * 4 + [True] * 4
    for column in ("l2", "lpips", "encoder_lpips"):
        assert table[column].is_null().to_pylist() == [False] * 4 + [True] * 4
    messages = table["message"].to_pylist()
    assert messages[:4] == [None, "transparent", None, None]
    assert "0 bytes stored are no JPEG, PNG, WebP, BMP or TIFF" in messages[4]
    assert "no JPEG, PNG, WebP, BMP or TIFF" in messages[6]
    assert messages[7] == "cannot be read: No such file or directory"
    on_white = np.round((image * 7.0 + 255 * 248.0) / 255).astype(np.uint8)
    flat = invert(networks, unit([png(on_white), png(image)], [0, 0]))
    torch.testing.assert_close(codes(table.slice(1, 1)), codes(flat.slice(0, 1)))
    torch.testing.assert_close(codes(table.slice(0, 1)), codes(flat.slice(1, 1)))
    assert (codes(table.slice(0, 1)) - codes(table.slice(2, 1))).abs().max() > 1e-4


def test_what_is_not_finite_is_an_error_of_its_row_only(networks):
    generator = tiny.tiny_generator()
    synthesis = generator.synthesis.forward

    def spoiled(ws, **keywords):
        made = synthesis(ws, **keywords)
        hit = (ws - spoiled.code).abs().amax((1, 2)) < 1e-4
        return torch.where(hit[:, None, None, None], torch.nan, made)

    batch = unit([png(picture(seed)) for seed in range(3)], [0, 1, 2])
    plain = invert(networks, batch)
    spoiled.code = codes(plain)[1]  # what the last step makes for the second picture
    generator.synthesis.forward = spoiled
    table = invert({**networks, "generator": generator}, batch)
    assert table["status"].to_pylist() == ["ok", "error", "ok"]
    assert table["w"][1].as_py() is None
    assert "not finite" in table["message"][1].as_py()
    assert table["w"][2].as_py() == plain["w"][2].as_py()


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_finds(networks):
    batch = unit([png(picture(seed)) for seed in range(3)] + [b""], [4, 4, 5, 6])
    expected = invert(networks, batch, **TUNED)
    table = invert({**networks, "device": "cuda"}, batch, **TUNED, recipe=RECIPE)
    assert table["status"].to_pylist() == expected["status"].to_pylist()
    assert [c is None for c in table["delta_content"].to_pylist()] == [False, True, False, True]
    for name in ("encoder_lpips", "l2", "lpips"):
        # The generator's last layers run in float16 there.
        assert table[name].to_pylist()[:3] == pytest.approx(expected[name].to_pylist()[:3], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [1, 2, 3, 4])
def test_an_inversion_on_a_gpu_keeps_the_numbers_of_its_recipe(networks, recipe, monkeypatch):
    generator = tiny.tiny_generator()
    formats = [layer.precision for layer in generator.modules() if hasattr(layer, "precision")]
    convolutions, kernels = go_the_way_of_a_gpu(monkeypatch, generator), filter_kernels(monkeypatch)
    rules = float_rules(monkeypatch, generator.synthesis)
    batch = unit([png(picture(0)), png(picture(1))], [0, 1])
    inverter = Inverter(
        **networks | {"generator": generator}, configuration=dataclasses.replace(CONFIGURATION, recipe=recipe, **TUNED)
    )
    assert torch.float16 in {dtype for dtype, _ in convolutions}  # the encoder sees the average as it will be drawn
    phases = {}
    for name in ("refine", "tune"):
        real = getattr(inverter_module, name)

        def spied(*arguments, real=real, name=name, **keywords):
            first = len(convolutions)
            result = real(*arguments, **keywords)
            phases.setdefault(name, set()).update(dtype for dtype, _ in convolutions[first:])
            return result

        monkeypatch.setattr(inverter_module, name, spied)
    assert images_of(inverter(batch))["status"].to_pylist() == ["ok", "ok"]
    assert set(rules) == {EXACT_RULES if recipe >= 4 else PYTORCHS_RULES}
    short = {torch.float16} if recipe == 1 else set()
    assert {name: dtypes - {torch.float32} for name, dtypes in phases.items()} == {"refine": short, "tune": short}
    assert {scaled for _, scaled in convolutions[len(formats) :]} == {recipe >= 2}
    assert set(kernels) == {"auto" if recipe >= 3 else "plain"}
    assert convolutions[-1][0] == torch.float16  # measured as it will be drawn


# ---- the refinement who

FOUND = {"encoder": None, "steps": None, "refine": "who", "refine_steps": 2}


def who_network(**changes) -> stylegan2.Generator:
    torch.manual_seed(3)
    config = stylegan2.GeneratorConfig(16, 8, z_dim=10, w_dim=12, mapping_layers=2, channel_base=128, **changes)
    return stylegan2.Generator(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def found_by(networks):
    """Inverts a unit in the manner of --refine who, with few starts; returns the rows and the generator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inverter_module.Starts, "of", functools.partial(inverter_module.Starts.of, whos=3, hows=2))

        def call(batch: pa.Table, cameras: tuple[int, ...] = (), steps: int = 2) -> tuple[list[dict], Generator]:
            parts = {"encoder": None, "generator": who_network(c_dim=len(cameras)), "loss": networks["loss"]}
            configuration = dataclasses.replace(CONFIGURATION, **FOUND | {"refine_steps": steps})
            made = images_of(Inverter(**parts, configuration=configuration, cameras=cameras)(batch))
            stored = [name for name in made.column_names if name != "delta_content"]
            assert [made.schema.field(name).type for name in stored] == [WHO_SCHEMA.field(n).type for n in stored]
            return made.to_pylist(), parts["generator"]

        yield call


def parts_of(row: dict) -> list[torch.Tensor]:
    return [torch.tensor(row[name]) for name in ("who", "how", "offset")]


def test_all_pictures_of_a_person_have_one_who_whatever_else_is_in_the_unit(found_by):
    contents = [png(picture(seed, 16, 8)) for seed in range(4)]
    batch = unit([contents[0], b"broken", contents[1], contents[2], contents[3]], [0, 0, 0, 1, 2])
    rows, generator = found_by(batch)
    assert [row["status"] for row in rows] == ["ok", "error", "ok", "ok", "ok"]
    names = ("w", "who", "how", "offset", "l2", "lpips", "encoder_lpips")
    assert {name: rows[1][name] for name in names} == dict.fromkeys(names)
    good = [row for row in rows if row["status"] == "ok"]
    for row in good:
        who, how, offset = parts_of(row)
        w = generator.mapping(torch.cat([who, how])[None]) + offset
        torch.testing.assert_close(torch.tensor(row["w"]).view(w.shape), w)
        assert row["encoder_lpips"] is None
        shown = generator.synthesis(w)
        x = torch.from_numpy(picture(contents.index(png_of(batch, row)), 16, 8)).permute(2, 0, 1) / 127.5 - 1
        assert row["l2"] == pytest.approx(float((shown - x).square().mean()), rel=1e-3)
    assert (good[0]["who"], good[0]["offset"]) == (good[1]["who"], good[1]["offset"])
    assert good[0]["how"] != good[1]["how"]
    assert len({tuple(row["who"]) for row in good}) == 3
    alone, _ = found_by(unit([contents[0], contents[1]], [0, 0]))  # on a CPU to the last bit
    assert [row["w"] for row in alone] == [good[0]["w"], good[1]["w"]]
    longer, _ = found_by(unit([contents[0], contents[1]], [0, 0]), steps=5)
    before, after = (sum(row["l2"] + 0.8 * row["lpips"] for row in found) for found in (alone, longer))
    assert after < before


def png_of(batch: pa.Table, row: dict) -> bytes:
    return batch["content"][0].as_py()[int(row["path"].removesuffix(".png"))]


def test_a_picture_has_the_label_of_its_camera_and_without_one_an_error(found_by):
    batch = unit([png(picture(0, 16, 8)), png(picture(1, 16, 8)), png(picture(2, 16, 8))], [0, 0, 0])
    column = batch.schema.get_field_index("camera")
    batch = batch.set_column(column, "camera", pa.array([[5, 7, -1]]))
    rows, generator = found_by(batch, cameras=(7, 5))
    assert [row["status"] for row in rows] == ["ok", "ok", "error"]
    assert rows[2]["message"] == "it is of an unknown camera, and the network has labels of cameras 7, 5"
    for row, label in zip(rows, (1, 0), strict=False):
        who, how, offset = parts_of(row)
        w = generator.mapping(torch.cat([who, how])[None], torch.eye(2)[[label]]) + offset
        torch.testing.assert_close(torch.tensor(row["w"]).view(w.shape), w)


def test_chunks_follow_the_size_of_images_and_nothing_else():
    assert [chunk_of(128 * 64, "cpu"), chunk_of(256 * 128, "cpu"), chunk_of(1024 * 1024, "cpu")] == [8, 2, 1]
    assert [chunk_of(128 * 64, "cuda"), chunk_of(1024 * 1024, "cuda:0")] == [MOST_CHUNK, CHUNK_PIXELS["cuda"] // 2**20]


def test_the_writer_commits_deltas_before_the_shard(networks, tmp_path):
    configuration = dataclasses.replace(CONFIGURATION, **TUNED)
    output = Output(str(tmp_path / "out"))
    batch = Inverter(**networks, configuration=configuration)(unit([png(picture(0)), b""], [3, 3]))
    writer = LatentWriter(output.secret_address, configuration.hash)
    row = writer(batch).to_pylist()[0]
    assert "does not see" in row["problem"]
    assert not Path(output.address(delta_name(3))).exists()
    output.write("plan.json", continue_inversion(None, configuration, (1, 1, 1, 2), None).to_json())
    shard = Path(output.address("shards/000/unit-000007.parquet"))
    shard.mkdir(parents=True)  # in the shard's place: it cannot be written
    assert "Is a directory" in writer(batch).to_pylist()[0]["problem"]
    delta = Path(output.address(delta_name(3))).read_bytes()  # already there
    shard.rmdir()
    row = writer(batch).to_pylist()[0]
    assert {key: row[key] for key in ("unit", "images", "error", "problem")} == {
        "unit": 7, "images": 2, "error": 1, "problem": None,
    }  # fmt: skip
    assert row["seconds_pivotal"] > 0
    stored = pq.read_table(shard).to_pylist()
    assert [r["delta"] for r in stored] == ["deltas/000/person-000003.safetensors", None]
    assert stored[0]["delta_sha256"] == hashlib.sha256(delta).hexdigest()
