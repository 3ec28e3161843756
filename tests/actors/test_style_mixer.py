"""The stage that makes images, without Ray, with a tiny network."""

import dataclasses

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional

from actors.style_mixer import StyleMixer, check_network
from datasets.plan import Configuration
from datasets.shards import SCHEMA
from datasets.units import images_of
from models.errors import InputError
from models.stylegan3 import Generator, GeneratorConfig, to_uint8

CONFIGURATION = Configuration(
    seed=100, variants=4, method="mix", layers=(5, 6, 9), amount=None, truncation_psi=0.7, network="n", height=64,
    width=32, format="png", jpeg_quality=None, unit_images=512, detector="d", reference_threshold=0.6,
    ssim_data_range=4095.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def generator() -> Generator:
    before = torch.get_num_threads()
    torch.manual_seed(0)
    network = Generator(GeneratorConfig.config_t(64, 32, channel_base=512, channel_max=16, output_scale=4.0)).eval()
    # An untrained network is pale: with more contrast a wrong style cannot hide within a tolerance of 1.
    network.mapping.w_avg.normal_()  # as after training: truncation must show
    yield network.requires_grad_(False)
    torch.set_num_threads(before)


def make(generator: Generator, people: range, **changes) -> list[dict]:
    mixer = StyleMixer(generator, dataclasses.replace(CONFIGURATION, **changes))
    row = pa.table({"unit": [9], "first_person": [people.start], "people": [len(people)]})
    batch = mixer(row)
    assert batch["unit"].to_pylist() == [9]
    assert batch["seconds_generate"][0].as_py() > 0
    table = images_of(batch)
    assert all(field.type == SCHEMA.field(field.name).type for field in table.schema)
    return table.to_pylist()


def pixels(row: dict) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(row["image"], np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def styles(generator: Generator, seed: int) -> torch.Tensor:
    z = torch.from_numpy(np.random.RandomState(seed).randn(1, 512)).float()  # noqa: NPY002
    return generator.mapping(z, truncation_psi=0.7)


def picture(generator: Generator, ws: torch.Tensor) -> np.ndarray:
    return to_uint8(generator.synthesis(ws))[0].numpy()


def close(actual: np.ndarray, expected: np.ndarray) -> bool:
    # Another order of float32 sums moves a value across a rounding step now and then, by 1 of 255.
    return np.abs(actual.astype(int) - expected.astype(int)).max() <= 1


def test_person_is_that_of_its_seed_and_variants_mix_the_chosen_layers(generator):
    rows = make(generator, range(2, 4))
    assert [(row["person"], row["variant"]) for row in rows] == [(p, v) for p in (2, 3) for v in range(4)]
    for row in rows:
        ws = styles(generator, 100 + row["person"])
        assert row["seed"] == 100 + row["person"]
        if row["variant"]:
            assert row["mix_seed"] == CONFIGURATION.mix_seed(row["person"], row["variant"])
            assert row["mix_layers"] == [5, 6, 9]
            other = styles(generator, row["mix_seed"])
            ws[:, [5, 6, 9]] = other[:, [5, 6, 9]]
        else:
            assert (row["mix_seed"], row["mix_layers"]) == (None, [])
        assert close(pixels(row), picture(generator, ws))
    images = [pixels(row).astype(int) for row in rows]
    distances = [np.abs(a - b).max() for i, a in enumerate(images) for b in images[:i]]
    assert min(distances) > 10


def test_interpolation_moves_by_the_amount(generator):
    rows = make(generator, range(1), method="interpolate", layers=tuple(range(16)), amount=0.25)
    assert [row["amount"] for row in rows] == [None, 0.25, 0.25, 0.25]
    base = styles(generator, 100)
    for row in rows[1:]:
        other = styles(generator, row["mix_seed"])
        assert close(pixels(row), picture(generator, base + 0.25 * (other - base)))


def test_an_image_does_not_depend_on_its_unit(generator):
    together = make(generator, range(3), format="jpeg", jpeg_quality=95)
    alone = [
        row for person in range(3) for row in make(generator, range(person, person + 1), format="jpeg", jpeg_quality=95)
    ]
    assert together == alone  # bytes and all


def test_images_are_resized_with_antialiasing_before_rounding(generator):
    # Untrained networks make smooth images; noise shows whether all pixels count.
    noisy = Generator(generator.config).eval()
    made = torch.rand(1, 3, 64, 32) * 2 - 1
    noisy.synthesis.forward = lambda ws, shared=0: made
    rows = make(noisy, range(1), height=24, width=20, variants=1)
    small = functional.interpolate(made, (24, 20), mode="bicubic", antialias=True)
    assert close(pixels(rows[0]), to_uint8(small)[0].numpy())
    aliased = functional.interpolate(made, (24, 20), mode="bicubic", antialias=False)
    assert not close(pixels(rows[0]), to_uint8(aliased)[0].numpy())


def test_jpeg_and_png_are_what_they_say(generator):
    png = make(generator, range(1), variants=1)[0]
    fine, coarse = (make(generator, range(1), variants=1, format="jpeg", jpeg_quality=q)[0] for q in (95, 20))
    assert png["image"].startswith(b"\x89PNG")
    assert fine["image"].startswith(b"\xff\xd8")
    assert len(coarse["image"]) < len(fine["image"])
    assert np.abs(pixels(fine).astype(int) - pixels(png)).mean() < 4  # the same picture, but for JPEG's loss


def test_an_image_that_is_not_finite_is_a_row_with_a_message(generator):
    broken = Generator(generator.config).eval()
    broken.load_state_dict(generator.state_dict())
    base = styles(generator, 101)
    # The mapping alone decides, so that person 0 is fine and person 1 is not.
    mapping = broken.mapping.forward

    def poisoned(z, *args, **kwargs):
        ws = mapping(z, *args, **kwargs)
        return torch.where((ws[:, :1] - base[:, :1]).abs().amax((1, 2), keepdim=True) < 1e-4, torch.nan, ws)

    broken.mapping.forward = poisoned
    rows = make(broken, range(2), variants=2, layers=(15,))
    assert [row["status"] for row in rows] == ["ok", "ok", "error", "error"]
    assert [row["image"] is None for row in rows] == [False, False, True, True]
    assert "not finite" in rows[2]["message"]


def test_networks_that_cannot_make_people_are_refused(generator):
    check_network(generator.config, CONFIGURATION)
    labelled = dataclasses.replace(generator.config, c_dim=3)
    with pytest.raises(InputError, match="3 labels"):
        check_network(labelled, CONFIGURATION)
    shallow = dataclasses.replace(generator.config, num_layers=6)
    with pytest.raises(InputError, match="8 style inputs"):
        check_network(shallow, CONFIGURATION)
