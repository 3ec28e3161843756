"""The stage that makes images, without Ray, with a tiny network."""

import dataclasses
import hashlib
import warnings

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional

from actors import style_mixer
from actors.style_mixer import StyleMixer, check_network
from datasets.latents.partners import RealCodes, origins_of, real_codes
from datasets.latents.table import delta_name, read_latents
from datasets.runs.plan import Configuration
from datasets.runs.rows import images_of, people_without_partners
from datasets.runs.shards import SCHEMA
from passersby import stylegan2
from passersby.errors import InputError
from passersby.restyle.pivotal import Delta, save_delta
from passersby.stylegan3 import Generator, GeneratorConfig, to_uint8
from tests.helpers import latent_tables as helper
from tests.helpers.gpu_path import EXACT_RULES, PYTORCHS_RULES, filter_kernels, float_rules, go_the_way_of_a_gpu

COUNTS = (4, 1, 3)  # pictures of each real person
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


def make(generator: Generator, people: range, codes: RealCodes | None = None, **changes) -> list[dict]:
    mixer = StyleMixer(generator, dataclasses.replace(CONFIGURATION, **changes), codes=codes)
    row = pa.table({"unit": [9], "first_person": [people.start], "people": [len(people)]})
    batch = mixer(row)
    assert batch["unit"].to_pylist() == [9]
    assert batch["seconds_generate"][0].as_py() > 0
    table = images_of(batch)
    assert all(field.type == SCHEMA.field(field.name).type for field in table.schema)
    return table.to_pylist()


def share_chunks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let people share chunks of so many images on the CPU, as on a GPU, until the test ends."""
    monkeypatch.setattr(style_mixer, "shares_chunks", lambda *_: True)
    monkeypatch.setattr(style_mixer, "CHUNK", {"cpu": 8, "cuda": size})


@pytest.fixture(params=["apart", "shared chunks"])
def either_way(request, monkeypatch) -> None:
    """The test runs twice: people have chunks of their own, and people share chunks."""
    if request.param != "apart":
        share_chunks(monkeypatch, 5)


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


def test_the_method_camera_keeps_who_and_draws_how(generator):
    rows = make(generator, range(2, 4), method="camera", layers=())
    for row in rows:
        z = np.random.RandomState(100 + row["person"]).randn(1, 512)  # noqa: NPY002
        assert (row["seed"], row["method"], row["mix_layers"], row["camera"]) == (
            100 + row["person"],
            "camera",
            None,
            None,
        )
        if row["variant"]:
            assert row["mix_seed"] == CONFIGURATION.mix_seed(row["person"], row["variant"])
            z[:, 256:] = np.random.RandomState(row["mix_seed"]).randn(512)[256:]  # noqa: NPY002
        ws = generator.mapping(torch.from_numpy(z).float(), truncation_psi=0.7)
        assert close(pixels(row), picture(generator, ws))
    images = [pixels(row).astype(int) for row in rows]
    assert min(np.abs(a - b).max() for i, a in enumerate(images) for b in images[:i]) > 10


def test_the_method_camera_gives_a_conditional_network_the_label_of_each_rows_camera():
    torch.manual_seed(1)
    config = GeneratorConfig.config_t(16, 8, channel_base=128, channel_max=8, output_scale=4.0, c_dim=3)
    network = Generator(config).eval().requires_grad_(False)
    network.mapping.w_avg.normal_()
    changes = {"method": "camera", "layers": (), "cameras": (4, 6, 1), "height": 16, "width": 8, "variants": 12}
    rows = make(network, range(1), **changes)
    assert {row["camera"] for row in rows} == {4, 6, 1}
    for row in rows:
        z = np.random.RandomState(100).randn(1, 512)  # noqa: NPY002
        if row["variant"]:
            z[:, 256:] = np.random.RandomState(row["mix_seed"]).randn(512)[256:]  # noqa: NPY002
        label = torch.eye(3)[[(4, 6, 1).index(row["camera"])]]
        ws = network.mapping(torch.from_numpy(z).float(), label, truncation_psi=0.7)
        assert close(pixels(row), picture(network, ws))
    with pytest.raises(InputError, match="3 labels, 16 style inputs and 3 channels: give one with 2 labels"):
        make(network, range(1), **changes | {"cameras": (4, 6)})


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


@pytest.fixture(scope="module")
def real(generator, tmp_path_factory):
    """Makes images of the people of a table; a call returns their rows."""
    pictures = helper.codes_of(COUNTS, (16, generator.config.w_dim))
    latents = read_latents(helper.write_table(tmp_path_factory.mktemp("latents"), "n", pictures))

    def call(people: range, table=latents, network=generator, **changes) -> list[dict]:
        changes |= {"latents": table.sha256, "origins": origins_of(table)}
        codes = real_codes(table, dataclasses.replace(CONFIGURATION, **changes), len(COUNTS))
        for array in (codes.people, codes.pictures):
            array.flags.writeable = False  # as in a worker
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return make(network, people, codes, **changes)

    call.latents, call.pictures = latents, pictures
    return call


def base_of(real, person: int) -> torch.Tensor:
    return torch.tensor(real.latents.person_codes()[person : person + 1])


def test_a_real_person_is_the_image_of_the_code_and_random_people_give_styles(generator, real):
    rows = real(range(3))
    for row in rows:
        person, ws = row["person"], base_of(real, row["person"])
        assert (row["source"], row["seed"]) == ("latent", None)
        if row["variant"]:
            assert row["mix_seed"] == CONFIGURATION.mix_seed(person, row["variant"])
            assert row["truncation_psi"] == pytest.approx(0.7)
            other = styles(generator, row["mix_seed"])
            ws[:, [5, 6, 9]] = other[:, [5, 6, 9]]
        else:
            assert (row["mix_seed"], row["truncation_psi"], row["mix_layers"]) == (None, None, [])
        assert close(pixels(row), picture(generator, ws))
        distances = [np.linalg.norm(code - base_of(real, person)[0].numpy()) for code in real.pictures[person]]
        nearest = int(np.argmin(distances))
        camera = None if person == 2 else nearest % 6 + 1
        assert (row["source_path"], row["camera"]) == (helper.path_of(person, nearest), camera)
    assert close(pixels(rows[4]), picture(generator, torch.tensor(real.pictures[1])))  # one picture: its own code
    images = [pixels(row).astype(int) for row in rows]
    assert min(np.abs(a - b).max() for i, a in enumerate(images) for b in images[:i]) > 10


@pytest.mark.parametrize("cameras", [(), (4, 6)])
def test_the_method_camera_keeps_the_who_and_the_offset_of_a_real_person(tmp_path, cameras):
    torch.manual_seed(1)
    config = stylegan2.GeneratorConfig(16, 8, z_dim=12, w_dim=10, channel_base=128, channel_max=8, c_dim=len(cameras))
    network = stylegan2.Generator(config).eval().requires_grad_(False)
    network.mapping.w_avg.normal_()
    random = np.random.default_rng(4)
    parts = [(random.normal(size=6).astype(np.float32), random.normal(size=10).astype(np.float32)) for _ in COUNTS]
    pictures = helper.codes_of(COUNTS, (network.num_ws, 10))
    table = read_latents(helper.write_table(tmp_path, "n", pictures, parts=parts))
    changes = {"method": "camera", "layers": (), "height": 16, "width": 8, "cameras": cameras, "truncation_psi": 0.9}
    changes |= {"latents": table.sha256, "origins": origins_of(table)}
    codes = real_codes(table, dataclasses.replace(CONFIGURATION, **changes), len(COUNTS))
    for row in make(network, range(3), codes, **changes):
        person, variant = row["person"], row["variant"]
        who, offset = (torch.from_numpy(part) for part in parts[person])
        if variant:
            how = np.random.RandomState(row["mix_seed"]).randn(12)[6:]  # noqa: NPY002
            z = torch.cat([who, torch.from_numpy(how).float()])[None]
            label = torch.eye(2)[[cameras.index(row["camera"])]] if cameras else None
            ws = network.mapping(z, label, truncation_psi=0.9) + offset
            assert row["truncation_psi"] == pytest.approx(0.9)
        else:  # the inverted picture that the origin names
            place = int(row["source_path"].split("_")[-2])
            ws = torch.tensor(pictures[person][place])[None]
            assert (row["camera"], row["mix_seed"]) == (None if person == 2 else place % 6 + 1, None)
        assert (row["source"], row["method"], row["mix_layers"]) == ("latent", "camera", None)
        assert close(pixels(row), picture(network, ws))
    assert len(make(network, range(1), codes, **changes | {"variants": 1})) == 1
    other = stylegan2.Generator(dataclasses.replace(config, z_dim=14))
    with pytest.raises(InputError, match="--latents: a who has 6 values, but --network takes 7"):
        make(other, range(1), codes, **changes)
    plain = read_latents(helper.write_table(tmp_path / "plain", "n", pictures))
    changes |= {"latents": plain.sha256}
    with pytest.raises(InputError, match="--method camera: the people of --latents have no who"):
        real_codes(plain, dataclasses.replace(CONFIGURATION, **changes), len(COUNTS))


def test_other_real_people_give_poses_each_of_their_pictures_once(generator, real):
    for person in range(3):
        rows = real(range(person, person + 1), partners="people", truncation_psi=None)
        others = [code for who, codes in enumerate(real.pictures) if who != person for code in codes]
        taken = []
        for row in rows[1:]:
            left = [place for place in range(len(others)) if place not in taken]
            taken.append(left[CONFIGURATION.mix_seed(person, row["variant"]) % len(left)])
            ws = base_of(real, person)
            ws[0, [5, 6, 9]] = torch.tensor(others[taken[-1]][[5, 6, 9]])
            assert close(pixels(row), picture(generator, ws))
            assert row["truncation_psi"] is None
            assert row["amount"] is None


@pytest.mark.usefixtures("either_way")
def test_other_pictures_of_the_person_are_moved_towards_and_never_equally_far_twice(generator, real):
    changes = {"method": "interpolate", "partners": "pictures", "truncation_psi": None, "amount": 0.8, "variants": 6}
    rows = real(range(3), **changes, layers=tuple(range(16)))
    for person, amounts in ((0, [0.8, 0.8, 0.8, 0.4, 0.4]), (2, [0.8, 0.8, 0.8 * 2 / 3, 0.8 * 2 / 3, 0.8 / 3])):
        base = base_of(real, person)
        distances = [np.linalg.norm(code - base[0].numpy()) for code in real.pictures[person]]
        others = [code for place, code in enumerate(real.pictures[person]) if place != np.argmin(distances)]
        left: list[int] = []
        for row, amount in zip(rows[6 * person + 1 : 6 * person + 6], amounts, strict=True):
            left = left or list(range(len(others)))
            other = others[left.pop(CONFIGURATION.mix_seed(person, row["variant"]) % len(left))]
            assert row["amount"] == pytest.approx(amount)
            assert close(pixels(row), picture(generator, base + amount * (torch.tensor(other) - base)))
    images = [pixels(row).astype(int) for row in rows[:6]]
    assert min(np.abs(a - b).max() for i, a in enumerate(images) for b in images[:i]) > 3
    assert [row["status"] for row in rows[6:12]] == ["ok"] + ["error"] * 5  # this person has one picture
    assert rows[7]["message"] == "this person has no other picture to move towards"
    assert rows[7]["image"] is None
    said = people_without_partners(
        dataclasses.replace(CONFIGURATION, latents="t", origins=origins_of(real.latents), **changes), 3
    )
    assert "1 of 3 people have one picture only, the first is '0007'" in said


def test_a_real_person_does_not_depend_on_its_unit(real):
    changes = {"partners": "people", "truncation_psi": None, "format": "jpeg", "jpeg_quality": 95}
    together = real(range(3), **changes)
    assert together == [row for person in range(3) for row in real(range(person, person + 1), **changes)]


@pytest.mark.usefixtures("either_way")
def test_a_delta_changes_its_person_and_nobody_else(generator, real, tmp_path):
    name, weight = next(
        (n, p) for n, p in generator.synthesis.named_parameters() if n.startswith("L5_") and p.ndim == 4
    )
    torch.manual_seed(1)
    up, down = torch.randn(len(weight), 2).half(), torch.randn(2, weight[0].numel()).half()
    content = save_delta(Delta({name: (up, down)}), "n")
    deltas = {1: (delta_name(1), hashlib.sha256(content).hexdigest())}
    table = read_latents(helper.write_table(tmp_path, "n", real.pictures, deltas))
    with pytest.raises(InputError, match=r"1 of 1 deltas that it names are not there, the first is .*person-000001"):
        real(range(3), table)
    (tmp_path / delta_name(1)).parent.mkdir(parents=True)
    (tmp_path / delta_name(1)).write_bytes(content)
    network = Generator(generator.config).eval().requires_grad_(False)
    network.load_state_dict(generator.state_dict())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    rows, plain = real(range(3), table, network), real(range(3))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [row["image"] == same["image"] for row, same in zip(rows, plain, strict=True)] == [True] * 4 + [
        False
    ] * 4 + [True] * 4
    tuned = Generator(generator.config).eval().requires_grad_(False)
    tuned.load_state_dict(generator.state_dict())
    dict(tuned.synthesis.named_parameters())[name].add_((up.float() @ down.float()).reshape(weight.shape))
    assert close(pixels(rows[4]), picture(tuned, base_of(real, 1)))
    assert not close(pixels(rows[4]), picture(generator, base_of(real, 1)))
    (tmp_path / delta_name(1)).write_bytes(content[:-1] + b"x")
    with pytest.raises(InputError, match="is not the file that"):
        real(range(3), table, network)


def test_codes_that_cannot_be_varied_as_asked_are_refused(generator, real, tmp_path):
    with pytest.raises(InputError, match=r"--variants 6: --latents has only 4 pictures of other people .* at most 5"):
        real(range(1), variants=6, partners="people", truncation_psi=None)
    alone = read_latents(helper.write_table(tmp_path, "n", [real.pictures[1]] * 3))
    with pytest.raises(InputError, match="--partners pictures: nobody in --latents has two pictures"):
        real(range(1), alone, method="interpolate", amount=0.5, partners="pictures", truncation_psi=None)
    shallow = dataclasses.replace(generator.config, num_layers=10)
    codes = real_codes(
        real.latents,
        dataclasses.replace(CONFIGURATION, latents=real.latents.sha256, origins=origins_of(real.latents)),
        3,
    )
    with pytest.raises(InputError, match=r"--latents: its codes have 16 x 512 values, but --network takes 12 x 512"):
        check_network(shallow, CONFIGURATION, codes)


@pytest.mark.parametrize("recipe", [1, 2, 3, 4])
def test_a_run_on_a_gpu_keeps_the_kernels_of_its_recipe(generator, recipe, monkeypatch):
    convolutions, kernels = go_the_way_of_a_gpu(monkeypatch, generator), filter_kernels(monkeypatch)
    rules = float_rules(monkeypatch, generator.synthesis)
    made = make(generator, range(1), variants=2, recipe=recipe)
    assert set(rules) == {EXACT_RULES if recipe >= 4 else PYTORCHS_RULES}
    assert [row["status"] for row in made] == ["ok", "ok"]
    assert {scaled for _, scaled in convolutions} == {recipe >= 2}
    assert set(kernels) == {"auto" if recipe >= 3 else "plain"}
    assert torch.float16 in {dtype for dtype, _ in convolutions}


def test_on_a_cpu_all_recipes_give_the_same_bytes(generator):
    old, new = (make(generator, range(2), recipe=recipe, format="jpeg", jpeg_quality=95) for recipe in (1, 4))
    assert old == new


# ---- StyleGAN2 networks.


@pytest.fixture(scope="module")
def second() -> stylegan2.Generator:
    torch.manual_seed(0)
    config = stylegan2.GeneratorConfig(64, 32, mapping_layers=2, channel_base=512, channel_max=16)
    network = stylegan2.Generator(config)
    network.mapping.w_avg.normal_()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.5)
    return network.eval().requires_grad_(False)


def test_a_stylegan2s_bytes_are_a_function_of_the_plan(second):
    rows = make(second, range(2, 4), layers=(3, 4))
    torch.manual_seed(77)  # noise is constant: no random number of the process matters
    again = make(second, range(3, 4), layers=(3, 4))
    assert [row["image"] for row in rows[4:]] == [row["image"] for row in again]
    assert len({row["image"] for row in rows}) == len(rows)


def test_a_stylegan2s_variants_mix_the_chosen_layers(second):
    rows = make(second, range(2, 3), layers=(3, 4))
    base = styles(second, 102)
    assert close(pixels(rows[0]), picture(second, base))
    for row in rows[1:]:
        ws = base.clone()
        ws[:, [3, 4]] = styles(second, row["mix_seed"])[:, [3, 4]]
        assert close(pixels(row), picture(second, ws))


def test_a_stylegan2_has_ten_style_inputs_at_height_64(second):
    check_network(second.config, dataclasses.replace(CONFIGURATION, layers=(9,)))
    with pytest.raises(InputError, match="10 style inputs.*11 style inputs"):
        check_network(second.config, dataclasses.replace(CONFIGURATION, layers=(10,)))


# ---- Chunks of several people, as on a GPU.


@pytest.mark.parametrize(("chunk", "variants", "layers"), [(5, 4, (5, 6)), (16, 3, (12, 13)), (4, 1, ()), (7, 2, (0,))])
def test_people_who_share_chunks_are_those_who_do_not(generator, chunk, variants, layers, monkeypatch):
    changes = {"variants": variants, "layers": layers, "method": "mix" if layers else "camera"}
    apart = make(generator, range(3, 7), **changes)
    shapes, synthesis = [], generator.synthesis.forward

    def watched(ws, **keywords):
        trunk = keywords.get("trunk")
        shapes.append((len(ws), None if trunk is None else len(trunk.first)))
        return synthesis(ws, **keywords)

    monkeypatch.setattr(generator.synthesis, "forward", watched)
    share_chunks(monkeypatch, chunk)
    shared = make(generator, range(3, 7), **changes)
    for one, two in zip(apart, shared, strict=True):
        assert one | {"image": None} == two | {"image": None}
        assert np.abs(pixels(one).astype(int) - pixels(two)).max() <= 1  # sums in another order
    assert len(shapes) == -(-4 * variants // chunk)
    assert len(set(shapes)) == 1  # of all chunks, the last one too: an image depends on itself alone
    assert shapes[0][0] == chunk


def test_an_image_does_not_depend_on_the_people_of_its_chunk(generator, monkeypatch):
    share_chunks(monkeypatch, 8)
    alone = [row for person in range(3) for row in make(generator, range(person, person + 1))]
    assert make(generator, range(3)) == alone


def test_a_stylegan2_shares_chunks_too(second, monkeypatch):
    apart = make(second, range(3), variants=3, layers=(4, 5))
    share_chunks(monkeypatch, 5)
    for one, two in zip(apart, make(second, range(3), variants=3, layers=(4, 5)), strict=True):
        assert np.abs(pixels(one).astype(int) - pixels(two)).max() <= 1


def test_chunks_are_shared_on_a_gpu_since_recipe_4():
    shares = [
        style_mixer.shares_chunks(recipe, torch.device(device)) for device in ("cpu", "cuda") for recipe in (3, 4)
    ]
    assert shares == [False, False, False, True]
